"""Tune's reports and what the run's queue records. Ray is imported, not started."""

from __future__ import annotations

import importlib
import inspect
import json
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from raypipe.backend.tune import ADVICE, MAX_ACTOR_DEATHS, MAX_SAME_FAILURES, RunScheduler, RunSearch, RunStopper
from raypipe.core.errors import DiskFullError, LostSweepError, StorageError, UserError
from raypipe.core.stop import StopRequest
from raypipe.reporting.status import read_status
from raypipe.search.study import MAX_LOSSES, StudyQueue
from raypipe.storage.journal import open_journal
from raypipe.storage.records import best_epoch
from raypipe.storage.requests import Inbox, ask, read_answer
from raypipe.storage.trial_log import read_log
from raypipe.training import checkpoint
from raypipe.training.loader import WindowLoader
from raypipe.training.result import Reply
from raypipe.training.trainer import SupervisedTrainer
from raypipe.trial.callback import SweepCallback
from raypipe.trial.evaluator import TrialEvaluator, finish_trial
from raypipe.trial.fold_runner import FoldRunner
from raypipe.trial.local import run_trial
from raypipe.trial.requests import RequestDesk
from tests.support.callbacks import Recorder
from tests.support.faults import FailingFolder
from tests.support.toys import SPACE, ToyWindows, break_off, make_run


@pytest.fixture
def search(tmp_path):
    windows = ToyWindows()
    run = make_run(tmp_path / "run", windows)
    storage = open_journal(run)
    queue = StudyQueue(run, windows, storage, trials=9)
    return RunSearch(queue, storage, callback=SweepCallback())


def test_a_broker_that_has_died_is_no_trials_fault(search):
    search.suggest("a")
    assert not search.broker_is_lost()
    waited = []
    search._broker_died = lambda seconds: waited.append(seconds) or True
    search.on_trial_complete("a", None, error=True)  # its actor depends on the broker
    assert waited[0] > 0  # the actor may notice it before the driver does
    assert isinstance(search.fatal, LostSweepError)
    assert not search.fatal.progress
    assert search.queue.run.results() == []
    assert RunStopper(search).stop_all()
    again = StudyQueue(search.queue.run, search.queue.windows, open_journal(search.queue.run), trials=9)
    assert again.next() == 0


def fail(search, name, failure, reason):
    number = search.suggest(name)["number"]
    fail_as(search, name, failure, reason)
    return number


def fail_as(search, name, failure, reason):
    search.on_trial_complete(name, {"failure": failure, "reason": reason, "done": True})


def test_a_failed_trial_is_recorded_and_the_sweep_continues(search):
    number = fail(search, "a", "non-finite", "fold 0, epoch 1: the training loss is not finite")
    result = search.queue.run.result(number)
    assert (result.state, result.failure) == ("failed", "non-finite")
    assert search.fatal is None
    assert search.suggest("b")["number"] != number


@pytest.mark.parametrize(
    ("failure", "kind", "message"),
    [
        ("disk-full", DiskFullError, "^no space left$"),
        ("storage", StorageError, "^no space left$"),
        ("no-workers", UserError, "^no space left; the same command continues from here$"),
        ("unusable-workers", UserError, "^no space left$"),
    ],
)
def test_a_failure_outside_the_trial_stops_the_sweep_and_leaves_the_trial_open(search, failure, kind, message):
    number = fail(search, "a", failure, "no space left")
    assert search.queue.run.result(number) is None
    with pytest.raises(kind, match=message):
        raise search.fatal
    assert search.suggest("b") == "FINISHED"
    queue = search.queue
    again = StudyQueue(queue.run, queue.windows, open_journal(queue.run), trials=9)
    assert again.next() == number


@pytest.mark.parametrize("kind", sorted(ADVICE))
def test_trials_that_fail_the_same_way_from_the_first_end_the_sweep(search, kind):
    for trial in range(MAX_SAME_FAILURES):
        assert search.fatal is None
        number = fail(search, str(trial), kind, f"fold {trial}: it broke at 0x7f{trial}a, {trial}.5e-0{trial + 1}")
    assert RunStopper(search).stop_all()
    where = search.queue.run.where
    with pytest.raises(UserError) as stopped:
        raise search.fatal
    assert str(stopped.value) == (
        f"the first 3 trials failed the same way ({kind}): fold 2: it broke at 0x7f2a, 2.5e-03; "
        f"{ADVICE[kind]}; more in: raypipe logs {where} {number}"
    )
    assert search.suggest("next") == "FINISHED"


