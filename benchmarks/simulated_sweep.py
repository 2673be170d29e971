"""Sweeps without training, to measure what a thousand trials cost besides it: trial actors sleep and report.

Tune, the queue and its study, the broker, the heartbeats and the run's store are the real ones. Only workers are left
out: the results of folds are invented, and their checkpoints are packed beforehand.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray

from raypipe.backend import trainable
from raypipe.backend.messages import SweepContext
from raypipe.backend.trainable import TrialTrainable
from raypipe.core.seeds import derive_seed
from raypipe.data.window_store import WindowStore
from raypipe.storage.run_store import RunStore
from raypipe.training.result import FoldEpoch
from raypipe.trial import evaluator
from raypipe.trial.failures import Failure

PLAN_FILE = "simulated.json"
"""File in the run's folder: seconds per epoch, and the number of actors that must be up before the first trial."""
SIMULATED_IDENTITY = {"run": "simulated"}
ACTOR_CHECK_SECONDS = 1.0
"""Seconds between two checks of an actor whether the others are up; hundreds of actors ask the broker."""
MAX_START_SECONDS = 1800.0
"""Seconds that hundreds of actors may take to start on two cores."""


class SimulatedTrainable(TrialTrainable):
    """Trial actor that sleeps `seconds` in place of its workers, a tenth more or less by trial and epoch."""

    def _begin_trial(self, config: dict[str, Any]) -> None:
        super()._begin_trial(config)
        self.plan = json.loads(self.run.folder.read(PLAN_FILE))
        if count := self.plan["actors"]:
            deadline = time.monotonic() + MAX_START_SECONDS
            while self._actors_up() < count:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"waited in vain for {count} actors")
                time.sleep(ACTOR_CHECK_SECONDS)

    def _actors_up(self) -> int:
        return sum(owner is not None for owner in ray.get(self.broker.owners.remote()).values())

    def _collect(self, epoch: int) -> dict[int, FoldEpoch] | Failure:
        trial = self.evaluator
        number = trial.number
        rng = np.random.default_rng(derive_seed("simulated", number, epoch))
        time.sleep(self.plan["seconds"] * rng.uniform(0.9, 1.1))
        good = np.random.default_rng(derive_seed("simulated", number)).uniform(0.1, 0.9)
        outcomes = {}
        for fold, index in enumerate(trial.validation):
            self.run.write_checkpoint(number, fold, epoch, Path(self.plan["folder"], f"fold-{fold}").read_bytes())
            self.run.drop_checkpoints(number, fold, keep=(epoch, trial.best), before=epoch)
            y_V1 = self.windows.targets[index][:, None].astype(np.float32)
            noise_V1 = rng.normal(size=y_V1.shape).astype(np.float32) * (0.5 + good / epoch)
            outcomes[fold] = FoldEpoch(0.5 + good / epoch, y_V1 + noise_V1, self.plan["seconds"])
        return outcomes


class SimulatedGroups:
    """Worker groups without workers."""

    DRIVER_BYTES, PROCESSES = 0, 1

    def __init__(self, context: SweepContext, count: int) -> None:
        ray.get([context.broker.open_group.remote(f"group-{number}") for number in range(count)])

    def close(self, *, now: bool = False, abandon: bool = False) -> None:
        """Do nothing: there are no workers."""


@contextlib.contextmanager
def simulated(*, controllers: bool = False) -> Iterator[None]:
    """Simulate the sweeps of this process; their runs need the files of `prepare_simulation`.

    With `controllers`, those of Ray Train run too.
    """
    from benchmarks.simulated_groups import ControlledGroups  # imports Ray Train, which a trial actor does not need
    from raypipe.backend import worker_groups

    before = trainable.TrialTrainable, worker_groups.WorkerGroups, evaluator.checkpoint_identity
    trainable.TrialTrainable = SimulatedTrainable  # type: ignore[misc]
    worker_groups.WorkerGroups = ControlledGroups if controllers else SimulatedGroups  # type: ignore[misc,assignment]
    evaluator.checkpoint_identity = lambda *_: SIMULATED_IDENTITY  # one packed checkpoint serves all trials and epochs
    try:
        yield
    finally:
        trainable.TrialTrainable, worker_groups.WorkerGroups, evaluator.checkpoint_identity = before  # type: ignore[misc]


def prepare_simulation(
    run: RunStore, windows: WindowStore, folder: Path, seconds: float, *, actors: int = 0, weights: int = 1000
) -> None:
    """Pack a checkpoint for each fold, and write the plan of a run.

    Parameters
    ----------
    run, windows
        A new run, and the store that it is made for.
    folder
        Folder of the packed checkpoints.
    seconds
        Seconds per epoch, a tenth more or less.
    actors
        Actors that must be up before the first trial begins. Where trials are shorter than the start of an actor, Tune
        gives waiting trials to free actors and stops those that start. On two cores it would never have hundreds.
    weights
        Number of weights in a checkpoint.

    Raises
    ------
    ValueError
        The target has classes: only regressions are simulated.
    """
    import torch

    from raypipe.training import checkpoint

    if windows.classes:
        raise ValueError("only regressions are simulated")
    folder.mkdir(parents=True, exist_ok=True)
    for fold in range(run.folds.n_folds):
        count = len(run.folds.split(windows.subjects, fold)[1])
        state = {
            "initial": "simulated",
            "predictions": torch.zeros(count, 1),
            "weights": {"head.weight": torch.zeros(weights)},
            "target": [0.0, 1.0],
            evaluator.IDENTITY: SIMULATED_IDENTITY,
        }
        (folder / f"fold-{fold}").write_bytes(checkpoint.dumps(state))
    run.folder.write(PLAN_FILE, json.dumps({"seconds": seconds, "folder": str(folder), "actors": actors}).encode())
