"""Classical baselines: rows of the score table, fitted on the training side of each fold."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pandas as pd
import pytest

from raypipe.core.metrics import score
from raypipe.data.window_store import WindowStore
from raypipe.ensembles import baselines, fit
from raypipe.ensembles.baselines import Baseline, BaselineData, baseline_rows, best_baseline
from raypipe.ensembles.oof import MemberPredictions
from raypipe.reporting.sections.result import result_section
from raypipe.storage.run_store import RunStore
from raypipe.training import closed_form, features
from raypipe.trial.evaluator import constant_baseline
from tests.support.records import edit_record
from tests.support.toys import ToyWindows, make_run, write_store

pytestmark = pytest.mark.usefixtures("all_baselines")

FEATURES = ("band power", "log-covariance", "time courses")


def like(run: RunStore, windows: WindowStore) -> MemberPredictions:
    """Return what gives rows their order: all windows of search subjects, once in each repeat."""
    sides = [side for side in BaselineData(run, windows).sides() if side.fold >= 0]
    index = np.concatenate([side.test for side in sides])
    folds = np.repeat([side.fold for side in sides], [len(side.test) for side in sides])
    order = np.random.default_rng(0).permutation(len(index))  # no order is taken for granted
    index, folds = index[order], folds[order]
    targets, subjects = windows.targets[index], windows.subjects[index]
    empty = np.empty((0, len(index), 1))
    return MemberPredictions([], empty, targets, subjects, folds, index, run.info.metric, run.info.kind)


def rows_of(run, windows):
    """Return the out-of-fold and the held-out score of each baseline, by window."""
    given, held = like(run, windows), run.folds.held_out_index(windows.subjects)
    return {
        baseline.name: (
            score(run.info.metric, given.targets, row.nested),
            score(run.info.metric, windows.targets[held], row.held_out),
        )
        for baseline, row in baseline_rows(run, windows, given).items()
    }


def test_baselines_stand_in_the_answer_with_intervals_and_paired_differences(simulated):
    ensemble = simulated.ensemble(top=2)
    assert [one.name for one in ensemble.baselines] == ["ridge on age alone", *(f"ridge on {x}" for x in FEATURES)]
    assert [one.usable for one in ensemble.baselines] == [False, True, True, True]
    assert list(ensemble.table.index)[-5:] == [*(one.name for one in ensemble.baselines), "training mean"]
    row = ensemble.table.loc["ridge on log-covariance"]
    assert row["nested"] == row["oof"] and row["nested_low"] < row["nested"] < row["nested_high"]
    assert row["to_shipped"] == pytest.approx(row["held_out"] - ensemble.table.at["ensemble", "held_out"])
    assert row["nested_to_shipped"] == pytest.approx(row["nested"] - ensemble.table.at["ensemble", "nested"])
    assert row["nested_to_shipped_low"] < row["nested_to_shipped"] < row["nested_to_shipped_high"]
    assert "98.3 % CI" in ensemble.verdict
    shown = str(result_section(simulated.run, ensemble))
    assert "an interval of 98.3 % there" in shown
    assert "ridge on age alone (no EEG)" in shown and f"{row['nested']:.3f}\n" in shown
    assert f"{ensemble.table.at['ensemble', 'nested']:.3f}" in shown


def test_the_interval_of_the_best_of_three_baselines_is_that_of_one_but_for_its_level(simulated, monkeypatch):
    found = []
    monkeypatch.setattr(fit, "write_verdict", lambda outcome: found.append(outcome) or ("", []))
    simulated.ensemble(top=2)
    monkeypatch.setattr(fit, "level_of_best", lambda choices: 0.95)
    simulated.ensemble(top=2)
    best, one = (outcome.baseline for outcome in found)
    row = found[0].table.loc[one.name]
    assert (one.choices, one.name) == (3, best.name)
    assert list(one.nested[:2]) == pytest.approx(list(row[["nested_to_shipped_low", "nested_to_shipped_high"]]))
    assert best.nested.low < one.nested.low < row["nested_to_shipped"] < one.nested.high < best.nested.high


def test_age_is_no_baseline_of_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "PREDICTORS", {})
    store = WindowStore(write_store(tmp_path / "store", ToyWindows(subjects=8)))
    store.table["age"] = [str(20 + number) for number in range(len(store))]
    run = make_run(tmp_path / "run", store)
    found = {}
    for target in ("participants:age", "participants:score"):
        edit_record(run.folder, "run.json", {"target": target})
        monkeypatch.setattr(baselines, "_KNOWN", OrderedDict())
        found[target] = len(rows_of(RunStore.open(run.folder.where), store))
    assert found == {"participants:age": 0, "participants:score": 1}


def test_the_predictor_without_eeg_is_compared_too(values):
    table = values.ensemble(top=2).table
    assert table["to_shipped"].iloc[-1] == pytest.approx(-table.at["ensemble", "difference"])
    assert table["nested_to_shipped"].iloc[-1] == pytest.approx(-table.at["ensemble", "nested_difference"])


def test_the_best_baseline_is_chosen_out_of_fold_and_is_usable():
    table = pd.DataFrame(
        {"nested": [0.9, 0.7, 0.8, 0.6], "held_out": [0.9, 0.99, 0.5, 0.99]}, index=["age", "a", "b", "ensemble"]
    )
    names = [Baseline(name="age", usable=False), *(Baseline(name=name, usable=True) for name in "ab")]
    assert best_baseline(names, table, "auc") == "b" and best_baseline(names, table, "nrmse") == "a"
    assert best_baseline(names[:1], table, "auc") is None
    assert best_baseline(names, table * np.nan, "auc") is None


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
    rows = rows_of(make_run(tmp_path / "run", windows), windows)
    assert max(rows["ridge on time courses"]) < 0.6
    assert min(rows[f"ridge on {x}"][0] for x in FEATURES[:2]) > 0.8


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
    monkeypatch.setattr(baselines, "_KNOWN", type(baselines._KNOWN)())
    baseline_rows(run, store, like(run, store))
    assert len(seen) == 4 * len(FEATURES)
    assert all(not train & test for train, test in zip(seen, predicted, strict=True))
    assert set.union(*predicted[:4]) == set(toy.subjects)
    search = set(run.folds.fold_of) - set(run.folds.held_out)
    assert sum(train | test == search for train, test in zip(seen[:4], predicted[:4], strict=True)) == 3


def test_a_baseline_is_fitted_on_all_windows_of_both_classes_where_these_alternate(tmp_path, monkeypatch):
    """Every second of more than 6000 windows is of one class."""
    monkeypatch.setattr(baselines, "PREDICTORS", {"band power": baselines.PREDICTORS["band power"]})
    toy = ToyWindows(subjects=10, each=1300, channels=1, classes=True)
    toy.targets = np.tile([0, 1], len(toy) // 2)
    toy.x = np.random.default_rng(0).normal(size=(len(toy), 1, 64)).astype(np.float32)
    toy.x[toy.targets == 1] *= 1.3
    store = WindowStore(write_store(tmp_path / "store", toy))
    run = make_run(tmp_path / "run", store)
    assert all(len(side.train) > 6000 and len(side.train) % 1300 == 0 for side in BaselineData(run, store).sides())
    assert min(rows_of(run, store)["logistic regression on band power"]) > 0.8


def test_a_baseline_of_more_windows_than_features_fit_has_those_that_a_trial_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "PREDICTORS", {"log-covariance": baselines.PREDICTORS["log-covariance"]})
    monkeypatch.setattr(features, "MAX_FEATURE_VALUES", 40 * 4 * 6)  # forty windows: four bands, three channels
    toy = ToyWindows(subjects=9, each=40, classes=True)
    toy.targets = np.tile([0, 1], len(toy) // 2)
    toy.x[toy.targets == 1, 0] *= 2.0
    store = WindowStore(write_store(tmp_path / "store", toy))
    run = make_run(tmp_path / "run", store)
    classes, real = [], closed_form.fit_head
    monkeypatch.setattr(closed_form, "fit_head", lambda x, y, *a, **k: classes.append(y.numpy()) or real(x, y, *a, **k))
    given, steps = like(run, store), []
    (row,) = baseline_rows(run, store, given, lambda *step: steps.append(step)).values()
    assert [len(y) for y in classes] == [40] * 4 and all(10 < y.sum() < 30 for y in classes)
    assert np.isfinite(row.nested).all() and steps == [(1, 1, "baselines fitted")]
    monkeypatch.setattr(baselines, "_KNOWN", OrderedDict())
    (again,) = baseline_rows(run, store, given).values()
    np.testing.assert_array_equal(again.nested, row.nested)


def test_classes_have_logistic_regression(classes):
    rows = rows_of(classes.run, classes.windows)
    assert list(rows) == [f"logistic regression on {x}" for x in FEATURES]
    assert rows["logistic regression on log-covariance"][1] > 0.7, "the bump is there, and the columns are in order"


def test_targets_of_people_are_scored_by_people(repeated):
    table = repeated.ensemble(top=2, method="equal").table
    assert table["nested"].iloc[-1] == table["oof"].iloc[-1] == constant_baseline(repeated.run, repeated.windows)
    scores = table.loc["logistic regression on log-covariance", ["held_out", "window_held_out"]]
    assert scores.notna().all()
    held = repeated.run.folds.held_out_index(repeated.windows.subjects)
    pairs = np.prod([(repeated.windows.targets[held] == label).sum() // 4 for label in (0, 1)])
    assert pairs > 1 and (2 * pairs * scores["held_out"]) % 1 == pytest.approx(0.0, abs=1e-9), "pairs of people"


def test_baselines_predict_all_repeats_of_the_folds(repeated):
    run, windows = repeated.run, repeated.windows
    *folds, last = BaselineData(run, windows).sides()
    assert [side.fold for side in folds] == list(range(6)) and last.fold == -1
    given = like(run, windows)
    for row in baseline_rows(run, windows, given).values():
        assert row.nested.shape == (len(given.windows), 2) and np.isfinite(row.nested).all()
