"""Three hosts of a lab, `ray up`, and sweeps on them while a link fails, a host dies, and the head."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from raypipe import Run
from raypipe.storage.files import open_folder
from raypipe.storage.trial_log import read_log
from tests.cluster.hosts import GATEWAY, Hosts, Laptop, need_hosts
from tests.support.plain import plain_sweep
from tests.support.storage import KEYS, s3_server
from tests.support.sweeps import FLAGS, Driver, Gate, epochs_of, injected, numbers, starts_of
from tests.support.toys import SPACE, ToyWindows, write_store
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.timeout(1500)]

ARGUMENTS = [*FLAGS, "--trials", 2, "--concurrent", 1]
ALONE, SECOND_OF_TWO = "worker-0: folds 0, 1, 2, 3", "worker-1: folds 1, 3"
# Ray takes up to a minute to call a silent host dead, and its autoscaler as long to start it again.
MAX_WAIT_SECONDS = 400.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A store of toy windows, and a search space."""
    need_hosts()
    folder = tmp_path_factory.mktemp("cluster")
    write_store(folder / "store", ToyWindows(subjects=8, each=40))
    (folder / "space.py").write_text(SPACE)
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder):
    """Numbers of the sweep without Ray."""
    return numbers(plain_sweep(folder / "space.py", folder / "store", folder / "undisturbed", trials=2))


@pytest.fixture(scope="module")
def shut(folder):
    """Where every sweep waits: its folds do not train epoch 3 until the test says so."""
    return Gate(folder / "gate", 3)


@pytest.fixture(scope="module")
def laptop(folder, shut):
    """From where a cluster of three hosts is used, which is up: a head, and two workers with a core each."""
    impatient = {"raypipe.backend.worker_groups": "module.SHRINK_AFTER_SECONDS = module.GROW_CHECK_SECONDS = 5.0"}
    env = injected(folder / "hook", impatient | shut.hooks)
    env |= KEYS | {"OMP_NUM_THREADS": "1", "RAY_raylet_start_wait_time_s": "150"}
    with Hosts(folder / "hosts", 3, env) as hosts, Laptop(folder / "laptop", hosts) as laptop:
        laptop.up()
        yield laptop


@pytest.fixture
def gate(shut):
    """The gate, shut."""
    shut.shut()
    return shut


@pytest.fixture
def s3(laptop):
    """A server that the hosts reach, and no other machine."""
    with s3_server(GATEWAY) as server:
        yield server


def submit(laptop: Laptop, folder: Path, run: str, store: str) -> Driver:
    """Submit the sweep, and follow its log."""
    where = ["--data", store, "--run", run]
    said = laptop.raypipe("submit", *laptop.cluster, "sweep", folder / "space.py", *where, *ARGUMENTS)
    return laptop.driver("logs", re.search(r"(\S+): submitted", said)[1], "-f", *laptop.cluster)


def wait_for(job: Driver, ready: Callable[[], object], what: str) -> None:
    """Wait for something that a sweep comes to; fail where its job ends before."""
    wait_until(lambda: job.child.poll() is not None or ready(), what, MAX_WAIT_SECONDS, pause=0.5)
    assert job.child.poll() is None, job.output()


@pytest.mark.long
def test_a_sweep_goes_on_when_the_head_it_does_not_run_on_dies_and_is_started_again(
    folder, undisturbed, laptop, s3, gate
):
    """All that Ray runs on the head is killed; its control store is kept in RocksDB, as cluster.yaml says."""
    hosts, store, run = laptop.hosts, s3.new_folder(), s3.new_folder()
    laptop.raypipe("push", folder / "store", store)
    address = f"{hosts.address(0)}:6379"
    where = ["--data", store, "--run", run, "--address", address]
    command = ["python", "-m", "raypipe", "sweep", folder / "space.py", *where, *ARGUMENTS]
    wait_until(
        lambda: any("raylet" in title for title in hosts.processes(2)), "Ray on the third host", MAX_WAIT_SECONDS
    )
    driver = hosts.on(2, *command, env={"RAY_AUTH_MODE": "token"})
    try:
        wait_until(lambda: driver.poll() is not None or epochs_of(run) >= 2, "the second epoch", MAX_WAIT_SECONDS)
        assert driver.poll() is None, driver.communicate()[0]
        hosts.kill_rays(0)
        laptop.up()
        gate.open(3)
        out = driver.communicate(timeout=MAX_WAIT_SECONDS)[0]
    finally:
        driver.kill()
    assert driver.returncode == 0, out
    assert numbers(Run(run)) == undisturbed
    begun = [line for line in read_log(open_folder(run), 0) if line.endswith(": starts")]
    assert len(begun) == 2, "no worker has trained the first trial from its beginning twice"


