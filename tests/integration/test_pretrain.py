"""Pretraining by two workers on a real local Ray, one of which is killed; then a sweep that starts from its encoder."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from raypipe import sweep
from raypipe.pretraining.encoders import PretrainedRun
from raypipe.search.pretrain import pretrain, resume
from tests.support.faults import Kill, arming
from tests.support.sweeps import Gate
from tests.support.toys import ToyWindows, write_store

pytestmark = pytest.mark.ray

SMALL = {"model/filters": 8, "model/heads": 2, "model/depth": 1, "model/patch": 16, "batch_size": 32}
HOW = {"params": SMALL | {"epochs": 4}, "folds": 2, "probe_every": 0}
FINETUNE = (Path(__file__).parents[2] / "search_spaces/finetune.py").read_text()
TOY = "\n    return {**found(trial), **" + repr(SMALL | {"epochs": 2, "patience": 2}) + "}\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a store."""
    folder = tmp_path_factory.mktemp("pretrain")
    write_store(folder / "store", ToyWindows(subjects=8, each=12))
    return folder


@pytest.fixture(scope="module")
def calm(folder, options) -> PretrainedRun:
    """A run of two workers that nothing disturbed."""
    return pretrain("simclr", folder / "store", folder / "calm", workers=2, address=options["address"], **HOW)


def losses(run: PretrainedRun) -> list[float]:
    return [epoch.loss for epoch in run.history("all")]


def encoder(run: PretrainedRun) -> bytes:
    return run.folder.read("encoder.safetensors")


def test_two_workers_train_what_one_does(folder, shared, calm):
    alone = pretrain("simclr", folder / "store", folder / "alone", workers=1, **HOW)
    np.testing.assert_allclose(losses(calm), losses(alone), atol=1e-4)
    assert len(losses(alone)) == 4


@pytest.mark.long
def test_ctrl_c_once_and_twice_and_a_killed_worker_change_nothing(folder, shared, calm, tmp_path, alone):
    """Once ends the epoch under way, twice stops two workers now; the killed one is started again by Ray Train.

    They are on a Ray of their driver's own, where they meet by a file and not at a port.
    """
    run = tmp_path / "run"
    sets = [word for name, value in SMALL.items() if "/" in name for word in ("--set", f"{name}={value}")]
    command = ["pretrain", "simclr", "--data", folder / "store", "--run", run, "--epochs", 4, "--folds", 2]
    command += ["--batch", 32, "--probe-every", 0, "--workers", 2, *sets]

    def epochs() -> int:
        return len(losses(PretrainedRun(run))) if PretrainedRun.exists(run) else 0

    kill = Kill(state=str(tmp_path / "kills"), name=r"all/epoch-0001", when="amid")
    for how, before, after in (("once", 1, 2), ("twice", 2, 2)):
        gate = Gate(tmp_path / how, before + 1)
        alone.hooks.set(gate.hooks | arming(kill))
        driver = alone.drive(*command)
        gate.wait(before + 1, driver)
        driver.wait_until(lambda: epochs() == before, "the epochs before the gate")  # noqa: B023
        os.killpg(driver.child.pid, signal.SIGINT)  # to the driver's group, as a terminal does: workers are in it
        driver.wait_until(lambda: "Ctrl-C again stops now" in driver.output(), "the driver to answer")  # noqa: B023
        if how == "once":
            gate.open(before + 1)
        else:
            os.killpg(driver.child.pid, signal.SIGINT)
        driver.finish_interrupted()
        assert epochs() == after
    assert len(list((tmp_path / "kills").iterdir())) == 2, "the checkpoint of the killed worker, and of its successor"
    again = resume(run, address=shared.address)
    assert losses(again) == losses(calm)
    assert encoder(again) == encoder(calm)


def test_a_sweep_starts_from_the_encoder(folder, shared, calm, light):
    space = folder / "space.py"
    space.write_text(FINETUNE.replace("def space(", "def found(") + "\n\ndef space(trial):" + TOY)
    given = light | {"folds": 2}
    run = sweep(space, folder / "store", folder / "fine", init=folder / "calm", **given)
    results = run.store.results()
    assert [result.state for result in results] == ["complete"] * 3
    assert {run.store.config(n).init.tune for n in run.store.numbers()} == {"full", "lora", "frozen"}
    # Full and frozen fine-tuning begin at the same weights, so their networks can be averaged.
    assert results[0].initial == results[2].initial
    assert run.store.info.init["objective"] == "simclr"


def test_a_sweep_starts_from_a_pretrained_conformer_with_all_choices_left_to_it(folder, shared):
    """`--stem auto --stack auto`, the defaults, measure networks before any encoder is at hand."""
    sizes = {name: value for name, value in SMALL.items() if name != "model/patch"} | {"model/name": "conformer"}
    pretrain("simclr", folder / "store", folder / "conformer", params=sizes | {"epochs": 1}, folds=2, probe_every=0)
    space = folder / "conformer.py"
    fixed = sizes | {"init/name": "pretrained", "epochs": 2}
    space.write_text(
        f"def space(trial):\n    trial.suggest_categorical('init/tune', ['full', 'lora'])\n    return {fixed!r}\n"
    )
    given = {"trials": 2, "folds": 2, "workers": 1, "concurrent": 1, "address": shared.address}
    run = sweep(space, folder / "store", folder / "tuned", init=folder / "conformer", **given)
    assert [(result.state, result.reason) for result in run.store.results()] == [("complete", "trained to the end")] * 2
