"""Ray's own traps, as ../shared/ray-notes.md has them: raypipe falls into none of them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import ray

from raypipe import Run, resume, sweep
from raypipe.backend.cluster import Cluster
from raypipe.backend.executor import start_broker
from raypipe.core.errors import InterruptedSweepError
from raypipe.core.stop import StopRequest
from raypipe.trial.callback import SweepCallback
from tests.support.callbacks import Recorder
from tests.support.faults import descendants, title, truncate
from tests.support.process import process_state
from tests.support.sweeps import FLAGS, OPTIONS, injected, numbers, study_of, wait_until

pytestmark = pytest.mark.ray


def test_tunes_own_files_cut_short_start_no_fresh_sweep(toy, tmp_path, drive, undisturbed):
    """Tune takes a truncated experiment state for none, and begins a sweep of one trial."""
    where, scratch = tmp_path / "run", tmp_path / "scratch"
    flags = ("--data", toy / "store", "--run", where, *FLAGS, "--storage", scratch)
    driver = drive("sweep", toy / "long.py", *flags)
    history = where / "trials/0001/history.json"
    wait_until(
        lambda: history.exists() and len(json.loads(history.read_text())["epochs"]) >= 3, "trial 1's third epoch"
    )
    driver.kill()
    wait_until(lambda: not driver.orphans(agents=False), "workers and actors to end with their driver")
    files = [path for path in scratch.rglob("*") if path.is_file()]
    assert any(path.name.startswith("experiment_state") for path in files)
    for path in files:
        truncate(path)
    again = drive("sweep", toy / "long.py", *flags)
    out = again.finish()
    assert again.child.returncode == 0, out
    assert "resuming: 1 of 3 trials have ended" in out
    assert numbers(Run(where)) == numbers(undisturbed)
    assert [(t.number, t.state.name) for t in study_of(Run(where)).trials] == [(n, "COMPLETE") for n in range(3)]


def test_every_trial_is_told_as_what_it_was(toy, tmp_path):
    """Tune tells stopped trials COMPLETE, leaves those without a number RUNNING, and may rank one that failed first."""
    space = tmp_path / "space.py"
    source = (toy / "space.py").read_text()
    rates = [1e-2, 3e-3, 1e-3, 1e38, 1e-4, 2e-4]
    start = [{"optim/lr": rate, "sam/name": "none"} for rate in rates]
    source = source.replace("START = [", f"START = {start!r} + [").replace("1e-4, 1e-2", "1e-6, 1e38")
    space.write_text(source)
    options = OPTIONS | {"trials": len(rates), "prune": True, "grace": 1}
    run = sweep(space, toy / "store", tmp_path / "run", **options)
    assert run.trials.loc[3, ["state", "failure"]].tolist() == ["failed", "non-finite"]
    states = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
    assert [t.state.name for t in study_of(run).trials] == [states[state] for state in run.trials.state]
    assert set(run.trials.state) == set(states)
    assert all(run.store.result(r.number).state == "complete" for r in run.store.ranked())
    assert np.isfinite([r.score for r in run.store.ranked()]).all()
    best = run.store.ranked()[0]
    assert study_of(run).best_trial.number == best.number


# What Tune's loop dies of when Ray has killed a trial's actor for memory: `OutOfMemoryError` is no `RayActorError`.
DYING = """
import os
step = module.TuneController.step
def dying(self):
    step(self)
    if any(trial.last_result.get("epoch", 0) >= 3 for trial in self.get_trials()) and not os.path.exists({mark!r}):
        open({mark!r}, "w").close()
        raise RuntimeError("Caught unexpected exception: Task was killed due to the node running low on memory.")
