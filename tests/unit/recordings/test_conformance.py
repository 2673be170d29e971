"""Whatever the file, the samples that are read are those that an independent writer was given."""

from __future__ import annotations

from pathlib import Path

import edfio
import mne
import numpy as np
import pyedflib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.data.prepare import prepare
from raypipe.recordings.channels import eeg_channels
from raypipe.recordings.formats import open_signal
from raypipe.recordings.layout import recording_from_file
from tests.support.eeg_files import time_stamp, write_brainvision, write_edf, write_eeglab

UNITS = {"uV": 1e-6, "\u00b5V": 1e-6, "mV": 1e-3, "nV": 1e-9, "V": 1.0}
RATES = (50, 100, 128, 250, 256, 500)
SECONDS = 6

many = settings(max_examples=40)


def made_signals(seed: int, rates: list[int], seconds: int = SECONDS) -> list[np.ndarray]:
    """Draw a signal of each rate, in hundredths of its unit within -300 to 300."""
    rng = np.random.default_rng(seed)
    return [np.round(rng.uniform(-300, 300, rate * seconds), 2) for rate in rates]


def check(
    path: Path, truth: list[np.ndarray], rates: list[float], volts: list[float], places: list[float], data
) -> None:
    """Compare a drawn stretch of every channel with the truth in volts, to the resolution of its channel."""
    signal = open_signal(path)
    found = eeg_channels(recording_from_file(path), signal)
    assert len(found.names) == len(truth) and found.rates == pytest.approx(tuple(rates))
    assert sum(span.duration for span in signal.spans) == pytest.approx(len(truth[0]) / rates[0])
    for pick, factor, x_T, rate, unit, place in zip(found.picks, found.volts, truth, rates, volts, places, strict=True):
        span = data.draw(st.integers(0, len(signal.spans) - 1))
        before = round(sum(each.duration for each in signal.spans[:span]) * rate)
        length = round(signal.spans[span].duration * rate)
        begin, stop = sorted(data.draw(st.tuples(st.integers(0, length), st.integers(0, length))))
        got = signal.read([pick], span, begin, stop)[0] * factor
        np.testing.assert_allclose(got, x_T[before + begin : before + stop] * unit, rtol=1e-6, atol=0.51 * place * unit)


@many
@given(
    st.lists(st.sampled_from(RATES), min_size=1, max_size=4), st.sampled_from(sorted(UNITS)), st.booleans(), st.data()
)
def test_edf_and_bdf_by_edfio(tmp_path_factory, rates, unit, bdf, data):
    path = tmp_path_factory.mktemp("edfio") / ("a_eeg.bdf" if bdf else "a_eeg.edf")
    truth = made_signals(len(rates), rates)
    ascii_unit = unit.replace("\u00b5", "u")
    kind, write = (edfio.BdfSignal, edfio.Bdf) if bdf else (edfio.EdfSignal, edfio.Edf)
    signals = [
        kind(x_T, rate, label=f"E{n}", physical_dimension=ascii_unit, physical_range=(-300, 300))
        for n, (x_T, rate) in enumerate(zip(truth, rates, strict=True))
    ]
    write(signals).write(path)
    place = 600 / (2**24 if bdf else 2**16)
    check(path, truth, rates, [UNITS[unit]] * len(rates), [place + 1e-9] * len(rates), data)


@many
@given(
    st.lists(st.sampled_from(RATES), min_size=1, max_size=4),
    st.sampled_from(["uV", "mV", "nV"]),
    st.booleans(),
    st.data(),
)
def test_edf_plus_and_bdf_plus_by_pyedflib(tmp_path_factory, rates, unit, bdf, data):
    path = tmp_path_factory.mktemp("pyedflib") / ("a_eeg.edf" if bdf else "a_eeg.bdf")  # the other's name
    truth = made_signals(len(rates), rates)
    kind = pyedflib.FILETYPE_BDFPLUS if bdf else pyedflib.FILETYPE_EDFPLUS
    top = 2**23 - 1 if bdf else 2**15 - 1
    written = path.with_name("written.bdf" if bdf else "written.edf")
    with pyedflib.EdfWriter(str(written), len(rates), file_type=kind) as writer:
        header = {
            "dimension": unit,
            "physical_min": -300,
            "physical_max": 300,
            "digital_min": -top - 1,
            "digital_max": top,
        }
        writer.setSignalHeaders(
            [
                {**header, "label": f"E{n}", "sample_frequency": rate, "transducer": "", "prefilter": ""}
                for n, rate in enumerate(rates)
            ]
        )
        writer.writeSamples(truth)
        writer.writeAnnotation(1.5, -1, "\u00fcber")
    written.rename(path)
    check(
        path, truth, rates, [UNITS[unit]] * len(rates), [2.01 * 600 / (2 * top + 1)] * len(rates), data
    )  # it rounds down


