"""A pilot with two, three or four people: every method, the report and the bundle, or one line."""

from __future__ import annotations

import re

import numpy as np
import pytest

from raypipe.core.errors import UserError
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.fit import fit_ensemble
from raypipe.packaging.bundle import export_bundle, load_ensemble
from raypipe.reporting.report import render_report
from raypipe.storage.run_store import RunStore
from raypipe.trial.local import run_trial
from tests.support.records import edit_record
from tests.support.toys import ToyWindows, make_run, tiny, write_store

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
"""Scores of one class are undefined, and shown so."""


def pilot(root, people: int, *, classes: bool, of_people: bool) -> tuple[RunStore, WindowStore]:
    """Return a run with two complete trials on windows of a few people."""
    toy = ToyWindows(subjects=people, each=6, channels=2, classes=classes)
    if of_people:
        number = np.unique(toy.subjects, return_inverse=True)[1]
        toy.targets = number % 2 if classes else number.astype(np.float32)
    windows = WindowStore(write_store(root / "store", toy))
    where = make_run(root / "run", windows, n_folds=max(2, people - 1)).folder
    target = "events:off,on" if classes else "participants:age" if of_people else "latency:bump"
    edit_record(where, "run.json", {"data": str(root / "store"), "target": target})
    run = RunStore.open(root / "run")
    for number in range(2):
        run.add_trial(number, tiny(optim__lr=10.0 ** -(2 + number), epochs=2, batch_size=8))
        run_trial(run, windows, number)
    return run, windows


@pytest.mark.parametrize(
    ("people", "classes", "of_people"),
    [(4, True, True), (4, False, False), (3, True, False), (3, False, True)],
    ids=["four, classes of people", "four, values of trials", "three, classes of trials", "three, values of people"],
)
def test_a_pilot_ends_in_a_verdict_a_report_and_a_bundle(tmp_path, people, classes, of_people):
    run, windows = pilot(tmp_path, people, classes=classes, of_people=of_people)
    ensemble = fit_ensemble(run, windows=windows, method="all")
    assert "1 held-out subject" in ensemble.verdict and ": it generalizes to new people" not in ensemble.verdict
    assert not any("1 held-out subjects" in note for note in ensemble.notes)
    ensemble.save()
    html = render_report(run)
    assert "could not be drawn" not in html and not re.search(r"\bnan\b", html)
    bundle = load_ensemble(export_bundle(run, ensemble, tmp_path / "bundle", windows=windows))
    assert np.isfinite(bundle.predict(windows.gather(range(3)))).all()


def test_two_people_are_too_few_for_folds_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"subjects") as error:
        pilot(tmp_path, 2, classes=True, of_people=False)
    assert "\n" not in str(error.value)
