from __future__ import annotations

import io
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
import torch
from rich.console import Console

from raypipe.core.bootstrap import MIN_SUBJECTS, bootstrap_subjects
from raypipe.core.errors import UserError
from raypipe.core.folds import LeakError
from raypipe.core.levels import mean_per_person
from raypipe.core.metrics import METRICS, score
from raypipe.ensembles.fit import _held_out_record, fit_ensemble
from raypipe.ensembles.fitted import Ensemble
from raypipe.ensembles.held_out import HeldOutPredictions
from raypipe.ensembles.inference import weighted_mean
from raypipe.ensembles.labels import metric_label
from raypipe.ensembles.members import CPU, build_module, read_members
from raypipe.ensembles.oof import read_oof_predictions, subject_splits
from raypipe.ensembles.scores import EvaluationSet, RowPredictions, Scoring
from raypipe.ensembles.weights import confidence_weights
from raypipe.packaging.bundle import export_bundle
from raypipe.packaging.submission import export_submission
from raypipe.reporting.compare import compare_runs
from raypipe.reporting.report import render_report
from raypipe.storage.out_of_fold import OutOfFold
from raypipe.storage.run_store import RunStore
from raypipe.training.device import default_training_device
from raypipe.training.loader import WindowLoader
from raypipe.trial.evaluator import finish_trial
from tests.support.faults import flip
from tests.support.toys import ToyWindows, fold_trainer, make_run, tiny, write_store
from tests.unit.conftest import finish


def test_scores_are_those_of_the_weighted_means(values):
    ensemble = values.ensemble(top=3)
    run, windows = values.run, values.windows
    assert ensemble.trials == [result.number for result in run.ranked()]
    oof = [run.oof(number) for number in ensemble.trials]
    y = windows.targets[oof[0].windows]
    expected = confidence_weights([o.predictions for o in oof], y, "regression")
    np.testing.assert_allclose(ensemble.weights, expected)
    table = ensemble.table
    assert table.loc["ensemble", "oof"] == pytest.approx(
        score("nrmse", y, weighted_mean([o.predictions for o in oof], expected))
    )
    assert table.loc["best single trial", "oof"] == pytest.approx(run.ranked()[0].score)
    held = ensemble.held_out
    assert set(held.subjects) == set(run.folds.held_out)
    np.testing.assert_array_equal(held.targets, windows.targets[held.windows])
    np.testing.assert_allclose(held.predictions, weighted_mean(held.trials, ensemble.weights), rtol=1e-6)
    assert table.loc["ensemble", "held_out"] == pytest.approx(score("nrmse", held.targets, held.predictions))
    assert table.loc["training mean", "held_out"] >= 1.0
    assert list(table.index) == [
        *("ensemble", "equal weights", "best single trial", "ridge on band power", "training mean")
    ]
    assert (table.low <= table.held_out).all() and (table.held_out <= table.high).all()


def test_all_networks_are_run_on_the_device_that_is_named(values, monkeypatch):
    """Networks of members and of the student: with a name that the modules' builder sees."""
    named, seen = torch.device("cuda"), []

    def build(spec, state, device):
        seen.append(device)
        return build_module(spec, state)

    monkeypatch.setattr("raypipe.ensembles.fit.parse_device", lambda name: named if name == "cuda" else CPU)
    monkeypatch.setattr("raypipe.ensembles.held_out.build_module", build)

    def loader(windows, device, **options):
        seen.append(device)
        return WindowLoader(windows, **options)

    monkeypatch.setattr("raypipe.ensembles.distillation.WindowLoader", loader)
    for device, expected in ((None, {CPU, default_training_device()}), ("cpu", {CPU}), ("cuda", {named})):
        seen.clear()
        values.ensemble(top=2, method="equal", distilled=True, device=device)
        assert set(seen) == expected


def test_a_device_that_is_not_here_is_one_line(values, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"^--device cuda: torch .*; use --device cpu$"):
        values.ensemble(device="cuda")


def test_held_out_predictions_are_means_of_the_fold_models(classes):

    ensemble = classes.ensemble(top=2)
    run, windows = classes.run, classes.windows
    for place, number in enumerate(ensemble.trials):
        answers = []
        for fold in range(run.folds.n_folds):
            trainer = fold_trainer(run.config(number), windows, *run.folds.split(windows.subjects, fold), fold=fold)
            weights = run.weights(number, fold)
            trainer.model.load_state_dict({n[6:]: t for n, t in weights.items() if n.startswith("model.")})
            answers.append(trainer.predict(ensemble.held_out.windows))
        np.testing.assert_allclose(ensemble.held_out.trials[place], np.mean(answers, axis=0), atol=1e-6)
    np.testing.assert_allclose(ensemble.held_out.predictions.sum(axis=1), 1.0, atol=1e-6)


