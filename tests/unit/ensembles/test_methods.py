from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.ensembles.methods import METHODS
from raypipe.ensembles.soup import SOUPS
from raypipe.models.combine import combine
from tests.support.member_predictions import classes, independent, values


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("kind", ["values", "classes"])
def test_rules_are_plain_numbers_and_depend_on_no_other_window(name, kind):
    members = classes(n=400) if kind == "classes" else independent((1.0, 2.0, 3.0), n=400)[0]
    if name == "snapshots":
        members = replace(members, trials=[0, 0, 1])
    elif METHODS[name].unusable_reason(members):
        members = values(members.predictions[:, :, 0], members.targets, np.full((3, 400), 1.0))
    rule = json.loads(json.dumps(METHODS[name].fit(members)))
    assert METHODS[name].fit(members) == rule  # again the same
    whole = members.combine(rule)
    np.testing.assert_allclose(members.select_windows(np.arange(5, 9)).combine(rule), whole[5:9], rtol=1e-12)
    given = None if members.variances is None else torch.from_numpy(members.variances).float()
    single = combine(rule, torch.from_numpy(members.predictions).float(), given)
    np.testing.assert_allclose(single.numpy(), whole, rtol=1e-6, atol=1e-6)


def test_the_documentation_describes_every_method():
    text = (Path(__file__).parents[3] / "docs/ensembles.md").read_text()
    rows = dict(re.findall(r"^\| `(\w[\w-]*)` \| (.*?) \|", text, re.MULTILINE))
    assert rows == {name: method.description for name, method in METHODS.items()} | SOUPS


@given(
    st.sampled_from(sorted(METHODS.keys() - {"snapshots"})),
    st.sampled_from([1e-6, 1e6, 1e-9]),
    st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_the_unit_of_the_targets_changes_no_weight(name, unit, seed):
    """Seconds or microseconds: thresholds and penalties are relative."""
    rng = np.random.default_rng(seed)
    y = rng.normal(size=120)
    predictions = y + rng.normal(size=(4, 120)) * [[0.5], [0.8], [0.9], [1.5]] + 0.3 * rng.normal(size=120)
    variances = rng.uniform(0.2, 1.0, size=(4, 120))
    one, other = values(predictions, y, variances), values(unit * predictions, unit * y, unit**2 * variances)
    rule, scaled = METHODS[name].fit(one), METHODS[name].fit(other)
    np.testing.assert_allclose(other.combine(scaled), unit * one.combine(rule), rtol=1e-5, atol=1e-6 * unit)
    if "weights" in rule:
        np.testing.assert_allclose(scaled["weights"], rule["weights"], rtol=1e-6, atol=1e-9)
