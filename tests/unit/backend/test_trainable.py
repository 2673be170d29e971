"""What a slot makes of failures: Ray is imported, not started; the desk is an object of this process."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from raypipe.backend.broker import Broker
from raypipe.backend.trainable import TrialTrainable, acquire_group
from raypipe.core.errors import DiskFullError
from raypipe.storage.trial_log import read_log
from raypipe.trial.evaluator import TrialEvaluator
from raypipe.trial.failures import Failure, read_retry
from raypipe.trial.fold_runner import FoldRunner
from tests.support.toys import ToyWindows, make_run, tiny

OOM = Failure("out-of-memory", "no memory left on the GPU", "the end of a traceback")


class Remote:
    """The desk's methods as Ray gives them; `asked` keeps the names of the calls."""

    def __init__(self, desk: Broker) -> None:
        self._desk, self.asked = desk, []

    def __getattr__(self, name):
        def remote(*arguments):
            self.asked.append(name)
            return getattr(self._desk, name)(*arguments)

        return SimpleNamespace(remote=remote)


@pytest.fixture
def slot(tmp_path, monkeypatch):
    """A slot with trial 0 in hand, as after its setup; `slot.post` hands in an epoch of all folds."""
    windows = ToyWindows()
    run = make_run(tmp_path / "run", windows)
    run.add_trial(0, tiny())
    loop = asyncio.new_event_loop()
    desk = Broker()
    monkeypatch.setattr("raypipe.backend.trainable.ray.get", loop.run_until_complete)
    loop.run_until_complete(desk.open("group-0"))
    made = TrialTrainable.__new__(TrialTrainable)
    made.crew, made.name = SimpleNamespace(desk=Remote(desk)), "group-0"
    made.run, made.windows = run, windows
    made._assign({"number": 0})
    share = FoldRunner(run, windows, 0, range(3))

    def post(epoch: int) -> None:
        desk._groups["group-0"].outcomes[epoch] = share._epoch(epoch, lambda: False)[0]

    made.post = post
    made.fail = lambda failure: loop.run_until_complete(desk.fail("group-0", desk._groups["group-0"].job.seq, failure))
    made.job = lambda: desk._groups["group-0"].job
    yield made
    loop.close()


def test_a_trial_out_of_memory_is_handed_out_once_more_and_goes_on(slot, monkeypatch):
    slot.post(1)
    assert slot.step()["epoch"] == 1
    before = slot.job()
    slot.fail(OOM)
    hand_over = TrialTrainable._hand_over

    def then_post(self):
        hand_over(self)
        self.post(2)

    monkeypatch.setattr(TrialTrainable, "_hand_over", then_post)
    report = slot.step()
    assert (report["epoch"], report["over"], "failure" in report) == (2, False, False)
    assert (slot.job().seq, slot.job().number, slot.job().done) == (before.seq + 1, 0, 1)
    assert read_retry(slot.run, 0).micro_batch == 4


def test_the_second_time_it_fails(slot):
    slot.crew.desk.asked.clear()
    slot.fail(OOM)
    fail_again = slot._hand_over
    slot._hand_over = lambda: (fail_again(), slot.fail(OOM))
    report = slot.step()
    assert (report["failure"], report["done"]) == ("out-of-memory", True)
    assert report["reason"] == "no memory left on the GPU (also in micro-batches of 4)"
    assert report["trace"] == OOM.trace
    assert slot.crew.desk.asked.count("assign") == 1
    assert "tried once more in micro-batches of 4" in "\n".join(read_log(slot.run.folder, 0))


@pytest.mark.parametrize("kind", ["error", "non-finite", "bad-configuration", "lost-worker", "no-workers"])
def test_other_failures_are_reported_at_once(slot, kind):
    slot.crew.desk.asked.clear()
    slot.fail(Failure(kind, "it broke", "trace"))
    report = slot.step()
    assert (report["failure"], report["reason"], report["trace"]) == (kind, "it broke", "trace")
    assert "assign" not in slot.crew.desk.asked


def test_a_disk_too_full_to_record_the_retry_stops_the_sweep(slot, monkeypatch):
    def full(*_):
        raise DiskFullError("no space left")

    monkeypatch.setattr("raypipe.trial.failures.write_json", full)
    slot.fail(OOM)
    assert slot.step()["failure"] == "disk-full"


def test_a_score_that_is_no_number_is_reported_as_such(slot, monkeypatch):
    monkeypatch.setattr("raypipe.trial.evaluator.score", lambda *_: float("nan"))
    slot.post(1)
    assert slot.step()["failure"] == "non-finite"
    assert TrialEvaluator(slot.run, slot.windows, 0).history == []


def test_slots_that_start_together_do_not_ask_whether_all_the_others_live(monkeypatch):
    monkeypatch.setattr("ray.get", asyncio.run)
    monkeypatch.setattr(
        "raypipe.backend.trainable.dead_owners", lambda owners: [owner for owner in owners if owner == b"dead"]
    )
    desk = Remote(Broker())
    for name, owner in {"a": b"one", "b": b"dead", "c": None}.items():
        asyncio.run(desk._desk.open(name))
        if owner:
            asyncio.run(desk._desk.take(owner))
    assert acquire_group(desk, b"me") == "c"
    assert desk.asked == ["take"]
    assert acquire_group(desk, b"you") == "b", "nothing is free: the one whose slot has died"
    assert desk.asked == ["take", "take", "owners", "take"]
