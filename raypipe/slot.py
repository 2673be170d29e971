"""Where trials run: a slot of Ray Tune with a group of Ray Train workers that lives on from trial to trial.

Tune's usual pattern, a trainer inside each trial, starts a controller and a worker group for every trial (about 16 s).
Here a `Slot` is started once, with `reuse_actors`: it keeps one Ray Train run going in a thread, whose workers serve
trial after trial from the sweep's `Desk`. No torch here: the slot only waits and scores.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from typing import Any

import ray
from ray import PlacementGroupID, tune
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from raypipe.messages import Crew, Failure, FoldEpoch, describe
from raypipe.referee import Referee
from raypipe.store import RunStore
from raypipe.windows import WindowStore
from raypipe.worker import serve

# Seconds between two looks at whether the worker group lives.
GLANCE = 1.0


class Workers(DataParallelTrainer):  # type: ignore[misc]
    """Ray Train's group of workers, without two of its helpers.

    One is the detached actor that polls for a dead controller: it asks Ray's state API, which needs a dashboard, and a
    slot's own successor does its work (`release`). The other is the manager of Ray Data's sets, an actor that imports
    Ray Data for seconds and has nothing to manage here.
    """

    _NOT_NEEDED = ("PlacementGroupCleanerCallback", "DatasetsCallback")

    def _create_default_callbacks(self) -> list[Any]:
        return [c for c in super()._create_default_callbacks() if type(c).__name__ not in self._NOT_NEEDED]


class Slot(tune.Trainable):  # type: ignore[misc]
    """A place where one trial after another runs. Tune steps it once an epoch of all folds."""

    def setup(self, config: dict[str, Any], crew: Crew) -> None:
        """Start the worker group and hand it the first trial."""
        self.crew = crew
        self.name = uuid.uuid4().hex[:8]
        self.run, self.windows = RunStore.open(crew.run), WindowStore(crew.windows)
        owners = ray.get(crew.desk.open.remote(self.name, ray.get_runtime_context().current_actor))
        # A slot that was killed leaves a worker group that holds on to its resources.
        for name in dead(owners):
            release(ray.get(crew.desk.close.remote(name)))
        self.broken: BaseException | None = None
        self.thread = threading.Thread(target=self._keep_workers, daemon=True)
        self.thread.start()
        self._assign(config)

    def _keep_workers(self) -> None:
        trainer = Workers(
            serve,
            train_loop_config={"crew": self.crew, "slot": self.name},
            scaling_config=ScalingConfig(
                num_workers=self.crew.workers,
                use_gpu=self.crew.gpus > 0,
                resources_per_worker={"CPU": self.crew.cpus, **({"GPU": self.crew.gpus} if self.crew.gpus else {})},
            ),
            run_config=RunConfig(
                name=f"slot-{self.name}",
                storage_path=self.crew.scratch,
                failure_config=FailureConfig(max_failures=-1),
            ),
        )
        try:
            trainer.fit()
        except BaseException as error:
            self.broken = error

    def _assign(self, config: dict[str, Any]) -> None:
        self.referee = Referee(self.run, self.windows, int(config["number"]))
        if not self.referee.over:
            referee = self.referee
            ray.get(self.crew.desk.assign.remote(self.name, referee.number, referee.done, referee.best))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial on the warm worker group."""
        self._assign(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Wait for the next epoch of all folds and score it."""
        referee = self.referee
        if referee.over:  # a trial that a killed driver had left at its end
            return self._report(done=True)
        epoch = referee.done + 1
        outcomes = self._collect(epoch)
        if isinstance(outcomes, Failure):
            return self._report(done=True, failure=outcomes)
        try:
            referee.take(epoch, outcomes)
        except Exception as error:
            return self._report(done=True, failure=describe(error))
        ray.get(self.crew.desk.scored.remote(self.name, epoch, referee.best, referee.over))
        return self._report(done=referee.over)

    def _collect(self, epoch: int) -> dict[int, FoldEpoch] | Failure:
        while True:
            found = ray.get(self.crew.desk.collect.remote(self.name, epoch, self.run.folds.n_folds, GLANCE))
            if found is not None:
                return found  # type: ignore[no-any-return]
            if not self.thread.is_alive():
                raise RuntimeError(f"the worker group ended: {self.broken}")

    def _report(self, *, done: bool, failure: Failure | None = None) -> dict[str, Any]:
        referee = self.referee
        latest = referee.history[-1] if referee.history else None
        report: dict[str, Any] = {
            "number": referee.number,
            "epoch": referee.done,
            "score": latest.score if latest else float("nan"),
            "done": done,
        }
        if failure:
            report |= {"failure": failure.kind, "reason": failure.reason, "trace": failure.trace}
        return report

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the run's store holds every epoch's checkpoints."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: the run's store holds every epoch's checkpoints."""

    def cleanup(self) -> None:
        """End the worker group."""
        with contextlib.suppress(ray.exceptions.RayError):
            group = ray.get(self.crew.desk.close.remote(self.name))
            self.thread.join(timeout=10)
            if self.thread.is_alive():
                release(group)


def dead(owners: dict[str, Any]) -> list[str]:
    """Names of the slots whose actor has died. One that lives is at work, and does not answer within a second."""
    asked = {owner.__ray_ready__.remote(): name for name, owner in owners.items()}
    answers = ray.wait(list(asked), num_returns=len(asked), timeout=1.0)[0] if asked else []
    gone = []
    for answer in answers:
        try:
            ray.get(answer)
        except ray.exceptions.RayActorError:
            gone.append(asked[answer])
    return gone


def release(group: str | None) -> None:
    """Give back the resources of a worker group whose owner is gone."""
    if not group:
        return
    found = placement_group_table().get(group)
    if found and found["state"] != "REMOVED":
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))
