"""Comparison of runs: pairing, intervals, and warnings where data or folds differ."""

from __future__ import annotations

import dataclasses
import io
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from raypipe.cli import app
from raypipe.core.bootstrap import bootstrap_difference
from raypipe.core.errors import UserError
from raypipe.core.metrics import score
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.fit import fit_ensemble
from raypipe.ensembles.fitted import Ensemble
from raypipe.ensembles.scores import EvaluationSet
from raypipe.reporting.compare import BEST_TRIAL, ENSEMBLE_HELD_OUT, ENSEMBLE_OOF, compare_runs
from raypipe.reporting.compare_outer import compare_outer
from raypipe.reporting.pairing import PairedDifference, Predictions, paired_difference
from raypipe.reporting.tables import _difference_lines, show_comparison
from raypipe.storage.out_of_fold import OutOfFold
from raypipe.storage.records import Epoch, TrialResult
from raypipe.storage.run_store import RunStore
from raypipe.trial.local import run_trial
from tests.support.records import edit_record
from tests.support.toys import ToyWindows, make_run, tiny, write_store


def finished_run(where, store, sd, *, seed=0, lr=3e-3, draw=1):
    """Return a run with one trial that predicts the targets with errors of SD `sd`; nothing is trained."""
    windows = WindowStore(store)
    made = make_run(where, windows, seed=seed)
    edit_record(made.folder, "run.json", {"data": str(store)})
    run = RunStore.open(where)
    index = run.folds.search_index(windows.subjects)
    errors = sd * np.random.default_rng(draw).normal(size=len(index))
    predictions = (windows.targets[index] + errors).astype(np.float32)[:, None]
    files = run.write_oof(0, OutOfFold(index, run.folds.folds(windows.subjects)[index], predictions))
    value = score("nrmse", windows.targets[index], predictions)
    run.add_trial(0, tiny(optim__lr=lr))
    run.write_history(
        0, [Epoch(epoch=1, passes=1, score=value, fold_scores=[value] * 3, losses=[1.0], seconds=30.0, finished=0.0)]
    )
    end = {"best_epoch": 1, "epochs": 1, "seconds": 30.0, "reason": "toy", "finished": 0.0}
    run.write_result(TrialResult(number=0, state="complete", score=value, files=files, **end))
    return run


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("compare") / "store", ToyWindows(subjects=24, each=5))


def test_a_run_against_itself_differs_by_nothing(store, tmp_path):
    run = finished_run(tmp_path / "a", store, 0.5)
    found = compare_runs([run, run])
    ((only,),) = found.differences
    assert (only.predictor, only.difference, only.low, only.high, only.mismatched) == (BEST_TRIAL, 0.0, 0.0, 0.0, 0)
    assert only.describe("nrmse") == "no detectable difference (95 % CI includes 0)"
    assert all(condition.same for condition in found.conditions[0]) and len(found.parameters) == 0
    assert [condition.text.split(":")[0] for condition in found.conditions[0]] == [
        "same data", "same fold map", "same search space",
    ]  # fmt: skip


def test_the_difference_and_its_interval_are_those_of_paired_predictions(store, tmp_path):
    a, b = finished_run(tmp_path / "a", store, 0.8), finished_run(tmp_path / "b", store, 0.3, lr=1e-2)
    found = compare_runs([a, b])
    ((pair,),) = found.differences
    windows = WindowStore(store)
    index = a.oof(0).windows
    y, one, two = windows.targets[index], a.oof(0).predictions, b.oof(0).predictions
    # Windows are paired by name, so they stand in another order; the bootstrap draws subjects, which do not change.
    expected = bootstrap_difference("nrmse", y, two, one, windows.subjects[index], cross_validated=True)
    assert pair.difference == pytest.approx(score("nrmse", y, two) - score("nrmse", y, one))
    assert (pair.low, pair.high) == pytest.approx((expected.low, expected.high))
    assert (pair.windows, pair.subjects) == (len(index), len(set(windows.subjects[index])))
    assert pair.describe("nrmse") == "better"
    assert compare_runs([b, a]).differences[0][0].describe("nrmse") == "worse"
    assert found.parameters.loc["optim/lr"].tolist() == [3e-3, 1e-2] and len(found.parameters) == 1
    assert found.cost["worker_seconds"].tolist() == [30.0, 30.0]
    console = Console(file=io.StringIO(), width=160)
    show_comparison(console, found)
    said = console.file.getvalue()
    assert "  compute  " in said and "wall-clock" in said and "best trial" in said and "seconds" not in said


