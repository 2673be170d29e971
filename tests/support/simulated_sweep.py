"""Sweeps without training: slots that sleep and report, to learn what a thousand trials ask of all the rest.

Tune, the ledger and its study, the desk, the heartbeats and the run's store are the real ones; only workers are left
out. What a fold would have given is made up, and its checkpoint is one that was packed beforehand.
"""

from __future__ import annotations

import contextlib
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
from raypipe.storage.files import read_json
from raypipe.storage.run_store import RunStore
from raypipe.training.result import FoldEpoch
from raypipe.trial.failures import Failure

PLAN = "simulated.json"
"""Beside the checkpoints, in the run's folder: seconds an epoch, and slots that the first of them waits for."""


class SimulatedSlot(TrialTrainable):
    """A slot whose workers are a pause: `seconds` of the plan, a tenth more or less by trial and epoch."""

    def _assign(self, config: dict[str, Any]) -> None:
        super()._assign(config)
        self.plan = read_json(self.run.folder, PLAN)
        while self._up() < self.plan["slots"]:
            time.sleep(1.0)

    def _up(self) -> int:
        return sum(owner is not None for owner in ray.get(self.crew.desk.owners.remote()).values())

    def _collect(self, epoch: int) -> dict[int, FoldEpoch] | Failure:
        number, referee = self.referee.number, self.referee
        rng = np.random.default_rng(derive_seed("simulated", number, epoch))
        time.sleep(self.plan["seconds"] * rng.uniform(0.9, 1.1))
        good = np.random.default_rng(derive_seed("simulated", number)).uniform(0.1, 0.9)
        given = {}
        for fold, index in enumerate(referee.validation):
            self.run.write_checkpoint(number, fold, epoch, Path(self.plan["folder"], f"fold-{fold}").read_bytes())
            self.run.drop_checkpoints(number, fold, keep=(epoch, referee.best), before=epoch)
            y_V1 = self.windows.targets[index][:, None].astype(np.float32)
            noise_V1 = rng.normal(size=y_V1.shape).astype(np.float32) * (0.5 + good / epoch)
            given[fold] = FoldEpoch(0.5 + good / epoch, y_V1 + noise_V1, self.plan["seconds"])
        return given


class SimulatedGroups:
    """Worker groups that the desk knows of, and that nobody is in."""

    FOOTPRINT = 0

    def __init__(self, crew: SweepContext, count: int) -> None:
        ray.get([crew.desk.open.remote(f"group-{number}") for number in range(count)])

    def close(self, *, now: bool = False) -> None:
        """Nothing: there is nobody to send home."""


@contextlib.contextmanager
def simulated() -> Iterator[None]:
    """Within it, sweeps of this process are simulated; their runs need what `prepare_simulation` leaves."""
    from raypipe.backend import worker_groups  # a slot's process does without

    kept = trainable.TrialTrainable, worker_groups.WorkerGroups
    trainable.TrialTrainable, worker_groups.WorkerGroups = SimulatedSlot, SimulatedGroups  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        trainable.TrialTrainable, worker_groups.WorkerGroups = kept  # type: ignore[misc]


def prepare_simulation(
    run: RunStore, windows: WindowStore, folder: Path, seconds: float, *, slots: int = 0, weights: int = 1000
) -> None:
    """Pack a checkpoint for each fold, with so many weights, and write the plan of a run.

    Parameters
    ----------
    run, windows
        A new run, and the store that it is made for.
    folder
        Where the checkpoints are packed.
    seconds
        That an epoch takes, a tenth more or less.
    slots
        That must be up before the first trial begins. Where trials are shorter than a slot takes to start, Tune hands
        the ones that wait to slots that are free and lets go of those that start, over and over; on two cores, which
        have hundreds of slots to start, it would never come to have them all.
    weights
        That a checkpoint holds.

    Raises
    ------
    ValueError
        The task has classes: only regressions are simulated.
    """
    import torch

    from raypipe.storage.files import write_json
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
            "answer": [0.0, 1.0],
        }
        (folder / f"fold-{fold}").write_bytes(checkpoint.dumps(state))
    write_json(run.folder, PLAN, {"seconds": seconds, "folder": str(folder), "slots": slots})
