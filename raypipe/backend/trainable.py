"""Tune actor that runs trial after trial: assigns each to a worker group, collects its epochs and scores them.

It imports neither torch nor Ray Train, so it is up in seconds, while the workers still start.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import ray
from ray import tune

from raypipe.backend.heartbeat import send_heartbeats
from raypipe.backend.messages import SweepContext
from raypipe.backend.ray_compat import pickled_current_actor, ping_actor
from raypipe.data.window_cache import open_windows
from raypipe.storage.run_store import RunStore
from raypipe.training.result import FoldEpoch
from raypipe.trial.evaluator import TrialEvaluator
from raypipe.trial.failures import Failure, classify_failure, retry_or_fail

if TYPE_CHECKING:
    from ray.actor import ActorHandle

COLLECT_SECONDS = 1.0
"""Seconds that the broker may take to answer `Broker.collect`."""
PING_SECONDS = 1.0
"""Seconds in which an idle actor answers a call."""
MAX_ACQUIRE_ATTEMPTS = 60
"""Attempts, a second apart, to acquire a worker group."""


class TrialTrainable(tune.Trainable):  # type: ignore[misc]
    """Run one trial after another. Each step is an epoch of all folds."""

    def setup(self, config: dict[str, Any], context: SweepContext, run: str) -> None:
        """Acquire a worker group and assign it the first trial of a run."""
        self.context, self.broker = context, context.broker
        self.me = pickled_current_actor()
        self.group = acquire_group(self.broker, self.me)
        self.heartbeats = send_heartbeats(self.broker, self.me)
        self.run, self.windows = RunStore.open(run), open_windows(context.windows)
        self._begin_trial(config)

    def _begin_trial(self, config: dict[str, Any]) -> None:
        self.evaluator = TrialEvaluator(self.run, self.windows, int(config["number"]))
        self.restores = bool(config.get("restores"))
        if self.restores or not self.evaluator.over:
            self._assign()

    def _assign(self) -> None:
        evaluator = self.evaluator
        done = evaluator.done - self.restores
        ray.get(self.broker.assign.remote(self.group, self.run.where, evaluator.number, done, evaluator.best))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin the next trial on the same worker group."""
        self._begin_trial(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Wait for the next epoch of all folds and score it; of a trial with lost checkpoints, the last one again."""
        evaluator = self.evaluator
        if evaluator.over and not self.restores:  # a killed driver had not recorded its end
            return self._report(done=True)
        epoch = evaluator.done + (not self.restores)
        outcomes = self._collect(epoch)
        if isinstance(outcomes, Failure):
            return self._report(done=True, failure=outcomes)
        try:
            evaluator.add_epoch(epoch, outcomes)
        except Exception as error:
            return self._report(done=True, failure=classify_failure(error))
        done, self.restores = self.restores or evaluator.over, False
        ray.get(self.broker.mark_scored.remote(self.group, epoch, evaluator.best, done))
        return self._report(done=done)

    def _collect(self, epoch: int) -> dict[int, FoldEpoch] | Failure:
        while True:
            found = ray.get(self.broker.collect.remote(self.group, epoch, self.run.folds.n_folds, COLLECT_SECONDS))
            if isinstance(found, Failure):
                found = self._retry(found)
            if found is not None:
                return found  # type: ignore[no-any-return]
            self.group = ray.get(self.broker.move.remote(self.group, self.me))

    def _retry(self, failure: Failure) -> Failure | None:
        """Assign the trial once more if its failure allows it; otherwise return the failure."""
        try:
            final = retry_or_fail(self.run, self.evaluator.number, failure, "actor")
        except Exception as error:
            return classify_failure(error)
        if final is None:
            self._assign()
        return final

    def _report(self, *, done: bool, failure: Failure | None = None) -> dict[str, Any]:
        evaluator = self.evaluator
        latest = evaluator.history[-1] if evaluator.history else None
        report: dict[str, Any] = {
            "number": evaluator.number,
            "epoch": evaluator.done,
            "score": float("nan") if latest is None or latest.score is None else latest.score,
            "folds": latest.fold_scores if latest else [],
            "done": done,
            "over": done,  # Tune sets `done` itself where it stops a trial
        }
        if failure:
            report |= {"failure": failure.kind, "reason": failure.reason, "trace": failure.trace}
        return report

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Do nothing: the run's store holds every epoch's checkpoints."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Do nothing: the run's store holds every epoch's checkpoints."""

    def cleanup(self) -> None:
        """Release the worker group."""
        self.heartbeats.set()
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(self.broker.release.remote(self.group, self.me))


def acquire_group(broker: ActorHandle, me: bytes) -> str:
    """Acquire a worker group that is free or whose owner has died.

    Raises
    ------
    RuntimeError
        All groups are owned by actors that are alive.
    """
    for _ in range(MAX_ACQUIRE_ATTEMPTS):
        # Other owners are pinged only where no group is free: hundreds of actors that start would all ping each other.
        if (name := ray.get(broker.acquire.remote(me))) is not None:
            return str(name)
        owners = ray.get(broker.owners.remote())
        if (name := ray.get(broker.acquire.remote(me, dead_owners(owners.values())))) is not None:
            return str(name)
        time.sleep(PING_SECONDS)
    raise RuntimeError(f"no worker group is free: {', '.join(owners)} are owned by actors that are alive")


def dead_owners(owners: Iterable[bytes | None]) -> list[bytes]:
    """Return the owners that have died. An actor at work does not answer within `PING_SECONDS`, and counts as alive."""
    pings = {ping_actor(owner): owner for owner in owners if owner is not None}
    answers = ray.wait(list(pings), num_returns=len(pings), timeout=PING_SECONDS)[0] if pings else []
    dead = []
    for answer in answers:
        try:
            ray.get(answer)
        except ray.exceptions.RayActorError:
            dead.append(pings[answer])
    return dead
