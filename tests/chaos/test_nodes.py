"""Nodes that stay away for a while, and a control store that does. The numbers stay the same."""

from __future__ import annotations

import functools
import os
import signal

import pytest

from tests.chaos.plan import FLAGS
from tests.chaos.play import ENV, HOOKS, differences
from tests.support.faults import kill
from tests.support.rays import OwnRay, SharedRay
from tests.support.sweeps import Gate, epochs_of, starts_of
from tests.support.waiting import MAX_WAIT_SECONDS

pytestmark = pytest.mark.ray

# No group waits long for a machine.
IMPATIENT = HOOKS | {"raypipe.backend.worker_groups": "module.SHRINK_AFTER_SECONDS = module.GROW_CHECK_SECONDS = 1.0"}
# Tune asks the control store for resources every ten seconds, and waits for the answer; here all the time.
ASKING = {"ray.tune.utils.resource_updater": "module.TUNE_STATE_REFRESH_PERIOD = 0.0"}
# The driver gives up a control store after three seconds, and not after 36.
SOON = {"raypipe.backend.control_store": "module.LEAVE_SHARE = 0.05"}
# A file is made when the node of this machine has not answered a driver.
NOTED = """
import pathlib
answers = module._answers
module.ANSWER_SECONDS = 0.5
module._answers = lambda address: answers(address) or pathlib.Path({!r}).touch()
"""
ONE, SECOND_OF_TWO = "worker-0: folds 0, 1, 2, 3", "worker-1: folds 1, 3"


def sweep(place, folder, run):
    flags = [*FLAGS, "--trials", 1]
    return place.drive("sweep", folder / "space.py", "--data", folder / "store", "--run", run, *flags)


def ends_the_same(driver, run, reference):
    """Wait for the end; the trial's records are those of a run that nothing befell."""
    out = driver.finish()
    assert driver.child.returncode == 0, out
    assert differences(run, {0: reference[0]}) == []


def test_lost_machines_leave_fewer_workers_and_new_ones_bring_them_back(field, nodes, reference, tmp_path):
    folder, _ = field
    run, gate = tmp_path / "run", Gate(tmp_path / "gate", 3)
    nodes.hooks.set(IMPATIENT | gate.hooks)
    driver = sweep(nodes, folder, run)
    gate.wait(3, driver)
    driver.wait_until(lambda: starts_of(run, SECOND_OF_TWO) == 1, "the second worker")
    nodes.lose_node(0.0)
    nodes.lose_node(0.0)
    driver.wait_until(lambda: starts_of(run, ONE) == 1, "one worker to train all folds")
    nodes.fill(1)
    driver.wait_until(lambda: starts_of(run, SECOND_OF_TWO) == 2, "the second worker to be back")
    gate.open(3)
    ends_the_same(driver, run, reference)


def controller_on_another_node(place, driver, gate):
    """Return the raylet of the node of a controller whose workers wait at the gate; those beside the driver are killed.

    While Ray waits for a node to reserve resources it reserves none on any other, and a suspended node does not answer
    for minutes. So the group must have started.
    """
    while True:
        gate.wait(3, driver)
        [controller] = driver.wait_until(lambda: place.find("controller"), "a controller")
        if (raylet := place.raylet_of(controller)) is not None:
            return raylet
        group = {controller, *place.find("worker")}
        kill(controller)
        driver.wait_until(functools.partial(_have_ended, place, group), "the controller and its workers to end")
        gate.shut()


def _have_ended(place, group):
    return not group & {*place.find("controller"), *place.find("worker")}


@pytest.mark.long  # the next one loses it in a worse way
def test_the_node_of_a_groups_controller_may_be_lost_for_good(field, nodes, reference, tmp_path):
    folder, _ = field
    run, gate = tmp_path / "run", Gate(tmp_path / "gate", 3)
    nodes.hooks.set(IMPATIENT | gate.hooks)
    driver = sweep(nodes, folder, run)
    raylet = controller_on_another_node(nodes, driver, gate)
    assert [nodes.raylet_of(pid) for pid in nodes.find("coordinator")] == [None], "it is beside the driver, for all"
    nodes.lose_node_of(raylet)
    driver.wait_until(lambda: controller_on_another_node(nodes, driver, gate) != raylet, "another controller")
    gate.open(3)
    ends_the_same(driver, run, reference)


