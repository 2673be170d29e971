"""The choice of epochs and trials by the scores of some people only."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.core.errors import UserError
from raypipe.ensembles.fit import fit_ensemble
from raypipe.ensembles.nested_cv import run_nested_cv
from raypipe.ensembles.oof import MemberPredictions
from raypipe.ensembles.trial_pool import PooledTrial, TrialPool, read_trial_pool, top_and_best_of_families
from raypipe.storage.out_of_fold import EpochPredictions
from raypipe.storage.records import Member, epoch_file, trial_file
from raypipe.storage.run_store import RunStore


def pool_of(predictions_TEN, y, subjects, top=2, metric="nrmse", **changes) -> TrialPool:
    """Return a pool of these predictions of values, or of the second class."""
    classes = metric == "auc"
    outputs = np.stack([1 - predictions_TEN, predictions_TEN], -1) if classes else predictions_TEN[..., None]
    names = np.array([f"s{number:02d}" for number in subjects])
    zeros = np.zeros(len(y), np.int64)
    kind = "classification" if classes else "regression"
    like = MemberPredictions(["like"], outputs[:1, 0], y, names, zeros, np.arange(len(y)), metric, kind)
    trials = [PooledTrial(t, tuple(range(1, len(each) + 1)), **changes) for t, each in enumerate(outputs)]
    read = lambda member: EpochPredictions(outputs[member.trial, member.epoch - 1].astype(np.float32))  # noqa: E731
    return TrialPool(trials, read, like, top)


def halves(seed=0):
    """Return targets, subjects, the mask of the first half, and predictions of 3 trials and 3 epochs."""
    rng = np.random.default_rng(seed)
    y, subjects = rng.normal(size=120), np.repeat(np.arange(24), 5)
    predictions_TEN = y + rng.normal(size=(3, 3, 120)) * np.array([3.0, 2.0, 1.0])[:, None, None]
    return y, subjects, subjects < 12, predictions_TEN


def test_epoch_and_trials_are_chosen_by_the_people_inside_only():
    y, subjects, inside, predictions_TEN = halves()
    predictions_TEN[1, 2, inside], predictions_TEN[0, 1, inside] = y[inside], y[inside] + 0.1
    chosen = pool_of(predictions_TEN, y, subjects).choose(inside)
    assert chosen.names == ["trial 1 at epoch 3", "trial 0 at epoch 2"] and chosen.trials == [1, 0]
    np.testing.assert_allclose(chosen.predictions[0, :, 0], predictions_TEN[1, 2], atol=1e-6)
    changed = predictions_TEN.copy()
    changed[2, 0, ~inside] = y[~inside]  # perfect on the other people
    assert pool_of(changed, y, subjects).choose(inside).names == chosen.names
    assert pool_of(changed, y, subjects).choose(~inside).names[0] == "trial 2 at epoch 1"


def test_snapshots_are_members_beside_the_best_epoch():
    y, subjects, inside, predictions_TEN = halves()
    predictions_TEN[1, 1, inside] = y[inside]
    chosen = pool_of(predictions_TEN, y, subjects, top=1, snapshots=(1, 2)).choose(inside)
    assert chosen.names == ["trial 1 at epoch 2", "trial 1 at epoch 1"]


@pytest.mark.parametrize("metric", ["nrmse", "auc"])
def test_scores_of_parts_are_those_of_their_windows(metric):
    y, subjects, inside, predictions_TEN = halves()
    pool = pool_of(predictions_TEN, (y > 0).astype(int) if metric == "auc" else y, subjects, top=3, metric=metric)
    chosen = pool.choose(inside)
    found = chosen.select_windows(inside).scores()
    every = [pool.like.select_windows(inside).score(pool._read(Member(t, e)).predictions[inside])
             for t in range(3) for e in (1, 2, 3)]  # fmt: skip
    best = np.reshape(every, (3, 3)).max(1) if metric == "auc" else np.reshape(every, (3, 3)).min(1)
    np.testing.assert_allclose(sorted(found), sorted(best))


def test_people_without_both_classes_in_any_fold_choose_by_all_folds_together():
    """Folds are sites; only the third has both classes. Without either of its halves the AUC is over all folds."""
    rng, subjects = np.random.default_rng(0), np.repeat(np.arange(24), 5)
    y = np.repeat([1, 0, 1, 0], 30)
    predictions_TEN = rng.uniform(size=(2, 2, 120))
    predictions_TEN[1, 1] = 0.25 + 0.5 * y + 0.01 * rng.normal(size=120)  # perfect
    pool = pool_of(predictions_TEN, y, subjects, top=1, metric="auc")
    pool.like = replace(pool.like, folds=np.repeat([0, 1, 2, 2], 30))
    for left_out in ((2, 3), (2,), (0, 3)):
        inside = ~np.isin(subjects // 6, left_out)
        if len(np.unique(y[inside])) == 2:
            assert pool.choose(inside).names == ["trial 1 at epoch 2"], left_out
    assert not pool.undefined_choices()


def test_a_choice_that_no_score_decides_is_named():
    _, subjects, inside, predictions_TEN = halves()
    pool = pool_of(predictions_TEN, inside.astype(int), subjects, metric="auc")
    assert pool.choose(inside).names[0] == "trial 0 at epoch 1"
    (note,) = pool.undefined_choices()
    assert "For 1 of them no trial has a score" in note and "trial 0 at epoch 1 is taken" in note


def test_nested_scores_of_predictions_without_any_effect_are_those_of_chance():
    """Epoch and trials are chosen anew: with the choice of all people, the mean of these AUCs is above 0.6."""
    nested, naive = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        subjects = np.repeat(np.arange(24), 3)
        y = rng.permutation(np.arange(24) % 2)[subjects]
        shared_T1N = rng.normal(size=(8, 1, 24))[:, :, subjects]
        predictions_TEN = 1 / (1 + np.exp(-shared_T1N - rng.normal(size=(8, 4, 24))[:, :, subjects]))
        pool = pool_of(predictions_TEN, y, subjects, top=3, metric="auc")
        members = pool.choose(np.ones(len(y), bool))
        naive.append(members.score(members.predictions.mean(0)))
        nested.append(run_nested_cv(pool, ["best", "equal"]).scores)
    assert np.mean(naive) > 0.65
    for name in ("best", "equal"):
        scores = np.array([each[name] for each in nested])
        assert abs(scores.mean() - 0.5) < 3 * scores.std() / len(scores) ** 0.5


def test_the_pool_of_a_run_has_pruned_trials_and_no_failed_ones(classes, tmp_path):
    run = RunStore.open(shutil.copytree(classes.run.local, tmp_path / "run"))
    results = run.results()
    pruned = results[1].model_copy(update={"state": "pruned", "snapshots": []})
    like = fit_like(classes)
    pool = read_trial_pool(run, [results[0], pruned, *results[2:]], like, 3)
    assert [trial.number for trial in pool.trials] == [0, 1, 2]  # the fourth has failed
    assert [trial.epochs for trial in pool.trials] == [tuple(range(1, len(run.history(n)) + 1)) for n in range(3)]
    by_fold = [epoch.model_copy(update={"by_fold": True}) for epoch in run.history(2)]
    run.write_history(2, by_fold)
    assert read_trial_pool(run, results, like, 3).trials[2].epochs == (len(by_fold),)
    run.write_history(2, [epoch.model_copy(update={"predictions": ""}) for epoch in by_fold])
    with pytest.raises(UserError, match=r"trial 2 has no out-of-fold predictions of epoch 1.*raypipe resume"):
        read_trial_pool(run, results, like, 3)


def fit_like(made) -> MemberPredictions:
    """Return predictions of a member of a run."""
    from raypipe.ensembles.oof import read_oof_predictions

    return read_oof_predictions(made.run, [Member(0)], made.windows.subjects, made.windows.targets)


def test_all_people_choose_what_is_shipped(classes):
    pool = read_trial_pool(classes.run, classes.run.results(), fit_like(classes), 2)
    everyone = np.ones(len(pool.like.targets), bool)
    ranked = classes.run.ranked()[:2]
    assert sorted(pool.choose(everyone).names) == sorted(str(Member(r.number, r.best_epoch)) for r in ranked)


def test_damaged_predictions_of_an_epoch_are_named(classes, tmp_path):
    run = RunStore.open(shutil.copytree(classes.run.local, tmp_path / "run"))
    worst = run.ranked()[-1].number
    path = tmp_path / "run" / trial_file(worst, epoch_file(2))
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UserError, match=r"epoch-0002.npz: damaged .*restore it from a copy") as caught:
        fit_ensemble(run, windows=classes.windows, top=1)
    assert "\n" not in str(caught.value)


def test_the_best_of_every_family_is_a_candidate_beside_the_top():
    ranked = [("a", 0), ("a", 1), ("b", 2), ("c", 3), ("b", 4), ("a", 5)]
    chosen = top_and_best_of_families(ranked, 2, lambda each: each[0])
    assert chosen == [("a", 0), ("a", 1), ("b", 2), ("c", 3)]
    assert top_and_best_of_families(ranked, 9, lambda each: each[0]) == ranked


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=12), st.integers(1, 12))
def test_candidates_are_the_top_and_one_of_each_other_family(families, top):
    ranked = list(enumerate(families))
    chosen = top_and_best_of_families(ranked, top, lambda each: each[1])
    assert chosen == sorted(chosen) and chosen[:top] == ranked[:top]
    rest = [family for _, family in chosen[top:]]
    assert len(set(rest)) == len(rest) and not set(rest) & set(families[:top])
    assert {family for _, family in chosen} == set(families)


def test_the_best_of_a_family_is_chosen_by_the_people_inside_only():
    y, subjects, inside, predictions_TEN = halves()
    pool = pool_of(predictions_TEN, y, subjects, top=1)
    pool.trials = [trial._replace(family="net" if trial.number else "linear") for trial in pool.trials]
    predictions_TEN[0][:, ~inside] = y[~inside]  # trial 0 is perfect on the other people
    pool = TrialPool(pool.trials, pool._read, pool.like, 1)
    assert pool.choose(inside).trials[0] == 2 and sorted(pool.choose(inside).trials) == [0, 2]
    assert pool.choose(~inside).trials[0] == 0
    assert pool.families() == ["linear", "net"]
    assert pool.of_families(["net"]).choose(inside).trials == [2]
    fresh = pool_of(predictions_TEN[1:], y, subjects, top=1)
    np.testing.assert_allclose(pool.of_families(["net"]).choose(inside).predictions, fresh.choose(inside).predictions)
