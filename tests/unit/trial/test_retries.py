"""Trials that run out of memory: the GPU's copy of the store is given up first, then they train in micro-batches."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from raypipe.core.config import OwnLossConfig
from raypipe.core.errors import NonFiniteError
from raypipe.core.parameters import parse_config
from raypipe.pretraining.trainer import Pretrainer
from raypipe.storage.run_store import RunStore
from raypipe.storage.trial_log import read_log
from raypipe.training.loader import WindowLoader
from raypipe.training.stacked_trainer import StackedTrainer
from raypipe.training.trainer import SupervisedTrainer
from raypipe.trial.failures import Failure, Retry, keeps_windows, read_retry, retry_or_fail
from raypipe.trial.fold_runner import FoldRunner
from raypipe.trial.local import run_trial
from tests.support.toys import ToyWindows, break_off, make_run, tiny

OOM = Failure("out-of-memory", "no memory left on the GPU", "Traceback\n  here")


@pytest.fixture
def run(tmp_path):
    made = make_run(tmp_path / "run", ToyWindows())
    made.add_trial(0, tiny(batch_size=9))
    return made


def failing(monkeypatch, fails, error=MemoryError, words="it does not fit"):
    """Make steps raise `error` whenever ``fails(trainer)``."""
    take = SupervisedTrainer.step

    def step(self, batch, step):
        if fails(self):
            raise error(words)
        return take(self, batch, step)

    monkeypatch.setattr(SupervisedTrainer, "step", step)


def test_a_first_failure_retries_with_half_the_batch_and_a_second_one_fails(run):
    assert read_retry(run, 0) is None
    assert retry_or_fail(run, 0, OOM, "actor") is None
    expected = Retry(run="toy", number=0, streamed=False, micro_batch=5, reason="no memory left on the GPU")
    assert read_retry(run, 0) == expected and keeps_windows(run, 0)
    assert read_retry(RunStore.open(run.where), 0).micro_batch == 5
    again = retry_or_fail(run, 0, OOM, "actor")
    assert again == Failure("out-of-memory", "no memory left on the GPU (also in micro-batches of 5)", OOM.trace)
    lines = read_log(run.folder, 0)
    assert "actor: no memory left on the GPU; retried in micro-batches of 5" in lines[0]
    assert lines[1:] == ["  Traceback", "    here"]


def test_the_store_on_a_gpu_is_given_up_before_the_batch_is_divided(run):
    full = replace(OOM, resident=True)
    assert keeps_windows(run, 0)
    assert retry_or_fail(run, 0, full, "actor") is None
    expected = Retry(run="toy", number=0, streamed=True, micro_batch=None, reason="no memory left on the GPU")
    assert read_retry(run, 0) == expected
    assert not keeps_windows(RunStore.open(run.where), 0)
    assert retry_or_fail(run, 0, full, "actor") is None, "of another worker, which had not given it up"
    assert read_retry(run, 0) == expected.model_copy(update={"micro_batch": 5})
    assert retry_or_fail(run, 0, OOM, "actor").reason == "no memory left on the GPU (also in micro-batches of 5)"
    log = "\n".join(read_log(run.folder, 0))
    assert "the GPU; retried with windows copied to the GPU batch by batch" in log and "micro-batches of 5" in log


def test_a_trial_whose_gpu_is_full_of_the_store_continues_without_it_and_then_in_micro_batches(run, monkeypatch):
    """With a copy of the store on the CPU that counts as a GPU's."""
    windows, seen = ToyWindows(), []
    monkeypatch.setattr("raypipe.training.loader.WindowLoader", partial(WindowLoader, resident=True))

    def fails(trainer):
        seen.append((trainer.data.loader.resident, trainer.micro_batch))
        return trainer.micro_batch is None and (trainer.data.loader.resident or trainer.epoch == 2)

    failing(monkeypatch, fails, torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2 GiB.")
    assert run_trial(run, windows, 0).state == "complete"
    assert list(dict.fromkeys(seen)) == [(True, None), (False, None), (False, 5)]
    assert (read_retry(run, 0).streamed, read_retry(run, 0).micro_batch) == (True, 5)


def test_a_trial_that_gave_up_the_store_has_the_numbers_of_one_that_kept_it(tmp_path, monkeypatch):
    windows, kept = ToyWindows(), make_run(tmp_path / "kept", ToyWindows())
    monkeypatch.setattr("raypipe.training.loader.WindowLoader", partial(WindowLoader, resident=True))
    kept.add_trial(0, tiny())
    expected = run_trial(kept, windows, 0)
    run = make_run(tmp_path / "run", windows)
    run.add_trial(0, tiny())
    failing(
        monkeypatch,
        lambda trainer: trainer.epoch == 2 and trainer.data.loader.resident,
        torch.OutOfMemoryError,
        "CUDA out of memory. Tried to allocate 2 GiB.",
    )
    assert run_trial(run, windows, 0).score == expected.score
    assert read_retry(run, 0).micro_batch is None and read_retry(kept, 0) is None
    np.testing.assert_array_equal(run.oof(0).predictions, kept.oof(0).predictions)


@pytest.mark.parametrize("kind", ["error", "non-finite", "bad-configuration", "lost-worker", "no-workers", "disk-full"])
def test_no_other_failure_is_retried(run, kind):
    failure = Failure(kind, "it broke")
    assert retry_or_fail(run, 0, failure, "actor") is failure
    assert read_retry(run, 0) is None


def test_the_configuration_stays_what_it_was(run):
    before = run.config(0)
    retry_or_fail(run, 0, OOM, "actor")
    assert run.config(0) == before and run.config(0).hash() == before.hash()


@pytest.mark.parametrize("stacked", [False, True])
def test_a_trial_that_does_not_fit_is_trained_in_micro_batches_with_the_same_numbers(tmp_path, monkeypatch, stacked):
    windows, config = ToyWindows(), tiny(sam__name="sam")
    whole = make_run(tmp_path / "whole", windows)
    whole.add_trial(0, config)
    expected = run_trial(whole, windows, 0)
    run = make_run(tmp_path / "run", windows)
    run.add_trial(0, config)
    failing(monkeypatch, lambda trainer: trainer.epoch == 2 and trainer.micro_batch is None)
    step = StackedTrainer.step
    monkeypatch.setattr(StackedTrainer, "step", lambda self, batches, n: _fits(self) and step(self, batches, n))
    result = run_trial(run, windows, 0, stacked=stacked)
    assert (result.state, result.failure, result.epochs) == ("complete", None, 4)
    assert result.score == pytest.approx(expected.score, rel=1e-3)
    np.testing.assert_allclose(run.oof(0).predictions, whole.oof(0).predictions, atol=5e-3)
    assert read_retry(run, 0).micro_batch == 4
    log = "\n".join(read_log(run.folder, 0))
    assert "process: no memory left on the host: it does not fit; retried in micro-batches of 4" in log
    assert "micro-batches of 4: resumes after epoch 2" in log
    assert log.splitlines()[-1].endswith("end: complete after epoch 4: trained to the end")


def _fits(stack):
    if stack.trainers[0].epoch == 2:
        raise MemoryError("it does not fit")
    return True


@pytest.mark.parametrize("kind", ["mae", "simclr"])
def test_a_trial_that_pretrains_is_retried_in_micro_batches_too(tmp_path, monkeypatch, kind):
    vit = {"model/name": "vit", "model/filters": 8, "model/heads": 2, "model/depth": 1, "model/patch": 16}
    config = parse_config(vit | {"batch_size": 8, "pretrain/name": kind, "epochs": 2, "patience": 2})
    run = make_run(tmp_path / "run", ToyWindows())
    run.add_trial(0, config)
    tried, take = [], Pretrainer.step

    def step(self, batch, number):
        tried.append(self.passes.micro_batch)
        if self.passes.micro_batch is None:
            raise MemoryError("it does not fit")
        return take(self, batch, number)

    monkeypatch.setattr(Pretrainer, "step", step)
    assert run_trial(run, ToyWindows(), 0).state == "complete"
    assert list(dict.fromkeys(tried)) == [None, 4]


def test_a_batch_is_not_divided_under_a_loss_of_ones_own(tmp_path):
    run = make_run(tmp_path / "run", ToyWindows())
    run.add_trial(0, tiny().model_copy(update={"loss": OwnLossConfig(name="mine.py:quantile", code="0123")}))
    assert retry_or_fail(run, 0, replace(OOM, resident=True), "actor") is None, "without the GPU's copy of the store"
    assert read_retry(run, 0).micro_batch is None
    assert retry_or_fail(run, 0, OOM, "actor") is OOM
    assert "micro" not in "".join(read_log(run.folder, 0))


def test_a_trial_that_never_fits_fails_as_out_of_memory(run, monkeypatch):
    tries = []
    failing(monkeypatch, lambda trainer: tries.append(trainer.micro_batch) or True)
    result = run_trial(run, ToyWindows(), 0)
    assert (result.state, result.failure, result.epochs) == ("failed", "out-of-memory", 0)
    assert result.reason == "no memory left on the host: it does not fit (also in micro-batches of 5)"
    assert tries == [None, 5]
    assert run.ranked() == []


@pytest.mark.parametrize(("error", "kind"), [(ValueError, "error"), (NonFiniteError, "non-finite")])
def test_failures_that_would_recur_are_not_retried(run, monkeypatch, error, kind):
    tries = []
    failing(monkeypatch, lambda trainer: tries.append(trainer.fold) or True, error)
    assert run_trial(run, ToyWindows(), 0).failure == kind
    assert tries == [0]


def test_a_trial_interrupted_after_its_retry_continues_in_micro_batches(run, monkeypatch):
    windows, sizes = ToyWindows(), []
    failing(monkeypatch, lambda trainer: sizes.append(trainer.micro_batch) or trainer.micro_batch is None)
    break_off(run, windows, 0, 2)
    sizes.clear()
    assert run_trial(RunStore.open(run.where), windows, 0).state == "complete"
    assert set(sizes) == {5}


def test_a_damaged_checkpoint_that_is_passed_over_is_in_the_log(run):
    windows = ToyWindows()
    break_off(run, windows, 0, 3)
    path = run.local / "trials/0000/fold-1/epoch-0003.ckpt"
    path.write_bytes(path.read_bytes()[:-20])
    runner = FoldRunner(run, WindowLoader(windows), 0, range(3), writer="group-0-worker-1")
    runner._epoch(4, lambda: False)
    log = [line.split("Z ", 1)[1] for line in read_log(run.folder, 0) if "worker-1" in line]
    assert any("trial 0, fold 1, epoch 3: truncated or altered" in line and "before it" in line for line in log), log
    assert any("folds 1 restored from their checkpoints of epoch 2" in line for line in log), log
