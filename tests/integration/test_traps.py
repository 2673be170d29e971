"""Ray's own traps, as ../shared/ray-notes.md has them: raypipe falls into none of them."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest

from raypipe import Run, resume, sweep
from raypipe.errors import InterruptedSweepError
from raypipe.testing import truncate
from tests.sweeps import FLAGS, OPTIONS, numbers, study_of, wait_until

pytestmark = pytest.mark.ray


def test_tunes_own_files_cut_short_start_no_fresh_sweep(toy, tmp_path, drive, undisturbed):
    """Tune takes a truncated experiment state for none, and begins a sweep of one trial."""
    where, scratch = tmp_path / "run", tmp_path / "scratch"
    flags = ("--data", toy / "store", "--run", where, *FLAGS, "--storage", scratch)
    driver = drive("sweep", toy / "long.py", *flags)
    history = where / "trials/0001/history.json"
    wait_until(lambda: history.exists() and len(json.loads(history.read_text())) >= 3, "trial 1's third epoch")
    driver.kill()
    wait_until(lambda: not driver.orphans(agents=False), "workers and slots to end with their driver")
    files = [path for path in scratch.rglob("*") if path.is_file()]
    assert any(path.name.startswith("experiment_state") for path in files)
    for path in files:
        truncate(path)
    again = drive("sweep", toy / "long.py", *flags)
    out = again.finish()
    assert again.child.returncode == 0, out
    assert "going on: 1 of 3 trials have ended" in out
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


@pytest.fixture
def shared_ray():
    """A Ray that is there before a sweep and after it."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


def test_a_sweep_gives_back_all_that_it_held_however_it_ends(toy, tmp_path, shared_ray, undisturbed):
    """The cleaner that Ray Train leaves this to does nothing where no dashboard runs."""
    total = {name: n for name, n in shared_ray.cluster_resources().items() if name != "object_store_memory"}

    def nothing_is_held() -> bool:
        free = shared_ray.available_resources()
        return all(free.get(name) == amount for name, amount in total.items())

    stopped = []

    def stop(kind, news):
        if kind == "epoch" and news["epoch"] == 2 and not stopped:
            stopped.append(news)
            assert not nothing_is_held()
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(InterruptedSweepError):
        sweep(toy / "long.py", toy / "store", tmp_path / "run", watch=stop, **OPTIONS)
    wait_until(nothing_is_held, "an interrupted sweep's resources")
    assert numbers(resume(tmp_path / "run")) == numbers(undisturbed)
    wait_until(nothing_is_held, "a finished sweep's resources")
