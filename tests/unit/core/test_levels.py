"""Scores of trials and methods: per person where targets are, within folds where a metric only ranks."""

import numpy as np
import pytest

from raypipe.core.bootstrap import bootstrap_subjects
from raypipe.core.levels import describe_level, level_of, ranking_score, rows_at_level, within_folds
from raypipe.core.metrics import score


def _trials(people=40, each=250, folds=5, seed=0):
    rng = np.random.default_rng(seed)
    subjects = np.repeat([f"s{k:02d}" for k in range(people)], each)
    y = rng.integers(0, 2, people * each)
    logits = 1.19 * y + rng.normal(size=len(y))  # AUC .80
    return subjects, y, logits, np.repeat(np.arange(people) % folds, each)


def _probabilities(logits):
    p = 1 / (1 + np.exp(-logits))
    return np.stack([1 - p, p], axis=1)


def test_offsets_between_folds_do_not_change_a_score_that_ranks():
    subjects, y, logits, folds = _trials()
    moved = logits + 2.0 * (folds - 2)
    assert score("auc", y, _probabilities(logits)) == pytest.approx(0.80, abs=0.015)
    assert score("auc", y, _probabilities(moved)) < 0.68  # what trials were ranked by
    for some in (logits, moved):
        assert ranking_score("auc", "window", y, _probabilities(some), subjects, folds) == pytest.approx(
            0.80, abs=0.015
        )


def test_a_fold_weighs_as_many_pairs_as_it_has():
    y = np.array([0, 1, 0, 0, 1, 1, 1, 1])
    folds = np.array([0, 0, 1, 1, 1, 1, 2, 2])
    right, wrong = np.array([0.0, 1.0]), np.array([1.0, 1.0, 0.0, 0.0])
    pred = _probabilities(np.concatenate([right, wrong, [0.0, 0.0]]))
    assert ranking_score("auc", "window", y, pred, folds, folds) == pytest.approx(1 / 5)  # the third has one class


def test_a_fold_that_lacks_a_class_counts_for_the_others():
    """Of three classes, the rare one is in one fold of three only."""
    rng = np.random.default_rng(0)
    folds, y = np.repeat([0, 1, 2], 20), np.tile([0, 1], 30)
    y[:5] = 2
    pred = rng.dirichlet(np.ones(3), 60)
    shares = []
    for k in range(3):
        pairs = [(i, j) for i in np.flatnonzero(y == k) for j in np.flatnonzero(y != k) if folds[i] == folds[j]]
        shares.append(np.mean([(pred[i, k] > pred[j, k]) for i, j in pairs]))
    assert ranking_score("auc", "window", y, pred, folds, folds) == pytest.approx(np.mean(shares))
    perfect = np.where((folds > 0)[:, None], np.eye(3)[y], pred)  # what folds without the rare class know is seen
    assert ranking_score("auc", "window", y, perfect, folds, folds) > 0.75