module.TuneController.step = dying
"""


def test_a_tune_that_dies_of_a_kill_for_memory_is_begun_again(toy, tmp_path, drive, undisturbed):
    where, mark = tmp_path / "run", tmp_path / "dead"
    env = injected(tmp_path / "hook", {"ray.tune.execution.tune_controller": DYING.format(mark=str(mark))})
    driver = drive("sweep", toy / "long.py", "--data", toy / "store", "--run", where, *FLAGS, env=env)
    out = driver.finish()
    assert driver.child.returncode == 0, out
    assert mark.exists()
    assert "Ray Tune has died (Caught unexpected exception: Task was killed" in out
    assert "restarting from the run's records" in out
    assert numbers(Run(where)) == numbers(undisturbed)
    assert [(t.number, t.state.name) for t in study_of(Run(where)).trials] == [(n, "COMPLETE") for n in range(3)]


def test_a_ray_of_our_own_listens_on_loopback_only():
    """Ray's own listens on every interface."""
    with Cluster(None, SweepCallback()) as cluster:
        cluster.start()
        import ray

        ray.get(ray.remote(lambda: None).remote())  # a worker listens too
        mine = [os.getpid(), *descendants(os.getpid())]
        found = {title(pid): listens(pid) for pid in mine if listens(pid)}
    assert any("gcs_server" in name for name in found) and any("raylet" in name for name in found)
    assert {where for addresses in found.values() for where in addresses} <= {LOOPBACK_4, LOOPBACK_6}
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in os.environ


LOOPBACK_4, LOOPBACK_6 = "0100007F", "0000000000000000FFFF00000100007F"  # as proc(5) writes addresses


def listens(pid: int) -> set[str]:
    """Addresses on which a process listens."""
    files = [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()]
    inodes = {name[8:-1] for name in files if name.startswith("socket:[")}
    rows = [row.split() for kind in ("tcp", "tcp6") for row in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes}


@pytest.fixture
def shared_ray():
    """A Ray that is there before a sweep and after it."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


def test_a_sweep_gives_back_all_that_it_held_however_it_ends(toy, tmp_path, shared_ray, undisturbed):
    """The cleaner that Ray Train leaves this to does nothing where no dashboard runs."""
    total = {name: n for name, n in shared_ray.cluster_resources().items() if name != "object_store_memory"}

    def nothing_is_held() -> bool:
        free = shared_ray.available_resources()
        return all(free.get(name) == amount for name, amount in total.items())

    def interrupt(event, given):
        if event == "on_epoch" and given.epoch == 2:
            assert not nothing_is_held()
            signal.raise_signal(signal.SIGINT)

    def ask(event, given):
        if event == "on_epoch":
            request.set()

    before, request = process_state(), StopRequest()
    with pytest.raises(KeyboardInterrupt) as interrupted:  # a reference: in a notebook the traceback is kept too
        sweep(toy / "long.py", toy / "store", tmp_path / "run", callback=Recorder(interrupt), **OPTIONS)
    wait_until(nothing_is_held, "an interrupted sweep's resources")
    assert process_state() == before and interrupted
    with pytest.raises(InterruptedSweepError):
        resume(tmp_path / "run", callback=Recorder(ask), stop=request)
    wait_until(nothing_is_held, "a stopped sweep's resources")
    assert numbers(resume(tmp_path / "run")) == numbers(undisturbed)
    wait_until(nothing_is_held, "a finished sweep's resources")
    assert process_state() == before


@pytest.mark.parametrize(("workers", "concurrent"), [(1, 1200), (4, 300)])
def test_a_broker_answers_while_more_workers_wait_than_ray_lets_an_actor_answer(workers, concurrent):
    """An actor's methods wait in line behind 1,000 that do not end: 1,200 workers without a job would never get one."""
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        broker = start_broker(ray.get_runtime_context().get_node_id(), workers, concurrent)
        names = [f"group-{number}" for number in range(concurrent)]
        ray.get([broker.open_group.remote(name) for name in names])
        waiting = [broker.next_job.remote(name, 0) for name in names for _ in range(workers)]
        assert ray.wait(waiting, timeout=0.5)[0] == []
        ray.get([broker.assign.remote(name, 7, 0, 0) for name in names], timeout=60)
        assert {job.number for job in ray.get(waiting, timeout=60)} == {7}
    finally:
        ray.shutdown()
