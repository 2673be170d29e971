"""Differences of a graph's predictions, each output by its own spread."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.packaging import check_graph as checks
from raypipe.packaging.check_graph import Answers, check_graph
from raypipe.packaging.graph_difference import TOLERANCE, output_scales, output_units, relative_difference
from raypipe.packaging.graph_info import GraphInfo
from raypipe.packaging.graphs import export_graph
from raypipe.packaging.network_spec import NetworkMember
from raypipe.packaging.scorer import LARGE_BATCH

INCOME_AND_FACTOR = [[4e4, 0.5], [4.1e4, 0.45], [3.8e4, 0.62]]


def difference(found, wanted, scales):
    return relative_difference(found, wanted, output_units(scales, wanted))


@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e3), st.integers(0, 1))
def test_a_wrong_output_is_found_whatever_the_other_and_the_offset_are(offset, spread, column):
    rng = np.random.default_rng(0)
    wanted_NO, scales = rng.normal(size=(8, 2)) * 1e4, [1e4, 1e4]
    wanted_NO[:, column], scales[column] = spread * (offset + rng.normal(size=8)), spread
    assert difference(wanted_NO, wanted_NO, scales) == 0.0
    found_NO = wanted_NO.copy()
    found_NO[3, column] += 0.05 * spread
    assert difference(found_NO, wanted_NO, scales) > TOLERANCE


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e3))
def test_rounding_is_no_difference(offset, spread):
    wanted_NO = offset + spread * np.random.default_rng(0).normal(size=(8, 1))
    found_NO = wanted_NO.astype(np.float32)
    assert difference(found_NO, wanted_NO, [spread]) <= TOLERANCE


def test_scales_are_those_of_the_targets():
    shared = {"trial": 0, "weight": 0.5, "model": {"name": "covariance"}}
    several = [
        NetworkMember.model_validate(shared | {"fold": fold, "centre": [0.0, 0.0], "scale": [scale, 0.1]})
        for fold, scale in enumerate((1.0, 3.0))
    ]
    assert output_scales(several, 2) == pytest.approx([2.0, 0.1])
    classes = [NetworkMember.model_validate(shared | {"fold": 0, "centre": 0.0, "scale": 1.0})]
    assert output_scales(classes, 3) == [1.0, 1.0, 1.0]


def checked(monkeypatch, info, predictions):
    """The report of a graph with this record, which predicts that of the reference windows."""
    copies = [predictions[0]] * LARGE_BATCH
    numbers = {"load_s": 0.0, "load_mb": 0.0, "peak_mb": 0.0}
    found = Answers(what="it", alone=predictions, together=predictions, copies=copies, classes=None, **numbers)
    monkeypatch.setattr(checks, "read_graph_info", lambda path: info)
    monkeypatch.setattr(checks, "run_script", lambda *args, **options: found)
    return check_graph(info.run)


@pytest.fixture(scope="module")
def graph(simulated, tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "model.pt2"
    return export_graph(simulated.ensemble(top=1), path, "pt2", windows=simulated.windows)


def test_the_sign_of_a_small_value_beside_a_large_one_fails_the_check(graph, monkeypatch):
    path, info = graph
    two = {"n_outputs": 2, "outputs": ["income", "factor"], "reference": INCOME_AND_FACTOR, "scales": [1e4, 0.1]}
    info = GraphInfo.model_validate(info.model_dump() | two | {"run": str(path)})
    assert checked(monkeypatch, info, INCOME_AND_FACTOR).ok
    report = checked(monkeypatch, info, [[income, -3 * factor] for income, factor in INCOME_AND_FACTOR])
    assert [line.name for line in report.failures] == ["one by one", "batch of 3", "batch of 64"]
    assert report.failures[0].detail.endswith(" of the targets' spread")


def test_a_year_s_tenth_beside_a_large_offset_fails_the_check(graph, monkeypatch):
    path, info = graph
    years = [[1985.0], [1990.0], [1979.0]]
    info = GraphInfo.model_validate(info.model_dump() | {"reference": years, "scales": [10.0], "run": str(path)})
    assert checked(monkeypatch, info, years).ok
    assert not checked(monkeypatch, info, [[year + 0.1] for (year,) in years]).ok


def test_the_record_of_a_regression_has_the_spread_of_its_targets(graph, simulated):
    targets = simulated.windows.table["target"].to_numpy(float)
    assert graph[1].scales == pytest.approx([targets.std()], rel=0.3)
