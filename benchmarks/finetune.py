"""Measure the gain by pretraining: rest or arithmetic (eegmat) with a fifth of the labels, on new subjects.

For each seed, the subjects are split into folds. For each fold, an encoder is pretrained on all recordings of the other
subjects and fine-tuned on the labels of a fifth of them, and the fold's subjects are predicted. All fine-tuning takes
the same number of steps on the same windows. A probe is logistic regression on frozen features, with an untrained
network as its control. Scores are AUCs over the predictions of all folds together, averaged over seeds. Intervals are
bootstraps over subjects, and "to scratch" is the paired difference to training from scratch. Rows are printed after
every seed, so that the script may be stopped.

    raypipe prepare ../shared/data/eegmat_bids --target bids-task:rest,arithmetic --window 4 --out eegmat
    python benchmarks/finetune.py eegmat
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from benchmarks.timing import where_and_when
from raypipe.core.class_metrics import auc
from raypipe.core.parameters import parse_config
from raypipe.core.seeds import derive_seed
from raypipe.data.window_store import WindowStore
from raypipe.models.network import Encoder
from raypipe.pretraining.linear_probe import fit_probe
from raypipe.pretraining.trainer import Pretrainer, features, make_encoder
from raypipe.training.loader import FoldData, WindowLoader
from raypipe.training.trainer import SupervisedTrainer

SHARE = 0.2
SHAPE = {"model/filters": 32, "model/heads": 4, "model/depth": 2, "model/patch": 100}
NETWORKS = {"ViT": "vit", "Conformer": "conformer"}
KINDS = {"ViT": ("mae", "simclr"), "Conformer": ("simclr",)}
"""Objectives that each network is pretrained with."""
WAYS = {
    "full": {},
    "LoRA": {"init/tune": "lora"},
    "frozen": {"init/tune": "frozen"},
}
"""Ways of fine-tuning; all but `full` are tried only on the ViT that was pretrained with MAE."""
Index = NDArray[np.int64]


def area(y: NDArray[np.int64], scores: NDArray[np.float64]) -> float:
    """Return the AUC of scores of the second class."""
    return auc(y, np.stack((-scores, scores), 1))


class Table:
    """Predictions of every row, and their time."""

    def __init__(self, windows: WindowStore, bootstraps: int = 200) -> None:
        self.windows = windows
        self.seconds: dict[str, float] = defaultdict(float)
        self._predictions: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
        subjects = np.unique(windows.subjects)
        rows = {s: np.flatnonzero(windows.subjects == s) for s in subjects}
        rng = np.random.default_rng(0)
        draws = [rng.choice(subjects, len(subjects)) for _ in range(bootstraps)]
        self._samples = [np.concatenate([rows[s] for s in draw]) for draw in draws]

    def add(self, name: str, seed: int, index: Index, probability: NDArray[np.float32]) -> None:
        """Record the probability of the second class for windows of a fold."""
        kept = self._predictions[name]
        if len(kept) <= seed:
            kept.append(np.full(len(self.windows), np.nan))
        kept[seed][index] = probability

    def timed(self, name: str, work: Callable[..., object], *arguments: object) -> None:
        start = time.perf_counter()
        work(name, *arguments)
        self.seconds[name] += time.perf_counter() - start

    def _scores(self, name: str) -> NDArray[np.float64]:
        """Return the mean AUC over seeds for all subjects, then for each bootstrap sample of them."""
        whole = np.arange(len(self.windows))
        y, seeds = self.windows.targets, self._predictions[name]
        return np.array([np.mean([area(y[i], p[i]) for p in seeds]) for i in [whole, *self._samples]])

    def __str__(self) -> str:
        scratch = {network: self._scores(f"{network}, from scratch") for network in NETWORKS}
        lines = [f"{'':32}{'AUC (95 %)':>24}{'to scratch':>28}{'by seed':>24}{'s':>8}"]
        for name, seeds in self._predictions.items():
            scores = self._scores(name)
            low, high = np.quantile(scores[1:], (0.025, 0.975))
            gain = scores - scratch[name.partition(",")[0]]
            worse, better = np.quantile(gain[1:], (0.025, 0.975))
            each = " ".join(f"{area(self.windows.targets, p):.3f}" for p in seeds)
            paired = f"{gain[0]:+.3f} ({worse:+.3f} to {better:+.3f})" if "scratch" not in name else ""
            interval = f"{scores[0]:.3f} ({low:.3f} to {high:.3f})"
            lines.append(f"{name:32}{interval:>24}{paired:>28}{each:>24}{self.seconds[name]:8.0f}")
        return "\n".join(lines)


def fifth(windows: WindowStore, train: Index, seed: int, fold: int) -> Index:
    """Return the windows of a fifth of the training subjects."""
    subjects = np.unique(windows.subjects[train])
    rng = np.random.default_rng(derive_seed("labels", seed, fold))
    chosen = rng.choice(subjects, max(2, round(SHARE * len(subjects))), replace=False)
    return train[np.isin(windows.subjects[train], chosen)]


def one_fold(
    args: argparse.Namespace, loader: WindowLoader, table: Table, seed: int, fold: int, train: Index, out: Index
) -> None:
    windows, labelled = loader.windows, fifth(loader.windows, train, seed, fold)
    steps = -(-len(labelled) // args.batch)

    def tune(name: str, config: dict[str, object], encoder: dict[str, torch.Tensor] | None) -> None:
        parsed = parse_config(config)
        trainer = SupervisedTrainer(parsed, FoldData(parsed, loader, labelled, out[:1], fold=fold), encoder=encoder)
        for _ in range(trainer.config.epochs):
            trainer.run_epoch()
        table.add(name, seed, out, trainer.predict(out)[:, 1])

    def probe(name: str, network: Encoder) -> None:
        weight, bias = fit_probe(
            features(network, loader, labelled), windows.targets[labelled], windows.subjects[labelled], 2
        )
        raw = features(network, loader, out) @ weight.numpy().T + bias.numpy()
        table.add(name, seed, out, raw[:, 1] - raw[:, 0])

    def pretrain(name: str, pretrainer: Pretrainer) -> None:
        for _ in range(args.epochs):
            pretrainer.run_epoch()

    for network, kinds in KINDS.items():
        common = SHAPE | {"model/name": NETWORKS[network], "seed": seed, "batch_size": args.batch}
        tuned = common | {"epochs": max(1, round(args.steps / steps)), "optim/lr": args.lr}
        table.timed(f"{network}, from scratch", tune, tuned, None)
        if network == "ViT":  # a Conformer's BatchNorm has no statistics before it has seen windows
            table.timed(f"{network}, untrained, probe", probe, make_encoder(parse_config(common), windows))
        start = {"init/name": "pretrained", "init/layer_decay": args.layer_decay}
        for kind in kinds:
            pretraining = common | {"pretrain/name": kind, "epochs": args.epochs, "optim/lr": 1e-3}
            pretraining |= {"pretrain/time_shift": True} if kind == "simclr" else {}
            pretrainer = Pretrainer(parse_config(pretraining), loader, train, part=fold)
            own = f"{network}, {kind}"
            table.timed(f"{own}, pretraining", pretrain, pretrainer)
            table.timed(f"{own}, probe", probe, pretrainer.encoder)
            for way, values in WAYS.items():
                if way == "full" or kind == "mae":
                    table.timed(f"{own}, {way}", tune, tuned | start | values, pretrainer.encoder.state_dict())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    for name, value in {"seeds": 3, "folds": 2, "epochs": 6, "steps": 60, "batch": 32, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate of all fine-tuning")
    parser.add_argument("--layer-decay", type=float, default=0.75)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    windows = WindowStore(args.store)
    loader, table = WindowLoader(windows), Table(windows)
    print(where_and_when(), flush=True)
    for seed in range(args.seeds):
        splitter = StratifiedGroupKFold(args.folds, shuffle=True, random_state=seed)
        for fold, (train, out) in enumerate(splitter.split(windows.targets, windows.targets, windows.subjects)):
            one_fold(args, loader, table, seed, fold, train, out)
        print(f"\n{seed + 1} seed(s)\n{table}", flush=True)
        for own in (f"{network}, {kind}" for network, kinds in KINDS.items() for kind in kinds):
            print(f"{own}: {table.seconds[f'{own}, pretraining']:.0f} s of pretraining", flush=True)


if __name__ == "__main__":
    main()
