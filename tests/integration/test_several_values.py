"""Two columns of numbers from arrays to predictions: sweep, ensemble, report, bundle, graph, tables."""

from __future__ import annotations

import numpy as np
import pytest

import raypipe
from raypipe.core.errors import UserError
from raypipe.packaging.check_graph import check_graph
from tests.support.toys import ToyWindows

pytestmark = pytest.mark.ray

SPACE = """'''Two families.'''
START = [{"model/name": "linear", "model/predictors": "time-courses"}, {"model/name": "conformer"}]
def space(trial):
    if trial.suggest_categorical("model/name", ["linear", "conformer"]) == "linear":
        trial.suggest_categorical("model/predictors", ["time-courses", "band-power"])
        return {}
    return {"epochs": 1, "model/filters": 4, "model/heads": 2, "model/depth": 1, "model/hidden": 8}
"""


@pytest.mark.long  # tests/unit/ensembles/test_several_values.py has most of it without Ray
def test_two_values_go_from_arrays_to_predictions(tmp_path, light):
    toy = ToyWindows(subjects=10, outputs=["p_factor", "attention"], names=["Fz", "Cz", "Pz"])
    x_NCT, y_NK = toy.x * 1e-5, toy.targets * [1.0, 50.0]
    given = {"sfreq": toy.sfreq, "ch_names": toy.channels, "target_names": toy.outputs}
    store = raypipe.from_arrays(x_NCT, y_NK, toy.subjects, out=tmp_path / "store", **given)
    (tmp_path / "space.py").write_text(SPACE)
    run = raypipe.sweep(tmp_path / "space.py", store.path, tmp_path / "run", **light | {"trials": 2})
    ensemble = run.ensemble(method="ridge")
    assert [each.name for each in ensemble.outputs] == toy.outputs
    assert list(run.oof().columns[-2:]) == ["prediction_p_factor", "prediction_attention"]
    assert ensemble.outputs[0].cell("ensemble", "held_out") < 0.5
    run.report()
    report = (tmp_path / "run/report.html").read_text()
    assert "Each value" in report and "attention" in report
    raypipe.export(run, tmp_path / "bundle")
    raypipe.export(run, tmp_path / "graph.pt2")
    assert check_graph(tmp_path / "graph.pt2", bundle=tmp_path / "bundle").ok
    table = raypipe.predict(tmp_path / "bundle", x_NCT[ensemble.held_out.windows], subject=ensemble.held_out.subjects)
    found = table[["prediction_p_factor", "prediction_attention"]].to_numpy()
    np.testing.assert_allclose(found, ensemble.held_out.predictions, rtol=1e-3, atol=1e-2)
    assert set(table["role"]) == {"held out"}
    with pytest.raises(UserError, match="that of neither challenge"):
        raypipe.export(run, tmp_path / "submission.zip")
