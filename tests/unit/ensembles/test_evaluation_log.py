from __future__ import annotations

import shutil

import pytest

from raypipe.core.errors import UserError
from raypipe.ensembles.evaluation_log import EVALUATION_LOG, read_evaluations
from raypipe.ensembles.fit import fit_ensemble
from raypipe.storage.run_store import RunStore


def test_every_scoring_of_the_held_out_subjects_is_recorded_and_noted(classes, tmp_path):
    run = RunStore.open(shutil.copytree(classes.run.local, tmp_path / "run"))
    run.folder.remove(EVALUATION_LOG)
    assert read_evaluations(run) == []
    first = fit_ensemble(run, top=2, windows=classes.windows)
    assert first.held_out_evaluations == 1 and not any("scored on its held-out" in note for note in first.notes)
    second = fit_ensemble(run, top=1, method="equal", windows=classes.windows)
    assert second.held_out_evaluations == 2 and "scored on its held-out subjects 2 times" in second.notes[0]
    best, *_ = (result.number for result in run.ranked())
    assert [(len(each.trials), each.trials[0], each.method) for each in read_evaluations(run)] == [
        (2, best, "auto"),
        (1, best, "equal"),
    ]


def test_a_log_of_another_form_is_refused(classes, tmp_path):
    run = RunStore.open(shutil.copytree(classes.run.local, tmp_path / "run"))
    run.folder.write(EVALUATION_LOG, b"[{}]")
    with pytest.raises(UserError, match=r"evaluations\.json"):
        fit_ensemble(run, top=1, windows=classes.windows)
