"""Finished runs, made once a session in this process: nothing here needs Ray."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from raypipe.data.prepare import prepare
from raypipe.data.window_store import WindowStore
from raypipe.ensembles import baselines, calibration
from raypipe.ensembles.fit import fit_ensemble
from raypipe.ensembles.fitted import Ensemble
from raypipe.simulation.contrast_change import simulate
from raypipe.storage.records import epoch_file, trial_file
from raypipe.storage.run_store import RunStore
from raypipe.storage.trial_log import TrialLog, start_text
from raypipe.training import graphs
from raypipe.training.optim import AdamW
from raypipe.training.step import TrainState
from raypipe.trial.evaluator import finish_trial
from raypipe.trial.local import run_trial
from tests.support.records import edit_record
from tests.support.storage import s3_server
from tests.support.streams import LOOPBACK
from tests.support.toys import ToyWindows, add_ended, make_run, tiny, write_store


@dataclass
class Finished:
    """A run with three complete trials and a failed one, its windows, and what they were cut from."""

    run: RunStore
    windows: WindowStore
    bids: Path | None = None

    def ensemble(self, **options) -> Ensemble:
        return fit_ensemble(self.run, windows=self.windows, **{"method": "confidence"} | options)


def finish(
    root: Path,
    store: Path,
    bids: Path | None = None,
    epochs: int = 3,
    seeds=(0, 1, 2),
    repeats=1,
    group_of=None,
    **info,
) -> Finished:
    windows = WindowStore(store)
    where = make_run(root / "run", windows, repeats=repeats, group_of=group_of).folder
    edit_record(where, "run.json", {"data": str(store)} | info)
    run = RunStore.open(root / "run")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for number, lr in enumerate((3e-3, 1e-2, 1e-3)):
        run.add_trial(number, tiny(optim__lr=lr, epochs=epochs, batch_size=16, seed=seeds[number]))
        run_trial(run, windows, number)
    torch.set_num_threads(threads)
    run.add_trial(3, tiny(optim__lr=1.0))
    finish_trial(run, windows, 3, "failed", "epoch 1: the loss is <not> a number", "non-finite")
    return Finished(run, windows, bids)


@pytest.fixture(autouse=True)
def one_baseline(request, monkeypatch) -> None:
    """Fit one classical baseline with an ensemble: all of them would take most of the time of tests."""
    if "all_baselines" not in request.fixturenames:
        monkeypatch.setattr(baselines, "PREDICTORS", {"band power": baselines.PREDICTORS["band power"]})


@pytest.fixture
def all_baselines() -> None:
    """Fit all classical baselines with an ensemble."""


@pytest.fixture(scope="session")
def simulated(tmp_path_factory) -> Finished:
    """Challenge 1 on a simulated BIDS tree of nine subjects and four channels."""
    root = tmp_path_factory.mktemp("simulated")
    bids = simulate(root / "bids", subjects=9, channels=4, trials=6)
    prepare(bids, "challenge1", root / "store", jobs=1)
    return finish(root, root / "store", bids, target="challenge1")


@pytest.fixture(scope="session")
def classes(tmp_path_factory) -> Finished:
    """Two classes that can be distinguished, from forty toy subjects: eight are held out."""
    root = tmp_path_factory.mktemp("classes")
    toy = ToyWindows(subjects=40, each=6, classes=True)
    return finish(root, write_store(root / "store", toy), target="events:off,on", epochs=4)


def at_the_median(metric, p_N2, *_) -> np.ndarray:
    """Return the weights of two classes that divide predictions in halves."""
    threshold = float(np.median(p_N2[:, 1]))
    return np.array([threshold, 1 - threshold])


@pytest.fixture
def decided(classes, tmp_path, monkeypatch) -> Path:
    """The run of `classes`, ranked by balanced accuracy, with an ensemble whose threshold is a median."""
    folder = Path(shutil.copytree(classes.run.local, tmp_path / "decided"))
    edit_record(RunStore.open(folder).folder, "run.json", {"metric": "balanced-accuracy"})
    monkeypatch.setattr(calibration, "choose_weights", at_the_median)
    fit_ensemble(RunStore.open(folder), windows=classes.windows, method="equal").save()
    return folder


@pytest.fixture(scope="session")
def values(tmp_path_factory) -> Finished:
    """A regression that can be learned, from forty toy subjects."""
    root = tmp_path_factory.mktemp("values")
    return finish(root, write_store(root / "store", ToyWindows(subjects=40, each=6)), target="latency:bump", epochs=4)


@pytest.fixture(scope="session")
def repeated(tmp_path_factory) -> Finished:
    """Two classes, one for each of twenty-four people, whose folds are drawn twice."""
    root = tmp_path_factory.mktemp("repeated")
    toy = ToyWindows(subjects=24, each=4, classes=True)
    index_N = np.unique(toy.subjects, return_inverse=True)[1]
    toy.targets = index_N % 2
    return finish(root, write_store(root / "store", toy), repeats=2, epochs=2)


TEN_TWENTY = [
    *("Fp1", "Fp2", "F7", "F3", "Fz", "F4", "F8", "T7", "C3", "Cz"),
    *("C4", "T8", "P7", "P3", "Pz", "P4", "P8", "O1", "O2"),
]


@pytest.fixture(scope="session")
def full_run(tmp_path_factory) -> Finished:
    """A run whose report has every section: electrodes with names, and trials enough, of which most are made up."""
    root = tmp_path_factory.mktemp("full")
    toy = ToyWindows(subjects=16, each=4, names=TEN_TWENTY)
    made = finish(root, write_store(root / "store", toy), target="latency:bump", epochs=2)
    run, rng = made.run, np.random.default_rng(0)
    like, histories = run.results()[0], run.history(0)
    for number in range(4, 16):
        loss = "huber" if number % 2 else "plain"
        config = tiny(optim__lr=float(10 ** rng.uniform(-4, -2)), loss__name=loss, epochs=2)
        run.add_trial(number, config)
        run.write_history(number, [epoch.model_copy(update={"score": 1.5}) for epoch in histories])
        for name in (epoch_file(epoch.epoch) for epoch in histories):
            run.folder.write(trial_file(number, name), run.folder.read(trial_file(0, name)))
        state, score = ("pruned", 1.9) if number > 13 else ("complete", 1.3 + 0.01 * number)
        change = {"number": number, "state": state, "score": score, "epochs": 1 if number > 13 else 2, "files": {}}
        run.write_result(like.model_copy(update=change))
    made.ensemble(top=3).save()
    return made


@pytest.fixture
def twelve(tmp_path) -> RunStore:
    """Twelve trials whose scores depend on the learning rate only, and two that halving stopped."""
    made = make_run(tmp_path / "run", ToyWindows())
    rng = np.random.default_rng(0)
    for number in range(12):
        lr = float(10 ** rng.uniform(-4, -2))
        loss = "huber" if number % 2 else "focal"
        add_ended(
            made,
            number,
            1.0 + np.log10(lr) / 10,
            optim__lr=lr,
            optim__weight_decay=float(rng.uniform(0, 0.1)),
            loss__name=loss,
        )
    add_ended(made, 12, 1.2, "pruned", epochs=1)
    add_ended(made, 13, 1.3, "pruned", epochs=2)
    TrialLog(made.folder, 3, "actor").write(start_text("rank 0", 2))
    return made


@pytest.fixture(scope="session")
def s3():
    """A server without a care for keys."""
    with s3_server() as server:
        yield server


@pytest.fixture
def deferred(monkeypatch):
    """Take steps as on a GPU, without branches that depend on results."""
    monkeypatch.setattr(TrainState, "deferred", property(lambda state: isinstance(state.optimizer, AdamW)))
    monkeypatch.setattr(graphs, "UNCAPTURED_CALLS", 10**9)


@pytest.fixture
def four_channels(monkeypatch):
    """Make the simulated run's windows those of the challenge."""
    from raypipe.packaging import challenge_windows

    monkeypatch.setitem(challenge_windows.CHALLENGE_WINDOWS, "n_channels", 4)


@pytest.fixture(scope="session")
def lsl(tmp_path_factory):
    """The module pylsl, confined to this machine."""
    config = tmp_path_factory.mktemp("lsl") / "lsl_api.cfg"
    config.write_text(LOOPBACK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LSLAPICFG", str(config))  # read when liblsl is first used; also by child processes
        yield pytest.importorskip("pylsl", reason="LabStreamingLayer is not installed (the extra stream)")
