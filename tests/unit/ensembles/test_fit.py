from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from raypipe.core.errors import UserError
from raypipe.core.folds import LeakError
from raypipe.core.metrics import Interval, score
from raypipe.ensembles.fit import LOOKS, Ensemble, fit_ensemble
from raypipe.ensembles.fitted import RECORD
from raypipe.ensembles.inference import mix
from raypipe.ensembles.scores import Side, score_table, target_per_subject
from raypipe.ensembles.verdict import finding, oof_note, predicted, unit, write_verdict
from raypipe.ensembles.weights import METHODS, squared_error
from raypipe.packaging.bundle import export_bundle
from raypipe.packaging.submission import export_submission
from raypipe.storage.out_of_fold import OutOfFold
from raypipe.storage.run_store import RunStore
from raypipe.trial.evaluator import finish_trial
from tests.support.faults import flip, truncate
from tests.support.toys import ToyWindows, make_run, tiny

numbers = st.floats(-1e3, 1e3, width=32)


@settings(deadline=None)
@given(
    arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9), st.just(1)), elements=numbers),
    st.sampled_from(sorted(METHODS)),
)
def test_weights_are_shares_of_one(oof_TN1, method):
    y = np.linspace(-1, 1, oof_TN1.shape[1])
    weights = METHODS[method](list(oof_TN1), y, "regression")
    assert weights.shape == (len(oof_TN1),)
    assert np.all(weights >= 0) and np.isclose(weights.sum(), 1.0)


@settings(deadline=None)
@given(arrays(np.float32, (7, 2), elements=numbers), st.integers(1, 5), st.sampled_from(sorted(METHODS)))
def test_an_ensemble_of_equals_is_its_member(member_NO, count, method):
    weights = METHODS[method]([member_NO] * count, np.zeros(7, dtype=int), "classification")
    np.testing.assert_allclose(mix([member_NO] * count, weights), member_NO, rtol=1e-6, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.1, 10.0), min_size=2, max_size=4), st.integers(0, 2**31))
def test_confidence_reaches_the_optimum_for_independent_errors(spreads, seed):
    rng = np.random.default_rng(seed)
    n = 4096
    # Exactly uncorrelated errors of exactly these sizes, so that the optimum is exact: 1 / sum(1 / s^2).
    errors_NT = np.linalg.qr(rng.normal(size=(n, len(spreads))))[0] * np.sqrt(n) * np.array(spreads)
    y = rng.normal(size=n)
    oof = [(y + e)[:, None] for e in errors_NT.T]
    weights = METHODS["confidence"](oof, y, "regression")
    optimum = 1.0 / np.sum(np.array(spreads) ** -2.0)
    assert squared_error(mix(oof, weights), y, "regression") == pytest.approx(optimum, rel=1e-6)
    for _ in range(5):
        other = rng.dirichlet(np.ones(len(spreads)))
        assert squared_error(mix(oof, other), y, "regression") >= optimum * (1 - 1e-9)


def test_weights_of_hand_made_predictions():
    y = np.array([0.0, 1.0, 2.0, 3.0])
    near, far = (y + 1)[:, None], (y - 2)[:, None]  # mean squared errors 1 and 4
    # Two shares of the near one and one of the far one cancel their errors: the power 1/2 finds that.
    np.testing.assert_allclose(METHODS["confidence"]([near, far], y, "regression"), [2 / 3, 1 / 3])
    np.testing.assert_array_equal(METHODS["confidence"]([y[:, None], far], y, "regression"), [1, 0])
    np.testing.assert_array_equal(METHODS["best"]([far, near], y, "regression"), [1, 0])
    sure, unsure = np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]])
    assert squared_error(unsure, np.array([0]), "classification") == 0.5
    np.testing.assert_array_equal(METHODS["confidence"]([unsure, sure], np.array([0]), "classification"), [0, 1])


def test_confidence_keeps_a_weak_trial_from_spoiling_the_mean():
    rng = np.random.default_rng(0)
    y = rng.normal(size=500)
    shared = 0.2 * rng.normal(size=500)
    strong = [(y + shared + 0.05 * rng.normal(size=500))[:, None] for _ in range(2)]
    weak = (y + shared + 0.6 * rng.normal(size=500))[:, None]
    weights = METHODS["confidence"]([*strong, weak], y, "regression")
    best = min(squared_error(one, y, "regression") for one in strong)
    assert squared_error(mix([*strong, weak], weights), y, "regression") < best
    assert (
        squared_error(mix([*strong, weak], METHODS["equal"]([*strong, weak], y, "regression")), y, "regression") > best
    )


