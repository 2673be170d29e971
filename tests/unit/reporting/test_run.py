"""The public class `Run`."""

from __future__ import annotations

import shutil

import raypipe
from raypipe.reporting.baselines import read_baselines
from tests.support.records import edit_record


def test_a_report_needs_no_windows(values, tmp_path):
    run = raypipe.Run(shutil.copytree(values.run.local, tmp_path / "run"))
    folder = run.store.folder
    edit_record(folder, "run.json", {"data": str(tmp_path / "removed")})
    moved = raypipe.Run(tmp_path / "run")
    assert moved.report() == tmp_path / "run/report.html"
    assert "cannot be opened" in (tmp_path / "run/report.html").read_text()


def test_an_ensemble_comes_with_the_baselines_of_the_report(values, tmp_path):
    run = raypipe.Run(shutil.copytree(values.run.local, tmp_path / "run"))
    shutil.rmtree(tmp_path / "run/ensemble", ignore_errors=True)
    run.ensemble(top=1, method="best")
    assert read_baselines(run.store)[0].name == "training mean"
    assert "ridge on band power" in run.report().read_text()
