from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.core.errors import UserError
from raypipe.data.prepare import prepare
from raypipe.data.table_target import parse_table
from raypipe.data.target_base import TargetSpec, WindowTiming
from raypipe.data.targets import parse_target
from raypipe.recordings.layout import find_recordings
from tests.support.eeg_files import write_edf

TIMING = WindowTiming(1.0, 1.0, 0.0)


def write_recording(root, label, session, run, n):
    folder = root / f"sub-{label}" / f"ses-{session}" / "eeg"
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"sub-{label}_ses-{session}_task-odd_run-{run}"
    digits = np.random.default_rng(n).normal(0, 200, (2, 600)).astype(int)
    write_edf(folder / f"{stem}_eeg.edf", ["Fp1", "C3"], digits, per_record=[100, 100])
    (folder / f"{stem}_events.tsv").write_text("onset\ttrial_type\n1.0\tgo\n2.5\tstop\n4.0\tgo\n")


@pytest.fixture
def bids(tmp_path):
    """Four people with two sessions of one run; the events are at 1, 2.5 and 4 s."""
    root = tmp_path / "bids"
    for n in range(8):
        write_recording(root, f"{n // 2 + 1:02d}", "ab"[n % 2], "01", n)
    return root


def table(tmp_path, text, name="labels.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def labels_of(bids, path, column="score", **options):
    target = parse_target(TargetSpec(target=f"table:{path}:{column}", **options))
    return target, target.read_labels(find_recordings(bids))


def test_a_row_for_each_person(bids, tmp_path):
    path = table(tmp_path, "participant_id,score\nsub-01,1.5\n2,2.5\nsub-03,n/a\nsub-09,4\n")
    target, labels = labels_of(bids, path)
    assert target.joined_on == ("participant_id",) and not target.event_locked
    assert (labels.kind, labels.by_subject) == ("regression", {"01": 1.5, "02": 2.5})
    assert labels.notes == (f"{path}, joined on participant_id: 3 of 4 rows match, not line 5; 1 of them is n/a.",)
    (first, *_) = find_recordings(bids)
    assert {each.target for each in target.segment(first, 6.0, TIMING, labels).segments} == {1.5}
    assert np.isnan(target.segment(first, 6.0, TIMING, None).segments[0].target)


def test_names_of_files_and_columns_may_have_colons(bids, tmp_path):
    path = table(tmp_path, "participant_id,age:years\nsub-01,1.5\n2,2.5\n", "of:2026.csv")
    target, labels = labels_of(bids, path, "age:years:regression")
    assert (target.file, target.columns) == (str(path), ("age:years",))
    assert (labels.kind, labels.by_subject) == ("regression", {"01": 1.5, "02": 2.5})


def test_a_row_for_each_recording(bids, tmp_path):
    rows = "".join(
        f"sub-{n:02d}\tses-{s}\t1\t{kind}\n" for n in range(1, 5) for s, kind in (("a", "low"), ("b", "high"))
    )
    path = table(tmp_path, "participant_id\tsession_id\trun\tscore\n" + rows, "labels.tsv")
    target, labels = labels_of(bids, path)
    assert target.joined_on == ("participant_id", "session", "run")
    assert labels.classes == ("high", "low") and labels.by_subject is None
    assert labels.by_recording["sub-01_ses-a_task-odd_run-01"] == 1.0 and len(labels.by_recording) == 8
    store = prepare(bids, f"table:{path}:score", tmp_path / "store", jobs=1, window=1)
    assert store.manifest.plan.joined_on == ("participant_id", "session", "run")
    assert Counter(store.table["target"]) == {0: 24, 1: 24}
    assert all((store.table["session"] == "a") == (store.table["target"] == 1))


def test_a_row_for_each_event(bids, tmp_path):
    text = "participant_id;session;Onset;score\n" + "".join(
        f"{n};a;1.0004;{n}.5\n{n};a;2.5;n/a\n{n};a;4;{n}\n{n};a;5.5;7\n" for n in range(1, 5)
    )
    path = table(tmp_path, text)
    target, labels = labels_of(bids, path)
    assert target.event_locked and target.joined_on == ("participant_id", "session", "onset")
    (first, second, *_) = find_recordings(bids)
    found = target.segment(first, 6.0, TIMING, labels)
    assert [(each.onset, each.target) for each in found.segments] == [(1.0, 1.5), (4.0, 1.0)]
    assert found.left_out == {"events without a target in the table": 1}
    assert "12 of 16 rows match, not lines 5, 9, 13, ...; 4 of them are n/a." in labels.notes[0]
    assert not labels.has(second)
    go = parse_target(TargetSpec(target=f"table:{path}:score", select="trial_type == 'go'"))
    assert [each.onset for each in go.segment(first, 6.0, TIMING, None).segments] == [1.0, 4.0]
    store = prepare(bids, f"table:{path}:score", tmp_path / "store", jobs=1, window=1)
    account = store.manifest.accounting
    assert len(store) == 8 and account.recordings_used == 4
    assert Counter(each.reason for each in account.recordings_left_out) == {"without a target in the table": 4}
    assert account.parts_left_out == {
        "events without a target in the table": dict.fromkeys(("01", "02", "03", "04"), 1)
    }


def test_a_row_of_events_in_several_recordings_is_refused(bids, tmp_path):
    path = table(tmp_path, "participant_id,onset,score\n1,2.5,n/a\n1,4,.5\n2,1,.7\n")
    with pytest.raises(UserError) as caught:
        labels_of(bids, path)
    assert str(caught.value) == (
        f"{path}: line 3 (onset 4 s) is that of an event of sub-01_ses-a_task-odd_run-01 and of one of "
        "sub-01_ses-b_task-odd_run-01; add a column that distinguishes them (session)"
    )
    # Where the recordings have other events, one row is that of one of them.
    for events in bids.glob("*/ses-b/eeg/*events.tsv"):
        events.write_text("onset\ttrial_type\n3.3\tgo\n")
    _, labels = labels_of(bids, path)
    assert {key: len(of) for key, of in labels.by_onset.items() if of} == {
        "sub-01_ses-a_task-odd_run-01": 1,
        "sub-02_ses-a_task-odd_run-01": 1,
    }


def test_rows_of_several_recordings_are_said(bids, tmp_path):
    path = table(tmp_path, "participant_id,run,score\n1,1,.5\n2,1,.7\n3,2,.9\n")
    _, labels = labels_of(bids, path)
    assert labels.notes[0].endswith(
        "2 of 3 rows match, not line 4. 2 of them are of several recordings each, which differ in session."
    )
    assert set(labels.by_recording) == {f"sub-0{n}_ses-{s}_task-odd_run-01" for n in (1, 2) for s in "ab"}


def test_only_recordings_whose_rows_change_are_cut_again(bids, tmp_path):
    text = "participant_id,score\n01,1\n02,2\n03,3\n04,4.5\n"
    path = table(tmp_path, text)
    assert prepare(bids, f"table:{path}:score", tmp_path / "store", jobs=1).redone == 8
    assert prepare(bids, f"table:{path}:score", tmp_path / "store", jobs=1).redone == 0
    path.write_text(text.replace("4.5", "5") + "77,1\n")
    again = prepare(bids, f"table:{path}:score", tmp_path / "store", jobs=1)
    assert again.redone == 2 and "4 of 5 rows match, not line 6." in again.manifest.accounting.notes[0]


def test_predictions_read_no_table(bids, tmp_path):
    path = table(tmp_path, "participant_id,score\n01,1\n02,2\n03,3\n04,4.5\n")
    plan = prepare(bids, f"table:{path}:score", tmp_path / "store", jobs=1).manifest.plan
    path.unlink()
    for joined_on in (plan.joined_on, ()):
        target = parse_target(plan.model_copy(update={"joined_on": joined_on}))
        assert len(target.segment(find_recordings(bids)[0], 6.0, TIMING, None).segments) == 6
    locked = parse_target(plan.model_copy(update={"joined_on": ("participant_id", "onset")}))
    assert [each.onset for each in locked.segment(find_recordings(bids)[0], 6.0, TIMING, None).segments] == [1, 2.5, 4]


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("participant_id,score\n01,1\n", "scor", r"no column 'scor' \(columns: participant_id, score\)"),
        (
            "subject,score\n01,1\n",
            "score",
            r"no column 'participant_id', the subject of each row \(columns: subj",
        ),
        (
            "participant_id,score\n01,1\nsub-01,2\n",
            "score",
            "lines 2 and 3 give one subject two values of 'score', '1' and",
        ),
        (
            "participant_id,score\n01,1\n01,2\n",
            "score",
            r"keep one, or add a column that distinguishes them \(session, task, run, onset\)",
        ),
        (
            "participant_id,session,score\n01,a,1\n01,ses-a,2\n",
            "score",
            r"give one recording two values .* \(task, r",
        ),
        (
            "participant_id,onset,score\n01,1,1\n01,1.0001,2\n",
            "score",
            "give one event .sub-01_ses-a_task-odd_run-01, 1",
        ),
        ("participant_id,onset,score\n01,soon,1\n", "score", "line 2: onset 'soon' is no number of seconds"),
        ("participant_id,score\n55,1\n", "score", r"no row matches a recording \(joined on participant_id\)"),
        ("participant_id,score\n55,1\n", "score", "participant_id is 55 in the table, 01, 02.* of the recordings"),
        ("participant_id,run,score\n01,7,1\n", "score", "run is 7 in the table, 01 of the recordings"),
        ("participant_id,acq,session,score\n01,x,c,1\n", "score", "session is c in the table, a, b of the recordings"),
        ("participant_id,onset,score\n01,1,n/a\n02,3,1\n", "score", "is n/a for every row that matches"),
        ("participant_id,onset,score\n01,3,1\n", "score", r"no row matches an event of a recording \(joined on part"),
        ("participant_id,score\n01,1\n02,1\n", "score", "column 'score' is 1 for every subject"),
        ("participant_id,score\n01,n/a\n02,NA\n", "score", "column 'score' is n/a for every subject"),
        ("participant_id,score\n01,a\n02,b\n", "score", "column 'score' is different for every subject"),
        ("participant_id,score\n01,1\n02,2\n03,3 kg\n", "score", r"cells that are no numbers: '3 kg' \(03\)"),
        ("participant_id,score\n01,a\n02,b\n", "score:regression", "holds text .'a'.; regression needs numbers"),
        ("participant_id,score\n01,1,2\n", "score", r"separated by commas \(line 2 has 3 cells, its first line 2\)"),
        ('participant_id,score\n01,"1\n', "score", "not a table of values separated by commas"),
        ("", "score", "it is empty"),
    ],
)
def test_mistakes_in_the_table_are_one_line(bids, tmp_path, text, column, message):
    with pytest.raises(UserError, match=message) as caught:
        labels_of(bids, table(tmp_path, text), column)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("table:", {}, "needs a file and a column, such as table:labels.csv:score"),
        ("table:labels.csv", {}, "needs a file and a column, such as table:labels.csv:score"),
        ("table:nowhere/labels.csv:score", {}, "nowhere/labels.csv: no such file"),
        (
            "table:FILE:score",
            {"select": "trial_type == 'go'"},
            "no events can be chosen for its windows; leave out",
        ),
        ("table:FILE:score", {"events_from": "value"}, "it reads no values of events; leave out --events-from"),
    ],
)
def test_specifications_that_are_refused(tmp_path, spec, options, message):
    path = table(tmp_path, "participant_id,score\n01,1\n02,2\n")
    with pytest.raises(UserError, match=message):
        parse_target(TargetSpec(target=spec.replace("FILE", str(path)), **options))


