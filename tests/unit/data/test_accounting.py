"""Everything found is used or left out, and the sums add up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.core.errors import UserError
from raypipe.data.accounting import Accounting, Ledger, check_sums
from raypipe.data.inspection import inspect_bids
from raypipe.data.prepare import prepare
from raypipe.data.window_store import WindowStore
from tests.support.eeg_files import write_edf

FAULTS = (
    "none", "truncated", "empty", "gzip", "no suffix", "other label", "no events", "other events", "no target",
    "no row", "short", "no recording", "scale", "other task",
)  # fmt: skip


def write_person(root: Path, number: int, fault: str) -> str:
    """Write a person's recording with a fault; return its row of participants.tsv."""
    label = f"{number:02d}"
    folder = root / f"sub-{label}" / "eeg"
    folder.mkdir(parents=True)
    task = "eyes" if fault == "other task" else "rest"
    path = folder / f"sub-{label}_task-{task}_eeg.edf"
    digits = np.random.default_rng(number).normal(0, 200, (2, 100 if fault == "short" else 1000)).astype(int)
    units = ["mV"] * 2 if fault == "scale" else ["uV"] * 2
    if fault != "no recording":
        write_edf(path, ["Fp1", "C3"], digits, per_record=[100, 100], units=units)
    if fault in ("truncated", "empty"):
        path.write_bytes(path.read_bytes()[: 3000 if fault == "truncated" else 0])
    moved = {"gzip": ".edf.gz", "no suffix": None, "other label": None}
    if fault in moved:
        path.rename(
            path.with_suffix(".edf.gz") if fault == "gzip"
            else path.with_name(path.name.replace("_eeg", "")) if fault == "no suffix"
            else path.with_name(path.name.replace(f"sub-{label}", "sub-99"))
        )  # fmt: skip
    value = {"other events": "blink", "no events": "n/a"}.get(fault, "go")
    events = "".join(
        f"{onset}\t0\t{value if n % 2 else 'stop' if value == 'go' else value}\n" for n, onset in enumerate((1, 4, 7))
    )
    (folder / f"sub-{label}_task-{task}_events.tsv").write_text("onset\tduration\ttrial_type\n" + events)
    return "" if fault == "no row" else f"sub-{label}\t{'n/a' if fault == 'no target' else 20 + number}\n"


@settings(max_examples=25)
@given(
    faults=st.lists(st.sampled_from(FAULTS), min_size=1, max_size=6),
    target=st.sampled_from(["participants:age", "events:go,stop"]),
    bids_task=st.sampled_from([(), "rest", ("rest",)]),
)
def test_what_is_found_is_used_or_left_out(tmp_path_factory, faults, target, bids_task):
    root = tmp_path_factory.mktemp("bids")
    people = ["none", "none", "none", *faults]
    rows = [write_person(root, number, fault) for number, fault in enumerate(people, start=1)]
    (root / "participants.tsv").write_text("participant_id\tage\n" + "".join(rows) + "sub-absent\t40\n")
    store = prepare(root, target, root / "out", bids_task=bids_task, window=1, jobs=1, skip_unreadable=True)
    account = store.manifest.accounting
    check_sums(account)
    assert account.people_found == len(people) + 1
    assert account.recordings_found == len(people) - faults.count("no recording")
    assert (
        account.people_used == len(set(store.subjects)) == account.recordings_used == len(set(store.table["recording"]))
    )
    named = {person for names in account.people_left_out.values() for person in names}
    assert named | set(store.subjects) == {f"{n:02d}" for n in range(1, len(people) + 1)} | {"absent"}
    assert not named & set(store.subjects)
    again = prepare(root, target, root / "out", bids_task=bids_task, window=1, jobs=1, skip_unreadable=True)
    assert again.manifest.accounting == account


