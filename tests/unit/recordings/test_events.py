from __future__ import annotations

import pytest

from raypipe.recordings.events import (
    NO_ONSET,
    OTHER_SPELLING,
    columns_with,
    count_values,
    match_events,
    read_events_file,
    taken_events,
)
from raypipe.recordings.signal import UnreadableRecordingError


def write(folder, text):
    path = folder / "events.tsv"
    path.write_text(text)
    return path


def test_events_are_sorted_and_typed(tmp_path):
    events = read_events_file(
        write(
            tmp_path,
            "onset\tduration\tvalue\tcode\n2.5\tn/a\tb\t01\nn/a\t0\tlost\t2\n0.5\t1\t9999\t3\n2.5\t0\tc\t4\n3\tx\t\t5\n",
        )
    )
    assert events["value"].tolist() == ["9999", "b", "c", "n/a"]
    assert events["onset"].tolist() == [0.5, 2.5, 2.5, 3.0]
    assert events["duration"].isna().tolist() == [False, True, False, True]
    assert events["code"].tolist() == ["3", "01", "4", "5"]


def test_trial_type_is_used_if_there_is_no_value(tmp_path):
    assert read_events_file(write(tmp_path, "onset\ttrial_type\n1\tgo\n"))["value"].tolist() == ["go"]
    assert read_events_file(write(tmp_path, " Onset\tTrial_Type\n1\tgo\n"))["value"].tolist() == ["go"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("onset\tduration\n1\t2\n", "no column 'value'"),
        ("onst\tvalue\n1\t2\n", "no column 'onset'; did you mean 'onst'"),
        ("onset\tvalue\nsoon\tx\n", r"column 'onset' is not a number of seconds \('soon'\)"),
        ("onset\tvalue\n1,5\tx\n", r"\('1,5'\)"),
        ("", "not a table"),
    ],
)
def test_damaged_events_give_one_line(tmp_path, text, message):
    path = write(tmp_path, text)
    for read in (read_events_file, lambda path: match_events(path, ["x"])):
        with pytest.raises(UnreadableRecordingError, match=message):
            read(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "onset\tvalue\ttrial_type\n1\tleft\tright\n",
            r"'value' and 'trial_type' contradict .*'left' and 'right' in row 1",
        ),
        ("onset\ttrialtype\n1\tleft\n", "no column 'value' or 'trial_type'; did you mean 'trialtype'"),
        ("onset trial_type\n1 left\n", "not separated by tabs"),
    ],
)
def test_tables_of_events_that_are_refused(tmp_path, text, message):
    with pytest.raises(UnreadableRecordingError, match=message):
        match_events(write(tmp_path, text), LEFT_RIGHT)


def test_missing_events_give_one_line(tmp_path):
    with pytest.raises(UnreadableRecordingError, match=r"events\.tsv: no such file"):
        read_events_file(tmp_path / "events.tsv")


LEFT_RIGHT = ["left", "right"]


@pytest.mark.parametrize(
    ("text", "wanted", "values"),
    [
        ("onset\ttrial_type\n1\tleft\n2\tright\n", LEFT_RIGHT, LEFT_RIGHT),
        ("onset\tvalue\n1\tleft \n2\t right\n", LEFT_RIGHT, LEFT_RIGHT),
        ("onset\tvalue\n1\tLeft\n2\tRIGHT\n", LEFT_RIGHT, LEFT_RIGHT),
        ("onset\tvalue\n1\t1.0\n2\t2.0\n3\t3\n", ["1", "2"], ["1", "2"]),
        ("onset\tvalue\n1\t01\n2\t2\n", ["1", "2"], ["1", "2"]),
        ("onset\ttrial_type\tvalue\n1\tleft\t1\n2\tright\t2\n", LEFT_RIGHT, LEFT_RIGHT),
        ("onset\ttrial_type\tvalue\n1\tleft\t1\n2\tright\t2\n", ["1", "2"], ["1", "2"]),
        ("onset\ttrial_type\tvalue\n1\tleft\tn/a\n2\tright\tn/a\n", LEFT_RIGHT, LEFT_RIGHT),
        ("onset\tvalue\n1\tgo\n2\tGo\n3\tGO\n", ["go", "stop"], ["go"]),
        ("onset\tvalue\n1\tGo\n2\tGO\n", ["go", "stop"], []),
        ("onset\tvalue\n1\tgo\n2\tGO\n", ["go", "GO"], ["go", "GO"]),
        ("onset\tvalue\n1\tGo\n", ["go", "GO"], []),
        ('onset\tvalue\n1\t"left\n2\tright"\n', LEFT_RIGHT, LEFT_RIGHT),
        ("onset\tvalue\n1\te\u0301\n", ["\u00e9"], ["\u00e9"]),
        ("onset\tvalue\n1\t+\n2\t-\n", ["+", "-"], ["+", "-"]),
        ("onset\tvalue\n", LEFT_RIGHT, []),
        ("onset\tvalue\n1\tn/a\n", LEFT_RIGHT, []),
        ("onset\tvalue\ttrial_type\n1\tleft\tn/a\n2\tn/a\tright\n", LEFT_RIGHT, LEFT_RIGHT),
        ("onset\tvalue\n1\tle\u200bft\nbad\tother\n2\tright\n", LEFT_RIGHT, LEFT_RIGHT),
    ],
)
def test_values_are_matched_where_that_is_safe(tmp_path, text, wanted, values):
    found = match_events(write(tmp_path, text), wanted)
    assert found.values == values
    folded = {value.casefold() for value in wanted}
    alike = sum(line.split("\t")[-1].casefold() in folded for line in text.split("\n"))
    assert found.left_out[OTHER_SPELLING] == max(0, alike - len(values))


def test_events_without_a_finite_onset_are_counted(tmp_path):
    found = match_events(write(tmp_path, "onset\tvalue\nn/a\tleft\ninf\tright\n3\tleft\n\tother\n"), LEFT_RIGHT)
    assert (found.onsets, found.values, dict(found.left_out)) == ([3.0], ["left"], {NO_ONSET: 2})


def test_values_are_counted_and_found_in_other_columns(tmp_path):
    path = write(tmp_path, "onset\tvalue\ttrial_type\tstim\n1\ta\tn/a\tleft\n2\ta\tgo\tright\n")
    assert count_values(taken_events(path, None)) == {"value": {"a": 2}, "trial_type": {"go": 1}}
    assert columns_with(path, "left") == ["stim"] and columns_with(path, "up") == []
    assert columns_with(tmp_path / "none.tsv", "left") == []