def test_runs_are_named_by_the_ends_of_their_paths_that_differ(store, tmp_path):
    """As paths of whole machines, both were `/tmp/pyt...` in a terminal."""
    runs = [finished_run(tmp_path / name / "my_run", store, 0.5, lr=lr) for name, lr in (("a", 3e-3), ("b", 1e-2))]
    found = compare_runs(runs)
    assert found.runs == ["a/my_run", "b/my_run"]
    console = Console(file=io.StringIO(), width=80)
    show_comparison(console, found)
    said = console.file.getvalue()
    assert "b/my_run against a/my_run" in said and "…" not in said
    assert re.search(r"^ +a/my_run +b/my_run", said, re.MULTILINE), (
        "a run's name is shown as it is, with its underscore"
    )
    assert re.search(r"^ a/my_run .* 30 s ", said, re.MULTILINE)
    twice = compare_runs([runs[0], runs[0]])
    assert twice.runs == [runs[0].where] * 2
    show_comparison(Console(file=(output := io.StringIO()), width=60), twice)
    assert "…" not in output.getvalue()


def test_other_folds_are_a_warning_and_only_subjects_that_both_predict_are_paired(store, tmp_path):
    a, b = finished_run(tmp_path / "a", store, 0.5), finished_run(tmp_path / "b", store, 0.5, seed=3)
    found = compare_runs([a, b])
    warnings = [condition.text for condition in found.conditions[0] if not condition.same]
    assert [text.split(":")[0] for text in warnings] == ["DIFFERENT FOLDS", "DIFFERENT HELD-OUT SUBJECTS"]
    both = {name for name, fold in a.folds.fold_of.items() if fold >= 0 and b.folds.fold_of[name] >= 0}
    assert found.differences[0][0].subjects == len(both) < 24 - len(a.folds.held_out)


def test_scores_of_runs_with_other_folds_are_those_of_status(repeated, tmp_path):
    """AUC is within folds: of pairs that share a fold in both runs, either run would have another score."""
    runs = []
    for n_folds in (3, 4):
        run = make_run(tmp_path / str(n_folds), repeated.windows, n_folds=n_folds, data=str(repeated.windows.where))
        run.add_trial(0, tiny(epochs=1))
        run_trial(run, repeated.windows, 0)
        fit_ensemble(run, windows=repeated.windows, method="best").save()
        runs.append(run)
    found = compare_runs(runs)
    assert [condition.same for condition in found.conditions[0]][:2] == [True, False]
    best, ensemble, _ = found.differences[0]
    assert best.scores == pytest.approx([run.ranked()[0].score for run in runs])
    assert ensemble.scores == pytest.approx([Ensemble.load(run).table.loc["ensemble", "oof"] for run in runs])


def test_other_data_is_paired_where_windows_are_the_same(store, tmp_path):
    louder = ToyWindows(subjects=24, each=5)
    louder.x = louder.x * 2
    louder.targets = louder.targets.copy()
    a = finished_run(tmp_path / "a", store, 0.5)
    louder.targets[int(a.oof(0).windows[0])] += 0.001  # folds are stratified by target, and stay as they are
    other = write_store(tmp_path / "louder", louder)
    found = compare_runs([a, finished_run(tmp_path / "b", other, 0.5)])
    assert found.conditions[0][0].text.startswith("DIFFERENT DATA: 120 and 120 windows, 120 at the same onset")
    ((pair,),) = found.differences
    assert (pair.mismatched, pair.windows) == (1, len(a.oof(0).windows) - 1)


def test_a_target_of_the_subject_is_compared_by_subject(tmp_path):
    runs = []
    for name, each in (("long", 3), ("short", 6)):
        toy = ToyWindows(subjects=24, each=each)
        level = {name: float(k % 7) for k, name in enumerate(sorted(set(toy.subjects)))}
        toy.targets = np.array([level[name] for name in toy.subjects], np.float32)
        runs.append(finished_run(tmp_path / name, write_store(tmp_path / f"{name}-store", toy), 0.5))
    ((pair,),) = compare_runs(runs).differences
    people = {name for name, fold in runs[0].folds.fold_of.items() if fold >= 0 and runs[1].folds.fold_of[name] >= 0}
    assert (pair.windows, pair.subjects, pair.mismatched) == (0, len(people), 0)