def test_scores_are_those_of_the_weighted_means(values):
    ensemble = values.ensemble(top=3)
    run, windows = values.run, values.windows
    assert ensemble.trials == [result.number for result in run.ranked()]
    oof = [run.oof(number) for number in ensemble.trials]
    y = windows.targets[oof[0].windows]
    expected = METHODS["confidence"]([o.predictions for o in oof], y, "regression")
    np.testing.assert_allclose(ensemble.weights, expected)
    table = ensemble.table
    assert table.loc["ensemble", "oof"] == pytest.approx(score("nrmse", y, mix([o.predictions for o in oof], expected)))
    assert table.loc["best single trial", "oof"] == pytest.approx(run.ranked()[0].score)
    held = ensemble.held_out
    assert set(held.subjects) == set(run.folds.held_out)
    np.testing.assert_array_equal(held.targets, windows.targets[held.windows])
    np.testing.assert_allclose(held.predictions, mix(held.trials, ensemble.weights), rtol=1e-6)
    assert table.loc["ensemble", "held_out"] == pytest.approx(score("nrmse", held.targets, held.predictions))
    assert table.loc["training mean", "held_out"] >= 1.0
    assert list(table.index) == ["ensemble", "equal weights", "best single trial", "training mean"]
    assert (table.low <= table.held_out).all() and (table.held_out <= table.high).all()


def test_held_out_predictions_are_means_of_the_fold_models(classes):
    from raypipe.training.trainer import FoldTrainer

    ensemble = classes.ensemble(top=2)
    run, windows = classes.run, classes.windows
    for place, number in enumerate(ensemble.trials):
        answers = []
        for fold in range(run.folds.n_folds):
            trainer = FoldTrainer(run.config(number), windows, *run.folds.split(windows.subjects, fold), fold=fold)
            weights = run.weights(number, fold)
            trainer.model.load_state_dict({n[6:]: t for n, t in weights.items() if n.startswith("model.")})
            answers.append(trainer.predict(ensemble.held_out.windows))
        np.testing.assert_allclose(ensemble.held_out.trials[place], np.mean(answers, axis=0), atol=1e-6)
    np.testing.assert_allclose(ensemble.held_out.predictions.sum(axis=1), 1.0, atol=1e-6)


def test_the_verdict_of_a_signal_that_is_there(classes):
    ensemble = classes.ensemble()
    n = len(classes.run.folds.held_out)
    assert ensemble.table.loc["ensemble", "low"] > 0.5
    assert f"On {n} subjects that no choice has seen" in ensemble.verdict
    assert "carries over to new people" in ensemble.verdict and "chance is 0.5" in ensemble.verdict
    assert ensemble.table.loc["class frequencies", "held_out"] == 0.5


def test_save_load_and_count_looks(classes, tmp_path):
    run = RunStore.open(shutil.copytree(classes.run.local, tmp_path / "run"))
    (tmp_path / "run" / LOOKS).unlink(missing_ok=True)
    with pytest.raises(UserError, match="no ensemble yet"):
        Ensemble.load(run)
    first = fit_ensemble(run, top=2, windows=classes.windows)
    assert first.looks == 1 and "looked at" not in first.verdict
    second = fit_ensemble(run, top=1, windows=classes.windows)
    assert second.looks == 2 and "looked at 2 times" in second.verdict
    first.save()
    again = Ensemble.load(RunStore.open(run.where))
    assert again.table.equals(first.table) and again.verdict == first.verdict and again.trials == first.trials
    for name in vars(first.held_out):
        np.testing.assert_array_equal(getattr(again.held_out, name), getattr(first.held_out, name))
    record = json.loads((tmp_path / "run" / RECORD).read_text())
    assert record["looks"] == 1 and record["data_hash"] == run.info.data_hash
    (tmp_path / "run" / RECORD).write_text("{}")
    with pytest.raises(UserError, match="damaged"):
        Ensemble.load(run)


def test_through_a_uri(classes, tmp_path):
    shutil.copytree(classes.run.local, tmp_path / "run")
    run = RunStore.open((tmp_path / "run").as_uri())
    fit_ensemble(run, top=1, windows=classes.windows).save()
    assert Ensemble.load(run).trials == [run.ranked()[0].number]


