from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from raypipe.core.metrics import METRICS, score
from raypipe.ensembles.calibration import calibrate_across, fit_calibration
from raypipe.ensembles.decisions import choose_weights, decide, even_weights
from raypipe.ensembles.held_out import calibrate_rows
from raypipe.ensembles.oof import MemberPredictions
from raypipe.ensembles.scores import EvaluationSet, RowPredictions, Scoring, score_table

OF_CLASSES = [name for name, metric in METRICS.items() if metric.reads == "classes"]
RARE = (0.8, 0.13, 0.07)


def simulate(prior=RARE, effect=1.5, n_subjects=60, each=20, seed=0, *, of_people=False):
    """Return true probabilities, classes and subjects; an effect of 0 leaves the classes to chance."""
    rng = np.random.default_rng(seed)
    n, k = n_subjects if of_people else n_subjects * each, len(prior)
    y = rng.choice(k, p=prior, size=n)
    x_NK = rng.normal(size=(n, k)) + effect * np.eye(k)[y]
    odds_NK = np.array(prior) * np.exp(effect * x_NK)  # Bayes' rule for these features
    p = odds_NK / odds_NK.sum(1, keepdims=True)
    subjects = np.repeat([f"s{i:03d}" for i in range(n_subjects)], 1 if of_people else each)
    if of_people:
        p, y, subjects = (np.repeat(values, each, axis=0) for values in (p, y, subjects))
    return p, y, subjects


def members(p, y, subjects, metric, groups=None):
    return MemberPredictions(
        ["a"],
        p[None],
        y,
        subjects,
        np.zeros(len(y), np.int64),
        np.arange(len(y)),
        metric,
        "classification",
        groups=groups,
    )


ORACLES = {
    "balanced-accuracy": sklearn_metrics.balanced_accuracy_score,
    "accuracy": sklearn_metrics.accuracy_score,
    "f1": sklearn_metrics.f1_score,
    "kappa": sklearn_metrics.cohen_kappa_score,
}


@pytest.mark.parametrize("metric", OF_CLASSES)
def test_the_weights_of_two_classes_are_the_best_threshold_of_scikit_learn(metric):
    p, y, subjects = simulate((0.7, 0.3), n_subjects=10)
    found = choose_weights(metric, p, y, subjects)
    best = max(ORACLES[metric](y, p[:, 1] > t) for t in np.r_[0.0, np.unique(p[:, 1])])
    assert found.sum() == pytest.approx(1.0)
    assert ORACLES[metric](y, p[:, 1] > found[0]) == pytest.approx(best)
    assert score(metric, y, decide(p, found)) == pytest.approx(best)


@pytest.mark.parametrize("metric", OF_CLASSES)
def test_the_weights_of_three_classes_are_nearly_the_best_of_a_grid(metric):
    p, y, subjects = simulate(effect=0.8)
    found = choose_weights(metric, p, y, subjects)
    grid = np.exp(np.stack(np.meshgrid([0.0], *[np.linspace(-1, 4, 26)] * 2), -1).reshape(-1, 3))
    best = max(score(metric, y, decide(p, weights)) for weights in grid)
    even = score(metric, y, decide(p))
    assert score(metric, y, decide(p, found)) > (best - 0.01 if metric != "accuracy" else even - 1e-9)


def test_for_the_balanced_accuracy_of_true_probabilities_weights_are_near_inverse_frequencies():
    p, y, subjects = simulate(n_subjects=400)
    found = choose_weights("balanced-accuracy", p, y, subjects)
    assert np.log(found * RARE) == pytest.approx(np.log(found * RARE).mean(), abs=0.25)


@pytest.mark.parametrize("of_people", [False, True])
@pytest.mark.parametrize("metric", ["balanced-accuracy", "f1", "kappa"])
def test_nested_scores_of_rare_classes_are_better(metric, of_people):
    p, y, subjects = simulate(effect=0.8, n_subjects=200 if of_people else 24, of_people=of_people)
    nested, weights = calibrate_across(members(p, y, subjects, metric), p)
    gain = score(metric, y, decide(nested, weights)) - score(metric, y, decide(nested))
    assert gain > 0.05


