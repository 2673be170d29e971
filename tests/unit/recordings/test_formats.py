from __future__ import annotations

import gzip
import os

import mne
import numpy as np
import pytest

from raypipe.recordings.edf import EdfSignal
from raypipe.recordings.formats import companions, open_signal
from raypipe.recordings.signal import UnreadableRecordingError
from raypipe.recordings.tables import read_tsv
from tests.support.eeg_files import write_brainvision, write_edf, write_eeglab


@pytest.mark.parametrize("name", ["a_eeg.edf", "a_eeg.bdf", "a_eeg.set", "a_eeg.EDF"])
@pytest.mark.parametrize("bdf", [False, True])
def test_the_first_bytes_say_what_a_file_is(tmp_path, name, bdf):
    digits = np.arange(-10, 10)
    path = write_edf(tmp_path / name, ["A"], [digits], per_record=[10], bdf=bdf)
    signal = open_signal(path)
    assert isinstance(signal, EdfSignal)
    np.testing.assert_allclose(signal.read([0], 0, 0, 20)[0], digits * (1 if bdf else 0.1), atol=1e-5)


def test_the_other_formats_are_found_under_any_name(tmp_path):
    x_TC = np.ones((20, 2), "<f4")
    write_brainvision(tmp_path / "b.vhdr", x_TC).rename(tmp_path / "b.edf")
    write_eeglab(tmp_path / "c.set", x_TC.T).rename(tmp_path / "c.bdf")
    raw = mne.io.RawArray(np.ones((1, 50)), mne.create_info(["A"], 10.0, "eeg"), verbose="ERROR")
    raw.save(tmp_path / "d_eeg.fif", verbose="ERROR")
    (tmp_path / "d_eeg.fif").rename(tmp_path / "d.set")
    assert companions(tmp_path / "b.edf") == [tmp_path / "b.vmrk", tmp_path / "b.eeg"]
    assert companions(tmp_path / "c.bdf") == [tmp_path / "c.fdt"]
    kinds = [type(open_signal(tmp_path / name)).__name__ for name in ("b.edf", "c.bdf", "d.set")]
    assert kinds == ["BrainVisionSignal", "EeglabSignal", "FifSignal"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a supported EEG file .it is empty"),
        (bytes(5000), "it begins with zeros only"),
        (gzip.compress(b"0       ", mtime=0), "it is compressed with gzip; unpack it"),
        (b"version https://git-lfs.github.com/spec/v1\n" * 20, "a pointer to data that was not fetched"),
        (b"nonsense\nand more", r"it begins with 'nonsense\\nand mor'"),
        (b"\x89PNG\r\n", "it begins with"),
        (b"MATLAB 5.0 MAT-file" + b"\0" * 600, "cannot be read"),
        (b"\x89HDF\r\n\x1a\n" + bytes(600), r"MATLAB 7\.3"),
        (b"Brain Vision Data Exchange Header File Version 1.0\n", "its header has no valid entry numberofchannels"),
        (b"\0\0\0\x64\0\0\0\x1f" + bytes(600), "lacks its last tag"),
        (b"0       ", "not an EDF file"),
        (b"\xffBIOSEMI" + b"\xff" * 600, "not a BDF file"),
    ],
)
def test_what_is_no_recording_gives_one_line(tmp_path, content, message):
    path = tmp_path / "sub-1_eeg.edf"
    path.write_bytes(content)
    with pytest.raises(UnreadableRecordingError, match=message) as caught:
        open_signal(path)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(path))
    assert companions(path) == []


def test_missing_files_and_links_without_a_target(tmp_path):
    with pytest.raises(UnreadableRecordingError, match="no such file"):
        open_signal(tmp_path / "a.edf")
    (tmp_path / "b.edf").symlink_to("../../.git/annex/objects/x")
    with pytest.raises(UnreadableRecordingError, match="a link to data that was not fetched"):
        open_signal(tmp_path / "b.edf")


@pytest.mark.parametrize("suffix", [".vhdr", ".set", ".fif"])
def test_companions_of_a_damaged_header_are_none(tmp_path, suffix):
    (tmp_path / f"a{suffix}").write_bytes(b"nonsense")
    assert companions(tmp_path / f"a{suffix}") == []


@pytest.mark.timeout(60)
def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a_eeg.edf")
    assert companions(tmp_path / "a_eeg.edf") == []
    for read in (open_signal, read_tsv):
        with pytest.raises(UnreadableRecordingError, match=r"a_eeg\.edf: not a regular file"):
            read(tmp_path / "a_eeg.edf")
