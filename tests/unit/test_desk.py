"""The desk's protocol, without Ray: plain coroutines."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from raypipe.desk import RESTARTS, Desk
from raypipe.messages import Failure, FoldEpoch, Job, Reply

SOON = 5.0


def outcome(loss=1.0):
    return FoldEpoch(loss, np.zeros((2, 1), np.float32), 0.1)


def run(scenario):
    async def bounded():
        desk = Desk()
        await desk.open("slot")
        return await asyncio.wait_for(scenario(desk), SOON)

    return asyncio.run(bounded())


async def pending(task):
    """Let everything that can run do so; whether the task still waits."""
    for _ in range(20):
        await asyncio.sleep(0)
    return not task.done()


def test_an_epoch_goes_from_two_workers_to_the_slot():
    async def scenario(desk):
        seq = await desk.assign("slot", 7, 0, 0)
        assert await desk.next_job("slot", 0) == Job(seq, 7, 0)
        collected = asyncio.create_task(desk.collect("slot", 1, 2, SOON))
        assert await desk.post("slot", seq, 1, {0: outcome()}) == Reply(True, 0)
        assert await pending(collected)
        await desk.post("slot", seq, 1, {1: outcome()})
        assert sorted(await collected) == [0, 1]

    run(scenario)


def test_a_worker_may_be_one_epoch_ahead_and_no_further():
    async def scenario(desk):
        seq = await desk.assign("slot", 0, 0, 0)
        await desk.post("slot", seq, 1, {0: outcome()})
        ahead = asyncio.create_task(desk.post("slot", seq, 2, {0: outcome()}))
        assert await pending(ahead)
        await desk.scored("slot", 1, 1, False)
        assert await ahead == Reply(True, 1)

    run(scenario)


@pytest.mark.parametrize("end", ["over", "assigned", "closed", "failed"])
def test_a_waiting_worker_is_freed_when_the_trial_ends(end):
    async def scenario(desk):
        seq = await desk.assign("slot", 0, 0, 0)
        await desk.post("slot", seq, 1, {0: outcome()})
        ahead = asyncio.create_task(desk.post("slot", seq, 2, {0: outcome()}))
        assert await pending(ahead)
        if end == "over":
            await desk.scored("slot", 1, 1, True)
        elif end == "assigned":
            await desk.assign("slot", 1, 0, 0)
        elif end == "closed":
            await desk.close("slot")
        else:
            await desk.fail("slot", seq, Failure("error", "it broke"))
        assert not (await ahead).go
        assert await desk.moved("slot", seq)

    run(scenario)


def test_a_job_is_served_once_and_a_restarted_worker_gets_it_again_from_where_it_stands():
    async def scenario(desk):
        seq = await desk.assign("slot", 3, 2, 2)
        assert (await desk.next_job("slot", 0)).done == 2
        waiting = asyncio.create_task(desk.next_job("slot", seq))
        assert await pending(waiting)
        await desk.scored("slot", 3, 3, False)
        assert await desk.next_job("slot", 0) == Job(seq, 3, 3)
        await desk.assign("slot", 4, 0, 0)
        assert (await waiting).number == 4

    run(scenario)


def test_what_an_earlier_trial_posts_late_is_not_taken_for_the_next():
    async def scenario(desk):
        old = await desk.assign("slot", 0, 0, 0)
        new = await desk.assign("slot", 1, 0, 0)
        assert not (await desk.post("slot", old, 1, {0: outcome(5.0)})).go
        await desk.fail("slot", old, Failure("error", "late"))
        await desk.post("slot", new, 1, {0: outcome(6.0)})
        assert (await desk.collect("slot", 1, 1, SOON))[0].loss == 6.0

    run(scenario)


def test_an_epoch_that_was_scored_is_not_collected_again():
    async def scenario(desk):
        seq = await desk.assign("slot", 0, 0, 0)
        await desk.scored("slot", 1, 1, False)
        await desk.post("slot", seq, 1, {0: outcome()})
        assert await desk.collect("slot", 1, 1, 0.01) is None

    run(scenario)


def test_a_failure_reaches_the_slot_but_a_finished_epoch_goes_first():
    async def scenario(desk):
        seq = await desk.assign("slot", 0, 0, 0)
        await desk.post("slot", seq, 1, {0: outcome()})
        await desk.fail("slot", seq, Failure("non-finite", "nan"))
        assert isinstance(await desk.collect("slot", 1, 1, SOON), dict)
        assert await desk.collect("slot", 2, 1, SOON) == Failure("non-finite", "nan")

    run(scenario)


def test_workers_that_die_again_and_again_in_one_epoch_fail_the_trial():
    async def scenario(desk):
        await desk.assign("slot", 0, 0, 0)
        await desk.join("slot", 0, 100, None)
        for death in range(RESTARTS - 1):
            await desk.join("slot", 0, 101 + death, None)
        assert await desk.collect("slot", 1, 1, 0.01) is None
        await desk.join("slot", 0, 200, None)
        failure = await desk.collect("slot", 1, 1, SOON)
        assert failure.kind == "lost-worker"
        assert "in epoch 1" in failure.reason

    run(scenario)


def test_a_death_an_epoch_is_forgiven():
    async def scenario(desk):
        await desk.assign("slot", 0, 0, 0)
        for epoch in range(1, 3 * RESTARTS):
            await desk.join("slot", 0, epoch, None)
            await desk.scored("slot", epoch, 1, False)
        assert await desk.collect("slot", 99, 1, 0.01) is None

    run(scenario)


def test_a_closed_slot_sends_its_workers_home_and_names_their_group():
    async def scenario(desk):
        await desk.join("slot", 0, 1, "abc")
        waiting = asyncio.create_task(desk.next_job("slot", 0))
        assert await pending(waiting)
        assert await desk.close("slot") == "abc"
        assert await waiting is None
        assert await desk.next_job("slot", 0) is None
        assert await desk.close("slot") is None

    run(scenario)
