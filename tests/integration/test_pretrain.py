"""Pretraining by two workers on a real local Ray, one of which is killed; then a sweep that starts from its encoder."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from raypipe import sweep
from raypipe.backend.cluster import Cluster
from raypipe.pretraining.encoders import PretrainedRun
from raypipe.search.pretrain import pretrain
from raypipe.trial.callback import SweepCallback
from tests.support.faults import Kill, arming
from tests.support.sweeps import gated, injected, wait_until
from tests.support.toys import ToyWindows, write_store

pytestmark = pytest.mark.ray

SMALL = {"model/filters": 8, "model/heads": 2, "model/depth": 1, "model/patch": 16, "batch_size": 32}
HOW = {"params": SMALL | {"epochs": 4}, "folds": 2, "probe_every": 0}
FINETUNE = (Path(__file__).parents[2] / "search_spaces/finetune.py").read_text()
TOY = "\n    return {**found(trial), **" + repr(SMALL | {"epochs": 2, "patience": 2}) + "}\n"


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A folder with a store, while Ray is there in whose processes the second run dies as it writes epoch 3."""
    folder = tmp_path_factory.mktemp("pretrain")
    write_store(folder / "store", ToyWindows(subjects=8, each=12))
    kill = Kill(state=str(folder / "kills"), name=r"all/epoch-0003", nth=2, when="amid")
    with pytest.MonkeyPatch.context() as patch, Cluster(None, SweepCallback()) as cluster:
        for name, value in injected(folder / "hook", arming(kill)).items():
            patch.setenv(name, value)
        cluster.start()
        yield folder


@pytest.fixture(scope="module")
def two(room) -> dict[str, PretrainedRun]:
    """Runs of two workers each: undisturbed, and with the first worker killed in the midst of a checkpoint."""
    return {name: pretrain("simclr", room / "store", room / name, workers=2, **HOW) for name in ("calm", "killed")}


def losses(run: PretrainedRun) -> list[float]:
    return [epoch.loss for epoch in run.history("all")]


def encoder(run: PretrainedRun) -> bytes:
    return run.folder.read("encoder.safetensors")


def test_two_workers_train_what_one_does(room, two):
    alone = pretrain("simclr", room / "store", room / "alone", workers=1, **HOW)
    np.testing.assert_allclose(losses(two["calm"]), losses(alone), atol=1e-4)
    assert len(losses(alone)) == 4


def test_a_worker_killed_changes_nothing(room, two):
    # Counted were: the calm run's third epoch, the killed one's, and the same again by who came after.
    assert len(list((room / "kills").iterdir())) == 3
    assert losses(two["killed"]) == losses(two["calm"])
    assert encoder(two["killed"]) == encoder(two["calm"])


def test_ctrl_c_ends_the_epoch_under_way_and_again_stops_two_workers_now(room, two, tmp_path, drive):
    run = tmp_path / "run"
    sets = [word for name, value in SMALL.items() if "/" in name for word in ("--set", f"{name}={value}")]
    command = ["pretrain", "simclr", "--data", room / "store", "--run", run, "--epochs", 4, "--folds", 2]
    command += ["--batch", 32, "--probe-every", 0, "--workers", 2, *sets]

    def epochs() -> int:
        return len(PretrainedRun(run).history("all")) if (run / "all/history.json").exists() else 0

    for how, before, after in (("once", 1, 2), ("twice", 2, 2)):
        gate = tmp_path / how
        driver = drive(*command, env=injected(tmp_path / "hook", gated(gate, epoch=before + 1)))
        wait_until(lambda: epochs() == before, "the epochs before the gate")  # noqa: B023
        wait_until(lambda: driver.named("RayTrainWorker"), "the workers")  # noqa: B023
        os.killpg(driver.child.pid, signal.SIGINT)  # as a terminal does: everyone hears it
        wait_until(lambda: "Ctrl-C again stops now" in driver.said(), "the driver to answer")  # noqa: B023
        if how == "once":
            gate.touch()
        else:
            os.killpg(driver.child.pid, signal.SIGINT)
        driver.finish_interrupted()
        assert epochs() == after
    again = drive(*command)
    out = again.finish()
    assert again.child.returncode == 0, out
    assert losses(PretrainedRun(run)) == losses(two["calm"])
    assert encoder(PretrainedRun(run)) == encoder(two["calm"])


def test_a_sweep_starts_from_the_encoder(room, two):
    space = room / "space.py"
    space.write_text(FINETUNE.replace("def space(", "def found(") + "\n\ndef space(trial):" + TOY)
    run = sweep(space, room / "store", room / "fine", init=room / "killed", trials=3, folds=2, workers=1, prune=False)
    results = run.store.results()
    assert [result.state for result in results] == ["complete"] * 3
    assert {run.store.config(n).init.tune for n in run.store.numbers()} == {"full", "lora", "frozen"}
    # Full and frozen fine-tuning begin at the same weights, so their networks can be averaged.
    assert results[0].initial == results[2].initial
    assert run.store.info.init["objective"] == "simclr"


def test_a_sweep_starts_from_a_pretrained_conformer_with_all_choices_left_to_it(room):
    """`--stem auto --stack auto`, the defaults, measure networks before any encoder is at hand."""
    sizes = SMALL | {"model/name": "conformer"}
    pretrain("simclr", room / "store", room / "conformer", params=sizes | {"epochs": 1}, folds=2, probe_every=0)
    space = room / "conformer.py"
    fixed = sizes | {"init/name": "pretrained", "epochs": 2}
    space.write_text(
        f"def space(trial):\n    trial.suggest_categorical('init/tune', ['full', 'lora'])\n    return {fixed!r}\n"
    )
    run = sweep(space, room / "store", room / "tuned", init=room / "conformer", trials=2, folds=2, workers=1)
    assert [(result.state, result.reason) for result in run.store.results()] == [("complete", "trained to the end")] * 2
