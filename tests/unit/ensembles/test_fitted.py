from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from raypipe.core.errors import UserError
from raypipe.ensembles.fit import fit_ensemble
from raypipe.ensembles.fitted import RECORD, Ensemble
from raypipe.storage.run_store import RunStore
from tests.support.faults import truncate


def test_a_saved_ensemble_is_loaded_as_it_was(classes, tmp_path):
    run = RunStore.open(shutil.copytree(classes.run.local, tmp_path / "run"))
    with pytest.raises(UserError, match="no ensemble yet"):
        Ensemble.load(run)
    first = fit_ensemble(run, top=2, windows=classes.windows)
    first.save()
    again = Ensemble.load(RunStore.open(run.where))
    assert again.table.equals(first.table) and again.verdict == first.verdict and again.trials == first.trials
    assert again.notes == first.notes and again.diversity == first.diversity and again.excluded == first.excluded
    for name in vars(first.held_out):
        np.testing.assert_array_equal(getattr(again.held_out, name), getattr(first.held_out, name))
    record = json.loads((tmp_path / "run" / RECORD).read_text())
    assert record["held_out_evaluations"] == first.held_out_evaluations and record["data_hash"] == run.info.data_hash
    for text, message in (
        ("{", "damaged"),
        ('{"format": "raypipe-ensemble/0"}', "format 'raypipe-ensemble/0', expected"),
    ):
        (tmp_path / "run" / RECORD).write_text(text)
        with pytest.raises(UserError, match=message):
            Ensemble.load(run)


def test_an_ensemble_is_saved_behind_a_uri(classes, tmp_path):
    shutil.copytree(classes.run.local, tmp_path / "run")
    run = RunStore.open((tmp_path / "run").as_uri())
    fit_ensemble(run, top=1, windows=classes.windows).save()
    assert Ensemble.load(run).trials == [run.ranked()[0].number]


def test_a_saved_ensemble_that_is_damaged_is_one_line(classes, tmp_path):
    run = RunStore.open(shutil.copytree(classes.run.local, tmp_path / "run"))
    fit_ensemble(run, top=1, windows=classes.windows).save()
    truncate(run.local / "ensemble/held_out.npz", 0.5)
    with pytest.raises(UserError, match="damaged"):
        Ensemble.load(run)
