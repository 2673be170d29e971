"""One worker of a pretrained run: it trains the encoders epoch by epoch; the first worker writes records and probes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from raypipe.core.config import InitConfig, OptimConfig, TrialConfig
from raypipe.core.errors import NonFiniteError, UserError, first_line, out_of_memory
from raypipe.core.folds import FoldMap, Index
from raypipe.core.levels import level_of, ranking_score
from raypipe.core.progress import Progress, no_progress
from raypipe.data.window_cache import open_windows
from raypipe.data.window_store import WindowStore
from raypipe.pretraining.encoders import PretrainedRun
from raypipe.pretraining.linear_probe import fit_probe
from raypipe.pretraining.records import PretrainEpoch
from raypipe.pretraining.trainer import Pretrainer
from raypipe.training.checkpoint import clone_tensors
from raypipe.training.device import free_memory
from raypipe.training.fold_trainer import Interrupted, never
from raypipe.training.loader import FoldData, WindowLoader
from raypipe.training.trainer import SupervisedTrainer

log = logging.getLogger(__name__)

UNPROBED = "unprobed"
"""Entry of a checkpoint whose probe scores are due and not there yet."""


class Workers(NamedTuple):
    """This worker's number, and how many there are."""

    rank: int
    world: int

    def broadcast(self, value: bool) -> bool:
        """Return the first worker's value."""
        if self.world == 1:
            return value
        shared = torch.tensor(float(value), device=_device())
        dist.broadcast(shared, 0)
        return bool(shared)

    def minimum(self, value: int) -> int:
        """Return the smallest value of all workers."""
        if self.world == 1:
            return value
        shared = torch.tensor(value, device=_device())
        dist.all_reduce(shared, op=dist.ReduceOp.MIN)
        return int(shared)

    def wait(self) -> None:
        """Wait for all workers."""
        if self.world > 1:
            dist.barrier()


def _device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


def report_progress(store: PretrainedRun, progress: Progress) -> None:
    """Report how far a run has come."""
    histories = [store.history(part) for part in store.parts]
    latest = next((history[-1] for history in reversed(histories) if history), None)
    if latest:
        progress(sum(map(len, histories)), len(histories) * store.info.config.epochs, epoch_text(latest))


def epoch_text(epoch: PretrainEpoch) -> str:
    """Return loss and probe scores of an epoch as text."""
    probe = f", probe {epoch.probe:.3f}" if epoch.probe is not None else ""
    tuned = f", fine-tuned {epoch.tuned:.3f}" if epoch.tuned is not None else ""
    return f"loss {epoch.loss:.4f}{probe}{tuned}"


def train_encoders(
    where: str,
    *,
    rank: int = 0,
    world: int = 1,
    device: str | torch.device = "cpu",
    gpu_share: float = 1.0,
    progress: Progress = no_progress,
    interrupted: Interrupted = never,
    stopping: Callable[[], bool] = never,
) -> None:
    """Train the unfinished encoders of a pretrained run from their checkpoints, as worker `rank` of `world`.

    Parameters
    ----------
    where
        The run.
    device, gpu_share
        Where to compute, and the share of a GPU that this worker may use.
    progress
        Called by the first worker after every epoch.
    interrupted
        Called before every batch; True ends the epoch with `InterruptedEpochError`.
    stopping
        Called by the first worker after every epoch; True ends all workers.

    Raises
    ------
    UserError
        The windows have changed since the run was made, or a batch does not fit in the GPU's memory.
    """
    store, workers = PretrainedRun(where), Workers(rank, world)
    loader = WindowLoader(open_windows(store.info.data), device, share=gpu_share)
    if loader.windows.data_hash != store.info.data_hash:
        raise UserError(f"{store.info.data}: changed since the run was made; name a new run folder")
    for part in store.parts:
        if store.folder.exists(store.encoder_name(part)):
            continue
        trainer = _open_trainer(store, loader, part, workers)
        while trainer.epoch < store.info.config.epochs:
            start = time.monotonic()
            loss = _train_epoch(trainer, interrupted)
            if loss is None:
                trainer = _open_trainer(store, loader, part, workers)
                continue
            if rank == 0:
                _record_epoch(store, part, trainer, loss, start)
                report_progress(store, progress)
            if workers.broadcast(stopping() if rank == 0 else False):
                return
        if rank == 0:
            store.write_encoder(part, clone_tensors(trainer.encoder.state_dict()))
        workers.wait()  # the other workers check for this encoder before they start the next one


