"""Traps of Ray's own that raypipe must not fall into."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from raypipe import resume, sweep
from raypipe.backend.cluster import Cluster
from raypipe.backend.executor import start_broker
from raypipe.core.errors import InterruptedSweepError, UserError
from raypipe.core.stop import StopRequest
from raypipe.trial.callback import SweepCallback
from tests.support.callbacks import Recorder
from tests.support.faults import title, truncate
from tests.support.process import process_state
from tests.support.rays import OwnRay
from tests.support.sweeps import FLAGS, OPTIONS, Gate, epochs_of, numbers, study_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def killed(toy, tmp_path_factory):
    """What a driver leaves that started a Ray of its own and was killed in the first trial's third epoch."""
    folder = tmp_path_factory.mktemp("killed")
    run, scratch = folder / "run", folder / "scratch"
    flags = ("--data", toy / "store", "--run", run, *FLAGS, "--trials", 2, "--storage", scratch)
    with OwnRay(folder) as alone:
        alone.hooks.set(Gate(folder / "gate", 3).hooks)
        driver = alone.drive("sweep", toy / "space.py", *flags)
        driver.wait_until(lambda: epochs_of(run) == 2, "the second epoch")
        listening = [(title(pid), listens(pid)) for pid in driver.processes()]
        driver.kill()
        driver.finish()
        alone.settle()
        yield SimpleNamespace(run=run, scratch=scratch, listening=listening)


def test_tunes_own_files_cut_short_start_no_fresh_sweep(killed, shared, undisturbed):
    """Tune takes a truncated experiment state for none, and begins a sweep of one trial."""
    files = [path for path in killed.scratch.rglob("*") if path.is_file()]
    assert any(path.name.startswith("experiment_state") for path in files)
    for path in files:
        truncate(path)
    seen = Recorder()
    run = resume(killed.run, address=shared.address, workers=1, callback=seen)
    epochs = [given.epoch for given in seen.of("on_epoch") if given.number == 0]
    assert epochs == [3], "none of those before; the last is the trial's end"
    assert [(t.number, t.state.name) for t in study_of(run).trials] == [(n, "COMPLETE") for n in range(2)]
    assert numbers(run) == {n: found for n, found in numbers(undisturbed).items() if n < 2}


def test_a_ray_of_our_own_listens_on_loopback_only(killed):
    """Ray's own listens on every interface."""
    for name in ("gcs_server", "raylet", "RayTrainWorker"):
        assert any(name in title and addresses for title, addresses in killed.listening), name
    assert {where for _, addresses in killed.listening for where in addresses} <= {LOOPBACK_4, LOOPBACK_6}


def test_a_ray_of_our_own_has_no_processes_that_a_sweep_does_not_need(killed):
    """Each takes memory, and a second of a processor at the start."""
    titles = [title for title, _ in killed.listening]
    assert any("RayTrainWorker" in title for title in titles)
    for name in ("SynchronizationActor", "/dashboard.py", "/monitor.py"):
        assert not [title for title in titles if name in title], name


LOOPBACK_4, LOOPBACK_6 = "0100007F", "0000000000000000FFFF00000100007F"  # as proc(5) writes addresses


def listens(pid: int) -> set[str]:
    """Return addresses on which a process listens; none where it has just ended."""
    files = []
    with contextlib.suppress(OSError):
        files = [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()]
    inodes = {name[8:-1] for name in files if name.startswith("socket:[")}
    rows = [row.split() for kind in ("tcp", "tcp6") for row in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes}


@pytest.fixture
def joined(shared):
    """This process has joined Ray before a sweep and stays after it."""
    import ray

    ray.init(address=shared.address, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


def test_a_sweep_gives_back_all_that_it_held_however_it_ends(toy, tmp_path, shared, joined, undisturbed):
    """The cleaner that Ray Train leaves this to does nothing where no dashboard runs."""

    def interrupt(event, given):
        if event == "on_epoch" and given.epoch == 2:
            wait_until(shared.held, "the sweep to hold resources")  # Ray's own figures follow its decisions
            os.kill(os.getpid(), signal.SIGINT)  # to the process, as a terminal does; this is Tune's thread

    def ask(event, given):
        if event == "on_epoch":
            request.set()

    # No address: a sweep uses what its process has joined.
    options = OPTIONS | {"trials": 2, "workers": 1, "concurrent": 1}
    before, request = process_state(), StopRequest()
    with pytest.raises(KeyboardInterrupt) as interrupted:  # a reference: in a notebook the traceback is kept too
        sweep(toy / "space.py", toy / "store", tmp_path / "run", callback=Recorder(interrupt), **options)
    wait_until(lambda: not shared.held(), "an interrupted sweep's resources")
    assert process_state() == before and interrupted
    with pytest.raises(ZeroDivisionError):  # an exception in a callback ends the sweep
        resume(tmp_path / "run", callback=Recorder(lambda event, given: event == "on_epoch" and 1 / 0))
    wait_until(lambda: not shared.held(), "resources of a sweep whose callback failed")
    with pytest.raises(InterruptedSweepError):
        resume(tmp_path / "run", callback=Recorder(ask), stop=request)
    wait_until(lambda: not shared.held(), "a stopped sweep's resources")
    assert numbers(resume(tmp_path / "run")) == {n: found for n, found in numbers(undisturbed).items() if n < 2}
    wait_until(lambda: not shared.held(), "a finished sweep's resources")
    assert process_state() == before


def test_a_process_that_has_started_its_own_ray_joins_one_without_a_token(shared, monkeypatch):
    """Ray keeps the token of its own Ray after a shutdown, and no actor of the other could reach the process."""
    import ray

    monkeypatch.setenv("RAY_AUTH_MODE", "as it was")  # so that it is restored
    monkeypatch.delenv("RAY_AUTH_MODE")
    ray.init(address="local", include_dashboard=False, num_cpus=1, log_to_driver=False)
    ray.shutdown()
    with pytest.raises(UserError, match="uses no token"), Cluster(shared.address, SweepCallback()) as other:
        other.start()
    del os.environ["RAY_AUTH_MODE"]
    with Cluster(shared.address, SweepCallback()) as other:
        other.start()
        ray.get(start_broker(ray.get_runtime_context().get_node_id(), 1, 1).open_group.remote("group"))


@pytest.mark.parametrize(("workers", "concurrent"), [(1, 1200), (4, 300)])
def test_a_broker_answers_while_more_workers_wait_than_ray_lets_an_actor_answer(joined, workers, concurrent):
    """An actor's methods wait in line behind 1,000 that do not end: 1,200 workers without a job would never get one."""
    broker = start_broker(joined.get_runtime_context().get_node_id(), workers, concurrent)
    names = [f"group-{number}" for number in range(concurrent)]
    joined.get([broker.open_group.remote(name) for name in names])
    waiting = [broker.next_job.remote(name, 0) for name in names for _ in range(workers)]
    assert joined.wait(waiting, timeout=0.5)[0] == []
    joined.get([broker.assign.remote(name, "run", 7, 0, 0) for name in names])
    assert {job.number for job in joined.get(waiting)} == {7}