def test_a_controller_that_outlives_its_nodes_loss_starts_no_more_workers(field, nodes, reference, tmp_path):
    """Ray gives up a node whose raylet is suspended; the processes on it live, and reach all others."""
    folder, _ = field
    run, gate = tmp_path / "run", Gate(tmp_path / "gate", 3)
    nodes.hooks.set(IMPATIENT | gate.hooks)
    driver = sweep(nodes, folder, run)
    raylet = controller_on_another_node(nodes, driver, gate)
    [before] = nodes.find("controller")
    raylet.send_signal(signal.SIGSTOP)
    try:
        driver.wait_until(lambda: set(nodes.find("controller")) - {before}, "another controller")
        gate.open(3)
        ends_the_same(driver, run, reference)
    finally:
        raylet.send_signal(signal.SIGCONT)
    raylet.wait(MAX_WAIT_SECONDS)  # it ends, and processes that it has started, once it is no zombie


@pytest.fixture(params=["rocksdb", pytest.param("redis", marks=pytest.mark.long)])
def kept(request, tmp_path):
    """A Ray whose control store is kept; by RocksDB, the nodes of all tests."""
    if request.param == "rocksdb":
        yield request.getfixturevalue("nodes")
        return
    with SharedRay(tmp_path, store="redis", env=ENV) as place:
        yield place


def test_a_control_store_that_is_kept_may_be_killed_and_started_again(field, kept, reference, tmp_path):
    folder, _ = field
    run, gate = tmp_path / "run", Gate(tmp_path / "gate", 3, 6)
    kept.hooks.set(IMPATIENT | ASKING | gate.hooks)
    driver = sweep(kept, folder, run)
    gate.wait(3, driver)
    # From then on all processes know each other: one that starts needs the control store to find the others.
    driver.wait_until(lambda: epochs_of(run) == 2, "the second epoch of all workers")
    with kept.store_away():
        gate.open(3)
        gate.wait(6, driver)  # reached after epoch 4 is recorded, for which Tune has called the trial actor meanwhile
    gate.open(6)
    ends_the_same(driver, run, reference)


def has_left(driver):
    return "control store (GCS) is away; restarting from the run's records" in driver.output()


@pytest.mark.parametrize("also", [(), pytest.param(("controller",), marks=pytest.mark.long)])
def test_a_control_store_that_stays_away_is_left_and_the_sweep_restarts_on_another_ray(
    field, reference, tmp_path, also
):
    """Ray would end the driver after a minute, with status 1. A controller may die with the store's machine."""
    folder, _ = field
    run, gate = tmp_path / "run", Gate(tmp_path / "gate", 3)
    alone = OwnRay(tmp_path, env=ENV)
    alone.hooks.set(IMPATIENT | SOON | gate.hooks)
    try:
        driver = sweep(alone, folder, run)
        gate.wait(3, driver)
        kill(*alone.find("gcs"), *(pid for victim in also for pid in alone.find(victim)))
        driver.wait_until(lambda: has_left(driver), "the driver to leave Ray")
        gate.open(3)
        ends_the_same(driver, run, reference)
    finally:
        alone.end()


@pytest.mark.parametrize("also", [pytest.param((), marks=pytest.mark.long), ("controller",)])
def test_a_cluster_is_joined_again_when_its_control_store_is_back(field, nodes, reference, tmp_path, also):
    folder, _ = field
    run, gate = tmp_path / "run", Gate(tmp_path / "gate", 3)
    nodes.hooks.set(IMPATIENT | SOON | gate.hooks)
    driver = sweep(nodes, folder, run)
    gate.wait(3, driver)
    with nodes.store_away():
        kill(*(pid for victim in also for pid in nodes.find(victim)))
        driver.wait_until(lambda: has_left(driver), "the driver to leave Ray")
        gate.open(3)
    ends_the_same(driver, run, reference)


def test_a_driver_waits_for_a_node_that_is_suspended(field, nodes, reference, tmp_path):
    """Ray would end the driver."""
    folder, _ = field
    run, silent = tmp_path / "run", tmp_path / "silent"
    nodes.hooks.set(HOOKS | {"raypipe.backend.connection": NOTED.format(str(silent))})
    raylets = nodes.find("raylet")
    for pid in raylets:
        os.kill(pid, signal.SIGSTOP)
    try:
        driver = sweep(nodes, folder, run)
        driver.wait_until(silent.exists, "the driver to ask a node that does not answer")
    finally:
        for pid in raylets:
            os.kill(pid, signal.SIGCONT)
    ends_the_same(driver, run, reference)
