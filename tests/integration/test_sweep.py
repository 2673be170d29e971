"""Sweeps that nothing kills: the same numbers as a plain process, and every end that a trial or a sweep can have.

What kills and stops do to a sweep is in `test_failures.py`, `test_traps.py` and `tests/chaos`.
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from raypipe import resume, sweep
from raypipe.core.errors import DiskFullError
from tests.support.callbacks import Recorder
from tests.support.faults import small_disk
from tests.support.process import process_state
from tests.support.sweeps import numbers, study_of

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("shared")]


def cli_output(*arguments):
    command = [sys.executable, "-m", "raypipe", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_trials_on_ray_equal_trials_in_a_plain_process(toy, tmp_path, undisturbed, options):
    where, state, seen = tmp_path / "run", process_state(), Recorder()
    run = sweep(toy / "space.py", toy / "store", where, callback=seen, **options)
    assert process_state() == state, "the caller's process is left as it was"
    assert run.trials.state.tolist() == ["complete"] * 3
    assert seen.names.count("on_trial_end") == 3
    assert numbers(run) == numbers(undisturbed)
    told = study_of(run).trials
    assert [t.value for t in told] == [run.store.result(n).score for n in range(3)]
    assert [t.state.name for t in told] == ["COMPLETE"] * 3
    assert not [name for name in run.store.folder.names() if name.endswith(".ckpt")]

    before = {name: run.store.folder.read(name) for name in run.store.folder.names("trials")}
    seen = Recorder()
    again = sweep(toy / "space.py", toy / "store", where, callback=seen, **options)
    assert seen.names == ["on_open"]
    assert {name: again.store.folder.read(name) for name in again.store.folder.names("trials")} == before

    longer = resume(where, trials=4, workers=1)
    assert longer.trials.index.tolist() == [0, 1, 2, 3]
    assert {n: v for n, v in numbers(longer).items() if n < 3} == numbers(undisturbed)


def test_trials_beside_one_another_on_groups_of_one_worker(toy, tmp_path, options):
    given = {"trials": 4, "folds": 3, "prune": False, "concurrent": 2, "workers": 1, "address": options["address"]}
    seen = Recorder()
    run = sweep(toy / "space.py", toy / "store", tmp_path / "run", callback=seen, **given)
    assert [(given.layout.workers, given.layout.concurrent) for given in seen.of("on_layout")] == [(1, 2)]
    assert run.trials.state.tolist() == ["complete"] * 4
    assert len({tuple(c) for c in run.trials[["optim/lr", "sam/rho", "sam/name"]].to_numpy().tolist()}) == 4
    assert [t.state.name for t in study_of(run).trials] == ["COMPLETE"] * 4


def test_every_trial_is_reported_as_what_it_was(toy, tmp_path, light):
    """Tune tells stopped trials COMPLETE, leaves those without a number RUNNING, and may rank one that failed first."""
    space = tmp_path / "space.py"
    source = (toy / "space.py").read_text()
    rates = [1e-2, 3e-3, 1e-3, 1e6, 1e-4, 2e-4]
    start = [{"optim/lr": rate, "sam/name": "none"} for rate in rates]
    source = source.replace("START = [", f"START = {start!r} + [").replace("1e-4, 1e-2", "1e-6, 1e6")
    space.write_text(source)
    given = light | {"trials": len(rates), "prune": True, "grace": 1}
    run = sweep(space, toy / "store", tmp_path / "run", **given)
    table = run.trials
    assert table.loc[3, ["state", "failure"]].tolist() == ["failed", "non-finite"]
    states = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
    assert [t.state.name for t in study_of(run).trials] == [states[state] for state in table.state]
    assert set(table.state) == set(states)
    stopped = table[table.state == "pruned"]
    assert (stopped.trained < 4).all()
    assert (stopped.reason == "stopped by successive halving").all()
    assert all(len(run.oof(n)) for n in table[table.state != "failed"].index)
    assert all(run.store.result(r.number).state == "complete" for r in run.store.ranked())
    assert np.isfinite([r.score for r in run.store.ranked()]).all()
    best = run.store.ranked()[0]
    assert study_of(run).best_trial.number == best.number
    assert not [name for name in run.store.folder.names() if name.endswith(".ckpt")]


def test_a_used_up_time_budget_ends_trials_with_what_they_have(toy, tmp_path, monkeypatch, light):
    def use_up(event, given):
        if event == "on_epoch" and (given.number, given.epoch) == (1, 2):
            monkeypatch.setattr("raypipe.storage.lease.Lease.spent", 3601.0)

    given = light | {"trials": 50, "time_budget": 3600}
    run = sweep(toy / "space.py", toy / "store", tmp_path / "run", callback=Recorder(use_up), **given)
    assert run.trials.state.tolist() == ["complete", "stopped"]
    assert run.trials.reason[1] == "the time budget was used up"
    assert run.trials.trained.tolist() == [4, 2]
    assert {result.number for result in run.store.ranked()} == {0, 1}


@pytest.mark.long  # stores and runs behind URIs have unit tests
def test_windows_and_a_run_behind_uris(toy, tmp_path, monkeypatch, light):
    monkeypatch.setenv("RAYPIPE_CACHE", str(tmp_path / "cache"))
    given = light | {"trials": 1}
    run = sweep(toy / "space.py", f"file://{toy}/store", f"file://{tmp_path}/run", **given)
    assert run.trials.state.tolist() == ["complete"]
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 8
    assert np.isfinite(run.oof(0).prediction).all()
    longer = resume(run.where, trials=2)
    assert longer.trials.state.tolist() == ["complete"] * 2
    fitted = longer.ensemble(top=2)
    fitted.save()
    assert fitted.table.loc["ensemble", "held_out"] > 0
    assert cli_output("status", run.where).count("complete") == 3
    assert "bundle" in cli_output("export", run.where, tmp_path / "bundle")


@pytest.fixture
def disk(tmp_path):
    """A file system of 400 KB, and how to make it another size."""
    try:
        with small_disk(tmp_path / "disk", "400k") as resize:
            yield tmp_path / "disk", resize
    except PermissionError as error:
        pytest.skip(str(error))


def test_a_full_disk_stops_the_sweep_with_one_line_and_harms_nothing(toy, disk, undisturbed, light):
    disk, resize = disk
    with pytest.raises(DiskFullError, match=r"no space left on the disk; free some space and run the same command"):
        sweep(toy / "space.py", toy / "store", disk / "run", **light)
    resize("100m")
    assert not list((disk / "run").rglob("*.part"))
    assert numbers(resume(disk / "run")) == numbers(undisturbed)
