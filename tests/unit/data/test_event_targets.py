from __future__ import annotations

import numpy as np
import pytest

from raypipe.core.errors import UserError
from raypipe.data.event_targets import NO_EVENT
from raypipe.data.prepare import prepare
from raypipe.data.target_base import Labels, TargetSpec, WindowTiming
from raypipe.data.targets import parse_target
from raypipe.data.windower import OpenRecording, place_windows
from raypipe.recordings.layout import find_recordings
from tests.support.eeg_files import write_edf

TIMING = WindowTiming(1.0, 1.0, 0.0)
HEADER = "onset\tduration\ttrial_type\tvalue\tcorrect\tresponse_time\trating\n"
ROWS = (
    "1\t0\ttarget\t11\t1\t0.35\tlow\n"
    "3\t0\tstandard\t12\t1\tn/a\thigh\n"
    "5\t0\ttarget\t11\t0\t0.52\thigh\n"
    "6\t0\tresponse\t99\tn/a\tn/a\tn/a\n"
    "n/a\t0\ttarget\t11\t1\t0.6\tlow\n"
)


@pytest.fixture
def bids(tmp_path):
    """Four people with one recording of 10 s and the events above."""
    root = tmp_path / "bids"
    for number in range(1, 5):
        folder = root / f"sub-{number:02d}" / "eeg"
        folder.mkdir(parents=True)
        digits = np.random.default_rng(number).normal(0, 200, (2, 1000)).astype(int)
        write_edf(folder / f"sub-{number:02d}_task-odd_eeg.edf", ["Fp1", "C3"], digits, per_record=[100, 100])
        (folder / f"sub-{number:02d}_task-odd_events.tsv").write_text(HEADER + ROWS.replace("0.35", f"0.3{number}"))
    rows = "".join(f"sub-{number:02d}\t{20 + number}\n" for number in range(1, 5))
    (root / "participants.tsv").write_text("participant_id\tage\n" + rows)
    return root


def asked(spec, **options):
    return parse_target(TargetSpec(target=spec, **options))


def segments(bids, target, labels=None):
    found = target.segment(find_recordings(bids)[0], 10.0, TIMING, labels)
    return [(each.onset, each.target) for each in found.segments], dict(+found.left_out)


def test_a_column_of_numbers_is_a_regression_of_the_events_that_have_one(bids):
    target = asked("events-column:response_time")
    labels = target.read_labels(find_recordings(bids))
    assert (labels.kind, labels.classes, labels.by_subject) == ("regression", (), None)
    left_out = {"events whose 'response_time' is n/a": 2, "events without an onset": 1}
    assert segments(bids, target, labels) == ([(1.0, 0.31), (5.0, 0.52)], left_out)


@pytest.mark.parametrize("name", ["none", "Missing"])
def test_none_and_missing_may_be_classes_of_a_column_of_text(bids, name):
    for file in bids.rglob("*_events.tsv"):
        file.write_text(file.read_text().replace("low", name))
    target = asked("events-column:rating")
    labels = target.read_labels(find_recordings(bids))
    assert set(labels.classes) == {"high", name}
    first, second = (labels.classes.index(value) for value in (name, "high"))
    left_out = {"events whose 'rating' is n/a": 1, "events without an onset": 1}
    assert segments(bids, target, labels) == ([(1.0, first), (3.0, second), (5.0, second)], left_out)
    found, counted = segments(bids, target)
    assert [onset for onset, _ in found] == [1.0, 3.0, 5.0] and counted == left_out


def test_none_is_missing_in_a_column_of_numbers(bids):
    for file in bids.rglob("*_events.tsv"):
        file.write_text(file.read_text().replace("0.52", "none"))
    target = asked("events-column:response_time")
    labels = target.read_labels(find_recordings(bids))
    assert labels.kind == "regression"
    for given in (labels, None):
        found, left_out = segments(bids, target, given)
        assert [onset for onset, _ in found] == [1.0]
        assert left_out["events whose 'response_time' is n/a"] == 3


