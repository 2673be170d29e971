from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.core.errors import UserError
from raypipe.data.challenge import contrast_trials
from raypipe.data.target_base import Labels, TargetSpec, WindowTiming
from raypipe.data.targets import parse_target
from raypipe.recordings.recording import Recording

SIDE_BY_SIDE = WindowTiming(window=2.0, stride=2.0, tmin=0.0)


def make(root: Path, participants: str = "", events: dict[str, str] | None = None) -> list[Recording]:
    """Write tables, and return recordings without signals: targets read tables only."""
    if participants:
        (root / "participants.tsv").write_text(participants)
    recordings = []
    for stem, text in (events or {}).items():
        entities = dict(part.split("-") for part in stem.split("_"))
        path = root / f"{stem}_eeg.bdf"
        path.with_name(f"{stem}_events.tsv").write_text(text)
        recordings.append(Recording(path, root, entities["sub"], task=entities.get("task")))
    return recordings


def subjects(root: Path, column: str, **values: str) -> list[Recording]:
    rows = "".join(f"sub-{name}\t{value}\n" for name, value in values.items())
    make(root, f"participant_id\t{column}\n{rows}")
    return [Recording(root / f"sub-{name}_eeg.bdf", root, name) for name in values]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("chalenge1", "unknown target 'chalenge1'; did you mean 'challenge1'"),
        ("", "unknown target ''"),
        ("metadata:rt", "for --epochs only; recordings take events:A,B or events-column:COLUMN"),
        ("event", "for --epochs only"),
        ("events-column:Onset", "the onset is when the event is; name a column of what is to be predicted"),
        ("challenge1:drop-duplicate", "unknown option 'drop-duplicate'; did you mean 'drop-duplicates'"),
        ("bids-task:rest", "needs at least 2 names"),
        ("events:a", "needs at least 2 names"),
        ("events:a,a", "'a' is given twice"),
        ("latency:", "needs at least 1 name,"),
        ("participants:", "needs a column"),
    ],
)
def test_specifications_that_are_refused(spec, message):
    with pytest.raises(UserError, match=message):
        parse_target(spec)


@pytest.mark.parametrize(
    ("spec", "names", "message"),
    [
        ("challenge1", ("rest",), "it selects its recordings by their BIDS task; leave out --bids-task"),
        ("bids-task:rest,math", ("rest",), "it selects its recordings by their BIDS task; leave out --bids-task"),
        ("events:a,b", ("rest", ""), "--bids-task: a name is empty"),
        ("events:a,b", ("rest", "rest"), "--bids-task: 'rest' is given twice"),
    ],
)
def test_bids_tasks_that_are_refused(spec, names, message):
    with pytest.raises(UserError, match=message):
        parse_target(TargetSpec(target=spec, bids_task=names))


def test_bids_tasks_restrict_recordings(tmp_path):
    recordings = make(tmp_path, events={"sub-1_task-rest": "", "sub-2_task-oddball": "", "sub-3_task-video": ""})
    target = parse_target(TargetSpec(target="events:a,b", bids_task=("oddball", "video")))
    assert [r.subject for r in target.select(recordings)] == ["2", "3"]
    with pytest.raises(UserError, match="no recording of BIDS task 'odball'; did you mean 'oddball'"):
        parse_target(TargetSpec(target="events:a,b", bids_task=("odball",))).select(recordings)
    with pytest.raises(UserError, match="no recording of BIDS task 'contrastChangeDetection'; available: oddball"):
        parse_target("challenge1").select(recordings)


def test_numbers_of_participants_are_regression_targets(tmp_path):
    recordings = subjects(tmp_path, "age", a="7.5", b="n/a", c="9", d="11")
    target = parse_target("participants:age")
    labels = target.read_labels(recordings)
    assert labels == Labels("regression", (), {"a": 7.5, "c": 9.0, "d": 11.0})
    cut = target.segment(recordings[0], 7.0, SIDE_BY_SIDE, labels)
    assert [(s.onset, s.target) for s in cut.segments] == [(0.0, 7.5), (2.0, 7.5), (4.0, 7.5)]
    assert all(np.isnan(s.target) for s in target.segment(recordings[1], 7.0, SIDE_BY_SIDE, None).segments)


