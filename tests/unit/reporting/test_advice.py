"""Advice at the end of a search: cost, trend, edges of ranges, and the next step."""

from __future__ import annotations

import numpy as np
import pytest

from raypipe.reporting.advice import advise, range_edges
from raypipe.search.study import StudyQueue
from raypipe.storage.journal import open_journal
from raypipe.storage.lease import Lease
from raypipe.storage.records import Epoch, TrialResult, write_options
from tests.support.toys import TINY, ToyWindows, make_run

SPACE = f"""
START = {[{"optim/lr": float(v), "model/depth": 1 + k % 3} for k, v in enumerate(np.geomspace(1e-4, 1e-2, 9))]}
def space(trial):
    trial.suggest_float("optim/lr", 1e-4, 1e-2, log=True)
    trial.suggest_int("model/depth", 1, 3)
    trial.suggest_categorical("sam/name", ["none"])
    return {TINY!r} | {{"epochs": 4}}
"""


@pytest.fixture
def search(tmp_path):
    """Plays trials that end with the scores given, one after the other."""
    windows = ToyWindows()
    run = make_run(tmp_path / "run", windows, space=SPACE)
    ledger = StudyQueue(run, windows, open_journal(run), trials=30)

    def play(*scores: float | None, spread: float = 0.02, seconds: float = 600.0):
        for place, score in enumerate(scores):
            number = ledger.next()
            folds = [None if score is None else score + spread * k for k in (-1, 0, 1)]
            if score is not None:
                epoch = Epoch(
                    epoch=1, passes=1, score=score, fold_scores=folds, losses=[1.0] * 3, seconds=seconds, finished=0.0
                )
                run.write_history(number, [epoch])
            run.write_result(
                TrialResult(
                    number=number,
                    state="failed" if score is None else "complete",
                    score=score,
                    best_epoch=0 if score is None else 1,
                    epochs=1,
                    seconds=seconds,
                    reason="played",
                    finished=1000.0 + place,
                )
            )
        return run

    return play


def test_best_values_at_an_end_of_their_range_are_named(search):
    run = search(0.5, 0.51, 0.52, *([0.9] * 6))
    # Of nine start points two lie in the lowest tenth, on the logarithmic scale: one does not make an edge.
    assert [edge.name for edge in range_edges(run)] == []
    other = advise(run)
    assert not other.edges and "widen" not in other.step


def test_an_edge_needs_most_of_the_best_and_the_very_best(search, monkeypatch):
    monkeypatch.setattr("raypipe.reporting.advice.EDGE", 0.3)
    found = range_edges(search(0.5, 0.51, 0.52, *([0.9] * 6)))
    assert [(edge.name, edge.lower, edge.at_edge, edge.best) for edge in found] == [("optim/lr", True, 3, 3)]
    assert "are in the lowest 30% of 0.0001 to 0.01; values below 0.0001" in str(found[0])


def test_best_values_at_the_upper_end_of_their_range_are_named(search, monkeypatch):
    monkeypatch.setattr("raypipe.reporting.advice.EDGE", 0.3)
    run = search(*([0.9] * 6), 0.52, 0.51, 0.5)
    (edge,) = range_edges(run)
    assert not edge.lower and "above 0.01" in str(edge)
    assert advise(run).step.startswith("widen the range of optim/lr in the search space")
    assert f"--warm-start {run.where}" in advise(run).step


@pytest.mark.parametrize(
    ("scores", "spread", "words", "step"),
    [
        ([0.9, 0.8, 0.9, 0.9, 0.9, 0.9], 0.02, "none of the last 2 trials was better than trial 1 (0.8000)", "rerun"),
        ([0.9, 0.8, 0.9, 0.9, 0.9, 0.5], 0.02, "from 0.8000 to 0.5000; more are likely to help", "--trials 12"),
        ([0.9, 0.8, 0.9, 0.9, 0.9, 0.79], 0.2, "less than the standard error over folds (0.1155)", "rerun"),
        ([0.9, 0.8, None], 0.02, "2 complete trial(s) are too few to say", "--trials 6"),
        ([None], 0.02, "0 complete trial(s) are too few", "no trial is complete"),
    ],
)  # fmt: skip
def test_whether_more_trials_would_help(search, scores, spread, words, step):
    advice = advise(search(*scores, spread=spread))
    assert words in advice.trend
    assert step in advice.step


def test_reruns_and_invalid_draws_do_not_change_the_advice(search, monkeypatch):
    monkeypatch.setattr("raypipe.reporting.advice.EDGE", 0.3)
    run = search(0.9, 0.8, *([0.9] * 7))  # all of START; reruns follow
    before = advise(run)
    ledger = StudyQueue(run, ToyWindows(), open_journal(run), trials=None)
    assert ledger.enqueue_reruns(1, 3) == 12
    search(0.1, 0.1, 0.1)  # the best trial on other seeds, and lucky
    assert [run.rerun_of(number) for number in (9, 10, 11)] == [1, 1, 1]
    found = advise(run)
    assert found.edges == before.edges and found.trend == before.trend
    (run.local / "trials/0004/trial.json").unlink()
    run.write_result(run.result(4).model_copy(update={"state": "failed", "score": None}))
    assert "trend" in advise(run).trend


def test_the_cost_is_time_and_gpu_hours(search):
    run = search(0.9, 0.8, seconds=5400.0)
    assert advise(run).cost == "cost: 2 trials, compute 3 h 00 min (summed over workers)"
    write_options(run.folder, {"gpus_per_worker": 0.5}, run.run_id)
    assert "1.5 GPU-hours" in advise(run).cost and "reserved" not in advise(run).cost
    write_options(run.folder, {"gpus_per_worker": 0.6}, run.run_id)
    assert "3.0 GPU-hours" in advise(run).cost, "a worker of 0.6 has a GPU alone"
    write_options(run.folder, {"gpus_per_worker": 0.5}, run.run_id)
    with Lease(run.folder) as lease:
        lease.gpu_hours = 2.0
    assert "1.5 GPU-hours of 2.0 reserved" in advise(run).cost
    assert "compute 6 min 00 s (" in advise(search(0.7, seconds=-10440.0)).cost


def test_a_run_without_a_study(tmp_path):
    run = make_run(tmp_path / "run", ToyWindows())
    assert range_edges(run) == []
    assert "no trial is complete" in advise(run).step
