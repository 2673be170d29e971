"""Drivers that create one run at the same moment."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from raypipe.core.errors import UserError
from raypipe.storage import creation
from raypipe.storage.creation import CLAIMS, sole_creator
from raypipe.storage.files import open_folder


def uri(path: Path) -> str:
    return f"file://{path}"


def test_behind_a_uri_drivers_create_one_after_the_other(tmp_path):
    inside, most, made = [0], [0], []
    guard, start = threading.Lock(), threading.Barrier(4)
    where = uri(tmp_path / "run")

    def create(name):
        start.wait()
        with sole_creator(where, sleep=lambda seconds: threading.Event().wait(seconds / 50)):
            with guard:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            if not open_folder(where).exists("run.json"):
                open_folder(where).write("run.json", name.encode())
                made.append(name)
            with guard:
                inside[0] -= 1

    threads = [threading.Thread(target=create, args=(f"driver {n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and len(made) == 1
    assert open_folder(where).read("run.json").decode() == made[0]
    assert open_folder(where).names("creating") == []


def test_the_claim_of_a_dead_driver_is_removed_once_it_has_stayed_too_long(tmp_path, monkeypatch):
    folder = open_folder(uri(tmp_path / "run"))
    folder.write(f"{CLAIMS}dead", b"")
    now = [0.0]
    monkeypatch.setattr(creation.time, "monotonic", lambda: now[0])

    def sleep(seconds):
        now[0] += 20.0

    with sole_creator(folder.where, sleep=sleep):
        assert now[0] > creation.CLAIM_SECONDS
        assert "creating/dead" not in folder.names("creating")
    assert folder.names("creating") == [] and now[0] <= creation.CLAIM_SECONDS + 2 * 20.0


def test_a_claim_is_withdrawn_when_the_creation_fails(tmp_path):
    folder = open_folder(uri(tmp_path / "run"))
    with pytest.raises(UserError), sole_creator(folder.where):
        raise UserError("no room")
    assert folder.names("creating") == []
