"""Ways of stopping a sweep from outside: a notice to stop, Ctrl-C, a console or a terminal that is closed."""

from __future__ import annotations

import contextlib
import functools
import os
import pty
import signal
import subprocess
import sys

import pytest

from raypipe import Run, resume
from raypipe.core.errors import UserError
from raypipe.storage.files import open_folder
from raypipe.storage.lease import read_lease
from tests.support.sweeps import Gate, cli, epochs_of, injected, same, wait_while_it_runs
from tests.support.waiting import MAX_WAIT_SECONDS

pytestmark = pytest.mark.ray


def test_a_notice_to_stop_and_ctrl_c_once_and_twice_leave_a_run_that_can_be_resumed(
    tmp_path, shared, alone, command, undisturbed
):
    """Once: the epoch under way ends, and no other begins. Twice: the sweep stops now. None changes a number."""
    where = tmp_path / "run"

    def stop(place, sign, *, twice=False):
        """Drive the run to its next epoch, in which it waits, and stop it there."""
        before = epochs_of(where)
        # The second keeps workers from training the epoch ahead, which the next driver would only have to report.
        gate = Gate(tmp_path / f"gate-{place.name}-{before}", before + 1, before + 2)
        place.hooks.set(gate.hooks)
        driver = place.drive(*command(2, workers=1 if twice else 2))
        gate.wait(before + 1, driver)
        with pytest.raises(UserError, match="another raypipe is driving this run"):
            resume(where)
        # To the driver's group, as a terminal does: workers are in it, where the Ray is the driver's own.
        os.killpg(driver.child.pid, sign)
        driver.wait_until(lambda: "Ctrl-C again stops now" in driver.output(), "the driver to answer")
        assert driver.child.poll() is None
        if twice:
            os.killpg(driver.child.pid, sign)
        else:
            gate.open(before + 1)
        driver.finish_interrupted()
        place.settle()
        assert epochs_of(where) == before + (not twice)

    stop(shared, signal.SIGTERM)
    stop(alone, signal.SIGTERM)
    stop(alone, signal.SIGINT)
    stop(alone, signal.SIGINT, twice=True)
    shared.hooks.clear()
    run = resume(where, address=shared.address, workers=1)
    assert same(run, undisturbed, 2)


@pytest.mark.long  # in random runs of chaos too
def test_a_sweep_goes_on_without_its_console(toy, command, tmp_path, undisturbed):
    """The reader of a pipe ends after one line, as `head` does: the sweep ends as if nothing had happened."""
    words = [sys.executable, "-m", "raypipe", *map(str, command(1))]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    assert child.stdout.readline()
    child.stdout.close()
    assert child.wait(MAX_WAIT_SECONDS) == 0
    assert same(Run(tmp_path / "run"), undisturbed, 1)


# Lead a session whose terminal is the standard input, then run the command.
LEADER = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def written_to(terminal):
    """Return what a terminal shows, as far as its buffer holds it."""
    os.set_blocking(terminal, False)
    with contextlib.suppress(OSError):
        return os.read(terminal, 10**5).decode()
    return ""


@pytest.mark.long  # as a notice to stop, by another signal
def test_a_sweep_whose_terminal_is_closed_drains_and_can_be_resumed(toy, command, tmp_path, undisturbed):
    gate = Gate(tmp_path / "gate", 2)
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "raypipe", *map(str, command(1))]
    environment = os.environ | injected(tmp_path / "hooks", gate.hooks)
    child = subprocess.Popen(
        [sys.executable, "-c", LEADER, *words], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    shown = functools.partial(written_to, ours)
    wait_while_it_runs(child, lambda: gate.reached(2), "a fold to begin epoch 2", shown)
    wait_while_it_runs(child, lambda: epochs_of(tmp_path / "run") == 1, "the first epoch to be recorded", shown)
    os.close(ours)  # the kernel sends SIGHUP to the session's leader, and every write fails
    gate.open(2)
    assert child.wait(MAX_WAIT_SECONDS) == 130
    assert read_lease(open_folder(tmp_path / "run")).ended  # it was not the hang-up that ended it
    cli("resume", tmp_path / "run")
    assert same(Run(tmp_path / "run"), undisturbed, 1)
