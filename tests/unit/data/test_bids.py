from __future__ import annotations

import shutil
from pathlib import Path

import mne
import numpy as np
import pytest

from raypipe.core.errors import UserError
from raypipe.data.bids import UnreadableRecordingError, find_recordings, read_raw, recording_from_file
from raypipe.data.bids_tables import eeg_channels, read_events, read_participants


@pytest.fixture
def bids(tiny_bids: Path, tmp_path: Path) -> Path:
    for name in ("sub-SIM0000", "sub-SIM0001"):
        shutil.copytree(tiny_bids / name, tmp_path / name)
    return tmp_path


def _first(bids: Path):
    return find_recordings(bids)[0]


def _edit(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def _touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_finds_every_format_with_and_without_sessions(tmp_path):
    _touch(
        tmp_path,
        "sub-02/eeg/sub-02_task-rest_eeg.edf",
        "sub-01/ses-a/eeg/sub-01_ses-a_task-rest_run-2_eeg.set",
        "sub-01/ses-a/eeg/sub-01_ses-a_task-rest_run-2_eeg.fdt",
        "sub-01/ses-b/eeg/sub-01_ses-b_task-x_eeg.vhdr",
        "sub-03/eeg/sub-03_task-rest_split-01_eeg.fif",
        "sub-03/eeg/sub-03_task-rest_split-02_eeg.fif",
        "sub-04/eeg/sub-04_task-rest_eeg.BDF",
        "sub-04/eeg/sub-04_task-rest_channels.tsv",
        "derivatives/sub-05/eeg/sub-05_task-rest_eeg.edf",
    )
    found = find_recordings(tmp_path)
    assert [r.key for r in found] == [
        "sub-01_ses-a_task-rest_run-2",
        "sub-01_ses-b_task-x",
        "sub-02_task-rest",
        "sub-03_task-rest_split-01",
        "sub-04_task-rest",
    ]
    first = found[0]
    assert (first.subject, first.session, first.task, first.run) == ("01", "a", "rest", "2")
    assert first.root == tmp_path
    assert found[2].session is None and found[2].run is None


def test_says_what_folder_is_wrong(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        find_recordings(tmp_path / "none")
    with pytest.raises(UserError, match=r"no recording there; raypipe looks for sub-\*"):
        find_recordings(tmp_path)
    _touch(tmp_path, "file")
    with pytest.raises(UserError, match="a file, not a BIDS folder"):
        find_recordings(tmp_path / "file")


def test_one_recording_in_two_formats_is_refused(tmp_path):
    _touch(tmp_path, "sub-1/eeg/sub-1_task-a_eeg.edf", "sub-1/eeg/sub-1_task-a_eeg.bdf")
    with pytest.raises(UserError, match=r"sub-1_task-a_eeg\.bdf is the same recording"):
        find_recordings(tmp_path)


def test_a_single_file(bids, tmp_path):
    path = _first(bids).path
    assert recording_from_file(path) == _first(bids)
    plain = tmp_path / "night.bdf"
    shutil.copy(path, plain)
    recording = recording_from_file(plain)
    assert (recording.subject, recording.task, recording.key) == ("night", None, "night")
    with pytest.raises(UserError, match="no such file"):
        recording_from_file(tmp_path / "none.bdf")
    (tmp_path / "x.csv").touch()
    with pytest.raises(UserError, match="not a format that is read"):
        recording_from_file(tmp_path / "x.csv")


def test_a_truncated_file_is_named_with_its_sizes(bids):
    path = _first(bids).path
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.truncate(size - 100)
    with pytest.raises(
        UnreadableRecordingError, match=rf"{path.name}: truncated: .* {size} bytes, the file has {size - 100}$"
    ):
        read_raw(_first(bids))


def test_an_interrupted_recording_of_unknown_length_is_read(bids):
    recording = _first(bids)
    whole = read_raw(recording).n_times
    with open(recording.path, "r+b") as file:
        file.seek(236)
        file.write(b"-1      ")
        file.truncate(recording.path.stat().st_size - 3 * 8 * 100)  # a record less
    assert read_raw(recording).n_times == whole - 100


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n" * 20])
def test_not_a_bdf_file(bids, content):
    _first(bids).path.write_bytes(content)
    with pytest.raises(UnreadableRecordingError, match="not a BDF file"):
        read_raw(_first(bids))


def test_other_unreadable_files_give_one_line(tmp_path):
    for extension in ("set", "vhdr", "fif"):
        path = tmp_path / f"a.{extension}"
        path.write_bytes(b"nonsense\nand more")
        with pytest.raises(UnreadableRecordingError, match=rf"a\.{extension}: cannot be read") as caught:
            read_raw(recording_from_file(path))
        assert "\n" not in str(caught.value)


def test_a_link_to_data_that_was_not_fetched(bids):
    recording = _first(bids)
    recording.path.unlink()
    recording.path.symlink_to("../../.git/annex/objects/x")
    with pytest.raises(UnreadableRecordingError, match="not fetched"):
        read_raw(recording)


def test_raw_stays_on_disk_and_fif_agrees(bids, tmp_path):
    recording = _first(bids)
    raw = read_raw(recording)
    assert not raw.preload
    raw.load_data(verbose="ERROR").save(tmp_path / "a_eeg.fif", verbose="ERROR")
    again = read_raw(recording_from_file(tmp_path / "a_eeg.fif"))
    assert not again.preload
    np.testing.assert_allclose(again.get_data(), raw.get_data(), atol=1e-12, rtol=1e-6)


def write_brainvision(path, x_TC) -> None:
    """Two channels, Fz and Cz, at 100 Hz in microvolts."""
    name = path.stem
    path.with_suffix(".eeg").write_bytes(x_TC.tobytes())
    path.with_suffix(".vmrk").write_text("Brain Vision Data Exchange Marker File, Version 1.0\n[Marker Infos]\n")
    path.write_text(
        f"Brain Vision Data Exchange Header File Version 1.0\n[Common Infos]\nDataFile={name}.eeg\n"
        f"MarkerFile={name}.vmrk\n"
        "DataFormat=BINARY\nDataOrientation=MULTIPLEXED\nNumberOfChannels=2\nSamplingInterval=10000\n"
        "[Binary Infos]\nBinaryFormat=IEEE_FLOAT_32\n[Channel Infos]\nCh1=Fz,,1,\u00b5V\nCh2=Cz,,1,\u00b5V\n",
        encoding="utf-8",
    )


def test_brainvision(tmp_path):
    x_TC = np.arange(40, dtype="<f4").reshape(20, 2)
    write_brainvision(tmp_path / "a.vhdr", x_TC)
    recording = recording_from_file(tmp_path / "a.vhdr")
    raw = read_raw(recording)
    assert raw.info["sfreq"] == 100 and eeg_channels(recording, raw) == ["Fz", "Cz"]
    np.testing.assert_allclose(raw.get_data() * 1e6, x_TC.T, rtol=1e-6)
    assert [path.suffix for path in recording.files()] == [".vhdr", ".vmrk", ".eeg"]


def test_channel_types_come_from_the_sidecar(bids):
    recording = _first(bids)
    sidecar = recording.sidecar("channels.tsv")
    text = sidecar.read_text()
    sidecar.write_text(text.replace("E2\tEEG", "E2\tEOG").replace("E3\tEEG", "E3\tn/a").replace("E4\tEEG", "E4\tMISC"))
    assert eeg_channels(recording, read_raw(recording)) == ["E1", "E3", "E5", "E6", "E7", "Cz"]
    sidecar.write_text(text.replace("EEG", "MISC"))
    with pytest.raises(UnreadableRecordingError, match=r"no EEG channel \(types: misc\)"):
        eeg_channels(recording, read_raw(recording))
    sidecar.unlink()
    assert len(eeg_channels(recording, read_raw(recording))) == 8


def test_channel_types_without_sidecar_are_mnes(tmp_path):
    info = mne.create_info(["A", "B", "S"], 100.0, ["eeg", "eog", "stim"])
    mne.io.RawArray(np.zeros((3, 200)), info, verbose="ERROR").save(tmp_path / "x_eeg.fif", verbose="ERROR")
    recording = recording_from_file(tmp_path / "x_eeg.fif")
    assert eeg_channels(recording, read_raw(recording)) == ["A"]


def test_events_are_sorted_and_typed(bids):
    recording = _first(bids)
    recording.sidecar("events.tsv").write_text(
        "onset\tduration\tvalue\tcode\n2.5\tn/a\tb\t1\nn/a\t0\tlost\t2\n0.5\t1\t9999\t3\n2.5\t0\tc\t4\n3\t0\tn/a\t5\n"
    )
    events = read_events(recording)
    assert events["value"].tolist() == ["9999", "b", "c", "n/a"]
    assert events["onset"].tolist() == [0.5, 2.5, 2.5, 3.0]
    assert events["duration"].isna().tolist() == [False, True, False, False]
    assert events["code"].tolist() == [3, 1, 4, 5]


def test_trial_type_stands_in_for_value(bids):
    recording = _first(bids)
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
def test_damaged_events(bids, text, message):
    recording = _first(bids)
    recording.sidecar("events.tsv").write_text(text)
    with pytest.raises(UnreadableRecordingError, match=message):
        read_events(recording)


def test_missing_events(bids):
    recording = _first(bids)
    recording.sidecar("events.tsv").unlink()
    with pytest.raises(UnreadableRecordingError, match=r"events\.tsv: no such file"):
        read_events(recording)


def test_participants(tmp_path):
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