@pytest.mark.long
def test_a_job_that_died_with_the_head_goes_on_when_it_is_submitted_again(folder, undisturbed, laptop, s3, gate):
    hosts, store, run = laptop.hosts, s3.new_folder(), s3.new_folder()
    laptop.raypipe("push", folder / "store", store)
    job = submit(laptop, folder, run, store)
    try:
        wait_until(lambda: job.child.poll() is not None or epochs_of(run) >= 2, "the second epoch", MAX_WAIT_SECONDS)
        assert job.child.poll() is None, job.output()
        hosts.kill_rays(0)
    finally:
        job.end()
    before = epochs_of(run)
    laptop.up()
    job = submit(laptop, folder, run, store)
    try:
        gate.open(3)
        out = job.finish(MAX_WAIT_SECONDS)
    finally:
        job.end()
    assert job.child.returncode == 0, out
    assert before >= 2 and f"resumes after epoch {before}" in "\n".join(read_log(open_folder(run), 0))
    assert numbers(Run(run)) == undisturbed


@pytest.mark.long
def test_a_plan_is_measured_on_a_worker_host(folder, laptop, s3):
    store = s3.new_folder()
    laptop.raypipe("push", folder / "store", store)
    words = ["plan", folder / "space.py", "--data", store, "--folds", 4, "--trials", 8, "--workers", 1]
    said = laptop.raypipe("submit", *laptop.cluster, *words)
    job = laptop.driver("logs", re.search(r"(\S+): submitted", said)[1], "-f", *laptop.cluster)
    try:
        out = job.finish(MAX_WAIT_SECONDS)
    finally:
        job.end()
    assert job.child.returncode == 0, out
    assert "8 trials of 4 folds: 2 at a time, 1 worker(s) each with 1 core(s)" in out, "two hosts with a core each"
    assert re.search(r"configurations on raypipe[12]'s processor", out), "and not on the head"


@pytest.mark.long
def test_a_sweep_outlasts_a_link_that_goes_down(folder, undisturbed, laptop, s3, gate):
    """While its link is down a host lives, its worker too; Ray tells them that they are dead when it is up again."""
    hosts, store, run = laptop.hosts, s3.new_folder(), s3.new_folder()
    laptop.raypipe("push", folder / "store", store)
    job = submit(laptop, folder, run, store)
    try:
        wait_for(job, lambda: epochs_of(run) >= 2 and starts_of(run, SECOND_OF_TWO) == 1, "two workers to train")
        hosts.cut(2)
        wait_for(job, lambda: starts_of(run, ALONE) >= 1, "one worker to train all folds")
        assert any("raylet" in title for title in hosts.processes(2))
        hosts.mend(2)
        what = "the second worker to be back, on a Ray that was started again"
        wait_for(job, lambda: starts_of(run, SECOND_OF_TWO) >= 2, what)
        gate.open(3)
        out = job.finish(MAX_WAIT_SECONDS)
        assert job.child.returncode == 0, out
    finally:
        job.end()
    assert numbers(Run(run)) == undisturbed


def test_a_submitted_sweep_outlasts_a_host_that_is_killed(folder, undisturbed, laptop, s3, gate, tmp_path):
    """After all tests that need three hosts, for this one does not come back."""
    store, run = s3.new_folder(), s3.new_folder()
    laptop.raypipe("push", folder / "store", store)
    job = submit(laptop, folder, run, store)
    try:
        wait_for(job, lambda: epochs_of(run) >= 2 and starts_of(run, SECOND_OF_TWO) == 1, "two workers to train")
        before = starts_of(run, ALONE)
        laptop.hosts.kill(1)
        wait_for(job, lambda: starts_of(run, ALONE) > before, "one worker to train all folds")
        gate.open(3)
        out = job.finish(MAX_WAIT_SECONDS)
        assert job.child.returncode == 0, out
    finally:
        job.end()
    assert "succeeded" in laptop.raypipe("jobs", *laptop.cluster)
    laptop.raypipe("pull", run, tmp_path / "run")
    pulled = Run(tmp_path / "run")
    assert pulled.store.verify() == {}
    assert numbers(pulled) == undisturbed


def test_ray_down_leaves_nothing_of_ray_on_any_host(laptop):
    assert any("gcs_server" in title for title in laptop.hosts.processes(0))
    laptop.down()
    wait_until(lambda: not laptop.hosts.rays(), "all of Ray to end", MAX_WAIT_SECONDS)
    assert [title for title in laptop.hosts.processes(0) if "sshd" in title]
