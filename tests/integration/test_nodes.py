"""Three nodes of Ray on this machine: some are lost for a while, or the control store is. The numbers stay the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from raypipe import Run
from raypipe.storage.files import LocalFolder
from raypipe.storage.trial_log import read_log
from tests.chaos.places import Nodes
from tests.support.sweeps import FLAGS, gated, injected, numbers, wait_until

pytestmark = pytest.mark.ray

# Nobody waits long for a machine.
IMPATIENT = {"raypipe.backend.worker_groups": "module.SHRINK_AFTER_SECONDS = module.GROW_CHECK_SECONDS = 1.0"}
REDIS = pytest.param(
    "redis",
    marks=pytest.mark.skipif(shutil.which("redis-server") is None, reason="no redis-server (package redis-server)"),
)


@pytest.fixture
def gate(tmp_path):
    return tmp_path / "gate"


@pytest.fixture
def nodes(tmp_path, gate, request):
    env = injected(tmp_path / "hook", IMPATIENT | gated(gate, epoch=8))
    store = getattr(request, "param", "rocksdb")
    with Nodes(env | {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5"}, store) as place:
        yield place


def epochs(run: Path) -> int:
    history = run / "trials/0000/history.json"
    return len(json.loads(history.read_text())["epochs"]) if history.exists() else 0


def starts(run: Path, worker: str) -> int:
    """How often a worker with these folds has begun or gone on with the trial."""
    lines = read_log(LocalFolder(run), 0)
    return sum(f"{worker} on cpu" in line and ": folds" in line for line in lines)


def sweep(nodes: Nodes, toy: Path, run: Path):
    flags = [*FLAGS, "--trials", 1]
    return nodes.drive("sweep", toy / "long.py", "--data", toy / "store", "--run", run, *flags)


def test_lost_machines_leave_fewer_workers_and_new_ones_bring_them_back(toy, tmp_path, nodes, gate, undisturbed):
    run = tmp_path / "run"
    driver = sweep(nodes, toy, run)
    wait_until(lambda: epochs(run) >= 2, "the second epoch")
    assert starts(run, "worker-1: folds 1, 3") == 1
    nodes.lose_node(0.0)
    nodes.lose_node(0.0)
    wait_until(lambda: starts(run, "worker-0: folds 0, 1, 2, 3") == 1, "one worker to go on with all folds")
    nodes.fill(1)
    wait_until(lambda: starts(run, "worker-1: folds 1, 3") == 2, "the second worker to be back")
    gate.touch()
    out = driver.finish()
    assert driver.child.returncode == 0, out
    assert numbers(Run(run))[0] == numbers(undisturbed)[0]


@pytest.mark.parametrize("nodes", ["rocksdb", REDIS], indirect=True)
def test_a_control_store_that_is_kept_may_be_killed_and_started_again(toy, tmp_path, nodes, gate, undisturbed):
    run = tmp_path / "run"
    driver = sweep(nodes, toy, run)
    wait_until(lambda: epochs(run) >= 2, "the second epoch")
    nodes.kill_store()
    before = epochs(run)
    wait_until(lambda: epochs(run) > before, "an epoch without the control store")
    nodes.start_store()
    gate.touch()
    out = driver.finish()
    assert driver.child.returncode == 0, out
    assert numbers(Run(run))[0] == numbers(undisturbed)[0]