def test_text_and_two_numbers_of_participants_are_classes(tmp_path):
    text = parse_target("participants:sex").read_labels(subjects(tmp_path, "sex", a="M", b="F", c="F"))
    assert text == Labels("classification", ("F", "M"), {"a": 1.0, "b": 0.0, "c": 0.0})
    numbers = subjects(tmp_path, "good", a="1", b="0", c="1", d="n/a")
    assert parse_target("participants:good").read_labels(numbers).classes == ("0", "1")
    assert parse_target("participants:good:regression").read_labels(numbers).kind == "regression"
    assert parse_target("participants:age").read_labels(subjects(tmp_path, "age", a="7", b="8")).kind == "regression"
    grades = subjects(tmp_path, "grade", a="10", b="9", c="9", d="10", e="11")
    assert parse_target("participants:grade:classification").read_labels(grades).classes == ("9", "10", "11")


@pytest.mark.parametrize(
    ("spec", "values", "message"),
    [
        ("participants:ages", {"a": "1", "b": "2", "c": "3"}, "no column 'ages'; did you mean 'age'"),
        ("participants:age", {"a": "n/a", "b": "n/a"}, "n/a for every subject"),
        ("participants:age", {"a": "3", "b": "3"}, "is 3 for every subject"),
        ("participants:age:regression", {"a": "x", "b": "y"}, r"holds text \('x'\)"),
        ("participants:age", {"a": "x", "b": "y", "c": "z"}, "different for every subject"),
        ("participants:age", {"a": "x", "b": "y"}, "different for every subject"),
    ],
)
def test_participants_columns_that_are_refused(tmp_path, spec, values, message):
    recordings = subjects(tmp_path, "age", **values)
    with pytest.raises(UserError, match=message):
        parse_target(spec).read_labels(recordings)


def test_bids_tasks_are_classes(tmp_path):
    recordings = make(tmp_path, events={"sub-1_task-rest": "", "sub-1_task-math": ""})
    target = parse_target("bids-task:rest,math")
    labels = target.read_labels(target.select(recordings))
    assert labels.classes == ("rest", "math")
    assert [s.target for s in target.segment(recordings[1], 4.0, SIDE_BY_SIDE, labels).segments] == [1.0, 1.0]


EVENTS = "onset\tvalue\n1.5\tleft\n3\tblink\n4\tright\n6\tleft\n"


def test_events_are_classes(tmp_path):
    recordings = make(tmp_path, events={"sub-1": "onset\tvalue\n1\tleft\n", "sub-2": EVENTS})
    target = parse_target("events:right,left")
    labels = target.read_labels(recordings)
    layout = WindowTiming(1.0, 1.0, tmin=-0.5)
    assert [(s.onset, s.target) for s in target.segment(recordings[1], 9, layout, labels).segments] == [
        (1.0, 1.0),
        (3.5, 0.0),
        (5.5, 1.0),
    ]
    assert all(np.isnan(s.target) for s in target.segment(recordings[1], 9, layout, None).segments)
    with pytest.raises(UserError, match="no event has the value 'rigth'; did you mean 'right'"):
        parse_target("events:left,rigth").read_labels(recordings)


def test_latency_crops_half_the_window(tmp_path):
    recordings = make(tmp_path, events={"sub-1": EVENTS})
    target = parse_target("latency:left")
    assert target.target_is_offset and target.default_window == 1.0 and target.default_crop(1.0) == 0.5
    assert target.read_labels(recordings).kind == "regression"
    assert [s.onset for s in target.segment(recordings[0], 9, WindowTiming(1, 1, 0), None).segments] == [1.5, 6.0]


