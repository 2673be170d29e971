"""What the seeds of tests/chaos do; nothing is done here."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.chaos.__main__ import Outcome, table
from tests.chaos.plan import (
    CI_SEEDS,
    CONSOLES,
    FAULTS,
    LONG_SEEDS,
    MAX_LOST_NODES,
    PAUSE_SECONDS,
    PAUSED,
    SHORT_PAUSE_SECONDS,
    TRIALS,
    VICTIMS,
    WHAT,
    Moment,
    Plan,
    Strike,
    draw,
    moments,
)
from tests.chaos.play import Played

KINDS = {
    place: {
        f"{fault} {victim}"
        for fault, victims in {"kill": killed, "pause": PAUSED, "console": CONSOLES}.items()
        if fault in FAULTS
        for victim in victims
    }
    for place, killed in VICTIMS.items()
}


@pytest.mark.parametrize("place", VICTIMS)
def test_a_seed_is_one_plan_and_seeds_reach_every_kind_of_fault(place):
    assert draw(5, place) == draw(5, place)
    assert {moment.what for moment in moments()} == set(WHAT)
    plans = [draw(seed, place) for seed in range(200)]
    drawn = [strike for plan in plans for strike in plan.strikes]
    assert {strike.kind for strike in drawn} == KINDS[place]
    assert len({strike.at for strike in drawn}) > len(moments()) / 3
    assert {plan.slow_disk for plan in plans} == {True, False}


@pytest.mark.parametrize("place", VICTIMS)
def test_a_sweep_can_outlast_every_plan(place):
    for seed in range(500):
        strikes = draw(seed, place).strikes
        assert list(strikes) == sorted(strikes, key=lambda strike: strike.at)
        assert place == "alone" or sum(strike.loses_node for strike in strikes) <= MAX_LOST_NODES
        assert len({strike.victim for strike in strikes if strike.fault == "console"}) <= 1


def test_the_few_seeds_of_every_run_kill_all_kinds_of_processes_at_all_kinds_of_moments():
    plans = [draw(seed, "nodes") for seed in CI_SEEDS]
    strikes = [strike for plan in plans for strike in plan.strikes]
    assert {strike.victim for strike in strikes if strike.fault == "kill"} == set(VICTIMS["nodes"])
    assert {strike.fault for strike in strikes} == set(FAULTS)
    assert {strike.at.what for strike in strikes} == set(WHAT)
    assert any(plan.slow_disk for plan in plans)
    actors = [strike.at for strike in strikes if strike.kind == "kill actor"]
    assert any(at.number > 0 and at.what in ("checkpoint", "scored") for at in actors), "an actor's second trial"
    # `Moment.reached` polls files. At the end of the last trial the victim may have ended before the poll sees them.
    assert max(strike.at for strike in strikes) <= Moment(TRIALS - 1, 0, "asked")


def test_only_the_few_seeds_have_short_pauses():
    assert {draw(seed, "nodes").pause_seconds for seed in CI_SEEDS} == {SHORT_PAUSE_SECONDS}
    assert {draw(seed, "nodes").pause_seconds for seed in LONG_SEEDS} == {PAUSE_SECONDS}


def test_the_table_counts_each_kind_of_fault():
    at = Moment(0, 1, "scored")
    worker, gcs = Strike(at, "kill", "worker", 0.0), Strike(at, "pause", "gcs", 0.0)
    twice = Played([worker.kind, worker.kind], repeated=[1, 2], work=[2, 4], ends=["1 (raypipe: gone)"])
    outcomes = [
        Outcome("a", Plan((worker, worker), slow_disk=True), played=twice),
        Outcome("b", Plan((worker, gcs)), "lost", reason="it failed"),
    ]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table(outcomes).splitlines()]
    assert rows[2:-2] == [
        ["kill worker", "3", "1", "0", "0", "1.5", "2", "1"],
        ["pause gcs", "1", "1", "0", "0", "", "", ""],
        ["slow disk", "1", "0", "0", "0", "", "", ""],
        ["all (runs)", "2", "1", "0", "0", "1.5", "2", "1"],
    ]
    assert rows[-1][0].endswith("again: 1")
    assert Counter(str(outcomes[0]).split("; "))["a driver ended with 1 (raypipe: gone)"] == 1
