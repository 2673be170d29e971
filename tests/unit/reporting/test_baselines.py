"""Linear baselines on the held-out subjects, and the section that shows them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from raypipe.core.errors import UserError
from raypipe.core.metrics import score
from raypipe.data.window_store import WindowStore
from raypipe.reporting import baselines
from raypipe.reporting.baselines import (
    BASELINES_FILE,
    BaselineData,
    read_baselines,
    write_baselines,
)
from raypipe.reporting.sections.result import baselines_section
from raypipe.storage.run_store import RunStore
from raypipe.trial.evaluator import constant_baseline
from tests.support.toys import ToyWindows, make_run, write_store


def test_baselines_are_scored_on_the_held_out_and_shown(simulated):
    run, windows = simulated.run, simulated.windows
    rows = {row.name: row for row in write_baselines(run, windows)}
    assert list(rows) == ["training mean", "ridge on age alone", *(f"ridge on {x}" for x in FEATURES)]
    held = run.folds.held_out_index(windows.subjects)
    rest = run.folds.search_index(windows.subjects)
    constant = np.full((len(held), 1), windows.targets[rest].astype(float).mean())
    assert rows["training mean"].score == pytest.approx(score("nrmse", windows.targets[held], constant), rel=1e-6)
    assert [row.usable for row in rows.values()] == [True, False, True, True, True]
    assert read_baselines(run) == list(rows.values())
    ensemble = simulated.ensemble(top=2)
    shown = baselines_section(run, ensemble)
    assert "not usable at inference" in shown and "scored like trials: all windows" in shown
    assert "the ensemble" in shown and f"{ensemble.table.at['ensemble', 'held_out']:.3f}" in shown


def test_time_courses_find_what_is_locked_to_events(tmp_path):
    """The target moves a deflection, which leaves power and covariance as they are."""
    toy = ToyWindows(subjects=12, each=16, channels=4)
    rng = np.random.default_rng(0)
    middle = 32 + 6 * np.clip(toy.targets, -2, 2)
    bump = np.exp(-(((np.arange(64) - middle[:, None]) / 5) ** 2))
    pattern = np.array([1.0, -1.0, 0.5, 2.0])
    noise = rng.normal(size=(len(toy), 4, 64))
    toy.x = (noise + 3 * pattern[:, None] * bump[:, None]).astype(np.float32)
    windows = WindowStore(write_store(tmp_path / "store", toy))
    rows = {row.name: row for row in write_baselines(make_run(tmp_path / "run", windows), windows)}
    course, others = rows["ridge on time courses"], [rows[f"ridge on {x}"] for x in FEATURES[:2]]
    assert course.oof < 0.6 and course.score < 0.6
    assert min(row.oof for row in others) > 0.8


def test_targets_of_people_are_scored_by_people(tmp_path):
    toy = ToyWindows(subjects=12, each=6)
    toy.targets = np.repeat(np.arange(12.0, dtype=np.float32), 6)
    windows = WindowStore(write_store(tmp_path / "store", toy))
    run = make_run(tmp_path / "run", windows)
    row = write_baselines(run, windows)[0]
    held, rest = (
        np.array(sorted({toy.targets[i] for i in index}))
        for index in (run.folds.held_out_index(toy.subjects), run.folds.search_index(toy.subjects))
    )
    assert row.score == pytest.approx(score("nrmse", held, np.full(len(held), rest.mean())))
    assert row.oof == pytest.approx(constant_baseline(run, windows))


def test_components_and_models_see_the_training_side_of_a_fold_only(tmp_path, monkeypatch):
    toy = ToyWindows(subjects=9, each=6)
    store = WindowStore(write_store(tmp_path / "store", toy))
    run = make_run(tmp_path / "run", store)
    seen, predicted = [], []
    real = baselines.FoldData

    def note(config, loader, train, validation, **options):
        seen.append(set(toy.subjects[train]))
        predicted.append(set(toy.subjects[validation]))
        return real(config, loader, train, validation, **options)

    monkeypatch.setattr(baselines, "FoldData", note)
    write_baselines(run, store)
    assert len(seen) == 4 * len(FEATURES)
    assert all(not train & test for train, test in zip(seen, predicted, strict=True))
    assert set.union(*predicted[:4]) == set(toy.subjects)
    search = set(run.folds.fold_of) - set(run.folds.held_out)
    assert all(train | test == search for train, test in zip(seen[:3], predicted[:3], strict=True))


def test_baselines_of_another_format_are_refused(simulated, tmp_path):
    run = RunStore.open(shutil.copytree(simulated.run.local, tmp_path / "run"))
    run.folder.write(BASELINES_FILE, json.dumps({"format": "raypipe-baselines/3", "baselines": []}).encode())
    with pytest.raises(UserError, match=r"baselines\.json: format 'raypipe-baselines/3', expected"):
        read_baselines(run)


def test_classes_have_logistic_regression(classes):
    run, windows = classes.run, classes.windows
    rows = {row.name: row.score for row in write_baselines(run, windows)}
    assert list(rows) == ["prior baseline", *(f"logistic regression on {x}" for x in FEATURES)]
    assert rows["prior baseline"] == 0.5
    assert rows["logistic regression on log-covariance"] > 0.7, "the bump is there, and the columns are in order"
    assert "logistic regression on band power" in baselines_section(run, classes.ensemble(top=2))


FEATURES = ("band power", "log-covariance", "time courses")


def test_a_held_out_side_of_one_class_has_no_score(classes, monkeypatch):
    monkeypatch.setattr("raypipe.reporting.baselines.score", lambda *_: float("nan"))
    assert {row.score for row in write_baselines(classes.run, classes.windows)} == {None}
    assert "undefined" in baselines_section(classes.run, classes.ensemble(top=2))


def test_baselines_are_scored_over_all_repeats_of_the_folds(repeated):
    run, windows = repeated.run, repeated.windows
    data = BaselineData(run, windows)
    *folds, last = data.sides()
    assert [side.fold for side in folds] == list(range(6)) and last.fold == -1
    for side in folds:
        train, test = run.folds.split(windows.subjects, side.fold)
        assert (side.train.tolist(), side.test.tolist()) == (train.tolist(), test.tolist())
    right = np.eye(2)[windows.targets[np.concatenate([side.test for side in folds])]]
    assert len(data.rows(folds, right).targets) == 2 * (24 - len(run.folds.held_out))
    assert data.score(folds, right) == 1.0
