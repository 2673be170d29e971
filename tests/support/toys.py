"""Toy windows in memory with a known answer, and runs made from them."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from raypipe.core.config import TrialConfig, parse_config
from raypipe.core.errors import InterruptedEpochError
from raypipe.core.folds import make_folds
from raypipe.core.levels import level_of
from raypipe.core.search_space import SearchSpace
from raypipe.data.accounting import Ledger
from raypipe.data.manifest import COLUMNS, Manifest, Plan, Settings, Shard, Summary
from raypipe.data.shard_file import content_hash, window_digest
from raypipe.data.window_store import WindowStore
from raypipe.storage.records import Epoch, RunInfo, TrialResult
from raypipe.storage.run_store import RunStore
from raypipe.training import checkpoint
from raypipe.training.loader import FoldData, WindowLoader
from raypipe.training.stacked_trainer import StackedTrainer
from raypipe.training.trainer import SupervisedTrainer
from raypipe.trial.evaluator import IDENTITY, checkpoint_identity
from raypipe.trial.local import run_trial

TINY = {
    "model/filters": 4,
    "model/heads": 2,
    "model/depth": 1,
    "model/hidden": 8,
    "model/dropout": 0.25,
    "batch_size": 8,
    "optim/lr": 3e-3,
    "epochs": 4,
    "patience": 4,
}

SPACE = f"""'''A toy.'''
START = [{{"optim/lr": 0.003}}]
def space(trial):
    trial.suggest_float("optim/lr", 1e-4, 1e-2, log=True)
    if trial.suggest_categorical("sam/name", ["none", "sam"]) == "sam":
        trial.suggest_float("sam/rho", 0.02, 0.2, log=True)
    return { ({k: v for k, v in TINY.items() if k != "optim/lr"})!r}
