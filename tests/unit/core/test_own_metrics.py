"""Metrics of users rank, resample and fail as raypipe's own do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.core.bootstrap import bootstrap_difference, bootstrap_subjects
from raypipe.core.errors import UserError
from raypipe.core.metrics import get_metric, metric_for, score
from raypipe.core.own_code import SourceFile, keep_source
from raypipe.core.own_metrics import shown_metric, split_code, with_code
from tests.support.own import METRIC


def own(source=METRIC, name="score"):
    return with_code(f"folder/mine.py:{name}", keep_source(SourceFile("mine.py", source)))


@settings(max_examples=30)
@given(st.integers(2, 6), st.integers(1, 5), st.integers(0, 10**6), st.booleans())
def test_it_gives_what_raypipes_own_metric_of_the_same_formula_gives(people, each, seed, classes):
    rng = np.random.default_rng(seed)
    subjects = np.repeat(np.arange(people), each)
    if classes:
        y, like = rng.integers(0, 3, people * each), "brier"
        one, other = rng.dirichlet(np.ones(3), (2, len(y)))
    else:
        y, like = rng.normal(size=people * each), "rmse"
        one, other = rng.normal(size=(2, len(y), 1))
    name = own()
    factor = score(like, y, one) / score(name, y, one)  # the Brier score has several definitions
    assert factor == pytest.approx(round(factor, 6)) and get_metric(name).direction == "minimize"
    found, expected = (bootstrap_subjects(metric, y, one, subjects, n=50) for metric in (name, like))
    limited = np.maximum(np.array(found[:2]) * factor, 0.0)  # raypipe knows that its own are not negative
    np.testing.assert_allclose(limited, np.array(expected[:2]), rtol=1e-9, atol=1e-9)
    found, expected = (bootstrap_difference(metric, y, one, other, subjects, n=50) for metric in (name, like))
    np.testing.assert_allclose(np.array(found[:2]) * factor, expected[:2], rtol=1e-9, atol=1e-9)


def test_its_name_has_what_identifies_the_source():
    one, other = own(), own(METRIC.replace("False", "True"))
    assert one != other and shown_metric(one) == shown_metric(other) == "mine.py:score"
    assert split_code("auc") == ("auc", "") and shown_metric("auc") == "auc"
    assert (get_metric(one).direction, get_metric(other).direction) == ("minimize", "maximize")

    at = with_code("v@2.py:score", keep_source(SourceFile("v@2.py", METRIC.replace("False", "True"))))
    assert (
        shown_metric(at) == shown_metric("v@2.py:score") == "v@2.py:score" and split_code(at)[1] == split_code(other)[1]
    )
    assert get_metric(at).direction == "maximize"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("score.higher_is_better = False", "", r"does not say which scores are better; write score.higher_is_better"),
        ("= False", "= 'no'", "does not say which scores are better"),
        ("def score", "def scores", "name 'score' is not defined"),
        ("def score(y, pred):", "class score:\n  def f(y, pred):", "no function of targets and predictions"),
    ],
)
def test_a_function_that_is_no_metric_is_one_line(old, new, message):
    with pytest.raises(UserError, match=message) as caught:
        own(METRIC.replace(old, new))
    assert "\n" not in str(caught.value)


def test_a_recorded_metric_runs_no_code_until_it_scores(tmp_path):
    code = keep_source(SourceFile("mine.py", f"open({str(tmp_path / 'ran')!r}, 'w')\n{METRIC}"))
    metric = get_metric(f"mine.py:score@maximize:{code}")
    assert metric.direction == "maximize" and metric.better(2.0, 1.0) and not (tmp_path / "ran").exists()
    assert metric.value([1.0, 2.0], [[1.0], [2.0]]) == 0.0 and (tmp_path / "ran").exists()


def test_what_is_undefined_is_nan_and_what_fails_is_one_line():
    y, pred = np.arange(4.0), np.full((4, 1), 2.0)
    assert np.isnan(score(own(METRIC.replace("return np.sqrt", "return np.nan * np.sqrt")), y, pred))
    assert np.isnan(score(own(), y, np.full((4, 1), np.nan)))
    with pytest.raises(UserError, match=r"metric mine.py:score: line 8: ZeroDivisionError.*\(for 4 targets; where a"):
        score(own(METRIC.replace("return np.sqrt", "1 / 0\n    return np.sqrt")), y, pred)
    for ends in ("raise SystemExit(3)", "__import__('os')._exit(3)"):
        with pytest.raises(UserError, match=r"metric mine.py:score: line 8: SystemExit: .*3"):
            score(own(METRIC.replace("return np.sqrt", f"{ends}\n    return np.sqrt")), y, pred)
    with pytest.raises(UserError, match=r"metric mine.py:score: gave a ndarray, and must give one number"):
        score(own(METRIC.replace("np.mean(", "(")), y, pred)
    changing = own(METRIC.replace("    if pred", "    pred[:] = y\n    if pred"))
    assert score(changing, y, pred) == 0.0 and (pred == 2.0).all()


def test_windows_have_no_metric_of_ones_own():
    with pytest.raises(UserError, match="a metric of your own is an option of a sweep, and none of its windows"):
        metric_for("regression", "mine.py:score", "toy")
