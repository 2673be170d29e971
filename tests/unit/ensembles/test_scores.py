from __future__ import annotations

import numpy as np
import pytest

from raypipe.ensembles.scores import EvaluationSet, RowPredictions, ScoredTask, score_table
from tests.support.score_tables import hand_made, table_of


def test_targets_of_subjects_are_scored_by_subject():
    table = table_of(1.0, 8)
    assert table.loc["ensemble", "subject_held_out"] < table.loc["ensemble", "held_out"] < 0.5


def test_subjects_with_one_target_each_are_recognized():
    y, _, subjects = hand_made(4, signal=1.0)
    assert EvaluationSet(y, subjects, y).has_subject_targets
    assert not EvaluationSet(np.arange(len(y)), subjects, y).has_subject_targets
    assert not EvaluationSet(np.arange(3), np.array(["a", "b", "c"]), np.arange(3)).has_subject_targets


def test_a_network_without_out_of_fold_predictions_is_compared_on_held_out_subjects_only():
    rng = np.random.default_rng(0)
    y, subjects = rng.normal(size=120), np.repeat([f"s{k:02d}" for k in range(24)], 5)
    out = subjects >= "s16"
    search, held_out = (EvaluationSet(y[m], subjects[m], np.arange(120)[m] // 5 % 4) for m in (~out, out))
    good, bad = (y + spread * rng.normal(size=120) for spread in (0.1, 0.5))
    row = RowPredictions(held_out=bad[out, None], oof=bad[~out, None], nested=bad[~out, None])
    student = RowPredictions(held_out=good[out, None])
    rows = {"ensemble": row, "best single trial": row, "distilled": student}
    table = score_table(ScoredTask("nrmse", "regression", 0), rows, search, held_out)
    assert table.loc["distilled", ["oof", "nested", "optimism", "nested_to_best"]].isna().all()
    assert table.loc["distilled", "to_best_high"] < 0.0
    assert table.loc["ensemble", "to_best"] == table.loc["ensemble", "nested_to_best"] == 0.0
    assert table.loc["ensemble", "nested_difference"] == pytest.approx(
        table.loc["ensemble", "nested"] - table.loc["training mean", "nested"]
    )
