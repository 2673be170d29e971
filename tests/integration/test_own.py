"""Networks of one's own and of braindecode, from a search space to a submission, with a sweep that is killed."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from raypipe import Run, load_ensemble, predict
from raypipe.packaging.check import check_submission
from raypipe.packaging.submission import export_submission
from tests.support.plain import plain_sweep
from tests.support.sweeps import FLAGS, ROOT, Gate, numbers

pytestmark = pytest.mark.ray

SPACE = """'''The network, the loss and the augmentation of the documents.'''
START = [{"sam/name": "sam"}, {"sam/name": "none"}]
def space(trial):
    trial.suggest_categorical("sam/name", ["none", "sam"])
    own = {"model/name": "my_nets.py:Net", "model/args/filters": 4}
    if trial.params["sam/name"] == "sam":
        own |= {"loss/name": "mine.py:quantile", "loss/args/q": 0.4, "augment/name": "mine.py:smear"}
    return own | {"epochs": 3, "patience": 3, "batch_size": 16}
"""
FOLDS = 3
BRAINDECODE = [f"braindecode.models:{name}" for name in ("EEGNeX", "ShallowFBCSPNet", "EEGNet")]
BRAINDECODE_SPACE = f"""'''Networks of braindecode.'''
NAMES = {BRAINDECODE}
START = [{{"model/name": name}} for name in NAMES]
def space(trial):
    trial.suggest_categorical("model/name", NAMES)
    return {{"epochs": 3, "patience": 3, "batch_size": 16}}
"""


def write_own(folder: Path) -> Path:
    """Copy the code of the documents, and write a space that names it; return the space's file."""
    folder.mkdir()
    for name in ("my_nets.py", "mine.py", "metrics.py"):
        shutil.copy(ROOT / "examples/own" / name, folder)
    (folder / "space.py").write_text(SPACE)
    return folder / "space.py"


def kill_and_resume(space: Path, data: str, where: Path, shared, gate: Gate, *flags: object) -> Run:
    """Run a sweep whose driver is killed in an epoch, remove the user's files, and continue it."""
    shared.hooks.set(gate.hooks)
    words = ("sweep", space, "--data", data, "--run", where, *FLAGS, "--folds", FOLDS, "--concurrent", 1)
    driver = shared.drive(*words, *flags)
    gate.wait(2, driver)
    driver.kill()
    driver.finish()
    shared.settle()
    gate.open(2)
    shutil.rmtree(space.parent)
    driver = shared.drive("resume", where)
    driver.finish()
    assert driver.child.returncode == 0, driver.output()
    return Run(where)


def assert_equal_runs(run: Run, expected: Run) -> None:
    assert numbers(run) == numbers(expected)
    for number in run.store.numbers("result.json"):
        for fold in range(FOLDS):
            weights = run.store.weights(number, fold)
            assert all(weights[name].equal(w) for name, w in expected.store.weights(number, fold).items())


def assert_predictions_repeat(bundle: Path, bids: Path, store) -> None:
    table = predict(bundle, bids)
    predicted = load_ensemble(bundle).predict(store.gather(range(len(store))))[:, 0]
    assert np.abs(predicted[:, None] - table.prediction.to_numpy()).min(axis=1).max() < 1e-4


def test_from_a_network_of_ones_own_to_a_submission(tiny_bids, tiny_store, tmp_path, shared):
    space = write_own(tmp_path / "mine")
    metric = f"{tmp_path}/mine/metrics.py:score"
    expected = plain_sweep(space, tiny_store.where, tmp_path / "plain", trials=2, folds=FOLDS, metric=metric)
    gate, flags = Gate(tmp_path / "gate", 2), ("--trials", 2, "--metric", metric)
    run = kill_and_resume(space, tiny_store.where, tmp_path / "run", shared, gate, *flags)
    assert_equal_runs(run, expected)
    assert run.store.info.metric == expected.store.info.metric != "metrics.py:score"
    ensemble = run.ensemble(top=2)
    errors = np.abs(run.oof(0).prediction - tiny_store.targets[run.oof(0).window])
    assert run.store.result(0).score == pytest.approx(np.quantile(errors, 0.9))
    assert "metrics.py:score of" in ensemble.verdict
    assert "class Net(nn.Module)" in Path(run.report()).read_text()
    bundle = run.export(tmp_path / "bundle")
    submission = export_submission({1: ensemble}, tmp_path / "submission.zip", windows={1: tiny_store})
    assert not list(bundle.rglob("*.py"))
    checked = check_submission(submission, bundle=bundle)
    assert [line.name for line in checked.failures] == ["challenge 1: target and windows"], str(checked)
    assert_predictions_repeat(bundle, tiny_bids, tiny_store)


@pytest.mark.long
@pytest.mark.skipif(find_spec("braindecode") is None, reason="braindecode is not installed: make zoo")
def test_from_networks_of_braindecode_to_a_submission(tiny_bids, tiny_store, tmp_path, shared):
    space = tmp_path / "mine/space.py"
    space.parent.mkdir()
    space.write_text(BRAINDECODE_SPACE)
    expected = plain_sweep(space, tiny_store.where, tmp_path / "plain", trials=3, folds=FOLDS)
    gate = Gate(tmp_path / "gate", 2)
    run = kill_and_resume(space, tiny_store.where, tmp_path / "run", shared, gate, "--trials", 3)
    assert_equal_runs(run, expected)
    assert [run.store.config(number).model.name for number in range(3)] == BRAINDECODE
    ensemble = run.ensemble(top=3, method="equal")
    bundle = run.export(tmp_path / "bundle")
    submission = export_submission({1: ensemble}, tmp_path / "submission.zip", windows={1: tiny_store})
    checked = check_submission(submission, bundle=bundle)
    failed = {line.name for line in checked.failures} - {"challenge 1: time"}  # large, on a busy machine
    assert failed == {"challenge 1: target and windows"}, str(checked)
    assert_predictions_repeat(bundle, tiny_bids, tiny_store)
