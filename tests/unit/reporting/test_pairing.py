"""Differences of two runs: each is scored within its own folds, on the same resamples of people."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from raypipe.core.fold_drawing import make_folds
from raypipe.core.metrics import score
from raypipe.ensembles.scores import EvaluationSet, difference_interval
from raypipe.reporting.pairing import Predictions, paired_difference
from raypipe.reporting.tables import _difference_lines


def probabilities(logits):
    p_N = 1 / (1 + np.exp(-np.asarray(logits, dtype=float)))
    return np.stack([1 - p_N, p_N], 1)


def predicted(classes_S, logits_S, *, seed, n_folds=5, repeats=1, out=()):
    """Return out-of-fold predictions of two windows of each person, by folds of a seed whose networks have offsets."""
    names = np.array([f"s{k:02d}" for k in range(len(classes_S))])
    subjects, targets = np.repeat([*names, "h0", "h1"], 2), np.repeat([*classes_S, 0, 1], 2)
    folds = make_folds(
        subjects, targets, classes=True, n_folds=n_folds, repeats=repeats, held_out=["h0", "h1", *out], seed=seed
    )
    index, fold_N = folds.predicted_rows(subjects)
    keys = np.array([f"{subject}@{k % 2}" for k, subject in enumerate(subjects)])[index]
    side = EvaluationSet(targets[index], subjects[index], fold_N, None, cross_validated=True)
    logits = np.repeat([*logits_S, 0, 0], 2)[index] + 10.0 * fold_N
    return Predictions(keys, side, probabilities(logits), level="person")


def of_people(predictions):
    side = predictions.evaluation_set
    return side.per_subject(), side.mean_per_subject(predictions.predictions)


def test_each_run_has_the_score_of_its_own_folds():
    """Pairs of people who share a fold in both runs are few, and their AUC is not that of either run."""
    rng = np.random.default_rng(0)
    classes_S = rng.permutation(np.arange(20) % 2)
    logits_S = classes_S + rng.normal(size=20)
    runs = [predicted(classes_S, logits_S, seed=seed) for seed in (0, 1)]
    own = [side.score("auc", means) for side, means in map(of_people, runs)]
    found = paired_difference("toy", "auc", *runs)
    assert found.scores == tuple(own) and own[0] != own[1]
    assert found.difference == own[1] - own[0] and found.low <= found.difference <= found.high
    assert (found.subjects, found.subjects_of, found.windows, found.windows_of) == (20, (20, 20), 0, (0, 0))


def test_runs_of_the_same_folds_have_the_interval_of_paired_predictions():
    rng = np.random.default_rng(1)
    classes_S = np.arange(24) % 2
    one, two = (predicted(classes_S, classes_S + rng.normal(size=24), seed=0) for _ in range(2))
    (side, a), (_, b) = of_people(one), of_people(two)
    expected = difference_interval("auc", side, b, a)
    found = paired_difference("toy", "auc", one, two)
    assert (found.low, found.high) == (expected.low, expected.high)


def test_chance_differences_of_other_folds_are_no_claims_and_large_ones_are_found():
    rng = np.random.default_rng(2)
    claims = 0
    for draw in range(40):
        classes_S = rng.permutation(np.arange(20) % 2)
        logits_S = 2 * classes_S + rng.normal(size=20)
        found = paired_difference("toy", "auc", *(predicted(classes_S, logits_S, seed=2 * draw + k) for k in (0, 1)))
        claims += not found.low <= 0 <= found.high
    assert claims <= 4, "promised are 2.5 % a side"
    classes_S = np.arange(60) % 2
    found = paired_difference(
        "toy", "auc", predicted(classes_S, rng.normal(size=60), seed=0), predicted(classes_S, 9 * classes_S, seed=1)
    )
    assert found.describe("auc") == "better"


def test_a_run_without_repeats_is_compared_with_all_repeats_of_another():
    rng = np.random.default_rng(3)
    classes_S = rng.permutation(np.arange(20) % 2)
    once, twice = (predicted(classes_S, classes_S + rng.normal(size=20), seed=0, repeats=n) for n in (1, 2))
    found = paired_difference("toy", "auc", once, twice)
    own = [side.score("auc", means) for side, means in map(of_people, (once, twice))]
    assert found.scores == tuple(own) and len(of_people(twice)[1]) == 40
    assert (found.subjects, found.units, found.mismatched) == (20, 20, 0)


def test_only_subjects_of_both_count_and_that_is_said():
    rng = np.random.default_rng(4)
    classes_S = rng.permutation(np.arange(24) % 2)
    one, two = (
        predicted(classes_S, classes_S + rng.normal(size=24), seed=seed, out=out)
        for seed, out in ((0, ["s00", "s01"]), (1, ["s01", "s02", "s03"]))
    )
    found = paired_difference("toy", "log-loss", one, two)
    assert (found.subjects, found.subjects_of) == (20, (22, 21))
    for run, value in zip((one, two), found.scores, strict=True):
        side, means = of_people(run)
        both = np.isin(side.subjects, [f"s{k:02d}" for k in range(4, 24)])
        assert value == pytest.approx(score("log-loss", side.targets[both], means[both]))
    ((line, _),) = _difference_lines([found], "log-loss")
    assert "; 20 of the 22 and 21 subjects, one mean prediction per subject)" in line


def test_groups_of_the_run_with_fewer_are_resampled_in_both():
    rng = np.random.default_rng(5)
    classes_S = np.arange(16) % 2
    one, two = (predicted(classes_S, classes_S + rng.normal(size=16), seed=seed) for seed in (0, 1))
    pairs = np.array([f"f{int(name[1:]) // 2}" for name in one.evaluation_set.subjects])
    one = dataclasses.replace(one, evaluation_set=dataclasses.replace(one.evaluation_set, groups=pairs))
    for sides in ((one, two), (two, one)):
        assert paired_difference("toy", "auc", *sides).units == 8