@pytest.mark.parametrize("metric", OF_CLASSES)
def test_without_a_gain_they_are_even(metric):
    """Equally frequent classes, whose most probable one is the best choice in truth."""
    kept = [
        choose_weights(metric, *simulate((0.25,) * 4, n_subjects=20, seed=seed)).tolist() == [0.25] * 4
        for seed in range(8)
    ]
    assert np.mean(kept) >= 0.75


def test_one_person_keeps_even_weights_and_a_class_that_is_missing_is_no_error():
    p, y, _ = simulate()
    assert choose_weights("f1", p, y, np.full(len(y), "s0")).tolist() == even_weights(3).tolist()
    inside = y != 2
    found = choose_weights("kappa", p[inside], y[inside], np.arange(inside.sum()) // 20)
    assert np.isfinite(found).all() and (found > 0).all()


def test_the_weights_of_people_are_of_their_mean_probabilities():
    people = np.repeat(np.arange(6), 10)
    y = np.repeat([0, 0, 0, 1, 1, 1], 10)
    p = np.repeat([0.1, 0.12, 0.14, 0.2, 0.22, 0.24], 10) + np.tile(np.linspace(-0.09, 0.09, 10), 6)
    threshold = choose_weights("accuracy", np.stack([1 - p, p], 1), y, people)[0]
    assert 0.14 < threshold < 0.2


def test_families_are_kept_whole_where_weights_are_checked():
    """Copies of a person under other labels decide nothing more than the person alone."""
    p, y, subjects = simulate(n_subjects=6, each=10, seed=3)
    copies = [np.char.add(subjects, f"-{number}") for number in range(20)]
    many = choose_weights("kappa", np.tile(p, (20, 1)), np.tile(y, 20), np.concatenate(copies), np.tile(subjects, 20))
    assert many == pytest.approx(choose_weights("kappa", p, y, subjects))


@given(st.permutations(range(3)), st.integers(0, 20))
def test_equal_weights_decide_as_the_most_probable_class(order, seed):
    p, _, _ = simulate(n_subjects=3, each=5, seed=seed)
    p = p[:, list(order)]
    assert (decide(p, even_weights(3)) == decide(p)).all()
    assert decide(np.array([[0.2, 0.5, 0.3]]), np.array([0.2, 0.2, 0.6])).tolist() == [[0, 0, 1]]


def test_the_scores_of_three_classes_are_by_weights_chosen_on_others():
    p, y, subjects = simulate(n_subjects=80)
    out = subjects >= "s060"
    folds = np.unique(subjects, return_inverse=True)[1] % 4
    search, held = (EvaluationSet(y[m], subjects[m], folds[m]) for m in (~out, out))
    raw = RowPredictions(p[out], p[~out], p[~out])
    rows = dict.fromkeys(("ensemble", "equal weights", "best single trial"), raw)
    calibrated, found = calibrate_rows(members(p[~out], y[~out], subjects[~out], "balanced-accuracy"), rows)
    table = score_table(Scoring("balanced-accuracy", "classification", 3, "window"), calibrated, search, held)
    balanced = sklearn_metrics.balanced_accuracy_score
    shipped = decide(found(p[out]), np.array(found.decision_weights)).argmax(1)
    assert table.loc["ensemble", "held_out"] == pytest.approx(balanced(y[out], shipped))
    assert balanced(y[out], shipped) > balanced(y[out], p[out].argmax(1)) + 0.1
    assert table.loc["ensemble", "nested"] == pytest.approx(table.loc["ensemble", "oof"], abs=0.05)


def test_the_graph_and_the_bundle_decide_as_offline():
    """Records of weights keep their digits, and 32 bits decide as 64 do."""
    from raypipe.packaging.graphs import DecidingModule

    p, y, subjects = simulate()
    fitted = fit_calibration("balanced-accuracy", p, y, subjects)
    assert len(set(fitted.decision_weights)) == 3
    kept = json.loads(json.dumps(fitted.decision_weights))
    shown = fitted(p).astype(np.float32)

    class Given(torch.nn.Module):
        classes = True

        def forward(self, x):
            return x

    _, chosen = DecidingModule(Given(), kept)(torch.from_numpy(shown))
    offline = decide(fitted(p), np.array(fitted.decision_weights)).argmax(1)
    assert (chosen.numpy() == offline).all()
    assert (decide(shown.astype(float), np.array(kept)).argmax(1) == offline).all()