def test_out_of_memory_failures_are_the_same_whatever_their_reasons_say(search):
    for trial, size in enumerate(("20 MiB", "2 GiB", "host")):
        fail(search, str(trial), "out-of-memory", f"no memory left: {size}")
    assert "out-of-memory" in str(search.fatal)


def test_trials_that_fail_in_different_ways_are_no_reason_to_stop(search):
    for trial, reason in enumerate(("ValueError: a", "KeyError: b", "TypeError: c", "ValueError: d")):
        fail(search, str(trial), "error", reason)
    assert search.fatal is None


def finished(search, epochs=None):
    """Train a trial for `epochs`, or to its end; return the name that Tune gives it, its number and its last report."""
    name = f"tune-{len(search._numbers)}"
    number = search.suggest(name)["number"]
    run = search.queue.run
    if epochs is None:
        run_trial(run, search.queue.windows, number)
    else:
        break_off(run, search.queue.windows, number, epochs)
    history = run.history(number)
    report = {"number": number, "epoch": len(history), "score": history[-1].score, "folds": history[-1].fold_scores}
    return name, number, report | {"done": epochs is None, "over": epochs is None}


def test_a_trial_whose_only_epoch_is_its_last_is_progress(search):
    """Tune does not call the scheduler for it."""
    name, _, result = finished(search)
    search.on_trial_complete(name, result)
    search._broker_died = lambda seconds: True
    assert search.broker_is_lost() and search.fatal.progress


def test_no_sweep_that_has_had_a_good_trial_stops_for_bad_ones(search):
    name, _, result = finished(search)
    search.on_trial_complete(name, result)
    again = RunSearch(search.queue, search._storage, callback=SweepCallback())
    for one in (search, again):
        for trial in range(MAX_SAME_FAILURES):
            fail(one, str(trial), "error", "it broke")
        assert one.fatal is None


def test_an_end_that_was_not_reported_is_settled_by_the_next_queue(search):
    _, number, _ = finished(search)
    queue = search.queue
    assert queue.settled == []
    # The driver is killed before it reports this end.
    ended = finish_trial(queue.run, queue.windows, number, "complete", "trained to the end")
    again = StudyQueue(queue.run, queue.windows, open_journal(queue.run), trials=9)
    assert [result.number for result in again.settled] == [number] and again.settled[0] == ended
    assert StudyQueue(queue.run, queue.windows, open_journal(queue.run), trials=9).settled == []


def test_a_report_needs_one_read_of_the_storage(search):
    _, number, _ = finished(search, epochs=2)
    queue = search.queue
    queue.run.folder = counted = FailingFolder(queue.run.folder, at=10**9)
    assert queue.observe(number)
    before = counted.count
    assert before <= 2  # the configuration, once a trial
    assert queue.observe(number)
    assert counted.count - before == 1


class Never(optuna.pruners.BasePruner):
    """Stops every trial."""

    def prune(self, study, trial):
        return True


def ends_in_study(run):
    """Return the ends in the study's journal, by trial."""
    ends = {}
    for line in (run.local / "study.journal").read_text().splitlines():
        log = json.loads(line)
        if log["op_code"] == 6 and TrialState(log["state"]).is_finished():
            ends.setdefault(log["trial_id"], []).append(TrialState(log["state"]).name)
    return ends


@pytest.mark.parametrize(
    ("end", "state", "expected"),
    [
        ("done", "complete", "COMPLETE"),
        ("halved", "pruned", "PRUNED"),
        ("late", "stopped", "PRUNED"),
        ("actor", "failed", "FAIL"),
        ("non-finite", "failed", "FAIL"),
        ("out-of-memory", "failed", "FAIL"),
        ("error", "failed", "FAIL"),
        ("lost-worker", "failed", "FAIL"),
        ("bad-configuration", "failed", "FAIL"),
    ],
)
def test_every_end_of_a_trial_is_reported_once_and_correctly(search, end, state, expected):
    """An epoch that was scored before does not make a failed trial a complete one."""
    queue = search.queue
    name, number, result = finished(search, epochs=None if end == "done" else 2)
    if end == "halved":
        queue.study.pruner = Never()
    if end == "late":
        search._check_budget = lambda: "the GPU-hours were used up"
    if end == "actor":
        search._deaths[number] = MAX_ACTOR_DEATHS - 1
    scheduler = RunScheduler(search)
    decision = None
    if end in ("halved", "late"):
        decision = scheduler.on_trial_result(None, SimpleNamespace(trial_id=name), result)
        result |= {"done": True}  # as Tune does where a scheduler stops a trial
    elif end not in ("done", "actor"):
        result |= {"failure": end, "reason": "it broke", "trace": "Traceback\n  line", "done": True}
    assert decision in (None, "STOP")
    search.on_trial_complete(name, None if end == "actor" else result, error=end == "actor")
    search.on_trial_complete(name, result)  # a second report of Tune would change nothing
    StudyQueue(queue.run, queue.windows, open_journal(queue.run), trials=9)
    assert search.fatal is None
    ended = queue.run.result(number)
    assert (ended.state, ended.epochs) == (state, 4 if end == "done" else 2)
    assert ends_in_study(queue.run) == {number: [expected]}
    trial = queue.study.get_trials()[number]
    assert trial.state.name == expected
    assert trial.value == (ended.score if end == "done" else None) or expected == "PRUNED"
    assert [r.number for r in queue.run.ranked()] == ([number] if state in ("complete", "stopped") else [])
    log = read_log(queue.run.folder, number)
    assert f"end: {state}" in "\n".join(log[-3:])
    if "trace" in result:
        assert log[-2:] == ["  Traceback", "    line"]


