"""Deaths of workers: what is reported, and how many workers restart. Ray is imported, not started."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import ray.exceptions
from ray.train import ScalingConfig
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision

from raypipe.backend.broker import Broker
from raypipe.backend.messages import GroupStart, SweepContext, TrialJob
from raypipe.backend.resources import PROCESS_BYTES, worker_resources
from raypipe.backend.worker_groups import (
    FIT_CHECK_SECONDS,
    GROW_CHECK_SECONDS,
    SHRINK_AFTER_SECONDS,
    DeathCallback,
    ElasticPolicy,
    WorkerGroups,
    _RegisteredPolicy,
    workers_that_fit,
)
from raypipe.core.errors import BrokenGpuError
from raypipe.storage.trial_log import read_log
from raypipe.trial.failures import Failure
from tests.support.toys import ToyWindows, make_run


@dataclass
class FakeBroker:
    """Answers with a trial's job, and records what is reported."""

    job: TrialJob | None
    reported: list[Any] = field(default_factory=list)

    @property
    def report_worker_death(self):
        return SimpleNamespace(remote=lambda group, failure: self.reported.append((group, failure)) or self.job)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr("raypipe.backend.worker_groups.ray.get", lambda answer: answer)
    return make_run(tmp_path / "run", ToyWindows())


def job_of(run) -> TrialJob:
    return TrialJob(1, run.where, 3, 0)


def log_of(run, broker, **deaths) -> list[str]:
    context = SimpleNamespace(broker=broker)
    polled = {int(rank[1:]): WorkerHealthCheckFailedError("polled in vain", cause) for rank, cause in deaths.items()}
    DeathCallback(context, "group-0").after_exception(None, polled)
    return [line.split("Z ", 1)[1] for line in read_log(run.folder, 3)]


def test_a_lost_machine_is_in_the_log_and_no_trial_is_to_blame(run):
    broker = FakeBroker(job_of(run))
    lines = log_of(run, broker, r1=ray.exceptions.NodeDiedError("the node died\nand more"))
    assert broker.reported == [("group-0", None)]
    assert len(lines) == 1
    assert lines[0] == "group-0: worker 1 died (the node died); the group restarts"


def test_an_error_that_a_worker_ends_with_is_in_the_log(run):
    """Ray wraps it with its traceback, of which the first line says nothing."""
    trace = 'Traceback (most recent call last):\n  File "worker.py", line 1\nBrokenGpuError: trial 3: CUDA error'
    raised = UserExceptionWithTraceback(BrokenGpuError("trial 3: CUDA error: unspecified launch failure"), trace)
    DeathCallback(SimpleNamespace(broker=FakeBroker(job_of(run))), "group-0").after_exception(None, {0: raised})
    (line,) = read_log(run.folder, 3)
    assert line.endswith(" worker 0 died (trial 3: CUDA error: unspecified launch failure); the group restarts")


def test_a_worker_killed_to_save_memory_fails_its_trial(run):
    broker = FakeBroker(job_of(run))
    lines = log_of(
        run,
        broker,
        r0=ray.exceptions.NodeDiedError("collateral"),
        r1=ray.exceptions.OutOfMemoryError(
            "Task was killed due to the node running low on memory.\nMemory on the node"
        ),
    )
    reason = "killed by Ray: Task was killed due to the node running low on memory."
    assert broker.reported == [("group-0", Failure("out-of-memory", reason))]
    assert len(lines) == 2


def test_a_death_between_trials_is_no_trials_fault(run):
    assert log_of(run, FakeBroker(None), r0=ray.exceptions.OutOfMemoryError("killed")) == []


def test_a_report_that_fails_does_not_end_the_controller(run):
    class Gone:
        @property
        def report_worker_death(self):
            raise ray.exceptions.ActorDiedError("the broker has died")

    assert log_of(run, Gone(), r0=ray.exceptions.OutOfMemoryError("killed")) == []


@dataclass
class Machines:
    """Free CPUs by node, the time, and the nodes of the group's own bundles."""

    free: dict[str, dict[str, float]] = field(default_factory=dict)
    now: float = 0.0
    bundles: dict[int, str] = field(default_factory=dict)
    paused: list[float] = field(default_factory=list)

    def nodes(self, group: str) -> list[str]:
        return list(self.bundles.values()) if group == "aa" else []


@pytest.fixture
def machines(monkeypatch):
    made = Machines()
    monkeypatch.setattr("raypipe.backend.worker_groups.free_resources", lambda: made.free)
    monkeypatch.setattr("raypipe.backend.worker_groups.nodes_of_placement_group", made.nodes)
    monkeypatch.setattr(
        "raypipe.backend.worker_groups.time", SimpleNamespace(monotonic=lambda: made.now, sleep=made.paused.append)
    )
    return made


