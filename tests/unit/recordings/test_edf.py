from __future__ import annotations

import numpy as np
import pytest

from raypipe.recordings.edf import EdfSignal
from raypipe.recordings.signal import Channel, Span, UnreadableRecordingError
from tests.support.eeg_files import time_stamp, write_edf


def noise(*lengths: int, seed: int = 0, top: int = 30_000) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(-top, top, length) for length in lengths]


def edit(path, start: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[start : start + len(data)] = data
    path.write_bytes(content)


@pytest.mark.parametrize("bdf", [False, True])
@pytest.mark.parametrize("seconds", ["1", "0.1", "10", "1.5", "1.000001"])
def test_channels_of_other_rates_are_read_at_their_own(tmp_path, bdf, seconds):
    per_record = [100, 400, 100, 1, 7]
    digits = noise(*(6 * size for size in per_record), top=2**23 - 1 if bdf else 2**15 - 1)
    names = ["Fp1", "ECG", "C3", "Temp", "Resp"]
    signal = EdfSignal(write_edf(tmp_path / "a", names, digits, per_record=per_record, seconds=seconds, bdf=bdf))
    assert [channel.rate for channel in signal.channels] == [size / float(seconds) for size in per_record]
    assert signal.spans == (Span(0.0, 6 * float(seconds)),)
    for picks in ([0, 2], [2], [1], [3], [4]):
        total = 6 * per_record[picks[0]]
        for begin, stop in ((0, total), (0, 1), (total - 1, total), (total // 3, total // 2 + 1), (2, 2)):
            if begin > stop:
                continue
            want = np.stack([digits[pick][begin:stop] * (1 if bdf else 0.1) for pick in picks])
            np.testing.assert_allclose(signal.read(picks, 0, begin, stop), want, atol=1e-6)
    with pytest.raises(IndexError):
        signal.read([0], 0, 0, 6 * 100 + 1)


@pytest.mark.parametrize("bdf", [False, True])
def test_extreme_values_and_inverted_polarity(tmp_path, bdf):
    top = 2**23 - 1 if bdf else 2**15 - 1
    digits = [np.array([-top - 1, top, 0, -1, 1])] * 2
    limits = [(-1000, 1000, -top - 1, top), (500, -500, -top - 1, top)]
    signal = EdfSignal(write_edf(tmp_path / "a", ["A", "B"], digits, per_record=[5, 5], limits=limits, bdf=bdf))
    x_CT = signal.read([0, 1], 0, 0, 5)
    np.testing.assert_allclose(x_CT[:, :2], [[-1000, 1000], [500, -500]])
    np.testing.assert_allclose(np.diff(x_CT[:, [3, 2, 4]]), np.tile([[2000], [-1000]], 2) / (2 * top + 1), rtol=1e-6)


def test_a_discontinuous_file_has_spans(tmp_path):
    times = [3.0, 4.0, 5.0, 10.5, 11.5, 20.0]
    digits = noise(600, 2400)
    path = write_edf(
        tmp_path / "a", ["Fp1", "ECG"], digits, per_record=[100, 400], reserved="EDF+D",
        times=[time_stamp(time, b"+4.2\x14\xe9tat\x14\0") for time in times],
    )  # fmt: skip
    signal = EdfSignal(path)
    assert [channel.name for channel in signal.channels] == ["Fp1", "ECG"]
    assert signal.spans == (Span(0.0, 3.0), Span(7.5, 2.0), Span(17.0, 1.0))
    np.testing.assert_allclose(signal.read([0], 1, 50, 150)[0], digits[0][350:450] / 10)
    np.testing.assert_allclose(signal.read([1], 2, 0, 400)[0], digits[1][2000:] / 10)
    with pytest.raises(IndexError):
        signal.read([0], 1, 0, 201)


def test_a_file_that_is_called_discontinuous_may_have_no_gap(tmp_path):
    times = [time_stamp(number * 0.1 + 1e-4) for number in range(20)]
    path = write_edf(
        tmp_path / "a", ["A"], noise(200), per_record=[10], seconds="0.1", reserved="BDF+D", times=times, bdf=True
    )
    (span,) = EdfSignal(path).spans
    assert span.onset == 0 and span.duration == pytest.approx(2)


@pytest.mark.parametrize("reserved", ["EDF+C", "", "24BIT"])
def test_times_of_continuous_files_do_not_matter(tmp_path, reserved):
    path = write_edf(tmp_path / "a", ["A"], noise(20), per_record=[10], reserved=reserved, times=[b"\xff", b"nothing"])
    assert EdfSignal(path).spans == (Span(0.0, 2.0),)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([b"+0\x14\x14", b"+0.5\x14\x14"], r"record 2 starts at 0\.5 s, before the one before it ends"),
        ([b"+5\x14\x14", b"+4\x14\x14"], "record 2 starts at 4 s"),
        ([b"+0\x14\x14", b"rubbish"], "the time of record 2 cannot be read"),
        (None, "no channel has the times of its records"),
    ],
)
def test_times_that_cannot_be_right_give_one_line(tmp_path, times, message):
    path = write_edf(tmp_path / "a", ["A"], noise(20), per_record=[10], reserved="EDF+D", times=times)
    with pytest.raises(UnreadableRecordingError, match=message):
        _ = EdfSignal(path).spans


def test_the_header_is_read_leniently(tmp_path):
    names = [b"\xb5 label", "EEG Fp1", "EOG left", "Status", "ECG", "T8 ", "EKG II"]
    units = [b"\xb5V", "\u03bcV".encode(), b"uV\0\0", "", "mV", "", ""]
    limits = [("-3276,8", "3276,7", -32768, 32767)] + [(-3276.8, 3276.7, "-32768.0", " 32767")] * 6
    digits = [np.arange(10)] * 7
    signal = EdfSignal(write_edf(tmp_path / "a", names, digits, per_record=[10] * 7, units=units, limits=limits))
    assert signal.channels[0] == Channel("\u00b5 label", 10.0, "\u00b5V")
    assert [channel.unit for channel in signal.channels[1:4]] == ["\u03bcV", "uV", ""]
    assert [channel.type for channel in signal.channels] == [None, "eeg", "eog", "trig", None, None, "ecg"]
    assert signal.channels[5].name == "T8"
    np.testing.assert_allclose(signal.read([0], 0, 0, 10)[0], np.arange(10) / 10, atol=1e-9)


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        ((0, 0, -100, 100), "its physical minimum and maximum in the header are equal"),
        ((-1, 1, 5, 5), "its digital minimum and maximum in the header are equal"),
        (("low", 1, -5, 5), "its physical or digital limits in the header are no numbers"),
        (("", "", "", ""), "no numbers"),
    ],
)
def test_one_damaged_channel_does_not_spoil_the_others(tmp_path, limits, problem):
    path = write_edf(
        tmp_path / "a", ["A", "B"], noise(10, 10), per_record=[10, 10], limits=[limits, (-1, 1, -100, 100)]
    )
    signal = EdfSignal(path)
    assert problem in signal.channels[0].problem and not signal.channels[1].problem
    assert np.isfinite(signal.read([1], 0, 0, 10)).all()
    with pytest.raises(UnreadableRecordingError, match=problem):
        signal.read([0, 1], 0, 0, 10)


