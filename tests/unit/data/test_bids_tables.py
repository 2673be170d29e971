from __future__ import annotations

import shutil
from pathlib import Path

import mne
import numpy as np
import pytest

from raypipe.core.errors import UserError
from raypipe.data.bids import Recording, UnreadableRecordingError, find_recordings, read_raw, recording_from_file
from raypipe.data.bids_tables import eeg_channels, read_events, read_participants


@pytest.fixture
def recording(tiny_bids: Path, tmp_path: Path) -> Recording:
    shutil.copytree(tiny_bids / "sub-SIM0000", tmp_path / "sub-SIM0000")
    return find_recordings(tmp_path)[0]


def test_channel_types_come_from_the_sidecar(recording):
    sidecar = recording.sidecar("channels.tsv")
    text = sidecar.read_text()
    sidecar.write_text(text.replace("E2\tEEG", "E2\tEOG").replace("E3\tEEG", "E3\tn/a").replace("E4\tEEG", "E4\tMISC"))
    assert eeg_channels(recording, read_raw(recording)) == ["E1", "E3", "E5", "E6", "E7", "Cz"]
    sidecar.write_text(text.replace("EEG", "MISC"))
    with pytest.raises(UnreadableRecordingError, match=r"no EEG channel \(types: misc\)"):
        eeg_channels(recording, read_raw(recording))
    sidecar.unlink()
    assert len(eeg_channels(recording, read_raw(recording))) == 8


def test_without_a_sidecar_channel_types_come_from_mne(tmp_path):
    info = mne.create_info(["A", "B", "S"], 100.0, ["eeg", "eog", "stim"])
    mne.io.RawArray(np.zeros((3, 200)), info, verbose="ERROR").save(tmp_path / "x_eeg.fif", verbose="ERROR")
    recording = recording_from_file(tmp_path / "x_eeg.fif")
    assert eeg_channels(recording, read_raw(recording)) == ["A"]


def test_events_are_sorted_and_typed(recording):
    recording.sidecar("events.tsv").write_text(
        "onset\tduration\tvalue\tcode\n2.5\tn/a\tb\t1\nn/a\t0\tlost\t2\n0.5\t1\t9999\t3\n2.5\t0\tc\t4\n3\t0\tn/a\t5\n"
    )
    events = read_events(recording)
    assert events["value"].tolist() == ["9999", "b", "c", "n/a"]
    assert events["onset"].tolist() == [0.5, 2.5, 2.5, 3.0]
    assert events["duration"].isna().tolist() == [False, True, False, False]
    assert events["code"].tolist() == [3, 1, 4, 5]


def test_trial_type_is_used_if_there_is_no_value(recording):
    recording.sidecar("events.tsv").write_text("onset\ttrial_type\n1\tgo\n")
    assert read_events(recording)["value"].tolist() == ["go"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("onset\tduration\n1\t2\n", "no column 'value'"),
        ("onst\tvalue\n1\t2\n", "no column 'onset'; did you mean 'onst'"),
        ("onset\tvalue\nsoon\tx\n", "column 'onset' is not a number"),
        ("", "not a table"),
    ],
)
def test_damaged_events_give_one_line(recording, text, message):
    recording.sidecar("events.tsv").write_text(text)
    with pytest.raises(UnreadableRecordingError, match=message):
        read_events(recording)


def test_missing_events_give_one_line(recording):
    recording.sidecar("events.tsv").unlink()
    with pytest.raises(UnreadableRecordingError, match=r"events\.tsv: no such file"):
        read_events(recording)


def test_participants_are_indexed_by_subject_and_checked(tmp_path):
    path = tmp_path / "participants.tsv"
    path.write_bytes("\ufeffparticipant_id\tage\tsex\nsub-01\t7.5\tM\n02\tn/a\tNA\n".encode())
    table = read_participants(tmp_path)
    assert table.index.tolist() == ["01", "02"]
    assert table.loc["01", "age"] == 7.5 and np.isnan(table.loc["02", "age"])
    assert table.loc["02", "sex"] == "NA"
    path.write_text("participant_id\tage\nsub-01\t7\n01\t8\n")
    with pytest.raises(UserError, match="subject '01' has two rows"):
        read_participants(tmp_path)
    path.write_text("participant\tage\nsub-01\t7\n")
    with pytest.raises(UserError, match="no column 'participant_id'; did you mean 'participant'"):
        read_participants(tmp_path)
    path.write_bytes(b"participant_id\tname\nsub-01\t\xff\xfe\n")
    with pytest.raises(UserError, match="not a table"):
        read_participants(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="no such file"):
        read_participants(tmp_path)