def trained(search, epochs):
    """Train a trial for `epochs`, without recording an end; returns as `finished`."""
    number = search.suggest("first")["number"]
    queue = search.queue
    evaluator = TrialEvaluator(queue.run, queue.windows, number)

    def report(epoch, outcomes):
        evaluator.add_epoch(epoch, outcomes)
        return Reply(epoch < epochs, evaluator.best)

    FoldRunner(queue.run, WindowLoader(queue.windows, "cpu"), number, range(3)).train(0, report)
    last = evaluator.history[-1]
    return "first", number, {"number": number, "epoch": epochs, "score": last.score, "folds": last.fold_scores}


@pytest.mark.parametrize("end", ["halved", "done"])
def test_lost_checkpoints_are_made_again_and_the_trial_ends_as_it_would_have(search, end):
    queue, run = search.queue, search.queue.run
    name, number, result = trained(search, epochs=2 if end == "halved" else 4)
    whole = {path: path.read_bytes() for path in run.local.rglob("*.ckpt")}
    for path, data in whole.items():
        path.write_bytes(data[:-9])
    if end == "halved":
        queue.study.pruner = Never()
        assert RunScheduler(search).on_trial_result(None, SimpleNamespace(trial_id=name), result) == "STOP"
    search.on_trial_complete(name, result | {"done": True, "over": end == "done"})
    assert run.result(number) is None and queue.study.get_trials()[number].state == TrialState.RUNNING

    assert search.suggest("again") == {"number": number, "restores": True}
    loader = WindowLoader(queue.windows, "cpu")
    FoldRunner(run, loader, number, range(3)).train(result["epoch"] - 1, lambda epoch, outcomes: Reply(False, 0))
    best = best_epoch(run.history(number), "minimize").epoch
    read = {
        path: checkpoint.loads(path.read_bytes())["predictions"] for path in run.local.rglob(f"epoch-{best:04d}.ckpt")
    }
    assert len(read) == 3
    assert all(read[path].equal(checkpoint.loads(whole[path])["predictions"]) for path in read)
    search.on_trial_complete("again", {"number": number, "done": True, "over": True})
    assert run.result(number).state == {"halved": "pruned", "done": "complete"}[end]
    assert search.fatal is None and search.suggest("next")["number"] == number + 1


def test_checkpoints_that_are_lost_again_and_again_are_the_disks_fault(search):
    name, number, result = trained(search, epochs=4)
    for attempt in range(MAX_LOSSES + 1):
        for path in search.queue.run.local.rglob("*.ckpt"):
            path.unlink()
        search.on_trial_complete(name, result | {"done": True, "over": True})
        name = f"again-{attempt}"
        suggested = search.suggest(name)
        assert attempt == MAX_LOSSES or suggested == {"number": number, "restores": True}
    assert isinstance(search.fatal, StorageError) and "check the disk" in str(search.fatal)
    assert search.queue.run.result(number) is None


def test_a_trial_whose_actor_dies_between_two_trials_is_handed_out_again(search):
    """Tune gives up at once on a trial whose actor it cannot reset (found by chaos seed 7)."""
    first, second = search.suggest("a")["number"], search.suggest("b")["number"]
    search.on_trial_complete("a", None, error=True)
    assert search.queue.run.results() == []
    assert search.suggest("c")["number"] == first
    assert search.suggest("d")["number"] not in (first, second)


