"""Kinds of failure and ways of stopping, on a real local Ray. Faults come from outside, by `faults.Hooks`.

Which process is killed where, each once:

- workers, trial actors, controllers, the broker, drivers, nodes and the control store at moments between two files, and
  in the midst of a file: `tests/chaos`;
- a trial actor that hangs, a Tune that dies, a notice to stop, Ctrl-C once and twice: here;
- a driver with a Ray of its own, whose Tune leaves truncated files: `test_traps.py`;
- workers that pretrain: `test_pretrain.py`;
- machines for good, and the control store for longer: `tests/chaos/test_nodes.py`;
- hosts, and all of Ray on the head: `tests/cluster`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pty
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from ray.tune.execution.tune_controller import TuneController

from raypipe import Run, resume, sweep
from raypipe.backend import heartbeat
from raypipe.core.errors import UserError
from raypipe.storage.files import open_folder
from raypipe.storage.lease import read_lease
from raypipe.storage.trial_log import read_log
from raypipe.trial.failures import read_retry
from tests.support.callbacks import Recorder
from tests.support.sweeps import FLAGS, Gate, epochs_of, injected, numbers, study_of, wait_while_it_runs
from tests.support.waiting import MAX_WAIT_SECONDS

pytestmark = pytest.mark.ray

# Memory runs out in epoch 3 of fold 2, unless it is trained in micro-batches.
STARVED = """
import torch
step = module.SupervisedTrainer.step
def starved(self, batch, n):
    if self.fold == 2 and self.epoch == 2 and self.micro_batch is None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return step(self, batch, n)
module.SupervisedTrainer.step = starved
"""

# No step fits, however small.
BROKEN = """
def broken(self, batch, n):
    raise MemoryError
module.SupervisedTrainer.step = broken
"""


@pytest.fixture
def command(toy, tmp_path):
    """The words of a sweep in the folder ``run``."""

    def words(trials, workers=2):
        flags = ["--data", toy / "store", "--run", tmp_path / "run", *FLAGS]
        return ["sweep", toy / "space.py", *flags, "--trials", trials, "--workers", workers, "--concurrent", 1]

    return words


def same(run: Run, undisturbed: Run, trials: int) -> bool:
    """Return whether a run has so many trials, and their numbers are those of the run that nothing disturbed."""
    assert [(t.number, t.state.name) for t in study_of(run).trials] == [(n, "COMPLETE") for n in range(trials)]
    return numbers(run) == {n: found for n, found in numbers(undisturbed).items() if n < trials}


def cli(*arguments) -> str:
    command = [sys.executable, "-m", "raypipe", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"COLUMNS": "200"}
    ).stdout


def test_a_trial_that_does_not_fit_is_tried_once_more_in_micro_batches(toy, tmp_path, shared, options, undisturbed):
    where = tmp_path / "run"
    shared.hooks.set({"raypipe.training.trainer": STARVED})
    run = sweep(toy / "space.py", toy / "store", where, **options | {"trials": 2}).store
    for number in (0, 1):
        assert run.result(number).state == "complete"
        assert read_retry(run, number).micro_batch == 4
        for one, other in zip(run.history(number), undisturbed.store.history(number), strict=True):
            assert one.score == pytest.approx(other.score, rel=1e-3)
        expected = undisturbed.store.oof(number).predictions
        np.testing.assert_allclose(run.oof(number).predictions, expected, atol=5e-3)
        log = "\n".join(read_log(run.folder, number))
        assert "actor: no memory left on the GPU: CUDA out of memory. Tried to allocate 2.00 GiB.; retried" in log
        assert "in starved" in log
        for rank, folds in ((0, "0, 2"), (1, "1, 3")):
            worker = f"group-0-worker-{rank}: folds {folds} on cpu, fourier stem"
            assert f"{worker}, one by one: starts" in log
            # Epoch 2 may not have been scored yet when memory runs out at the first step of epoch 3.
            assert re.search(f"{re.escape(worker)}, micro-batches of 4: resumes after epoch [12]", log)
    assert cli("logs", where, 1).splitlines()[-1].endswith("end: complete after epoch 4: trained to the end")


def test_a_sweep_in_which_nothing_fits_stops_and_says_so(tmp_path, shared, command):
    where = tmp_path / "run"
    shared.hooks.set({"raypipe.training.trainer": BROKEN})
    driver = shared.drive(*command(20, workers=1))
    out = driver.finish()
    assert driver.child.returncode == 2, out
    assert "the first 3 trials failed the same way (out-of-memory): no memory left on the host" in out
    assert f"more in: raypipe logs {where} 2" in out
    assert Run(where).trials.failure.tolist() == ["out-of-memory"] * 3
    said = cli("status", where)
    assert "3 of 20 trials: 3 failed (3 out-of-memory)" in said
    assert said.count("no memory left on the host (also in micro-batches of 4)") == 3
    assert said.count("in broken\n    MemoryError") == 3


@pytest.mark.parametrize(
    "deaf", [False, True], ids=["its successor takes over", "none follows, and the sweep restarts"]
)
def test_an_actor_without_heartbeats_is_declared_dead(toy, tmp_path, shared, light, undisturbed, monkeypatch, deaf):
    """As if Ray had missed its death because the control store died at that moment.

    In the second case killing it has no effect, as if the start of a new one was lost with the control store.
    """
    gate = Gate(tmp_path / "gate", 2)
    shared.hooks.set(gate.hooks)
    monkeypatch.setattr(heartbeat, "DEAD_AFTER_SECONDS", 20.0)
    if deaf:
        monkeypatch.setattr(heartbeat, "kill_actor", lambda actor: None)

    def stop(event, given):
        if event == "on_epoch" and given.epoch == 1:
            for pid in shared.find("actor"):
                os.kill(pid, signal.SIGSTOP)
        elif event == ("on_restart" if deaf else "on_actor_lost"):
            gate.open(2)

    seen = Recorder(stop)
    run = sweep(toy / "space.py", toy / "store", tmp_path / "run", callback=seen, **light | {"trials": 1})
    assert "on_actor_lost" in seen.names
    if deaf:
        assert "no actor replaced one that died" in seen.of("on_restart")[0].reason
    assert same(run, undisturbed, 1)


def test_a_tune_that_dies_of_a_kill_for_memory_is_restarted(toy, tmp_path, shared, light, undisturbed, monkeypatch):
    """Tune's loop dies when Ray has killed a trial's actor for memory: `OutOfMemoryError` is no `RayActorError`."""
    step, seen = TuneController.step, Recorder()

    def dying(self):
        step(self)
        if seen.names.count("on_epoch") >= 2 and not seen.of("on_restart"):
            raise RuntimeError("Caught unexpected exception: Task was killed due to the node running low on memory.")

    monkeypatch.setattr(TuneController, "step", dying)
    run = sweep(toy / "space.py", toy / "store", tmp_path / "run", callback=seen, **light | {"trials": 2})
    (restart,) = seen.of("on_restart")
    assert "Ray Tune has died (Caught unexpected exception: Task was killed" in restart.reason
    assert same(run, undisturbed, 2)


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
