"""The public class `Run`."""

from __future__ import annotations

import shutil

import numpy as np

import raypipe
from raypipe.core.parameters import parse_config
from raypipe.data.window_cache import open_windows
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.fitted import Ensemble
from raypipe.trial.local import run_trial
from tests.support.records import edit_record
from tests.support.stores import Subset
from tests.support.toys import ToyWindows, make_run, tiny, write_store


def test_a_report_needs_no_windows(values, tmp_path):
    run = raypipe.Run(shutil.copytree(values.run.local, tmp_path / "run"))
    folder = run.store.folder
    edit_record(folder, "run.json", {"data": str(tmp_path / "removed")})
    moved = raypipe.Run(tmp_path / "run")
    assert moved.report() == tmp_path / "run/report.html"
    assert "cannot be opened" in (tmp_path / "run/report.html").read_text()


def test_out_of_fold_tables_of_several_stores_name_windows_that_each_store_has(tmp_path):
    subjects = [f"s{n:02d}" for n in range(8)]
    places = {
        "one": write_store(tmp_path / "one", Subset(subjects[:7])),
        "other": write_store(tmp_path / "other", Subset(subjects[1:])),
    }
    both = open_windows(places)
    run = make_run(tmp_path / "run", both, data=both.where)
    run.add_trial(0, tiny(epochs=1, data__store="other"))
    run_trial(run, both, 0)
    table = raypipe.Run(run.where).oof(0)
    for place in places.values():
        joined = table.merge(WindowStore(place).table, on=["recording", "onset"], suffixes=("", "_there"))
        assert len(joined) == len(table)
        assert (joined["subject"] == joined["subject_there"]).all()
        np.testing.assert_allclose(joined["target"], joined["target_there"], rtol=1e-6)
    first = WindowStore(places["one"]).table.iloc[table["window"]]
    assert first["subject"].tolist() != table["subject"].tolist(), "the number is no row of the first store"


def test_out_of_fold_tables_of_several_values_name_each(tmp_path):
    windows = WindowStore(write_store(tmp_path / "store", ToyWindows(outputs=["a", "b"])))
    run = make_run(tmp_path / "run", windows, data=windows.where)
    run.add_trial(0, parse_config({"model/name": "linear"}))
    run_trial(run, windows, 0)
    table = raypipe.Run(run.where).oof(0)
    assert list(table.columns) == [
        *["window", "recording", "onset", "subject"],
        *["target_a", "target_b", "fold", "prediction_a", "prediction_b"],
    ]


def test_an_ensemble_comes_with_the_baselines_of_its_report(values, tmp_path):
    run = raypipe.Run(shutil.copytree(values.run.local, tmp_path / "run"))
    shutil.rmtree(tmp_path / "run/ensemble", ignore_errors=True)
    names = [baseline.name for baseline in run.ensemble(top=1, method="best").baselines]
    assert names[0] == "ridge on band power" and set(names) < set(Ensemble.load(run.store).table.index)
    assert "ridge on band power" in run.report().read_text()
