"""Kinds of failure and ways of stopping, on a real local Ray. Faults come from outside, by `faults.Hooks`.

Which process is killed where, each once:

- workers, trial actors, controllers, the broker, drivers, nodes and the control store at moments between two files, and
  in the midst of a file: `tests/chaos`;
- a trial actor that hangs, a Tune that dies: here;
- a notice to stop, Ctrl-C once and twice, a console that is closed: `test_stopping.py`;
- a driver with a Ray of its own, whose Tune leaves truncated files: `test_traps.py`;
- workers that pretrain: `test_pretrain.py`;
- machines for good, and the control store for longer: `tests/chaos/test_nodes.py`;
- hosts, and all of Ray on the head: `tests/cluster`.
"""

from __future__ import annotations

import os
import re
import signal

import numpy as np
import pytest
from ray.tune.execution.tune_controller import TuneController

from raypipe import Run, sweep
from raypipe.backend import heartbeat
from raypipe.storage.trial_log import read_log
from raypipe.trial.failures import read_retry
from tests.support.callbacks import Recorder
from tests.support.sweeps import Gate, cli, same

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

# CUDA takes the GPU from the process of a worker: in epoch 2 by a fault, and in epoch 3 by an assertion.
LOST = """
import pathlib
from raypipe.training import device
step, lost = module.SupervisedTrainer.step, []
device.broken_context = lambda card: lost[0] if lost else None
ERRORS = {1: "CUDA error: unspecified launch failure", 2: "CUDA error: device-side assert triggered"}
def losing(self, batch, n):
    once = pathlib.Path(FOLDER, str(self.epoch))
    if self.epoch in ERRORS and not once.exists():
        once.touch()
        lost.append(ERRORS[self.epoch])
    if lost:
        raise RuntimeError(lost[0])
    return step(self, batch, n)
module.SupervisedTrainer.step = losing
"""


@pytest.mark.long  # tests/unit/backend/test_worker.py has it without Tune
def test_a_worker_that_loses_its_gpu_ends_and_the_sweep_goes_on_in_another(toy, tmp_path, shared, light):
    shared.hooks.set({"raypipe.training.trainer": f"FOLDER = {str(tmp_path)!r}{LOST}"})
    run = sweep(toy / "space.py", toy / "store", tmp_path / "run", **light | {"trials": 2}).store
    failed, complete = run.result(0), run.result(1)
    assert (failed.failure, failed.reason) == ("error", "CUDA error: device-side assert triggered")
    assert complete.state == "complete"
    log = "\n".join(read_log(run.folder, 0))
    assert "worker 0 died (trial 0: CUDA error: unspecified launch failure); the group restarts" in log
    assert "in losing" in log


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
    "deaf",
    [
        pytest.param(False, id="its successor takes over"),
        pytest.param(True, id="none follows, and the sweep restarts", marks=pytest.mark.long),
    ],
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