@many
@given(
    st.lists(st.tuples(st.integers(3, 60), st.sampled_from(sorted(UNITS))), min_size=1, max_size=4),
    st.lists(st.sampled_from([0, 0, 0.5, 3, 100]), min_size=3, max_size=8),
    st.sampled_from([0.5, 1, 2]),
    st.booleans(),
    st.data(),
)
def test_discontinuous_files_by_hand(tmp_path_factory, channels, gaps, seconds, bdf, data):
    path = tmp_path_factory.mktemp("gaps") / "a_eeg.edf"
    rng = np.random.default_rng(len(gaps))
    digits = [rng.integers(-30_000, 30_000, size * len(gaps)) for size, _ in channels]
    starts = np.cumsum([0, *[seconds + gap for gap in gaps[1:]]]) + 2
    write_edf(
        path, [f"E{n}" for n in range(len(channels))], digits,
        per_record=[size for size, _ in channels], seconds=seconds,
        units=[unit for _, unit in channels], bdf=bdf, reserved="BDF+D" if bdf else "EDF+D",
        times=[time_stamp(start) for start in starts],
    )  # fmt: skip
    spans = open_signal(path).spans
    assert len(spans) == 1 + sum(gap > 0 for gap in gaps[1:])
    assert spans[-1].onset + spans[-1].duration == pytest.approx(len(gaps) * seconds + sum(gaps[1:]))
    truth = [digit * (1 if bdf else 0.1) for digit in digits]
    check(
        path,
        truth,
        [size / seconds for size, _ in channels],
        [UNITS[u] for _, u in channels],
        [1e-6] * len(channels),
        data,
    )


@many
@given(
    st.sampled_from(["<i2", "<i4", "<f4", ">i2", ">f4"]),
    st.sampled_from(["MULTIPLEXED", "VECTORIZED"]),
    st.lists(
        st.tuples(st.sampled_from([*UNITS, ""]), st.sampled_from(["0.1", "1", "0.5", ""])), min_size=1, max_size=4
    ),
    st.sampled_from(RATES),
    st.sets(st.integers(2, 299), max_size=3),
    st.data(),
)
def test_brainvision_by_hand(tmp_path_factory, kind, orientation, channels, rate, breaks, data):
    path = tmp_path_factory.mktemp("brainvision") / "a_eeg.vhdr"
    x_TC = np.random.default_rng(rate).integers(-9000, 9000, (300, len(channels))).astype(kind)
    write_brainvision(
        path, x_TC, orientation=orientation, names=[f"E{n}" for n in range(len(channels))],
        units=[unit for unit, _ in channels], resolutions=[resolution for _, resolution in channels],
        interval=f"{1e6 / rate:.10g}", extra="UseBigEndianOrder=YES\n" if kind[0] == ">" else "",
        markers="\n".join(f"Mk{n}=New Segment,,{place},1,0" for n, place in enumerate([1, *sorted(breaks)], start=1)),
    )  # fmt: skip
    truth = [x_T.astype(float) * float(resolution or 1) for x_T, (_, resolution) in zip(x_TC.T, channels, strict=True)]
    assert len(open_signal(path).spans) == 1 + len(breaks)
    volts = [UNITS[unit or "uV"] for unit, _ in channels]
    check(path, truth, [rate] * len(channels), volts, [1e-6] * len(channels), data)


@many
@given(
    st.booleans(),
    st.booleans(),
    st.integers(1, 4),
    st.sampled_from(RATES),
    st.sets(st.integers(1, 298), max_size=3),
    st.data(),
)
def test_eeglab_by_hand(tmp_path_factory, inside, flat, n_channels, rate, breaks, data):
    path = tmp_path_factory.mktemp("eeglab") / "a_eeg.set"
    x_CT = np.random.default_rng(rate).normal(0, 50, (n_channels, 300)).astype(np.float32)
    write_eeglab(
        path, x_CT, names=[f"E{n}" for n in range(n_channels)], rate=float(rate), inside=inside, flat=flat,
        events=[(place + 0.5, "boundary") for place in sorted(breaks)],
    )  # fmt: skip
    assert len(open_signal(path).spans) == 1 + len(breaks)
    check(path, list(x_CT.astype(float)), [rate] * n_channels, [1e-6] * n_channels, [1e-6] * n_channels, data)


