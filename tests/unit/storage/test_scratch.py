from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from raypipe.storage import scratch
from raypipe.storage.scratch import LOCK_FILE, remove_abandoned, scratch_folder
from tests.support.faults import kill

HOLD = """
import sys, time
from pathlib import Path
from raypipe.storage.scratch import scratch_folder
with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "session/logs").mkdir(parents=True)
    (folder / "session/logs/raylet.out").write_text("log")
    (folder / "latest").symlink_to("session")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def held(tmp_path):
    """A process that holds a folder, and the folder."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield child, Path(child.stdout.readline().strip())
    finally:
        kill(child.pid)
        child.communicate()


def test_a_folder_is_private_and_removed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/kept").touch()
    with pytest.raises(ZeroDivisionError), scratch_folder(tmp_path) as folder:
        assert folder.parent == tmp_path and stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "session").mkdir()
        (folder / "session/log").touch()
        (folder / "link").symlink_to(tmp_path / "elsewhere")
        1 / 0  # noqa: B018
    assert not folder.exists() and (tmp_path / "elsewhere/kept").exists()


def test_the_folder_of_a_killed_process_is_removed_by_the_next_and_not_before(tmp_path, held):
    child, folder = held
    with scratch_folder(tmp_path):
        assert (folder / "session/logs/raylet.out").exists(), "its process lives"
    kill(child.pid)
    child.wait()
    assert folder.exists()
    with scratch_folder(tmp_path) as other:
        assert list(tmp_path.iterdir()) == [other]


def test_a_folder_without_its_lock_file_is_removed_only_if_it_is_empty(tmp_path):
    """A process was killed before it had the lock, or something else has such a name."""
    for name in ("rp-abcdefgh", "rp-ijklmnop"):
        (tmp_path / name).mkdir()
    (tmp_path / "rp-ijklmnop/mine").touch()
    (tmp_path / "rp-a-file").touch()
    remove_abandoned(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rp-a-file", "rp-ijklmnop"]


def abandoned(base):
    folder = base / "rp-abcdefgh"
    folder.mkdir()
    (folder / LOCK_FILE).touch()
    return folder


def test_folders_of_others_are_left(tmp_path, monkeypatch):
    folder = abandoned(tmp_path)
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    remove_abandoned(tmp_path)
    assert folder.exists()
    monkeypatch.undo()
    remove_abandoned(tmp_path)
    assert not folder.exists()


def test_links_are_not_followed(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    for name in (LOCK_FILE, "kept"):
        (target / name).touch()
    base = tmp_path / "base"
    base.mkdir()
    (base / "rp-abcdefgh").symlink_to(target)
    folder = base / "rp-ijklmnop"
    folder.mkdir()
    (folder / LOCK_FILE).symlink_to(target / "kept")
    remove_abandoned(base)
    assert (target / "kept").exists() and folder.exists()


def test_where_files_cannot_be_locked_nothing_is_taken_for_abandoned(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks")

    folder = abandoned(tmp_path)
    monkeypatch.setattr(fcntl, "flock", refuse)
    with scratch_folder(tmp_path) as own:
        assert folder.exists() and own.exists()
    assert not own.exists()


def test_a_folder_that_another_process_removes_while_it_is_made_is_made_again(tmp_path, monkeypatch):
    lock, removed = scratch._lock, []

    def lose_first(handle, **how):
        if not removed:
            removed.append(next(tmp_path.iterdir()))
            scratch._remove(removed[0])
        return lock(handle, **how)

    monkeypatch.setattr(scratch, "_lock", lose_first)
    with scratch_folder(tmp_path) as folder:
        assert folder.exists() and folder != removed[0]


def test_a_folder_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), scratch_folder(tmp_path / "none"):
        pass


def test_what_cannot_be_removed_is_left_to_the_next(tmp_path, monkeypatch):
    """A process that is about to end may still write into the folder."""
    with monkeypatch.context() as patch, scratch_folder(tmp_path) as folder:
        (folder / "session").mkdir()
        patch.setattr(scratch.shutil, "rmtree", lambda *_, **__: None)
    assert (folder / LOCK_FILE).exists() or folder.exists()
    remove_abandoned(tmp_path)
    assert not folder.exists()