def test_the_table_renders(values):
    from rich.console import Console

    console = Console(width=200, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(values.ensemble().render())
    text = console.export_text()
    assert "training mean" in text and "NRMSE" in text


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
        lambda: export_submission(fitted, tmp_path / "out.zip", windows={2: classes.windows, 1: classes.windows}),
    ]
    for attempt in attempts:
        with pytest.raises(UserError, match=rf"2 files .*{number:04d}/fold-1.safetensors.*{number:04d}/oof.npz"):
            attempt()
    assert not (tmp_path / "bundle").exists() and not (tmp_path / "out.zip").exists()


def test_a_saved_ensemble_that_is_damaged_is_one_line(classes, tmp_path):
    run = RunStore.open(shutil.copytree(classes.run.local, tmp_path / "run"))
    fit_ensemble(run, top=1, windows=classes.windows).save()
    truncate(run.local / "ensemble/held_out.npz", 0.5)
    with pytest.raises(UserError, match="damaged"):
        Ensemble.load(run)


# Scores and words on hand-made predictions


def hand_made(n_subjects, *, signal, each=5, seed=0):
    """Subjects with one target each, and predictions that follow it or not."""
    rng = np.random.default_rng(seed)
    target = rng.normal(size=n_subjects)
    y = np.repeat(target, each)
    said = (signal * y + 0.3 * rng.normal(size=len(y)))[:, None]
    subjects = np.repeat([f"s{k:03d}" for k in range(n_subjects)], each)
    return y, said, subjects


def table_of(signal, n_out):
    y, said, subjects = hand_made(20 + n_out, signal=signal)
    out = subjects >= "s020"
    folds = np.repeat(np.arange(20 + n_out) % 4, 5)
    search, held = (Side(y[m], subjects[m], folds[m]) for m in (~out, out))
    rows = dict.fromkeys(("ensemble", "equal weights", "best single trial"), (said[~out], said[out]))
    return score_table("nrmse", "regression", 0, rows, search, held)


def test_targets_of_persons_are_scored_by_person():
    table = table_of(1.0, 8)
    assert table.loc["ensemble", "subject_held_out"] < table.loc["ensemble", "held_out"] < 0.5
    words = write_verdict(table, "nrmse", "participants:age:regression@rest", None)
    assert "carries over" in words and "these 8 subjects are 8 data points" in words and "8 subjects are few" in words


def test_the_verdict_of_no_signal():
    words = write_verdict(table_of(0.0, 8), "nrmse", "participants:count_quality", Interval(-0.1, 0.1, 2000))
    assert "no evidence that it predicts count_quality" in words or "worse than no EEG" in words
    assert "cannot be told" in words


def test_the_verdict_claims_nothing_from_few_subjects():
    assert "no evidence yet" in write_verdict(table_of(1.0, 4), "nrmse", "participants:age", None)
    one = write_verdict(table_of(1.0, 1), "nrmse", "participants:age", None)
    assert "nothing can be said about age" in one


@pytest.mark.parametrize(("signal", "n", "shows"), [(1.0, 8, "carries"), (1.0, 4, "sign"), (1.0, 1, "undefined")])
def test_the_finding_goes_with_the_words(signal, n, shows):
    assert finding(table_of(signal, n), "nrmse") == shows


def test_class_frequencies_are_explained_only_where_they_look_worse_than_chance():
    assert oof_note("auc", 0.5) == [] and oof_note("nrmse", 0.4) == [] and oof_note("auc", float("nan")) == []
    assert "score below 0.5" in oof_note("auc", 0.43)[0]


def test_target_per_subject():
    y, _, subjects = hand_made(4, signal=1.0)
    assert target_per_subject(Side(y, subjects, y))
    assert not target_per_subject(Side(np.arange(len(y)), subjects, y))
    assert not target_per_subject(Side(np.arange(3), np.array(["a", "b", "c"]), np.arange(3)))


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("challenge1", "the response time"),
        ("participants:age", "age"),
        ("participants:sex:classification@rest", "sex"),
        ("events:left,right", "left against right"),
        ("bids-task:rest,arithmetic", "rest against arithmetic"),
        ("latency:stim", "the latency of stim"),
    ],
)
def test_tasks_in_words(task, words):
    assert predicted(task) == words


def test_units_of_targets_are_named_where_they_are_known():
    known = [unit(task) for task in ("challenge1", "latency:stim", "participants:age:regression@rest")]
    assert known == ["seconds", "seconds", "years"]
    assert unit("participants:p_factor") == unit("challenge2") == "target units"
