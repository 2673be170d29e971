from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from raypipe.core.errors import UserError
from raypipe.data.bids import UnreadableRecordingError, find_recordings, read_raw, recording_from_file
from raypipe.data.bids_tables import eeg_channels


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


def test_wrong_folders_give_one_line(tmp_path):
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


def test_a_single_file_is_a_recording(bids, tmp_path):
    path = _first(bids).path
    assert recording_from_file(path) == _first(bids)
    plain = tmp_path / "night.bdf"
    shutil.copy(path, plain)
    recording = recording_from_file(plain)
    assert (recording.subject, recording.task, recording.key) == ("night", None, "night")
    with pytest.raises(UserError, match="no such file"):
        recording_from_file(tmp_path / "none.bdf")
    (tmp_path / "x.csv").touch()
    with pytest.raises(UserError, match="not a supported format"):
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
def test_a_file_that_is_no_bdf_is_refused(bids, content):
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


def test_a_link_to_data_that_was_not_fetched_is_named(bids):
    recording = _first(bids)
    recording.path.unlink()
    recording.path.symlink_to("../../.git/annex/objects/x")
    with pytest.raises(UnreadableRecordingError, match="not fetched"):
        read_raw(recording)


def test_the_signal_stays_on_disk_and_equals_that_of_a_fif_copy(bids, tmp_path):
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


def test_brainvision_files_are_read(tmp_path):
    x_TC = np.arange(40, dtype="<f4").reshape(20, 2)
    write_brainvision(tmp_path / "a.vhdr", x_TC)
    recording = recording_from_file(tmp_path / "a.vhdr")
    raw = read_raw(recording)
    assert raw.info["sfreq"] == 100 and eeg_channels(recording, raw) == ["Fz", "Cz"]
    np.testing.assert_allclose(raw.get_data() * 1e6, x_TC.T, rtol=1e-6)
    assert [path.suffix for path in recording.files()] == [".vhdr", ".vmrk", ".eeg"]
