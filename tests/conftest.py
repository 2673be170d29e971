"""Data that tests share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import hypothesis
import pytest

from raypipe.data.prepare import prepare
from raypipe.data.window_store import WindowStore
from raypipe.simulation.contrast_change import simulate
from tests.support.programs import SKIPS

hypothesis.settings.register_profile("raypipe", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("raypipe")


def pytest_addoption(parser, pluginmanager):
    """Accept the time limit in pyproject.toml where pytest-timeout is not installed, as on a machine for `make gpu`."""
    if not pluginmanager.hasplugin("timeout"):
        parser.addini("timeout", "not used: pytest-timeout is not installed")


def pytest_configure():
    """Let Ctrl-C and hang-ups through: a shell in the background, or nohup, starts processes with them ignored."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter):
    """Leave the reasons of all skips for `tests/parts.py`, once: workers of pytest-xdist report theirs to the first."""
    if (file := os.environ.get(SKIPS)) and not hasattr(terminalreporter.config, "workerinput"):
        skipped = [report.longrepr[2] for report in terminalreporter.stats.get("skipped", ())]
        with open(file, "a") as lines:
            lines.writelines(reason.removeprefix("Skipped: ") + "\n" for reason in skipped)


@pytest.fixture(scope="session")
def tiny_bids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six simulated subjects, 8 channels, 8 trials. Read-only: copy it to change it."""
    return simulate(tmp_path_factory.mktemp("tiny") / "bids", subjects=6, channels=8, trials=8)


@pytest.fixture(scope="session")
def tiny_store(tiny_bids: Path, tmp_path_factory: pytest.TempPathFactory) -> WindowStore:
    """Windows of `tiny_bids` for challenge1. Read-only."""
    return prepare(tiny_bids, "challenge1", tmp_path_factory.mktemp("tiny") / "store", jobs=1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real recordings beside the checkout."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no folder ../shared/data beside the checkout")
    return folder
