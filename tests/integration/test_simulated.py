"""A sweep without training (`benchmarks/many_trials.py`): only the workers are simulated."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from benchmarks.simulated_sweep import SimulatedGroups, prepare_simulation, simulated
from raypipe import sweep
from raypipe.core.options import parse_options
from raypipe.core.search_space import load_space
from raypipe.data.window_store import WindowStore
from raypipe.reporting.status import read_status
from raypipe.search.run_setup import open_run
from raypipe.search.sweep import resume
from raypipe.storage.lease import read_lease
from raypipe.storage.trial_log import read_log, read_output
from tests.support.callbacks import Recorder

pytestmark = pytest.mark.ray


@pytest.fixture
def made(toy, tmp_path, shared):
    """Make a run with the options of its sweep, and what its simulation needs; return both."""

    def make(seconds, **more):
        options = {"folds": 4, "workers": 1, "concurrent": 4, "cpus_per_worker": 0.25, "track": []}
        options |= {"address": shared.address} | more
        windows = WindowStore(toy / "store")
        run = open_run(load_space(toy / "space.py"), windows, str(tmp_path / "run"), parse_options(options))
        prepare_simulation(run, windows, tmp_path / "packed", seconds=seconds)
        return run, options

    return make


def test_used_up_gpu_hours_end_trials_with_what_they_have_and_a_higher_limit_continues(
    tmp_path, toy, shared, made, monkeypatch
):
    """On two GPUs that are not there: nothing computes on them. The clock that counts them is the test's."""
    now = 0.0
    monkeypatch.setattr("raypipe.storage.budget.time", SimpleNamespace(monotonic=lambda: now))
    run, options = made(0.05, gpus_per_worker=0.5)

    def pass_time(event, given):
        nonlocal now
        now += 16.0 if event == "on_epoch" and not now else 1.0 if event == "on_trial_end" else 0.0

    seen = Recorder(pass_time)
    given = options | {"trials": 500, "prune": False, "callback": seen, "gpu_hours": 2 * 15 / 3600}
    with shared.node(num_cpus=2, num_gpus=2), simulated():
        sweep(toy / "space.py", toy / "store", tmp_path / "run", **given)
        assert [given.reason for given in seen.of("on_budget_used")] == ["the GPU-hours were used up"]
        ended = len(run.results())
        assert 0 < ended < 500
        stopped = [result.reason for result in run.results() if result.state == "stopped"]
        assert set(stopped) == {"the GPU-hours were used up"}
        assert "its GPU-hours are used up; continue with" in read_status(run).driver
        used = read_lease(run.folder)
        assert used.gpu_hours == pytest.approx(2 * now / 3600), "two GPUs, as long as they were held"
        resume(tmp_path / "run", trials=ended + 2, gpu_hours=100.0, callback=seen)
    assert len(run.results()) == ended + 2
    assert read_lease(run.folder).gpu_hours > used.gpu_hours
    assert read_lease(run.folder).gpu_hours == pytest.approx(2 * now / 3600)


def test_simulated_trials_end_like_any_and_are_in_the_study_once(tmp_path, toy, made, capfd):
    run, options = made(0.1)
    seen = Recorder()
    with simulated():
        sweep(toy / "space.py", toy / "store", tmp_path / "run", trials=10, callback=seen, **options)
    results = run.results()
    assert [result.number for result in results] == list(range(10))
    assert {result.state for result in results} <= {"complete", "pruned"}
    assert {"pruned", "complete"} <= {result.state for result in results}
    assert sorted(given.result.number for given in seen.of("on_trial_end")) == list(range(10))
    assert len(run.oof(0).windows) == len(run.folds.search_index(WindowStore(toy / "store").subjects))
    assert run.checkpoints(0, 0) == []
    told = read_output(run.folder)
    assert "SimulatedTrainable " in told, "the output of Ray's processes"
    printed = capfd.readouterr()
    assert printed.out == "", "neither Tune nor Ray's processes print in the driver"
    assert "SimulatedTrainable" not in printed.err
    assert len([line for line in read_log(run.folder, 0) if "Z epoch " in line]) == len(run.history(0))


def test_no_more_trials_run_at_a_time_than_the_machines_have_memory_for(tmp_path, toy, made, monkeypatch):
    run, options = made(0.05)
    monkeypatch.setattr(SimulatedGroups, "DRIVER_BYTES", 10**15)
    seen = Recorder()
    given = options | {"trials": 2, "callback": seen}
    with simulated():
        sweep(toy / "space.py", toy / "store", tmp_path / "run", **given)
    assert [(given.asked, given.limit) for given in seen.of("on_concurrency_limited")] == [(4, 1)]
    assert [given.layout.concurrent for given in seen.of("on_layout")] == [1]
    assert len(run.results()) == 2
