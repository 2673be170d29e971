"""Hosts that killed tests left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.hosts import BIN, SCRIPT, need_hosts
from tests.support.faults import kill
from tests.support.waiting import wait_until

pytestmark = pytest.mark.cluster

START = "import subprocess, sys; subprocess.run(sys.argv[1:], check=True); input()"
"""Start hosts, and live until the end of standard input, as tests do that use them."""


def start(folder: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", START, str(SCRIPT), "up", str(folder), str(BIN), "1"]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stderr=(folder.with_suffix(".log")).open("w"), text=True)


def test_hosts_of_killed_tests_are_removed_by_the_next_and_those_of_others_stay(tmp_path):
    need_hosts()
    first = start(tmp_path / "first")
    try:
        wait_until((tmp_path / "first/host0.pid").is_file, "the first hosts")
        host = int((tmp_path / "first/host0.pid").read_text())
        second = start(tmp_path / "second")
        assert second.wait(60) and f"process {first.pid} uses such hosts" in (tmp_path / "second.log").read_text()
        assert Path(f"/proc/{host}").exists()
    finally:
        kill(first.pid)
        first.wait()
    third = start(tmp_path / "third")
    try:
        wait_until((tmp_path / "third/host0.pid").is_file, "the next hosts")
        gone = lambda: not Path(f"/proc/{host}/exe").exists()  # noqa: E731
        wait_until(gone, "the first host to end")
    finally:
        subprocess.run([SCRIPT, "down", str(tmp_path / "third")], check=True)
        third.communicate("")
