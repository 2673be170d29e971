"""Where trials run: a slot of Ray Tune, which hands trial after trial to a worker group, waits and scores.

Neither torch nor Ray Train here: a slot is up in seconds, while the workers still start.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from typing import Any

import ray
from ray import tune

from raypipe.backend.heartbeat import send_heartbeats
from raypipe.backend.messages import SweepContext
from raypipe.data.window_cache import open_windows
from raypipe.storage.run_store import RunStore
from raypipe.training.result import FoldEpoch
from raypipe.trial.evaluator import TrialEvaluator
from raypipe.trial.failures import Failure, classify_failure, retry_or_fail

# Seconds a question to the desk may wait for an answer.
GLANCE = 1.0
# Looks for a free worker group, a second apart, before a slot gives up.
LOOKS = 60


class TrialTrainable(tune.Trainable):  # type: ignore[misc]
    """A place where one trial after another runs. Tune steps it once an epoch of all folds."""

    def setup(self, config: dict[str, Any], crew: SweepContext) -> None:
        """Take a worker group and hand it the first trial."""
        self.crew = crew
        # As bytes, for the desk compares slots only, and would import half of Ray to unpack one.
        self.me = ray.cloudpickle.dumps(ray.get_runtime_context().current_actor)
        self.name = acquire_group(crew.desk, self.me)
        self.beating = send_heartbeats(crew.desk, self.me)
        self.run, self.windows = RunStore.open(crew.run), open_windows(crew.windows)
        self._assign(config)

    def _assign(self, config: dict[str, Any]) -> None:
        self.referee = TrialEvaluator(self.run, self.windows, int(config["number"]))
        if not self.referee.over:
            self._hand_over()

    def _hand_over(self) -> None:
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
            return self._report(done=True, failure=classify_failure(error))
        ray.get(self.crew.desk.scored.remote(self.name, epoch, referee.best, referee.over))
        return self._report(done=referee.over)

    def _collect(self, epoch: int) -> dict[int, FoldEpoch] | Failure:
        while True:
            found = ray.get(self.crew.desk.collect.remote(self.name, epoch, self.run.folds.n_folds, GLANCE))
            if isinstance(found, Failure):
                found = self._second_try(found)
            if found is not None:
                return found  # type: ignore[no-any-return]

    def _second_try(self, failure: Failure) -> Failure | None:
        try:
            found = retry_or_fail(self.run, self.referee.number, failure, "slot")
        except Exception as error:
            return classify_failure(error)
        if found is None:
            self._hand_over()
        return found

    def _report(self, *, done: bool, failure: Failure | None = None) -> dict[str, Any]:
        referee = self.referee
        latest = referee.history[-1] if referee.history else None
        report: dict[str, Any] = {
            "number": referee.number,
            "epoch": referee.done,
            "score": latest.score if latest else float("nan"),
            "folds": latest.fold_scores if latest else [],
            "done": done,
            "over": done,  # Tune sets `done` itself where it stops a trial
        }
        if failure:
            report |= {"failure": failure.kind, "reason": failure.reason, "trace": failure.trace}
        return report

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the run's store holds every epoch's checkpoints."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: the run's store holds every epoch's checkpoints."""

    def cleanup(self) -> None:
        """Leave the worker group to another slot."""
        self.beating.set()
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(self.crew.desk.leave.remote(self.name, self.me))


def acquire_group(desk: Any, me: bytes) -> str:
    """Take a worker group that no slot has, or whose slot has died.

    Raises
    ------
    RuntimeError
        All are taken by slots that live.
    """
    for _ in range(LOOKS):
        # Others are asked whether they live only where nothing is free: hundreds that start would all ask one another.
        if (name := ray.get(desk.take.remote(me))) is not None:
            return str(name)
        owners = ray.get(desk.owners.remote())
        if (name := ray.get(desk.take.remote(me, dead_owners(owners.values())))) is not None:
            return str(name)
        time.sleep(GLANCE)  # slots that are idle answer at once
    raise RuntimeError(f"no worker group is free: {', '.join(owners)} are taken by slots that live")


def dead_owners(owners: Iterable[bytes | None]) -> list[bytes]:
    """Those slots that have died. One that lives is at work, and does not answer within a second."""
    asked = {ray.cloudpickle.loads(owner).__ray_ready__.remote(): owner for owner in owners if owner is not None}
    answers = ray.wait(list(asked), num_returns=len(asked), timeout=GLANCE)[0] if asked else []
    gone = []
    for answer in answers:
        try:
            ray.get(answer)
        except ray.exceptions.RayActorError:
            gone.append(asked[answer])
    return gone
