"""What the seeds of tests/chaos kill; nothing is killed here."""

from __future__ import annotations

from tests.chaos.plan import CI_SEEDS, TRIALS, VICTIMS, WHAT, Moment, draw, moments


def test_a_seed_is_one_plan_and_seeds_reach_every_victim():
    assert draw(5, "nodes") == draw(5, "nodes")
    assert {moment.what for moment in moments()} == set(WHAT)
    for place, victims in VICTIMS.items():
        drawn = [strike for seed in range(60) for strike in draw(seed, place)]
        assert {strike.victim for strike in drawn} == set(victims)
        assert len({strike.at for strike in drawn}) > len(moments()) / 3
        assert all(sum(strike.victim == "node" for strike in draw(seed, place)) <= 2 for seed in range(60))


def test_the_few_seeds_of_every_run_kill_all_kinds_of_processes_at_all_kinds_of_moments():
    strikes = [strike for seed in CI_SEEDS for strike in draw(seed, "nodes")]
    assert {strike.victim for strike in strikes} == set(VICTIMS["nodes"])
    assert {strike.at.what for strike in strikes} == set(WHAT)
    actors = [strike.at for strike in strikes if strike.victim == "actor"]
    assert any(at.number > 0 and at.what in ("checkpoint", "scored") for at in actors), "an actor's second trial"
    # `Moment.reached` polls files. At the end of the last trial the victim may have ended before the poll sees them.
    assert max(strike.at for strike in strikes) <= Moment(TRIALS - 1, 0, "asked")