def elastic(workers: int = 3) -> ElasticPolicy:
    return ElasticPolicy(ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1.0}), autoscaling=False)


def running(policy: ElasticPolicy, workers: int) -> int | None:
    """Return the decision for `workers` that run: a new number of workers, or None."""
    placement = SimpleNamespace(placement_group=SimpleNamespace(id=bytes([0xAA])))
    state = SimpleNamespace(num_workers=workers, placement_group_handle=placement)
    return chosen(policy.make_decision_for_running_worker_group(state, SimpleNamespace()))


def starting(policy: ElasticPolicy) -> int | None:
    return chosen(policy.make_decision_for_non_running_worker_group())


def chosen(decision: Any) -> int | None:
    assert isinstance(decision, (NoopDecision, ResizeDecision))
    return decision.num_workers if isinstance(decision, ResizeDecision) else None


def test_resources_are_counted_by_node_and_with_the_groups_own_bundles(machines):
    machines.free = {"a": {"CPU": 1.5, "GPU": 1.0}, "b": {"CPU": 3.0}}
    assert workers_that_fit({"CPU": 1.0}) == 4
    assert workers_that_fit({"CPU": 2.0, "GPU": 0}) == 1
    assert workers_that_fit({"CPU": 1.0, "GPU": 0.5}) == 1
    assert workers_that_fit({"CPU": 0.5, "GPU": 0.1}) == 3
    machines.bundles = {0: "a", 1: "gone", 2: "b"}
    assert workers_that_fit({"CPU": 2.0}, "aa") == 3
    assert workers_that_fit({"CPU": 2.0}, "bb") == 1


@pytest.mark.parametrize(("share", "places"), [(0.6, 1), (0.3, 5), (0.5, 3)])
def test_a_free_gpu_has_as_many_workers_as_have_their_whole_share_there(machines, share, places):
    worker = worker_resources(1, share)
    machines.free = {"a": {"CPU": 9.0, "GPU": 2.0 - worker["GPU"]}, "b": {"CPU": 9.0}}
    assert workers_that_fit(worker) == places, "beside one that runs"


def test_a_group_that_was_never_whole_begins_with_all_its_workers(machines):
    assert starting(elastic()) == 3


def test_a_dead_process_is_replaced_at_once_in_its_groups_own_place(machines):
    policy = elastic()
    machines.free, machines.bundles = {"a": {"CPU": 0.0}, "b": {}}, {0: "a", 1: "a", 2: "b"}
    assert starting(policy) == 3
    assert running(policy, 3) is None
    assert starting(policy) == 3


def test_fewer_workers_where_a_machine_stays_away_and_all_when_it_is_back(machines):
    policy = elastic()
    machines.free, machines.bundles = {"a": {"CPU": 0.0}, "b": {"CPU": 0.0}}, {0: "a", 1: "a", 2: "b"}
    assert starting(policy) == 3
    assert running(policy, 3) is None
    del machines.free["b"]  # lost
    machines.now = 100.0
    assert starting(policy) is None
    machines.now += SHRINK_AFTER_SECONDS - 1
    assert starting(policy) is None
    machines.now += 2
    assert starting(policy) == 2
    machines.bundles = {0: "a", 1: "a"}
    machines.now += GROW_CHECK_SECONDS + 1
    assert running(policy, 2) is None
    machines.free["c"] = {"CPU": 1.0}
    assert running(policy, 2) is None  # it has checked a moment ago
    machines.now += GROW_CHECK_SECONDS + 1
    assert running(policy, 2) == 3


def test_a_machine_that_is_back_in_time_costs_no_worker_and_the_next_absence_is_timed_separately(machines):
    policy = elastic(2)
    assert starting(policy) == 2
    assert starting(policy) is None
    machines.now += SHRINK_AFTER_SECONDS / 2
    machines.free = {"a": {"CPU": 2.0}}
    assert starting(policy) == 2
    machines.free = {"a": {"CPU": 1.0}}
    machines.now += SHRINK_AFTER_SECONDS
    assert starting(policy) is None
    machines.now += SHRINK_AFTER_SECONDS
    assert starting(policy) == 1


def test_no_group_starts_without_a_worker(machines):
    policy = elastic(2)
    assert starting(policy) == 2
    assert machines.paused == []
    for waits in range(1, 3):
        machines.now += 10 * SHRINK_AFTER_SECONDS
        assert starting(policy) is None
        assert machines.paused == [FIT_CHECK_SECONDS] * waits, "Ray Train asks again at once"


