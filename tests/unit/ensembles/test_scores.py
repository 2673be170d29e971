from __future__ import annotations

import numpy as np
import pytest

from raypipe.ensembles.scores import (
    EvaluationSet,
    RowPredictions,
    Scoring,
    difference_interval,
    score_interval,
    score_table,
)
from tests.support.score_tables import hand_made, table_of


def test_targets_of_subjects_are_scored_by_subject():
    table = table_of(1.0, 8)
    assert table.loc["ensemble", "held_out"] < table.loc["ensemble", "window_held_out"] < 0.5


def test_a_network_without_out_of_fold_predictions_is_compared_on_held_out_subjects_only():
    rng = np.random.default_rng(0)
    y, subjects = rng.normal(size=120), np.repeat([f"s{k:02d}" for k in range(24)], 5)
    out = subjects >= "s16"
    search, held_out = (EvaluationSet(y[m], subjects[m], np.arange(120)[m] // 5 % 4) for m in (~out, out))
    good, bad = (y + spread * rng.normal(size=120) for spread in (0.1, 0.5))
    row = RowPredictions(held_out=bad[out, None], oof=bad[~out, None], nested=bad[~out, None])
    student = RowPredictions(held_out=good[out, None])
    rows = {"ensemble": row, "best single trial": row, "distilled": student}
    table = score_table(Scoring("nrmse", "regression", 0, "window"), rows, search, held_out)
    assert table.loc["distilled", ["oof", "nested", "optimism", "nested_to_best"]].isna().all()
    assert table.loc["distilled", "to_best_high"] < 0.0
    assert table.loc["ensemble", "to_best"] == table.loc["ensemble", "nested_to_best"] == 0.0
    assert table.loc["ensemble", "nested_difference"] == pytest.approx(
        table.loc["ensemble", "nested"] - table.loc["training mean", "nested"]
    )


def test_intervals_and_tests_resample_groups_where_subjects_share_some():
    """Of no difference between predictions whose errors families share, few claims are wrong."""
    rng = np.random.default_rng(0)
    subjects = np.array([f"s{k:02d}" for k in range(36)])
    family = np.repeat([f"family {k}" for k in range(12)], 3)
    claimed = {"subjects": 0, "groups": 0}
    for _ in range(100):
        y = rng.normal(size=36)
        a, b = (y + 0.5 * np.repeat(rng.normal(size=12), 3) for _ in range(2))
        for name, groups in (("subjects", None), ("groups", family)):
            found = difference_interval(
                "rmse", EvaluationSet(y, subjects, np.zeros(36), groups), a[:, None], b[:, None]
            )
            claimed[name] += found.low > 0 or found.high < 0
    assert claimed["groups"] <= 10 < 15 < claimed["subjects"]  # 5 are promised


def test_a_copy_of_each_person_in_its_group_changes_no_interval():
    y, predicted, subjects = hand_made(12, signal=1.0)
    twice = np.r_[subjects, np.char.add(subjects, "b")]
    copied = EvaluationSet(np.tile(y, 2), twice, np.zeros(120), np.tile(subjects, 2))
    found = score_interval("nrmse", copied, np.tile(predicted, (2, 1)))
    assert found == pytest.approx(score_interval("nrmse", EvaluationSet(y, subjects, np.zeros(60)), predicted))
    assert copied.per_subject().units.tolist() == [name.removesuffix("b") for name in copied.per_subject().subjects]


def test_one_group_has_no_interval():
    y, predicted, subjects = hand_made(6, signal=1.0)
    one = EvaluationSet(y, subjects, np.zeros(30), np.full(30, "site"))
    assert np.isnan(score_interval("nrmse", one, predicted).low)