def test_runs_without_common_subjects_have_no_differences(store, tmp_path):
    toy = ToyWindows(subjects=24, each=5)
    toy.x = -toy.x
    toy.subjects = np.array([f"other{name}" for name in toy.subjects])
    other = finished_run(tmp_path / "b", write_store(tmp_path / "s", toy), 0.5)
    assert compare_runs([finished_run(tmp_path / "a", store, 0.5), other]).differences == [[]]


def test_runs_that_cannot_be_compared_are_refused(store, tmp_path):
    a = finished_run(tmp_path / "a", store, 0.5)
    with pytest.raises(UserError, match="two runs or more"):
        compare_runs([a])
    with pytest.raises(UserError, match="no trial is complete"):
        compare_runs([a, make_run(tmp_path / "empty", WindowStore(store))])
    with pytest.raises(UserError, match="cannot be compared: toy is scored by nrmse and toy by auc"):
        compare_runs([a, make_run(tmp_path / "classes", ToyWindows(classes=True))])


def test_windows_that_were_prepared_again_are_not_used(store, tmp_path):
    mine = shutil.copytree(store, tmp_path / "store")
    a, b = finished_run(tmp_path / "a", mine, 0.5), finished_run(tmp_path / "b", store, 0.5)
    shutil.rmtree(mine)
    assert compare_runs([a, b]).differences[0][0].subjects, "the other run's store holds the same windows"
    write_store(mine, ToyWindows(subjects=8))
    with pytest.raises(UserError, match="prepared again since"):
        compare_runs([a, a])


def test_ensembles_are_compared_on_held_out_subjects(values, tmp_path, capsys):
    places = [shutil.copytree(values.run.local, tmp_path / name) for name in ("one", "two")]
    for place, method in zip(places, ("equal", "confidence"), strict=True):
        fit_ensemble(RunStore.open(place), windows=values.windows, method=method).save()
    found = compare_runs([RunStore.open(place) for place in places])
    assert [pair.predictor for pair in found.differences[0]] == [BEST_TRIAL, ENSEMBLE_OOF, ENSEMBLE_HELD_OUT]
    held = found.differences[0][2]
    assert held.subjects == len(values.run.folds.held_out)
    table = Ensemble.load(RunStore.open(places[0])).table
    assert held.scores[0] == pytest.approx(table.loc["ensemble", "held_out"], abs=1e-5)
    assert found.differences[0][1].scores[0] == pytest.approx(table.loc["ensemble", "oof"], abs=1e-5)
    with pytest.raises(SystemExit) as end:
        app.main(["compare", *map(str, places)])
    out = capsys.readouterr().out
    assert end.value.code == 0 and "two against one" in out and "same data" in out and ENSEMBLE_HELD_OUT in out


def test_held_out_classes_are_decided_by_each_ensembles_weights(decided, tmp_path):
    other = shutil.copytree(decided, tmp_path / "other")
    *_, found = compare_runs([RunStore.open(decided), RunStore.open(other)]).differences[0]
    table = Ensemble.load(RunStore.open(decided)).table
    assert found.predictor == ENSEMBLE_HELD_OUT and found.difference == 0
    assert found.scores[0] == pytest.approx(table.loc["ensemble", "held_out"])


@pytest.mark.parametrize("metric", ["balanced-accuracy", "log-loss", "auc"])
def test_out_of_fold_best_trial_and_ensemble_follow_the_rule_of_nested_scores(decided, classes, tmp_path, metric):
    """Of one trial with one epoch, where nothing else is chosen, both have the nested score of the ensemble's table."""
    run = make_run(tmp_path / "one", classes.windows, data=str(classes.windows.where))
    run.add_trial(0, tiny(epochs=1, optim__lr=1e-4))
    run_trial(run, classes.windows, 0)
    edit_record(run.folder, "run.json", {"metric": metric})
    run = RunStore.open(run.where)
    fit_ensemble(run, windows=classes.windows, method="best").save()
    found = compare_runs([run, run])
    best, ensemble, _ = found.differences[0]
    assert (best.predictor, ensemble.predictor) == (BEST_TRIAL, ENSEMBLE_OOF)
    table = Ensemble.load(run).table
    assert best.scores == ensemble.scores == pytest.approx([table.loc["best single trial", "nested"]] * 2)
    naive = table.loc["best single trial", "oof"]
    assert (best.scores[0] == pytest.approx(naive)) == (metric == "auc"), "its weights were fitted on these people"
    assert [note.split(",")[0] for note in found.notes] == [
        "Out-of-fold scores of best trials are optimistic",
        *(["Out of fold"] if metric != "auc" else []),
    ]