@pytest.mark.parametrize("announced", [-1, 0])
def test_the_number_of_records_may_be_unknown(tmp_path, announced):
    path = write_edf(tmp_path / "a", ["A"], noise(60), per_record=[20], n_records=announced)
    path.write_bytes(path.read_bytes() + b"half")
    assert EdfSignal(path).spans == (Span(0.0, 3.0),)


def test_bytes_after_the_last_record_do_no_harm(tmp_path):
    path = write_edf(tmp_path / "a", ["A"], noise(60), per_record=[20])
    path.write_bytes(path.read_bytes() + bytes(1000))
    assert EdfSignal(path).spans == (Span(0.0, 3.0),)


def test_a_file_of_annotations_has_no_channel(tmp_path):
    path = write_edf(tmp_path / "a", [], [], per_record=[], times=[time_stamp(0)], seconds=0, reserved="EDF+C")
    assert EdfSignal(path).channels == ()


@pytest.mark.parametrize(
    ("start", "data", "message"),
    [
        (184, b"x" * 8, "not an EDF file"),
        (236, b"many    ", "not an EDF file"),
        (252, b"many", "not an EDF file"),
        (252, b"9000", "truncated: it ends in its header"),
        (256 + 216, b"-5      ", "not an EDF file"),
        (256 + 216, b"1.5     ", "not an EDF file"),
    ],
)
def test_a_damaged_header_gives_one_line(tmp_path, start, data, message):
    path = write_edf(tmp_path / "a", ["A"], noise(60), per_record=[20])
    edit(path, start, data)
    with pytest.raises(UnreadableRecordingError, match=message):
        EdfSignal(path)


