"""The desk's protocol, without Ray: plain coroutines."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from raypipe.backend.broker import MAX_RESTARTS, Broker
from raypipe.backend.messages import TrialJob
from raypipe.training.result import FoldEpoch, Reply
from raypipe.trial.failures import Failure

SOON = 5.0


def outcome(loss=1.0):
    return FoldEpoch(loss, np.zeros((2, 1), np.float32), 0.1)


def run(scenario):
    async def bounded():
        desk = Broker()
        await desk.open("g")
        return await asyncio.wait_for(scenario(desk), SOON)

    return asyncio.run(bounded())


async def pending(task):
    """Let everything that can run do so; whether the task still waits."""
    for _ in range(20):
        await asyncio.sleep(0)
    return not task.done()


def test_an_epoch_goes_from_two_workers_to_the_slot():
    async def scenario(desk):
        seq = await desk.assign("g", 7, 0, 0)
        assert await desk.next_job("g", 0) == TrialJob(seq, 7, 0)
        collected = asyncio.create_task(desk.collect("g", 1, 2, SOON))
        assert await desk.post("g", seq, 1, {0: outcome()}) == Reply(True, 0)
        assert await pending(collected)
        await desk.post("g", seq, 1, {1: outcome()})
        assert sorted(await collected) == [0, 1]

    run(scenario)


def test_a_worker_may_be_one_epoch_ahead_and_no_further():
    async def scenario(desk):
        seq = await desk.assign("g", 0, 0, 0)
        await desk.post("g", seq, 1, {0: outcome()})
        ahead = asyncio.create_task(desk.post("g", seq, 2, {0: outcome()}))
        assert await pending(ahead)
        await desk.scored("g", 1, 1, False)
        assert await ahead == Reply(True, 1)

    run(scenario)


@pytest.mark.parametrize("end", ["over", "assigned", "closed", "failed"])
def test_a_waiting_worker_is_freed_when_the_trial_ends(end):
    async def scenario(desk):
        seq = await desk.assign("g", 0, 0, 0)
        await desk.post("g", seq, 1, {0: outcome()})
        ahead = asyncio.create_task(desk.post("g", seq, 2, {0: outcome()}))
        assert await pending(ahead)
        if end == "over":
            await desk.scored("g", 1, 1, True)
        elif end == "assigned":
            await desk.assign("g", 1, 0, 0)
        elif end == "closed":
            await desk.close("g")
        else:
            await desk.fail("g", seq, Failure("error", "it broke"))
        assert not (await ahead).go
        assert await desk.moved("g", seq)

    run(scenario)


def test_a_job_is_served_once_and_a_restarted_worker_gets_it_again_from_where_it_stands():
    async def scenario(desk):
        seq = await desk.assign("g", 3, 2, 2)
        assert (await desk.next_job("g", 0)).done == 2
        waiting = asyncio.create_task(desk.next_job("g", seq))
        assert await pending(waiting)
        await desk.scored("g", 3, 3, False)
        assert await desk.next_job("g", 0) == TrialJob(seq, 3, 3)
        await desk.assign("g", 4, 0, 0)
        assert (await waiting).number == 4

    run(scenario)


def test_what_an_earlier_trial_posts_late_is_not_taken_for_the_next():
    async def scenario(desk):
        old = await desk.assign("g", 0, 0, 0)
        new = await desk.assign("g", 1, 0, 0)
        assert not (await desk.post("g", old, 1, {0: outcome(5.0)})).go
        await desk.fail("g", old, Failure("error", "late"))
        await desk.post("g", new, 1, {0: outcome(6.0)})
        assert (await desk.collect("g", 1, 1, SOON))[0].loss == 6.0

    run(scenario)


def test_an_epoch_that_was_scored_is_not_collected_again():
    async def scenario(desk):
        seq = await desk.assign("g", 0, 0, 0)
        await desk.scored("g", 1, 1, False)
        await desk.post("g", seq, 1, {0: outcome()})
        assert await desk.collect("g", 1, 1, 0.01) is None

    run(scenario)


def test_a_failure_reaches_the_slot_but_a_finished_epoch_goes_first():
    async def scenario(desk):
        seq = await desk.assign("g", 0, 0, 0)
        await desk.post("g", seq, 1, {0: outcome()})
        await desk.fail("g", seq, Failure("non-finite", "nan"))
        assert isinstance(await desk.collect("g", 1, 1, SOON), dict)
        assert await desk.collect("g", 2, 1, SOON) == Failure("non-finite", "nan")

    run(scenario)


def test_workers_that_die_again_and_again_in_one_epoch_fail_the_trial():
    async def scenario(desk):
        await desk.assign("g", 0, 0, 0)
        await desk.join("g", 0, None)
        for _ in range(MAX_RESTARTS - 1):
            await desk.join("g", 0, None)
        assert await desk.collect("g", 1, 1, 0.01) is None
        await desk.join("g", 0, None)
        failure = await desk.collect("g", 1, 1, SOON)
        assert failure.kind == "lost-worker"
        assert "in epoch 1" in failure.reason

    run(scenario)


def test_a_death_an_epoch_is_forgiven():
    async def scenario(desk):
        await desk.assign("g", 0, 0, 0)
        for epoch in range(1, 3 * MAX_RESTARTS):
            await desk.join("g", 0, None)
            await desk.scored("g", epoch, 1, False)
        assert await desk.collect("g", 99, 1, 0.01) is None

    run(scenario)


def test_a_closed_group_sends_its_workers_home_and_names_its_placement_and_controller():
    async def scenario(desk):
        assert await desk.control("g", b"handle")
        assert await desk.placement("g") is None
        await desk.join("g", 0, "abc")
        assert await desk.placement("g") == "abc"
        waiting = asyncio.create_task(desk.next_job("g", 0))
        assert await pending(waiting)
        assert await desk.close("g") == ("abc", b"handle")
        assert await waiting is None
        assert await desk.next_job("g", 0) is None
        assert await desk.placement("g") is None
        assert await desk.close("g") == (None, None)
        assert not await desk.control("g", b"late")

    run(scenario)


def test_a_worker_that_comes_up_after_its_group_was_closed_ends_in_peace():
    async def scenario(desk):
        seq = await desk.assign("g", 0, 0, 0)
        await desk.close("g")
        await desk.join("g", 0, "abc")
        assert await desk.next_job("g", 0) is None
        assert await desk.moved("g", seq)
        assert await desk.post("g", seq, 1, {0: outcome()}) == Reply(False, 0)
        await desk.fail("g", seq, Failure("error", "late"))
        assert await desk.owners() == {}

    run(scenario)


def test_every_slot_takes_a_group_of_its_own():
    async def scenario(desk):
        await desk.open("h")
        assert await desk.owners() == {"g": None, "h": None}
        assert [await desk.take(slot) for slot in ("one", "two", "three")] == ["g", "h", None]
        assert await desk.owners() == {"g": "one", "h": "two"}
        await desk.leave("g", "one")
        assert await desk.take("three") == "g"

    run(scenario)


def test_two_slots_that_follow_two_dead_ones_do_not_take_one_group():
    """Both look at the owners, and only then does either take a group."""

    async def scenario(desk):
        await desk.open("h")
        assert [await desk.take(slot) for slot in ("dead", "dead too")] == ["g", "h"]
        gone = ["dead", "dead too"]
        assert [await desk.take(slot, gone) for slot in ("one", "two", "three")] == ["g", "h", None]
        assert await desk.owners() == {"g": "one", "h": "two"}

    run(scenario)


def test_a_slot_that_leaves_sets_its_workers_free_and_no_others():
    async def scenario(desk):
        await desk.take("one")
        seq = await desk.assign("g", 0, 0, 0)
        await desk.leave("g", "an earlier one")
        assert not await desk.moved("g", seq)
        assert await desk.take("two") is None
        await desk.leave("g", "one")
        assert await desk.moved("g", seq)
        assert await desk.take("two") == "g"
        assert await desk.assign("g", 0, 0, 0) > seq
        assert (await desk.next_job("g", seq)).number == 0

    run(scenario)


def test_a_group_that_cannot_be_kept_running_is_no_trials_fault():
    async def scenario(desk):
        seq = await desk.assign("g", 0, 0, 0)
        collected = asyncio.create_task(desk.collect("g", 1, 1, SOON))
        await desk.post("g", seq, 1, {0: outcome()})
        assert isinstance(await collected, dict)
        collected = asyncio.create_task(desk.collect("g", 2, 1, SOON))
        assert await pending(collected)
        await desk.broken("g", "no node is left")
        assert await collected == Failure("no-workers", "no node is left")
        await desk.assign("g", 1, 0, 0)
        assert (await desk.collect("g", 1, 1, SOON)).kind == "no-workers"
        await desk.broken("gone", "nobody asks")

    run(scenario)


def test_a_lost_worker_is_told_of_with_the_trial_it_worked_on():
    async def scenario(desk):
        assert await desk.lost("g") is None
        seq = await desk.assign("g", 7, 0, 0)
        assert await desk.lost("g") == 7
        assert not await desk.moved("g", seq)
        await desk.scored("g", 4, 4, True)
        assert await desk.lost("g", Failure("out-of-memory", "late")) is None
        assert await desk.lost("gone") is None

    run(scenario)


def test_a_worker_killed_for_its_memory_fails_the_trial_and_the_next_try_is_handed_out_like_any_other():
    async def scenario(desk):
        await desk.join("g", 0, None)
        seq = await desk.assign("g", 7, 2, 2)
        collected = asyncio.create_task(desk.collect("g", 3, 1, SOON))
        assert await pending(collected)
        assert await desk.lost("g", Failure("out-of-memory", "killed")) == 7
        assert await collected == Failure("out-of-memory", "killed")
        for _ in range(MAX_RESTARTS):  # of a trial that is at fault, its workers' deaths are not counted
            await desk.join("g", 0, None)
        again = asyncio.create_task(desk.next_job("g", 0))
        assert await pending(again)
        assert await desk.assign("g", 7, 2, 2) == seq + 1
        assert await again == TrialJob(seq + 1, 7, 2)
        assert await desk.collect("g", 3, 1, 0.01) is None

    run(scenario)


def test_a_claim_is_one_workers_and_the_others_wait():
    async def scenario(desk):
        await desk.open("h")
        assert await desk.claim("g", "key")
        assert await desk.claim("g", "another key")
        asked = asyncio.create_task(desk.claim("h", "key"))
        assert await pending(asked)
        assert not await asked

    run(scenario)


@pytest.mark.parametrize("end", ["died", "failed", "took too long"])
def test_a_claim_does_not_outlive_its_worker(end, monkeypatch):
    async def scenario(desk):
        seq = await desk.assign("g", 0, 0, 0)
        assert await desk.claim("g", "key")
        await desk.join("h", 0, None)  # another group's worker
        assert not await desk.claim("h", "key")
        if end == "died":
            await desk.join("g", 0, None)
        elif end == "failed":
            await desk.fail("g", seq, Failure("error", "it broke"))
        else:
            monkeypatch.setattr("raypipe.backend.broker.CLAIM_SECONDS", 0.0)
        assert await desk.claim("h", "key")

    run(scenario)


def test_a_slot_that_is_not_heard_of_is_named_once_in_a_while(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("raypipe.backend.broker.time.monotonic", lambda: clock[0])

    async def scenario(desk):
        await desk.open("h")
        assert [await desk.take(slot) for slot in (b"one", b"two")] == ["g", "h"]

        async def later(seconds, *beating):
            found = []
            for _ in range(seconds):
                clock[0] += 1
                for slot in beating:
                    await desk.beat(slot)
                found += await desk.silent(60)
            return found

        assert await later(60, b"two", b"a stranger") == []
        assert await later(1, b"two") == [b"one"]
        assert await later(60, b"two") == []  # it is being dealt with
        assert await later(1, b"two") == [b"one"]
        assert await desk.take(b"three", [b"one"]) == "g"
        await desk.leave("h", b"two")
        assert await later(61) == [b"three"]

    run(scenario)


def test_a_desk_that_stood_still_takes_nobody_for_dead(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("raypipe.backend.broker.time.monotonic", lambda: clock[0])

    async def scenario(desk):
        assert await desk.take(b"one") == "g"
        clock[0] += 500  # its beats wait behind the question
        assert await desk.silent(60) == []
        clock[0] += 30
        assert await desk.silent(60) == []
        clock[0] += 31
        assert await desk.silent(60) == [b"one"]

    run(scenario)
