"""Failures in the trial actor. Ray is imported, not started; the broker is an object of this process."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from raypipe.backend.broker import Broker
from raypipe.backend.trainable import TrialTrainable, acquire_group
from raypipe.core.errors import DiskFullError
from raypipe.storage.trial_log import read_log
from raypipe.training.loader import WindowLoader
from raypipe.training.trainer import SupervisedTrainer
from raypipe.trial.evaluator import TrialEvaluator
from raypipe.trial.failures import Failure, read_retry
from raypipe.trial.fold_runner import FoldRunner
from tests.support.toys import ToyWindows, make_run, tiny

OOM = Failure("out-of-memory", "no memory left on the GPU", "the end of a traceback")


class Remote:
    """Handle of a broker as Ray gives it; `asked` are the names of the calls."""

    def __init__(self, broker: Broker) -> None:
        self._broker, self.asked = broker, []

    def __getattr__(self, name):
        def remote(*arguments):
            self.asked.append(name)
            return getattr(self._broker, name)(*arguments)

        return SimpleNamespace(remote=remote)


@pytest.fixture
def actor(tmp_path, monkeypatch):
    """A trial actor with trial 0, as after its setup; `actor.post` reports an epoch of all folds."""
    windows = ToyWindows()
    run = make_run(tmp_path / "run", windows)
    run.add_trial(0, tiny())
    loop = asyncio.new_event_loop()
    broker = Broker()
    monkeypatch.setattr("raypipe.backend.trainable.ray.get", loop.run_until_complete)
    loop.run_until_complete(broker.open_group("group-0"))
    made = TrialTrainable.__new__(TrialTrainable)
    made.broker, made.me = Remote(broker), b"me"
    made.group = loop.run_until_complete(broker.acquire(made.me))
    made.run, made.windows = run, windows
    made._begin_trial({"number": 0})
    runner = FoldRunner(run, WindowLoader(windows), 0, range(3))

    def post(epoch: int, group: str = "group-0") -> None:
        broker._groups[group].outcomes[epoch] = runner._epoch(epoch, lambda: False)[0]

    made.post = post
    made.call = lambda name, *given: loop.run_until_complete(getattr(broker, name)(*given))
    made.fail = lambda failure: loop.run_until_complete(
        broker.report_failure("group-0", broker._groups["group-0"].job.seq, failure)
    )
    made.job = lambda: broker._groups["group-0"].job
    yield made
    loop.close()


def test_a_trial_out_of_memory_is_assigned_once_more_and_continues(actor, monkeypatch):
    actor.post(1)
    assert actor.step()["epoch"] == 1
    before = actor.job()
    actor.fail(OOM)
    assign = TrialTrainable._assign

    def then_post(self):
        assign(self)
        self.post(2)

    monkeypatch.setattr(TrialTrainable, "_assign", then_post)
    report = actor.step()
    assert (report["epoch"], report["over"], "failure" in report) == (2, False, False)
    assert (actor.job().seq, actor.job().number, actor.job().done) == (before.seq + 1, 0, 1)
    assert read_retry(actor.run, 0).micro_batch == 4


def test_an_actor_follows_its_trial_to_another_group(actor, monkeypatch):
    monkeypatch.setattr("raypipe.backend.broker.MOVE_SECONDS", 0.0)
    monkeypatch.setattr("raypipe.backend.trainable.COLLECT_SECONDS", 0.01)
    actor.call("open_group", "group-1")
    actor.call("join", "group-1", 0)
    move = actor.broker._broker.move

    async def then_post(*given):
        found = await move(*given)
        actor.post(1, found)
        return found

    monkeypatch.setattr(actor.broker._broker, "move", then_post)
    assert actor.step()["epoch"] == 1
    assert actor.group == "group-1"
    assert actor.call("owners") == {"group-0": None, "group-1": actor.me}


def test_a_second_out_of_memory_error_fails_the_trial(actor):
    actor.broker.asked.clear()
    actor.fail(OOM)
    fail_again = actor._assign
    actor._assign = lambda: (fail_again(), actor.fail(OOM))
    report = actor.step()
    assert (report["failure"], report["done"]) == ("out-of-memory", True)
    assert report["reason"] == "no memory left on the GPU (also in micro-batches of 4)"
    assert report["trace"] == OOM.trace
    assert actor.broker.asked.count("assign") == 1
    assert "retried in micro-batches of 4" in "\n".join(read_log(actor.run.folder, 0))


@pytest.mark.parametrize("kind", ["error", "non-finite", "bad-configuration", "lost-worker", "no-workers"])
def test_other_failures_are_reported_at_once(actor, kind):
    actor.broker.asked.clear()
    actor.fail(Failure(kind, "it broke", "trace"))
    report = actor.step()
    assert (report["failure"], report["reason"], report["trace"]) == (kind, "it broke", "trace")
    assert "assign" not in actor.broker.asked


def test_a_disk_too_full_to_record_the_retry_stops_the_sweep(actor, monkeypatch):
    def full(*_):
        raise DiskFullError("no space left")

    monkeypatch.setattr("raypipe.trial.failures.write_record", full)
    actor.fail(OOM)
    assert actor.step()["failure"] == "disk-full"


def test_an_undefined_score_is_reported_as_nan_and_is_no_failure(actor, monkeypatch):
    monkeypatch.setattr("raypipe.trial.evaluator.ranking_score", lambda *_: float("nan"))
    actor.post(1)
    report = actor.step()
    assert np.isnan(report["score"]) and "failure" not in report
    assert [epoch.score for epoch in TrialEvaluator(actor.run, actor.windows, 0).history] == [None]


def test_predictions_that_are_not_finite_are_reported_as_non_finite(actor, monkeypatch):
    not_finite = lambda self, index: np.full((len(index), 1), np.nan, np.float32)  # noqa: E731
    monkeypatch.setattr(SupervisedTrainer, "predict", not_finite)
    actor.post(1)
    assert actor.step()["failure"] == "non-finite"
    assert TrialEvaluator(actor.run, actor.windows, 0).history == []


def test_actors_that_start_together_do_not_ping_all_the_others(monkeypatch):
    monkeypatch.setattr("ray.get", asyncio.run)
    monkeypatch.setattr(
        "raypipe.backend.trainable.dead_owners", lambda owners: [owner for owner in owners if owner == b"dead"]
    )
    broker = Remote(Broker())
    for name, owner in {"a": b"one", "b": b"dead", "c": None}.items():
        asyncio.run(broker._broker.open_group(name))
        if owner:
            asyncio.run(broker._broker.acquire(owner))
    assert acquire_group(broker, b"me") == "c"
    assert broker.asked == ["acquire"]
    assert acquire_group(broker, b"you") == "b", "no group is free: the one whose owner has died"
    assert broker.asked == ["acquire", "acquire", "owners", "acquire"]
