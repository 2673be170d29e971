"""A whole trial without Ray: the fold loop, checkpoints, referee and exact resumption."""

from __future__ import annotations

import numpy as np
import pytest

from raypipe.errors import InterruptedEpochError, NonFiniteError
from raypipe.messages import Reply
from raypipe.referee import Referee, finish_trial, run_trial
from raypipe.share import Share
from raypipe.train import FoldTrainer
from tests.toys import ToyWindows, make_run, tiny

EVERYTHING = {"sam__name": "sam", "mixup__name": "mixup", "optim__ema": 0.9, "loss__name": "focal"}


@pytest.fixture(params=[False, True], ids=["regression", "classes"])
def windows(request):
    return ToyWindows(classes=request.param)


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


def test_oof_predictions_are_those_of_the_kept_weights(tmp_path, windows):
    run, _ = trial(tmp_path, windows, tiny(**EVERYTHING))
    oof = run.oof(0)
    for fold in range(3):
        train, validation = run.folds.split(windows.subjects, fold)
        trainer = FoldTrainer(run.config(0), windows, train, validation, fold=fold)
        weights = run.weights(0, fold)
        trainer.model.load_state_dict({n[6:]: t for n, t in weights.items() if n.startswith("model.")})
        trainer.ema = None
        np.testing.assert_array_equal(trainer.predict(validation), oof.predictions[oof.folds == fold])


@pytest.mark.parametrize("changes", [{}, EVERYTHING, {"mixup__name": "cutmix", "sam__name": "asam", "sam__rho": 1.0}])
def test_a_trial_interrupted_anywhere_ends_with_the_same_numbers(tmp_path, windows, changes):
    config = tiny(**changes)
    whole, expected = trial(tmp_path / "whole", windows, config)
    run = make_run(tmp_path / "broken", windows)
    run.add_trial(0, config)
    batches = 0

    def die_now_and_then():
        nonlocal batches
        batches += 1
        return batches % 17 == 0

    attempts = 0
    while True:
        attempts += 1
        try:
            result = run_trial(run, windows, 0, interrupted=die_now_and_then)
            break
        except InterruptedEpochError:
            assert attempts < 50
    assert attempts > 2
    assert [e.score for e in run.history(0)] == [e.score for e in whole.history(0)]
    assert result.score == expected.score
    np.testing.assert_array_equal(run.oof(0).predictions, whole.oof(0).predictions)
    for name, tensor in whole.weights(0, 2).items():
        assert tensor.equal(run.weights(0, 2)[name]), name


def test_numbers_do_not_depend_on_how_folds_are_dealt_to_workers(tmp_path, windows):
    config = tiny(**EVERYTHING)
    together, _ = trial(tmp_path / "together", windows, config)
    run = make_run(tmp_path / "apart", windows)
    run.add_trial(0, config)
    referee = Referee(run, windows, 0)
    shares = [Share(run, windows, 0, [fold]) for fold in range(3)]
    for epoch in range(1, config.epochs + 1):
        outcomes = {fold: shares[fold]._epoch(fold, epoch, lambda: False) for fold in range(3)}
        referee.take(epoch, outcomes)
    assert [e.score for e in run.history(0)] == [e.score for e in together.history(0)]


def test_a_damaged_checkpoint_is_passed_over_and_the_one_before_used(tmp_path, caplog):
    windows, config = ToyWindows(), tiny(epochs=3)
    whole, expected = trial(tmp_path / "whole", windows, config)
    run = make_run(tmp_path / "damaged", windows)
    run.add_trial(0, config)
    batches = 0

    def die_in_the_third_epoch():
        nonlocal batches
        batches += 1
        return len(run.history(0)) == 2

    with pytest.raises(InterruptedEpochError):
        run_trial(run, windows, 0, interrupted=die_in_the_third_epoch)
    path = tmp_path / "damaged" / "trials/0000/fold-1/epoch-0002.ckpt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    assert run_trial(run, windows, 0).score == expected.score
    assert "trial 0, fold 1, epoch 2: truncated or altered" in caplog.text
    np.testing.assert_array_equal(run.oof(0).predictions, whole.oof(0).predictions)


def test_a_worker_that_reports_too_late_leaves_the_best_checkpoint_alone(tmp_path):
    windows = ToyWindows()
    run = make_run(tmp_path, windows)
    run.add_trial(0, tiny(epochs=6))
    replies = {1: Reply(True, 1), 2: Reply(True, 1), 3: Reply(True, 1), 4: Reply(False, 0)}
    Share(run, windows, 0, range(3)).train(0, lambda epoch, outcomes: replies[epoch])
    assert [run.checkpoints(0, fold) for fold in range(3)] == [[1, 2, 3, 4]] * 3


def test_patience_ends_a_trial_and_the_best_epoch_counts(tmp_path):
    windows = ToyWindows()
    run, result = trial(tmp_path, windows, tiny(optim__lr=0.3, optim__schedule="constant", epochs=30, patience=2))
    history = run.history(0)
    assert len(history) < 30
    assert len(history) - result.best_epoch == 2
    assert result.score == min(e.score for e in history)


def test_a_loss_that_is_no_number_fails_the_trial_with_its_reason(tmp_path):
    windows = ToyWindows()
    windows.x[5, 0, 3] = np.nan
    _, result = trial(tmp_path, windows, tiny(model__norm="none"))
    assert (result.state, result.failure) == ("failed", "non-finite")
    assert "epoch 1" in result.reason


def test_a_loss_for_the_other_kind_of_task_fails_as_bad_configuration(tmp_path):
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
    referee = Referee(run, windows, 0)
    share = Share(run, windows, 0, range(3))
    outcomes = {fold: share._epoch(fold, 1, lambda: False) for fold in range(3)}
    first = referee.take(1, outcomes)
    assert referee.take(1, {}) is first
    with pytest.raises(RuntimeError, match="epoch 3"):
        referee.take(3, outcomes)
    with pytest.raises(RuntimeError, match="folds"):
        referee.take(2, {0: outcomes[0]})


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path):
    windows = ToyWindows()
    run = make_run(tmp_path, windows)
    train, validation = run.folds.split(windows.subjects, 0)
    one = FoldTrainer(tiny(), windows, train, validation, fold=0)
    other = FoldTrainer(tiny(seed=1), windows, train, validation, fold=0)
    with pytest.raises(ValueError, match="cannot continue"):
        other.load_state_dict(one.state_dict())


def test_a_nan_target_never_passes_as_a_score(tmp_path):
    windows = ToyWindows()
    run = make_run(tmp_path, windows)
    run.add_trial(0, tiny())
    referee = Referee(run, windows, 0)
    share = Share(run, windows, 0, range(3))
    outcomes = {fold: share._epoch(fold, 1, lambda: False) for fold in range(3)}
    outcomes[0].predictions[0] = np.nan
    with pytest.raises((NonFiniteError, ValueError)):
        referee.take(1, outcomes)
