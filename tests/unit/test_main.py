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


IN_A_VERB = """
import atexit, os, signal, sys, threading

signal.signal(signal.SIGINT, signal.default_int_handler)
kind = sys.argv.pop(1)
from raypipe.cli import app

def verb():
    if kind == "at the end":
        atexit.register(os.kill, os.getpid(), signal.SIGINT)
        return
    import mailbox
    threading.Event().wait(5)
    print("not interrupted")

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "mailbox":
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:  # as Python does in the callbacks of its locks
                print("swallowed")

app.main = verb
sys.meta_path.insert(0, Interrupt())
from raypipe.__main__ import main
main()
"""


def _play(kind):
    ended = subprocess.run([sys.executable, "-c", IN_A_VERB, kind], cwd=ROOT, capture_output=True, text=True)
    return ended.stdout, ended.stderr, ended.returncode


def test_a_ctrl_c_while_python_ends_is_one_line():
    assert _play("at the end") == ("", "raypipe: interrupted\n", 130)


def test_a_ctrl_c_during_imports_of_a_verb_is_one_line_when_they_end():
    assert _play("in an import") == ("", "raypipe: interrupted\n", 130)
