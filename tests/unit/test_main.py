"""A Ctrl-C in the first seconds of the command, while modules are imported."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INTERRUPT_AT = """
import os, signal, sys

module = sys.argv.pop(1)

class Interrupt:
    sent = False

    def find_spec(self, name, path=None, target=None):
        if name == module and not self.sent:
            self.sent = True
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what is in the background with it ignored
sys.meta_path.insert(0, Interrupt())
from raypipe.__main__ import main
main()
"""


@pytest.mark.parametrize(
    "module", ["raypipe.cli.app", "typer", "rich.console", "pydantic", "raypipe.core.folds", "numpy", "raypipe.storage"]
)
def test_a_ctrl_c_while_modules_are_imported_is_one_line(module):
    command = [sys.executable, "-c", INTERRUPT_AT, module, "status", "none"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.stderr == "raypipe: interrupted\n"
    assert ended.returncode in (130, -signal.SIGINT)  # Python repeats the signal where an exec() was interrupted
