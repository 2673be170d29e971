"""Snapshots: the ends of a cyclic learning rate's cycles, kept by trials and combined by ensembles."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from raypipe.core.errors import UserError
from raypipe.core.metrics import score
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.fit import fit_ensemble
from raypipe.ensembles.fitted import Ensemble
from raypipe.ensembles.members import MergedNetworks
from raypipe.ensembles.oof import MemberPredictions, read_oof_predictions, subject_splits
from raypipe.ensembles.soup import SOUP_GROUPS, average, make_soup
from raypipe.packaging.bundle import export_bundle, load_ensemble
from raypipe.reporting.report import write_report
from raypipe.search.pruner import SuccessiveHalving
from raypipe.search.study import StudyQueue
from raypipe.storage.journal import open_journal
from raypipe.storage.records import Epoch, Member
from raypipe.storage.run_store import RunStore
from raypipe.storage.trial_log import read_log
from raypipe.trial.evaluator import TrialEvaluator
from raypipe.trial.local import run_trial
from tests.support.faults import flip
from tests.support.records import edit_record
from tests.support.toys import ToyWindows, break_off, fold_trainer, make_run, tiny, write_store
from tests.unit.conftest import Finished

CYCLIC = {"optim__schedule": "cyclic", "optim__cycles": 3, "epochs": 6, "patience": 6, "batch_size": 16}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Finished:
    """A trial with three cycles of two epochs, and a plain one that starts from the same weights."""
    root = tmp_path_factory.mktemp("snapshots")
    windows = WindowStore(write_store(root / "store", ToyWindows(subjects=20, each=6)))
    run = make_run(root / "run", windows)
    edit_record(run.folder, "run.json", {"data": str(root / "store"), "target": "latency:bump"})
    run = RunStore.open(root / "run")
    run.add_trial(0, tiny(**CYCLIC, optim__lr=1e-2))
    run.add_trial(1, tiny(epochs=2, batch_size=16, optim__lr=1e-3))
    for number in (0, 1):
        run_trial(run, windows, number)
    return Finished(run, windows)


def snapshots_of(run: RunStore, number: int = 0) -> list[int]:
    result = run.result(number)
    assert result is not None
    return result.snapshots


def test_ends_of_cycles():
    assert tiny(**CYCLIC).cycle_ends == [2, 4, 6]
    assert tiny(optim__schedule="cyclic", optim__cycles=4, epochs=10).cycle_ends == [2, 5, 8, 10]
    assert tiny().cycle_ends == []
    for wrong, words in (
        ({"epochs": 2}, "3 cycles .optim/cycles. need as many epochs"),
        ({"early_stop": "fold"}, "needs early_stop=trial"),
        ({"pretrain__name": "mae", "model__name": "vit"}, "not for pretraining"),
    ):
        with pytest.raises(UserError, match=words):
            tiny(**CYCLIC | wrong)


def test_the_rate_falls_in_every_cycle_and_rises_between(made):
    one = fold_trainer(tiny(**CYCLIC), made.windows, np.arange(64), np.arange(64, 80), fold=0)
    rates = []
    for one.epoch in range(6):
        for step in range(one.data.steps_per_epoch):
            one.set_learning_rate(step)
            rates.append(one.state.optimizer.param_groups[0]["lr"])
    cycles = np.reshape(rates, (3, -1))
    for cycle in cycles[1:]:
        assert (np.diff(cycle) < 0).all() and cycle[0] == pytest.approx(one.config.optim.lr)
    assert cycles[0].argmax() == 1  # the warm-up
    assert cycles[:, -1].max() < 0.1 * one.config.optim.lr


def test_a_trial_keeps_the_ends_of_its_cycles_beside_its_best_epoch(made):
    run, windows = made.run, made.windows
    result = run.result(0)
    kept = [epoch for epoch in (2, 4, 6) if epoch <= result.epochs and epoch != result.best_epoch]
    assert len(kept) >= 1 and result.snapshots == kept
    for epoch in kept:
        assert {f"oof-epoch-{epoch:04d}.npz", f"fold-2-epoch-{epoch:04d}.safetensors"} <= set(result.files)
        oof = run.oof(0, epoch)
        for fold in range(3):
            train, validation = run.folds.split(windows.subjects, fold)
            trainer = fold_trainer(run.config(0), windows, train, validation, fold=fold)
            tensors = run.weights(0, fold, epoch)
            trainer.model.load_state_dict({n[6:]: t for n, t in tensors.items() if n.startswith("model.")})
            np.testing.assert_array_equal(trainer.predict(validation), oof.predictions[oof.folds == fold])
    assert run.verify() == {} and [run.checkpoints(0, fold) for fold in range(3)] == [[], [], []]
    with pytest.raises(UserError, match="trial 1 at epoch 2 has no out-of-fold predictions"):
        run.oof(1, 2)


def test_killed_and_resumed_snapshots_are_the_same(made, tmp_path):
    run = make_run(tmp_path / "run", made.windows)
    run.add_trial(0, made.run.config(0))
    for most in (3, 5):  # within the second cycle, and within the third
        break_off(run, made.windows, 0, most)
        assert set(run.checkpoints(0, 0)) >= {end for end in (2, 4) if end <= most}  # they outlive later epochs
    run_trial(run, made.windows, 0)
    assert snapshots_of(run) == snapshots_of(made.run)
    for epoch in (0, *snapshots_of(run)):
        np.testing.assert_array_equal(run.oof(0, epoch).predictions, made.run.oof(0, epoch).predictions)
        for name, tensor in made.run.weights(0, 1, epoch).items():
            assert tensor.equal(run.weights(0, 1, epoch)[name]), name


def test_a_lost_checkpoint_of_a_snapshot_is_trained_again(made, tmp_path):
    run = make_run(tmp_path / "run", made.windows)
    run.add_trial(0, made.run.config(0))
    break_off(run, made.windows, 0, 5)
    for epoch in (2, 4):
        flip(tmp_path / f"run/trials/0000/fold-1/epoch-{epoch:04d}.ckpt")
    run_trial(run, made.windows, 0)
    assert snapshots_of(run) == snapshots_of(made.run)
    for epoch in (0, *snapshots_of(run)):
        np.testing.assert_array_equal(run.oof(0, epoch).predictions, made.run.oof(0, epoch).predictions)
    assert any("folds 1 lost their checkpoints of epoch 2: trained again" in line for line in read_log(run.folder, 0))


def test_patience_and_halving_wait_for_the_end_of_a_cycle(made, tmp_path):
    run = make_run(tmp_path / "run", made.windows)
    book = StudyQueue(run, made.windows, open_journal(run), trials=8, pruner=SuccessiveHalving(1, 2))

    def record(number: int, scores: list[float]) -> None:
        run.write_history(
            number,
            [
                Epoch(
                    epoch=k + 1, passes=k + 1, score=s, fold_scores=[s] * 3, losses=[s] * 3, seconds=0.0, finished=0.0
                )
                for k, s in enumerate(scores)
            ],
        )

    for number in range(3):
        assert book.next() == number
        record(number, [0.1])
        book.observe(number)
    number = book.next()
    changed = {"config": tiny(**CYCLIC | {"patience": 1}).model_dump(mode="json")}
    edit_record(run.folder, f"trials/{number:04d}/trial.json", changed)
    for k, go in enumerate((True, False, True, False)):
        record(number, [0.5] * (k + 1))
        # At the rung of one pass it is far behind, but only the end of a cycle says what it is worth.
        assert book.observe(number) is (go or k == 3)
        assert TrialEvaluator(run, made.windows, number).over is (k in (1, 3))
    assert sorted(book.study.trials[number].intermediate_values) == [2, 4]


def test_an_ensemble_of_snapshots_is_shipped_as_it_was_scored(made, tmp_path):
    run, windows = made.run, made.windows
    kept = snapshots_of(run)
    fitted = fit_ensemble(run, windows=windows, method="snapshots")
    assert set(fitted.members) == {Member(0), *(Member(0, epoch) for epoch in kept)} and fitted.trials == [0]
    np.testing.assert_allclose(fitted.weights, 1 / (1 + len(kept)))
    names = fitted.diversity["members"]
    assert set(names) == {"trial 0", "trial 1", *(f"trial 0 at epoch {epoch}" for epoch in kept)}
    fitted.save()
    assert Ensemble.load(run).members == fitted.members
    answers = [run.oof(*member).predictions for member in fitted.members]
    members = read_oof_predictions(run, fitted.members, windows.subjects, windows.targets)
    np.testing.assert_allclose(members.predictions.mean(0), np.mean(answers, axis=0), rtol=1e-6)

    export_bundle(run, fitted, tmp_path / "bundle", windows=windows)
    held = fitted.held_out
    given = load_ensemble(tmp_path / "bundle").predict(windows.gather(held.windows))
    np.testing.assert_allclose(given, held.predictions, atol=1e-5)
    card = (tmp_path / "bundle/README.md").read_text()
    assert f"| 0 | {kept[0]} |" in card and f"1 trial(s) and {len(kept)} snapshot(s) with 3 fold models" in card
    page = Path(write_report(run)).read_text()
    assert "continued since this ensemble" not in page


def test_the_mean_of_snapshots_is_a_soup(made):
    run, windows = made.run, made.windows
    fitted = fit_ensemble(run, windows=windows, method="swa")
    assert isinstance(fitted.merged, MergedNetworks) and {member.trial for member in fitted.merged.members} == {0}
    assert {member.epoch for member in fitted.merged.members} == {0, *snapshots_of(run)}
    name = "model.pointwise.weight"
    mean = average([run.weights(0, 2, member.epoch) for member in fitted.merged.members])
    torch.testing.assert_close(fitted.merged.folds[2][name], mean[name])
    notes = " ".join(fitted.notes)
    assert "the mean of the weights of trial 0" in notes and "not tried" not in notes
    assert "A soup has no nested score" in notes and np.isnan(fitted.table.loc["ensemble", "nested"])
    both = fit_ensemble(run, windows=windows, method="all")
    assert {"snapshots", "swa", "uniform-soup", "soup"} <= set(both.table.index)


def test_without_snapshots_both_methods_are_refused_with_the_reason(made, tmp_path):
    shutil.copytree(made.run.where, tmp_path / "run")
    run = RunStore.open(tmp_path / "run")
    edit_record(run.folder, "trials/0000/result.json", {"snapshots": []})
    for method in ("snapshots", "swa"):
        with pytest.raises(UserError, match="they come with optim/schedule=cyclic"):
            fit_ensemble(run, windows=made.windows, method=method)
    left = fit_ensemble(run, windows=made.windows, method="all").excluded
    assert "optim/schedule=cyclic" in left["snapshots"] and "optim/schedule=cyclic" in left["swa"]


def test_the_trial_whose_snapshots_are_taken_is_chosen_on_other_subjects():
    rng = np.random.default_rng(0)
    y, subjects = rng.normal(size=80), np.repeat(np.arange(20), 4)
    answers = np.repeat((y + rng.normal(size=(4, 80)))[:, :, None], 1, axis=2)
    groups = next(splits_of(y, subjects))
    answers[:2, groups, 0], answers[2:, ~groups, 0] = y[groups], y[~groups]  # either trial is perfect on one half
    zeros = np.zeros(80, np.int64)
    names = ["a", "a at 2", "b", "b at 2"]
    members = MemberPredictions(
        names, answers, y, subjects, zeros, np.arange(80), "nrmse", "regression", trials=[0, 0, 1, 1]
    )
    predict = lambda chosen: answers[list(chosen)].mean(0)  # noqa: E731
    maker = SimpleNamespace(members=names, predictions=members, soup=lambda chosen: chosen, predict=predict)
    made = make_soup(maker, "swa")
    assert score("nrmse", y, made.by_other_half) > score(
        "nrmse", y, answers[0]
    )  # each half by the trial that is bad there


def splits_of(y, subjects):
    zeros = np.zeros(len(y), np.int64)
    members = MemberPredictions(["a"], y[None, :, None], y, subjects, zeros, np.arange(len(y)), "nrmse", "regression")
    return (fit_N for fit_N, _ in subject_splits(members, SOUP_GROUPS))
