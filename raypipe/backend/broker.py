"""Async actor that passes trials from Tune's trial actors to train workers and returns per-epoch results.

There is one per driver. It keeps nothing that a crash could lose: everything it passes on is first written to the run's
store, and an actor or a worker that restarts reads the state from the broker or the store.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from raypipe.backend.messages import TrialJob
from raypipe.training.result import FoldEpoch, Reply
from raypipe.trial.failures import Failure

MAX_EPOCHS_AHEAD = 2
"""Epochs that a worker may be ahead of the last one that all folds have finished and that is scored."""
MAX_RESTARTS = 4
"""A trial fails when its workers have died this often without finishing an epoch."""
CLAIM_SECONDS = 60.0
"""Seconds after which a claim expires, in case the death of its worker was not noticed."""
CLAIM_RETRY_SECONDS = 0.2
MOVE_SECONDS = 90.0
"""Seconds without workers after which a group's trial moves to another; one that shrinks needs 30 and a start."""


@dataclass
class _Group:
    """State of a worker group and of the trial that it trains."""

    owner: bytes | None = None
    broken: Failure | None = None
    job: TrialJob | None = None
    closed: bool = False
    scored: int = 0
    best: int = 0
    finished: bool = False
    failure: Failure | None = None
    outcomes: dict[int, dict[int, FoldEpoch]] = field(default_factory=dict)
    """Results by epoch and fold."""
    restarts: int = 0
    ranks: set[int] = field(default_factory=set)
    running: bool = False
    """Whether a worker has joined since the last death or start."""
    stopped: float = 0.0
    """Since when it has not been running, by the monotonic clock."""
    starts: int = 0
    epochs: int = 0
    """Epochs that were scored since the last start."""
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def is_over(self, seq: int) -> bool:
        """Return whether the job `seq` has ended for the workers."""
        if self.closed or self.finished or self.failure is not None:
            return True
        return self.job is None or self.job.seq != seq

    def any_failure(self) -> Failure | None:
        """Return why the trial or the group has failed."""
        return self.failure or self.broken

    def open_job(self, seen: int) -> TrialJob | None:
        """Return the job if it is newer than `seen` and has not ended."""
        return self.job if self.job is not None and self.job.seq > seen and not self.is_over(self.job.seq) else None

    def stop_running(self) -> None:
        """Record that the workers are dead or not yet started."""
        if self.running:
            self.running, self.stopped = False, time.monotonic()

    async def free(self) -> None:
        """Leave the group to any actor, and end its trial for the workers."""
        self.owner, self.finished = None, True
        await self.notify()

    async def notify(self) -> None:
        """Wake up all calls that wait for a change of the group."""
        async with self.changed:
            self.changed.notify_all()

    async def wait(self, ready: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until `ready`; return False after `timeout` seconds."""
        async with self.changed:
            waiting: Awaitable[Any] = self.changed.wait_for(ready)
            try:
                await asyncio.wait_for(waiting, timeout)
            except TimeoutError:
                return False
        return True


class Broker:
    """Class of the actor; every method can be called remotely. Worker groups are referred to by name."""

    def __init__(self) -> None:
        self._groups: dict[str, _Group] = {}
        self._claims: dict[str, tuple[str, float]] = {}
        self._heartbeats: dict[bytes, float] = {}
        self._checked = time.monotonic()

    # Called by the driver (`mark_broken` also by workers)

    async def block(self) -> None:
        """Never return: a call that ends shows that the broker has died."""
        await asyncio.Event().wait()

    async def open_group(self, name: str) -> None:
        """Add a worker group."""
        self._groups[name] = _Group(stopped=time.monotonic())

    async def close_group(self, name: str) -> None:
        """Remove a worker group."""
        group = self._groups.pop(name, None)
        if group is not None:
            group.closed = True
            await group.notify()

    async def begin_start(self, name: str) -> tuple[int, int, bool] | None:
        """Begin a start of a worker group; from now on, `is_current` refuses the controllers of earlier starts.

        Returns
        -------
        tuple of int, int and bool or None
            Number of the start, from 0, how many epochs were scored since the one before, and whether the group has no
            trial to train; None if the group has been closed.
        """
        group = self._groups.get(name)
        if group is None:
            return None
        group.stop_running()
        number, epochs = group.starts, group.epochs
        group.starts, group.epochs = number + 1, 0
        return number, epochs, group.open_job(0) is None

    async def mark_broken(self, name: str, reason: str, kind: str = "no-workers") -> None:
        """Record that a worker group cannot be kept running, which is no trial's fault; the first reason is kept."""
        group = self._groups.get(name)
        if group is not None and group.broken is None:
            group.broken = Failure(kind, reason)
            await group.notify()

    async def silent_actors(self, seconds: float) -> list[bytes]:
        """Return actors that own a group and have sent no heartbeat for `seconds`; each once in that time."""
        now = time.monotonic()
        suspended = now - self._checked > seconds  # heartbeats that wait behind this call are not counted yet
        self._checked = now
        if suspended:
            self._heartbeats = dict.fromkeys(self._heartbeats, now)
        owners = {group.owner for group in self._groups.values() if group.owner is not None}
        self._heartbeats = {owner: last for owner, last in self._heartbeats.items() if owner in owners}
        found = [owner for owner, last in self._heartbeats.items() if now - last > seconds]
        self._heartbeats |= dict.fromkeys(found, now)
        return found

    # Called by a group's controller

    async def is_current(self, name: str, number: int) -> bool:
        """Return whether a group is open, and its start of this number is the last one."""
        group = self._groups.get(name)
        return group is not None and number == group.starts - 1

    async def report_worker_death(self, name: str, failure: Failure | None = None) -> TrialJob | None:
        """Record the death of a worker and, if its trial caused it, the failure; return the job if there is one."""
        self._drop_claims(name)
        group = self._groups.get(name)
        if group is not None:
            group.stop_running()
        if group is None or group.job is None or group.is_over(group.job.seq):
            return None
        if failure is not None:
            group.failure = failure
            await group.notify()
        return group.job

    # Called by trial actors

    async def owners(self) -> dict[str, bytes | None]:
        """Return the worker groups and the pickled handles of the actors that own them."""
        return {name: group.owner for name, group in self._groups.items()}

    async def acquire(self, owner: bytes, dead: Sequence[bytes] = ()) -> str | None:
        """Give an actor a worker group that is free or owned by one of the `dead`; return None if there is none.

        One whose workers run is given first, and one that cannot be kept running last: it ends the sweep. Dead owners
        are passed rather than groups: another actor may have acquired such a group in between.
        """
        order = sorted(self._groups.items(), key=lambda item: (item[1].broken is not None, not item[1].running))
        for name, group in order:
            if group.owner is None or group.owner in dead:
                group.owner = owner
                self._heartbeats[owner] = time.monotonic()
                return name
        return None

    async def heartbeat(self, owner: bytes) -> None:
        """Record that an actor is alive."""
        if owner in self._heartbeats:
            self._heartbeats[owner] = time.monotonic()

    async def release(self, name: str, owner: bytes) -> None:
        """Free an actor's worker group and end its trial for the workers."""
        group = self._groups.get(name)
        if group is not None and group.owner == owner:
            await group.free()

    async def move(self, name: str, owner: bytes) -> str:
        """Move an actor's trial to a free group whose workers run, if its own has had none for `MOVE_SECONDS`.

        A machine that was lost for good may have left no place for a group.

        Returns
        -------
        str
            The group that the actor owns now.
        """
        group, free = self._groups.get(name), self._free_and_running()
        if group is None or free is None or group.owner != owner or group.any_failure() is not None:
            return name
        job = group.open_job(0)
        if job is None or group.running or time.monotonic() - group.stopped < MOVE_SECONDS:
            return name
        other = self._groups[free]
        other.owner = owner
        await self.assign(free, job.run, job.number, group.scored, group.best)
        other.restarts = group.restarts
        return free

    def _free_and_running(self) -> str | None:
        groups = self._groups.items()
        return next(
            (name for name, group in groups if group.owner is None and group.running and not group.broken), None
        )

    async def assign(self, name: str, run: str, number: int, done: int, best: int) -> int:
        """Give the workers a run's trial in place of the previous one; return its sequence number.

        Another group that has the trial is freed: its owner has moved the trial, or has died, and Tune has given the
        trial to an actor that has a group already.
        """
        for other in [each for key, each in self._groups.items() if key != name and each.owner is not None]:
            if other.job is not None and (other.job.run, other.job.number) == (run, number):
                await other.free()
        group = self._groups[name]
        seq = group.job.seq + 1 if group.job else 1
        group.job = TrialJob(seq, run, number, done)
        group.scored, group.best, group.finished = done, best, False
        group.failure, group.outcomes, group.restarts = None, {}, 0
        await group.notify()
        return seq

    async def collect(
        self, name: str, epoch: int, n_folds: int, timeout: float
    ) -> dict[int, FoldEpoch] | Failure | None:
        """Return the results of all folds at `epoch`, a failure, or None after `timeout` seconds."""
        group = self._groups[name]

        def complete() -> bool:
            return len(group.outcomes.get(epoch, ())) == n_folds

        await group.wait(lambda: group.any_failure() is not None or complete(), timeout)
        return group.outcomes.pop(epoch) if complete() else group.any_failure()

    async def mark_scored(self, name: str, epoch: int, best: int, over: bool) -> None:
        """Record that `epoch` is scored, so that the workers may continue, or end the trial if it is `over`."""
        group = self._groups[name]
        group.epochs += epoch > group.scored
        group.scored, group.best, group.finished, group.restarts = epoch, best, over, 0
        await group.notify()

    # Called by workers

    async def join(self, name: str, rank: int) -> None:
        """Register a worker that starts or restarts. A worker of a closed group receives no job and ends."""
        self._drop_claims(name)
        group = self._groups.get(name)
        if group is None:
            return
        group.running = True
        restarted = rank in group.ranks
        group.ranks.add(rank)
        if restarted and rank == 0 and group.job is not None and group.failure is None:
            group.restarts += 1
            if group.restarts >= MAX_RESTARTS:
                reason = f"its workers died {group.restarts} times in epoch {group.scored + 1}"
                group.failure = Failure("lost-worker", reason)
                await group.notify()

    async def next_job(self, name: str, seen: int) -> TrialJob | None:
        """Wait for a job newer than `seen`; return None when the group is closed."""
        group = self._groups.get(name)
        if group is None:
            return None
        await group.wait(lambda: group.closed or group.open_job(seen) is not None)
        job = group.open_job(seen)
        # A worker that restarts continues after the last epoch that was scored.
        return None if job is None else TrialJob(job.seq, job.run, job.number, group.scored)

    async def is_over(self, name: str, seq: int) -> bool:
        """Return whether the job `seq` has ended for the workers."""
        group = self._groups.get(name)
        return group is None or group.is_over(seq)

    async def claim(self, name: str, key: str) -> bool:
        """Return whether the worker may do what only one should (a measurement); others retry after a pause.

        A claim ends when a worker of its group restarts or fails.
        """
        now = time.monotonic()
        if key in self._claims and now - self._claims[key][1] < CLAIM_SECONDS:
            await asyncio.sleep(CLAIM_RETRY_SECONDS)
            return False
        self._claims[key] = name, now
        return True

    def _drop_claims(self, name: str) -> None:
        self._claims = {key: claim for key, claim in self._claims.items() if claim[0] != name}

    async def report_epoch(self, name: str, seq: int, epoch: int, outcomes: dict[int, FoldEpoch]) -> Reply:
        """Record an epoch of some folds; return when the next epoch may start."""
        group = self._groups.get(name)
        if group is None or group.is_over(seq):
            return Reply(False, 0)
        if epoch > group.scored:
            group.outcomes.setdefault(epoch, {}).update(outcomes)
            await group.notify()
        await group.wait(lambda: group.is_over(seq) or group.scored >= epoch + 1 - MAX_EPOCHS_AHEAD)
        return Reply(not group.is_over(seq), group.best)

    async def report_failure(self, name: str, seq: int, failure: Failure) -> None:
        """Record that a fold, and so its trial, has failed."""
        self._drop_claims(name)
        group = self._groups.get(name)
        if group is not None and not group.is_over(seq):
            group.failure = failure
            await group.notify()
