from __future__ import annotations

import numpy as np
import pytest

from raypipe.baselines import read_baselines, write_baselines
from raypipe.metrics import score


def test_baselines_are_scored_on_the_held_out_and_shown(simulated):
    run, windows = simulated.run, simulated.windows
    rows = {row["name"]: row for row in write_baselines(run, windows)}
    assert list(rows) == ["training mean", "ridge on age alone", "ridge on band power", "ridge on log-covariance"]
    held = run.folds.held_out_index(windows.subjects)
    rest = run.folds.search_index(windows.subjects)
    constant = np.full((len(held), 1), windows.targets[rest].astype(float).mean())
    assert rows["training mean"]["score"] == pytest.approx(score("nrmse", windows.targets[held], constant), rel=1e-6)
    assert [row["usable"] for row in rows.values()] == [True, False, True, True]
    assert read_baselines(run) == list(rows.values())
    from raypipe.report import _baselines

    ensemble = simulated.ensemble(top=2)
    shown = _baselines(run, ensemble)
    assert "not usable at inference" in shown
    assert "the ensemble" in shown and f"{ensemble.table.at['ensemble', 'held_out']:.3f}" in shown


def test_classes_have_none(classes):
    assert write_baselines(classes.run, classes.windows) == []
