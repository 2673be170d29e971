"""The desk between a sweep's slots and its train workers: hands trials out, collects epochs, says when to move on.

One asyncio actor a sweep. It holds nothing that a crash could lose: what it passes on is written in the run's store
first, and a worker or a slot that starts again asks it, or the store, where things stand.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from raypipe.messages import Failure, FoldEpoch, Job, Reply

# A worker may be this many epochs ahead of the last one that all folds have finished and the slot has scored.
AHEAD = 2
# A trial whose workers die this often without finishing an epoch is at fault itself.
RESTARTS = 4


@dataclass
class _Slot:
    owner: Any = None
    job: Job | None = None
    stopped: bool = False
    scored: int = 0
    best: int = 0
    over: bool = False
    failure: Failure | None = None
    outcomes: dict[int, dict[int, FoldEpoch]] = field(default_factory=dict)
    restarts: int = 0
    workers: dict[int, int] = field(default_factory=dict)
    group: str | None = None
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)


class Desk:
    """The actor's class; every method may be called remotely. Slots go by the names they open with."""

    def __init__(self) -> None:
        self._slots: dict[str, _Slot] = {}

    async def _wait(self, slot: _Slot, ready: Callable[[], bool], timeout: float | None = None) -> bool:
        async with slot.changed:
            waiting: Awaitable[Any] = slot.changed.wait_for(ready)
            try:
                await asyncio.wait_for(waiting, timeout)
            except TimeoutError:
                return False
        return True

    async def _notify(self, slot: _Slot) -> None:
        async with slot.changed:
            slot.changed.notify_all()

    # The slot's side

    async def open(self, name: str, owner: Any = None) -> dict[str, Any]:
        """A slot starts; the owners (actor handles) of those that are open already."""
        others = {other: slot.owner for other, slot in self._slots.items()}
        self._slots[name] = _Slot(owner=owner)
        return others

    async def close(self, name: str) -> str | None:
        """A slot ends; its workers' placement group, if one is known."""
        slot = self._slots.pop(name, None)
        if slot is None:
            return None
        slot.stopped = True
        await self._notify(slot)
        return slot.group

    async def assign(self, name: str, number: int, done: int, best: int) -> int:
        """Hand a trial to the slot's workers, in place of the one before; its sequence number."""
        slot = self._slots[name]
        seq = slot.job.seq + 1 if slot.job else 1
        slot.job = Job(seq, number, done)
        slot.scored, slot.best, slot.over = done, best, False
        slot.failure, slot.outcomes, slot.restarts = None, {}, 0
        await self._notify(slot)
        return seq

    async def collect(
        self, name: str, epoch: int, n_folds: int, timeout: float
    ) -> dict[int, FoldEpoch] | Failure | None:
        """What every fold gave at `epoch`, or why there will be nothing; None when `timeout` seconds went by."""
        slot = self._slots[name]
        await self._wait(
            slot, lambda: slot.failure is not None or len(slot.outcomes.get(epoch, ())) == n_folds, timeout
        )
        if len(slot.outcomes.get(epoch, ())) == n_folds:
            return slot.outcomes.pop(epoch)
        return slot.failure

    async def scored(self, name: str, epoch: int, best: int, over: bool) -> None:
        """The slot has scored `epoch`: workers may go further."""
        slot = self._slots[name]
        slot.scored, slot.best, slot.over, slot.restarts = epoch, best, over, 0
        await self._notify(slot)

    # The workers' side

    async def join(self, name: str, rank: int, pid: int, group: str | None) -> None:
        """A worker starts, or starts again."""
        slot = self._slots[name]
        again = rank in slot.workers
        slot.workers[rank], slot.group = pid, group
        if again and rank == 0 and slot.job is not None and slot.failure is None:
            slot.restarts += 1
            if slot.restarts >= RESTARTS:
                slot.failure = Failure(
                    "lost-worker", f"its workers died {slot.restarts} times in epoch {slot.scored + 1}"
                )
                await self._notify(slot)

    async def next_job(self, name: str, seen: int) -> Job | None:
        """The slot's job, as soon as it is newer than `seen`; None when the slot ends."""
        slot = self._slots.get(name)
        if slot is None:
            return None
        await self._wait(slot, lambda: slot.stopped or self._open_job(slot, seen) is not None)
        job = None if slot.stopped else self._open_job(slot, seen)
        # A worker that starts again goes on after the last epoch that was scored.
        return None if job is None else Job(job.seq, job.number, slot.scored)

    @staticmethod
    def _open_job(slot: _Slot, seen: int) -> Job | None:
        if slot.job is None or slot.job.seq <= seen or slot.over or slot.failure:
            return None
        return slot.job

    async def moved(self, name: str, seq: int) -> bool:
        """Whether the job `seq` is over for its workers."""
        slot = self._slots.get(name)
        return slot is None or self._moved(slot, seq)

    @staticmethod
    def _moved(slot: _Slot, seq: int) -> bool:
        return slot.stopped or slot.over or slot.failure is not None or slot.job is None or slot.job.seq != seq

    async def post(self, name: str, seq: int, epoch: int, outcomes: dict[int, FoldEpoch]) -> Reply:
        """Hand in an epoch of some folds; answers when the next one may start."""
        slot = self._slots.get(name)
        if slot is None or self._moved(slot, seq):
            return Reply(False, 0)
        if epoch > slot.scored:
            slot.outcomes.setdefault(epoch, {}).update(outcomes)
            await self._notify(slot)
        await self._wait(slot, lambda: self._moved(slot, seq) or slot.scored >= epoch + 1 - AHEAD)
        return Reply(not self._moved(slot, seq), slot.best)

    async def fail(self, name: str, seq: int, failure: Failure) -> None:
        """A fold cannot go on, and so neither can its trial."""
        slot = self._slots.get(name)
        if slot is not None and not self._moved(slot, seq):
            slot.failure = failure
            await self._notify(slot)

    async def workers(self) -> dict[str, dict[int, int]]:
        """Process ids of the train workers by slot and rank."""
        return {name: dict(slot.workers) for name, slot in self._slots.items()}
