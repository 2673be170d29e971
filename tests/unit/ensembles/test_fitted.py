from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pytest

from raypipe.core.errors import UserError
from raypipe.ensembles.fit import fit_ensemble
from raypipe.ensembles.fitted import ARRAYS, RECORD, Ensemble
from raypipe.ensembles.held_out_record import HeldOut
from raypipe.storage.run_store import RunStore
from tests.support.faults import truncate
from tests.support.hostile import forged


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


@pytest.fixture(scope="module")
def saved(classes, tmp_path_factory):
    where = shutil.copytree(classes.run.local, tmp_path_factory.mktemp("saved") / "run")
    fit_ensemble(RunStore.open(where), top=2, windows=classes.windows).save()
    return where


def without_first_column(record):
    for row in record["table"].values():
        row.pop("oof")


RECORDS = {
    "weights that sum to five": (
        lambda r: r.update(weights=[5 / 2] * 2),
        r"weights/0: Input should be less than or eq",
    ),
    "weights of zero": (lambda r: r.update(weights=[0.0] * len(r["weights"])), "members: the weights sum to 0"),
    "a weight too many": (lambda r: r["weights"].append(0.0), r"\d trials, \d epochs and \d weights"),
    "an unknown rule": (lambda r: r.update(rule={"kind": "magic"}), "rule: .*does not match any of the expected tags"),
    "a rule of other members": (
        lambda r: r.update(rule={"kind": "linear", "weights": [0.2] * 5, "intercept": 0.0}),
        "rule: it combines 5 members",
    ),
    "no members": (lambda r: r.update(trials=[], epochs=[], weights=[]), "trials: List should have at least 1 item"),
    "a member twice": (lambda r: r.update(trials=[0, 0], epochs=[0, 0], weights=[0.5, 0.5]), "a member is there twice"),
    "no table": (lambda r: r.update(table={}), "table: Dictionary should have at least 1 item"),
    "a table without a column": (without_first_column, "table/ensemble: has no column 'oof'"),
    "counts that are no numbers": (
        lambda r: r["table"]["ensemble"].update(subjects=None),
        "table/ensemble: subjects, windows, units must be whole numbers",
    ),
    "correlations of other members": (lambda r: r["diversity"]["correlations"].pop(), "correlations: not those of"),
    "a curve of other members": (
        lambda r: r["diversity"]["curve"]["by rank"].pop(),
        "curve: not one score for",
    ),
    "no diversity": (lambda r: r.update(diversity={}), "diversity/members: Field required"),
}


@pytest.mark.parametrize("case", RECORDS)
def test_a_record_whose_fields_do_not_fit_each_other_is_one_line(saved, tmp_path, case):
    change, message = RECORDS[case]
    shutil.copytree(saved, tmp_path / "run")
    record = json.loads((tmp_path / "run" / RECORD).read_bytes())
    change(record)
    (tmp_path / "run" / RECORD).write_bytes(forged(record))
    with pytest.raises(UserError, match=message) as caught:
        Ensemble.load(RunStore.open(tmp_path / "run"))
    assert str(caught.value).isprintable()


ARRAY_CHANGES = {
    "text in place of numbers": ("targets", lambda a: a.astype(str), "targets: has values of type <U"),
    "numbers in place of text": ("subjects", lambda a: np.arange(len(a)), "subjects: has values of type int64"),
    "a row too few": ("predictions", lambda a: a[1:], r"predictions: shape \(\d+, 2\), expected \(\d+, 2\)"),
    "a column too few": ("predictions", lambda a: a[:, :1], r"predictions: shape \(\d+, 1\), expected"),
    "a member too many": ("trials", lambda a: np.concatenate([a, a]), r"trials: shape \(\d, \d+, 2\), expected"),
    "a number in place of an array": ("targets", lambda a: a[0], r"windows: shape \(\d+,\), expected \(1,\)"),
    "complex numbers": ("constant", lambda a: a.astype(complex), "constant: has values of type complex128"),
    "objects": ("windows", lambda a: a.astype(object), "ValueError: Object arrays cannot be loaded"),
    "nothing": ("windows", lambda a: None, "KeyError: 'windows is not a file"),
}


@pytest.mark.parametrize("case", ARRAY_CHANGES)
def test_arrays_of_another_type_or_shape_are_one_line(saved, case):
    name, change, message = ARRAY_CHANGES[case]
    with np.load(saved / ARRAYS) as file:
        arrays = dict(file)
    n_members, n_baselines = len(arrays["trials"]), len(arrays["baselines"])
    changed = change(arrays.pop(name))
    if changed is not None:
        arrays[name] = changed
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    with pytest.raises(ValueError, match=message) as caught:
        HeldOut.from_npz(buffer.getvalue(), n_members=n_members, n_baselines=n_baselines)
    assert str(caught.value).isprintable()
