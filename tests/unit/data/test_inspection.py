"""What `raypipe inspect` finds: a recording of it is a small EDF file whose signal is noise."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import edfio
import numpy as np
import pytest

from raypipe.core.errors import UserError
from raypipe.data.inspection import Inspection, inspect_bids
from raypipe.data.prepare import prepare
from raypipe.data.table_facts import CLASSES, NO_TARGET, NUMBERS

EVENTS = "onset\tduration\ttrial_type\n1.0\t0\tleft\n4.0\t0\tright\n7.0\t0\tleft\n10.0\t0\tright\n"


def write_edf(path: Path, channels: tuple[str, ...] = ("Fp1", "C3"), rate: float = 100, seconds: int = 12) -> None:
    rng = np.random.default_rng(len(path.name))
    signals = [
        edfio.EdfSignal(rng.normal(0, 20, int(rate * seconds)), rate, label=name, physical_dimension="uV")
        for name in channels
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    edfio.Edf(signals).write(path)


def eeg(root: Path, label: str, task: str = "rest", suffix: str = "eeg.edf") -> Path:
    return root / f"sub-{label}" / "eeg" / f"sub-{label}_task-{task}_{suffix}"


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def participants(root: Path, *rows: str) -> None:
    text(root / "participants.tsv", "\n".join(rows) + "\n")


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    """Six people with events; ages are numbers, and sex has two classes."""
    root = tmp_path / "data set"
    for number in range(1, 7):
        write_edf(eeg(root, f"{number:02d}"))
        text(eeg(root, f"{number:02d}", suffix="events.tsv"), EVENTS)
    rows = [f"sub-{number:02d}\t{20 + number}\t{'MF'[number % 2]}" for number in range(1, 7)]
    participants(root, "participant_id\tage\tsex", *rows)
    return root


def accepted(found: Inspection, out: Path) -> list[str]:
    """Prepare every target that is suggested; return their specifications."""
    specs = []
    for number, target in enumerate(found.targets):
        folders = list(found.folders)
        prepare(
            folders,
            target.spec,
            out / str(number),
            events_from=target.events_from,
            sfreq=target.sfreq,
            skip_unreadable=target.skip_unreadable,
            jobs=1,
        )
        specs.append(target.spec)
    return specs


def section(found: Inspection, title: str) -> str:
    return "\n".join(dict(found.sections()).get(title, []))


def test_shows_what_is_there_and_prepare_accepts_what_it_suggests(bids, tmp_path):
    found = inspect_bids(bids)
    assert section(found, "Recordings").splitlines() == [
        "6 found, 6 can be read, 0 left out",
        "format      EDF (6)",
        "BIDS task   rest (6)",
        "duration    12 s; 1 min 12 s in all",
        "rate        100 Hz (all 6 recordings)",
        "unit        uV (all 6 recordings)",
        "types from  file (all 6 recordings)",
        "channels    2 EEG in all 6 recordings: Fp1, C3",
    ]
    assert section(found, "People") == "6 found, 6 with recordings"
    assert section(found, "Events by trial_type").splitlines() == [
        "value  events  people  per person",
        "left       12       6           2",
        "right      12       6           2",
    ]
    assert section(found, "Columns of participants.tsv").splitlines() == [
        "age  numbers  21 to 26, median 23.5",
        "sex  classes  F (3), M (3)",
    ]
    assert accepted(found, tmp_path / "out") == ["events:left,right", "participants:age", "participants:sex"]
    assert found.commands[0] == (
        f"raypipe prepare {shlex.quote(str(bids))} --target events:left,right --out windows/events-left-right"
    )


def test_odd_recordings_are_named(bids, tmp_path):
    write_edf(eeg(bids, "02"), rate=200)
    write_edf(eeg(bids, "03"), channels=("Fp1", "Cz"))
    write_edf(eeg(bids, "04"), channels=("Fp1", "C3", "ECG"))
    write_edf(eeg(bids, "05"), seconds=1)
    eeg(bids, "06").write_bytes(b"no header")
    found = inspect_bids(bids)
    lines = section(found, "Recordings")
    assert "6 found, 5 can be read, 1 left out" in lines
    assert "100 Hz (4); 200 Hz (1: sub-02_task-rest)" in lines
    assert "1 EEG in all 5 recordings: Fp1" in lines
    assert "1 more in 4 only: C3" in lines and "1 more in 1 only (sub-03_task-rest): Cz" in lines
    assert "not used    ecg (1 of 5): ECG" in lines
    assert "shorter than 2 s: 1: sub-05_task-rest" in lines
    assert "  sub-06/eeg/sub-06_task-rest_eeg.edf: not a supported EEG file" in section(found, "Left out")
    assert str(eeg(bids, "06")) in found.facts[5].problem
    assert {(target.sfreq, target.skip_unreadable) for target in found.targets} == {(100.0, True)}
    assert accepted(found, tmp_path / "out")


def test_left_out_recordings_and_people_add_up(bids):
    shutil.copy(eeg(bids, "01"), eeg(bids, "01").with_name("sub-02_task-rest_eeg.edf"))
    eeg(bids, "01", suffix="eeg.edf.gz").write_bytes(b"packed")
    (bids / "sub-07").mkdir()
    write_edf(eeg(bids, "08"))
    with (bids / "participants.tsv").open("a") as file:
        file.write("sub-99\t30\tM\n")
    found = inspect_bids(bids)
    account = found.accounting
    assert account.recordings_found == 9 and account.recordings_used == 7 and len(account.recordings_left_out) == 2
    people = section(found, "People")
    assert people.startswith("9 found, 7 with recordings")
    assert "no recording in its folder: 07" in people and "in participants.tsv only: 99" in people
    assert "1 without a row in participants.tsv: 08" in people


def test_spellings_of_events_that_prepare_matches_or_not(bids, tmp_path):
    text(eeg(bids, "01", suffix="events.tsv"), EVENTS.replace("left", "Left"))
    text(eeg(bids, "02", suffix="events.tsv"), EVENTS.replace("right", "n/a"))
    text(eeg(bids, "03", suffix="events.tsv"), EVENTS.replace("left", "LEFT", 1))
    eeg(bids, "04", suffix="events.tsv").unlink()
    text(eeg(bids, "05", suffix="events.tsv"), "time\n1\n")
    text(eeg(bids, "06", suffix="events.tsv"), EVENTS.splitlines()[0])
    found = inspect_bids(bids)
    left, right = found.events
    assert (left.value, left.count, len(left.by_person), left.lacking) == ("left", 5, 3, ())
    assert left.spellings == {"Left": 2} and left.unmatched == {"LEFT": 1}
    assert (right.value, right.lacking) == ("right", ("02",))
    lines = section(found, "Events by trial_type")
    assert "not 02" in lines and "'left' is also spelt 'Left' (2); prepare takes them for one value" in lines
    assert "'LEFT' (1) beside 'left' in one file" in lines
    assert "1 recording with no events.tsv: sub-04_task-rest" in lines and "no column 'onset'" in lines
    assert "1 recording whose events.tsv holds no value: sub-06_task-rest" in lines
    (target,) = (target for target in found.targets if target.spec == "events:left,right")
    assert target.skip_unreadable
    assert accepted(found, tmp_path / "out")


def test_numbers_are_one_value_however_they_are_spelt(bids):
    for number in range(1, 7):
        codes = EVENTS.replace("trial_type", "value").replace("left", "1.0" if number == 2 else "1")
        text(eeg(bids, f"{number:02d}", suffix="events.tsv"), codes.replace("right", "2"))
    found = inspect_bids(bids)
    assert [(each.column, each.value, each.count) for each in found.events] == [("value", "1", 12), ("value", "2", 12)]
    assert found.events[0].spellings == {"1.0": 2}
    assert "events:1,2" in [target.spec for target in found.targets]


def test_columns_and_why_they_are_no_targets(bids, tmp_path):
    participants(
        bids,
        "participant_id\tage\tname\tsite\tgroup\tscore@2\tempty",
        "sub-01\t20,5\tA\tX\ta\t1.5\tn/a",
        "sub-02\t21\tB\tX\tb\t2.5\tn/a",
        "sub-03\t22\tC\tX\ta\tn/a\tn/a",
        "sub-04\t23\tD\tX\tb\t3\tn/a",
        "sub-05\t24\tE\tX\tn/a\t4\tn/a",
        "sub-06\t25\tF\tX\ta\t5\tn/a",
    )
    found = inspect_bids(bids)
    kinds = {column.name: column for column in found.columns}
    assert {name: column.kind for name, column in kinds.items()} == {
        "age": NO_TARGET,
        "name": NO_TARGET,
        "site": NO_TARGET,
        "group": CLASSES,
        "score@2": NUMBERS,
        "empty": NO_TARGET,
    }
    assert kinds["group"].classes == {"a": 3, "b": 2} and kinds["group"].missing == ("05",)
    assert kinds["score@2"].values == (1.5, 2.5, 3.0, 4.0, 5.0) and kinds["score@2"].missing == ("03",)
    lines = section(found, "Columns of participants.tsv")
    assert "'20,5' (01)" in lines and "not a target: site: is X for every subject" in lines
    assert "different for every subject" in kinds["name"].problem
    assert "participants:score@2" in accepted(found, tmp_path / "out")


def test_bids_tasks_and_the_challenge(tiny_bids, bids, tmp_path):
    for number in range(1, 7):
        write_edf(eeg(bids, f"{number:02d}", "odd"))
    assert "bids-task:odd,rest" in accepted(inspect_bids(bids), tmp_path / "bids")
    found = inspect_bids(tiny_bids)
    assert [target.spec for target in found.targets[:2]] == ["challenge1", "challenge2"]
    assert "release     SIM (6)" in section(found, "Recordings")
    accepted(found, tmp_path / "challenge")


def test_damaged_tables_are_findings(bids):
    with (bids / "participants.tsv").open("a") as file:
        file.write("sub-01\t30\tM\n")
    text(eeg(bids, "02", suffix="channels.tsv"), "name\ttype\nother\tEEG\n")
    found = inspect_bids(bids)
    assert "subject '01' has two rows" in " ".join(found.problems)
    assert found.accounting.recordings_used == 5 and not found.targets
    assert "none of its names" in section(found, "Left out")
    assert "none before the problems above are solved" in section(found, "Targets that could be asked")


def test_the_same_recording_in_two_formats_is_a_finding(bids):
    shutil.copy(eeg(bids, "01"), eeg(bids, "01").with_suffix(".bdf"))
    with pytest.raises(UserError, match="same recording in another format"):
        inspect_bids(bids)
    found = inspect_bids([bids, other_folder(bids)])
    assert "same recording in another format" in found.problems[0] and len(found.recordings) == 1


def other_folder(bids: Path) -> Path:
    root = bids.with_name("other")
    write_edf(eeg(root, "50"))
    return root


def test_says_why_no_target_can_be_asked(bids):
    found = inspect_bids([bids, other_folder(bids)])
    assert found.targets and len(dict(found.sections())["Folders"]) == 2
    write_edf(eeg(bids.with_name("other"), "50"), channels=("Oz",))
    found = inspect_bids([bids, bids.with_name("other")])
    lines = section(found, "Targets that could be asked")
    assert lines.startswith("none") and "no EEG channel is common to all recordings" in lines
    assert not found.targets and "events:left,right" in found.refused


def test_a_folder_with_nothing_to_read_shows_what_looks_like_recordings(bids, tmp_path):
    root = tmp_path / "packed"
    eeg(root, "01").parent.mkdir(parents=True)
    eeg(root, "01", suffix="eeg.edf.gz").write_bytes(b"packed")
    found = inspect_bids(root)
    assert "a format that raypipe does not read (.edf.gz)" in section(found, "Left out")
    assert not found.targets and found.problems
    for empty in (tmp_path / "nothing", tmp_path):
        with pytest.raises(UserError, match="no such folder" if empty != tmp_path else "no recording|no such"):
            inspect_bids(empty if empty != tmp_path else empty_folder(tmp_path))


def empty_folder(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def test_lines_are_short(bids):
    text(bids / "participants.tsv", "participant_id\t" + "\t".join(f"column{i}" for i in range(40)) + "\n")
    found = inspect_bids(bids)
    commands = {f"  {command}" for command in found.commands}
    assert all(len(line) <= 100 for line in found.lines() if line not in commands)
    assert found.render() == "\n".join(found.lines())


def test_folders_behind_a_uri_are_shown_by_their_uri(bids):
    eeg(bids, "06").write_bytes(b"no header")
    found = inspect_bids(f"file://{bids.as_posix().replace(' ', '%20')}")
    assert found.accounting.recordings_used == 5 and found.events
    assert "file://" in section(found, "Left out") and "raypipe-inspect-" not in found.render()


def test_edf_is_read_without_mne_and_torch(bids):
    code = "import sys; from raypipe.data.inspection import inspect_bids; inspect_bids(sys.argv[1])\n"
    code += "print([name for name in ('mne', 'torch', 'ray') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code, bids], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_columns_of_events_are_suggested_if_they_measure_something(bids, tmp_path):
    columns = "onset\tduration\ttrial_type\tresponse_time\tclock\tsample\n"
    rows = ("1\t0\tleft\t0.41\t1.5\t100\n", "4\t0\tright\tn/a\t4.5\t400\n", "6\t0\tleft\t0.35\t6.5\t600\n")
    for number in range(1, 7):
        last = f"8\t0\tright\t0.{number}2\t8.5\t800\n"
        text(eeg(bids, f"{number:02d}", suffix="events.tsv"), columns + "".join(rows) + last)
    specs = accepted(inspect_bids(bids), tmp_path / "out")
    assert [spec for spec in specs if spec.startswith("events")] == ["events:left,right", "events-column:response_time"]


def test_a_column_is_named_where_two_hold_the_values(bids, tmp_path):
    for number in range(1, 7):
        rows = "1\t0\tleft\tleft\n4\t0\tright\tright\n7\t0\tn/a\tleft\n"
        text(eeg(bids, f"{number:02d}", suffix="events.tsv"), "onset\tduration\ttrial_type\tvalue\n" + rows)
    found = inspect_bids(bids)
    accepted(found, tmp_path / "out")
    commands = [shlex.split(line)[5:] for line in found.commands if "events:left,right" in line]
    assert commands == [
        ["--events-from", column, "--out", f"windows/events-left-right-{column.replace('_', '-')}"]
        for column in ("value", "trial_type")
    ]
