"""Preprocessing as a parameter, from recordings to predictions: two stores of the same windows with different bands."""

from __future__ import annotations

import numpy as np
import pytest

import raypipe
from raypipe import Run, UserError
from raypipe.simulation.contrast_change import simulate

pytestmark = pytest.mark.ray

SPACE = {
    "model/name": "covariance",
    "model/geometry": {"choices": ["log-euclid", "riemann"]},
    "START": [{"model/geometry": "riemann"}, {"model/geometry": "riemann"}],
}


@pytest.mark.long  # tests/unit/ensembles/test_stores.py has most of it without Ray
def test_a_sweep_of_two_stores_is_continued_combined_exported_and_predicts(tmp_path, shared):
    bids = simulate(tmp_path / "bids", subjects=10, channels=4, trials=8)
    places = {"broad": tmp_path / "broad", "low": tmp_path / "low"}
    raypipe.prepare(bids, "challenge1", places["broad"], jobs=1)
    raypipe.prepare(bids, "challenge1", places["low"], jobs=1, band=(0.5, 6.0), sfreq=50.0)
    options = {"folds": 3, "track": [], "address": shared.address, "workers": 1, "concurrent": 1}
    run = raypipe.sweep(SPACE, places, tmp_path / "run", trials=2, **options)
    stores = [run.store.config(number).data.store for number in range(2)]
    assert stores == ["broad", "low"]

    both = raypipe.open_windows(places)
    with pytest.raises(UserError, match="the run was made from other data"):
        raypipe.sweep(SPACE, places["broad"], tmp_path / "run", trials=2, **options)
    run = raypipe.resume(tmp_path / "run", trials=4)
    assert len(run.store.ranked()) == 4

    ensemble = Run(tmp_path / "run").ensemble(method="equal")
    assert {run.store.config(trial).data.store for trial in ensemble.trials} == {"broad", "low"}
    bundle = raypipe.export(run, tmp_path / "bundle")
    table = raypipe.predict(bundle, bids)
    index = ensemble.held_out.windows
    offline = both.table.iloc[index][["recording", "onset"]].assign(offline=ensemble.held_out.predictions[:, 0])
    joined = offline.merge(table, on=["recording", "onset"])
    assert len(joined) == len(index) > 0
    np.testing.assert_allclose(joined["prediction"], joined["offline"], rtol=1e-3, atol=1e-4)
    with pytest.raises(UserError, match="takes those of one"):
        raypipe.export(run, tmp_path / "model.pt2")