"""
SPACE = SPACE.replace('"optim/lr": 0.003}', '"optim/lr": 0.003, "sam/name": "none"}')


class ToyWindows:
    """Windows in memory: the target is the amplitude of a bump (regression) or whether there is one (classes)."""

    def __init__(
        self,
        subjects: int = 8,
        each: int = 8,
        channels: int = 3,
        *,
        classes: bool = False,
        spare: int = 0,
        names: Sequence[str] = (),
    ):
        channels = len(names) or channels
        rng = np.random.default_rng(0)
        n = subjects * each
        self.sfreq = 50.0
        self.crop_samples, self.window_samples = 64, 64 + spare
        self.channels = list(names) or [f"E{k + 1}" for k in range(channels)]
        self.n_channels, self.n_outputs = channels, 2 if classes else 1
        self.classes = ["off", "on"] if classes else []
        self.kind = "classification" if classes else "regression"
        self.metric = "auc" if classes else "nrmse"
        self.subjects = np.repeat([f"s{k:02d}" for k in range(subjects)], each)
        level = rng.integers(0, 2, n) if classes else rng.normal(size=n)
        self.targets = level.astype(np.int64 if classes else np.float32)
        time = np.arange(self.window_samples)
        bump = np.exp(-(((time - 30) / 6) ** 2))
        self.x = (rng.normal(size=(n, channels, self.window_samples)) + 3 * level[:, None, None] * bump).astype(
            np.float32
        )
        self.path, self.where = Path("toy"), "toy"
        self.data_hash = "toy"

    def __len__(self) -> int:
        return len(self.targets)

    def gather(self, index, offset=None):
        offset = np.zeros(len(index), int) if offset is None else offset
        return np.stack([self.x[i, :, o : o + self.crop_samples] for i, o in zip(index, offset, strict=True)])

    def whole(self, index):
        return self.x[index]

    def offsets(self, index):
        return np.zeros(len(index), np.int64)

    def target_at(self, index, offset):
        return self.targets[index]


def make_run(
    where: Path | str, windows: ToyWindows | WindowStore, *, n_folds: int = 3, space: str = SPACE, seed: int = 0
) -> RunStore:
    """Create a run on toy windows."""
    folds = make_folds(windows.subjects, windows.targets, classes=bool(windows.classes), n_folds=n_folds, seed=seed)
    source = SearchSpace(space, "toy.py")
    info = RunInfo(
        id="toy",
        created=0.0,
        data="toy",
        data_hash=windows.data_hash,
        task="toy",
        kind=windows.kind,
        metric=windows.metric,
        level=level_of(windows.subjects, windows.targets),
        direction="maximize" if windows.classes else "minimize",
        classes=windows.classes,
        seed=seed,
        space=source.name,
        space_hash=source.hash,
        folds_hash="",
        versions={},
    )
    return RunStore.create(where, info, folds, source)


def tiny(**changes) -> TrialConfig:
    """Return a configuration that trains in well under a second; ``tiny(sam__name="sam")``."""
    return parse_config(TINY | {name.replace("__", "/"): value for name, value in changes.items()})


def fold_trainer(
    config: TrialConfig, windows: ToyWindows | WindowLoader, train, validation, *, fold, **options
) -> SupervisedTrainer:
    """Return a trainer of one fold, on the CPU."""
    loader = windows if isinstance(windows, WindowLoader) else WindowLoader(windows)
    return SupervisedTrainer(config, FoldData(config, loader, train, validation, fold=fold), **options)


def break_off(run: RunStore, windows: ToyWindows, number: int, epochs: int, **how: bool) -> None:
    """Train a trial in this process; interrupt it in the epoch after `epochs`, all of which are reported.

    The history cannot show when to interrupt: another thread writes it while epochs are trained.
    """

    def cut(run_epoch):
        def run_epoch_or_a_batch(self, interrupted=lambda: False):
            trainer = self.trainers[0] if isinstance(self, StackedTrainer) else self
            answers = itertools.chain([False], itertools.repeat(True))
            return run_epoch(self, (lambda: next(answers)) if trainer.epoch == epochs else interrupted)

        return run_epoch_or_a_batch

    with pytest.MonkeyPatch.context() as patch:
        for kind in (SupervisedTrainer, StackedTrainer):
            patch.setattr(kind, "run_epoch", cut(kind.run_epoch))
        with pytest.raises(InterruptedEpochError):
            run_trial(run, windows, number, **how)
    assert len(run.history(number)) == epochs


def write_checkpoints(run: RunStore, windows: ToyWindows | WindowStore, number: int, epoch: int) -> None:
    """Write checkpoints of an epoch of all folds, with invented predictions and weights."""
    for fold in range(run.folds.n_folds):
        _, validation = run.folds.split(windows.subjects, fold)
        predictions = torch.full((len(validation), 1), 100.0 * number + 10 * fold + epoch)
        state = {
            "predictions": predictions,
            "weights": {"w": predictions[:2]},
            "initial": "x",
            "target": [0.0, 1.0],
            IDENTITY: checkpoint_identity(run, number, run.config(number), fold, epoch),
        }
        run.write_checkpoint(number, fold, epoch, checkpoint.dumps(state))


def add_ended(run: RunStore, number: int, score: float, state: str = "complete", epochs: int = 4, **params) -> None:
    """Write the records of a trial that was not trained: its configuration, history and result."""
    run.add_trial(number, tiny(**params))
    begun = run.started(number)
    history = [
        Epoch(epoch=e, passes=e, score=score, fold_scores=[score] * 3, losses=[1.0], seconds=10.0, finished=0.0)
        for e in range(1, epochs + 1)
    ]
    run.write_history(number, history)
    end = {"best_epoch": 1, "seconds": 10.0 * epochs, "reason": "toy", "finished": begun + 60.0 * (number + 1)}
    run.write_result(TrialResult(number=number, state=state, score=score, epochs=epochs, **end))


def write_store(path: Path, toy: ToyWindows) -> Path:
    """Write toy windows as a store on disk, for workers in other processes."""
    names = tuple(toy.channels)
    asked = {"task": "toy", "sfreq": None, "band": None, "channels": None, "window": None, "crop": None}
    settings = Settings(**asked, stride=None, tmin=None, dtype="float32", metric=None)
    plan = Plan(
        task="toy",
        channels=names,
        sfreq=toy.sfreq,
        band=None,
        window=toy.window_samples / toy.sfreq,
        stride=1.0,
        tmin=0.0,
        window_samples=toy.window_samples,
        crop_samples=toy.crop_samples,
        target_is_offset=False,
        dtype="float32",
        crops="own",
    )
    shards, rows = [], []
    (path / "shards").mkdir(parents=True)
    for number, subject in enumerate(sorted(set(toy.subjects))):
        index = np.flatnonzero(toy.subjects == subject)
        shard = Shard(recording=f"sub-{subject}", rows=len(index), sha256=content_hash(toy.x[index]), fingerprint="toy")
        np.save(path / shard.file, toy.x[index])
        shards.append(shard)
        for row, window in enumerate(index):
            place = (window, shard.recording, subject, "", "toy", "", 2.0 * row, toy.targets[window], number, row, 0)
            rows.append((*place, window_digest(toy.x[window])))
    table = pd.DataFrame(rows, columns=list(COLUMNS)).to_csv(index=False).encode()
    (path / "windows.csv").write_bytes(table)
    manifest = Manifest(
        settings=settings,
        plan=plan,
        kind=toy.kind,
        metric=toy.metric,
        classes=tuple(toy.classes),
        shards=tuple(shards),
        table_sha256=hashlib.sha256(table).hexdigest(),
        data_hash=hashlib.sha256(b"".join(s.sha256.encode() for s in shards)).hexdigest(),
        summary=Summary(recordings=len(shards), windows=len(rows), subjects=len(shards), scale=0.0),
        accounting=Ledger().close(),
        versions={},
    )
    (path / "manifest.json").write_bytes(manifest.to_json())
    return path
