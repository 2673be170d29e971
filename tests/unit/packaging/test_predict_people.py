from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from raypipe.cli import app
from raypipe.core.errors import UserError
from raypipe.ensembles.people import People
from raypipe.packaging.bundle import LoadedEnsemble, export_bundle, load_ensemble
from raypipe.packaging.predict import predict
from tests.support.toys import ToyWindows, write_store
from tests.unit.conftest import Finished, finish


@pytest.fixture(scope="module")
def ages(tmp_path_factory) -> Finished:
    """A regression of a value of the person, of twenty-four toy subjects."""
    root = tmp_path_factory.mktemp("ages")
    toy = ToyWindows(subjects=24, each=4)
    toy.targets = (np.unique(toy.subjects, return_inverse=True)[1] % 7).astype(float)
    return finish(root, write_store(root / "store", toy), target="participants:age", epochs=2)


def loaded(made: Finished, where) -> LoadedEnsemble:
    """Return the bundle of a run on toy windows, which are taken for given ones."""
    found = load_ensemble(export_bundle(made.run, made.ensemble(top=2), where / "bundle", windows=made.windows))
    given = found.info.prepare.model_copy(update={"target": "arrays"})
    return LoadedEnsemble(found.info.model_copy(update={"prepare": given}), found.module)


def test_people_have_calibrated_probabilities_and_the_class_that_was_scored(repeated, tmp_path):
    bundle = loaded(repeated, tmp_path)
    x_NCT, subjects = repeated.windows.gather(range(96)), repeated.windows.subjects
    windows = predict(bundle, x_NCT, subject=subjects, unit="uV")
    table = predict(bundle, x_NCT, tmp_path / "people.csv", subject=subjects, unit="uV", level="subject")
    names = [f"probability_{name}" for name in bundle.classes]
    assert list(table.columns) == ["subject", "recordings", "windows", "role", *names, "prediction"]
    assert table["subject"].tolist() == list(dict.fromkeys(subjects)) and (table["windows"] == 4).all()
    means = windows.groupby("subject", sort=False)[names].mean()
    scale = bundle.info.people.scale
    powers = means.to_numpy() ** scale
    np.testing.assert_allclose(table[names], powers / powers.sum(axis=1, keepdims=True), rtol=1e-5)
    assert table["prediction"].tolist() == bundle.decide(means.to_numpy())
    assert set(table["role"]) == {"training", "held out"}
    written = pd.read_csv(tmp_path / "people.csv", dtype={"subject": str})
    assert list(written.columns) == list(table.columns) and len(written) == 24


def test_values_of_people_have_an_interval_of_nested_residuals(ages, tmp_path):
    ensemble, bundle = ages.ensemble(top=2), loaded(ages, tmp_path)
    assert bundle.info.people == ensemble.people and ensemble.people.n == len(ages.run.folds.fold_of) - len(
        ages.run.folds.held_out
    )
    table = predict(bundle, ages.windows.gather(range(96)), subject=ages.windows.subjects, unit="uV", level="subject")
    (half,) = bundle.info.people.half_widths
    assert half > 0
    np.testing.assert_allclose(table["high"] - table["prediction"], half)
    np.testing.assert_allclose(table["prediction"] - table["low"], half)
    short = LoadedEnsemble(bundle.info.model_copy(update={"people": People(n=5)}), bundle.module)
    table = predict(short, ages.windows.gather(range(8)), subject=ages.windows.subjects[:8], unit="uV", level="subject")
    assert "low" not in table and len(table) == 2


def test_several_values_of_people_have_an_interval_each(tmp_path):
    names = ["age", "height", "again"]
    toy = ToyWindows(subjects=22, each=4, outputs=names)  # other signals than above, of which the hash is
    age_N = (np.unique(toy.subjects, return_inverse=True)[1] % 7).astype(float)
    toy.targets = np.stack([age_N, 10 * age_N, age_N], axis=1)
    store = write_store(tmp_path / "store", toy)
    made = finish(tmp_path, store, target="participants:age,height,again", epochs=2)
    bundle = loaded(made, tmp_path)
    table = predict(bundle, made.windows.gather(range(88)), subject=made.windows.subjects, unit="uV", level="subject")
    intervals = [f"{end}_{name}" for name in names for end in ("low", "high")]
    assert list(table.columns)[4:] == [*(f"prediction_{name}" for name in names), *intervals]
    for name, half in zip(names, bundle.info.people.half_widths, strict=True):
        assert half > 0
        np.testing.assert_allclose(table[f"high_{name}"] - table[f"prediction_{name}"], half)
        np.testing.assert_allclose(table[f"prediction_{name}"] - table[f"low_{name}"], half)
    few = bundle.info.model_dump() | {"people": {"n": 9, "half_widths": (1.0,)}}
    with pytest.raises(ValidationError, match="people: 1 half_widths for 3 outputs"):
        type(bundle.info).model_validate(few)


def test_windows_without_a_name_and_targets_of_trials_are_refused(repeated, values, tmp_path):
    (tmp_path / "trials").mkdir()
    with pytest.raises(UserError, match="4 windows name no subject; say whose they are by subject"):
        predict(loaded(repeated, tmp_path), repeated.windows.gather(range(4)), unit="uV", level="subject")
    with pytest.raises(UserError, match="level subject: target 'latency:bump' is of a window, not of a person"):
        predict(loaded(values, tmp_path / "trials"), tmp_path / "none.bdf", level="subject")


def test_the_command_writes_people_and_refuses_in_one_line(simulated, tmp_path, monkeypatch, capsys):
    bundle = export_bundle(simulated.run, simulated.ensemble(top=1), tmp_path / "b", windows=simulated.windows)
    words = ["predict", str(bundle), str(simulated.bids), "--out", str(tmp_path / "p.csv"), "--level", "subject"]
    with pytest.raises(SystemExit):
        app.main(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "raypipe: error: level subject: target 'challenge1' is of a window, not of a person; use window or recording"
    )
    assert not (tmp_path / "p.csv").exists()
    found = load_ensemble(bundle)
    of_people = found.info.model_copy(update={"people": People(n=9, half_widths=(0.5,))})
    monkeypatch.setattr(
        "raypipe.packaging.bundle.load_ensemble", lambda *_, **__: LoadedEnsemble(of_people, found.module)
    )
    with pytest.raises(SystemExit) as end:
        app.main(words)
    assert not end.value.code
    table = pd.read_csv(tmp_path / "p.csv")
    assert list(table.columns) == ["subject", "recordings", "windows", "role", "prediction", "low", "high"]
    assert len(table) == 9 and "p.csv: 9 people: " in capsys.readouterr().out.replace("\n", "")
