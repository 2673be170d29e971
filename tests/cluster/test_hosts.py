"""Three hosts of a lab, `ray up`, and sweeps on them while a link fails, a host dies, and the head."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from raypipe import Run
from raypipe.storage.files import open_folder, read_json
from raypipe.storage.trial_log import read_log
from tests.cluster.hosts import GATEWAY, Hosts, Laptop, missing
from tests.support.storage import KEYS, s3_server
from tests.support.sweeps import FLAGS, Driver, gated, injected, numbers, wait_until
from tests.support.toys import SPACE, ToyWindows, write_store

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.timeout(1500)]

ARGUMENTS = [*FLAGS, "--trials", 2, "--concurrent", 1]
EPOCHS, GATED = 12, 8
# Ray takes up to a minute to call a silent host dead, and its autoscaler as long to start it again.
PATIENCE = 400.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A store of toy windows, and a space whose trials take some seconds."""
    if reasons := missing():
        pytest.skip("several hosts on this machine: " + "; ".join(reasons))
    folder = tmp_path_factory.mktemp("cluster")
    write_store(folder / "store", ToyWindows(subjects=8, each=40))
    (folder / "space.py").write_text(
        SPACE.replace("'epochs': 4", f"'epochs': {EPOCHS}").replace("'patience': 4", f"'patience': {EPOCHS}")
    )
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder):
    """The sweep on this machine alone, which nothing disturbed."""
    driver = Driver("sweep", folder / "space.py", "--data", folder / "store", "--run", folder / "alone", *ARGUMENTS)
    try:
        out = driver.finish()
        assert driver.child.returncode == 0, out
    finally:
        driver.end()
    return numbers(Run(folder / "alone"))


@pytest.fixture(scope="module")
def laptop(folder):
    """From where a cluster of three hosts is used, which is up: a head, and two workers with a core each."""
    impatient = {"raypipe.backend.worker_groups": "module.SHRINK_AFTER_SECONDS = module.GROW_CHECK_SECONDS = 5.0"}
    env = injected(folder / "hook", impatient | gated(folder / "gate", GATED))
    env |= KEYS | {"OMP_NUM_THREADS": "1", "RAY_raylet_start_wait_time_s": "150"}
    with Hosts(folder / "hosts", 3, env) as hosts, Laptop(folder / "laptop", hosts) as laptop:
        laptop.up()
        yield laptop


@pytest.fixture
def s3(laptop, folder):
    """A server that the hosts reach, and nobody else; the gate is shut."""
    (folder / "gate").unlink(missing_ok=True)
    with s3_server(GATEWAY) as server:
        yield server


def submit(laptop: Laptop, folder: Path, run: str, store: str) -> Driver:
    """Submit the sweep, and follow its log."""
    where = ["--data", store, "--run", run]
    said = laptop.raypipe("submit", *laptop.cluster, "sweep", folder / "space.py", *where, *ARGUMENTS)
    return laptop.driver("logs", re.search(r"(\S+): submitted", said)[1], "-f", *laptop.cluster)


def epochs(run: str) -> int:
    """How many of the first trial's have been scored."""
    folder = open_folder(run)
    name = "trials/0000/history.json"
    return len(read_json(folder, name)["epochs"]) if folder.exists(name) else 0


def starts(run: str, worker: str) -> int:
    """How often a worker with these folds has begun or gone on with the first trial."""
    return sum(f"{worker} on cpu" in line and ": folds" in line for line in read_log(open_folder(run), 0))