def _train_epoch(trainer: Pretrainer, interrupted: Interrupted) -> float | None:
    """Train an epoch; return its mean loss, or None if the GPU's memory ran out and its copy of the store was given up.

    The other workers of a batch would wait for this one: there it is an error.
    """
    loader = trainer.loader
    try:
        return trainer.run_epoch(interrupted)
    except RuntimeError as error:
        if not out_of_memory(error) or not (loader.resident or loader.device.type == "cuda"):
            raise
        if trainer.world > 1 or not loader.resident:
            raise UserError(
                f"pretraining does not fit in the GPU's memory ({first_line(error)}); "
                "name a new run folder, with --micro-batch or a smaller --batch"
            ) from error
        log.warning("the windows are copied to the GPU batch by batch from here: %s", first_line(error))
    loader.set_resident(False)
    return None


def _open_trainer(store: PretrainedRun, loader: WindowLoader, part: str, workers: Workers) -> Pretrainer:
    """Build the trainer of a part, and load the newest checkpoint that all workers can read."""
    subjects, fold = loader.windows.subjects, _fold_of(part)
    index = store.folds.search_index(subjects) if fold is None else store.folds.split(subjects, fold)[0]
    trainer = Pretrainer(
        store.info.config,
        loader,
        index,
        part=part,
        rank=workers.rank,
        world=workers.world,
        micro_batch=store.info.micro_batch,
    )
    state = store.latest(part)
    epoch = workers.minimum(state["epoch"] if state else 0)
    if state is not None and state["epoch"] != epoch:
        state = store.latest(part, up_to=epoch) if epoch else None
    if state is not None:
        trainer.load_state_dict(state)
        if workers.rank == 0:
            store.restore_history(part, state)
            if state.get(UNPROBED):
                _probe_epoch(store, part, trainer)
    return trainer


def _fold_of(part: str) -> int | None:
    return None if part == "all" else int(part.removeprefix("fold-"))


def _record_epoch(store: PretrainedRun, part: str, trainer: Pretrainer, loss: float, start: float) -> None:
    """Write an epoch with its checkpoint and then in the history; then the same with the probe scores that are due."""
    every, last = store.info.probe_every, store.info.config.epochs
    due = bool(every) and (trainer.epoch % every == 0 or trainer.epoch == last)
    epoch = PretrainEpoch(epoch=trainer.epoch, loss=loss, probe=None, seconds=time.monotonic() - start)
    history = [*(epoch for epoch in store.history(part) if epoch.epoch < trainer.epoch), epoch]
    store.write_checkpoint(part, history, trainer.state_dict() | ({UNPROBED: True} if due else {}))
    store.write_history(part, history)
    if due:
        _probe_epoch(store, part, trainer)


def _probe_epoch(store: PretrainedRun, part: str, trainer: Pretrainer) -> None:
    """Write the probe scores of the last epoch; a process that dies before that has lost no training."""
    start, fold = time.monotonic(), _fold_of(part)
    probe = _if_it_fits("linear", lambda: probe_score(trainer, store.folds, fold))
    tuned = None
    if epochs := store.info.tuned_probe:
        micro_batch = store.info.micro_batch
        tuned = _if_it_fits("fine-tuned", lambda: tuned_score(trainer, store.folds, fold, epochs, micro_batch))
    *earlier, epoch = (epoch for epoch in store.history(part) if epoch.epoch <= trainer.epoch)
    seconds = epoch.seconds + time.monotonic() - start
    history = [*earlier, epoch.model_copy(update={"probe": probe, "tuned": tuned, "seconds": seconds})]
    store.write_checkpoint(part, history, trainer.state_dict())
    store.write_history(part, history)