def test_bad_input(classes, tmp_path):
    with pytest.raises(UserError, match="did you mean 'confidence'"):
        classes.ensemble(method="confidenc")
    with pytest.raises(UserError, match="at least one"):
        classes.ensemble(top=0)
    with pytest.raises(UserError, match="not the windows"):
        fit_ensemble(classes.run, windows=ToyWindows())
    toy = ToyWindows()
    run = make_run(tmp_path / "run", toy)
    with pytest.raises(UserError, match=r"0 started.*raypipe resume"):
        fit_ensemble(run, windows=toy)
    run.add_trial(0, tiny())
    finish_trial(run, toy, 0, "failed", "died", "error")
    with pytest.raises(UserError, match=r"1 started, 1 failed, 0 were pruned.*raypipe status"):
        fit_ensemble(run, windows=toy)


@pytest.mark.parametrize("tamper", ["fold", "held-out window", "not finite"])
def test_out_of_fold_predictions_are_audited(classes, tmp_path, tamper):
    run = RunStore.open(shutil.copytree(classes.run.local, tmp_path / "run"))
    number = run.ranked()[0].number
    oof = run.oof(number)
    windows, folds, predictions = oof.windows.copy(), oof.folds.copy(), oof.predictions.copy()
    if tamper == "fold":
        folds[0] = (folds[0] + 1) % run.folds.n_folds
    elif tamper == "held-out window":
        windows[-1] = run.folds.held_out_index(classes.windows.subjects)[0]
    else:
        predictions[3] = np.nan
    left = run.write_oof(number, OutOfFold(windows, folds, predictions))
    run.write_result(run.result(number).model_copy(update={"files": left}))  # a trial that left just these
    with pytest.raises(UserError if tamper == "not finite" else LeakError, match=f"trial {number}"):
        fit_ensemble(run, windows=classes.windows)


def test_damaged_members_are_named_and_not_shipped(classes, tmp_path):
    run = RunStore.open(shutil.copytree(classes.run.local, tmp_path / "run"))
    fitted = fit_ensemble(run, top=1, windows=classes.windows)
    fitted.save()
    (number,) = fitted.trials
    trial = run.local / f"trials/{number:04d}"
    (trial / "fold-1.safetensors").unlink()
    flip(trial / "oof.npz", 0.9)
    attempts = [
        lambda: fit_ensemble(run, windows=classes.windows),
        lambda: export_bundle(run, fitted, tmp_path / "bundle", windows=classes.windows),
        lambda: export_submission({1: fitted}, tmp_path / "out.zip", windows={1: classes.windows}),
    ]
    for attempt in attempts:
        with pytest.raises(UserError, match=rf"2 files .*{number:04d}/fold-1.safetensors.*{number:04d}/oof.npz"):
            attempt()
    assert not (tmp_path / "bundle").exists() and not (tmp_path / "out.zip").exists()


@pytest.mark.parametrize(
    "metric", ["f1", "mae", *(pytest.param(metric, marks=pytest.mark.long) for metric in ("log-loss", "pearson"))]
)
def test_trials_and_ensembles_of_a_run_are_scored_by_its_metric(tmp_path, metric):
    """Trials are ranked in the right direction, rows are scored by scikit-learn's metric, and the report is written."""
    known = METRICS[metric]
    toy = ToyWindows(subjects=24, each=6, classes=known.kind == "classification")
    target = "events:off,on" if toy.classes else "latency:bump"
    store = write_store(tmp_path / "store", toy)
    made = finish(tmp_path, store, target=target, epochs=2, metric=metric, direction=known.direction)
    scores = [result.score for result in made.run.ranked()]
    assert scores == sorted(scores, reverse=known.direction == "maximize") and len(set(scores)) > 1
    for number in (0, 1, 2):
        assert made.run.result(number).score == min((e.score for e in made.run.history(number)), key=known.sign.__mul__)
    ensemble = made.ensemble(method="auto")
    held = ensemble.held_out
    if metric == "f1":
        expected = sklearn.metrics.f1_score(held.targets, held.predictions[:, 1] > ensemble.threshold)
    elif metric == "log-loss":
        expected = sklearn.metrics.log_loss(held.targets, held.predictions)
    elif metric == "mae":
        expected = sklearn.metrics.mean_absolute_error(held.targets, held.predictions[:, 0])
    else:
        expected = np.corrcoef(held.targets, held.predictions[:, 0])[0, 1]
    assert ensemble.table.loc["ensemble", "held_out"] == pytest.approx(expected, rel=1e-5)
    row = ensemble.table.iloc[0]
    assert known.limits[0] <= row["nested_low"] <= row["nested"] <= row["nested_high"] <= known.limits[1]
    ensemble.save()
    assert metric_label(metric) in render_report(made.run) and metric_label(metric) in ensemble.verdict


