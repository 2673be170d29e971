"""The broker's protocol, without Ray: plain coroutines."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from raypipe.backend.broker import MAX_RESTARTS, MOVE_SECONDS, Broker
from raypipe.backend.messages import TrialJob
from raypipe.training.result import FoldEpoch, Reply
from raypipe.trial.failures import Failure

MAX_SECONDS = 60.0
"""Seconds after which a test fails; none waits for anything."""


def outcome(loss=1.0):
    return FoldEpoch(loss, np.zeros((2, 1), np.float32), 0.1)


def run(scenario):
    async def bounded():
        broker = Broker()
        await broker.open_group("g")
        return await asyncio.wait_for(scenario(broker), MAX_SECONDS)

    return asyncio.run(bounded())


async def pending(task):
    """Let everything that can run do so; return whether the task still waits."""
    for _ in range(20):
        await asyncio.sleep(0)
    return not task.done()


def test_an_epoch_goes_from_two_workers_to_the_actor():
    async def scenario(broker):
        seq = await broker.assign("g", "run", 7, 0, 0)
        assert await broker.next_job("g", 0) == TrialJob(seq, "run", 7, 0)
        collected = asyncio.create_task(broker.collect("g", 1, 2, MAX_SECONDS))
        assert await broker.report_epoch("g", seq, 1, {0: outcome()}) == Reply(True, 0)
        assert await pending(collected)
        await broker.report_epoch("g", seq, 1, {1: outcome()})
        assert sorted(await collected) == [0, 1]

    run(scenario)


def test_a_worker_may_be_one_epoch_ahead_and_no_further():
    async def scenario(broker):
        seq = await broker.assign("g", "run", 0, 0, 0)
        await broker.report_epoch("g", seq, 1, {0: outcome()})
        ahead = asyncio.create_task(broker.report_epoch("g", seq, 2, {0: outcome()}))
        assert await pending(ahead)
        await broker.mark_scored("g", 1, 1, False)
        assert await ahead == Reply(True, 1)

    run(scenario)


@pytest.mark.parametrize("end", ["over", "assigned", "closed", "failed"])
def test_a_waiting_worker_is_freed_when_the_trial_ends(end):
    async def scenario(broker):
        seq = await broker.assign("g", "run", 0, 0, 0)
        await broker.report_epoch("g", seq, 1, {0: outcome()})
        ahead = asyncio.create_task(broker.report_epoch("g", seq, 2, {0: outcome()}))
        assert await pending(ahead)
        if end == "over":
            await broker.mark_scored("g", 1, 1, True)
        elif end == "assigned":
            await broker.assign("g", "run", 1, 0, 0)
        elif end == "closed":
            await broker.close_group("g")
        else:
            await broker.report_failure("g", seq, Failure("error", "it broke"))
        assert not (await ahead).continues
        assert await broker.is_over("g", seq)

    run(scenario)


def test_a_job_is_served_once_and_to_a_restarted_worker_again_from_the_last_scored_epoch():
    async def scenario(broker):
        seq = await broker.assign("g", "run", 3, 2, 2)
        assert (await broker.next_job("g", 0)).done == 2
        waiting = asyncio.create_task(broker.next_job("g", seq))
        assert await pending(waiting)
        await broker.mark_scored("g", 3, 3, False)
        assert await broker.next_job("g", 0) == TrialJob(seq, "run", 3, 3)
        await broker.assign("g", "run", 4, 0, 0)
        assert (await waiting).number == 4

    run(scenario)


def test_a_late_report_of_an_earlier_trial_is_ignored():
    async def scenario(broker):
        old = await broker.assign("g", "run", 0, 0, 0)
        new = await broker.assign("g", "run", 1, 0, 0)
        assert not (await broker.report_epoch("g", old, 1, {0: outcome(5.0)})).continues
        await broker.report_failure("g", old, Failure("error", "late"))
        await broker.report_epoch("g", new, 1, {0: outcome(6.0)})
        assert (await broker.collect("g", 1, 1, MAX_SECONDS))[0].loss == 6.0

    run(scenario)


def test_an_epoch_that_was_scored_is_not_collected_again():
    async def scenario(broker):
        seq = await broker.assign("g", "run", 0, 0, 0)
        await broker.mark_scored("g", 1, 1, False)
        await broker.report_epoch("g", seq, 1, {0: outcome()})
        assert await broker.collect("g", 1, 1, 0.01) is None

    run(scenario)


def test_a_failure_reaches_the_actor_but_a_finished_epoch_goes_first():
    async def scenario(broker):
        seq = await broker.assign("g", "run", 0, 0, 0)
        await broker.report_epoch("g", seq, 1, {0: outcome()})
        await broker.report_failure("g", seq, Failure("non-finite", "nan"))
        assert isinstance(await broker.collect("g", 1, 1, MAX_SECONDS), dict)
        assert await broker.collect("g", 2, 1, MAX_SECONDS) == Failure("non-finite", "nan")

    run(scenario)


def test_workers_that_die_again_and_again_in_one_epoch_fail_the_trial():
    async def scenario(broker):
        await broker.assign("g", "run", 0, 0, 0)
        await broker.join("g", 0)
        for _ in range(MAX_RESTARTS - 1):
            await broker.join("g", 0)
        assert await broker.collect("g", 1, 1, 0.01) is None
        await broker.join("g", 0)
        failure = await broker.collect("g", 1, 1, MAX_SECONDS)
        assert failure.kind == "lost-worker"
        assert "in epoch 1" in failure.reason

    run(scenario)


def test_a_death_an_epoch_is_forgiven():
    async def scenario(broker):
        await broker.assign("g", "run", 0, 0, 0)
        for epoch in range(1, 3 * MAX_RESTARTS):
            await broker.join("g", 0)
            await broker.mark_scored("g", epoch, 1, False)
        assert await broker.collect("g", 99, 1, 0.01) is None

    run(scenario)


def test_a_closed_group_ends_its_workers_and_starts_no_more():
    async def scenario(broker):
        assert await broker.begin_start("g") == (0, 0, True)
        await broker.join("g", 0)
        waiting = asyncio.create_task(broker.next_job("g", 0))
        assert await pending(waiting)
        await broker.close_group("g")
        assert await waiting is None
        assert await broker.next_job("g", 0) is None
        await broker.close_group("g")
        assert await broker.begin_start("g") is None
        assert not await broker.is_current("g", 0), "its controller makes no placement group"

    run(scenario)


def test_only_the_last_start_of_a_group_is_current_and_its_epochs_are_counted():
    """A controller whose node Ray has given up may live, and must take no resources beside the one that replaced it."""

    async def scenario(broker):
        assert not await broker.is_current("g", 0)
        assert await broker.begin_start("g") == (0, 0, True)
        await broker.assign("g", "run", 7, 2, 2)
        for epoch in (3, 4, 4):  # the last one is scored again, as of a trial that has lost checkpoints
            await broker.mark_scored("g", epoch, 3, False)
        assert await broker.is_current("g", 0)
        assert await broker.begin_start("g") == (1, 2, False)
        assert not await broker.is_current("g", 0) and await broker.is_current("g", 1)
        assert await broker.begin_start("g") == (2, 0, False)

    run(scenario)


def test_a_worker_that_starts_after_its_group_was_closed_ends():
    async def scenario(broker):
        seq = await broker.assign("g", "run", 0, 0, 0)
        await broker.close_group("g")
        await broker.join("g", 0)
        assert await broker.next_job("g", 0) is None
        assert await broker.is_over("g", seq)
        assert await broker.report_epoch("g", seq, 1, {0: outcome()}) == Reply(False, 0)
        await broker.report_failure("g", seq, Failure("error", "late"))
        assert await broker.owners() == {}

    run(scenario)


def test_every_actor_acquires_a_group_of_its_own():
    async def scenario(broker):
        await broker.open_group("h")
        assert await broker.owners() == {"g": None, "h": None}
        assert [await broker.acquire(actor) for actor in ("one", "two", "three")] == ["g", "h", None]
        assert await broker.owners() == {"g": "one", "h": "two"}
        await broker.release("g", "one")
        assert await broker.acquire("three") == "g"

    run(scenario)


def test_a_group_that_cannot_be_kept_running_is_acquired_last():
    async def scenario(broker):
        await broker.open_group("h")
        await broker.mark_broken("g", "no node is left")
        assert [await broker.acquire(actor) for actor in ("one", "two", "three")] == ["h", "g", None]

    run(scenario)


@pytest.fixture
def clock(monkeypatch):
    """The broker's time, which passes where a test says so."""
    made = SimpleNamespace(now=0.0)
    monkeypatch.setattr("raypipe.backend.broker.time", SimpleNamespace(monotonic=lambda: made.now))
    return made


