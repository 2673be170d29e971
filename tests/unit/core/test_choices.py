"""Choices that are lists: text in a study, and in the code of a space what it has written."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.core.choices import as_drawn
from raypipe.core.effects import parameters_without_effect
from raypipe.core.errors import UserError
from raypipe.core.search_space import SearchSpace, load_space

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
LISTS = st.recursive(st.lists(SCALARS, max_size=3), lambda lists: st.lists(lists | SCALARS, max_size=3), max_leaves=6)


@given(LISTS)
def test_a_list_is_the_same_text_as_a_tuple_and_with_numbers_of_another_type(value):
    text = as_drawn(value)
    assert json.loads(text) == value and as_drawn(tuple(value)) == text == as_drawn(json.loads(text))
    assert as_drawn([0, (1.0, 2)]) == as_drawn([0.0, [1, 2.0]]) == "[0, [1, 2]]"


@given(SCALARS)
def test_other_values_are_drawn_as_they_are(value):
    assert as_drawn(value) is value


def test_a_space_draws_lists_as_it_has_written_them():
    space = SearchSpace("""
START = [{"optim/betas": (0, 0.99)}, {"optim/betas": [0.8, 0.999]}]
def space(trial):
    betas = trial.suggest_categorical("optim/betas", [(0.0, 0.99), (0.8, 0.999)])
    return {"optim/lr": 1e-3 * (betas + (3,))[2], "seed": [(0.0, 0.99), (0.8, 0.999)].index(betas)}
""")
    space.check()
    assert space.start == [{"optim/betas": "[0, 0.99]"}, {"optim/betas": "[0.8, 0.999]"}]
    assert {(config.seed, config.optim.betas) for config in space.draw(20)} == {(0, (0.0, 0.99)), (1, (0.8, 0.999))}


def test_lists_that_differ_have_an_effect_and_those_that_a_constant_replaces_have_none():
    betas = {"optim/betas": {"choices": [[0.9, 0.99], [0.9, 0.999]]}}
    assert parameters_without_effect(load_space(betas)) is None
    replaced = SearchSpace(
        "def space(trial):\n"
        "    trial.suggest_categorical('optim/betas', [[0.9, 0.99], [0.9, 0.999]])\n"
        "    return {'optim/betas': [0.8, 0.9]}\n"
    )
    line = "space.py: drawn without effect: optim/betas (a constant of the space replaces it)"
    assert str(parameters_without_effect(replaced)).startswith(line)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (
            "[{'lr': 1e-3}, {'lr': 1e-2}]",
            r"'optim/betas': a choice must be text.* a list of these \(given dict\); draw a",
        ),
        ("[[0.9, {1}]]", r"'optim/betas': a choice must be .* \(given set\); draw a name, and return"),
        ("[[0.9, float('nan')]]", r"'optim/betas': a number of a list must be finite \(given nan\)"),
    ],
)
def test_choices_that_no_study_can_have_are_one_line(choices, message):
    space = SearchSpace(f"def space(trial):\n    trial.suggest_categorical('optim/betas', {choices})\n")
    with pytest.raises(UserError, match=rf"^space\.py: line 2: ValueError: {message}") as caught:
        space.check()
    assert "\n" not in str(caught.value)


def test_a_start_point_that_no_study_can_have_is_one_line():
    space = SearchSpace(
        "START = [{'optim/betas': [0.9, {}]}]\n"
        "def space(trial):\n    trial.suggest_categorical('optim/betas', [[0.9, 0.99]])\n"
    )
    with pytest.raises(UserError, match=r"^space\.py: START\[0\]: a choice must be .* \(given dict\)$"):
        space.check()
