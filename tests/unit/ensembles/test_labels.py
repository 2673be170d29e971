from __future__ import annotations

import re
from pathlib import Path

import pytest

import raypipe
from raypipe.ensembles.comparisons import Pair
from raypipe.ensembles.labels import (
    calibration_note,
    class_frequency_note,
    describe_interval,
    describe_target,
    target_unit,
    with_article,
)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("challenge1", "the response time"),
        ("participants:age", "age"),
        ("participants:sex:classification", "sex"),
        ("events:left,right", "left against right"),
        ("table:labels/a,b.csv:score:regression", "score"),
        ("events-column:response_time:regression", "response_time"),
        ("bids-task:rest,arithmetic", "rest against arithmetic"),
        ("latency:stim", "stimulus latency (stim)"),
        ("latency:face,car", "stimulus latency (face or car)"),
        ("arrays:left,right", "left against right"),
        ("epochs:event:left,right", "left against right"),
        ("epochs:metadata:rt:regression", "rt"),
    ],
)
def test_targets_in_words(target, words):
    assert describe_target(target) == words


def test_units_of_targets_are_named_where_they_are_known():
    known = [target_unit(target) for target in ("challenge1", "latency:stim", "participants:age:regression")]
    assert known == ["seconds", "seconds", "years"]
    assert target_unit("participants:p_factor") == target_unit("challenge2") == "target units"


def test_class_frequencies_are_explained_only_where_they_look_worse_than_chance():
    for metric, constant in (("auc", 0.5), ("nrmse", 0.4), ("auc", float("nan"))):
        assert class_frequency_note(metric, constant) == []
    assert "scores below 0.5" in class_frequency_note("auc", 0.43)[0]


def test_articles_are_those_of_speech():
    names = ("AUC", "NRMSE", "RMSE", "R²", "F1", "accuracy", "balanced accuracy", "log loss", "kappa", "user metric")
    assert [with_article(name).split()[0] for name in names] == ["an"] * 6 + ["a"] * 4


def test_notes_on_calibration_say_what_is_calibrated():
    assert "nested and naive ones of those before calibration" in calibration_note("auc", "classification")[0]
    assert calibration_note("log-loss", "classification")[0].startswith("All scores are of calibrated")
    assert calibration_note("nrmse", "regression") == []


def test_a_rounded_zero_has_no_minus():
    assert describe_interval(-0.00004, 0.2, sign="+", digits=4) == "95 % interval +0.0000 to +0.2000"
    text = Pair("held-out", 0.5, 0.5, -0.0004, -0.1, -0.0002).text("AUC", 1)
    assert text == "held-out AUC 0.500 against 0.500 (difference +0.000, 95 % CI -0.100 to +0.000)"
    files = list(Path(raypipe.__file__).parent.rglob("*.py"))
    signed = [spec for file in files for spec in re.findall(r":\+[^{}\s]*f\}", file.read_text())]
    assert len(signed) > 5 and all(spec.startswith(":+z") for spec in signed)
