"""The view of a running sweep: the state that it keeps from events, and its display."""

from __future__ import annotations

import io
import math
from collections import Counter
from dataclasses import replace

import pytest
from rich.console import Console

from raypipe.cli.progress import SweepView
from raypipe.reporting.sweep_state import SweepState
from raypipe.storage.records import TrialResult
from raypipe.trial.callback import Layout, RunSnapshot
from tests.support.toys import tiny


class Clock:
    """A clock that a test advances."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def ended(number: int, state: str = "complete", score: float | None = 0.8, failure: str | None = None) -> TrialResult:
    fields = {"number": number, "state": state, "score": score, "failure": failure, "reason": "so"}
    return TrialResult(**fields, best_epoch=4, epochs=9, seconds=61.0, finished=1.0)


OPEN = RunSnapshot(where="toys/run", metric="nrmse", direction="minimize", baseline=1.0021, trials=4)
LAYOUT = Layout(workers=2, concurrent=2, cpus=1.0, gpus=0.0, total_cpus=8.0, total_gpus=0.0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def view(clock) -> SweepView:
    made = SweepView(Console(file=io.StringIO(), width=160), clock)
    made.on_open(OPEN)
    made.on_layout(LAYOUT)
    return made


def shown(view: SweepView, width: int = 160) -> str:
    """The view as text."""
    console = Console(file=io.StringIO(), width=width)
    console.print(view.render())
    return console.file.getvalue()


def test_fewer_trials_at_a_time_than_asked_for_are_explained(clock):
    text = io.StringIO()
    SweepView(Console(file=text, width=400), clock).on_concurrency_limited(asked=200, limit=45)
    assert "45 trial(s) at a time, not 200: beside its workers each takes 0.28 GB" in text.getvalue()


def play(view: SweepView, clock: Clock, number: int, epochs: int, *, begin: int = 1, each: float = 3.0) -> None:
    view.on_trial_start(number, tiny(epochs=10, optim__lr=2e-3))
    for epoch in range(begin, begin + epochs):
        clock.now += each
        view.on_epoch(number, epoch, 1 - epoch / 100, [0.9, None, 0.912])


def test_the_view_shows_trials_scores_speed_and_failures(view, clock):
    play(view, clock, 0, 9)
    view.on_trial_end(ended(0))
    play(view, clock, 1, 1)
    view.on_trial_end(ended(1, "failed", None, "out-of-memory"))
    play(view, clock, 2, 5)
    view.on_trial_start(3, tiny(epochs=10))
    text = shown(view)
    assert "toys/run  2 of 4 trials ended: 1 complete, 1 failed, 2 running" in text
    assert "nrmse: best 0.8000 (trial 0; without EEG 1.0021)" in text
    row = next(line for line in text.splitlines() if line.lstrip().startswith("2 "))
    assert row.split()[:2] == ["2", "5/10"]
    assert "0.9500" in row and "0.900 - 0.912" in row and "3.0" in row and "optim/lr=0.002" in row
    assert any(line.split()[:2] == ["3", "starting"] for line in text.splitlines())
    assert "4 of 8 cores used" in text and "GPU" not in text
    assert "epochs a minute" in text and "trials an hour" in text
    assert "failures: 1 out-of-memory" in text
    assert "62%" in text  # two trials and a half of four
    assert "left" in text


def test_time_left_is_estimated_from_the_progress_of_this_driver(clock):
    sweep = SweepState(clock, metric="nrmse", trials=10, states=Counter(complete=7))
    assert sweep.time_left is None
    sweep.on_trial_start(7, tiny(epochs=10))
    for epoch in (6, 7, 8):  # an earlier driver has trained five
        clock.now += 10
        sweep.on_epoch(7, epoch, 0.5, [])
    assert sweep.done == pytest.approx(0.78)
    assert sweep.time_left.seconds == pytest.approx(2.2 * 30 / 0.3)
    clock.now += 20
    sweep.on_trial_end(ended(7, "pruned"))
    assert sweep.time_left.seconds == pytest.approx(2 * 50 / 0.5)
    assert sweep.epochs == 3


def test_better_depends_on_the_metric(clock):
    for metric, best in (("nrmse", 0.2), ("auc", 0.6)):
        sweep = SweepState(clock, metric=metric, trials=9)
        for number, score in enumerate((0.4, 0.2, 0.6)):
            sweep.on_trial_start(number, tiny())
            sweep.on_trial_end(ended(number, score=score))
        assert sweep.best is not None and sweep.best[0] == best


def test_a_failed_trial_is_never_the_best(clock):
    sweep = SweepState(clock, metric="nrmse", trials=9)
    sweep.on_trial_start(0, tiny())
    sweep.on_trial_end(ended(0, "failed", 0.01))
    assert sweep.best is None and sweep.failures == {"error": 1}


def test_a_trial_that_fails_before_its_first_epoch(view):
    view.on_trial_start(0, tiny())
    view.on_epoch(0, 0, math.nan, [])
    assert "nan" not in shown(view)
    view.on_trial_end(ended(0, "failed", None, "bad-configuration"))
    assert "failures: 1 bad-configuration" in shown(view)


def test_the_end_of_a_trial_reports_worker_time(view, clock):
    play(view, clock, 0, 2)
    view.on_trial_end(ended(0))
    assert view._console.file.getvalue().splitlines()[-1].endswith("1 min 01 s of workers")


def test_a_resumed_run_is_shown_with_its_earlier_trials(clock):
    view = SweepView(Console(file=io.StringIO(), width=160), clock)
    view.on_trial_settled(ended(2))  # `on_open` counts it
    results = [ended(0), ended(1, "failed", None), ended(2, score=0.7)]
    view.on_open(replace(OPEN, results=results, best=results[2]))
    text = shown(view)
    assert "3 of 4 trials ended: 2 complete, 1 failed, 0 running" in text and "failures: 1 error" in text
    assert "75%" in text
    assert "best 0.7000 (trial 2" in text
    view.on_trial_start(3, tiny())
    view.on_restart("the broker has died")
    view.on_trial_settled(ended(3))
    text = shown(view)
    assert "4 of 4 trials ended: 3 complete, 1 failed, 0 running" in text and "restarts: 1" in text


def test_many_trials_and_folds_stay_readable(view):
    for number in range(20):
        view.on_trial_start(number, tiny(epochs=10))
        view.on_epoch(number, 1, 0.9, [0.1 * k for k in range(10)])
    text = shown(view)
    assert "0.000 to 0.900" in text and "and 8 more" in text
    assert len(text.splitlines()) < 24


def test_without_a_terminal_a_line_at_intervals(clock):
    file = io.StringIO()
    with SweepView(Console(file=file, width=80), clock) as view:
        view.on_open(OPEN)
        play(view, clock, 0, 2, each=1.0)
        assert "epoch 2/10" not in file.getvalue()
        clock.now += 20
        view.on_epoch(0, 3, 0.77, [])
    last = file.getvalue().splitlines()[-1]
    assert "0/4 trials ended  without EEG 1.0021  trial 0: epoch 3/10, score 0.7700  about" in last
    assert "\x1b" not in file.getvalue()


def test_in_a_terminal_the_view_is_redrawn_and_lines_stay(clock):
    file = io.StringIO()
    console = Console(file=file, width=120, force_terminal=True)
    with SweepView(console, clock) as view:
        view.on_open(OPEN)
        play(view, clock, 0, 3)
        view.on_trial_end(ended(0))
    text = file.getvalue()
    assert "of 4 trials ended" in text
    assert text.index("trial 0: ") < text.index("trial 0 complete, score 0.8000 (epoch 4)")


def test_a_narrow_terminal_leaves_the_parameters_out_and_cuts_no_number(clock):
    view = SweepView(Console(file=io.StringIO(), width=80), clock)
    view.on_open(OPEN)
    play(view, clock, 0, 9)
    view.on_epoch(0, 10, 0.9, [0.911, 0.922, 0.933, 0.944])
    text = shown(view, 80)
    assert "0.911 0.922 0.933 0.944" in text and "10/10" in text and "…" not in text
    assert "optim/lr" not in text


def test_paths_with_brackets_are_shown_as_they_are(view):
    view.on_open(replace(OPEN, where="runs/[bold]a"))
    assert "runs/[bold]a" in shown(view)
