"""Toy windows in memory with a known answer, and runs, trainers and stores made from them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from raypipe.core.config import TrialConfig
from raypipe.core.fold_drawing import make_folds
from raypipe.core.levels import level_of
from raypipe.core.model_config import MODELS
from raypipe.core.parameters import parse_config
from raypipe.core.search_space import SearchSpace
from raypipe.data.accounting import Ledger
from raypipe.data.manifest import COLUMNS, OUTPUT, Manifest, Plan, Settings, Shard, Summary
from raypipe.data.shard_file import content_hash, window_digest
from raypipe.data.window_store import WindowStore
from raypipe.storage.records import LabelsInfo, RunInfo
from raypipe.storage.run_store import RunStore
from raypipe.training.loader import FoldData, WindowLoader
from raypipe.training.trainer import SupervisedTrainer

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
    """Windows in memory: the target is the amplitude of a bump (regression) or whether there is one (classes).

    With `outputs`, further values are half the amplitude plus noise.
    """

    def __init__(
        self,
        subjects: int = 8,
        each: int = 8,
        channels: int = 3,
        *,
        classes: bool = False,
        spare: int = 0,
        names: Sequence[str] = (),
        outputs: Sequence[str] = (),
    ):
        channels = len(names) or channels
        rng = np.random.default_rng(0)
        n = subjects * each
        self.sfreq = 50.0
        self.crop_samples, self.window_samples = 64, 64 + spare
        self.channels = list(names) or [f"E{k + 1}" for k in range(channels)]
        self.n_channels, self.n_outputs = channels, 2 if classes else 1
        self.classes = ["off", "on"] if classes else []
        self.kind: Literal["classification", "regression"] = "classification" if classes else "regression"
        self.metric: Any = "auc" if classes else "nrmse"
        self.subjects = np.repeat([f"s{k:02d}" for k in range(subjects)], each)
        level = rng.integers(0, 2, n) if classes else rng.normal(size=n)
        self.targets = level.astype(np.int64 if classes else np.float32)
        time = np.arange(self.window_samples)
        bump = np.exp(-(((time - 30) / 6) ** 2))
        self.x = (rng.normal(size=(n, channels, self.window_samples)) + 3 * level[:, None, None] * bump).astype(
            np.float32
        )
        self.outputs = list(outputs)
        if outputs:
            others = rng.normal(size=(n, len(outputs) - 1))
            self.targets = np.column_stack([level, *(0.5 * level + other for other in others.T)]).astype(np.float32)
            self.n_outputs = len(outputs)
        self.path, self.where, self.dtype = Path("toy"), "toy", "float32"
        self.data_hash = "toy"
        self.names: tuple[str, ...] = ()
        self.places = [self.where]

    def of(self, name: str) -> ToyWindows:
        return self

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
    where: Path | str,
    windows: ToyWindows | WindowStore,
    *,
    n_folds: int = 3,
    repeats: int = 1,
    group_of: Mapping[str, str] | None = None,
    space: str = SPACE,
    seed: int = 0,
    data: str = "toy",
) -> RunStore:
    """Create a run on toy windows; `data` is where they are, for those who read them again."""
    folds = make_folds(
        windows.subjects,
        windows.targets,
        classes=bool(windows.classes),
        n_folds=n_folds,
        repeats=repeats,
        seed=seed,
        group_of=group_of,
    )
    source = SearchSpace(space, "toy.py")
    info = RunInfo(
        id="toy",
        created=0.0,
        data=data,
        data_hash=windows.data_hash,
        target="toy",
        kind=windows.kind,
        metric=windows.metric,
        level=level_of(windows.subjects, windows.targets),
        direction="maximize" if windows.classes else "minimize",
        labels=LabelsInfo(),
        classes=windows.classes,
        outputs=windows.outputs,
        seed=seed,
        space=source.name,
        space_hash=source.hash,
        folds_hash="",
        versions={},
    )
    return RunStore.create(where, info, folds, source)


def tiny(**changes) -> TrialConfig:
    """Return a configuration that trains in well under a second; ``tiny(sam__name="sam")``."""
    changed = {name.replace("__", "/"): value for name, value in changes.items()}
    own = MODELS[str(changed.get("model/name", "conformer"))].model_fields
    small = {name: value for name, value in TINY.items() if name.removeprefix("model/") in own or "model/" not in name}
    return parse_config(small | changed)


def fold_trainer(
    config: TrialConfig, windows: ToyWindows | WindowLoader, train, validation, *, fold, **options
) -> SupervisedTrainer:
    """Return a trainer of one fold, on the CPU."""
    loader = windows if isinstance(windows, WindowLoader) else WindowLoader(windows)  # type: ignore[arg-type]
    return SupervisedTrainer(config, FoldData(config, loader, train, validation, fold=fold), **options)


def write_store(path: Path, toy: ToyWindows) -> Path:
    """Write toy windows as a store on disk, for workers in other processes."""
    names = tuple(toy.channels)
    asked: dict[str, Any] = {"target": "toy", "sfreq": None, "channels": None, "window": None, "crop": None}
    settings = Settings(**asked, stride=None, tmin=None, dtype="float32", metric=None)
    plan = Plan(
        target="toy",
        channels=names,
        sources=names,
        sfreq=toy.sfreq,
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
            values = np.atleast_1d(toy.targets[window])
            place = (window, shard.recording, subject, "", "toy", "", 2.0 * row, *values, number, row, 0)
            rows.append((*place, window_digest(toy.x[window])))
    targets = [f"{OUTPUT}{name}" for name in toy.outputs] or ["target"]
    columns = [each for name in COLUMNS for each in (targets if name == "target" else [name])]
    table = pd.DataFrame(rows, columns=columns).to_csv(index=False).encode()
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
