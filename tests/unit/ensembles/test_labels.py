from __future__ import annotations

import pytest

from raypipe.ensembles.labels import class_frequency_note, describe_target, target_unit


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
