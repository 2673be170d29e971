from __future__ import annotations

import numpy as np
import pytest

from raypipe.recordings.brainvision import BrainVisionSignal, companions
from raypipe.recordings.signal import Channel, Span, UnreadableRecordingError
from tests.support.eeg_files import write_brainvision

X_TC = np.arange(-20, 20, dtype="<i2").reshape(20, 2)


def read(path):
    signal = BrainVisionSignal(path)
    return np.concatenate(
        [signal.read([0, 1], n, 0, round(s.duration * 100)) for n, s in enumerate(signal.spans)], axis=1
    )


@pytest.mark.parametrize("orientation", ["MULTIPLEXED", "VECTORIZED"])
@pytest.mark.parametrize("kind", ["<i2", "<i4", "<f4", "<f8", ">i2", ">i4", ">f4", ">f8"])
def test_data_types_and_orders(tmp_path, orientation, kind):
    extra = "UseBigEndianOrder=YES\n" if kind.startswith(">") else ""
    x_TC = X_TC.astype(kind)
    path = write_brainvision(
        tmp_path / "a.vhdr",
        x_TC,
        orientation=orientation,
        extra=extra,
        resolutions=["0.5", "2"],
        units=["\u00b5V", "mV"],
    )
    signal = BrainVisionSignal(path)
    assert signal.channels == (Channel("Fz", 100.0, "\u00b5V"), Channel("Cz", 100.0, "mV"))
    assert signal.spans == (Span(0.0, 0.2),)
    np.testing.assert_allclose(signal.read([1, 0], 0, 3, 12), [X_TC[3:12, 1] * 2, X_TC[3:12, 0] * 0.5])
    assert companions(path) == [tmp_path / "a.vmrk", tmp_path / "a.eeg"]


def test_unsigned_samples(tmp_path):
    x_TC = np.array([[0, 65535], [1, 2]], "<u2")
    np.testing.assert_array_equal(read(write_brainvision(tmp_path / "a.vhdr", x_TC)), x_TC.T)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "utf-8-sig", "utf-16"])
def test_encodings_of_the_header(tmp_path, encoding):
    path = write_brainvision(
        tmp_path / "a.vhdr", X_TC, encoding=encoding, names=["\u00e9", "b"], markers="Mk1=Stimulus,\u00fc,3,1,0"
    )
    assert [(c.name, c.unit) for c in BrainVisionSignal(path).channels] == [("\u00e9", "\u00b5V"), ("b", "\u00b5V")]


def test_defaults_of_the_specification(tmp_path):
    path = write_brainvision(tmp_path / "a.vhdr", X_TC, names=["A\\1B", ""], units=["", ""], resolutions=["", ""])
    assert [(c.name, c.unit) for c in BrainVisionSignal(path).channels] == [("A,B", "\u00b5V"), ("Ch2", "\u00b5V")]
    path.write_text(path.read_text().replace("Ch2=,,,\n", ""))
    np.testing.assert_array_equal(read(path), X_TC.T)
    path.write_text(path.read_text().replace("[Common", "[COMMON").replace("DataFile=a", "datafile = a"))
    np.testing.assert_array_equal(read(path), X_TC.T)


@pytest.mark.parametrize(
    ("data_file", "named"),
    [
        ("other.dat", "other.dat"),
        ("a.EEG", "a.eeg"),
        ("a.eeg", "b.eeg"),
        ("a.dat", "of_the_old_name.eeg"),
        ("a.eeg", "$b.eeg"),
        ("a.eeg", "C:\\data\\a.eeg"),
    ],
)
def test_names_of_the_data_file(tmp_path, data_file, named):
    path = write_brainvision(tmp_path / "a.vhdr", X_TC, data_file=data_file, named=named)
    np.testing.assert_array_equal(read(path), X_TC.T)
    assert companions(path)[-1] == tmp_path / data_file


