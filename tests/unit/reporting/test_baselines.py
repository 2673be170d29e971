"""Linear baselines on the held-out subjects, and the section that shows them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from raypipe.core.errors import UserError
from raypipe.core.metrics import score
from raypipe.reporting.baselines import BASELINES_FILE, _logistic, read_baselines, write_baselines
from raypipe.reporting.sections.result import baselines_section
from raypipe.storage.run_store import RunStore


def test_baselines_are_scored_on_the_held_out_and_shown(simulated):
    run, windows = simulated.run, simulated.windows
    rows = {row.name: row for row in write_baselines(run, windows)}
    assert list(rows) == ["training mean", "ridge on age alone", "ridge on band power", "ridge on log-covariance"]
    held = run.folds.held_out_index(windows.subjects)
    rest = run.folds.search_index(windows.subjects)
    constant = np.full((len(held), 1), windows.targets[rest].astype(float).mean())
    assert rows["training mean"].score == pytest.approx(score("nrmse", windows.targets[held], constant), rel=1e-6)
    assert [row.usable for row in rows.values()] == [True, False, True, True]
    assert read_baselines(run) == list(rows.values())
    ensemble = simulated.ensemble(top=2)
    shown = baselines_section(run, ensemble)
    assert "not usable at inference" in shown
    assert "the ensemble" in shown and f"{ensemble.table.at['ensemble', 'held_out']:.3f}" in shown


def test_baselines_of_another_format_are_refused(simulated, tmp_path):
    run = RunStore.open(shutil.copytree(simulated.run.local, tmp_path / "run"))
    run.folder.write(BASELINES_FILE, json.dumps({"format": "raypipe-baselines/2", "baselines": []}).encode())
    with pytest.raises(UserError, match=r"baselines\.json: format 'raypipe-baselines/2', expected"):
        read_baselines(run)


def test_classes_have_logistic_regression(classes):
    run, windows = classes.run, classes.windows
    rows = {row.name: row.score for row in write_baselines(run, windows)}
    assert list(rows) == ["training frequencies", *(f"logistic regression on {x}" for x in FEATURES)]
    assert rows["training frequencies"] == 0.5
    assert rows["logistic regression on log-covariance"] > 0.7, "the bump is there, and the columns are in order"
    assert "logistic regression on band power" in baselines_section(run, classes.ensemble(top=2))


FEATURES = ("band power", "log-covariance")


def grouped(n_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return one feature for each class, from twelve subjects with ten windows each."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, n_classes, 120)
    return np.eye(n_classes)[y] + 0.2 * rng.normal(size=(120, n_classes)), y, np.repeat(np.arange(12), 10)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_probabilities_are_in_the_order_of_the_classes(n_classes):
    x, y, subjects = grouped(n_classes)
    probabilities = _logistic(x[:100], y[:100], subjects[:100], x[100:], n_classes)
    assert probabilities.shape == (20, n_classes)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert (probabilities.argmax(1) == y[100:]).mean() > 0.9


def test_a_class_that_a_training_side_lacks_keeps_its_column():
    x, y, subjects = grouped(3)
    one_only = np.where(y == 1, subjects, -1)  # class 1 is one subject's affair, in a sense: its folds lack it
    probabilities = _logistic(x[y != 1], y[y != 1], subjects[y != 1], x, 3)
    assert not probabilities[:, 1].any() and (probabilities[y == 2].argmax(1) == 2).mean() > 0.9
    assert _logistic(x, y, one_only, x, 3).shape == (120, 3)
    same = _logistic(x, np.full(120, 2), subjects, x, 3)
    assert same.tolist() == [[0, 0, 1]] * 120


def test_a_held_out_side_of_one_class_has_no_score(classes, monkeypatch):
    monkeypatch.setattr("raypipe.reporting.baselines.score", lambda *_: float("nan"))
    assert {row.score for row in write_baselines(classes.run, classes.windows)} == {None}
    assert "undefined" in baselines_section(classes.run, classes.ensemble(top=2))
