"""Sweeps on a real local Ray: the same numbers as a plain process, and as a run that nothing disturbed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from raypipe import Run, resume, sweep
from raypipe.core.errors import DiskFullError, UserError
from raypipe.data.window_store import WindowStore
from raypipe.storage.run_store import RunStore
from raypipe.trial.local import run_trial
from tests.support.callbacks import Recorder
from tests.support.faults import small_disk
from tests.support.process import process_state
from tests.support.sweeps import FLAGS, OPTIONS, injected, numbers, study_of, traced, tracing, wait_until

pytestmark = pytest.mark.ray


def cli_output(*arguments):
    command = [sys.executable, "-m", "raypipe", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_trials_on_ray_equal_trials_in_a_plain_process(toy, tmp_path):
    state, seen = process_state(), Recorder()
    run = sweep(toy / "space.py", toy / "store", tmp_path / "run", callback=seen, **OPTIONS)
    assert process_state() == state, "the caller's process is left as it was"
    assert run.trials.state.tolist() == ["complete"] * 3
    assert seen.names.count("on_trial_end") == 3
    windows = WindowStore(toy / "store")
    plain = RunStore.create(tmp_path / "plain", run.store.info, run.store.folds, run.store.space)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for number in run.store.numbers():
            plain.add_trial(number, run.store.config(number))
            run_trial(plain, windows, number)
    finally:
        torch.set_num_threads(threads)
    assert numbers(Run(plain)) == numbers(run)
    told = study_of(run).trials
    assert [t.value for t in told] == [run.store.result(n).score for n in range(3)]
    assert [t.state.name for t in told] == ["COMPLETE"] * 3
    assert not [name for name in run.store.folder.names() if name.endswith(".ckpt")]

    before = {name: run.store.folder.read(name) for name in run.store.folder.names("trials")}
    seen = Recorder()
    again = sweep(toy / "space.py", toy / "store", tmp_path / "run", callback=seen, **OPTIONS)
    assert seen.names == ["on_open"]
    assert {name: again.store.folder.read(name) for name in again.store.folder.names("trials")} == before

    longer = resume(tmp_path / "run", trials=4)
    assert longer.trials.index.tolist() == [0, 1, 2, 3]
    assert {n: v for n, v in numbers(longer).items() if n < 3} == numbers(Run(plain))


def test_trials_beside_one_another_on_groups_of_one_worker(toy, tmp_path):
    options = {"trials": 5, "folds": 3, "prune": False, "concurrent": 2, "workers": 1}
    seen = Recorder()
    run = sweep(toy / "space.py", toy / "store", tmp_path / "run", callback=seen, **options)
    assert [(given.layout.workers, given.layout.concurrent) for given in seen.of("on_layout")] == [(1, 2)]
    assert run.trials.state.tolist() == ["complete"] * 5
    assert len({tuple(c) for c in run.trials[["optim/lr", "sam/rho", "sam/name"]].to_numpy().tolist()}) == 5
    assert [t.state.name for t in study_of(run).trials] == ["COMPLETE"] * 5


def test_a_killed_train_worker_costs_what_was_not_yet_written_and_changes_no_number(toy, tmp_path, drive, undisturbed):
    env = injected(tmp_path / "hook", tracing())
    driver = drive("sweep", toy / "long.py", "--data", toy / "store", "--run", tmp_path / "run", *FLAGS, env=env)
    history = tmp_path / "run/trials/0000/history.json"
    wait_until(lambda: history.exists() and len(json.loads(history.read_text())["epochs"]) >= 2, "the second epoch")
    workers = driver.named("RayTrainWorker")
    assert len(workers) == 2
    driver.kill(workers[0])
    out = driver.finish()
    assert driver.child.returncode == 0, out
    assert numbers(Run(tmp_path / "run")) == numbers(undisturbed)
    assert [t.state.name for t in study_of(Run(tmp_path / "run")).trials] == ["COMPLETE"] * 3
    begun = Counter((one.number, one.fold, one.epoch) for one in traced(tmp_path / "run"))
    assert sorted(begun) == [(n, fold, epoch) for n in range(3) for fold in range(4) for epoch in range(1, 13)]
    assert max(begun.values()) == 2
    again = Counter(fold for (_, fold, _), times in begun.items() if times > 1)
    assert max(again.values()) <= 2  # the epoch under way, and the one whose checkpoint was still being written


def test_a_killed_actor_is_replaced_and_its_workers_resources_freed(toy, tmp_path, drive, undisturbed):
    driver = drive("sweep", toy / "long.py", "--data", toy / "store", "--run", tmp_path / "run", *FLAGS)
    history = tmp_path / "run/trials/0001/history.json"  # its second trial, so that it is not known by its first
    wait_until(
        lambda: history.exists() and len(json.loads(history.read_text())["epochs"]) >= 2, "trial 1's second epoch"
    )
    # The second is what Tune calls it while it works, which may begin between the two looks.
    actors = driver.named("TrialTrainable", "ResourceTrainable")
    assert len(actors) == 1
    driver.kill(*actors)
    out = driver.finish()
    assert driver.child.returncode == 0, out
    assert numbers(Run(tmp_path / "run")) == numbers(undisturbed)


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_a_notice_to_stop_leave_a_run_that_goes_on(toy, tmp_path, drive, undisturbed, sign):
    driver = drive("sweep", toy / "long.py", "--data", toy / "store", "--run", tmp_path / "run", *FLAGS)
    history = tmp_path / "run/trials/0000/history.json"
    wait_until(lambda: history.exists() and len(json.loads(history.read_text())["epochs"]) >= 2, "the second epoch")
    driver.child.send_signal(sign)
    out = driver.finish()
    assert driver.child.returncode == 130, out
    assert "the same command continues from here" in out
    assert numbers(resume(tmp_path / "run")) == numbers(undisturbed)


def test_a_killed_driver_is_resumed_without_loss_or_repetition(toy, tmp_path, drive, undisturbed):
    where = tmp_path / "run"
    driver = drive("sweep", toy / "long.py", "--data", toy / "store", "--run", where, *FLAGS)
    history = where / "trials/0001/history.json"
    wait_until(
        lambda: history.exists() and len(json.loads(history.read_text())["epochs"]) >= 3, "trial 1's third epoch"
    )
    driver.kill()
    driver.finish()
    wait_until(lambda: not driver.orphans(agents=False), "workers and actors to end with their driver")
    finished = (where / "trials/0000/result.json").read_bytes()
    done = len(json.loads(history.read_text())["epochs"])
    seen = Recorder()
    run = resume(where, callback=seen)
    assert numbers(run) == numbers(undisturbed)
    assert (where / "trials/0000/result.json").read_bytes() == finished
    assert min(given.epoch for given in seen.of("on_epoch") if given.number == 1) > done
    trials = study_of(run).trials
    assert [(t.number, t.state.name) for t in trials] == [(0, "COMPLETE"), (1, "COMPLETE"), (2, "COMPLETE")]


def test_successive_halving_stops_trials_and_says_so(toy, tmp_path):
    run = sweep(
        toy / "space.py", toy / "store", tmp_path / "run", **(OPTIONS | {"trials": 6, "prune": True, "grace": 1})
    )
    table = run.trials
    assert set(table.state) == {"complete", "pruned"}
    stopped = table[table.state == "pruned"]
    assert (stopped.trained < 4).all()
    assert (stopped.reason == "stopped by successive halving").all()
    states = [t.state.name for t in study_of(run).trials]
    assert [s == "PRUNED" for s in states] == (table.state == "pruned").tolist()
    assert all(len(run.oof(n)) for n in table.index)
    assert not [name for name in run.store.folder.names() if name.endswith(".ckpt")]


def test_a_used_up_time_budget_ends_trials_with_what_they_have(toy, tmp_path, monkeypatch):
    def use_up(event, given):
        if event == "on_epoch" and (given.number, given.epoch) == (1, 2):
            monkeypatch.setattr("raypipe.storage.lease.Lease.spent", 3601.0)

    options = OPTIONS | {"trials": 50, "time_budget": 3600, "concurrent": 1}
    run = sweep(toy / "long.py", toy / "store", tmp_path / "run", callback=Recorder(use_up), **options)
    assert run.trials.state.tolist() == ["complete", "stopped"]
    assert run.trials.reason[1] == "the time budget was used up"
    assert run.trials.trained.tolist() == [12, 2]
    assert {result.number for result in run.store.ranked()} == {0, 1}


def test_a_sweep_in_which_all_fail_the_same_way_ends_early_and_says_why(toy, tmp_path):
    space = tmp_path / "bad.py"
    space.write_text("def space(trial):\n    return {'loss/smoothing': 0.1, 'epochs': 2}\n")
    with pytest.raises(UserError, match=r"first 3 trials failed the same way \(bad-configuration\): .*loss/smoothing"):
        sweep(space, toy / "store", tmp_path / "run", **(OPTIONS | {"trials": 20}))
    assert Run(tmp_path / "run").trials.failure.tolist() == ["bad-configuration"] * 3


def test_workers_that_do_not_fit_are_one_line(toy, tmp_path):
    with pytest.raises(UserError, match=r"4 worker\(s\) of 900 CPU"):
        sweep(toy / "space.py", toy / "store", tmp_path / "run", trials=1, folds=4, workers=4, cpus_per_worker=900)


def test_two_drivers_never_share_a_run(toy, tmp_path, drive):
    driver = drive("sweep", toy / "long.py", "--data", toy / "store", "--run", tmp_path / "run", *FLAGS)
    wait_until(lambda: (tmp_path / "run/driver.json").exists(), "the lease")
    with pytest.raises(UserError, match="another raypipe is driving this run"):
        resume(tmp_path / "run")
    driver.kill()


def test_windows_and_a_run_behind_uris(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYPIPE_CACHE", str(tmp_path / "cache"))
    run = sweep(toy / "space.py", f"file://{toy}/store", f"file://{tmp_path}/run", **(OPTIONS | {"trials": 2}))
    assert run.trials.state.tolist() == ["complete"] * 2
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 8
    assert np.isfinite(run.oof(1).prediction).all()
    longer = resume(run.where, trials=3)
    assert longer.trials.state.tolist() == ["complete"] * 3
    fitted = longer.ensemble(top=2)
    fitted.save()
    assert fitted.table.loc["ensemble", "held_out"] > 0
    assert cli_output("status", run.where).count("complete") == 4
    assert "bundle" in cli_output("export", run.where, tmp_path / "bundle")


@pytest.fixture
def disk(tmp_path):
    """A file system of 400 KB, and how to make it another size."""
    try:
        with small_disk(tmp_path / "disk", "400k") as resize:
            yield tmp_path / "disk", resize
    except PermissionError as error:
        pytest.skip(str(error))


def test_a_full_disk_stops_the_sweep_with_one_line_and_harms_nothing(toy, disk, undisturbed):
    disk, resize = disk
    with pytest.raises(
        DiskFullError, match=r"no space left on the disk; free some space and run the same command again"
    ):
        sweep(toy / "long.py", toy / "store", disk / "run", **OPTIONS)
    resize("100m")
    assert not list((disk / "run").rglob("*.part"))
    assert numbers(resume(disk / "run")) == numbers(undisturbed)