@pytest.mark.parametrize(
    "markers",
    [
        "Mk1=New Segment,,1,1,0,20200101120000000000",
        "nonsense\nMk2=\nMk3=Stimulus\nMk=,,,\n=,",
        "Mk1=Stimulus,S  1,inf,1,0\nMk2=New Segment,,x,1,0",
        "Mk1=New Segment,,500,1,0",
    ],
)
def test_odd_markers_do_no_harm(tmp_path, markers):
    path = write_brainvision(tmp_path / "a.vhdr", X_TC, markers=markers)
    assert BrainVisionSignal(path).spans == (Span(0.0, 0.2),)
    path.with_suffix(".vmrk").unlink()
    assert BrainVisionSignal(path).spans == (Span(0.0, 0.2),) and companions(path) == [tmp_path / "a.eeg"]


def test_markers_that_are_cut_within_a_character_keep_their_segments(tmp_path):
    path = write_brainvision(tmp_path / "a.vhdr", X_TC)
    path.with_suffix(".vmrk").write_bytes(b"\xff\xfe" + "Mk1=New Segment,,6,1,0\n".encode("utf-16-le") + b"M")
    assert BrainVisionSignal(path).spans == (Span(0.0, 0.05), Span(0.05, 0.15))


def test_new_segments_end_a_span(tmp_path):
    markers = "Mk1=New Segment,,1,1,0\nMk2=Stimulus,S1,3,1,0\nMk3=New Segment,,6,1,0,2020\nMk4=new segment,,11,1,0"
    signal = BrainVisionSignal(write_brainvision(tmp_path / "a.vhdr", X_TC, markers=markers))
    assert signal.spans == (Span(0.0, 0.05), Span(0.05, 0.05), Span(0.1, 0.1))
    np.testing.assert_array_equal(signal.read([0], 1, 1, 5)[0], X_TC[6:10, 0])
    with pytest.raises(IndexError):
        signal.read([0], 1, 0, 6)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("DataFormat=BINARY", "DataFormat=ASCII", r"its data are text \(DataFormat=ASCII\); export them as binary"),
        ("=INT_16", "=INT_24", "unknown BinaryFormat 'INT_24'"),
        ("NumberOfChannels=2", "NumberOfChannels=0", "no valid entry numberofchannels"),
        ("NumberOfChannels=2", "NumberOfChannels=2.5", "no valid entry numberofchannels"),
        ("NumberOfChannels=2", "NumberOfChannels=1e12", "no valid entry numberofchannels"),
        ("MULTIPLEXED", "SIDEWAYS", "unknown DataOrientation 'SIDEWAYS'"),
        ("SamplingInterval=10000", "SamplingInterval=x", "no valid entry samplinginterval"),
        ("NumberOfChannels=2", "NumberOfChannels=3", "80 bytes are no whole number of samples of 6 bytes"),
        ("DataFile=a.eeg", "DataFile=b.eeg", "its data file 'b.eeg' is missing"),
        ("[Binary", "DataType=FREQUENCYDOMAIN\n[Binary", "holds no signals over time"),
    ],
)
def test_headers_that_are_refused(tmp_path, old, new, message):
    path = write_brainvision(tmp_path / "a.vhdr", X_TC)
    path.write_text(path.read_text().replace(old, new))
    if "missing" in message:
        (tmp_path / "a.eeg").rename(tmp_path / "c.eeg")
    with pytest.raises(UnreadableRecordingError, match=message):
        BrainVisionSignal(path)


@pytest.mark.parametrize(
    "entry",
    ["Fz,,0,1,\u00b5V", "Fz,,0,\u00b5V", "Fz,,x0.1,\u00b5V", "Fz,,nan,\u00b5V", "Fz,,0.1\u00b5V,\u00b5V", "Fz,,1,5"],
)
def test_a_damaged_entry_of_a_channel_is_a_problem_of_that_channel(tmp_path, entry):
    path = write_brainvision(tmp_path / "a.vhdr", X_TC)
    path.write_text(path.read_text().replace("Ch1=Fz,,1,\u00b5V", f"Ch1={entry}"))
    signal = BrainVisionSignal(path)
    assert "its resolution in the header" in signal.channels[0].problem and not signal.channels[1].problem
    np.testing.assert_array_equal(signal.read([1], 0, 0, 20)[0], X_TC[:, 1])
    with pytest.raises(UnreadableRecordingError, match="'Fz': its resolution"):
        signal.read([0], 0, 0, 20)