def test_a_store_is_not_up_to_date_when_a_file_that_is_left_out_appears(tmp_path):
    rows = [write_person(tmp_path / "bids", number, "none") for number in (1, 2, 3)]
    (tmp_path / "bids" / "participants.tsv").write_text("participant_id\tage\n" + "".join(rows))
    first = prepare(tmp_path / "bids", "participants:age", tmp_path / "out", window=1, jobs=1)
    assert first.manifest.accounting.recordings_left_out == ()
    write_person(tmp_path / "bids", 4, "gzip")
    second = prepare(tmp_path / "bids", "participants:age", tmp_path / "out", window=1, jobs=1)
    assert second.redone == 0 and second.data_hash == first.data_hash
    (left_out,) = WindowStore(tmp_path / "out").manifest.accounting.recordings_left_out
    assert left_out.name.endswith("sub-04_task-rest_eeg.edf.gz") and left_out.person == "04"


def test_a_recording_of_another_scale_is_refused_or_left_out_and_named(tmp_path):
    rows = [write_person(tmp_path / "bids", number, "scale" if number == 2 else "none") for number in (1, 2, 3)]
    (tmp_path / "bids" / "participants.tsv").write_text("participant_id\tage\n" + "".join(rows))
    with pytest.raises(
        UserError, match=r"sub-02.*spread over .*e\+04 uV, those of 2 other recordings over .*check the units"
    ):
        prepare(tmp_path / "bids", "participants:age", tmp_path / "out", window=1, jobs=1)
    (tmp_path / "bids" / "task-rest_channels.tsv").write_text("name\ttype\tunits\nFp1\tEEG\tmV\nC3\tEEG\tmV\n")
    with pytest.raises(UserError, match="is in uV in the file, but in mV"):
        prepare(tmp_path / "bids", "participants:age", tmp_path / "out2", window=1, jobs=1)
    (tmp_path / "bids" / "task-rest_channels.tsv").rename(
        tmp_path / "bids" / "sub-02" / "eeg" / "sub-02_task-rest_channels.tsv"
    )
    store = prepare(tmp_path / "bids", "participants:age", tmp_path / "out3", window=1, jobs=1)
    assert any("sub-02" in note and "spread over" in note for note in store.manifest.accounting.notes)


def test_an_account_as_text():
    ledger = Ledger()
    for person in ("01", "02", "03"):
        ledger.find_person(person, "no recording in its folder")
        ledger.find(f"sub-{person}_task-a", person) if person != "03" else None
    ledger.leave_out("sub-02_task-a", "unreadable", "a line")
    ledger.leave_parts_out("01", {"windows with missing samples": 2, "events without an onset": 0})
    ledger.leave_channels_out({"EOG": "eog"})
    assert ledger.close().lines() == [
        "recordings: 2 found, 1 used, 1 left out: unreadable: 1 (sub-02_task-a)",
        "people: 3 found, 1 used, 2 left out: unreadable: 1 (02); no recording in its folder: 1 (03)",
        "left out: 2 windows with missing samples (by person: 01 2)",
        "channels left out (eog): EOG",
    ]
    broken = ledger.close().model_dump() | {"recordings_found": 3}
    with pytest.raises(RuntimeError, match="3 recordings found, but 1 used and 1 left out"):
        check_sums(Accounting.model_validate(broken))


def test_notes_about_files_are_in_the_account_and_in_inspect(tmp_path):
    rows = [write_person(tmp_path / "bids", number, "none") for number in (1, 2, 3)]
    (tmp_path / "bids" / "participants.tsv").write_text("participant_id\tage\n" + "".join(rows))
    path = tmp_path / "bids" / "sub-02" / "eeg" / "sub-02_task-rest_eeg.edf"
    path.write_bytes(path.read_bytes() + bytes(2 * 2 * 100 * 2))
    store = prepare(tmp_path / "bids", "participants:age", tmp_path / "out", window=1, jobs=1)
    wanted = "sub-02_task-rest_eeg.edf: 2 records beyond the 10 that its header announces are not read."
    assert wanted in store.manifest.accounting.notes
    assert wanted in inspect_bids(tmp_path / "bids", jobs=1).accounting.notes
