"""Finished runs, made once a session in this process: nothing here needs Ray."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from raypipe.ensemble import Ensemble, fit_ensemble
from raypipe.files import read_json, write_json
from raypipe.preparation import prepare
from raypipe.referee import finish_trial, run_trial
from raypipe.simulate import simulate
from raypipe.store import RunStore
from raypipe.windows import WindowStore
from tests.storage import s3_server
from tests.toys import ToyWindows, make_run, tiny, write_store


@dataclass
class Finished:
    """A run with three complete trials and a failed one, its windows, and what they were cut from."""

    run: RunStore
    windows: WindowStore
    bids: Path | None = None

    def ensemble(self, **options) -> Ensemble:
        return fit_ensemble(self.run, windows=self.windows, **{"method": "confidence"} | options)


def finish(root: Path, store: Path, bids: Path | None = None, epochs: int = 3, seeds=(0, 1, 2), **info) -> Finished:
    windows = WindowStore(store)
    where = make_run(root / "run", windows).folder
    write_json(where, "run.json", read_json(where, "run.json") | {"data": str(store)} | info)
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


@pytest.fixture(scope="session")
def simulated(tmp_path_factory) -> Finished:
    """Challenge 1 on a simulated BIDS tree of nine subjects and four channels."""
    root = tmp_path_factory.mktemp("simulated")
    bids = simulate(root / "bids", subjects=9, channels=4, trials=6)
    prepare(bids, "challenge1", root / "store", jobs=1)
    return finish(root, root / "store", bids, task="challenge1")


@pytest.fixture(scope="session")
def classes(tmp_path_factory) -> Finished:
    """Two classes that can be told apart, from forty toy subjects: eight are held out."""
    root = tmp_path_factory.mktemp("classes")
    toy = ToyWindows(subjects=40, each=6, classes=True)
    return finish(root, write_store(root / "store", toy), task="events:off,on", epochs=4)


@pytest.fixture(scope="session")
def values(tmp_path_factory) -> Finished:
    """A regression that can be learned, from forty toy subjects."""
    root = tmp_path_factory.mktemp("values")
    return finish(root, write_store(root / "store", ToyWindows(subjects=40, each=6)), task="latency:bump", epochs=4)


@pytest.fixture(scope="session")
def s3():
    """A server without a care for keys."""
    with s3_server() as server:
        yield server
