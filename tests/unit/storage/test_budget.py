from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from raypipe.cli.doctor import diagnose
from raypipe.cli.progress import SweepView
from raypipe.core.errors import UserError
from raypipe.core.options import parse_options
from raypipe.core.search_space import load_space
from raypipe.data.window_store import WindowStore
from raypipe.reporting.status import read_status
from raypipe.search.run_setup import open_run
from raypipe.search.study import StudyQueue
from raypipe.search.sweep import resume
from raypipe.storage import budget
from raypipe.storage.budget import RECOUNT_SECONDS, Budget
from raypipe.storage.files import open_folder
from raypipe.storage.journal import open_journal
from raypipe.storage.lease import DRIVER_FILE, Lease, read_driver, read_lease
from raypipe.storage.records import Epoch, write_options
from raypipe.trial.callback import CallbackList
from tests.support.callbacks import Recorder
from tests.support.records import edit_record
from tests.support.toys import SPACE, ToyWindows, write_store


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(budget.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


class LeaseStub:
    """Stand-in for a lease, with the attributes that a budget uses."""

    def __init__(self, spent=0.0, gpu_hours=0.0):
        self.spent, self.gpu_hours = spent, gpu_hours


def test_time_counts_over_all_drivers(clock):
    lease = LeaseStub(spent=59.0)
    limits = Budget(lease, 60.0, None)
    assert limits.used_up() == ""
    lease.spent = 61.0
    assert limits.used_up() == "the time budget was used up"


def test_gpus_count_while_they_are_held_and_at_most_those_of_the_cluster(clock):
    lease, in_cluster = LeaseStub(gpu_hours=1.0), 8.0
    limits = Budget(lease, None, 6.0)
    with limits.holding(4.0, lambda: in_cluster):
        clock.now += 1800
        assert limits.used_up() == ""
        assert lease.gpu_hours == pytest.approx(3.0)
        in_cluster = 1.0  # the cluster has lost GPUs: fewer count from the next recount on
        clock.now += RECOUNT_SECONDS + 1
        limits.used_up()
        before = lease.gpu_hours
        clock.now += 1800
        assert limits.used_up() == ""
        assert lease.gpu_hours == pytest.approx(before + 0.5)
        in_cluster = 8.0
        clock.now += RECOUNT_SECONDS + 1
        limits.used_up()
        clock.now += 3600
        assert limits.used_up() == "the GPU-hours were used up"
    used = lease.gpu_hours
    clock.now += 3600  # nothing is held between two starts of Ray
    limits.used_up()
    assert lease.gpu_hours == used


def test_an_interrupted_sweep_has_counted_its_gpus(clock):
    lease = LeaseStub()
    with pytest.raises(KeyboardInterrupt), Budget(lease, None, None).holding(2.0, lambda: 2.0):
        clock.now += 1800
        raise KeyboardInterrupt
    assert lease.gpu_hours == pytest.approx(1.0)


def test_gpu_hours_are_recorded_with_every_heartbeat(tmp_path, clock):
    """A driver that is killed loses only what it used since its last heartbeat."""
    folder = open_folder(tmp_path)
    with Lease(folder) as lease, Budget(lease, None, None).holding(2.0, lambda: 2.0):
        clock.now += 3600
        lease._beat()
        assert read_lease(folder).gpu_hours == pytest.approx(2.0)


def test_the_next_driver_continues_the_count(tmp_path):
    folder = open_folder(tmp_path)
    with Lease(folder) as lease:
        lease.gpu_hours = 2.5
    assert read_lease(folder).gpu_hours == 2.5
    with Lease(folder) as lease:
        assert lease.gpu_hours == 2.5


def test_gpu_hours_of_a_sweep_without_gpus_are_one_line():
    with pytest.raises(UserError, match=r"--gpu-hours: the sweep uses no GPU.*--gpus-per-worker"):
        parse_options({"gpu_hours": 3.0})
    with pytest.raises(UserError, match="--gpu-hours -3"):
        parse_options({"gpu_hours": -3.0, "gpus_per_worker": 1})
    assert parse_options({"gpu_hours": 3.0, "gpus_per_worker": 0.5}).gpu_hours == 3.0


@pytest.mark.parametrize(("limit", "used"), [("time_budget", {"spent": 9e9}), ("gpu_hours", {"gpu_hours": 9e9})])
def test_a_run_whose_limit_is_used_up_does_not_start_ray(tmp_path, monkeypatch, limit, used):
    windows = WindowStore(write_store(tmp_path / "store", ToyWindows()))
    space = tmp_path / "space.py"
    space.write_text(SPACE)
    options = parse_options({"trials": 5, "folds": 3, "gpus_per_worker": 1, limit: 7.0, "track": []})
    run = open_run(load_space(space), windows, str(tmp_path / "run"), options)
    write_options(run.folder, options.model_dump(mode="json"), run.run_id)
    with Lease(run.folder, run=run.run_id):
        pass
    edit_record(run.folder, DRIVER_FILE, used)
    monkeypatch.setattr("raypipe.backend.cluster.Cluster.start", lambda cluster: pytest.fail("Ray was started"))
    seen, text = Recorder(), io.StringIO()
    resume(run.where, callback=CallbackList([seen, SweepView(Console(file=text, width=300))]))
    assert "on_budget_used" in seen.names
    option = "--" + limit.replace("_", "-")
    assert f"continue with: raypipe resume {run.where} {option} MORE" in text.getvalue()
    assert f"{option} MORE" in read_status(run).driver


@pytest.mark.parametrize("damage", ["cut", "of another run", "deleted"])
def test_a_lost_record_of_the_driver_does_not_restart_the_budget(tmp_path, monkeypatch, damage):
    windows = WindowStore(write_store(tmp_path / "store", ToyWindows()))
    space = tmp_path / "space.py"
    space.write_text(SPACE)
    options = parse_options({"trials": 5, "folds": 3, "gpus_per_worker": 1, "time_budget": 25.0, "track": []})
    run = open_run(load_space(space), windows, str(tmp_path / "run"), options)
    write_options(run.folder, options.model_dump(mode="json"), run.run_id)
    queue = StudyQueue(run, windows, open_journal(run), trials=1)
    number, now = queue.next(), time.time()
    epoch = {"score": 1.0, "fold_scores": [1.0] * 3, "losses": [1.0], "seconds": 20.0}
    run.write_history(number, [Epoch(epoch=e, passes=e, finished=now + 10 + 60 * e, **epoch) for e in (1, 2)])
    with Lease(run.folder, run=run.run_id):
        pass
    monkeypatch.setattr("raypipe.backend.cluster.Cluster.start", lambda cluster: pytest.fail("Ray was started"))
    seen = Recorder()
    if damage == "deleted":
        run.folder.remove(DRIVER_FILE)
        resume(run.where, callback=seen)
        assert "on_warning" in seen.names and "on_budget_used" in seen.names
        used = read_driver(run.folder, run.run_id)
        assert 40.0 <= used.spent < 60.0 and used.gpu_hours == pytest.approx(40.0 / 3600)
        return
    if damage == "cut":
        run.folder.write(DRIVER_FILE, run.folder.read(DRIVER_FILE)[:-9])
    else:
        edit_record(run.folder, DRIVER_FILE, {"run": "another"})
    with pytest.raises(UserError, match=r"driver\.json: .*; restore it from a copy, or remove it: the time spent is "):
        resume(run.where)
    assert any("driver.json" in finding.what for finding in diagnose(run.where) if finding.level == "broken")