def test_a_trial_whose_actors_keep_dying_fails(search):
    numbers = []
    for attempt in range(MAX_ACTOR_DEATHS):
        numbers.append(search.suggest(str(attempt))["number"])
        search.on_trial_complete(str(attempt), None, error=True)
    assert numbers == [0] * MAX_ACTOR_DEATHS
    assert search.queue.run.result(0).failure == "lost-worker"
    assert search.suggest("next")["number"] == 1


def test_tune_does_not_finish_while_a_trial_may_come_back(search):
    numbers = [search.suggest(str(n))["number"] for n in range(9)]
    assert search.suggest("another") is None
    search.on_trial_complete("8", None, error=True)
    assert search.suggest("again")["number"] == numbers[8]
    assert search.suggest("another") is None
    for name in ["again", *map(str, range(8))]:
        fail_as(search, name, "error", f"it broke {name}")
    assert search.suggest("another") == "FINISHED"
    assert not search._running


def test_predictions_that_are_not_finite_are_a_failure(search, monkeypatch):
    name = "a"
    number = search.suggest(name)["number"]
    not_finite = lambda self, index: np.full((len(index), 1), np.inf, np.float32)  # noqa: E731
    monkeypatch.setattr(SupervisedTrainer, "predict", not_finite)
    ended = run_trial(search.queue.run, search.queue.windows, number)
    assert (ended.state, ended.failure, ended.score) == ("failed", "non-finite", None)
    assert ended.reason == "fold 0, epoch 1: the predictions are not finite"
    result = {"number": number, "epoch": 0, "score": float("nan"), "folds": [], "done": True}
    search.on_trial_complete(name, result | {"failure": ended.failure, "reason": ended.reason})
    assert ends_in_study(search.queue.run) == {number: ["FAIL"]}


def test_a_draw_that_is_not_valid_is_a_failed_trial_of_its_own(tmp_path):
    windows, seen = ToyWindows(), Recorder()
    space = SPACE.replace('"optim/lr", 1e-4, 1e-2', '"optim/lr", -2e-3, 1e-2').replace(", log=True)", ")", 1)
    space = space.replace("START = ", "START = [] and ")
    run = make_run(tmp_path / "run", windows, space=space)
    storage = open_journal(run)
    search = RunSearch(
        StudyQueue(run, windows, storage, trials=6),
        storage,
        callback=seen,
    )
    good = []
    while (answer := search.suggest(str(len(good)))) is not None:
        good.append(answer["number"])
    assert search.fatal is None
    bad = sorted(set(range(6)) - set(good))
    assert good and bad
    assert seen.names.count("on_trial_end") == len(bad)
    assert ends_in_study(run) == {number: ["FAIL"] for number in bad}
    for number in bad:
        ended = run.result(number)
        assert (ended.failure, ended.epochs) == ("bad-configuration", 0)
        assert "parameter 'optim/lr'" in ended.reason
    assert read_status(run).failure_kinds == {"bad-configuration": len(bad)}
    assert len(read_status(run).rows) == 6


def test_draining_lets_the_epoch_under_way_end_and_leaves_the_trials_open(search):
    seen = search.callback = Recorder()
    name, number, result = finished(search, epochs=1)
    stopper, scheduler = RunStopper(search), RunScheduler(search)
    assert not stopper.stop_all()
    search.stop.set()
    assert search.suggest("another") == "FINISHED"
    assert not stopper.stop_all() and not stopper.stop_all()
    assert [given.running for given in seen.of("on_draining")] == [1]
    assert scheduler.on_trial_result(None, SimpleNamespace(trial_id=name), result) == "STOP"
    search.on_trial_complete(name, result | {"done": True})  # as Tune does where a scheduler stops a trial
    assert search.interrupted
    assert ends_in_study(search.queue.run) == {}
    again = StudyQueue(search.queue.run, search.queue.windows, open_journal(search.queue.run), trials=9)
    assert again.next() == number
    assert again.study.trials[number].intermediate_values == {1: result["score"]}


def test_a_sweep_that_cannot_continue_leaves_its_trials_open(search, monkeypatch):
    name, number, result = finished(search, epochs=1)
    monkeypatch.setattr(search.queue, "observe", lambda _: (_ for _ in ()).throw(DiskFullError("full")))
    assert not search.record_epoch(name, result)
    search.on_trial_complete(name, result | {"done": True})
    assert search.queue.run.result(number) is None
    assert ends_in_study(search.queue.run) == {}