def test_a_sweep_goes_on_when_the_head_it_does_not_run_on_dies_and_is_started_again(folder, undisturbed, laptop, s3):
    """All that Ray runs on the head is killed; its control store is kept in RocksDB, as cluster.yaml says."""
    hosts, store, run = laptop.hosts, s3.new_folder(), s3.new_folder()
    laptop.raypipe("push", folder / "store", store)
    address = f"{hosts.address(0)}:6379"
    where = ["--data", store, "--run", run, "--address", address]
    command = ["python", "-m", "raypipe", "sweep", folder / "space.py", *where, *ARGUMENTS]
    wait_until(lambda: any("raylet" in title for title in hosts.processes(2)), "Ray on the third host", PATIENCE)
    driver = hosts.on(2, *command, env={"RAY_AUTH_MODE": "token"})
    try:
        wait_until(lambda: driver.poll() is not None or epochs(run) >= 2, "the second epoch", PATIENCE)
        assert driver.poll() is None, driver.communicate()[0]
        hosts.kill_rays(0)
        laptop.up()
        (folder / "gate").touch()
        out = driver.communicate(timeout=PATIENCE)[0]
    finally:
        driver.kill()
    assert driver.returncode == 0, out
    assert numbers(Run(run)) == undisturbed
    begun = [line for line in read_log(open_folder(run), 0) if line.endswith(": starts")]
    assert len(begun) == 2, "no worker has trained the first trial from its beginning twice"


def test_a_job_that_died_with_the_head_goes_on_when_it_is_submitted_again(folder, undisturbed, laptop, s3):
    hosts, store, run = laptop.hosts, s3.new_folder(), s3.new_folder()
    laptop.raypipe("push", folder / "store", store)
    job = submit(laptop, folder, run, store)
    try:
        wait_until(lambda: job.child.poll() is not None or epochs(run) >= 2, "the second epoch", PATIENCE)
        assert job.child.poll() is None, job.said()
        hosts.kill_rays(0)
    finally:
        job.end()
    before = epochs(run)
    laptop.up()
    job = submit(laptop, folder, run, store)
    try:
        (folder / "gate").touch()
        out = job.finish(PATIENCE)
    finally:
        job.end()
    assert job.child.returncode == 0, out
    assert before >= 2 and f"resumes after epoch {before}" in "\n".join(read_log(open_folder(run), 0))
    assert numbers(Run(run)) == undisturbed


def test_a_plan_is_measured_on_a_worker_host(folder, laptop, s3):
    store = s3.new_folder()
    laptop.raypipe("push", folder / "store", store)
    words = ["plan", folder / "space.py", "--data", store, "--folds", 4, "--trials", 8, "--workers", 1]
    said = laptop.raypipe("submit", *laptop.cluster, *words)
    job = laptop.driver("logs", re.search(r"(\S+): submitted", said)[1], "-f", *laptop.cluster)
    try:
        out = job.finish(PATIENCE)
    finally:
        job.end()
    assert job.child.returncode == 0, out
    assert "8 trials of 4 folds: 2 at a time, 1 worker(s) each with 1 core(s)" in out, "two hosts with a core each"
    assert re.search(r"configurations on raypipe[12]'s processor", out), "and not on the head"


def test_a_sweep_outlasts_a_link_that_goes_down_and_a_host_that_is_killed(folder, undisturbed, laptop, s3, tmp_path):
    """While its link is down a host lives, its worker too; Ray tells them that they are dead when it is up again."""
    hosts, store, run = laptop.hosts, s3.new_folder(), s3.new_folder()
    alone, pair = "worker-0: folds 0, 1, 2, 3", "worker-1: folds 1, 3"

    def wait(ready, what):
        wait_until(lambda: job.child.poll() is not None or ready(), what, PATIENCE, pause=0.5)
        assert job.child.poll() is None, job.said()

    laptop.raypipe("push", folder / "store", store)
    job = submit(laptop, folder, run, store)
    try:
        wait(lambda: epochs(run) >= 2 and starts(run, pair) == 1, "two workers to train")
        hosts.cut(2)
        wait(lambda: starts(run, alone) >= 1, "one worker to go on with all folds")
        assert any("raylet" in title for title in hosts.processes(2))
        hosts.mend(2)
        wait(lambda: starts(run, pair) >= 2, "the second worker to be back, on a Ray that was started again")
        before = starts(run, alone)
        hosts.kill(1)
        wait(lambda: starts(run, alone) > before, "one worker to go on with all folds again")
        (folder / "gate").touch()
        out = job.finish(PATIENCE)
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
    wait_until(lambda: not laptop.hosts.rays(), "all of Ray to end", PATIENCE)
    assert [title for title in laptop.hosts.processes(0) if "sshd" in title]