def test_quoted_cells_and_rows_that_agree(bids, tmp_path):
    text = '"participant_id","group, of two"\n"sub-01","a, b"\nsub-01,"a, b"\nsub-02,c\nsub-03,c\n\n'
    _, labels = labels_of(bids, table(tmp_path, text), "group, of two")
    assert labels.classes == ("a, b", "c") and len(labels.by_subject) == 3
    assert "4 of 4 rows match." in labels.notes[0]


ROWS = st.lists(st.tuples(st.sampled_from("1234x"), st.sampled_from("ab"), st.integers(0, 3)), min_size=1, max_size=9)


@settings(max_examples=40, deadline=None)
@given(rows=ROWS)
def test_every_row_is_used_or_named(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("table")
    unique = {(person, session): value for person, session, value in rows}
    text = "".join(f"{person},{session},{value}.5\n" for (person, session), value in unique.items())
    path = table(folder, "participant_id,session,score\n" + text)
    root = folder / "bids"
    for n in range(8):
        where = root / f"sub-{n // 2 + 1}" / f"ses-{'ab'[n % 2]}" / "eeg"
        where.mkdir(parents=True)
        (where / f"sub-{n // 2 + 1}_ses-{'ab'[n % 2]}_eeg.edf").touch()
    target = parse_table(f"table:{path}:score", f"{path}:score:regression")
    expected = {key: value + 0.5 for key, value in unique.items() if key[0] != "x"}
    if len(set(expected.values())) < 2:
        with pytest.raises(UserError):
            target.read_labels(find_recordings(root))
        return
    labels = target.read_labels(find_recordings(root))
    assert labels.by_recording == {f"sub-{person}_ses-{ses}": value for (person, ses), value in expected.items()}
    assert f"{len(expected)} of {len(unique)} rows match" in labels.notes[0]


def test_none_may_be_a_class_of_people_with_several_rows(bids, tmp_path):
    rows = ["01,1,none", "01,2,ssri", "02,1,none", "03,1,ssri", "04,1,none"]
    path = table(tmp_path, "participant_id,visit,score\n" + "\n".join(rows) + "\n")
    with pytest.raises(UserError, match="lines 2 and 3 give one subject two values of 'score', 'none' and 'ssri'"):
        labels_of(bids, path)
    path.write_text("participant_id,visit,score\n" + "\n".join(rows[1:]) + "\n01,3,n/a\n")
    _, labels = labels_of(bids, path)
    assert (labels.classes, labels.by_subject) == (("none", "ssri"), {"01": 1.0, "02": 0.0, "03": 1.0, "04": 0.0})
    assert labels.notes[0].endswith("5 of 5 rows match; 1 of them is n/a.")


def test_none_may_be_a_class_of_events(bids, tmp_path):
    own = [f"{t},{'none' if t < 2 else 'left'}" for t in (1, 4)]
    rows = [f"0{n},{session},{cells}" for n in range(1, 5) for session in "ab" for cells in own]
    path = table(tmp_path, "participant_id,session,onset,score\n" + "\n".join(rows) + "\n")
    _, labels = labels_of(bids, path)
    assert labels.classes == ("left", "none")
    assert set(map(tuple, (of.items() for of in labels.by_onset.values()))) == {((1.0, 1.0), (4.0, 0.0))}
    path.write_text(path.read_text() + "01,a,1,left\n")
    with pytest.raises(UserError, match=r"give one event .* two values of 'score', 'none' and 'left'"):
        labels_of(bids, path)


def test_none_is_missing_among_numbers(bids, tmp_path):
    path = table(tmp_path, "participant_id,visit,score\n01,1,none\n01,2,7.5\n02,1,8\n03,1,9\n")
    _, labels = labels_of(bids, path)
    assert labels.by_subject == {"01": 7.5, "02": 8.0, "03": 9.0}
    assert labels.notes[0].endswith("1 of them is n/a.")
