"""Finished runs, made once a session in this process: nothing here needs Ray."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
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


@dataclass
class Server:
    """An S3 server of this machine, with a bucket."""

    port: int
    bucket: str
    _folders: itertools.count = field(default_factory=itertools.count)

    def uri(self, path: str) -> str:
        """URI of a bucket and a folder in it."""
        return f"s3://{path}?scheme=http&endpoint_override=127.0.0.1:{self.port}&region=us-east-1"

    def new_folder(self) -> str:
        """URI of a folder that nobody has used yet."""
        return self.uri(f"{self.bucket}/run-{next(self._folders)}")


@pytest.fixture(scope="session")
def s3():
    """A server without a care for keys; what reads them from the environment finds some."""
    from moto.server import ThreadedMotoServer
    from pyarrow import fs

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    port = server.get_host_and_port()[1]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # else the search for keys leaves this machine
        options = {"endpoint_override": f"127.0.0.1:{port}", "scheme": "http", "region": "us-east-1"}
        fs.S3FileSystem(allow_bucket_creation=True, **options).create_dir("raypipe-tests")
        yield Server(port, "raypipe-tests")
    server.stop()