@settings(max_examples=15)
@given(st.integers(1, 4), st.sampled_from(RATES), st.sampled_from(["single", "double"]), st.data())
def test_fif_by_mne(tmp_path_factory, n_channels, rate, kind, data):
    path = tmp_path_factory.mktemp("fif") / "a_eeg.fif"
    x_CT = np.random.default_rng(rate).normal(0, 50, (n_channels, 300))
    raw = mne.io.RawArray(
        x_CT * 1e-6, mne.create_info([f"E{n}" for n in range(n_channels)], rate, "eeg"), verbose="ERROR"
    )
    raw.save(path, fmt=kind, verbose="ERROR")
    check(path, list(x_CT), [rate] * n_channels, [1e-6] * n_channels, [1e-4] * n_channels, data)


@settings(max_examples=10)
@given(
    st.sampled_from(["edf", "bdf", "vhdr", "set"]),
    st.sampled_from([100, 128]),
    st.sampled_from([1.0, 0.5, 2.3]),
    st.sampled_from([400, 50, None]),
)
def test_windows_of_prepare_equal_the_truth(tmp_path_factory, kind, rate, window, other_rate):
    root = tmp_path_factory.mktemp("bids")
    (root / "participants.tsv").write_text("participant_id\tage\nsub-1\t20\nsub-2\t30\nsub-3\t41\n")
    truth = {}
    for subject in "123":
        path = root / f"sub-{subject}" / "eeg" / f"sub-{subject}_task-a_eeg.{kind}"
        digits = np.random.default_rng(int(subject)).integers(-500, 500, (2, 20 * rate))
        truth[subject] = digits * (0.1 if kind == "edf" else 1.0)
        if kind in ("edf", "bdf"):
            extra = [] if other_rate is None else [np.zeros(20 * other_rate)]
            write_edf(
                path, ["Fp1", "C3", "ECG"][: 2 + len(extra)], [*digits, *extra], bdf=kind == "bdf",
                per_record=[rate, rate, *[other_rate or 0][: len(extra)]],
            )  # fmt: skip
        elif kind == "vhdr":
            write_brainvision(path, digits.T.astype("<i2"), interval=f"{1e6 / rate:.10g}", units=["uV", "uV"])
        else:
            write_eeglab(path, digits.astype(np.float32), rate=float(rate))
    store = prepare(root, "participants:age", root / "out", window=window, jobs=1)
    assert store.sfreq == rate and store.n_channels == 2
    length = round(window * rate)
    for place, (subject, onset) in enumerate(zip(store.subjects, store.table["onset"], strict=True)):
        start = round(onset * rate)
        np.testing.assert_allclose(store.whole([place])[0], truth[subject][:, start : start + length], atol=1e-3)
    assert len(store) == 3 * int(np.floor((20 - window) / window + 1 + 1e-9))


@settings(max_examples=8)
@given(
    st.booleans(),
    st.lists(st.sampled_from([0, 0, 0, 0.5, 3]), min_size=12, max_size=16),
    st.sampled_from([-0.004, 0.0, 0.004]),
    st.sampled_from(["uV", "mV", "nV"]),
)
def test_windows_of_prepare_cross_no_gap(tmp_path_factory, bdf, gaps, drift, unit):
    root = tmp_path_factory.mktemp("bids")
    (root / "participants.tsv").write_text("participant_id\tage\nsub-1\t20\nsub-2\t30\n")
    count, rate = len(gaps), 100
    gap_after = np.cumsum([0, *gaps[1:]])
    times = np.arange(count) * (1 + drift) + gap_after + 5
    truth = {}
    for subject in "12":
        path = root / f"sub-{subject}" / "eeg" / f"sub-{subject}_task-a_eeg.edf"
        digits = np.random.default_rng(int(subject)).integers(-600, 600, (2, count * rate))
        truth[subject] = digits * (1 if bdf else 0.1) * UNITS[unit] * 1e6
        write_edf(
            path, ["Fp1", "C3"], digits, per_record=[rate, rate], bdf=bdf, units=[unit, unit],
            reserved="BDF+D" if bdf else "EDF+D", times=[b"+%.4f\x14\x14\0" % time for time in times],
        )  # fmt: skip
    if max(np.diff([0, *(np.flatnonzero(gaps[1:]) + 1), count])) < 2:
        return  # no window fits
    store = prepare(root, "participants:age", root / "out", window=1.5, jobs=1)
    for place, (subject, onset) in enumerate(zip(store.subjects, store.table["onset"], strict=True)):
        got = store.whole([place])[0]
        scale = np.abs(truth[subject]).max()
        near = np.abs(truth[subject][0, : count * rate - 149] - got[0, 0]) < 1e-6 * scale
        found = [s for s in np.flatnonzero(near) if np.allclose(truth[subject][:, s : s + 150], got, atol=1e-6 * scale)]
        assert len(found) == 1
        first, last = found[0] // rate, (found[0] + 149) // rate
        assert gap_after[first] == gap_after[last]
        clock = times[first] - 5 + found[0] % rate / rate
        assert onset == pytest.approx(clock, abs=0.0151)
