"""Whoever is killed at whatever moment: the same trials, the same numbers to the bit, nothing twice, nothing left.

``pytest tests/chaos --seed 7`` plays one seed again; ``make chaos N=200`` plays many, and on a Ray of their own too.
"""

from __future__ import annotations

import pytest

from tests.chaos.conftest import SEEDS
from tests.chaos.places import Alone, Nodes
from tests.chaos.plan import VICTIMS, draw, moments
from tests.chaos.play import differences, play
from tests.support.faults import Kill, arming
from tests.support.sweeps import injected

pytestmark = pytest.mark.ray


def test_a_seed_is_one_plan_and_seeds_reach_every_victim():
    assert draw(5, "nodes") == draw(5, "nodes")
    for place, victims in VICTIMS.items():
        drawn = [strike for seed in range(60) for strike in draw(seed, place)]
        assert {strike.victim for strike in drawn} == set(victims)
        assert len({strike.at for strike in drawn}) > len(moments()) / 3
        if place == Nodes.name:
            assert {strike.victim for seed in range(SEEDS) for strike in draw(seed, place)} == set(victims)
        assert all(sum(s.victim == "node" for s in draw(seed, place)) <= 2 for seed in range(60))


def test_whoever_is_killed_the_numbers_are_the_same(seed, field, reference):
    folder, place = field
    strikes = draw(seed, place.name)
    played = play(place, folder, f"run-{seed}", strikes)
    assert differences(folder / f"run-{seed}", reference) == []
    assert max(played.repeated, default=0) <= 2, (strikes, played)  # one whole, and the one under way


def test_kills_at_the_worst_places(field, reference, tmp_path):
    """In a file, between a checkpoint and its report, and between two steps that belong together."""
    folder, _ = field
    state = str(tmp_path / "state")
    workers = [
        Kill(state, "0000/fold-1/epoch-0002", when="amid"),
        Kill(state, "0000/fold-2/epoch-0004", when="after"),  # the last of its worker's: nobody has been told
        Kill(state, "0001/fold-0/epoch-0001", when="before"),
    ]
    actors = [Kill(state, "0000/history", nth=3, when="amid"), Kill(state, "0001/history", nth=4, when="after")]
    drivers = [
        Kill(state, "0000/oof", when="amid"),
        Kill(state, "0000/result", when="after"),  # the study has not been told
        Kill(state, "0001/trial", when="before"),  # asked for, and not recorded
        Kill(state, "0001/fold-1/epoch-0006", call="remove", when="after"),
    ]
    with Alone(injected(tmp_path / "hook", arming(*workers, *actors, *drivers))) as place:
        play(place, folder, "worst", [], suicides=len(drivers))
    assert differences(folder / "worst", reference) == []
    assert len({path.name.rpartition(".")[0] for path in (tmp_path / "state").iterdir()}) == 9