def test_folds_that_are_repeated_give_members_more_networks_and_scores_more_rows(repeated):
    run, windows = repeated.run, repeated.windows
    ensemble = repeated.ensemble(method="equal", top=2)
    members = read_oof_predictions(run, ensemble.members, windows.subjects, windows.targets)
    assert len(members.targets) == 2 * len(run.folds.search_index(windows.subjects))
    for fit_N, test_N in subject_splits(members, 4):  # a person is on one side with the predictions of all repeats
        assert not set(members.subjects[fit_N]) & set(members.subjects[test_N])
    equal = weighted_mean(members.predictions, ensemble.weights)
    scores = []  # of one mean prediction per person, in each fold
    for fold in range(6):
        of = members.folds == fold
        first = np.unique(members.subjects[of], return_index=True)[1]
        y, p = members.targets[of][first], mean_per_person(members.subjects[of], equal[of])
        scores.append((score("auc", y, p), (y == 0).sum() * (y == 1).sum()))
    expected = np.average([value for value, _ in scores], weights=[pairs for _, pairs in scores])
    assert ensemble.table.at["ensemble", "oof"] == pytest.approx(expected)
    assert np.isfinite(ensemble.table.loc["ensemble", ["nested", "nested_low", "nested_high", "held_out"]]).all()
    assert ensemble.table.at["prior baseline", "oof"] == 0.5
    module = build_module(*read_members(run, windows, ensemble.members, ensemble.weights.tolist()))
    assert len(module.members) == 2 * 6  # trials by folds of both repeats


def test_a_student_of_repeated_folds_learns_each_window_once(repeated, monkeypatch):
    seen = {}

    def distill(run, windows, like, index, predictions, progress, **options):
        seen.update(index=index, predictions=predictions)
        raise UserError("enough")

    monkeypatch.setattr("raypipe.ensembles.fit.distill", distill)
    with pytest.raises(UserError, match="enough"):
        repeated.ensemble(method="equal", top=2, distilled=True)
    np.testing.assert_array_equal(seen["index"], repeated.run.folds.search_index(repeated.windows.subjects))
    np.testing.assert_allclose(seen["predictions"].sum(axis=1), 1.0)


def test_all_methods_and_soups_take_repeated_folds(repeated, tmp_path):
    run = RunStore.open(shutil.copytree(repeated.run.local, tmp_path / "run"))
    fitted = fit_ensemble(run, windows=repeated.windows, method="all", distilled=True)
    assert np.isfinite(fitted.table["held_out"]).all()
    fitted.save()
    html = render_report(run)
    assert "2 repeats" in html and "could not be drawn" not in html


def test_groups_of_subjects_are_what_intervals_resample(tmp_path):
    toy = ToyWindows(subjects=72, each=4)
    family = {name: f"family {k // 2}" for k, name in enumerate(sorted(set(toy.subjects)))}
    made = finish(tmp_path, write_store(tmp_path / "store", toy), epochs=1, group_of=family)
    ensemble = made.ensemble(top=2, method="equal")
    held = ensemble.held_out
    assert [family[name] for name in held.subjects] == held.groups.tolist()
    people, families = len(set(held.subjects)), len(set(held.groups))
    first = ensemble.table.iloc[0]
    assert (first["subjects"], first["units"]) == (people, families) == (2 * families, families)
    expected = bootstrap_subjects("nrmse", held.targets, held.predictions, held.groups)
    assert families >= MIN_SUBJECTS and (first["low"], first["high"]) == pytest.approx(expected[:2])
    ensemble.save()
    again = Ensemble.load(made.run)
    assert again.table.at["ensemble", "units"] == families and again.held_out.groups.tolist() == held.groups.tolist()
    assert f"bootstrap over {families} groups of subjects" in render_report(made.run)
    console = Console(file=io.StringIO(), width=80)
    console.print(again.render())
    assert f"over {families} groups of subjects" in " ".join(console.file.getvalue().split())
    pair = compare_runs([made.run, made.run]).differences[0][0]
    assert (pair.subjects, pair.units) == (72 - people, 36 - families)


@pytest.mark.parametrize(("by_subject", "most"), [(True, 0), (False, 1)], ids=["people", "windows"])
def test_the_constant_without_eeg_is_of_people_where_targets_are_theirs(by_subject, most):
    """Most people are of the first class, most windows of the second."""
    classes, subjects = np.repeat([0, 0, 0, 1, 1], [1, 1, 1, 9, 9]), np.repeat(list("abcde"), [1, 1, 1, 9, 9])
    windows = EvaluationSet(classes, subjects, np.zeros(21))
    given = SimpleNamespace(
        run=SimpleNamespace(folds=SimpleNamespace(held_out_index=lambda subjects: np.arange(len(subjects)))),
        windows=SimpleNamespace(subjects=subjects),
        scoring=Scoring("accuracy", "classification", 2, "person" if by_subject else "window"),
        search=windows,
        held_out=windows,
    )
    rows = {"ensemble": RowPredictions(np.ones((21, 2)) / 2)}
    predictions = HeldOutPredictions(np.ones((1, 2, 21, 2)) / 2, None, {}, None)
    shipped = SimpleNamespace(indices=[0])
    table = pd.DataFrame(columns=["held_out", *["window_held_out"] * by_subject])
    found = _held_out_record(given, rows, predictions, shipped, [], table)
    assert found.constant.argmax() == most
