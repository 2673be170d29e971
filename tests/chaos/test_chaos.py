"""Whatever happens at whatever moment: the same trials, the same numbers to the bit, nothing twice, nothing left.

``pytest tests/chaos --seed 7`` plays one seed again; ``make chaos N=200`` plays many, and on a Ray of their own too.
`make test` plays `plan.CI_SEEDS`, `make test-all` a dozen more.
"""

from __future__ import annotations

import pytest

from tests.chaos.plan import CI_SEEDS, Plan, draw
from tests.chaos.play import HOOKS, differences, play
from tests.support.faults import Kill, arming

pytestmark = pytest.mark.ray


def test_whatever_happens_the_numbers_are_the_same(seed, field, nodes, reference):
    folder, _ = field
    plan = draw(seed, nodes.name)
    played = play(nodes, folder, f"run-{seed}", plan)
    if seed in CI_SEEDS:
        assert played.kinds == [strike.kind for strike in plan.strikes], "no sweep was over before its last strike"
    assert differences(folder / f"run-{seed}", reference) == []
    assert max(played.repeated, default=0) <= 2, (str(plan), played)  # one whole, and the one under way


def test_kills_at_the_worst_places(field, nodes, reference, tmp_path):
    """In a file, between a checkpoint and its report, and between two steps that belong together."""
    folder, _ = field
    state = str(tmp_path / "state")
    workers = [
        Kill(state, "0000/fold-1/epoch-0002", when="amid"),
        Kill(state, "0000/fold-2/epoch-0004", when="after"),  # the last of its worker's, and not reported
        Kill(state, "0001/fold-0/epoch-0001", when="before"),
    ]
    trial_actors = [Kill(state, "0000/history", nth=3, when="amid"), Kill(state, "0001/history", nth=4, when="after")]
    drivers = [
        Kill(state, "0000/oof", when="amid"),
        Kill(state, "0000/result", when="after"),  # the study does not know
        Kill(state, "0001/trial", when="before"),  # asked for, and not recorded
        Kill(state, "0001/fold-1/epoch-0006", call="remove", when="after"),
    ]
    nodes.hooks.set(HOOKS | arming(*workers, *trial_actors, *drivers))
    play(nodes, folder, "worst", Plan(()), suicides=len(drivers))
    assert differences(folder / "worst", reference) == []
    assert len({path.name.rpartition(".")[0] for path in (tmp_path / "state").iterdir()}) == 9