def test_a_truncated_file_is_named_with_its_sizes(tmp_path):
    path = write_edf(tmp_path / "a", ["A"], noise(60), per_record=[20])
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UnreadableRecordingError, match=f"truncated: .* {size} bytes, the file has {size - 7}$"):
        EdfSignal(path)


def test_opening_reads_the_header_only(tmp_path):
    path = write_edf(tmp_path / "a", ["A"], noise(200_000), per_record=[20_000], bdf=True)
    content = path.read_bytes()
    with open(path, "wb") as file:
        file.write(content[:512])
        file.truncate(len(content))
    signal = EdfSignal(path)
    assert [channel.name for channel in signal.channels] == ["A"] and signal.spans == (Span(0.0, 10.0),)


def test_gaps_of_a_file_that_is_called_continuous_count(tmp_path):
    times = [time_stamp(number + 5 * (number > 2)) for number in range(6)]
    path = write_edf(tmp_path / "a", ["A"], noise(600), per_record=[100], reserved="EDF+C", times=times)
    assert EdfSignal(path).spans == (Span(0.0, 3.0), Span(8.0, 3.0))


def test_absurd_limits_and_lower_case_annotations(tmp_path):
    limits = [("-1e308", "1e308", -100, 100), (-1, 1, -100, 100)]
    path = write_edf(tmp_path / "a", ["A", "EDF annotations"], noise(10, 10), per_record=[10, 10], limits=limits)
    (channel,) = EdfSignal(path).channels
    assert "are no limits of a voltage" in channel.problem


@pytest.mark.parametrize("bdf", [False, True])
@pytest.mark.parametrize("start", [b"0       ", b"-5      ", b"256     ", b"520     "])
def test_a_wrong_length_of_the_header_gives_one_line(tmp_path, bdf, start):
    path = write_edf(tmp_path / "a", ["A"], noise(60), per_record=[20], bdf=bdf)
    edit(path, 184, start)
    with pytest.raises(UnreadableRecordingError, match=r"its header announces .* that of 1 channels has 512$"):
        EdfSignal(path)


def test_rounded_times_of_records_are_no_gaps(tmp_path):
    times = [b"+%.3f\x14\x14\0" % (number * 0.976562) for number in range(40)]
    times[30:] = [b"+%.3f\x14\x14\0" % (number * 0.976562 + 1) for number in range(30, 40)]
    path = write_edf(
        tmp_path / "a", ["A"], noise(40 * 2048), per_record=[2048], seconds="0.976562", reserved="EDF+D", times=times
    )
    spans = EdfSignal(path).spans
    assert [round(span.duration / 0.976562) for span in spans] == [30, 10]


def test_times_of_few_decimals_hide_no_gap(tmp_path):
    times = [b"+%d\x14\x14\0" % time for time in (0, 1, 3, 4)]
    path = write_edf(tmp_path / "a", ["A"], noise(40), per_record=[10], reserved="EDF+D", times=times)
    assert EdfSignal(path).spans == (Span(0.0, 2.0), Span(3.0, 2.0))


@pytest.mark.parametrize("drift", [0.004, -0.004])
def test_small_deviations_of_the_clock_do_not_add_up(tmp_path, drift):
    times = [b"+%.4f\x14\x14\0" % (number * (1 + drift)) for number in range(50)]
    path = write_edf(tmp_path / "a", ["A"], noise(5000), per_record=[100], reserved="EDF+D", times=times)
    signal, record = EdfSignal(path), 0
    for span in signal.spans:
        for second in range(round(span.duration)):
            assert span.onset + second == pytest.approx(record * (1 + drift), abs=0.0051)
            record += 1
    assert record == 50


@pytest.mark.parametrize("seconds", [0, "x"])
def test_discontinuous_annotations_alone_have_no_channel(tmp_path, seconds):
    times = [time_stamp(0), time_stamp(7)]
    path = write_edf(tmp_path / "a", [], [], per_record=[], times=times, seconds=seconds, reserved="EDF+D")
    assert EdfSignal(path).channels == () and EdfSignal(path).spans == (Span(0.0, 0.0),)
