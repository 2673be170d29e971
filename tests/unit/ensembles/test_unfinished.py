"""An ensemble of a sweep that is still running: held-out subjects are scored on purpose only."""

from __future__ import annotations

import shutil

import pytest
import typer

from raypipe import Run
from raypipe.cli import export
from raypipe.core.errors import UserError
from raypipe.core.options import SweepOptions
from raypipe.ensembles.evaluation_log import read_evaluations
from raypipe.ensembles.unfinished import require_ended, sweep_progress
from raypipe.storage.lease import Lease
from raypipe.storage.records import write_options
from raypipe.storage.run_store import RunStore


@pytest.fixture
def run(values, tmp_path) -> RunStore:
    """A run of four trials that have ended, of sixteen."""
    copied = RunStore.open(shutil.copytree(values.run.local, tmp_path / "run"))
    shutil.rmtree(tmp_path / "run/ensemble", ignore_errors=True)
    write_options(copied.folder, SweepOptions(trials=16).model_dump(mode="json"), copied.run_id)
    return copied


def test_a_running_sweep_is_refused_in_one_line_and_nothing_is_scored(run):
    with Lease(run.folder, run=run.run_id):
        with pytest.raises(UserError, match=r"still running \(4 of 16 trials\).*--so-far .*so_far=True") as error:
            Run(run).ensemble(method="best")
        assert "\n" not in str(error.value)
        assert read_evaluations(run) == []


def test_so_far_goes_on_and_the_report_says_after_how_many_trials(run):
    with Lease(run.folder, run=run.run_id):
        fitted = Run(run).ensemble(method="best", so_far=True)
    assert fitted.notes[0] == "Made after 4 of 16 trials, while the sweep was running."
    assert "Made after 4 of 16 trials, while" in Run(run).report().read_text()


def test_a_sweep_that_was_stopped_is_not_refused(run):
    assert require_ended(run, so_far=False) == ["Made after 4 of 16 trials."]


def test_a_sweep_that_is_done_has_no_note(values):
    assert require_ended(values.run, so_far=False) == []


def test_a_driver_that_has_not_yet_written_its_plan_is_refused(run):
    """`resume --trials 40` holds its lease before it writes its options: till then, all planned trials have ended."""
    write_options(run.folder, SweepOptions(trials=4).model_dump(mode="json"), run.run_id)
    with Lease(run.folder, run=run.run_id):
        with pytest.raises(UserError, match=r"still running \(4 of 4 trials\)"):
            Run(run).ensemble(method="best")
        assert read_evaluations(run) == []
        assert require_ended(run, so_far=True) == ["Made after 4 of 4 trials, while the sweep was running."]
        Run(run).report()
    Run(run).ensemble(method="best")
    assert len(read_evaluations(run)) == 1


@pytest.mark.parametrize(("answer", "goes_on"), [("y\n", True), ("n\n", False)])
def test_a_terminal_is_asked(run, monkeypatch, answer, goes_on):
    asked = []

    def confirm(question, abort):
        asked.append(question)
        if answer == "n\n":
            raise typer.Abort
        return True

    monkeypatch.setattr(export.typer, "confirm", confirm)
    for stream in ("stdin", "stdout"):
        monkeypatch.setattr(f"sys.{stream}", type("Terminal", (), {"isatty": lambda self: True})())
    assert not export._asked_and_agreed(run) and not asked, "no driver is alive"
    with Lease(run.folder, run=run.run_id):
        if goes_on:
            assert export._asked_and_agreed(run)
        else:
            with pytest.raises(typer.Abort):
                export._asked_and_agreed(run)
    assert "4 of 16 trials" in asked[0]
    monkeypatch.setattr("sys.stdin", type("Pipe", (), {"isatty": lambda self: False})())
    with Lease(run.folder, run=run.run_id):
        assert sweep_progress(run).running and not export._asked_and_agreed(run)
