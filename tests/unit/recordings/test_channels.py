from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raypipe.recordings.channels import NOT_LISTED, EegChannels, eeg_channels, find_name
from raypipe.recordings.recording import Recording
from raypipe.recordings.signal import Channel, Signal, Span, UnreadableRecordingError


class FakeSignal(Signal):
    """Channels without samples."""

    def __init__(self, *channels: Channel, unit_source="file") -> None:
        self.channels, self.unit_source = channels, unit_source

    @property
    def spans(self):
        return (Span(0.0, 1.0),)

    def read(self, picks, span, begin, stop):
        return np.zeros((len(picks), stop - begin))


def labelled(*names: str, unit: str = "uV") -> FakeSignal:
    return FakeSignal(*(Channel(name, 100.0, unit) for name in names))


def recording_at(folder: Path, table: str | None = None) -> Recording:
    recording = Recording(folder / "sub-1_task-a_eeg.edf", folder, "1")
    if table is not None:
        recording.sidecar("channels.tsv").write_text(table)
    return recording


def rows(*names: str, types: str = "EEG", units: str = "uV") -> str:
    return "name\ttype\tunits\n" + "".join(f"{name}\t{types}\t{units}\n" for name in names)


N = ("Fp1", "Fp2", "C3", "EOG")
TABLE = rows("Fp1", "Fp2", "C3") + "EOG\tEOG\tuV\n"


@pytest.mark.parametrize(
    ("labels", "table"),
    [
        (N, TABLE),
        (("EEG Fp1-Ref", "EEG Fp2-Ref", "EEG C3-Ref", "LOC-A2"), TABLE),
        (("FP1", "FP2", "C3", "Eog"), TABLE),
        (("Fp1.", "Fp2.", "C3..", "EOG"), TABLE),
        (N, TABLE.replace("\tEOG", " \tEOG")),
        (N, TABLE.replace("Fp1\tEEG", "Fp1\tEEG ")),
        (N, TABLE.replace("name\ttype", "Name\tType")),
        (N, TABLE.replace("name\t", " name \t")),
        (N, TABLE.replace("\tEEG", "\teeg")),
        (("Fp1", "Fp2", "C3", "X1"), TABLE.replace("EOG\tEOG", "Oculo\tVEOG")),
        (("EOG", "C3", "Fp2", "Fp1"), TABLE),
        (N, rows("Fp1", "Fp2", "C3")),
        (("Fp1", "Fp2", "C3", "Trigger2"), rows("Fp1", "Fp2", "C3")),
        (("Fp1", "Fp2", "C3", "unknown"), rows("Fp1", "Fp2", "C3")),
        (("Fp1-Ref", "Fp2-Ref", "C3-Ref", "EOG-Ref"), TABLE),
        (("C3", "Fp1", "Fp2", "ECG", "ECG"), rows("C3", "Fp1", "Fp2") + "ECG\tECG\tuV\nECG\tECG\tuV\n"),
        (("C3", "Fp1", "Fp2", "ECG", "ECG"), rows("C3", "Fp1", "Fp2") + "ECG-0\tECG\tuV\nECG-1\tECG\tuV\n"),
        (("C3", "Fp1", "Fp2", "ECG", "ECG"), rows("C3", "Fp1", "Fp2") + "ECG\tECG\tuV\n"),
        (("C3", "C3", "Fp1"), rows("C3", "C3", "Fp1")),
    ],
)
def test_three_eeg_channels_are_found(tmp_path, labels, table):
    found = eeg_channels(recording_at(tmp_path, table), labelled(*labels))
    assert len(found.names) == 3 == len(set(found.names))
    assert len(found.left_out) == len(set(labels)) - len({labels[place] for place in found.picks})


def test_names_are_those_of_the_table_and_rates_those_of_the_file(tmp_path):
    signal = FakeSignal(
        Channel("EEG FP1-Ref", 100.0, "uV"), Channel("ECG", 400.0, "mV"), Channel("EEG C3", 200.0, "nV")
    )
    table = "name\ttype\tunits\nFp1\tEEG\tn/a\nECG\tECG\tn/a\nC3\tEEG\tnV\n"
    found = eeg_channels(recording_at(tmp_path, table), signal)
    assert found == EegChannels(("Fp1", "C3"), (0, 2), (100.0, 200.0), (1e-6, 1e-9), {"ECG": "ecg"})