def test_a_trial_whose_group_has_no_workers_moves_to_a_free_group_that_has(clock):
    """A machine that was lost for good may have left no place for the group."""

    async def scenario(broker):
        await broker.open_group("h")
        assert [await broker.acquire(actor) for actor in ("one", "two")] == ["g", "h"]
        seq = await broker.assign("g", "run", 7, 0, 0)
        await broker.assign("h", "run", 8, 0, 0)
        for name in ("g", "h"):
            await broker.join(name, 0)
        await broker.mark_scored("g", 3, 2, False)
        clock.now += 10 * MOVE_SECONDS
        await broker.mark_scored("h", 5, 5, True)
        await broker.release("h", "two")
        assert await broker.move("g", "one") == "g", "its workers run"
        await broker.report_worker_death("g")
        clock.now += MOVE_SECONDS - 1
        await broker.report_worker_death("g")
        assert await broker.move("g", "one") == "g", "they may start again"
        clock.now += 1
        assert await broker.move("g", "another") == "g"
        assert await broker.move("gone", "one") == "gone"
        waiting = asyncio.create_task(broker.next_job("h", 1))
        assert await pending(waiting)
        assert await broker.move("g", "one") == "h"
        assert await waiting == TrialJob(2, "run", 7, 3), "from the epoch after the last that was scored"
        assert await broker.report_epoch("h", 2, 4, {0: outcome()}) == Reply(True, 2)
        assert await broker.is_over("g", seq)
        assert await broker.owners() == {"g": None, "h": "one"}
        assert await broker.move("h", "one") == "h"

    run(scenario)


