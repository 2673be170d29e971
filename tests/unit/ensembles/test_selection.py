from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from raypipe.core.metrics import score
from raypipe.ensembles.selection import _losses, _ordered_pairs, forward_selection, greedy_selection
from tests.support.member_predictions import classes, independent, values


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("metric", ["auc", "balanced-accuracy"])
def test_losses_of_classes_are_negative_scores(metric, n_classes):
    rng = np.random.default_rng(0)
    predictions = rng.dirichlet(np.ones(n_classes), size=(4, 200)).round(1)  # ties too
    members = replace(classes(n=200), predictions=predictions, targets=rng.integers(0, n_classes, 200), metric=metric)
    expected = [-score(metric, members.targets, member_NK) for member_NK in predictions]
    np.testing.assert_allclose(_losses(members, predictions), expected, rtol=1e-12)


def test_losses_are_brier_scores_where_a_class_is_missing():
    members = replace(classes(n=200), targets=np.zeros(200, int))
    expected = ((members.predictions - [1.0, 0.0]) ** 2).sum(2).mean(1)
    np.testing.assert_allclose(_losses(members, members.predictions), expected)


def test_a_member_without_a_defined_score_is_selected_last():
    """Of the rarer class F1 is undefined where no window has it and none is predicted as it."""
    members = classes(n=200).select_members([0, 1])
    never = np.tile([0.9, 0.1], (200, 1))
    members = replace(members, predictions=np.stack([never, members.predictions[0]]), targets=np.zeros(200, int))
    some = replace(members, metric="f1")
    assert np.isnan(some.score(never)) and some.score(members.predictions[1]) == 0.0
    assert forward_selection(some, 1) == [1] and greedy_selection(some)["weights"] == [0.0, 1.0]
    none = some.select_members([0, 0])
    assert greedy_selection(none)["weights"] == [1.0, 0.0]  # by the squared error


def test_forward_selection_takes_members_that_complement_the_best():
    rng = np.random.default_rng(0)
    y, error = rng.normal(size=400), rng.normal(size=400)
    # The second member shares the error of the first, the third has the opposite error.
    members = values([y + error, y + 1.01 * error, y - 1.5 * error], y)
    assert forward_selection(members, 2) == [0, 2]
    assert sorted(forward_selection(members, 9)) == [0, 1, 2]


def test_greedy_selection_gives_better_members_more_weight():
    weights = greedy_selection(independent((0.5, 0.7, 1.0, 1.4))[0])["weights"]
    assert sum(weights) == pytest.approx(1.0) and weights == sorted(weights, reverse=True)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_losses_of_classes_are_taken_within_folds(n_classes):
    rng = np.random.default_rng(1)
    y, folds = rng.integers(0, n_classes, 300), np.repeat([0, 1, 2], 100)
    y[:100] = np.minimum(y[:100], n_classes - 2)  # a fold that lacks a class
    predictions = rng.dirichlet(np.ones(n_classes), size=(4, 300))
    members = replace(classes(n=300), predictions=predictions, targets=y, folds=folds)
    expected = [-members.score(member_NK) for member_NK in predictions]
    np.testing.assert_allclose(_losses(members, predictions), expected, rtol=1e-12)


def test_offsets_of_folds_do_not_keep_a_member_from_being_selected():
    members = classes(sharpness=(1.0, 1.0))
    folds = np.arange(1200) // 60 % 4
    noise = np.random.default_rng(5).normal(size=1200)
    odds = members.predictions[:, :, 1] / members.predictions[:, :, 0]
    logits = np.log(odds) + np.stack([noise, 3.0 * folds])
    p_MN = 1 / (1 + np.exp(-logits))
    members = replace(members, predictions=np.stack([1 - p_MN, p_MN], axis=2), folds=folds)
    assert forward_selection(members, 1) == [1]
    assert forward_selection(replace(members, folds=np.zeros_like(folds)), 1) == [0]


def test_targets_of_people_are_selected_by_people():
    rng = np.random.default_rng(0)
    y = np.repeat(rng.normal(size=20), 10)
    noise = rng.normal(size=(20, 10))
    knows_people = y + 3 * (noise - noise.mean(1, keepdims=True)).reshape(-1)
    steady = y + np.repeat(0.8 * rng.normal(size=20), 10)
    members = replace(values([steady, knows_people], y), level="person")
    assert forward_selection(members, 1) == [1] and greedy_selection(members)["weights"][1] > 0.9
    assert forward_selection(replace(members, level="window"), 1) == [0]


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]), st.booleans()), min_size=2, max_size=60),
    st.integers(0, 2**32 - 1),
)
def test_pairs_in_order_are_those_that_ranks_count_ties_included(windows, seed):
    """Scores with many ties, and continuous ones, against scipy's ranks."""
    positive_N = np.array([positive for _, positive in windows])
    tied_N, rng = np.array([score for score, _ in windows]), np.random.default_rng(seed)
    scores_CN = np.stack([tied_N, rng.uniform(size=len(tied_N)).astype(np.float32), np.full(len(tied_N), 0.5)])
    n1 = int(positive_N.sum())
    wanted_C = rankdata(scores_CN, axis=1)[:, positive_N].sum(1) - n1 * (n1 + 1) / 2
    np.testing.assert_allclose(_ordered_pairs(scores_CN, positive_N), wanted_C)