@pytest.mark.parametrize("head", ["name\ttype\tunits\tstatus", "name\ttype\tunits\t Status "])
def test_bad_channels_are_those_that_the_table_marks(tmp_path, head):
    table = f"{head}\nFp1\tEEG\tuV\tgood\nFp2\tEEG\tuV\tBAD \nC3\tEEG\tuV\tn/a\nEOG\tEOG\tuV\tbad\n"
    found = eeg_channels(recording_at(tmp_path, table), labelled("EEG Fp1-Ref", "EEG Fp2-Ref", "C3", "EOG"))
    assert found.names == ("Fp1", "Fp2", "C3") and found.bads == ("Fp2",)
    assert eeg_channels(recording_at(tmp_path, TABLE), labelled(*N)).bads == ()


def test_types_without_a_table_are_those_of_file_or_label(tmp_path):
    not_eeg = (
        "ECG",
        "EKG1",
        "HEOG",
        "vEOG left",
        "EMG chin",
        "Resp nasal",
        "EEG EKG1-REF",
        "EEG LOC-REF",
        "LEOG",
        "Left EOG",
        "POL EKG",
        "PHOTIC",
        "IBI",
        "EEG ECG",
        "Status",
        "EXG1",
        "GSR1",
        "SpO2",
        "LOC",
        "ROC-A1",
    )
    found = eeg_channels(recording_at(tmp_path), labelled("Fp1", "EEG C3", "E1", "T7-M2", *not_eeg))
    assert found.names == ("Fp1", "EEG C3", "E1", "T7-M2") and tuple(found.left_out) == not_eeg
    typed = FakeSignal(Channel("A", 1.0, "V", "eeg"), Channel("B", 1.0, "V", "eog"), Channel("C", 1.0, "V", "trig"))
    assert eeg_channels(recording_at(tmp_path), typed).names == ("A",)


def test_types_that_are_missing_in_the_table_are_those_of_file_or_label(tmp_path):
    table = rows("E1", "E2", "ECG", types="n/a", units="n/a")
    found = eeg_channels(recording_at(tmp_path, table), labelled("E1", "E2", "ECG"))
    assert found.names == ("E1", "E2") and found.left_out == {"ECG": "ecg"}
    without = eeg_channels(recording_at(tmp_path, "name\nE1\nE2\n"), labelled("E1", "E2", "E3"))
    assert without.names == ("E1", "E2") and without.left_out == {"E3": NOT_LISTED}
    assert len(eeg_channels(recording_at(tmp_path, "name\ttype\n"), labelled("E1", "E2")).names) == 2
    listed = eeg_channels(recording_at(tmp_path, rows("E1", "E2", "E9")), labelled("E1", "E2"))
    assert listed.left_out == {"E9": "in channels.tsv only"}


@pytest.mark.parametrize(
    ("labels", "table", "message"),
    [
        (("A1", "A2"), rows("Fp1", "Fp2", "C3"), r"none of its names \(Fp1, Fp2, C3\) is a channel of .*\(A1, A2\)"),
        (("A1", "A2"), rows("Fp1", "Fp2"), "none of its names"),
        (N, rows(*N, types="MISC"), r"no EEG channel \(types: misc\)"),
        (N, "type\nEEG\n", "no column 'name'"),
        (("Fp1", "C3"), rows("Fp1", "C3") + "Fp1\tEOG\tuV\n", "has different rows of channel 'Fp1'"),
        ((), None, "no EEG channel"),
    ],
)
def test_tables_that_cannot_be_right_give_one_line(tmp_path, labels, table, message):
    with pytest.raises(UnreadableRecordingError, match=message):
        eeg_channels(recording_at(tmp_path, table), labelled(*labels))


