"""What a driver does with requests: each is answered exactly once, by it or by the next driver."""

from __future__ import annotations

import pytest

from raypipe.core.stop import StopRequest
from raypipe.search.study import StudyQueue
from raypipe.storage.journal import open_journal
from raypipe.storage.requests import Inbox, ask, read_answer
from raypipe.trial.requests import STOPPED, RequestDesk
from tests.support.toys import ToyWindows, make_run

POINT = {"optim/lr": 0.005, "sam/name": "none"}


class Sweep:
    """A driver's inbox, queue and desk."""

    def __init__(self, run, driver="me", trials=4):
        self.run = run
        self.queue = StudyQueue(run, ToyWindows(), open_journal(run), trials=trials)
        self.inbox, self.stop = Inbox(run), StopRequest()
        self.desk = RequestDesk(self.inbox, self.queue, self.stop, driver)

    def act(self, running=1):
        self.inbox.look()
        self.desk.act(running)

    def end(self, number, reason):
        ended = self.queue.close(number, "failed", reason)  # no epoch was trained, so it can only fail
        self.desk.settle(ended)


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", ToyWindows())


def test_a_trial_is_stopped_and_the_answer_comes_when_it_has_ended(run):
    sweep = Sweep(run)
    number = sweep.queue.next()
    request = ask(run, "stop-trial", trial=number)
    assert not sweep.desk.stops(number)
    sweep.act()
    sweep.act()
    assert sweep.desk.stops(number) and not sweep.desk.stops(number + 1)
    assert read_answer(run, request) is None
    sweep.end(number, STOPPED)
    assert read_answer(run, request).done and STOPPED in read_answer(run, request).text
    assert not sweep.desk.stops(number) and sweep.inbox.pending() == []


def test_a_pending_stop_of_a_killed_driver_is_acted_on_by_the_next(run):
    sweep = Sweep(run)
    number = sweep.queue.next()
    request = ask(run, "stop-trial", trial=number)
    sweep.act()
    following = Sweep(run, "another")  # the first is killed
    assert read_answer(run, request) is None
    following.act()
    assert following.queue.next() == number and following.desk.stops(number)


def test_a_trial_that_has_ended_or_is_not_there_is_answered_at_once(run):
    sweep = Sweep(run)
    number = sweep.queue.next()
    sweep.end(number, "toy")
    for asked, text in ((number, f"trial {number} had ended: failed (toy)"), (77, "refused: no trial 77")):
        request = ask(run, "stop-trial", trial=asked)
        sweep.act()
        assert (read_answer(run, request).done, read_answer(run, request).text) == (False, text)


def test_the_sweep_is_ended_by_the_driver_that_was_asked_and_by_no_other(run):
    request = ask(run, "end", driver="killed")
    sweep = Sweep(run)
    sweep.act()
    assert not sweep.stop.is_set()
    assert read_answer(run, request).text.startswith("expired: ")
    request = ask(run, "end", driver="me")
    sweep.act(running=2)
    assert sweep.stop.is_set() and read_answer(run, request).done
    assert "2 trial(s) finish the epoch under way" in read_answer(run, request).text


def test_a_point_is_one_of_the_trials_and_is_trained_once(run):
    sweep = Sweep(run, trials=3)
    assert sweep.queue.next() == 0
    request = ask(run, "enqueue", point=POINT)
    sweep.act()
    assert read_answer(run, request).text == "enqueued as trial 1"
    sweep.act()
    assert [sweep.queue.next() for _ in range(3)] == [1, 2, None]
    assert run.config(1).optim.lr == 0.005 and run.config(1).seed == 1
    assert run.record(1).params == POINT
    late = ask(run, "enqueue", point=POINT)
    sweep.act()
    assert not read_answer(run, late).done
    assert "all 3 trials of the run are drawn; extend it" in read_answer(run, late).text


def test_a_point_that_the_space_cannot_draw_is_refused(run):
    sweep = Sweep(run)
    for point, text in (
        ({"optim/lr": 5.0, "sam/name": "none"}, "out of"),
        ({"optim/lr": 0.005}, "sam/name"),
        (POINT | {"epochs": 3}, "'epochs', which space(trial) does not ask for"),
    ):
        request = ask(run, "enqueue", point=point)
        sweep.act()
        answer = read_answer(run, request)
        assert not answer.done and answer.text.startswith("refused: ") and text in answer.text
    assert len(sweep.queue.study.trials) == 1, "the starting point"


def test_a_point_is_enqueued_once_over_drivers_that_are_killed_anywhere(run, monkeypatch):
    """The record, the study and the answer are written one after the other; a driver is killed before each."""
    request = ask(run, "enqueue", point=POINT)

    class KilledError(BaseException):
        pass

    def killed(*_, **__):
        raise KilledError

    sweep = Sweep(run)
    for place, name in (
        ("raypipe.search.points", "write_points"),
        ("optuna.Study", "enqueue_trial"),
        ("raypipe.storage.requests.Inbox", "answer"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"{place}.{name}", killed)
            with pytest.raises(KilledError):
                sweep.act()
        sweep = Sweep(run)
    sweep.act()
    assert read_answer(run, request).text == "enqueued as trial 1"
    assert [trial.system_attrs.get("fixed_params") for trial in sweep.queue.study.trials][1:] == [POINT]