def test_decisions_are_made_after_the_mean_of_each_subject():
    subjects, targets = np.repeat(["a", "b", "c"], 2), np.repeat([0, 1, 1], 2)
    p_N = np.array([0.1, 0.3, 0.2, 0.5, 0.9, 0.1])
    side = EvaluationSet(targets, subjects, np.zeros(6, int))
    weights_NK = np.tile([0.3, 0.7], (6, 1))
    known = Predictions(np.array(list("uvwxyz")), side, np.stack([1 - p_N, p_N], 1), "person", weights_NK)
    plain = dataclasses.replace(known, weights=None)
    found = paired_difference("toy", "accuracy", plain, known)
    assert found.scores == (pytest.approx(1 / 3), 1.0), "means .2, .35 and .5: the threshold is .3, and not .5"


def test_the_level_is_that_of_the_runs():
    """Few held-out people may happen to have one class each, where the others have both."""
    subjects, targets = np.repeat(["a", "b", "c"], 2), np.repeat([0, 1, 1], 2)
    side = EvaluationSet(targets, subjects, np.zeros(6, int))
    p_N = np.array([0.1, 0.3, 0.2, 0.5, 0.9, 0.1])
    known = Predictions(np.array(list("uvwxyz")), side, np.stack([1 - p_N, p_N], 1), level="window")
    assert paired_difference("toy", "log-loss", known, known).windows == 6
    by_person = dataclasses.replace(known, level="person")
    assert paired_difference("toy", "log-loss", by_person, by_person).windows == 0


def test_repeats_of_folds_are_paired_with_those_of_the_other_run(repeated, store, tmp_path):
    runs = [RunStore.open(shutil.copytree(repeated.run.local, tmp_path / name)) for name in ("a", "b")]
    ((only, *_),) = compare_runs(runs).differences
    assert (only.difference, only.windows, only.mismatched) == (0.0, 0, 0)
    assert only.subjects == 24 - len(runs[0].folds.held_out)
    assert "3 folds in 2 repeats" in compare_runs(runs).conditions[0][1].text
    assert only.scores[0] == pytest.approx(runs[0].ranked()[0].score)
    once = make_run(tmp_path / "once", repeated.windows, data=str(repeated.windows.where))
    once.add_trial(0, tiny(epochs=1))
    run_trial(once, repeated.windows, 0)
    found = compare_runs([runs[0], once])
    assert found.conditions[0][1].text.endswith("; the scores out of fold are over all repeats of each")
    assert found.differences[0][0].subjects == only.subjects
    assert found.differences[0][0].scores == pytest.approx([run.ranked()[0].score for run in (runs[0], once)])


def test_the_interval_of_a_difference_has_its_digits():
    pair = PairedDifference(BEST_TRIAL, (0.8, 0.8004), 0.0004, 0.0001, 0.0008, 8, 8, 0, 0, (8, 8), (0, 0))
    ((line, _),) = _difference_lines([pair], "auc")
    assert "difference +0.0004 (95 % interval +0.0001 to +0.0008;" in line


@pytest.mark.parametrize(("units", "said"), [(5, "fewer than 6 subjects in both"), (8, "the interval is undefined")])
def test_a_difference_without_an_interval_says_so(units, said):
    pair = PairedDifference(BEST_TRIAL, (0.8, 0.9), 0.1, np.nan, np.nan, units, units, 0, 0, (units, units), (0, 0))
    ((line, _),) = _difference_lines([pair], "auc")
    assert "difference +0.1000 (no interval;" in line and "nan" not in line
    assert line.endswith(f"not compared: {said}")


def test_outer_cross_validations_of_other_values_are_refused():
    known = SimpleNamespace(metric="nrmse", classes=[])
    parts = {name: [SimpleNamespace(info=SimpleNamespace(outputs=[name]))] for name in "ab"}
    runs = [SimpleNamespace(where=name, info=known, runs=parts[name]) for name in "ab"]
    with pytest.raises(UserError, match="a and b cannot be compared: their metrics, classes or values differ"):
        compare_outer(runs)