def test_a_column_of_text_is_classes(bids):
    target = asked("events-column:rating", select="trial_type in ['target', 'standard']")
    labels = target.read_labels(find_recordings(bids))
    assert (labels.kind, labels.classes) == ("classification", ("high", "low"))
    found, left_out = segments(bids, target, labels)
    assert found == [(1.0, 1.0), (3.0, 0.0), (5.0, 0.0)]
    assert left_out == {"events that --select does not take": 1, "events without an onset": 1}


@pytest.mark.parametrize(
    ("spec", "kind", "note"),
    [
        ("events-column:correct", "classification", "holds 0, 1, taken for two classes; ':regression' behind its name"),
        ("events-column:value", "regression", "holds 11, 12, 99, taken for numbers; ':classification' behind its name"),
        ("events-column:value:classification", "classification", ""),
        ("events-column:correct:regression", "regression", ""),
        ("events-column:response_time", "regression", ""),
    ],
)
def test_numbers_that_could_be_classes_are_said_in_one_line(bids, spec, kind, note):
    labels = asked(spec).read_labels(find_recordings(bids))
    assert labels.kind == kind and len(labels.notes) == bool(note)
    assert all(note in each and "\n" not in each for each in labels.notes)


def test_numbers_as_classes_are_found_in_every_spelling(bids):
    path = find_recordings(bids)[0].sidecar("events.tsv")
    path.write_text(path.read_text().replace("\t11\t", "\t11.0\t"))
    target = asked("events-column:value:classification")
    labels = target.read_labels(find_recordings(bids))
    assert labels.classes == ("11", "12", "99")
    assert [each for _, each in segments(bids, target, labels)[0]] == [0.0, 1.0, 0.0, 2.0]


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("events-column:", {}, "needs a column of events.tsv"),
        (
            "events-column:rt",
            {},
            r"no events.tsv has the column 'rt' \(sub-01_task-odd_events.tsv: onset, duration, tri",
        ),
        ("events-column:age", {}, "participants.tsv has it: --target participants:age"),
        ("events-column:rating:regression", {}, r"column 'rating' holds text \('high'\); regression needs numbers"),
        ("events-column:correct", {"select": "rating == 'low'"}, "column 'correct' is 1 for every event"),
        ("events-column:rating", {"select": "correct == 7"}, "--select 'correct == 7' takes no event"),
        ("events-column:rating", {"select": "correkt == 1"}, "no column 'correkt', which --select names"),
        ("events-column:correct", {"events_from": "value"}, "it reads no values of events; leave out --events-from"),
        ("participants:age", {"events_from": "value"}, "it reads no values of events; leave out --events-from"),
        ("participants:age", {"select": "correct == 1"}, "no events can be chosen for its windows; leave out --select"),
        ("challenge1", {"select": "correct == 1"}, "no events can be chosen for its windows; leave out --select"),
        ("events:target,standard", {"events_from": " "}, "--events-from: names no column"),
        ("events:target,standard", {"events_from": "stim"}, r"no column 'stim' \(columns: onset, duration, trial_type"),
        (
            "events:target,standard",
            {"events_from": "value"},
            "it stands in column 'trial_type' of .*: --events-from trial",
        ),
        ("events:low,high", {}, "it stands in column 'rating' of .*: --events-from rating"),
        (
            "events:target,standard",
            {"select": "correct == 0"},
            "no event that --select takes has the value 'standard'; available: 11, target$",
        ),
        ("events:target,standard", {"select": "correct == 7"}, "standard': --select 'correct == 7' takes no event$"),
        ("latency:target", {"select": "correct == 7"}, "latency:target': --select 'correct == 7' takes no event$"),
        ("events:target,standard", {"select": "correct = 0"}, "--select 'correct = 0': no condition"),
    ],
)
def test_mistakes_are_one_line(bids, spec, options, message):
    with pytest.raises(UserError, match=message) as caught:
        asked(spec, **options).read_labels(find_recordings(bids))
    assert "\n" not in str(caught.value)


