"""Kinds of failure and ways of stopping, on a real local Ray. Faults come from outside, by `faults.inject`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from raypipe import Run, resume
from raypipe.data.window_store import WindowStore
from raypipe.storage.run_store import RunStore
from raypipe.storage.trial_log import read_log
from raypipe.trial.failures import read_retry
from raypipe.trial.local import run_trial
from tests.support.sweeps import gated, injected, wait_until

pytestmark = pytest.mark.ray

FLAGS = ["--folds", 4, "--workers", 2, "--no-prune", "--stem", "fourier", "--stack", "off"]

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
def drive_with(toy, tmp_path, drive):
    """Start a sweep in whose processes something is injected; its run is ``run``."""

    def start(after, space, trials):
        options = ["--data", toy / "store", "--run", tmp_path / "run", "--trials", trials, *FLAGS]
        return drive("sweep", toy / space, *options, env=injected(tmp_path / "hook", after))

    return start


def plain(run: RunStore, where, numbers) -> RunStore:
    """The same trials in this process, undisturbed."""
    made = RunStore.create(where, run.info, run.folds, run.space)
    windows = WindowStore(run.info.data)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for number in numbers:
            made.add_trial(number, run.config(number))
            run_trial(made, windows, number)
    finally:
        torch.set_num_threads(threads)
    return made


def cli(*arguments) -> str:
    command = [sys.executable, "-m", "raypipe", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"COLUMNS": "200"}
    ).stdout


def test_a_trial_that_does_not_fit_is_tried_once_more_in_micro_batches(tmp_path, drive_with):
    where = tmp_path / "run"
    driver = drive_with({"raypipe.training.trainer": STARVED}, "space.py", trials=2)
    out = driver.finish()
    assert driver.child.returncode == 0, out
    run = RunStore.open(where)
    undisturbed = plain(run, tmp_path / "plain", (0, 1))
    for number in (0, 1):
        assert run.result(number).state == "complete"
        assert read_retry(run, number).micro_batch == 4
        for one, other in zip(run.history(number), undisturbed.history(number), strict=True):
            assert one.score == pytest.approx(other.score, rel=1e-3)
        np.testing.assert_allclose(run.oof(number).predictions, undisturbed.oof(number).predictions, atol=5e-3)
        log = "\n".join(read_log(run.folder, number))
        assert "actor: no memory left on the GPU: CUDA out of memory. Tried to allocate 2.00 GiB.; retried" in log
        assert "in starved" in log
        for rank, folds in ((0, "0, 2"), (1, "1, 3")):
            worker = f"group-0-worker-{rank}: folds {folds} on cpu, fourier stem"
            assert f"{worker}, one by one: starts" in log
            # Epoch 2 may not have been scored yet when memory runs out at the first step of epoch 3.
            assert re.search(f"{re.escape(worker)}, micro-batches of 4: resumes after epoch [12]", log)
    assert cli("logs", where, 1).splitlines()[-1].endswith("end: complete after epoch 4: trained to the end")


def test_a_sweep_in_which_nothing_fits_stops_and_says_so(tmp_path, drive_with):
    where = tmp_path / "run"
    driver = drive_with({"raypipe.training.trainer": BROKEN}, "space.py", trials=20)
    out = driver.finish()
    assert driver.child.returncode == 2, out
    assert "the first 3 trials failed the same way (out-of-memory): no memory left on the host" in out
    assert f"more in: raypipe logs {where} 2" in out
    assert Run(where).trials.failure.tolist() == ["out-of-memory"] * 3
    said = cli("status", where)
    assert "3 of 20 trials: 3 failed (3 out-of-memory)" in said
    assert said.count("no memory left on the host (also in micro-batches of 4)") == 3
    assert said.count("in broken\n    MemoryError") == 3


def test_an_actor_without_heartbeats_is_declared_dead(tmp_path, drive_with):
    """As if Ray had missed its death because the control store died at that moment."""
    where, gate = tmp_path / "run", tmp_path / "gate"
    hooks = gated(gate, epoch=2) | {
        "raypipe.backend.heartbeat": "module.DEAD_AFTER_SECONDS = 8.0; module.CHECK_SECONDS = 1.0"
    }
    driver = drive_with(hooks, "space.py", trials=1)
    history = where / "trials/0000/history.json"
    wait_until(history.exists, "the first epoch")
    (actor,) = wait_until(lambda: driver.named("TrialTrainable", "ResourceTrainable"), "the actor")
    os.kill(actor, signal.SIGSTOP)
    wait_until(lambda: "an actor sends no heartbeats and is declared dead" in driver.said(), "the driver to notice")
    gate.touch()
    out = driver.finish()
    assert driver.child.returncode == 0, out
    run = RunStore.open(where)
    undisturbed = plain(run, tmp_path / "plain", [0])
    assert [e.score for e in run.history(0)] == [e.score for e in undisturbed.history(0)]
    assert run.oof(0).predictions.tolist() == undisturbed.oof(0).predictions.tolist()


def test_where_an_actor_is_not_replaced_the_sweep_restarts(tmp_path, drive_with):
    """As if the start of a new one was lost with the control store: here, killing the old one has no effect."""
    where, gate = tmp_path / "run", tmp_path / "gate"
    hooks = gated(gate, epoch=2) | {
        "raypipe.backend.heartbeat": "module.DEAD_AFTER_SECONDS = 8.0; module.kill_actor = print"
    }
    driver = drive_with(hooks, "space.py", trials=1)
    history = where / "trials/0000/history.json"
    wait_until(history.exists, "the first epoch")
    (actor,) = wait_until(lambda: driver.named("TrialTrainable", "ResourceTrainable"), "the actor")
    os.kill(actor, signal.SIGSTOP)
    wait_until(lambda: "no actor replaced one that died" in driver.said(), "the driver to begin again")
    gate.touch()
    out = driver.finish()
    assert driver.child.returncode == 0, out
    run = RunStore.open(where)
    undisturbed = plain(run, tmp_path / "plain", [0])
    assert [e.score for e in run.history(0)] == [e.score for e in undisturbed.history(0)]
    assert run.oof(0).predictions.tolist() == undisturbed.oof(0).predictions.tolist()


@pytest.mark.parametrize("how", ["once", "twice"])
def test_ctrl_c_once_ends_the_epoch_under_way_and_twice_stops_now(tmp_path, drive_with, how):
    where, gate = tmp_path / "run", tmp_path / "gate"
    driver = drive_with(gated(gate, epoch=3), "long.py", trials=1)
    history = where / "trials/0000/history.json"

    def epochs() -> int:
        return len(json.loads(history.read_text())["epochs"]) if history.exists() else 0

    wait_until(lambda: epochs() == 2, "the second epoch")
    os.killpg(driver.child.pid, signal.SIGINT)  # as a terminal does: everyone hears it
    wait_until(lambda: "Ctrl-C again stops now" in driver.said(), "the driver to answer")
    assert driver.child.poll() is None
    if how == "once":
        gate.touch()
    else:
        os.killpg(driver.child.pid, signal.SIGINT)
    driver.finish_interrupted()
    # Once: the epoch under way is the third, or still the second where the driver has not heard of that yet.
    assert epochs() in ((2, 3) if how == "once" else (2,))
    run = resume(where).store
    undisturbed = plain(run, tmp_path / "plain", [0])
    assert [e.score for e in run.history(0)] == [e.score for e in undisturbed.history(0)]
    assert run.oof(0).predictions.tolist() == undisturbed.oof(0).predictions.tolist()
    assert [t.state for t in run.results()] == ["complete"]