def test_no_trial_moves_to_a_group_that_is_owned_broken_or_has_no_workers(clock):
    async def scenario(broker):
        await broker.open_group("h")
        await broker.acquire("one")
        await broker.assign("g", "run", 7, 0, 0)
        clock.now += MOVE_SECONDS
        assert await broker.move("g", "one") == "g", "no worker of the other has started"
        await broker.join("h", 0)
        await broker.begin_start("h")
        assert await broker.move("g", "one") == "g", "its controller has died"
        await broker.join("h", 0)
        await broker.mark_broken("h", "no node is left")
        assert await broker.move("g", "one") == "g"
        await broker.open_group("i")
        assert await broker.acquire("two") == "i"
        await broker.join("i", 0)
        assert await broker.move("g", "one") == "g"
        await broker.release("i", "two")
        assert await broker.move("g", "one") == "i", "a group that has never started loses its trial too"

    run(scenario)


def test_deaths_in_an_epoch_count_in_whatever_group(clock):
    """A trial that kills its workers would move without end."""

    async def scenario(broker):
        await broker.open_group("h")
        await broker.acquire("one")
        await broker.join("h", 0)
        await broker.assign("g", "run", 7, 0, 0)
        for _ in range(MAX_RESTARTS):
            await broker.join("g", 0)
        await broker.report_worker_death("g")
        clock.now += MOVE_SECONDS
        assert await broker.move("g", "one") == "h"
        assert await broker.collect("h", 1, 1, 0.0) is None
        await broker.join("h", 0)
        assert (await broker.collect("h", 1, 1, 0.0)).kind == "lost-worker"

    run(scenario)


def test_a_group_whose_workers_run_is_acquired_first():
    async def scenario(broker):
        await broker.open_group("h")
        await broker.join("h", 0)
        assert [await broker.acquire(actor) for actor in ("one", "two")] == ["h", "g"]

    run(scenario)