def test_a_column_with_numbers_and_other_text_is_refused_with_the_row(bids):
    path = find_recordings(bids)[0].sidecar("events.tsv")
    path.write_text(path.read_text().replace("0.52", "fast"))
    with pytest.raises(UserError, match=r"cells that are no numbers: 'fast' \(sub-01_task-odd, row 3\)"):
        asked("events-column:response_time").read_labels(find_recordings(bids))


def test_values_are_read_from_the_column_that_is_named(bids):
    for number, found in enumerate(find_recordings(bids)):
        path = found.sidecar("events.tsv")
        path.write_text(HEADER + "1\t0\ta\tb\t1\tn/a\tx\n2\t0\tb\ta\t1\tn/a\tx\n" + "3\t0\ta\tc\t1\tn/a\tx\n" * number)
    with pytest.raises(
        UserError, match=r"'value' and 'trial_type' contradict each other .* or choose one with --events-"
    ):
        asked("events:a,b").read_labels(find_recordings(bids))
    target = asked("events:a,b", events_from="trial_type")
    assert segments(bids, target, target.read_labels(find_recordings(bids)))[0] == [(1.0, 0.0), (2.0, 1.0)]


def test_one_value_in_two_columns_and_different_rows_is_ambiguous(bids):
    path = find_recordings(bids)[0].sidecar("events.tsv")
    path.write_text(HEADER + "1\t0\ta\ta\t1\tn/a\tx\n2\t0\tn/a\ta\t1\tn/a\tx\n3\t0\tb\tn/a\t1\tn/a\tx\n")
    wanted = (
        r"'trial_type' and 'value' both hold 'a', in different rows; choose one with --events-from \(columns: onset, d"
    )
    with pytest.raises(UserError, match=wanted):
        segments(bids, asked("events:a,b"))
    assert segments(bids, asked("events:a,b", events_from="value"))[0][0][0] == 1.0


def test_events_that_are_not_selected_are_counted(bids):
    target = asked("events:target,standard", select="correct == 1")
    found, left_out = segments(bids, target, target.read_labels(find_recordings(bids)))
    assert found == [(1.0, 0.0), (3.0, 1.0)]
    assert left_out == {"events that --select does not take": 1, "events without an onset": 1}
    latency = asked("latency:target", select="correct == 0")
    assert [onset for onset, _ in segments(bids, latency, latency.read_labels(find_recordings(bids)))[0]] == [5.0]


def test_response_times_from_prepare_to_the_windows_of_new_recordings(bids, tmp_path):
    options = {"select": 'trial_type == "target"', "bids_task": "odd"}
    store = prepare(bids, "events-column:response_time", tmp_path / "store", jobs=1, window=0.5, **options)
    assert store.kind == "regression" and store.metric == "nrmse"
    assert sorted(store.targets.tolist())[:2] == pytest.approx([0.31, 0.32]) and len(store) == 8
    account = store.manifest.accounting
    assert account.parts_left_out["events that --select does not take"] == dict.fromkeys(("01", "02", "03", "04"), 2)
    again = prepare(bids, "events-column:response_time", tmp_path / "store", jobs=1, window=0.5, **options)
    assert again.redone == 0
    with pytest.raises(UserError, match="was made with select 'trial_type == \"target\"', not left to its default"):
        prepare(bids, "events-column:response_time", tmp_path / "store", jobs=1, window=0.5, bids_task="odd")
    plan = store.manifest.plan
    recording = find_recordings(bids)[0]
    windows, _ = place_windows(OpenRecording(recording), parse_target(plan), plan, None)
    assert [each.onset for each in windows] == [1.0, 5.0] and np.isnan([each.target for each in windows]).all()
    path = recording.sidecar("events.tsv")
    path.write_text("onset\ttrial_type\n1\ttarget\n2\tother\n4\ttarget\n")  # without the column
    windows, left_out = place_windows(OpenRecording(recording), parse_target(plan), plan, None)
    assert [each.onset for each in windows] == [1.0, 4.0] and left_out == {"events that --select does not take": 1}


