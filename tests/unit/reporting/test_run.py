"""The public class `Run`."""

from __future__ import annotations

import shutil

import raypipe
from raypipe.ensembles.fitted import Ensemble
from tests.support.records import edit_record


def test_a_report_needs_no_windows(values, tmp_path):
    run = raypipe.Run(shutil.copytree(values.run.local, tmp_path / "run"))
    folder = run.store.folder
    edit_record(folder, "run.json", {"data": str(tmp_path / "removed")})
    moved = raypipe.Run(tmp_path / "run")
    assert moved.report() == tmp_path / "run/report.html"
    assert "cannot be opened" in (tmp_path / "run/report.html").read_text()


def test_an_ensemble_comes_with_the_baselines_of_its_report(values, tmp_path):
    run = raypipe.Run(shutil.copytree(values.run.local, tmp_path / "run"))
    shutil.rmtree(tmp_path / "run/ensemble", ignore_errors=True)
    names = [baseline.name for baseline in run.ensemble(top=1, method="best").baselines]
    assert names[0] == "ridge on band power" and set(names) < set(Ensemble.load(run.store).table.index)
    assert "ridge on band power" in run.report().read_text()