def test_a_start_of_a_group_says_whether_it_has_a_trial():
    async def scenario(broker):
        assert await broker.begin_start("g") == (0, 0, True)
        await broker.acquire("one")
        await broker.assign("g", "run", 0, 0, 0)
        await broker.mark_scored("g", 1, 1, False)
        assert await broker.begin_start("g") == (1, 1, False)
        await broker.release("g", "one")
        assert await broker.begin_start("g") == (2, 0, True)

    run(scenario)


def test_two_actors_that_replace_two_dead_ones_do_not_acquire_one_group():
    """Both have read the owners before either acquires a group."""

    async def scenario(broker):
        await broker.open_group("h")
        assert [await broker.acquire(actor) for actor in ("dead", "dead too")] == ["g", "h"]
        dead = ["dead", "dead too"]
        assert [await broker.acquire(actor, dead) for actor in ("one", "two", "three")] == ["g", "h", None]
        assert await broker.owners() == {"g": "one", "h": "two"}

    run(scenario)


def test_a_trial_that_goes_on_with_other_workers_frees_those_of_its_dead_actor(clock):
    """Tune may give it to an actor that is idle, and so acquires none; a dead one that owns a group ends the sweep."""

    async def scenario(broker):
        await broker.open_group("h")
        assert [await broker.acquire(actor) for actor in (b"dead", b"idle")] == ["g", "h"]
        await broker.assign("h", "run", 0, 0, 0)
        await broker.mark_scored("h", 1, 1, True)
        left = await broker.assign("g", "run", 1, 0, 0)
        waiting = asyncio.create_task(broker.next_job("g", left))
        await broker.assign("h", "run", 1, 0, 0)
        assert await broker.is_over("g", left) and not await broker.is_over("h", 2)
        assert await broker.owners() == {"g": None, "h": b"idle"}
        clock.now += 100
        await broker.silent_actors(60)
        clock.now += 59
        await broker.heartbeat(b"idle")
        clock.now += 2
        assert await broker.silent_actors(60) == []
        assert await broker.acquire(b"another") == "g"
        await broker.assign("g", "run", 2, 0, 0)
        assert (await waiting).number == 2
        assert await broker.owners() == {"g": b"another", "h": b"idle"} and not await broker.is_over("h", 2)

    run(scenario)


def test_an_actor_that_ends_releases_its_workers_and_no_others():
    async def scenario(broker):
        await broker.acquire("one")
        seq = await broker.assign("g", "run", 0, 0, 0)
        await broker.release("g", "an earlier one")
        assert not await broker.is_over("g", seq)
        assert await broker.acquire("two") is None
        await broker.release("g", "one")
        assert await broker.is_over("g", seq)
        assert await broker.acquire("two") == "g"
        assert await broker.assign("g", "run", 0, 0, 0) > seq
        assert (await broker.next_job("g", seq)).number == 0

    run(scenario)


def test_a_group_that_cannot_be_kept_running_is_no_trials_fault():
    async def scenario(broker):
        seq = await broker.assign("g", "run", 0, 0, 0)
        collected = asyncio.create_task(broker.collect("g", 1, 1, MAX_SECONDS))
        await broker.report_epoch("g", seq, 1, {0: outcome()})
        assert isinstance(await collected, dict)
        collected = asyncio.create_task(broker.collect("g", 2, 1, MAX_SECONDS))
        assert await pending(collected)
        await broker.mark_broken("g", "no node is left")
        assert await collected == Failure("no-workers", "no node is left")
        await broker.assign("g", "run", 1, 0, 0)
        assert (await broker.collect("g", 1, 1, MAX_SECONDS)).kind == "no-workers"
        await broker.mark_broken("gone", "ignored")
        await broker.mark_broken("g", "the first reason is kept", "unusable-workers")
        assert await broker.collect("g", 1, 1, MAX_SECONDS) == Failure("no-workers", "no node is left")

    run(scenario)


