"""A store of toy windows, and sweeps as child processes that are ended with their test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from raypipe import Run, sweep
from tests.support.sweeps import OPTIONS, Driver
from tests.support.toys import SPACE, ToyWindows, write_store


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> Path:
    """A folder with ``store``, ``space.py`` and ``long.py``, whose trials take some seconds."""
    folder = tmp_path_factory.mktemp("toy")
    write_store(folder / "store", ToyWindows(subjects=8, each=40))
    (folder / "space.py").write_text(SPACE)
    (folder / "long.py").write_text(
        SPACE.replace("'epochs': 4", "'epochs': 12").replace("'patience': 4", "'patience': 12")
    )
    return folder


@pytest.fixture(scope="session")
def undisturbed(toy, tmp_path_factory) -> Run:
    """A run of the long space that nothing disturbed."""
    return sweep(toy / "long.py", toy / "store", tmp_path_factory.mktemp("runs") / "undisturbed", **OPTIONS)


@pytest.fixture
def drive():
    """Start drivers; whatever is left of them is ended with the test."""
    started: list[Driver] = []

    def start(*arguments: object, env: Mapping[str, str] | None = None) -> Driver:
        started.append(Driver(*arguments, env=env))
        return started[-1]

    yield start
    for driver in started:
        driver.end()