def test_recordings_without_the_column_are_named_or_left_out(bids, tmp_path):
    path = find_recordings(bids)[3].sidecar("events.tsv")
    path.write_text("onset\ttrial_type\n1\ttarget\n")
    with pytest.raises(
        UserError, match=r"sub-04_task-odd_events.tsv: no column 'response_time' \(columns: onset, trial_t"
    ):
        prepare(bids, "events-column:response_time", tmp_path / "store", jobs=1, window=0.5)
    store = prepare(bids, "events-column:response_time", tmp_path / "two", jobs=1, window=0.5, skip_unreadable=True)
    (left_out,) = store.manifest.accounting.recordings_left_out
    assert left_out.name == "sub-04_task-odd" and "no column 'response_time'" in left_out.detail


def test_recordings_whose_events_are_all_n_a_are_counted(bids):
    path = find_recordings(bids)[0].sidecar("events.tsv")
    path.write_text("onset\tresponse_time\n1\tn/a\n")
    found, left_out = segments(bids, asked("events-column:response_time"), Labels("regression"))
    assert found == [] and left_out == {NO_EVENT: 1, "events whose 'response_time' is n/a": 1}


def test_a_column_of_another_table_is_pointed_to(bids):
    with pytest.raises(UserError, match=r"no column 'response_time'.*events.tsv has it: --target events-column:"):
        asked("participants:response_time").read_labels(find_recordings(bids))
    (bids / "sub-01" / "sub-01_sessions.tsv").write_text("session_id\tage\tmood\nses-1\t30\tlow\n")
    with pytest.raises(UserError, match=r"no column 'mood'.*sub-01_sessions.tsv has it, a value for each session"):
        asked("participants:mood").read_labels(find_recordings(bids))
    notes = asked("participants:age").read_labels(find_recordings(bids)).notes
    assert [note for note in notes if "read from participants.tsv; sub-01_sessions.tsv has it too" in note]


def test_durations_are_a_target_and_a_column_of_values(bids):
    """In some data sets the duration of an event is the response time."""
    for path in bids.rglob("*_events.tsv"):
        path.write_text(path.read_text().replace("1\t0\t", "1\t0.4\t").replace("5\t0\t", "5\t0.6\t"))
    target = asked("events-column:duration", select="duration > 0")
    labels = target.read_labels(find_recordings(bids))
    assert segments(bids, target, labels)[0] == [(1.0, 0.4), (5.0, 0.6)]
    target = asked("events:0.4,0.60", events_from="duration")
    assert segments(bids, target, target.read_labels(find_recordings(bids)))[0] == [(1.0, 0.0), (5.0, 1.0)]


def test_a_file_without_durations_has_no_such_column(bids):
    for path in bids.rglob("*_events.tsv"):
        path.write_text(path.read_text().replace("duration", "length"))
    with pytest.raises(UserError, match=r"no .*'duration'"):
        asked("events-column:duration").read_labels(find_recordings(bids))


def test_a_recording_without_readable_events_hides_nothing_of_the_others(bids):
    for number in (1, 2):
        folder = bids / f"sub-0{number}" / "eeg"
        next(folder.glob("*_events.tsv")).unlink()
        for name in (f"sub-0{number}_events.tsv", "task-odd_events.tsv"):  # both apply
            (folder / name).write_text(HEADER + ROWS)
    with pytest.raises(UserError, match="no event has the value 'targget'; did you mean 'target'"):
        asked("events:targget,standard", events_from="trial_type").read_labels(find_recordings(bids))