def test_a_new_controller_of_a_group_that_was_started_counts_what_is_free_at_once(machines):
    """Its predecessor may have died with its node, whose worker no longer fits anywhere."""
    config = ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1.0})
    context = SimpleNamespace(autoscaling=False)
    policies = [
        _RegisteredPolicy(config, GroupStart(context, "group-0", number, "head", "raypipe-")) for number in (0, 1)
    ]
    machines.free = {"a": {"CPU": 1.0}}
    assert starting(policies[0]) == 2
    assert starting(policies[1]) is None
    machines.now += SHRINK_AFTER_SECONDS
    assert starting(policies[1]) == 1


def test_a_group_asks_ray_for_whole_gpus_where_shares_leave_a_rest_that_no_worker_fits_in(broker):
    settings = {"windows": "store", "scratch": "scratch", "stem": "auto", "stack": "auto", "autoscaling": False}
    context = SweepContext(broker=broker, workers=3, cpus=2.0, gpus=0.6, **settings)
    trainer = WorkerGroups(context, 0)._trainer(GroupStart(context, "group-0", 0, "head", "raypipe-"))
    assert trainer.scaling_config.num_workers == 3
    assert trainer.scaling_config.resources_per_worker == {"CPU": 2.0, "GPU": 1.0}


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_controller_removes_what_earlier_ones_have_left_and_one_that_was_replaced_ends(broker, monkeypatch, number):
    removed: list[str] = []
    monkeypatch.setattr("raypipe.backend.worker_groups.remove_named_placement_groups", removed.append)
    monkeypatch.setattr("raypipe.backend.worker_groups.with_coordinator_on", removed.append)
    for _ in range(2):
        asyncio.run(broker.actor.begin_start("group-0"))
    context = SimpleNamespace(autoscaling=False, broker=broker)
    policy = _RegisteredPolicy(
        ScalingConfig(num_workers=1), GroupStart(context, "group-0", number, "head", "raypipe-group-0-")
    )
    if number == 1:
        policy.after_controller_start(None)
        assert removed == ["head", "raypipe-group-0-"]
        return
    with pytest.raises(RuntimeError, match="group-0 was closed"):
        policy.after_controller_start(None)
    assert removed == []


class Remote:
    """Handle of a broker whose methods run when their answer is got."""

    def __init__(self, actor: Broker) -> None:
        self.actor = actor

    def __getattr__(self, name):
        return SimpleNamespace(remote=getattr(self.actor, name))


@pytest.fixture
def broker(monkeypatch):
    """A broker with one group."""
    handle = Remote(Broker())
    asyncio.run(handle.actor.open_group("group-0"))
    monkeypatch.setattr("raypipe.backend.worker_groups.ray.get", asyncio.run)
    monkeypatch.setattr("raypipe.backend.worker_groups.ray.nodes", lambda: [{"Alive": True}, {"Alive": False}])
    context = SimpleNamespace(gcs_address="192.0.2.1:6379", get_node_id=lambda: "head")
    monkeypatch.setattr("raypipe.backend.worker_groups.ray.get_runtime_context", lambda: context)
    monkeypatch.setattr("raypipe.backend.worker_groups.listens", lambda address: address == context.gcs_address)
    return handle


def run_group(broker, monkeypatch, epochs):
    """Run a group whose controllers die after so many epochs each; return the numbers of its starts and kills.

    With None in place of a number, the group is given a trial first.
    """
    starts, killed, scored, left = [], [], 0, list(epochs)

    def trainer(self, start):
        def fit():
            nonlocal scored
            if left[0] is None:
                asyncio.run(broker.actor.assign("group-0", "run", 0, scored, 1))
            for _ in range(left.pop(0) or 0):
                scored += 1
                asyncio.run(broker.actor.mark_scored("group-0", scored, 1, False))
            raise ray.exceptions.ActorUnavailableError("the connection is lost", None)

        starts.append(start)
        return SimpleNamespace(fit=fit, kill=lambda: killed.append(start.number))

    monkeypatch.setattr(WorkerGroups, "_trainer", trainer)
    monkeypatch.setattr("raypipe.backend.worker_groups.IDLE_START_SECONDS", 0.0)
    WorkerGroups(SimpleNamespace(broker=broker), 0)._run("group-0")
    assert not left
    assert len({start.placement_groups for start in starts}) <= 1
    return [start.number for start in starts], killed


def test_a_group_whose_controllers_die_again_and_again_is_given_up_unless_epochs_are_scored(broker, monkeypatch):
    """A controller dies with its node, and a long sweep may lose many."""
    starts, killed = run_group(broker, monkeypatch, [None, 0, 1, 1, 2, 0, 0, 0, 1, 0, 0, 0, 0])
    assert starts == killed == list(range(13)), "one that only cannot be reached is killed before another starts"
    failure = asyncio.run(broker.actor.collect("group-0", 99, 1, 0.0))
    assert failure.kind == "no-workers" and "could not be kept running: The actor None" in failure.reason


