"""Findings about a machine, from numbers that this one need not have."""

from __future__ import annotations

import socket
import tempfile
from importlib import metadata

import pytest
from packaging.requirements import Requirement

from raypipe.cli import machine
from raypipe.cli.machine import (
    GIB,
    Finding,
    check_disk,
    check_open_files,
    check_shared_memory,
    check_versions,
    examine,
)


@pytest.mark.parametrize(
    ("free", "total", "level"),
    [(50, 100, "ok"), (9, 100, "warning"), (0.5, 100, "broken"), (20, 1000, "warning")],
)
def test_free_space_on_a_disk(free, total, level):
    found = check_disk("/data", int(free * GIB), int(total * GIB))
    assert found.level == level and found.what.startswith(f"/data: {free:.1f} GiB free of {total}")
    assert bool(found.fix) == (level != "ok")


def test_shared_memory_of_a_container_and_open_files():
    assert check_shared_memory(64 * 2**20).level == "warning" and "--shm-size" in check_shared_memory(64 * 2**20).fix
    assert check_shared_memory(8 * GIB).level == "ok"
    assert (check_open_files(256).level, check_open_files(65536).level, check_open_files(-1).level) == (
        "warning",
        "ok",
        "ok",
    )


def test_versions_are_compared_with_what_is_needed_and_with_what_was_tested():
    installed = metadata.version("numpy")
    (same,) = check_versions({"numpy": installed}, [Requirement("numpy>=1")])
    assert same.level == "ok"
    (other,) = check_versions({"numpy": "1.0"}, [Requirement("numpy>=1")])
    assert other.level == "warning" and f"numpy {installed} (tested: 1.0)" in other.what
    old, gone, _ = check_versions(
        {"numpy": installed}, [Requirement("numpy>=99"), Requirement("no-such-package-here>=2")]
    )
    assert old.level == gone.level == "broken"
    assert "raypipe needs >=99" in old.what and "'no-such-package-here>=2'" in gone.fix


def test_a_build_of_a_version_is_that_version():
    (found,) = check_versions({"torch": metadata.version("torch").partition("+")[0] + "+cu999"}, [Requirement("torch")])
    assert found.level == "ok"


def test_the_tested_versions_are_known_here():
    assert {"torch", "ray", "optuna", "mne"} <= set(machine.tested_versions())
    assert {"torch", "ray", "optuna"} <= {package.name for package in machine.required_packages()}
    assert "pytest" not in {package.name for package in machine.required_packages()}, "an extra is not needed"


def test_a_machine_that_may_not_listen(monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(socket, "create_server", refuse)
    found = [each for each in examine("/nowhere/at/all") if "127.0.0.1" in each.what]
    assert [each.level for each in found] == ["broken"] and "loopback" in found[0].fix


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_the_disk_of_temporary_files_is_checked(variable, monkeypatch, tmp_path):
    places = []
    monkeypatch.setattr(
        "raypipe.cli.machine.check_disk", lambda place, *_: places.append(place) or Finding("ok", place)
    )
    monkeypatch.setattr(tempfile, "tempdir", None)  # the module keeps what it has found
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    assert list(examine("/proc/nothing")) and str(tmp_path) in places
