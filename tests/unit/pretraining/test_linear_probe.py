"""The linear probe: its penalty is chosen by people who are left out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.model_selection import GroupKFold

from raypipe.core.folds import FoldMap
from raypipe.pretraining import fold_trainer, worker
from raypipe.pretraining.linear_probe import RIDGE_STRENGTHS, _groups_left_out, fit_probe
from raypipe.training.loader import WindowLoader
from raypipe.trial.fold_runner import FoldRunner
from tests.support.toys import ToyWindows, make_run, tiny

N_FEATURES = 30
VIT = {"model__name": "vit", "model__filters": 8, "model__patch": 16, "batch_size": 10, "epochs": 4}


def people(rng, n, each=20):
    """Features that mostly tell people apart, and a little about the target, which is the person's."""
    target = rng.normal(size=n)
    own = rng.normal(size=(n, N_FEATURES))
    own[:, 0] += target
    x = np.repeat(own, each, axis=0) + 0.3 * rng.normal(size=(n * each, N_FEATURES))
    return x.astype(np.float32), np.repeat(target, each), np.repeat(np.arange(n), each)


def error(x, y, weight, bias):
    return float(np.sqrt(np.mean((x @ weight + bias - y) ** 2)) / np.std(y))


def test_targets_of_new_people_are_predicted_better_than_with_a_penalty_chosen_by_windows():
    """Windows left out are easy: other windows of the same person give its target away."""
    by_people, by_windows = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        (x, y, subjects), (x_new, y_new, _) = people(rng, 24), people(rng, 40)
        weight, bias = fit_probe(x, y, subjects, 0)
        by_people.append(error(x_new, y_new, weight.numpy()[0], float(bias)))
        z = (x - x.mean(0)) / x.std(0)
        old = RidgeCV(alphas=RIDGE_STRENGTHS).fit(z, y)
        by_windows.append(error((x_new - x.mean(0)) / x.std(0), y_new, old.coef_, old.intercept_))
    assert np.mean(by_people) < 0.9 * np.mean(by_windows)
    assert np.mean(np.array(by_people) <= by_windows) > 0.7


def test_the_penalty_is_the_best_for_people_left_out():
    x, y, subjects = people(np.random.default_rng(3), 24)
    z = (x - x.mean(0, dtype=np.float64)) / x.std(0, dtype=np.float64)
    losses = [
        np.mean(
            [
                np.mean((Ridge(alpha).fit(z[fit], y[fit]).predict(z[test]) - y[test]) ** 2)
                for fit, test in GroupKFold(5).split(z, groups=subjects)
            ]
        )
        for alpha in RIDGE_STRENGTHS
    ]
    ridge = Ridge(RIDGE_STRENGTHS[int(np.argmin(losses))]).fit(z, y)
    weight, bias = fit_probe(x, y, subjects, 0)
    np.testing.assert_allclose(x @ weight.numpy()[0] + float(bias), ridge.predict(z), atol=1e-4)


@pytest.mark.parametrize("n_classes", [0, 2])
def test_one_person_is_enough(n_classes):
    x, y, subjects = people(np.random.default_rng(0), 1)
    y = (np.arange(len(y)) % 2) if n_classes else y + x[:, 1]
    weight, _ = fit_probe(x, y, subjects, n_classes)
    assert weight.shape == (n_classes or 1, N_FEATURES) and weight.isfinite().all()


@given(st.lists(st.integers(0, 12), min_size=20, max_size=60))
def test_no_group_is_in_two_parts_and_people_alone_are_split_as_before(people):
    x, names = np.zeros((len(people), 1)), np.array([f"{p:02d}" for p in people])
    if len(set(people)) < 2:
        return
    folds = FoldMap(seed=0, n_folds=2, fold_of={}, group_of={f"{p:02d}": f"family {p // 2}" for p in range(12)})
    groups = folds.groups(names)
    for fit, test in _groups_left_out(x, groups).get("cv", []):
        assert not set(groups[fit].tolist()) & set(groups[test].tolist())
    alone = FoldMap(seed=0, n_folds=2, fold_of={}).groups(names)
    for a, b in zip(_groups_left_out(x, names)["cv"], _groups_left_out(x, alone)["cv"], strict=True):
        np.testing.assert_array_equal(a[1], b[1])


def test_probes_of_a_run_get_its_groups(tmp_path, monkeypatch):
    seen = []

    def spy(x, y, groups, n_classes):
        seen.append(set(groups.tolist()))
        return fit_probe(x, y, groups, n_classes)

    monkeypatch.setattr(fold_trainer, "fit_probe", spy)
    monkeypatch.setattr(worker, "fit_probe", spy)
    windows = ToyWindows(subjects=12, each=4)
    family = {name: f"family {k // 2}" for k, name in enumerate(sorted(set(windows.subjects.tolist())))}
    run = make_run(tmp_path / "run", windows, n_folds=2, group_of=family)
    run.add_trial(0, tiny(**VIT, pretrain__name="mae"))
    trainer = FoldRunner(run, WindowLoader(windows), 0, [0])._trainer(0)
    trainer.run_epoch()
    worker.probe_score(trainer.pretrainer, run.folds, None)
    assert len(seen) == 3 and all(groups <= set(family.values()) for groups in seen)
