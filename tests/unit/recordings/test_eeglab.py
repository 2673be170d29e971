from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from raypipe.recordings.eeglab import EeglabSignal, companions
from raypipe.recordings.signal import Channel, Span, UnreadableRecordingError
from tests.support.eeg_files import write_eeglab

X_CT = np.arange(40, dtype="<f4").reshape(2, 20)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("flat", [False, True])
def test_the_signal_is_beside_or_inside(tmp_path, inside, flat):
    path = write_eeglab(tmp_path / "a.set", X_CT, inside=inside, flat=flat, types=["EEG", " EOG"], rate=128.0)
    signal = EeglabSignal(path)
    assert signal.channels == (Channel("Fz", 128.0, "uV", "eeg"), Channel("Cz", 128.0, "uV", "eog"))
    assert signal.spans == (Span(0.0, 20 / 128),)
    np.testing.assert_array_equal(signal.read([1, 0], 0, 3, 9), X_CT[[1, 0], 3:9])
    assert companions(path) == ([] if inside else [tmp_path / "a.fdt"])


def test_the_data_file_may_have_been_renamed_with_its_header(tmp_path):
    path = write_eeglab(tmp_path / "a.set", X_CT).rename(tmp_path / "b.set")
    assert companions(path) == [tmp_path / "a.fdt"]
    np.testing.assert_array_equal(EeglabSignal(path).read([0], 0, 0, 20)[0], X_CT[0])
    (tmp_path / "a.fdt").rename(tmp_path / "b.fdt")
    np.testing.assert_array_equal(EeglabSignal(path).read([0], 0, 0, 20)[0], X_CT[0])
    assert companions(path) == [tmp_path / "b.fdt"]
    (tmp_path / "a.fdt").write_bytes((tmp_path / "b.fdt").read_bytes())
    assert companions(path) == [tmp_path / "a.fdt"]  # the one that it names, not the one of its name


def test_the_data_file_may_differ_in_case(tmp_path):
    path = write_eeglab(tmp_path / "a.set", X_CT)
    (tmp_path / "a.fdt").rename(tmp_path / "A.FDT")
    assert companions(path) == [tmp_path / "A.FDT"]
    np.testing.assert_array_equal(EeglabSignal(path).read([0], 0, 0, 20)[0], X_CT[0])


def test_odd_events_do_no_harm_and_boundaries_end_a_span(tmp_path):
    events = [
        (5.5, "boundary"),
        (math.inf, "boundary"),
        (math.nan, "x"),
        (3.0, 7.0),
        (0.5, "boundary"),
        (11.0, "boundary"),
    ]
    signal = EeglabSignal(write_eeglab(tmp_path / "a.set", X_CT, events=events))
    assert [(round(s.onset * 100), round(s.duration * 100)) for s in signal.spans] == [(0, 5), (5, 5), (10, 10)]
    np.testing.assert_array_equal(signal.read([0], 2, 0, 10)[0], X_CT[0, 10:])
    with pytest.raises(IndexError):
        signal.read([0], 1, 0, 6)
    (one,) = EeglabSignal(write_eeglab(tmp_path / "b.set", X_CT, events=[(2.0, -99.0), (4.0, "go")])).spans[1:]
    assert round(one.onset * 100) == 1


def test_names_that_are_repeated_or_missing(tmp_path):
    same = EeglabSignal(write_eeglab(tmp_path / "a.set", X_CT, names=["A", "A"]))
    assert [channel.name for channel in same.channels] == ["A", "A"]
    none = EeglabSignal(write_eeglab(tmp_path / "b.set", X_CT, names=[]))
    assert [channel.name for channel in none.channels] == ["EEG 000", "EEG 001"]
    one = EeglabSignal(
        write_eeglab(tmp_path / "c.set", X_CT[:1], names=["Fz"], inside=True, events=[(2.5, "boundary")])
    )
    assert [channel.name for channel in one.channels] == ["Fz"] and len(one.spans) == 2
    np.testing.assert_array_equal(one.read([0], 0, 0, 2), X_CT[:1, :2])


def test_data_sets_that_are_refused(tmp_path):
    from scipy.io import savemat

    with pytest.raises(UnreadableRecordingError, match="holds epochs"):
        EeglabSignal(write_eeglab(tmp_path / "a.set", X_CT, trials=4))
    path = write_eeglab(tmp_path / "b.set", X_CT)
    path.with_suffix(".fdt").write_bytes(bytes(100))
    with pytest.raises(UnreadableRecordingError, match=r"b\.fdt: has 100 bytes, but its header announces 160"):
        EeglabSignal(path)
    path.with_suffix(".fdt").unlink()
    with pytest.raises(UnreadableRecordingError, match=r"its data file 'b\.fdt' is missing"):
        EeglabSignal(path)
    savemat(tmp_path / "c.set", {"other": 1.0}, appendmat=False)
    with pytest.raises(UnreadableRecordingError, match="not an EEGLAB data set"):
        EeglabSignal(tmp_path / "c.set")
    (tmp_path / "d.set").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(UnreadableRecordingError, match=r"MATLAB 7\.3"):
        EeglabSignal(tmp_path / "d.set")


def test_nothing_is_warned_about(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EeglabSignal(write_eeglab(tmp_path / "a.set", X_CT, events=[(math.nan, "x")]))


def test_matlab_7_3_is_known_by_its_text(tmp_path):
    text = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, HDF5 schema 1.00 ."
    (tmp_path / "a.set").write_bytes(text.ljust(512) + b"\x89HDF\r\n\x1a\n")
    with pytest.raises(UnreadableRecordingError, match=r"a\.set: saved as MATLAB 7\.3 \(HDF5\); save it as MATLAB 7"):
        EeglabSignal(tmp_path / "a.set")


def test_an_empty_label_is_no_name(tmp_path):
    signal = EeglabSignal(write_eeglab(tmp_path / "a.set", X_CT, names=["", "Cz"]))
    assert [channel.name for channel in signal.channels] == ["EEG 000", "Cz"]


@pytest.mark.parametrize("data", [X_CT.T, X_CT + 1j, X_CT[:, :10], np.zeros(0), X_CT.reshape(2, 10, 2)])
def test_a_signal_of_another_shape_or_type_is_refused(tmp_path, data):
    from scipy.io import savemat

    fields = {"nbchan": 2.0, "pnts": 20.0, "srate": 100.0, "trials": 1.0, "data": data}
    savemat(tmp_path / "a.set", {"EEG": fields}, appendmat=False)
    with pytest.raises(UnreadableRecordingError, match=r"a\.set: its signal is .*, its header announces \(2, 20\)$"):
        EeglabSignal(tmp_path / "a.set")


def test_several_data_sets_in_a_file_are_refused(tmp_path):
    from scipy.io import savemat

    savemat(tmp_path / "a.set", {"EEG": np.zeros(2, dtype=[("nbchan", object)])}, appendmat=False)
    with pytest.raises(UnreadableRecordingError, match="EEG is not one structure"):
        EeglabSignal(tmp_path / "a.set")


def test_a_copied_data_set_does_not_read_the_data_of_the_other_one(tmp_path):
    first = write_eeglab(tmp_path / "run-1.set", X_CT)
    write_eeglab(tmp_path / "run-2.set", X_CT + 1)
    (tmp_path / "run-2.set").write_bytes(first.read_bytes())
    with pytest.raises(UnreadableRecordingError, match=r"names run-1\.fdt, the data of run-1\.set"):
        EeglabSignal(tmp_path / "run-2.set")