def _if_it_fits(kind: str, score: Callable[[], float | None]) -> float | None:
    """Return the score of a probe; None, with a warning, where memory ran out. Pretraining continues."""
    try:
        return score()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        log.warning("the %s probe does not fit in memory, and is left out: %s", kind, first_line(error))
    free_memory()  # not before the error is gone, whose frames hold what was allocated
    return None


def tuned_score(
    trainer: Pretrainer, folds: FoldMap, fold: int | None, epochs: int, micro_batch: int | None = None
) -> float | None:
    """Return the score of fine-tuned copies of the encoder, one per fold, after `epochs` epochs; see `probe_score`.

    They use the learning rates of the search space `finetune`, and the micro-batches of pretraining. The encoder itself
    is not changed.
    """
    windows, pretrained = trainer.loader.windows, trainer.config
    config = TrialConfig(
        model=pretrained.model,
        optim=OptimConfig(lr=5e-4),
        init=InitConfig(name="pretrained", layer_decay=0.75),
        epochs=epochs,
        patience=epochs,
        batch_size=pretrained.batch_size,
        seed=pretrained.seed,
    )
    present = set(folds.folds(windows.subjects[folds.search_index(windows.subjects)]).tolist())
    weights, predicted, predictions = clone_tensors(trainer.encoder.state_dict()), [], []
    for k in range(folds.n_folds) if fold is None else [fold]:
        if present <= {k} or k not in present:
            continue
        train, validation = folds.split(windows.subjects, k)
        data = FoldData(config, trainer.loader, train, validation, fold=k)
        tuned = SupervisedTrainer(config, data, encoder=weights, micro_batch=micro_batch)
        try:
            for _ in range(epochs):
                outcome = tuned.run_epoch()
        except NonFiniteError:  # only of a probe: pretraining continues
            return None
        predicted.append(validation)
        predictions.append(outcome.predictions[:, : windows.n_outputs])
    return _score_over_folds(windows, folds, np.concatenate(predicted), np.concatenate(predictions))


def probe_score(trainer: Pretrainer, folds: FoldMap, fold: int | None) -> float | None:
    """Return the score of linear probes on frozen features; each is fitted without the fold that it predicts.

    In fold-wise pretraining it is the score of that fold alone. None where the score is undefined.
    """
    windows = trainer.loader.windows
    index: Index = folds.search_index(windows.subjects)
    features_NF = trainer.features(index)
    folds_N, groups_N = folds.folds(windows.subjects[index]), folds.groups(windows.subjects[index])
    n_classes, predicted, predictions = len(windows.classes), [], []
    for k in range(folds.n_folds) if fold is None else [fold]:
        validation = folds_N == k
        if not validation.any() or validation.all():
            continue
        train = index[~validation]
        weight, bias = fit_probe(features_NF[~validation], windows.targets[train], groups_N[~validation], n_classes)
        raw = features_NF[validation] @ weight.numpy().T + bias.numpy()
        if n_classes:
            raw = np.exp(raw - raw.max(1, keepdims=True))
            raw /= raw.sum(1, keepdims=True)
        predicted.append(index[validation])
        predictions.append(raw.astype(np.float32))
    return _score_over_folds(windows, folds, np.concatenate(predicted), np.concatenate(predictions))


def _score_over_folds(
    windows: WindowStore, folds: FoldMap, index: Index, predictions: NDArray[np.float32]
) -> float | None:
    """Return the score of predictions as trials are ranked, or None where it is undefined."""
    subjects = windows.subjects[index]
    level = level_of(windows.subjects, windows.targets)
    found = ranking_score(windows.metric, level, windows.targets[index], predictions, subjects, folds.folds(subjects))
    return float(found) if np.isfinite(found) else None