@pytest.mark.parametrize("resolution", ["abc", "0", "inf", "nan", "0.1.2"])
def test_a_resolution_that_is_no_number_is_never_taken_for_one(tmp_path, resolution):
    signal = BrainVisionSignal(write_brainvision(tmp_path / "a.vhdr", X_TC, resolutions=[resolution, "2"]))
    assert "its resolution" in signal.channels[0].problem and not signal.channels[1].problem
    np.testing.assert_array_equal(signal.read([1], 0, 0, 20)[0], X_TC[:, 1] * 2.0)
    with pytest.raises(UnreadableRecordingError, match="channel 'Fz': its resolution in the header"):
        signal.read([0, 1], 0, 0, 20)


@pytest.mark.parametrize(
    ("orientation", "points", "is_read"),
    [
        ("MULTIPLEXED", 20, True), ("VECTORIZED", 20, True), ("MULTIPLEXED", 0, True), ("VECTORIZED", 0, True),
        ("MULTIPLEXED", 19, True), ("VECTORIZED", 19, False), ("MULTIPLEXED", 21, False), ("VECTORIZED", 21, False),
    ],
)  # fmt: skip
def test_the_number_of_samples_is_that_of_the_header(tmp_path, orientation, points, is_read):
    path = write_brainvision(tmp_path / "a.vhdr", X_TC, orientation=orientation)
    path.write_text(path.read_text().replace("NumberOfChannels", f"DataPoints={points}\nNumberOfChannels"))
    if is_read:
        np.testing.assert_array_equal(read(path), X_TC.T)
        return
    with pytest.raises(UnreadableRecordingError, match=f"20 samples of each channel, its header announces {points}$"):
        BrainVisionSignal(path)


def test_bytes_of_latin_1_do_not_end_a_line(tmp_path):
    path = write_brainvision(
        tmp_path / "a.vhdr", X_TC, names=["A\x85B", "C"], units=["\u00b5V", "mV"], encoding="latin-1"
    )
    channels = BrainVisionSignal(path).channels
    assert channels[0].name == "A\x85B" and [channel.unit for channel in channels] == ["\u00b5V", "mV"]


def test_segments_of_a_segmented_file_are_spans_without_markers(tmp_path):
    path = write_brainvision(tmp_path / "a.vhdr", X_TC)
    whole = path.read_text()
    path.write_text(
        whole.replace("NumberOfChannels", "SegmentationType=MARKERBASED\nSegmentDataPoints=8\nNumberOfChannels")
    )
    assert [round(span.duration * 100) for span in BrainVisionSignal(path).spans] == [8, 8, 4]
    np.testing.assert_array_equal(read(path), X_TC.T)
    path.write_text(whole.replace("NumberOfChannels", "SegmentationType=NOTSEGMENTED\nNumberOfChannels"))
    assert BrainVisionSignal(path).spans == (Span(0.0, 0.2),)
    path.write_text(whole.replace("NumberOfChannels", "SegmentationType=MARKERBASED\nNumberOfChannels"))
    with pytest.raises(UnreadableRecordingError, match="no valid entry segmentdatapoints"):
        BrainVisionSignal(path)


def test_a_copied_header_does_not_read_the_data_of_the_other_one(tmp_path):
    write_brainvision(tmp_path / "run-1.vhdr", X_TC)
    second = write_brainvision(tmp_path / "run-2.vhdr", X_TC + 1, named="run-1.eeg")
    with pytest.raises(
        UnreadableRecordingError, match=r"names run-1\.eeg, the data of run-1\.vhdr; correct DataFile .run-2"
    ):
        BrainVisionSignal(second)
    (tmp_path / "run-1.vhdr").unlink()
    np.testing.assert_array_equal(read(second), X_TC.T)  # nothing says that it is not its own
