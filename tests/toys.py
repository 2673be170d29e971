"""Small stand-ins that tests share: windows in memory with a known answer, and runs made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raypipe.config import TrialConfig, parse_config
from raypipe.folds import make_folds
from raypipe.space import SearchSpace
from raypipe.store import RunInfo, RunStore

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

    def __init__(self, subjects: int = 8, each: int = 8, channels: int = 3, *, classes: bool = False, spare: int = 0):
        rng = np.random.default_rng(0)
        n = subjects * each
        self.sfreq = 50.0
        self.crop_samples, self.window_samples = 64, 64 + spare
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
        self.path = Path("toy")
        self.data_hash = "toy"

    def __len__(self) -> int:
        return len(self.targets)

    def gather(self, index, offset=None):
        offset = np.zeros(len(index), int) if offset is None else offset
        return np.stack([self.x[i, :, o : o + self.crop_samples] for i, o in zip(index, offset, strict=True)])

    def target_at(self, index, offset):
        return self.targets[index]


def make_run(
    where: Path | str, windows: ToyWindows, *, n_folds: int = 3, space: str = SPACE, seed: int = 0
) -> RunStore:
    """A run on toy windows."""
    folds = make_folds(windows.subjects, windows.targets, classes=bool(windows.classes), n_folds=n_folds, seed=seed)
    source = SearchSpace(space, "toy.py")
    info = RunInfo(
        created=0.0,
        data="toy",
        data_hash=windows.data_hash,
        task="toy",
        kind=windows.kind,
        metric=windows.metric,
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
    """A configuration that trains in well under a second; ``tiny(sam__name="sam")``."""
    return parse_config(TINY | {name.replace("__", "/"): value for name, value in changes.items()})
