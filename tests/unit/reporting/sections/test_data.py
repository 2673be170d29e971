"""The section on the data: people, windows, targets, confounds, spectra, and what was left out."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from raypipe.data.confounds import without_eeg
from raypipe.data.window_store import WindowStore
from raypipe.reporting.sections import data
from raypipe.reporting.sections.data import data_section, split_windows
from raypipe.storage.run_store import RunStore
from tests.support.records import edit_record
from tests.support.toys import ToyWindows, make_run, write_store


def made(root, toy):
    """Return a run on a store of toy windows."""
    store = write_store(root / "store", toy)
    run = make_run(root / "run", toy)
    manifest = json.loads((store / "manifest.json").read_text())
    edit_record(run.folder, "run.json", {"data": str(store), "data_hash": manifest["data_hash"]})
    return RunStore.open(root / "run"), WindowStore(store)


def of_people(subjects=12, each=4):
    toy = ToyWindows(subjects=subjects, each=each, classes=True)
    toy.targets = np.unique(toy.subjects, return_inverse=True)[1] % 2
    return toy


def test_windows_by_class_and_confounds_are_shown(tmp_path):
    toy = of_people()
    run, windows = made(tmp_path, toy)
    assert "Confounds" not in data_section(run)  # a store without the account
    table = pd.DataFrame({"subject": toy.subjects, "recording": toy.subjects, "target": toy.targets})
    class_of = dict(zip(toy.subjects.tolist(), toy.targets.tolist(), strict=True))
    people = {who: {"sex": "<F>" if n else "M", "age": str(k)} for k, (who, n) in enumerate(class_of.items())}
    found = without_eeg(table, ["off", "on"], {}, people)
    edit_record(str(windows.path), "manifest.json", {"without_eeg": found.model_dump(mode="json")})
    html = data_section(run)
    assert "Confounds (p up to 0.01): sex." in html and "&lt;F&gt; 6" in html and "<F>" not in html
    assert ">off<" in html and "fewest per person" in html and ">age<" in html
    assert "Age: median 5.5, 0 to 11." in html and "Sex: " in html
    assert "48 windows (3 channels x 1.28 s at 50 Hz) from 12 recordings of 12 people, of whom" in html
    assert "Used and left out" in html


def test_spectra_are_of_training_windows_of_each_class(tmp_path, monkeypatch):
    run, windows = made(tmp_path, of_people())
    read = []
    gather = WindowStore.gather
    monkeypatch.setattr(WindowStore, "gather", lambda self, i: read.extend(i) or gather(self, i))
    html = data_section(run)
    assert html.count("<svg") == 2 and "Power spectra, mean over channels" in html and "could not be" not in html
    assert read and not set(windows.subjects[read]) & set(run.folds.held_out)
    assert "differs most between groups, by up to" in html


@pytest.mark.parametrize("person", [False, True])
def test_thirds_of_a_numeric_target_have_a_spectrum_each(tmp_path, person):
    toy = ToyWindows(subjects=12, each=4)
    if person:
        toy.targets = np.repeat(np.arange(12), 4).astype(np.float32)
    run, windows = made(tmp_path, toy)
    groups = split_windows(run, windows, windows.manifest)
    assert [each.name.split(",")[0] for each in groups] == ["lowest third", "middle third", "highest third"]
    low, middle, high = (windows.targets[each.windows] for each in groups)
    assert max(low) < min(middle) <= max(middle) < min(high)
    together = np.concatenate([each.windows for each in groups])
    assert sorted(together) == np.flatnonzero(~np.isin(windows.subjects, run.folds.held_out)).tolist()
    html = data_section(run)
    assert (">12 people<" if person else ">48 windows<") in html
    assert ">quartile<" in html and html.count("<svg") == 2


def test_of_many_classes_the_largest_are_drawn(tmp_path):
    toy = ToyWindows(subjects=12, each=8, classes=True)
    toy.classes = list("abcdef")
    toy.targets = np.minimum(np.arange(96) % 8, 5)
    run, windows = made(tmp_path, toy)
    assert [each.name for each in split_windows(run, windows, windows.manifest)] == ["a", "b", "c", "f"]


def test_windows_that_cannot_be_read_leave_a_line(tmp_path, monkeypatch):
    run, _ = made(tmp_path, of_people())
    monkeypatch.setattr(data, "group_spectra", lambda *_: 1 / 0)
    html = data_section(run)
    assert "Power spectra could not be computed (ZeroDivisionError: division by zero)." in html
    edit_record(run.folder, "run.json", {"data": "s3://bucket/store"})
    html = data_section(RunStore.open(tmp_path / "run"))
    assert "Not shown: the windows are behind a URI" in html and "<svg" not in html


def test_predictors_of_several_values_name_the_value():
    y = np.arange(12.0)
    names = [f"p{k}" for k in range(12)]
    columns = {"target:p_factor": y, "target:attention": y[::-1]}
    table = pd.DataFrame({"subject": names, "recording": names, **columns})
    found = without_eeg(table, (), {}, {name: {"age": f"{k}"} for k, name in enumerate(names)})
    rows = data._predictors(found).rows
    assert [row[:3] for row in rows] == [["p_factor: age", "12", "1.000"], ["attention: age", "12", "−1.000"]]