def test_a_lost_worker_is_reported_with_its_trial():
    async def scenario(broker):
        assert await broker.report_worker_death("g") is None
        seq = await broker.assign("g", "run", 7, 0, 0)
        assert await broker.report_worker_death("g") == TrialJob(seq, "run", 7, 0)
        assert not await broker.is_over("g", seq)
        await broker.mark_scored("g", 4, 4, True)
        assert await broker.report_worker_death("g", Failure("out-of-memory", "late")) is None
        assert await broker.report_worker_death("gone") is None

    run(scenario)


def test_a_worker_killed_for_its_memory_fails_the_trial_and_the_next_try_is_handed_out_like_any_other():
    async def scenario(broker):
        await broker.join("g", 0)
        seq = await broker.assign("g", "run", 7, 2, 2)
        collected = asyncio.create_task(broker.collect("g", 3, 1, MAX_SECONDS))
        assert await pending(collected)
        assert await broker.report_worker_death("g", Failure("out-of-memory", "killed")) == TrialJob(seq, "run", 7, 2)
        assert await collected == Failure("out-of-memory", "killed")
        for _ in range(MAX_RESTARTS):  # deaths are not counted after a failure
            await broker.join("g", 0)
        again = asyncio.create_task(broker.next_job("g", 0))
        assert await pending(again)
        assert await broker.assign("g", "run", 7, 2, 2) == seq + 1
        assert await again == TrialJob(seq + 1, "run", 7, 2)
        assert await broker.collect("g", 3, 1, 0.01) is None

    run(scenario)


def test_a_claim_is_one_workers_and_the_others_wait(monkeypatch):
    async def scenario(broker):
        await broker.open_group("h")
        assert await broker.claim("g", "key")
        assert await broker.claim("g", "another key")
        monkeypatch.setattr("raypipe.backend.broker.CLAIM_RETRY_SECONDS", 3600.0)
        asked = asyncio.create_task(broker.claim("h", "key"))
        assert await pending(asked)
        asked.cancel()
        monkeypatch.setattr("raypipe.backend.broker.CLAIM_RETRY_SECONDS", 0.0)
        assert not await broker.claim("h", "key")

    run(scenario)


@pytest.mark.parametrize("end", ["died", "failed", "took too long"])
def test_a_claim_does_not_outlive_its_worker(end, monkeypatch):
    async def scenario(broker):
        seq = await broker.assign("g", "run", 0, 0, 0)
        assert await broker.claim("g", "key")
        await broker.join("h", 0)  # another group's worker
        assert not await broker.claim("h", "key")
        if end == "died":
            await broker.join("g", 0)
        elif end == "failed":
            await broker.report_failure("g", seq, Failure("error", "it broke"))
        else:
            monkeypatch.setattr("raypipe.backend.broker.CLAIM_SECONDS", 0.0)
        assert await broker.claim("h", "key")

    run(scenario)


def test_an_actor_without_heartbeats_is_named_once_in_a_while(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("raypipe.backend.broker.time", SimpleNamespace(monotonic=lambda: clock[0]))

    async def scenario(broker):
        await broker.open_group("h")
        assert [await broker.acquire(actor) for actor in (b"one", b"two")] == ["g", "h"]

        async def later(seconds, *beating):
            found = []
            for _ in range(seconds):
                clock[0] += 1
                for actor in beating:
                    await broker.heartbeat(actor)
                found += await broker.silent_actors(60)
            return found

        assert await later(60, b"two", b"no owner") == []
        assert await later(1, b"two") == [b"one"]
        assert await later(60, b"two") == []  # it is named once in 60 s
        assert await later(1, b"two") == [b"one"]
        assert await broker.acquire(b"three", [b"one"]) == "g"
        await broker.release("h", b"two")
        assert await later(61) == [b"three"]

    run(scenario)


def test_a_broker_that_was_suspended_declares_no_actor_dead(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("raypipe.backend.broker.time", SimpleNamespace(monotonic=lambda: clock[0]))

    async def scenario(broker):
        assert await broker.acquire(b"one") == "g"
        clock[0] += 500  # its heartbeats wait behind this call
        assert await broker.silent_actors(60) == []
        clock[0] += 30
        assert await broker.silent_actors(60) == []
        clock[0] += 31
        assert await broker.silent_actors(60) == [b"one"]

    run(scenario)
