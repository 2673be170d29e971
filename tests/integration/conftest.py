"""A Ray that the tests of this folder share, a store of toy windows, and drivers that are ended with their test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raypipe import Run
from tests.support.plain import plain_sweep
from tests.support.rays import OwnRay, SharedRay
from tests.support.sweeps import FLAGS, OPTIONS
from tests.support.toys import SPACE, ToyWindows, write_store


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> Path:
    """A folder with ``store`` and ``space.py``, whose trials have four epochs."""
    folder = tmp_path_factory.mktemp("toy")
    write_store(folder / "store", ToyWindows(subjects=8, each=40))
    (folder / "space.py").write_text(SPACE)
    return folder


@pytest.fixture(scope="session")
def _session_ray(tmp_path_factory) -> Iterator[SharedRay]:
    with SharedRay(tmp_path_factory.mktemp("ray")) as place:
        yield place


@pytest.fixture
def shared(_session_ray) -> Iterator[SharedRay]:
    """A Ray of two cores that all tests join; each leaves it idle, and none of its hooks behind."""
    try:
        yield _session_ray
        _session_ray.settle()
    finally:
        _session_ray.hooks.clear()
        _session_ray.end()


@pytest.fixture
def alone(tmp_path) -> Iterator[OwnRay]:
    """Drivers that start a Ray of their own."""
    with OwnRay(tmp_path) as place:
        yield place


@pytest.fixture(scope="session")
def options(_session_ray) -> dict[str, Any]:
    """Options of a sweep from Python on the shared Ray: three trials, each by two workers."""
    return OPTIONS | {"address": _session_ray.address}


@pytest.fixture(scope="session")
def light(options) -> dict[str, Any]:
    """The same by one worker, which starts in half the time; the numbers do not depend on it."""
    return options | {"workers": 1, "concurrent": 1}


@pytest.fixture(scope="session")
def undisturbed(toy, tmp_path_factory) -> Run:
    """Three trials trained without Ray, whose numbers every sweep must have. Read-only."""
    where = tmp_path_factory.mktemp("runs") / "undisturbed"
    return plain_sweep(toy / "space.py", toy / "store", where, trials=3)


@pytest.fixture
def command(toy, tmp_path):
    """The words of a sweep in the folder ``run``."""

    def words(trials, workers=2):
        flags = ["--data", toy / "store", "--run", tmp_path / "run", *FLAGS]
        return ["sweep", toy / "space.py", *flags, "--trials", trials, "--workers", workers, "--concurrent", 1]

    return words
