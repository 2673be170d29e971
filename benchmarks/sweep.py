"""Measure trials per hour of the same search in raypipe, in Optuna with a plain loop, and in a plain Ray Tune script.

    python benchmarks/sweep.py                               # all, 12 trials each: well over an hour on two cores
    python benchmarks/sweep.py --peer-trials 4               # peers with braindecode's network run 4 of the 12 trials

Twelve configurations of learning rate and rho, four folds, five epochs, SAM, batch 64 of 129 x 200. All train the same
steps on the same windows, score the pooled validation windows after every epoch, and use the same two cores, with all
their processes, however many the machine has. raypipe runs one trial at a time on two workers.

a. Optuna alone: two joblib processes of one thread, a plain loop over folds, windows in memory.
b. Ray Tune: OptunaSearch, one trial per actor of one core, one fold after another, windows memory-mapped, actors
   reused.

Both run with braindecode's EEGConformer and with raypipe's, which separates the effect of the network from that of
folds and orchestration. Times are of the whole call, start-up included. The peers save no checkpoints; raypipe saves
one after every epoch of every fold.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch

from benchmarks import peers, report
from benchmarks.folds import windows_of
from benchmarks.toys import write_store
from raypipe import SweepCallback, sweep
from raypipe.core.fold_drawing import make_folds
from raypipe.core.metrics import score
from raypipe.models.conformer import Conformer
from raypipe.models.network import normalise
from raypipe.storage.records import TrialResult

FOLDS, EPOCHS, BATCH = 4, 5, 64
CORES = 2
"""Cores of every contestant."""
POINTS = [{"lr": lr, "rho": rho} for lr in (3e-4, 1e-3, 3e-3) for rho in (0.02, 0.05, 0.1, 0.2)]
SPACE = f'''"""Twelve points."""
START = {[{"optim/lr": p["lr"], "sam/name": "sam", "sam/rho": p["rho"]} for p in POINTS]!r}
def space(trial):
    trial.suggest_float("optim/lr", 1e-4, 1e-2, log=True)
    trial.suggest_categorical("sam/name", ["sam"])
    trial.suggest_float("sam/rho", 0.01, 0.5, log=True)
    return {{"epochs": {EPOCHS}, "patience": {EPOCHS}, "batch_size": {BATCH}, "model/kernels": "paper"}}
'''
NETWORKS: dict[str, Callable[[int, int], torch.nn.Module]] = {
    "braindecode's": peers.conformer,
    "raypipe's": lambda channels, samples: Conformer(channels, samples, 1, norm="none"),
}


def plain_trial(where: str, network: str, point: dict[str, float], report: Callable[[float], None]) -> float:
    """Train all folds, one after another in each epoch; report the pooled score after every epoch."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    x_NCT = np.load(Path(where) / "x.npy", mmap_mode="r")
    y_N = np.load(Path(where) / "y.npy")
    subjects = np.load(Path(where) / "subjects.npy")
    folds = make_folds(subjects, y_N, classes=False, n_folds=FOLDS, seed=0)
    splits = [folds.split(subjects, fold) for fold in range(FOLDS)]
    torch.manual_seed(0)
    models = [NETWORKS[network](*x_NCT.shape[1:]) for _ in range(FOLDS)]
    optimizers = [torch.optim.AdamW(m.parameters(), lr=point["lr"], weight_decay=1e-2) for m in models]
    rng = np.random.default_rng(0)
    value = float("nan")
    for _ in range(EPOCHS):
        predictions = []
        for (train, validation), model, optimizer in zip(splits, models, optimizers, strict=True):
            order = rng.permutation(train)
            model.train()
            for step in range(len(order) // BATCH):
                index = order[step * BATCH : (step + 1) * BATCH]
                x_BCT, y_B1 = torch.from_numpy(x_NCT[index]), torch.from_numpy(y_N[index])[:, None]
                loss = partial(_loss, model, x_BCT, y_B1)
                peers.sam_step(loss, optimizer, point["rho"])
            model.eval()
            with torch.no_grad():
                predictions.append(model(torch.from_numpy(x_NCT[validation])).numpy())
        pooled = np.concatenate([y_N[validation] for _, validation in splits])
        value = score("nrmse", pooled, np.concatenate(predictions))
        report(value)
    return value


def _loss(model: torch.nn.Module, x_BCT: torch.Tensor, y_B1: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.mse_loss(model(x_BCT), y_B1)


def by_optuna(where: str, network: str, trials: int) -> float:
    import joblib
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    start = time.perf_counter()
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    for point in POINTS[:trials]:
        study.enqueue_trial(point)
    spaces = {
        "lr": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True),
        "rho": optuna.distributions.FloatDistribution(0.01, 0.5, log=True),
    }
    trials_asked = [study.ask(spaces) for _ in range(trials)]  # at once, because the points are known
    values = joblib.Parallel(n_jobs=CORES)(
        joblib.delayed(plain_trial)(where, network, trial.params, lambda _: None) for trial in trials_asked
    )
    for trial, value in zip(trials_asked, values, strict=True):
        study.tell(trial, value)
    return time.perf_counter() - start


def _tune_trial(config: dict[str, Any]) -> None:
    from ray import tune

    point = {key: config[key] for key in ("lr", "rho")}
    plain_trial(config["where"], config["network"], point, lambda value: tune.report({"score": value}))


def by_tune(where: str, network: str, trials: int) -> float:
    start = time.perf_counter()
    import logging

    import ray
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    ray.init(
        "local",
        num_cpus=CORES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    with tempfile.TemporaryDirectory() as storage:
        space = {
            "lr": tune.loguniform(1e-4, 1e-2),
            "rho": tune.loguniform(0.01, 0.5),
            "where": where,
            "network": network,
        }
        search = OptunaSearch(metric="score", mode="min", points_to_evaluate=POINTS[:trials])
        tuner = tune.Tuner(
            tune.with_resources(_tune_trial, {"cpu": 1}),
            param_space=space,
            tune_config=tune.TuneConfig(
                search_alg=search, num_samples=trials, reuse_actors=True, metric="score", mode="min"
            ),
            run_config=tune.RunConfig(storage_path=storage, verbose=0),
        )
        results = tuner.fit()
        assert not results.errors, results.errors
    seconds = time.perf_counter() - start
    ray.shutdown()
    return seconds


class Clock(SweepCallback):
    """Records the time and the processors' ticks at the end of epochs and trials."""

    def __init__(self) -> None:
        self.epochs: list[tuple[float, tuple[float, float]]] = []
        self.ends: list[tuple[float, tuple[float, float]]] = []

    def on_epoch(self, number: int, epoch: int, score: float, fold_scores: Sequence[float | None]) -> None:
        self.epochs.append((time.perf_counter(), processor_seconds()))

    def on_trial_end(self, result: TrialResult) -> None:
        self.ends.append((time.perf_counter(), processor_seconds()))


def by_raypipe(folder: Path, trials: int) -> tuple[float, dict[str, float]]:
    """Return the seconds of the call, and figures on how they were spent."""
    (folder / "space.py").write_text(SPACE)
    clock = Clock()
    start = time.perf_counter()
    run = sweep(
        folder / "space.py",
        folder / "store",
        folder / "run",
        trials=trials,
        folds=FOLDS,
        workers=CORES,
        concurrent=1,
        prune=False,
        callback=clock,
    )
    seconds = time.perf_counter() - start
    (first, begun), (last, ended) = clock.epochs[0], clock.ends[-1]
    busy = (ended[0] - begun[0]) / (ended[1] - begun[1])
    epochs = [epoch for number in run.trials.index for epoch in run.store.history(number)]
    training = sum(epoch.seconds for epoch in epochs[1:]) / CORES
    return seconds, {
        "seconds to the first epoch": first - start,
        "cores busy from then on": busy,
        "share of the time spent training": training / (last - first),
    }


def processor_seconds() -> tuple[float, float]:
    """Return the busy ticks of the cores that this process may use, and all their ticks."""
    rows = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    cores = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    ticks = [[float(part) for part in row[1:9]] for row in rows if row and row[0] in cores]
    idle = sum(each[3] + each[4] for each in ticks)
    every = sum(map(sum, ticks))
    return every - idle, every


def take_cores() -> None:
    """Keep this process and those that it starts on `CORES` cores.

    Raises
    ------
    SystemExit
        There are fewer.
    """
    cores = sorted(os.sched_getaffinity(0))[:CORES]
    if len(cores) < CORES:
        sys.exit(f"this benchmark needs {CORES} cores")
    os.sched_setaffinity(0, cores)
    os.environ["RAY_OVERRIDE_RESOURCES"] = json.dumps({"CPU": CORES})  # Ray starts a process for each core it counts


def measure(args: argparse.Namespace) -> report.Result:
    """Run the searches, one after another."""
    warnings.simplefilter("ignore")
    take_cores()
    toy = windows_of(args.windows, 129, 200, 16)
    toy.x = normalise(torch.from_numpy(toy.x), "channel").numpy()
    title = f"A search of {args.trials} configurations x {FOLDS} folds x {EPOCHS} epochs, {len(toy)} windows"
    found = report.result(title)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_store(folder / "store", toy)
        for key, array in {"x": toy.x, "y": toy.targets, "subjects": toy.subjects}.items():
            np.save(folder / f"{key}.npy", array)
        each: dict[str, float] = {}
        if "raypipe" in args.only:
            seconds, figures = by_raypipe(folder, args.trials)
            each["raypipe"] = seconds / args.trials
            found["figures"] |= figures
        for network in ("raypipe's", "braindecode's"):
            count = args.trials if network == "raypipe's" else args.peer_trials or args.trials
            for label, by in {"optuna": by_optuna, "tune": by_tune}.items():
                if label in args.only:
                    each[f"{label}, plain loop, {network} network"] = by(str(folder), network, count) / count
    report.add_times(found, {f"a trial, {label}": [seconds] for label, seconds in each.items()})
    for label, seconds in each.items():
        found["figures"][f"trials an hour, {label}"] = 3600 / seconds
        if "raypipe" in each and label != "raypipe":
            report.add_ratio(found, f"raypipe / {label}", [seconds], [each["raypipe"]])
    return found


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=1024, help="number of windows")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--peer-trials", type=int, help="trials of the peers with braindecode's network")
    parser.add_argument("--only", nargs="*", default=["raypipe", "optuna", "tune"])
    report.main(parser, measure, words)


if __name__ == "__main__":
    main()
