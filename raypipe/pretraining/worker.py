"""A worker's part in a pretrained run: epoch by epoch from its checkpoints, records and probes by the first of them.

Nothing here knows of Ray.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypipe.core.config import InitConfig, OptimConfig, TrialConfig
from raypipe.core.errors import NonFiniteError, UserError
from raypipe.core.folds import FoldMap, Index
from raypipe.core.metrics import score
from raypipe.core.progress import Progress, no_progress
from raypipe.data.window_cache import open_windows
from raypipe.pretraining.encoders import PretrainedRun, PretrainEpoch
from raypipe.pretraining.linear_probe import fit_probe
from raypipe.pretraining.trainer import Pretrainer
from raypipe.training.checkpoint import clone_tensors
from raypipe.training.loader import WindowLoader
from raypipe.training.trainer import FoldTrainer


def tell(store: PretrainedRun, progress: Progress) -> None:
    """Report how far a run has come."""
    histories = [store.history(part) for part in store.parts]
    latest = next((history[-1] for history in reversed(histories) if history), None)
    if latest:
        progress(sum(map(len, histories)), len(histories) * store.info.config.epochs, describe(latest))


def describe(epoch: PretrainEpoch) -> str:
    """An epoch in words."""
    probe = f", probe {epoch.probe:.3f}" if epoch.probe is not None else ""
    tuned = f", trained on {epoch.tuned:.3f}" if epoch.tuned is not None else ""
    return f"loss {epoch.loss:.4f}{probe}{tuned}"


def work(
    where: str,
    *,
    rank: int = 0,
    world: int = 1,
    device: str = "cpu",
    progress: Progress = no_progress,
    interrupted: Callable[[], bool] = lambda: False,
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Train what is left of a pretrained run's encoders, as worker `rank` of `world`, from their checkpoints.

    `interrupted` ends an epoch in its midst; `stopping`, asked by the first worker, ends them all after an epoch.
    """
    store = PretrainedRun(where)
    feed = WindowLoader(open_windows(store.info.data), device)
    if feed.windows.data_hash != store.info.data_hash:
        raise UserError(f"{store.info.data}: changed since the run was made; name a new run folder")
    for part in store.parts:
        if store.folder.exists(store.encoder_name(part)):
            continue
        fold = None if part == "all" else int(part.removeprefix("fold-"))
        index = (
            store.folds.search_index(feed.windows.subjects)
            if fold is None
            else store.folds.split(feed.windows.subjects, fold)[0]
        )
        one = Pretrainer(
            store.info.config, feed, index, part=part, rank=rank, world=world, micro_batch=store.info.micro_batch
        )
        if (state := _agreed(store, part, world)) is not None:
            one.load_state_dict(state)
        while one.epoch < store.info.config.epochs:
            start = time.time()
            loss = one.run_epoch(interrupted)
            if rank == 0:
                _record(store, part, one, fold, loss, start)
                tell(store, progress)
            if _all(stopping() if rank == 0 else False, world):
                return
        if rank == 0:
            store.write_encoder(part, clone_tensors(one.encoder.state_dict()))
        if world > 1:
            import torch.distributed as dist

            dist.barrier()  # the next part is looked up only once this one's encoder is there


def _all(said: bool, world: int) -> bool:
    """What the first worker has said, known to all."""
    if world == 1:
        return said
    import torch
    import torch.distributed as dist

    answer = torch.tensor(float(said), device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.broadcast(answer, 0)
    return bool(answer)


def _agreed(store: PretrainedRun, part: str, world: int) -> dict[str, Any] | None:
    """The newest whole checkpoint of a part, the same for all workers."""
    state = store.latest(part)
    if world > 1:
        import torch
        import torch.distributed as dist

        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        epoch = torch.tensor(state["epoch"] if state else 0, device=device)
        dist.all_reduce(epoch, op=dist.ReduceOp.MIN)
        state = store.latest(part, before=int(epoch)) if int(epoch) else None
    return state


def _record(store: PretrainedRun, part: str, one: Pretrainer, fold: int | None, loss: float, start: float) -> None:
    every, last = store.info.probe_every, store.info.config.epochs
    due = every and (one.epoch % every == 0 or one.epoch == last)
    probe = probe_score(one, store.folds, fold) if due else None
    tuned = tuned_score(one, store.folds, fold, store.info.tuned_probe) if due and store.info.tuned_probe else None
    store.write_checkpoint(part, one.epoch, one.state_dict())
    history = [epoch for epoch in store.history(part) if epoch.epoch < one.epoch]
    epoch = PretrainEpoch(epoch=one.epoch, loss=loss, probe=probe, tuned=tuned, seconds=time.time() - start)
    store.write_history(part, [*history, epoch])


def tuned_score(one: Pretrainer, folds: FoldMap, fold: int | None, epochs: int) -> float | None:
    """As `probe_score`, of copies of the encoder that are trained on, all of them, for some epochs.

    At the usual rates of `search_spaces/finetune.py`; what is pretrained is left as it is.
    """
    windows, given = one.feed.windows, one.config
    config = TrialConfig(
        model=given.model,
        optim=OptimConfig(lr=5e-4),
        init=InitConfig(name="pretrained", layer_decay=0.75),
        epochs=epochs,
        patience=epochs,
        batch_size=given.batch_size,
        seed=given.seed,
    )
    present = set(folds.folds(windows.subjects[folds.search_index(windows.subjects)]).tolist())
    weights, truth, predictions = clone_tensors(one.encoder.state_dict()), [], []
    for k in range(folds.n_folds) if fold is None else [fold]:
        if present <= {k} or k not in present:
            continue
        train, aside = folds.split(windows.subjects, k)
        trainer = FoldTrainer(config, one.feed, train, aside, fold=k, encoder=weights)
        try:
            for _ in range(epochs):
                found = trainer.run_epoch()
        except NonFiniteError:  # of a probe: pretraining goes on
            return None
        truth.append(windows.targets[aside])
        predictions.append(found.predictions[:, : windows.n_outputs])
    return _pooled(windows.metric, truth, predictions)


def probe_score(one: Pretrainer, folds: FoldMap, fold: int | None) -> float | None:
    """Score of linear probes on frozen features, each fitted without the subjects of the fold that it predicts.

    Fold-wise, of that fold alone. None where the score is no number.
    """
    windows = one.feed.windows
    index: Index = folds.search_index(windows.subjects)
    features_NF = one.features(index)
    folds_N = folds.folds(windows.subjects[index])
    classes, truth, predictions = len(windows.classes), [], []
    for k in range(folds.n_folds) if fold is None else [fold]:
        aside = folds_N == k
        if not aside.any() or aside.all():
            continue
        weight, bias = fit_probe(features_NF[~aside], windows.targets[index[~aside]], classes)
        raw = features_NF[aside] @ weight.numpy().T + bias.numpy()
        if classes:
            raw = np.exp(raw - raw.max(1, keepdims=True))
            raw /= raw.sum(1, keepdims=True)
        truth.append(windows.targets[index[aside]])
        predictions.append(raw.astype(np.float32))
    return _pooled(windows.metric, truth, predictions)


def _pooled(metric: str, truth: list[NDArray[Any]], predictions: list[NDArray[np.float32]]) -> float | None:
    found = score(metric, np.concatenate(truth), np.concatenate(predictions))
    return float(found) if np.isfinite(found) else None