@given(duration=st.floats(0, 50), window=st.sampled_from([0.5, 1.0, 2.5]), overlap=st.sampled_from([1.0, 0.5]))
def test_windows_side_by_side_tile_the_recording(duration, window, overlap):
    recording = Recording(Path("a"), Path(), "1")
    layout = WindowTiming(window, window * overlap, 0.0)
    onsets = [s.onset for s in parse_target("participants:x").segment(recording, duration, layout, None).segments]
    assert onsets == [i * layout.stride for i in range(len(onsets))]
    assert all(onset + window <= duration + 1e-5 for onset in onsets)
    assert len(onsets) * layout.stride + window > duration - 1e-5


CCD = """onset\tduration\tvalue\tevent_code\tfeedback
1\tn/a\tcontrastTrial_start\t5\tn/a
1.5\tn/a\tleft_buttonPress\t12\tnon_target
2\tn/a\tleft_target\t8\tn/a
3.25\tn/a\tright_buttonPress\t13\tsad_face
3.5\tn/a\tleft_buttonPress\t12\tsmiley_face
5\tn/a\tcontrastTrial_start\t5\tn/a
6\tn/a\tright_target\t9\tn/a
8\tn/a\tcontrastTrial_start\t5\tn/a
8.5\tn/a\tleft_buttonPress\t12\tn/a
9\tn/a\tcontrastTrial_start\t5\tn/a
10\tn/a\tleft_target\t8\tn/a
11\tn/a\tleft_buttonPress\t12\tsmiley_face
"""


def test_challenge1_counts_the_trials_that_are_left_out(tmp_path):
    (recording,) = make(tmp_path, events={"sub-1_task-contrastChangeDetection": CCD})
    target = parse_target("challenge1")
    layout = WindowTiming(2.0, 2.0, target.default_tmin)
    cut = target.segment(recording, 20.0, layout, Labels("regression"))
    assert [(s.onset, s.target) for s in cut.segments] == [(2.5, 1.25)]
    assert +cut.left_out == {"trials without a target": 1, "trials without a response": 1}
    unlabelled = target.segment(recording, 20.0, layout, None)
    assert [s.onset for s in unlabelled.segments] == [2.5, 6.5]
    assert np.isnan([s.target for s in unlabelled.segments]).all()


VALUES = ["contrastTrial_start", "left_target", "right_target", "left_buttonPress", "right_buttonPress", "9999"]


@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from(VALUES)), max_size=40))
def test_contrast_trials_follow_their_definition(rows):
    events = pd.DataFrame(rows, columns=["onset", "value"]).astype({"onset": float})
    trials = contrast_trials(events)
    ordered = events.sort_values("onset", kind="stable")
    starts = ordered.loc[ordered["value"] == VALUES[0], "onset"].to_numpy()
    assert len(trials) == max(0, len(starts) - 1)
    for (_, trial), end in zip(trials.iterrows(), starts[1:], strict=True):
        # The definition in `contrast_trials`, written out.
        targets = ordered[ordered["value"].isin(VALUES[1:3]) & ordered["onset"].between(trial["start"], end, "left")]
        assert np.isnan(trial["stimulus"]) == targets.empty
        if targets.empty:
            assert np.isnan(trial["response"])
            continue
        assert trial["stimulus"] == targets["onset"].iloc[0]
        presses = ordered[ordered["value"].isin(VALUES[3:5]) & ordered["onset"].between(trial["stimulus"], end, "left")]
        assert np.isnan(trial["rt"]) == presses.empty
        if not presses.empty:
            assert trial["response"] == presses["onset"].iloc[0]
            assert trial["rt"] == trial["response"] - trial["stimulus"]


def test_a_run_without_events_has_no_contrast_trials():
    assert len(contrast_trials(pd.DataFrame({"onset": [], "value": []}))) == 0
