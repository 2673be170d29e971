"""Progress as lines: one per event, and one at intervals, on the standard output of the time it was made."""

from __future__ import annotations

import contextlib
import io
import math
from dataclasses import replace

from raypipe.reporting.progress_lines import PrintProgress, chosen_parameters
from raypipe.storage.records import TrialResult
from raypipe.trial.callback import Layout, RunSnapshot, SweepCallback
from tests.support.toys import tiny

OPEN = RunSnapshot(where="runs/toy run", metric="nrmse", direction="minimize", baseline=1.0, trials=2)


def play(progress: PrintProgress, seconds: list[float]) -> None:
    """A trial of three epochs, one every ten seconds."""
    progress.on_open(OPEN)
    progress.on_layout(Layout(workers=2, concurrent=1, cpus=1.0, gpus=0.0, total_cpus=2.0, total_gpus=0.0))
    progress.on_trial_start(0, tiny(epochs=3, optim__lr=2e-3))
    for epoch in (1, 2, 3):
        seconds[0] += 10
        progress.on_epoch(0, epoch, 1 - epoch / 10, [0.9, None])
    end = {"best_epoch": 3, "epochs": 3, "seconds": 30.0, "reason": "so", "finished": 0.0}
    progress.on_trial_end(TrialResult(number=0, state="complete", score=0.7, **end))


def test_a_line_per_event_and_a_line_of_progress_at_intervals():
    lines, seconds = [], [0.0]
    play(PrintProgress(lines.append, every=15, clock=lambda: seconds[0]), seconds)
    assert lines[0] == "1 trial(s) at a time, 2 train worker(s) each with 1 core(s)"
    assert lines[1] == f"trial 0: {chosen_parameters(tiny(epochs=3, optim__lr=2e-3))}"
    assert lines[2] == "20 s  0/2 trials ended  without EEG 1.0000  trial 0: epoch 2/3, score 0.8000  about 40 s left"
    assert (
        lines[3]
        == "trial 0 complete, score 0.7000 (epoch 3), best 0.7000 (trial 0; without EEG 1.0000), 30 s of workers"
    )
    assert len(lines) == 4


def test_an_undefined_score_is_named_and_is_not_the_best():
    lines, seconds = [], [0.0]
    progress = PrintProgress(lines.append, every=15, clock=lambda: seconds[0])
    progress.on_open(replace(OPEN, baseline=math.nan))
    progress.on_trial_start(0, tiny(epochs=3))
    for epoch, score in enumerate((0.8, math.nan), start=1):
        progress.on_epoch(0, epoch, score, [None, None])
    assert progress.progress().startswith("0.0 s  0/2 trials ended  trial 0: epoch 2/3, score undefined")
    assert progress.state.running[0].best == 0.8


def test_lines_go_to_the_standard_output_of_the_time_it_was_made(capsys):
    progress, elsewhere = PrintProgress(), io.StringIO()
    with contextlib.redirect_stdout(elsewhere):
        progress.on_ray_start(None)
    assert capsys.readouterr().out == "starting Ray on this machine\n" and elsewhere.getvalue() == ""


def test_every_event_that_a_user_should_know_of_has_a_line():
    lines = []
    progress = PrintProgress(lines.append)
    progress.on_open(OPEN)
    for event, given in {
        "on_ray_start": ("auto",),
        "on_warning": ("space.py: drawn without effect",),
        "on_warm_start": ("old", 3, 4),
        "on_trials_kept": (2, 3),
        "on_lease_wait": ("process 7 on gpu-1",),
        "on_waiting": ("2 workers",),
        "on_concurrency_limited": (9, 2),
        "on_actor_lost": (),
        "on_draining": (1,),
        "on_restart": ("the broker died",),
        "on_budget_used": ("the time budget was used up",),
    }.items():
        assert hasattr(SweepCallback, event)
        getattr(progress, event)(*given)
    assert len(lines) == 11
    assert lines[-1] == "the time budget was used up; continue with: raypipe resume 'runs/toy run' --time-budget MORE"