def test_deaths_of_a_group_that_has_no_trial_are_not_counted(broker, monkeypatch):
    starts, _ = run_group(broker, monkeypatch, [0] * 6 + [None, 0, 0, 0])
    assert starts == list(range(10))
    assert asyncio.run(broker.actor.collect("group-0", 99, 1, 0.0)).kind == "no-workers"


@pytest.mark.parametrize("leaves", [False, True])
def test_a_group_whose_controller_died_with_the_control_store_waits_for_that_where_it_can_be_ended(
    broker, monkeypatch, leaves
):
    """Ray ends a driver that leaves it while a thread waits in a call."""
    answers, asked, groups, killed = [False, False, True], [], [], []

    def listens(address):
        asked.append(address)
        if leaves and len(asked) == 2:
            groups[0]._left.set()
        return leaves is False and answers.pop(0)

    def trainer(self, start):
        if start.number:
            self._closing = True
        groups.append(self)
        return SimpleNamespace(fit=lambda: 1 / 0, kill=lambda: killed.append(len(asked)))

    monkeypatch.setattr("raypipe.backend.worker_groups.STORE_CHECK_SECONDS", 0.0)
    monkeypatch.setattr("raypipe.backend.worker_groups.listens", listens)
    monkeypatch.setattr(WorkerGroups, "_trainer", trainer)
    WorkerGroups(SimpleNamespace(broker=broker), 0)._run("group-0")
    assert asked == ["192.0.2.1:6379"] * (2 if leaves else 3)
    assert len(groups) == (1 if leaves else 2)
    assert killed == ([] if leaves else [3]), "Ray may have lost the connection to it only"


def test_a_closed_group_is_not_started(broker, monkeypatch):
    asyncio.run(broker.actor.close_group("group-0"))
    assert run_group(broker, monkeypatch, []) == ([], [])


@pytest.mark.parametrize(("nodes", "spread"), [(1, False), (2, True)])
def test_controllers_are_spread_over_several_nodes_and_beside_the_driver_on_one(broker, monkeypatch, nodes, spread):
    monkeypatch.setattr("raypipe.backend.worker_groups.ray.nodes", lambda: [{"Alive": True}] * nodes)
    context = SweepContext("", broker, "/scratch", 1, 1, 0, "auto", "auto", False)
    trainer = WorkerGroups(context, 0)._trainer(GroupStart(context, "group-0", 0, "head", "raypipe-"))
    assert trainer.spread_bytes == (PROCESS_BYTES if spread else 0)


def test_groups_are_left_without_a_call_that_waits_for_the_control_store(monkeypatch):
    """Their workers stop training; calls that remove their placement groups would wait until Ray ends the driver."""
    called, waits = [], []

    class Broker:
        def __getattr__(self, name):
            return SimpleNamespace(remote=lambda group: called.append((name, group)) or (name, group))

    def wait(answers, num_returns, timeout):
        waits.append(timeout)
        return [], answers  # the broker is gone too

    def trainer(self, start):
        def fit():
            self._left.wait()
            raise RuntimeError("the driver leaves Ray")

        return SimpleNamespace(fit=fit, kill=lambda: pytest.fail("waits for the store"))

    monkeypatch.setattr("raypipe.backend.worker_groups.ray.get", lambda call: (0, 0, True))
    monkeypatch.setattr("raypipe.backend.worker_groups.ray.nodes", list)
    context = SimpleNamespace(get_node_id=lambda: "head")
    monkeypatch.setattr("raypipe.backend.worker_groups.ray.get_runtime_context", lambda: context)
    monkeypatch.setattr("raypipe.backend.worker_groups.ray.wait", wait)
    monkeypatch.setattr(WorkerGroups, "_trainer", trainer)
    monkeypatch.setattr(
        "raypipe.backend.worker_groups.remove_named_placement_groups", lambda _: pytest.fail("waits for the store")
    )
    groups = WorkerGroups(SimpleNamespace(broker=Broker()), 2)
    groups.close(abandon=True)
    assert called[-2:] == [("close_group", "group-0"), ("close_group", "group-1")]
    assert sorted(called[2:-2]) == [("begin_start", "group-0"), ("begin_start", "group-1")], "and no group starts again"
    assert waits and all(timeout is not None for timeout in waits)
    assert not any(thread.is_alive() for thread in groups._threads), "Ray would end the process that leaves it"
