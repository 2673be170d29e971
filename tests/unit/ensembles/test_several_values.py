"""Ensembles of members that predict several values: weights are shared, scores are means and of each value."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.core.errors import UserError
from raypipe.core.metrics import nrmse
from raypipe.core.parameters import parse_config
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.chance import chance_test
from raypipe.ensembles.fit import fit_ensemble
from raypipe.ensembles.fitted import Ensemble
from raypipe.ensembles.methods import METHODS
from raypipe.ensembles.oof import MemberPredictions, subject_groups
from raypipe.packaging.bundle import load_ensemble
from raypipe.packaging.export import export
from raypipe.trial.local import run_trial
from tests.support.toys import ToyWindows, make_run, tiny, write_store

SHARED = ["equal", "best", "average", "greedy", "ridge", "inverse-mse", "confidence", "softmax"]


def members(seed, k, m=3, people=10, each=4):
    rng = np.random.default_rng(seed)
    n = people * each
    y_NK = rng.normal(size=(n, k)) * 10.0 ** rng.integers(-2, 3, k) + rng.normal(size=k)
    noise = rng.normal(size=(m, n, k)) * y_NK.std(0) * rng.uniform(0.3, 1.5, (m, 1, 1))
    return MemberPredictions(
        names=[f"trial {number}" for number in range(m)],
        predictions=y_NK + noise,
        targets=y_NK,
        subjects=np.repeat([f"{who:02d}" for who in range(people)], each),
        folds=np.repeat(np.arange(people) % 5, each),
        windows=np.arange(n),
        metric="nrmse",
        kind="regression",
    )


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), name=st.sampled_from(SHARED))
def test_equal_values_are_combined_as_one_value(seed, name):
    several = members(seed, 1)
    one = replace(several, targets=several.targets[:, 0])
    three = replace(several, targets=several.targets.repeat(3, 1), predictions=several.predictions.repeat(3, 2))
    first, second = METHODS[name].fit(one), METHODS[name].fit(three)
    np.testing.assert_allclose(second["weights"], first["weights"], atol=1e-8)
    np.testing.assert_allclose(three.combine(second), one.combine(first).repeat(3, 1), atol=1e-8)
    np.testing.assert_array_equal(subject_groups(three, 4), subject_groups(one, 4))


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), name=st.sampled_from(SHARED))
def test_the_order_and_the_units_of_values_do_not_matter(seed, name):
    like = members(seed, 3)
    order, units = [2, 0, 1], np.array([1000.0, 1.0, 0.01])
    moved = replace(like, targets=(like.targets * units)[:, order], predictions=(like.predictions * units)[..., order])
    rule, other = METHODS[name].fit(like), METHODS[name].fit(moved)
    np.testing.assert_allclose(other["weights"], rule["weights"], atol=1e-6)
    np.testing.assert_allclose(moved.combine(other) / units[order], like.combine(rule)[:, order], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "reason"), [("boosting", "has 2 values"), ("sample", "no member predicts a variance")]
)
def test_methods_of_one_value_say_so(name, reason):
    assert reason in METHODS[name].unusable_reason(members(0, 2))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A run on two values with three trials, and its ensemble by ridge stacking."""
    root = tmp_path_factory.mktemp("several")
    toy = ToyWindows(subjects=10, outputs=["p_factor", "attention"], names=["Fz", "Cz", "Pz"])
    windows = WindowStore(write_store(root / "store", toy))
    run = make_run(root / "run", windows, data=str(root / "store"))
    linear = {"model/name": "linear"}
    configs = [parse_config(linear | {"model/predictors": "time-courses"}), parse_config(linear), tiny(epochs=1)]
    for number, config in enumerate(configs):
        run.add_trial(number, config)
        assert run_trial(run, windows, number).state == "complete"
    fit_ensemble(run, windows=windows, method="ridge").save()
    return run, windows, Ensemble.load(run)


def test_scores_are_means_over_the_values_and_of_each(fitted):
    _, _, ensemble = fitted
    assert [each.name for each in ensemble.outputs] == ["p_factor", "attention"]
    for column in ("held_out", "oof", "nested"):
        mean = np.mean([each.table["ensemble"][column] for each in ensemble.outputs])
        assert ensemble.table.loc["ensemble", column] == pytest.approx(mean)
    assert ensemble.notes[0].startswith("Scores are means over 2 values. Held-out NRMSE of each: p_factor 0.")
    assert ensemble.held_out.targets.shape == (16, 2) and ensemble.reliability is None
    assert len(ensemble.outputs[0].coverage) == 4


def test_each_of_several_values_is_scored_at_the_level_of_the_run(tmp_path):
    """One of two values is a person's and the other a window's, so every score is of windows."""
    toy = ToyWindows(subjects=10, outputs=["age", "rt"], names=["Fz", "Cz", "Pz"])
    toy.targets[:, 0] = np.repeat(toy.targets[::8, 0], 8)
    windows = WindowStore(write_store(tmp_path / "store", toy))
    run = make_run(tmp_path / "run", windows, data=str(tmp_path / "store"))
    for number, predictors in enumerate(("time-courses", "band-power")):
        run.add_trial(number, parse_config({"model/name": "linear", "model/predictors": predictors}))
        assert run_trial(run, windows, number).state == "complete"
    ensemble = fit_ensemble(run, windows=windows)
    assert run.info.level == "window" and not ensemble.by_subject
    for column in ("held_out", "oof", "nested"):
        mean = np.mean([each.table["ensemble"][column] for each in ensemble.outputs])
        assert ensemble.table.loc["ensemble", column] == pytest.approx(mean)
    held = ensemble.held_out
    for k, each in enumerate(ensemble.outputs):
        assert each.cell("ensemble", "held_out") == pytest.approx(nrmse(held.targets[:, k], held.predictions[:, k]))
        assert each.table["ensemble"].keys() == ensemble.outputs[0].table["ensemble"].keys()


def test_a_method_of_one_value_is_refused_in_one_line(fitted):
    run, windows, _ = fitted
    with pytest.raises(UserError, match="--method boosting: it combines one value or classes, and this target has 2"):
        fit_ensemble(run, windows=windows, method="boosting")


def test_the_test_of_chance_exchanges_rows_of_values(fitted):
    run, _, ensemble = fitted
    found = chance_test(run, permutations=50)
    assert found.score == pytest.approx(ensemble.table.loc["ensemble", "held_out"]) and 0 < found.p <= 1


def test_a_bundle_predicts_each_value_by_name(fitted, tmp_path):
    run, windows, ensemble = fitted
    export(run.where, tmp_path / "bundle")
    loaded = load_ensemble(tmp_path / "bundle")
    assert loaded.info.outputs == ["p_factor", "attention"]
    index = ensemble.held_out.windows
    found = loaded.predict(windows.gather(index))
    np.testing.assert_allclose(found, ensemble.held_out.predictions, rtol=1e-4, atol=1e-4)
    assert loaded.columns == ["prediction_p_factor", "prediction_attention"]
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "values per window of `p_factor`, `attention`" in card