@pytest.mark.parametrize("event", ["on_trial_start", "on_epoch", "on_trial_end", "on_draining"])
def test_an_exception_in_a_callback_ends_the_sweep_and_is_no_trials_fault(search, event):
    """Tune takes it for a failure of the trial, which it would train again."""

    def refuse(name, given):
        if name == event:
            raise ValueError("a bug of the caller's")

    search.callback = Recorder(refuse)
    name, number, result = finished(search, epochs=1)
    search.record_epoch(name, result)
    search.on_trial_complete(
        name, None if event == "on_epoch" else result | {"done": True, "failure": "error", "reason": "it broke"}
    )
    search.stop.set()
    assert RunStopper(search).stop_all()
    assert isinstance(search.fatal, ValueError)
    assert search.suggest("another") == "FINISHED"
    assert set(ends_in_study(search.queue.run)) == (set() if event == "on_epoch" else {number})


def test_a_trial_that_ends_while_the_sweep_drains_has_ended(search):
    name, number, result = finished(search)
    search.stop.set()
    search.on_trial_complete(name, result)
    assert ends_in_study(search.queue.run) == {number: ["COMPLETE"]}


def test_an_actor_that_is_not_replaced_restarts_the_sweep(search):
    assert not RunStopper(search).stop_all() and search.fatal is None
    search._actor_not_replaced = lambda: True
    assert RunStopper(search).stop_all()
    assert isinstance(search.fatal, LostSweepError) and "no actor replaced one" in str(search.fatal)


def test_a_driver_whose_run_was_taken_over_stops_and_leaves_its_trials_open(search):
    name, number, result = finished(search, epochs=1)
    search._lease = SimpleNamespace(lost=None)
    stopper, scheduler = RunStopper(search), RunScheduler(search)
    assert not stopper.stop_all()
    search._lease.lost = UserError("another raypipe is driving this run")
    assert stopper.stop_all() and search.fatal is search._lease.lost
    assert scheduler.on_trial_result(None, SimpleNamespace(trial_id=name), result) == "STOP"
    search.on_trial_complete(name, result | {"done": True})
    assert search.suggest("another") == "FINISHED"
    assert search.queue.run.result(number) is None


def test_an_abandoned_tune_ends_and_records_nothing(search):
    """Its thread may wait for a control store that is away, and continue after the sweep has restarted."""
    name, number, result = finished(search)
    before = {path: path.read_bytes() for path in search.queue.run.local.rglob("*") if path.is_file()}
    search.abandon(LostSweepError("the control store is away", progress=True))
    for call in (
        RunStopper(search).stop_all,
        lambda: search.record_epoch(name, result),
        lambda: search.on_trial_complete(name, result),
        lambda: search.on_trial_complete(name, error=True),
        lambda: search.suggest("another"),
    ):
        with pytest.raises(SystemExit):  # any `Exception` is caught by Tune, which then waits for its actors
            call()
    source = inspect.getsource(importlib.import_module("ray.tune.tune").run)
    assert "except Exception:\n        runner.cleanup()" in source and "BaseException" not in source
    assert str(search.fatal) == "the control store is away"
    assert {path: path.read_bytes() for path in search.queue.run.local.rglob("*") if path.is_file()} == before
    assert ends_in_study(search.queue.run).get(number, []) == []


def test_requests_from_outside_are_acted_on(tmp_path):
    windows = ToyWindows()
    run = make_run(tmp_path / "run", windows)
    storage = open_journal(run)
    queue, inbox, stop = StudyQueue(run, windows, storage, trials=2), Inbox(run), StopRequest()
    desk = RequestDesk(inbox, queue, stop, "me")
    search = RunSearch(queue, storage, callback=SweepCallback(), stop=stop, desk=desk)
    number = search.suggest("a")["number"]
    ask(run, "enqueue", point={"optim/lr": 0.005, "sam/name": "none"})
    inbox.look()
    assert search.suggest("b")["number"] == 1 and run.config(1).optim.lr == 0.005, "before the next trial is drawn"
    report = {"number": number, "epoch": 1, "score": 0.5, "folds": [0.5], "done": False}
    assert search.record_epoch("a", report)
    asked = ask(run, "stop-trial", trial=number)
    inbox.look()
    assert not RunStopper(search).stop_all()
    assert not search.record_epoch("a", report | {"epoch": 2})
    assert search.record_epoch("b", report | {"number": 1})
    closed = []
    search._close = lambda number, state, reason, *_: closed.append((number, state, reason))
    search.on_trial_complete("a", {"done": True})
    assert closed == [(number, "stopped", "stopped by request")]
    assert read_answer(run, asked) is None
    ask(run, "end", driver="me")
    inbox.look()
    assert not RunStopper(search).stop_all()
    assert stop.is_set() and not search.record_epoch("b", report | {"number": 1})
