"""Enqueued points outlast the loss of the study and of their record."""

from __future__ import annotations

from raypipe.search.points import POINTS_FILE, read_points
from raypipe.search.reconcile import open_study
from raypipe.search.requests import ask_to_enqueue
from raypipe.search.study import StudyQueue
from raypipe.storage.journal import JOURNAL_FILE
from raypipe.trial.callback import SweepCallback
from tests.support.toys import SPACE, ToyWindows, make_run

POINTS = [{"optim/lr": 0.005, "sam/name": "none"}, {"optim/lr": 0.006, "sam/name": "sam", "sam/rho": 0.1}]


class Said(SweepCallback):
    def __init__(self):
        self.lines = []

    def on_study_rebuilt(self, reason, trials, again):
        self.lines.append(reason)


def opened(run, said):
    return StudyQueue(run, ToyWindows(), open_study(run, said), trials=5)


def with_points(where):
    """A run with the starting point and a drawn trial; of two points one is handed out and one waits."""
    run = make_run(where, ToyWindows())
    queue = opened(run, Said())
    assert [queue.next(), queue.next()] == [0, 1]
    assert [queue.enqueue_point(point, f"request-{k}") for k, point in enumerate(POINTS)] == [2, 3]
    assert queue.next() == 2
    return run, queue


def test_a_study_with_points_agrees_with_its_records(tmp_path):
    run, _ = with_points(tmp_path / "run")
    said = Said()
    queue = opened(run, said)
    assert said.lines == []
    assert [queue.next() for _ in range(6)] == [0, 1, 2, 3, 4, None]
    assert [run.record(number).params for number in (2, 3)] == POINTS


def test_a_lost_study_has_the_points_again(tmp_path):
    run, before = with_points(tmp_path / "run")
    (run.local / JOURNAL_FILE).unlink()
    said = Said()
    queue = opened(run, said)
    assert said.lines == ["the study's journal is missing"]
    fixed = [[trial.system_attrs.get("fixed_params") for trial in q.study.trials] for q in (before, queue)]
    assert fixed[0] == fixed[1] and fixed[1][2:] == POINTS
    assert [queue.next() for _ in range(6)] == [0, 1, 2, 3, 4, None]


def test_a_lost_record_of_points_is_written_again(tmp_path):
    run, _ = with_points(tmp_path / "run")
    run.folder.remove(POINTS_FILE)
    said = Said()
    queue = opened(run, said)
    assert said.lines == [] and [(p.number, p.params) for p in read_points(run)] == list(enumerate(POINTS, 2))
    assert [queue.next() for _ in range(4)] == [0, 1, 2, 3]


def test_other_trials_are_drawn_as_without_points(tmp_path):
    """A trial's random stream is its number's: a point takes a place, and changes no draw after it."""
    run, queue = with_points(tmp_path / "run")
    assert [queue.next(), queue.next()] == [3, 4]
    plain = make_run(tmp_path / "plain", ToyWindows())
    other = opened(plain, Said())
    assert [other.next() for _ in range(5)] == list(range(5))
    assert [run.config(number) == plain.config(number) for number in range(5)] == [True, True, False, False, True]


def test_points_with_lists_outlast_the_study(tmp_path):
    lists = SPACE.replace('"sam/name": "none"}', '"sam/name": "none", "optim/betas": (0.9, 0.99)}').replace(
        "    if trial", '    trial.suggest_categorical("optim/betas", [(0.9, 0.99), [0.8, 0.999]])\n    if trial'
    )
    run = make_run(tmp_path / "run", ToyWindows(), space=lists)
    request = ask_to_enqueue(run, ["optim/lr=0.002", "sam/name=none", "optim/betas=[0.8,0.999]"])
    queue = opened(run, Said())
    assert queue.next() == 0 and queue.enqueue_point(request.point, request.id) == 1 and queue.next() == 1
    said = Said()
    assert [opened(run, said).next() for _ in range(2)] == [0, 0] and said.lines == []
    (run.local / JOURNAL_FILE).unlink()
    queue = opened(run, said)
    assert said.lines == ["the study's journal is missing"] and [queue.next() for _ in range(3)] == [0, 1, 2]
    assert [run.config(number).optim.betas for number in (0, 1)] == [(0.9, 0.99), (0.8, 0.999)]
    assert [run.record(number).params["optim/betas"] for number in (0, 1)] == ["[0.9, 0.99]", "[0.8, 0.999]"]