def test_a_class_that_is_missing_everywhere_has_no_score():
    pred = np.random.default_rng(0).dirichlet(np.ones(3), 12)
    assert np.isnan(ranking_score("auc", "window", np.arange(12) % 2, pred, np.arange(12), np.arange(12) // 4))


def test_folds_of_one_person_are_scored_together():
    subjects = np.array(list("abcdef"))
    y, folds = np.array([0, 1, 0, 1, 0, 1]), np.arange(6)
    pred = _probabilities(np.array([0.0, 1.0, 0.5, 2.0, 0.1, 1.5]))
    assert ranking_score("auc", "window", y, pred, subjects, folds) == 1.0
    assert bootstrap_subjects(within_folds("auc", folds), y, pred, subjects, n=50).usable > 20


def test_targets_of_people_are_scored_by_one_mean_prediction_per_person():
    subjects = np.repeat(["a", "b", "c", "d"], [1, 1, 1, 97])
    y = np.repeat([0.0, 1.0, 2.0, 3.0], [1, 1, 1, 97])
    assert level_of(subjects, y) == "person"
    assert level_of(subjects, np.arange(100.0)) == "window"
    pred = y + np.where(subjects == "d", 0.0, 1.0)  # right for the person with most windows only
    folds = np.repeat([0, 1, 2, 3], [1, 1, 1, 97])
    expected = score("nrmse", np.arange(4.0), np.array([1.0, 2.0, 3.0, 3.0]))
    assert ranking_score("nrmse", "person", y, pred[:, None], subjects, folds) == pytest.approx(expected)
    assert ranking_score("nrmse", "window", y, pred[:, None], subjects, folds) != pytest.approx(expected)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_resamples_agree_with_the_score_of_the_rows_that_they_draw(n_classes):
    subjects, y, logits, folds = _trials(people=12, each=7, folds=3)
    metric, pred = within_folds("auc", folds), _probabilities(logits + folds)
    if n_classes == 3:  # a fold lacks the last
        y = np.where((folds < 2) & (np.arange(len(y)) % 3 == 0), 2, y)
        pred = np.random.default_rng(2).dirichlet(np.ones(3), len(y))
    names, index = np.unique(subjects, return_inverse=True)
    counts = np.random.default_rng(1).multinomial(12, np.full(12, 1 / 12), size=5)
    for counts_S, found in zip(counts, metric.resampled(y, pred, index, counts), strict=True):
        rows = np.concatenate([np.flatnonzero(index == s) for s in range(len(names)) for _ in range(counts_S[s])])
        assert found == pytest.approx(within_folds("auc", folds[rows]).value(y[rows], pred[rows]))


@pytest.mark.parametrize("metric", ["auc", "pearson"])
def test_a_resample_without_a_pair_within_any_fold_is_scored_over_all_folds_as_its_rows_are(metric):
    """Only the third fold has both classes, and only with both of its people."""
    rng = np.random.default_rng(0)
    subjects, folds = np.repeat(np.arange(6), 5), np.repeat([0, 0, 1, 1, 2, 2], 5)
    y, logits = np.repeat([0, 0, 1, 1, 0, 1], 5), rng.normal(size=30)
    pred = _probabilities(logits) if metric == "auc" else logits[:, None]
    counts = np.concatenate([np.ones((1, 6)), 1 - np.eye(6), [[1, 1, 0, 0, 0, 0]]]).astype(np.int64)
    found = within_folds(metric, folds).resampled(y, pred, subjects, counts)
    wanted = []
    for counts_S in counts:
        rows = counts_S[subjects] > 0
        wanted.append(ranking_score(metric, "window", y[rows], pred[rows], subjects[rows], folds[rows]))
    np.testing.assert_allclose(found, wanted)
    assert np.isfinite(found[:-1]).all() and np.isnan(found[-1])  # the last lacks a class


def test_errors_are_scored_over_all_folds_together():
    assert within_folds("nrmse", [0, 1]).value is within_folds("nrmse", [0, 0]).value
    assert describe_level("nrmse", "window") == "all windows"
    assert describe_level("auc", "person") == (
        "one mean prediction per person, within each fold and averaged over the folds"
    )


def test_each_repeat_of_the_folds_gives_a_person_a_row():
    subjects, y = np.tile(np.repeat(["a", "b", "c", "d"], 3), 2), np.tile(np.repeat([0.0, 1.0, 2.0, 3.0], 3), 2)
    folds = np.r_[np.repeat([0, 1], 6), np.repeat([2, 3, 2, 3], 3)]
    error = np.repeat([0.0, 1.0], 12)  # the networks of the second repeat are wrong
    rows = rows_at_level("person", y, subjects, folds, (y + error)[:, None])
    assert rows.subjects.tolist() == ["a", "a", "b", "b", "c", "c", "d", "d"]
    assert rows.folds.tolist() == [0, 2, 0, 3, 1, 2, 1, 3]
    np.testing.assert_array_equal(rows.predictions[:, 0] - rows.targets, [0, 1] * 4)
    found = ranking_score("rmse", "person", y, (y + error)[:, None], subjects, folds)
    assert found == pytest.approx(np.sqrt(0.5))  # not .5, the error of their mean


def test_offsets_between_networks_of_repeats_do_not_change_a_score_that_ranks():
    """The mean of a window's predictions over repeats would mix the offsets of networks, other ones for each person."""
    subjects, y, logits, folds = _trials(each=50)
    other = np.random.default_rng(3).permutation(40)[np.repeat(np.arange(40), 50)] % 5
    both = np.concatenate([logits + 2.0 * folds, logits + 2.0 * other])
    rows = {"subjects": np.tile(subjects, 2), "folds": np.r_[folds, 5 + other]}
    found = ranking_score("auc", "window", np.tile(y, 2), _probabilities(both - both.mean()), **rows)
    assert found == pytest.approx(ranking_score("auc", "window", y, _probabilities(logits), subjects, folds), abs=0.01)
    mean = both.reshape(2, -1).mean(0)
    assert score("auc", y, _probabilities(mean - mean.mean())) < 0.72
