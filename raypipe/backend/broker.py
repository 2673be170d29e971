"""The desk between slots and groups of train workers: hands trials out, collects epochs, says when to move on.

One asyncio actor a sweep. It holds nothing that a crash could lose: what it passes on is written in the run's store
first, and a worker or a slot that starts again asks it, or the store, where things stand.
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

# A worker may be this many epochs ahead of the last one that all folds have finished and the slot has scored.
MAX_EPOCHS_AHEAD = 2
# A trial whose workers die this often without finishing an epoch is at fault itself.
MAX_RESTARTS = 4
# Seconds after which another worker may do what one has claimed, should nobody have noticed that it is gone.
CLAIM_SECONDS = 60.0


@dataclass
class _Group:
    owner: bytes | None = None
    broken: Failure | None = None
    job: TrialJob | None = None
    stopped: bool = False
    scored: int = 0
    best: int = 0
    over: bool = False
    failure: Failure | None = None
    outcomes: dict[int, dict[int, FoldEpoch]] = field(default_factory=dict)
    restarts: int = 0
    ranks: set[int] = field(default_factory=set)
    placement: str | None = None
    controller: bytes | None = None
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)


class Broker:
    """The actor's class; every method may be called remotely. Everything goes by a group's name."""

    def __init__(self) -> None:
        self._groups: dict[str, _Group] = {}
        self._claims: dict[str, tuple[str, float]] = {}
        self._beats: dict[bytes, float] = {}
        self._asked = time.monotonic()

    async def _wait(self, group: _Group, ready: Callable[[], bool], timeout: float | None = None) -> bool:
        async with group.changed:
            waiting: Awaitable[Any] = group.changed.wait_for(ready)
            try:
                await asyncio.wait_for(waiting, timeout)
            except TimeoutError:
                return False
        return True

    async def _notify(self, group: _Group) -> None:
        async with group.changed:
            group.changed.notify_all()

    # The driver's side

    async def live(self) -> None:
        """Never answers: a call that comes to an end says that the desk has."""
        await asyncio.Event().wait()

    async def open(self, name: str) -> None:
        """A worker group is started."""
        self._groups[name] = _Group()

    async def control(self, name: str, controller: bytes) -> bool:
        """A worker group's controller (a pickled actor handle) starts; False if the group was closed meanwhile."""
        group = self._groups.get(name)
        if group is not None:
            group.controller = controller
        return group is not None

    async def close(self, name: str) -> tuple[str | None, bytes | None]:
        """A worker group is to end; its placement group and its controller, if they are known."""
        group = self._groups.pop(name, None)
        if group is None:
            return None, None
        group.stopped = True
        await self._notify(group)
        return group.placement, group.controller

    async def placement(self, name: str) -> str | None:
        """Placement group of a worker group's last start, if it is known."""
        group = self._groups.get(name)
        return group.placement if group else None

    async def broken(self, name: str, reason: str) -> None:
        """A worker group cannot be kept running, which no trial is to blame for."""
        group = self._groups.get(name)
        if group is not None:
            group.broken = Failure("no-workers", reason)
            await self._notify(group)

    # The slot's side

    async def owners(self) -> dict[str, bytes | None]:
        """Worker groups and the slots (pickled actor handles) that have them, or None."""
        return {name: group.owner for name, group in self._groups.items()}

    async def take(self, owner: bytes, gone: Sequence[bytes] = ()) -> str | None:
        """A slot takes a worker group that nobody has, or that belongs to one of those `gone`; None if there is none.

        Owners are named, not groups: another slot may have taken the group since this one looked.
        """
        for name, group in self._groups.items():
            if group.owner is None or group.owner in gone:
                group.owner = owner
                self._beats[owner] = time.monotonic()
                return name
        return None

    async def beat(self, owner: bytes) -> None:
        """A slot lives."""
        if owner in self._beats:
            self._beats[owner] = time.monotonic()

    async def silent(self, seconds: float) -> list[bytes]:
        """Slots that have a group and have not been heard of for so long; each is named once in that time."""
        now = time.monotonic()
        stood_still = now - self._asked > seconds  # so did the beats that wait behind this question
        self._asked = now
        if stood_still:
            self._beats = dict.fromkeys(self._beats, now)
        owners = {group.owner for group in self._groups.values() if group.owner is not None}
        self._beats = {owner: last for owner, last in self._beats.items() if owner in owners}
        found = [owner for owner, last in self._beats.items() if now - last > seconds]
        self._beats |= dict.fromkeys(found, now)
        return found

    async def leave(self, name: str, owner: bytes) -> None:
        """A slot ends, and leaves its worker group to another; nobody waits for its trial any more."""
        group = self._groups.get(name)
        if group is not None and group.owner == owner:
            group.owner, group.over = None, True
            await self._notify(group)

    async def assign(self, name: str, number: int, done: int, best: int) -> int:
        """Hand a trial to the group's workers, in place of the one before; its sequence number."""
        group = self._groups[name]
        seq = group.job.seq + 1 if group.job else 1
        group.job = TrialJob(seq, number, done)
        group.scored, group.best, group.over = done, best, False
        group.failure, group.outcomes, group.restarts = None, {}, 0
        await self._notify(group)
        return seq

    async def collect(
        self, name: str, epoch: int, n_folds: int, timeout: float
    ) -> dict[int, FoldEpoch] | Failure | None:
        """What every fold gave at `epoch`, or why there will be nothing; None when `timeout` seconds went by."""
        group = self._groups[name]
        await self._wait(
            group, lambda: self._failure(group) is not None or len(group.outcomes.get(epoch, ())) == n_folds, timeout
        )
        if len(group.outcomes.get(epoch, ())) == n_folds:
            return group.outcomes.pop(epoch)
        return self._failure(group)

    @staticmethod
    def _failure(group: _Group) -> Failure | None:
        return group.failure or group.broken

    async def scored(self, name: str, epoch: int, best: int, over: bool) -> None:
        """The slot has scored `epoch`: workers may go further."""
        group = self._groups[name]
        group.scored, group.best, group.over, group.restarts = epoch, best, over, 0
        await self._notify(group)

    # The workers' side

    async def join(self, name: str, rank: int, placement: str | None) -> None:
        """A worker starts, or starts again. One of a group that was closed meanwhile gets no job and ends."""
        self._drop_claims(name)
        group = self._groups.get(name)
        if group is None:
            return
        again = rank in group.ranks
        group.ranks.add(rank)
        group.placement = placement
        if again and rank == 0 and group.job is not None and group.failure is None:
            group.restarts += 1
            if group.restarts >= MAX_RESTARTS:
                group.failure = Failure(
                    "lost-worker", f"its workers died {group.restarts} times in epoch {group.scored + 1}"
                )
                await self._notify(group)

    async def next_job(self, name: str, seen: int) -> TrialJob | None:
        """The group's job, as soon as it is newer than `seen`; None when the group ends."""
        group = self._groups.get(name)
        if group is None:
            return None
        await self._wait(group, lambda: group.stopped or self._open_job(group, seen) is not None)
        job = None if group.stopped else self._open_job(group, seen)
        # A worker that starts again goes on after the last epoch that was scored.
        return None if job is None else TrialJob(job.seq, job.number, group.scored)

    @staticmethod
    def _open_job(group: _Group, seen: int) -> TrialJob | None:
        if group.job is None or group.job.seq <= seen or group.over or group.failure:
            return None
        return group.job

    async def moved(self, name: str, seq: int) -> bool:
        """Whether the job `seq` is over for its workers."""
        group = self._groups.get(name)
        return group is None or self._moved(group, seq)

    @staticmethod
    def _moved(group: _Group, seq: int) -> bool:
        return group.stopped or group.over or group.failure is not None or group.job is None or group.job.seq != seq

    async def claim(self, name: str, key: str) -> bool:
        """Whether a worker may do what only one should (a measurement); the others wait and are asked to look again.

        A claim ends when a worker of its group starts again or fails.
        """
        now = time.monotonic()
        if key in self._claims and now - self._claims[key][1] < CLAIM_SECONDS:
            await asyncio.sleep(0.2)
            return False
        self._claims[key] = name, now
        return True

    def _drop_claims(self, name: str) -> None:
        self._claims = {key: claim for key, claim in self._claims.items() if claim[0] != name}

    async def post(self, name: str, seq: int, epoch: int, outcomes: dict[int, FoldEpoch]) -> Reply:
        """Hand in an epoch of some folds; answers when the next one may start."""
        group = self._groups.get(name)
        if group is None or self._moved(group, seq):
            return Reply(False, 0)
        if epoch > group.scored:
            group.outcomes.setdefault(epoch, {}).update(outcomes)
            await self._notify(group)
        await self._wait(group, lambda: self._moved(group, seq) or group.scored >= epoch + 1 - MAX_EPOCHS_AHEAD)
        return Reply(not self._moved(group, seq), group.best)

    async def lost(self, name: str, failure: Failure | None = None) -> int | None:
        """One of the group's workers has died, with `failure` if its trial is to blame; the trial, if there is one."""
        self._drop_claims(name)
        group = self._groups.get(name)
        if group is None or group.job is None or self._moved(group, group.job.seq):
            return None
        if failure is not None:
            group.failure = failure
            await self._notify(group)
        return group.job.number

    async def fail(self, name: str, seq: int, failure: Failure) -> None:
        """A fold cannot go on, and so neither can its trial."""
        self._drop_claims(name)
        group = self._groups.get(name)
        if group is not None and not self._moved(group, seq):
            group.failure = failure
            await self._notify(group)