@pytest.mark.parametrize(
    ("unit", "listed", "factor"),
    [
        ("uV", "n/a", 1e-6),
        ("", "uV", 1e-6),
        ("?V", "\u00b5V", 1e-6),
        ("nV", "nV", 1e-9),
        ("V", "V", 1),
        ("mV", None, 1e-3),
    ],
)
def test_units(tmp_path, unit, listed, factor):
    table = None if listed is None else rows("Fp1", units=listed)
    found = eeg_channels(recording_at(tmp_path, table), labelled("Fp1", unit=unit))
    assert found.volts == pytest.approx((factor,))
    assert found.has_confirmed_units == ((unit, listed) in (("nV", "nV"), ("V", "V")))


@pytest.mark.parametrize(
    ("unit", "listed", "message"),
    [
        ("", None, "'Fp1' has no known unit .*give it, such as uV, in the column 'units' of .*_channels.tsv"),
        ("", "n/a", "no known unit"),
        ("?V", "?V", r"\('\?V' in the file, '\?V' in "),
        ("uV", "V", "is in uV in the file, but in V in .*correct one of them"),
        ("nV", "uV", "is in nV in the file, but in uV"),
    ],
)
def test_units_that_are_not_known_give_one_line(tmp_path, unit, listed, message):
    table = None if listed is None else rows("Fp1", units=listed)
    with pytest.raises(UnreadableRecordingError, match=message):
        eeg_channels(recording_at(tmp_path, table), labelled("Fp1", unit=unit))


def test_other_quantities_are_no_eeg(tmp_path):
    signal = FakeSignal(Channel("Fp1", 1.0, "uV"), Channel("X", 1.0, "%"), Channel("Y", 1.0, "mmHg"))
    assert eeg_channels(recording_at(tmp_path), signal).left_out == {
        "X": "unit %, not a voltage",
        "Y": "unit mmHg, not a voltage",
    }


def test_an_ecg_at_the_place_of_another_eeg_channel_stays_an_ecg(tmp_path):
    found = eeg_channels(recording_at(tmp_path, rows("Fp1", "C3", "Cz")), labelled("Fp1", "C3", "ECG"))
    assert found.names == ("Fp1", "C3") and found.left_out == {"ECG": "ecg", "Cz": "in channels.tsv only"}


def test_the_table_decides_over_the_convention_of_eeglab(tmp_path):
    signal = FakeSignal(Channel("Fp1", 1.0, "uV"), unit_source="convention")
    assert eeg_channels(recording_at(tmp_path, rows("Fp1", units="V")), signal).volts == (1.0,)
    assert eeg_channels(recording_at(tmp_path, rows("Fp1", units="n/a")), signal).volts == (1e-6,)
    with pytest.raises(UnreadableRecordingError, match="but in %"):
        eeg_channels(recording_at(tmp_path, rows("Fp1", units="%")), signal)


def test_a_format_with_a_fixed_unit_needs_no_table(tmp_path):
    signal = FakeSignal(Channel("Fp1", 1.0, "V"), unit_source="format")
    assert eeg_channels(recording_at(tmp_path, rows("Fp1")), signal).volts == (1.0,)


def test_a_damaged_channel_matters_if_it_is_eeg(tmp_path):
    bad = Channel("ECG", 1.0, "uV", problem="its physical minimum equals its maximum")
    assert eeg_channels(recording_at(tmp_path), FakeSignal(Channel("Fp1", 1.0, "uV"), bad)).names == ("Fp1",)
    with pytest.raises(UnreadableRecordingError, match="'Fp1': its physical"):
        eeg_channels(recording_at(tmp_path), FakeSignal(Channel("Fp1", 1.0, "uV", problem=bad.problem)))


def test_channels_of_other_recordings_are_found_by_name():
    names = ("Fp1", "EEG C3", "Cz..", "A", "a")
    assert [find_name(name, names) for name in ("Fp1", "FP1", "C3", "cz", "a", "A")] == [0, 0, 1, 2, 4, 3]
    assert find_name("Fp1-A2", names) is None and find_name("x", names) is None
    assert find_name("B", ("b", "b.")) is None
