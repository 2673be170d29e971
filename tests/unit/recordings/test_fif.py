from __future__ import annotations

import datetime
import struct

import mne
import numpy as np
import pytest

from raypipe.recordings.fif import FifSignal, companions
from raypipe.recordings.formats import open_signal
from raypipe.recordings.signal import Channel, UnreadableRecordingError


def save(path, x_CT, *, types="eeg", first_samp=0, notes=(), date=None, **options):
    names = ["A", "B", "C"][: len(x_CT)]
    raw = mne.io.RawArray(x_CT, mne.create_info(names, 100.0, types), first_samp=first_samp, verbose="ERROR")
    if date:
        raw.set_meas_date(date)
    if notes:
        onsets, durations, texts = zip(*notes, strict=True)
        raw.set_annotations(mne.Annotations(onsets, durations, texts), verbose="ERROR", emit_warning=False)
    raw.save(path, verbose="ERROR", **options)
    return path


def samples(signal):
    return [(round(span.onset * 100), round((span.onset + span.duration) * 100)) for span in signal.spans]


def test_channels_have_types_and_volts(tmp_path):
    x_CT = np.random.default_rng(0).normal(size=(3, 300)) * 1e-5
    x_CT[1, 7] = np.nan
    signal = FifSignal(save(tmp_path / "a_eeg.fif", x_CT, types=["eeg", "eog", "stim"]))
    assert signal.channels[:2] == (Channel("A", 100.0, "V", "eeg"), Channel("B", 100.0, "V", "eog"))
    assert signal.channels[2].type == "trig" and signal.unit_source == "format" and samples(signal) == [(0, 300)]
    np.testing.assert_allclose(signal.read([1, 0], 0, 5, 90), x_CT[[1, 0], 5:90], rtol=1e-6)


@pytest.mark.parametrize("first_samp", [0, 1234])
@pytest.mark.parametrize("date", [None, datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)])
def test_skips_and_joins_end_a_span(tmp_path, first_samp, date):
    notes = [
        (0.5, 0.2, "BAD_ACQ_SKIP"),
        (1.5, 0.0, "BAD boundary"),
        (1.5, 0.0, "EDGE boundary"),
        (2.0, 0.5, "BAD muscle"),
    ]
    x_CT = np.arange(900.0).reshape(3, 300)
    path = save(tmp_path / "a_eeg.fif", x_CT, first_samp=first_samp, notes=notes, date=date)
    signal = FifSignal(path)
    assert samples(signal) == [(0, 50), (70, 150), (150, 300)]
    np.testing.assert_allclose(signal.read([2], 1, 0, 80)[0], x_CT[2, 70:150], rtol=1e-6)
    with pytest.raises(IndexError):
        signal.read([2], 1, 0, 81)


@pytest.mark.parametrize("naming", ["bids", "neuromag"])
def test_the_files_of_a_split_recording_are_read_as_one(tmp_path, naming):
    x_CT = np.random.default_rng(0).normal(size=(3, 300_000)) * 1e-5
    save(tmp_path / "s-1_eeg.fif", x_CT, split_size="2MB", split_naming=naming, buffer_size_sec=1)
    (tmp_path / "s-1_eeg-x.fif").touch()
    (tmp_path / "s-2_split-02_eeg.fif").touch()
    first = tmp_path / ("s-1_split-01_eeg.fif" if naming == "bids" else "s-1_eeg.fif")
    signal = FifSignal(first)
    assert samples(signal) == [(0, 300_000)]
    np.testing.assert_allclose(signal.read([0], 0, 299_000, 300_000)[0], x_CT[0, 299_000:], rtol=1e-6)
    others = {path.name for path in tmp_path.iterdir()} - {first.name, "s-1_eeg-x.fif", "s-2_split-02_eeg.fif"}
    assert {path.name for path in companions(first)} == others != set()


@pytest.mark.parametrize("damage", ["next", "size"])
def test_tags_that_lead_back_give_one_line(tmp_path, damage):
    path = save(tmp_path / "a_eeg.fif", np.zeros((2, 300)))
    whole = bytearray(path.read_bytes())
    second = 16 + struct.unpack_from(">i", whole, 8)[0]
    if damage == "next":
        struct.pack_into(">i", whole, second + 12, second)
    else:
        struct.pack_into(">ii", whole, second + 8, -10_000, 0)
    path.write_bytes(whole)
    with pytest.raises(UnreadableRecordingError, match=r"a_eeg\.fif: damaged: the tags after byte \d+ lead back"):
        open_signal(path)


def test_a_truncated_file_gives_one_line(tmp_path):
    path = save(tmp_path / "a_eeg.fif", np.zeros((2, 300)))
    whole = path.read_bytes()
    for size in range(400, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(UnreadableRecordingError, match=r"a_eeg\.fif: (truncated|cannot be read)"):
            open_signal(path)
    path.write_bytes(whole[:2000])
    with pytest.raises(UnreadableRecordingError, match=r"a_eeg\.fif: (truncated: it has 2000 bytes|cannot be read)"):
        open_signal(path).read([0], 0, 0, 300)
