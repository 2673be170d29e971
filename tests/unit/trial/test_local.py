"""A whole trial without Ray: the fold loop, checkpoints, evaluator and exact resumption."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from raypipe.core.errors import CheckpointError, DamagedFileError, InterruptedEpochError, NonFiniteError, UserError
from raypipe.core.levels import within_folds
from raypipe.core.metrics import score
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.fit import fit_ensemble
from raypipe.storage.records import epoch_file
from raypipe.storage.trial_log import read_log
from raypipe.storage.trial_records import read_trials
from raypipe.training.loader import WindowLoader
from raypipe.training.result import Reply
from raypipe.training.stacked_trainer import StackedTrainer
from raypipe.training.trainer import SupervisedTrainer
from raypipe.trial.autotune import ComputePlan
from raypipe.trial.evaluator import TrialEvaluator, finish_trial, read_fold_checkpoint
from raypipe.trial.failures import Failure, retry_or_fail
from raypipe.trial.fold_runner import FoldRunner
from raypipe.trial.local import run_trial
from tests.support.records import edit_record
from tests.support.toys import ToyWindows, break_off, fold_trainer, make_run, tiny, write_store

BY_FOLD = {"early_stop": "fold", "optim__lr": 0.1, "optim__schedule": "constant", "epochs": 12, "patience": 2}
EVERYTHING = {"sam__name": "sam", "mixup__name": "mixup", "optim__ema": 0.9, "loss__name": "focal"}


@pytest.fixture(params=[False, True], ids=["regression", "classes"])
def windows(request):
    return ToyWindows(classes=request.param)


@pytest.fixture
def many(windows):
    """Return enough subjects for ``early_stop=fold``, with noise, so that folds choose different epochs."""
    toy = ToyWindows(subjects=30, each=3, classes=bool(windows.classes))
    toy.x += 3 * np.random.default_rng(3).normal(size=toy.x.shape).astype(np.float32)
    return toy


def trial(where, windows, config, **kwargs):
    run = make_run(where, windows)
    run.add_trial(0, config)
    return run, run_trial(run, windows, 0, **kwargs)


def test_a_trial_learns_and_leaves_everything(tmp_path, windows):
    run, result = trial(tmp_path, windows, tiny(epochs=20, patience=20, optim__lr=1e-2))
    assert result.state == "complete"
    assert (result.score > 0.8) if windows.classes else (result.score < 0.7)
    oof = run.oof(0)
    search = run.folds.search_index(windows.subjects)
    np.testing.assert_array_equal(oof.windows, search)
    np.testing.assert_array_equal(oof.folds, run.folds.folds(windows.subjects[search]))
    assert oof.predictions.shape == (len(search), windows.n_outputs)
    assert [run.checkpoints(0, fold) for fold in range(3)] == [[], [], []]
    assert run.weights(0, 1)["target.scale"] > 0


def test_predictions_of_every_epoch_are_kept(tmp_path, windows):
    run, result = trial(tmp_path, windows, tiny(epochs=4, patience=4))
    search = run.folds.search_index(windows.subjects)
    assert not set(run.folds.held_out) & set(windows.subjects[search])
    for epoch in run.history(0):
        kept = run.epoch_predictions(0, epoch)
        assert kept.predictions.shape == (len(search), windows.n_outputs) and kept.variances is None
        assert result.files[epoch_file(epoch.epoch)] == epoch.predictions
        if epoch.epoch == result.best_epoch:
            np.testing.assert_allclose(kept.predictions, run.oof(0).predictions, atol=2e-7)
    first, second, *_ = run.history(0)
    run.folder.write(f"trials/0000/{epoch_file(1)}", run.folder.read(f"trials/0000/{epoch_file(2)}"))
    with pytest.raises(DamagedFileError, match=r"epoch-0001.npz: damaged .*checksum.*; restore it from a copy"):
        run.epoch_predictions(0, first)
    assert list(run.verify()) == [f"trials/0000/{epoch_file(1)}"]
    run.folder.remove(f"trials/0000/{epoch_file(2)}")
    with pytest.raises(DamagedFileError, match=r"epoch-0002.npz: missing; restore it from a copy"):
        run.epoch_predictions(0, second)


def test_oof_predictions_are_those_of_the_kept_weights(tmp_path, windows):
    run, _ = trial(tmp_path, windows, tiny(**EVERYTHING))
    oof = run.oof(0)
    for fold in range(3):
        train, validation = run.folds.split(windows.subjects, fold)
        trainer = fold_trainer(run.config(0), windows, train, validation, fold=fold)
        weights = run.weights(0, fold)
        trainer.model.load_state_dict({n[6:]: t for n, t in weights.items() if n.startswith("model.")})
        trainer.state.ema = None
        np.testing.assert_array_equal(trainer.predict(validation), oof.predictions[oof.folds == fold])


@pytest.mark.parametrize(
    "changes", [{}, EVERYTHING, {"mixup__name": "cutmix", "sam__name": "asam", "sam__rho": 1.0}, BY_FOLD]
)
def test_a_trial_interrupted_anywhere_ends_with_the_same_numbers(tmp_path, many, changes):
    windows, config = many, tiny(**changes, batch_size=24)
    whole, expected = trial(tmp_path / "whole", windows, config)
    run = make_run(tmp_path / "broken", windows)
    run.add_trial(0, config)
    batches = 0

    def die_now_and_then():
        nonlocal batches
        batches += 1
        return batches % 7 == 0

    attempts = 0
    while True:
        attempts += 1
        try:
            result = run_trial(run, windows, 0, interrupted=die_now_and_then)
            break
        except InterruptedEpochError:
            assert attempts < 50
    assert attempts > 1  # their number depends on when the reporting thread returns
    assert [(e.score, e.losses) for e in run.history(0)] == [(e.score, e.losses) for e in whole.history(0)]
    assert [e.predictions for e in run.history(0)] == [e.predictions for e in whole.history(0)]
    assert run.verify() == {}
    assert (result.score, result.best_epoch) == (expected.score, expected.best_epoch)
    np.testing.assert_array_equal(run.oof(0).predictions, whole.oof(0).predictions)
    for name, tensor in whole.weights(0, 2).items():
        assert tensor.equal(run.weights(0, 2)[name]), name


def test_numbers_do_not_depend_on_how_folds_are_distributed_over_workers(tmp_path, windows):
    config = tiny(**EVERYTHING)
    together, _ = trial(tmp_path / "together", windows, config)
    run = make_run(tmp_path / "apart", windows)
    run.add_trial(0, config)
    evaluator = TrialEvaluator(run, windows, 0)
    runners = [FoldRunner(run, WindowLoader(windows), 0, [fold]) for fold in range(3)]
    for epoch in range(1, config.epochs + 1):
        outcomes = {fold: runners[fold]._epoch(epoch, lambda: False)[0][fold] for fold in range(3)}
        evaluator.add_epoch(epoch, outcomes)
    assert [e.score for e in run.history(0)] == [e.score for e in together.history(0)]


def test_a_damaged_checkpoint_is_passed_over_and_the_one_before_used(tmp_path, caplog):
    windows, config = ToyWindows(), tiny(epochs=5)
    whole, expected = trial(tmp_path / "whole", windows, config)
    run = make_run(tmp_path / "damaged", windows)
    run.add_trial(0, config)
    break_off(run, windows, 0, 3)
    path = tmp_path / "damaged/trials/0000/fold-1/epoch-0003.ckpt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    assert run_trial(run, windows, 0).score == expected.score
    assert "trial 0, fold 1, epoch 3: truncated or altered" in caplog.text
    np.testing.assert_array_equal(run.oof(0).predictions, whole.oof(0).predictions)


@pytest.mark.parametrize("other", ["fold-2/epoch-0003", "fold-1/epoch-0002"])
def test_a_checkpoint_of_another_fold_or_epoch_is_not_used(tmp_path, caplog, other):
    windows, config = ToyWindows(), tiny(epochs=5)
    whole, expected = trial(tmp_path / "whole", windows, config)
    run = make_run(tmp_path / "swapped", windows)
    run.add_trial(0, config)
    break_off(run, windows, 0, 3)
    folder = tmp_path / "swapped/trials/0000"
    (folder / "fold-1/epoch-0003.ckpt").write_bytes((folder / f"{other}.ckpt").read_bytes())
    assert run_trial(run, windows, 0).score == expected.score
    assert "trial 0, fold 1, epoch 3: the checkpoint of another trial, fold or epoch" in caplog.text
    np.testing.assert_array_equal(run.oof(0).predictions, whole.oof(0).predictions)


def test_a_checkpoint_of_another_configuration_is_not_used(tmp_path):
    windows = ToyWindows()
    run = make_run(tmp_path / "run", windows)
    for number, rate in ((0, 1e-3), (1, 2e-3)):
        run.add_trial(number, tiny(optim__lr=rate))
        break_off(run, windows, number, 2)
    one, two = (tmp_path / f"run/trials/{number:04d}/fold-0/epoch-0002.ckpt" for number in (0, 1))
    read_fold_checkpoint(run, 0, run.config(0), 0, 2)
    one.write_bytes(two.read_bytes())
    with pytest.raises(CheckpointError, match="trial 0, fold 0, epoch 2: the checkpoint of another trial"):
        read_fold_checkpoint(run, 0, run.config(0), 0, 2)


def test_damaged_records_end_the_sweep_and_not_the_trial(tmp_path):
    """What damages a file is not the trial's fault: no result is written, and the same command continues."""
    store = write_store(tmp_path / "store", ToyWindows())
    windows = WindowStore(store)
    run = make_run(tmp_path / "run", windows)
    run.add_trial(0, tiny())
    retry_or_fail(run, 0, Failure("out-of-memory", "no memory left"), "process")
    choice = ComputePlan(key="0", stem="direct", stacked=False, what="other", seconds={})
    run.write_compute("0", choice)
    run.folder.write("compute/1.json", run.folder.read("compute/0.json"))
    with pytest.raises(DamagedFileError, match=r"compute/1\.json: the choice for another shape; restore it"):
        run.compute(ComputePlan, "1")
    edit_record(run.folder, "compute/0.json", {"run": "another"})
    with pytest.raises(DamagedFileError, match=r"compute/0\.json: the record of another run; restore it"):
        run.compute(ComputePlan, "0")
    retry = run.folder.read("trials/0000/retry.json")
    run.folder.write("trials/0000/retry.json", retry.replace(b"4", b"8"))
    with pytest.raises(DamagedFileError, match=r"retry\.json: changed since raypipe wrote it"):
        run_trial(run, windows, 0)
    run.folder.write("trials/0000/retry.json", retry)
    shard = max((store / "shards").glob("*.npy"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DamagedFileError, match=rf"{shard.name}: damaged \(its content is not what prepare wrote\)"):
        run_trial(run, windows, 0)
    assert run.result(0) is None
    shard.write_bytes(whole)
    assert run_trial(run, windows, 0).state == "complete"


def test_a_worker_that_reports_too_late_leaves_the_best_checkpoint_alone(tmp_path):
    windows = ToyWindows()
    run = make_run(tmp_path, windows)
    run.add_trial(0, tiny(epochs=6))
    replies = {1: Reply(True, 1), 2: Reply(True, 1), 3: Reply(True, 1), 4: Reply(False, 0)}
    FoldRunner(run, WindowLoader(windows), 0, range(3)).train(0, lambda epoch, outcomes: replies[epoch])
    assert [run.checkpoints(0, fold) for fold in range(3)] == [[1, 2, 3, 4]] * 3


def test_a_checkpoint_that_is_ahead_of_the_report_is_not_dropped(tmp_path):
    """A crash leaves checkpoints of two epochs that were not scored; both are read, and not written again."""
    windows = ToyWindows()
    run = make_run(tmp_path, windows)
    run.add_trial(0, tiny())
    FoldRunner(run, WindowLoader(windows), 0, range(3)).train(
        0, lambda epoch, outcomes: Reply(True, 1 if epoch < 4 else 4)
    )
    assert [run.checkpoints(0, fold) for fold in range(3)] == [[3, 4]] * 3
    runner = FoldRunner(run, WindowLoader(windows), 0, range(3))
    outcomes, states = runner._epoch(3, lambda: False)
    assert states == {}
    assert runner._report_epoch(3, outcomes, states, lambda epoch, outcomes: Reply(True, 2))
    assert [run.checkpoints(0, fold) for fold in range(3)] == [[3, 4]] * 3


def trainers(run, windows):
    splits = [run.folds.split(windows.subjects, fold) for fold in range(3)]
    return [fold_trainer(run.config(0), windows, *split, fold=fold) for fold, split in enumerate(splits)]


def test_subjects_set_apart_are_neither_trained_on_nor_scored(tmp_path, monkeypatch):
    windows = ToyWindows(subjects=30, each=3, spare=10)
    run = make_run(tmp_path, windows)
    run.add_trial(0, tiny(early_stop="fold", epochs=2))
    gather = windows.gather
    for trainer in trainers(run, windows):
        train, validation = run.folds.split(windows.subjects, trainer.fold)
        np.testing.assert_array_equal(np.sort(np.concatenate([trainer.data.train, trainer.data.inner])), train)
        sides = [set(windows.subjects[index]) for index in (trainer.data.train, trainer.data.inner, validation)]
        assert all(sides)
        assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
        seen = {True: set(), False: set()}

        def spy(index, offset=None, seen=seen):
            seen[offset is not None] |= set(map(int, index))  # crops move in training only
            return gather(index, offset)

        monkeypatch.setattr(windows, "gather", spy)
        outcome = trainer.run_epoch()
        assert seen[True] == set(trainer.data.train.tolist())
        assert seen[False] == {*trainer.data.inner.tolist(), *validation.tolist()}
        assert outcome.by_fold and len(outcome.predictions) == len(validation)
        assert trainer.data.centre == pytest.approx(windows.targets[trainer.data.train].mean(dtype=np.float64))


@pytest.mark.parametrize("stacked", [False, True])
def test_a_fold_that_has_stopped_trains_no_further(tmp_path, many, monkeypatch, stacked):
    trained = {}

    def count(take):
        def counted(self, batch, step):
            for trainer in getattr(self, "trainers", [self]):
                assert not trainer.stopped
                trained.setdefault(trainer.fold, set()).add(trainer.epoch + 1)
            return take(self, batch, step)

        return counted

    for kind in (SupervisedTrainer, StackedTrainer):
        monkeypatch.setattr(kind, "step", count(kind.step))
    outcomes = []
    add_epoch = TrialEvaluator.add_epoch
    monkeypatch.setattr(TrialEvaluator, "add_epoch", lambda *call: outcomes.append(call[2]) or add_epoch(*call))
    run, result = trial(tmp_path, many, tiny(**BY_FOLD), stacked=stacked)
    history = run.history(0)
    last = {fold: max(epochs) for fold, epochs in trained.items()}
    assert all(trained[fold] == set(range(1, last[fold] + 1)) for fold in range(3))
    assert len(set(last.values())) > 1  # otherwise the test shows nothing
    assert len(history) == max(last.values()) < 12
    assert [e.over for e in history] == [False] * (len(history) - 1) + [True]
    assert result.best_epoch == result.epochs == len(history)
    assert (result.score, result.state) == (history[-1].score, "complete")
    for fold, end in last.items():
        assert [o[fold].stopped for o in outcomes] == [epoch >= end for epoch in range(1, len(history) + 1)]
        for later in outcomes[end:]:
            np.testing.assert_array_equal(later[fold].predictions, outcomes[end - 1][fold].predictions)
            assert later[fold].loss == outcomes[end - 3][fold].loss  # of the chosen epoch, `patience` before


def test_out_of_fold_predictions_are_those_of_each_folds_own_epoch(tmp_path, many):
    windows = many
    config = tiny(**BY_FOLD, optim__ema=0.5)
    run, result = trial(tmp_path, windows, config)
    oof = run.oof(0)
    chosen, sign = [], -1 if windows.classes else 1
    for trainer in trainers(run, windows):
        errors, predictions, best = [], [], 0
        while len(errors) < config.epochs and len(errors) - best <= config.patience:
            trainer.run_epoch()
            inner = score(windows.metric, windows.targets[trainer.data.inner], trainer.predict(trainer.data.inner))
            errors.append(sign * inner)
            predictions.append(trainer.predict(trainer.data.validation))
            best = int(np.argmin(errors))
        assert trainer.stopped
        np.testing.assert_array_equal(predictions[best], oof.predictions[oof.folds == trainer.fold])
        trainer.model.load_state_dict({n[6:]: t for n, t in run.weights(0, trainer.fold).items() if n[:6] == "model."})
        trainer.state.ema = None
        np.testing.assert_array_equal(trainer.predict(trainer.data.validation), predictions[best])
        chosen.append(best)
    assert len(set(chosen)) > 1  # otherwise one epoch for all folds would pass too
    assert result.score == pytest.approx(
        score(within_folds(windows.metric, oof.folds), windows.targets[oof.windows], oof.predictions), rel=1e-12
    )


def test_folds_of_few_subjects_set_none_apart(tmp_path):
    """One or two people would choose the epoch."""
    windows = ToyWindows(subjects=12)
    _, result = trial(tmp_path, windows, tiny(early_stop="fold"))
    assert (result.state, result.failure, result.epochs) == ("failed", "bad-configuration", 0)
    assert re.fullmatch(r"early_stop=fold: fold \d has \d training subjects, .* needs 16; .*", result.reason)


def test_patience_ends_a_trial_and_the_best_epoch_counts(tmp_path):
    windows = ToyWindows()
    run, result = trial(tmp_path, windows, tiny(optim__lr=0.3, optim__schedule="constant", epochs=30, patience=2))
    history = run.history(0)
    assert len(history) < 30
    assert len(history) - result.best_epoch == 2
    assert result.score == min(e.score for e in history)


def _score_epochs(monkeypatch, *scores):
    """Give epochs these scores, and each of their three folds the same."""
    calls = itertools.count()
    monkeypatch.setattr("raypipe.trial.evaluator.ranking_score", lambda *_: scores[next(calls) // 4])


def test_an_epoch_without_a_defined_score_comes_last(tmp_path, monkeypatch):
    _score_epochs(monkeypatch, np.nan, 0.6, np.nan, 0.5)
    run, result = trial(tmp_path, ToyWindows(), tiny(epochs=4, patience=2))
    assert [epoch.score for epoch in run.history(0)] == [None, 0.6, None, 0.5]
    assert (result.state, result.score, result.best_epoch) == ("complete", 0.5, 4)
    assert [each.number for each in run.ranked()] == [0]
    assert any("score undefined (folds - - -)" in line for line in read_log(run.folder, 0))


def test_a_trial_without_any_defined_score_is_complete_and_not_ranked(tmp_path, monkeypatch):
    _score_epochs(monkeypatch, *[np.nan] * 4)
    run, result = trial(tmp_path, ToyWindows(), tiny(epochs=4, patience=2))
    assert (result.state, result.score, result.epochs) == ("complete", None, 3)  # no better score for two epochs
    assert run.ranked() == [] and read_trials(run)[0][0].result == result
    with pytest.raises(UserError, match=r"nrmse is undefined for all epochs of the 1 trial\(s\)"):
        fit_ensemble(run)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("method", ["none", "sam", "msam"])
def test_a_nan_loss_fails_the_trial_with_its_reason(tmp_path, method, stacked):
    windows = ToyWindows()
    windows.x[5, 0, 3] = np.nan
    run, result = trial(tmp_path, windows, tiny(model__norm="none", sam__name=method), stacked=stacked)
    assert (result.state, result.failure) == ("failed", "non-finite")
    assert re.fullmatch(r"fold \d, epoch 1: the training loss is not finite", result.reason)
    assert (result.epochs, result.score) == (0, None)
    assert not [name for name in run.folder.names("trials") if name.endswith((".ckpt", ".npz", ".safetensors"))]


def test_a_loss_for_the_other_kind_of_target_fails_as_bad_configuration(tmp_path):
    _, result = trial(tmp_path, ToyWindows(classes=True), tiny(loss__name="huber"))
    assert (result.state, result.failure) == ("failed", "bad-configuration")
    assert "loss/name" in result.reason


def test_random_crops_move_in_training_only(tmp_path):
    windows = ToyWindows(spare=10)
    seen = []
    gather = windows.gather

    def spy(index, offset=None):
        seen.append(None if offset is None else set(map(int, offset)))
        return gather(index, offset)

    windows.gather = spy
    trial(tmp_path, windows, tiny(epochs=2))
    moved = set().union(*(s for s in seen if s is not None))
    assert min(moved) == 0
    assert max(moved) == 10
    assert None in seen


def test_finishing_twice_changes_nothing(tmp_path):
    windows = ToyWindows()
    run, result = trial(tmp_path, windows, tiny(epochs=1))
    assert finish_trial(run, windows, 0, "failed", "again", "error") == result


def test_an_epoch_is_scored_once_and_in_order(tmp_path):
    windows = ToyWindows()
    run = make_run(tmp_path, windows)
    run.add_trial(0, tiny())
    evaluator = TrialEvaluator(run, windows, 0)
    runner = FoldRunner(run, WindowLoader(windows), 0, range(3))
    outcomes, _ = runner._epoch(1, lambda: False)
    first = evaluator.add_epoch(1, outcomes)
    assert evaluator.add_epoch(1, {}) is first
    with pytest.raises(RuntimeError, match="epoch 3"):
        evaluator.add_epoch(3, outcomes)
    with pytest.raises(RuntimeError, match="folds"):
        evaluator.add_epoch(2, {0: outcomes[0]})


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path):
    windows = ToyWindows()
    run = make_run(tmp_path, windows)
    train, validation = run.folds.split(windows.subjects, 0)
    one = fold_trainer(tiny(), windows, train, validation, fold=0)
    other = fold_trainer(tiny(seed=1), windows, train, validation, fold=0)
    with pytest.raises(ValueError, match="cannot continue"):
        other.load_state_dict(one.state_dict())


def test_a_nan_target_never_passes_as_a_score(tmp_path):
    windows = ToyWindows()
    run = make_run(tmp_path, windows)
    run.add_trial(0, tiny())
    evaluator = TrialEvaluator(run, windows, 0)
    runner = FoldRunner(run, WindowLoader(windows), 0, range(3))
    outcomes, _ = runner._epoch(1, lambda: False)
    outcomes[0].predictions[0] = np.nan
    with pytest.raises((NonFiniteError, ValueError)):
        evaluator.add_epoch(1, outcomes)


def test_repeats_of_the_folds_are_more_folds_of_the_same_trial(tmp_path, windows):
    """The networks of the first repeat are those of a run without repeats; a killed trial ends with the same bits."""
    config, windows = tiny(epochs=3, patience=3), ToyWindows(subjects=12, each=4, classes=bool(windows.classes))
    once, _ = trial(tmp_path / "once", windows, config)
    run = make_run(tmp_path / "run", windows, repeats=2)
    run.add_trial(0, config)
    break_off(run, windows, 0, epochs=1)
    assert run_trial(run, windows, 0).state == "complete"
    whole = make_run(tmp_path / "whole", windows, repeats=2)
    whole.add_trial(0, config)
    run_trial(whole, windows, 0)
    for name in ("windows", "folds", "predictions"):
        np.testing.assert_array_equal(getattr(run.oof(0), name), getattr(whole.oof(0), name))
    index, folds = run.folds.predicted_rows(windows.subjects)
    np.testing.assert_array_equal(run.oof(0).windows, index)
    np.testing.assert_array_equal(run.oof(0).folds, folds)
    for mine, other in zip(run.history(0), once.history(0), strict=True):
        assert mine.fold_scores[:3] == other.fold_scores and len(mine.fold_scores) == 6
        n = len(index) // 2
        np.testing.assert_array_equal(
            run.epoch_predictions(0, mine).predictions[:n], once.epoch_predictions(0, other).predictions
        )
    metric = within_folds(run.info.metric, folds)
    assert run.result(0).score == pytest.approx(score(metric, windows.targets[index], run.oof(0).predictions))
    assert len(run.weights(0, 5)) == len(run.weights(0, 0))
