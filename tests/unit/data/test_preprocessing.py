"""Each step of preprocessing against MNE's own, on the same simulated EEG, and what is refused."""

from __future__ import annotations

import os
import shutil
from collections import Counter

import mne
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from raypipe.core.errors import UserError
from raypipe.data import kept_windows
from raypipe.data.alignment import MeanCovariance, inverse_root
from raypipe.data.montage import template_of
from raypipe.data.prepare import prepare
from raypipe.data.preprocessing import Preprocessing, flags
from raypipe.data.spatial import mix, mixing_matrix
from raypipe.data.windower import read_windows
from raypipe.recordings.signal import UnreadableRecordingError

TARGET = "bids-task:rest,eyes"
NAMES = ("Fp1", "Fp2", "F3", "F4", "C3", "C4", "P3", "P4", "O1", "O2", "Fz", "Cz", "Pz", "M1", "M2")
RATE = 200.0
SECONDS = 24


def simulate(seed: int) -> mne.io.RawArray:
    """Return noise with a spectrum like that of EEG, an offset of each channel, and 50 Hz of the mains."""
    rng = np.random.default_rng(seed)
    n_times = int(SECONDS * RATE)
    mixing = rng.normal(size=(len(NAMES), 6))
    x_CT = mixing @ np.cumsum(rng.normal(size=(6, n_times)), axis=1) + 8 * rng.normal(size=(len(NAMES), n_times))
    x_CT += 20 * np.sin(2 * np.pi * 50 * np.arange(n_times) / RATE) + 100 * rng.normal(size=(len(NAMES), 1))
    return mne.io.RawArray(x_CT * 1e-6, mne.create_info(list(NAMES), RATE, "eeg"), verbose="ERROR")


@pytest.fixture(scope="module")
def raws(tmp_path_factory):
    """The signals by recording, and the BIDS folder that they were written to."""
    folder, found = tmp_path_factory.mktemp("signals") / "bids", {}
    for number in range(6):
        key = f"sub-{number // 2}_task-{('rest', 'eyes')[number % 2]}"
        path = folder / f"sub-{number // 2}" / "eeg" / f"{key}_eeg.fif"
        path.parent.mkdir(parents=True, exist_ok=True)
        found[key] = simulate(number)
        found[key].save(path, fmt="double", verbose="ERROR")
    return folder, found


def check(raws, tmp_path, expected, **options):
    """Compare the windows of a store with those that `expected` returns for a copy of each signal, in volts."""
    folder, found = raws
    store = prepare(folder, TARGET, tmp_path / "store", jobs=1, window=2.0, **options)
    for key, raw in found.items():
        rows = store.table[store.table["recording"] == key]
        epochs = expected(raw.copy())
        assert len(rows) == len(epochs) > 0
        wanted_NCT = epochs.get_data(store.channels, copy=True) * 1e6
        np.testing.assert_allclose(store.whole(rows["window"]), wanted_NCT, rtol=1e-6, atol=1e-4)
    return store


def epoched(raw, **options) -> mne.Epochs:
    events = mne.make_fixed_length_events(raw, duration=2.0)
    options = {"tmin": 0, "tmax": 2.0 - 1 / raw.info["sfreq"], "baseline": None} | options
    return mne.Epochs(raw, events, preload=True, verbose="ERROR", **options)


def test_notches_are_removed_from_the_whole_signal(raws, tmp_path):
    store = check(raws, tmp_path, lambda raw: epoched(raw.notch_filter([50, 80], verbose="ERROR")), notch=[50, 80])
    assert store.manifest.plan.preprocessing == Preprocessing(notch=(50.0, 80.0))


def test_a_notch_comes_before_the_band_pass(raws, tmp_path):
    def expected(raw):
        return epoched(raw.notch_filter(50, verbose="ERROR").filter(1, 60, verbose="ERROR"))

    check(raws, tmp_path, expected, notch=50, band=(1, 60))


def test_the_average_is_that_of_all_common_channels(raws, tmp_path):
    """Also where the store has fewer."""
    store = check(
        raws,
        tmp_path,
        lambda raw: epoched(raw.set_eeg_reference("average", verbose="ERROR")),
        reference="average",
        channels=["Cz", "O1"],
    )
    assert store.channels == ["Cz", "O1"] and store.manifest.plan.sources[2:] == tuple(
        n for n in NAMES if n not in ("Cz", "O1")
    )


def test_channels_of_the_reference_are_left_out_and_counted(raws, tmp_path):
    store = check(
        raws,
        tmp_path,
        lambda raw: epoched(raw.set_eeg_reference(["M1", "M2"], verbose="ERROR")),
        reference=["m1", "M2"],
    )
    assert store.channels == list(NAMES[:-2])
    assert store.manifest.accounting.channels_left_out == {"the reference": {"M1": 6, "M2": 6}}


def test_channels_of_the_reference_stay_if_they_are_asked_for(raws, tmp_path):
    store = check(
        raws,
        tmp_path,
        lambda raw: epoched(raw.set_eeg_reference(["M1", "M2"], verbose="ERROR")),
        reference=["M1", "M2"],
        channels=["M1", "Pz"],
    )
    assert store.channels == ["M1", "Pz"]


BADS = {"sub-0_task-rest": ("Cz", "O1"), "sub-1_task-eyes": ("Fp2",)}


@pytest.fixture(scope="module")
def marked(raws, tmp_path_factory):
    """The same recordings, of which some channels are marked as bad."""
    folder = shutil.copytree(raws[0], tmp_path_factory.mktemp("marked") / "bids")
    found = {key: raw.copy() for key, raw in raws[1].items()}
    for key, bads in BADS.items():
        rows = [f"{name}\tEEG\tV\t{'Bad' if name in bads else 'good'}" for name in NAMES]
        table = folder / key.partition("_")[0] / "eeg" / f"{key}_channels.tsv"
        table.write_text("\n".join(["name\ttype\tunits\tstatus", *rows]) + "\n")
        found[key].info["bads"] = list(bads)
    return folder, found


def interpolated(raw):
    raw.set_montage(template_of("standard_1005"), on_missing="ignore", verbose="ERROR")
    return raw.interpolate_bads(verbose="ERROR") if raw.info["bads"] else raw


def test_bad_channels_are_interpolated(marked, tmp_path):
    store = check(marked, tmp_path, lambda raw: epoched(interpolated(raw)), bads="interpolate", montage="standard_1005")
    assert store.channels == list(NAMES)
    (note,) = store.manifest.accounting.notes
    assert note == "Interpolated channels, with the number of recordings (O1 1, Cz 1, Fp2 1)."


def test_interpolation_comes_before_the_average_and_after_or_before_filters(marked, tmp_path):
    def expected(raw):
        raw = interpolated(raw).notch_filter(50, verbose="ERROR").filter(1, 40, verbose="ERROR")
        return epoched(raw.set_eeg_reference("average", verbose="ERROR"))

    options = {
        "bads": "interpolate",
        "montage": "standard_1005",
        "reference": "average",
        "channels": ["Fz", "O1", "Cz"],
    }
    check(marked, tmp_path, expected, notch=50, band=(1, 40), **options)


def test_channels_that_are_bad_anywhere_are_dropped(marked, tmp_path):
    def expected(raw):
        return epoched(raw.drop_channels(["Cz", "O1", "Fp2"]).set_eeg_reference("average", verbose="ERROR"))

    store = check(marked, tmp_path, expected, bads="drop", reference="average")
    assert store.manifest.accounting.channels_left_out["marked bad in channels.tsv"] == {"Cz": 1, "O1": 1, "Fp2": 1}
    with pytest.raises(UserError, match=r"no EEG channel 'O1' \(left out: marked bad in channels.tsv\)"):
        prepare(marked[0], TARGET, tmp_path / "other", jobs=1, bads="drop", channels=["O1"])


def test_bad_channels_that_are_used_are_named(marked, tmp_path):
    store = prepare(marked[0], TARGET, tmp_path / "store", jobs=1, channels=["Cz", "Fz"])
    (note,) = store.manifest.accounting.notes
    assert note.startswith("Channels used though channels.tsv marks them as bad") and "(Cz 1)" in note


@pytest.mark.parametrize("how", [{"bads": "drop"}, {"bads": "interpolate", "montage": "standard_1005"}])
def test_bads_without_an_effect_is_said(raws, tmp_path, how):
    """In many data sets channels.tsv has no column `status`."""
    store = prepare(raws[0], TARGET, tmp_path / "store", jobs=1, **how)
    assert any("--bads has no effect" in note for note in store.manifest.accounting.notes)
    plain = prepare(raws[0], TARGET, tmp_path / "plain", jobs=1)
    assert not any("--bads" in note for note in plain.manifest.accounting.notes)


@pytest.mark.parametrize("baseline", [(0.0, 0.5), (0.301, 1.999), (1.0, 1.0)])
def test_the_baseline_is_subtracted(raws, tmp_path, baseline):
    check(raws, tmp_path, lambda raw: epoched(raw, baseline=baseline), baseline=baseline)


def test_the_baseline_is_relative_to_the_event(raws, tmp_path):
    """At a rate at which neither the start of a window nor the edges are whole samples."""
    folder = shutil.copytree(raws[0], tmp_path / "bids")
    onsets = np.array([1.0, 4.004, 8.5, 13.337])
    for path in sorted(folder.glob("sub-*/eeg/*_eeg.fif")):
        lines = "".join(f"{onset}\t0\t{'left' if k % 2 else 'right'}\n" for k, onset in enumerate(onsets))
        path.with_name(path.name.replace("_eeg.fif", "_events.tsv")).write_text("onset\tduration\tvalue\n" + lines)
    options = {"tmin": -0.303, "window": 1.0, "baseline": (-0.2, -0.05)}
    store = prepare(folder, "events:left,right", tmp_path / "store", jobs=1, **options)
    for key, raw in raws[1].items():
        starts = np.round((onsets - 0.303) * RATE).astype(int)  # the sample that a window starts at
        events = np.column_stack([starts - round(-0.303 * RATE), 0 * starts, 1 + 0 * starts])
        tmin, tmax = round(-0.303 * RATE) / RATE, (round(-0.303 * RATE) + 199) / RATE
        wanted = mne.Epochs(raw, events, tmin=tmin, tmax=tmax, baseline=(-0.2, -0.05), preload=True, verbose="ERROR")
        rows = store.table[store.table["recording"] == key]
        wanted_NCT = wanted.get_data(store.channels, copy=True) * 1e6
        np.testing.assert_allclose(store.whole(rows["window"]), wanted_NCT, rtol=1e-6, atol=1e-4)


def with_artefacts(raw):
    """Return a signal of which one window is large at F3, and another flat at O2 and Pz."""
    raw._data[NAMES.index("F3"), 900:910] += 3000e-6
    raw._data[[NAMES.index("O2"), NAMES.index("Pz")], 2000:2400] = 0
    return raw


def test_windows_outside_of_the_limits_are_left_out_and_counted(raws, tmp_path):
    folder = shutil.copytree(raws[0], tmp_path / "bids")
    found = {key: with_artefacts(raw.copy()) for key, raw in raws[1].items()}
    for key, raw in found.items():
        (path,) = folder.rglob(f"{key}_eeg.fif")
        raw.save(path, fmt="double", overwrite=True, verbose="ERROR")
    filtered = {key: raw.copy().filter(1, 60, verbose="ERROR") for key, raw in found.items()}
    spans = np.concatenate([np.ptp(epoched(raw).get_data(copy=True), axis=2) for raw in filtered.values()]) * 1e6
    limits = {"reject": float(np.quantile(spans.max(axis=1), 0.7)), "flat": float(np.quantile(spans.min(axis=1), 0.1))}
    volts = {name: {"eeg": limit * 1e-6} for name, limit in limits.items()}

    def expected(raw):
        return epoched(raw.filter(1, 60, verbose="ERROR"), baseline=(0, 0.5), **volts)

    store = check((folder, found), tmp_path, expected, band=(1, 60), baseline=(0, 0.5), **limits)
    counts = store.manifest.accounting.counts()
    above = f"windows of more than {limits['reject']:g} uV peak to peak"
    below = f"windows of less than {limits['flat']:g} uV peak to peak"
    assert set(counts) == {above, below} and counts[above] == (spans.max(axis=1) > limits["reject"]).sum()
    assert len(store) + sum(counts.values()) == len(spans)
    notes = [note for note in store.manifest.accounting.notes if note.startswith("Channels with windows of")]
    assert len(notes) == 2 and "F3" in notes[0] and "Pz" in notes[1]


def whitened(x_NCT):
    """Align as He & Wu do, by NumPy alone."""
    mean_CC = np.mean([x_CT @ x_CT.T / x_CT.shape[1] for x_CT in x_NCT], axis=0)
    return np.array([scipy.linalg.fractional_matrix_power(mean_CC, -0.5) @ x_CT for x_CT in x_NCT])


def test_windows_are_aligned_by_recording(raws, tmp_path):
    folder, found = raws
    store = prepare(folder, TARGET, tmp_path / "store", jobs=1, band=(1, 60), align="recording")
    assert store.manifest.unit == "1" and 1 < store.manifest.summary.scale < 1000
    for key, raw in found.items():
        x_NCT = store.whole(store.table.loc[store.table["recording"] == key, "window"])
        wanted_NCT = whitened(epoched(raw.copy().filter(1, 60, verbose="ERROR")).get_data(copy=True) * 1e6)
        np.testing.assert_allclose(x_NCT, wanted_NCT, rtol=1e-4, atol=1e-5)
        covariance_CC = np.mean([x_CT @ x_CT.T / x_CT.shape[1] for x_CT in x_NCT.astype(float)], axis=0)
        np.testing.assert_allclose(covariance_CC, np.eye(len(NAMES)), atol=1e-5)


def test_windows_are_aligned_by_subject(raws, tmp_path):
    folder, found = raws
    bids = shutil.copytree(folder, tmp_path / "bids")
    calls: list[tuple[int, int, str]] = []
    options = {"band": (1, 60), "align": "subject", "progress": lambda *call: calls.append(call)}
    store = prepare(bids, TARGET, tmp_path / "store", jobs=1, **options)
    assert {f"alignment of {number}" for number in range(3)} < {text for _, _, text in calls}
    for number in range(3):
        own = store.table["recording"].str.startswith(f"sub-{number}_")
        assert store.table.loc[own, "recording"].nunique() == 2
        keys = [f"sub-{number}_task-{task}" for task in ("eyes", "rest")]
        parts = [epoched(found[key].copy().filter(1, 60, verbose="ERROR")).get_data(copy=True) for key in keys]
        x_NCT = store.whole(store.table[own].sort_values(["recording", "onset"])["window"])
        np.testing.assert_allclose(x_NCT, whitened(np.concatenate(parts) * 1e6), rtol=1e-4, atol=1e-5)
    # A shard depends on every recording of its subject.
    assert prepare(bids, TARGET, tmp_path / "store", jobs=1, band=(1, 60), align="subject").is_up_to_date
    os.utime(bids / "sub-1" / "eeg" / "sub-1_task-rest_eeg.fif", ns=(1, 1))
    assert prepare(bids, TARGET, tmp_path / "store", jobs=1, band=(1, 60), align="subject").redone == 2


def test_a_subject_is_aligned_by_recordings_without_a_target_too(raws, tmp_path):
    """`predict` knows no targets, and aligns by all that a folder has of a subject."""
    folder, found = raws
    bids = shutil.copytree(folder, tmp_path / "bids")
    rows = [f"sub-{number},rest,{number + 0.5}" for number in range(3)]
    (tmp_path / "labels.csv").write_text("\n".join(["participant_id,task,score", *rows]) + "\n")
    options = {"window": 2.0, "band": (1, 60), "align": "subject"}
    made = (bids, f"table:{tmp_path / 'labels.csv'}:score", tmp_path / "store")
    store = prepare(*made, jobs=1, **options)
    assert set(store.table["recording"]) == {f"sub-{number}_task-rest" for number in range(3)}
    filtered = [found[f"sub-1_task-{task}"].copy().filter(1, 60, verbose="ERROR") for task in ("rest", "eyes")]
    rest, eyes = (epoched(raw).get_data(copy=True) * 1e6 for raw in filtered)
    x_NCT = store.whole(store.table[store.table["subject"] == "1"].sort_values("onset")["window"])
    np.testing.assert_allclose(x_NCT, whitened(np.concatenate([rest, eyes]))[: len(rest)], rtol=1e-4, atol=1e-5)
    assert prepare(*made, jobs=1, **options).is_up_to_date
    os.utime(bids / "sub-1" / "eeg" / "sub-1_task-eyes_eeg.fif", ns=(1, 1))
    assert prepare(*made, jobs=1, **options).redone == 1


def test_a_subject_is_read_once_to_be_aligned_and_none_is_aligned_with_less(raws, tmp_path, monkeypatch):
    reads, broken = Counter(), set()

    def counted(opened, windows, plan):
        reads[opened.recording.key] += 1
        if opened.recording.key in broken:
            raise UnreadableRecordingError(f"{opened.recording.path}: broken")
        return read_windows(opened, windows, plan)

    monkeypatch.setattr(kept_windows, "read_windows", counted)
    prepare(raws[0], TARGET, tmp_path / "store", jobs=1, band=(1, 60), align="subject")
    assert set(reads) == set(raws[1]) and set(reads.values()) == {2}  # for the alignment, then for the windows
    broken.add("sub-1_task-eyes")
    store = prepare(raws[0], TARGET, tmp_path / "other", jobs=1, band=(1, 60), align="subject", skip_unreadable=True)
    assert set(store.subjects) == {"0", "2"}
    left_out = {each.name: each for each in store.manifest.accounting.recordings_left_out}
    assert set(left_out) == {"sub-1_task-eyes", "sub-1_task-rest"}
    assert all("sub-1_task-eyes_eeg.fif: broken" in each.detail for each in left_out.values())


def test_a_subject_without_one_of_the_classes_is_not_aligned(raws, tmp_path):
    bids = shutil.copytree(raws[0], tmp_path / "bids")
    (bids / "sub-1" / "eeg" / "sub-1_task-eyes_eeg.fif").unlink()
    store = prepare(bids, TARGET, tmp_path / "store", jobs=1, band=(1, 60), align="subject")
    assert len(store.table["subject"].unique()) == 2
    reason = "subjects without a recording of BIDS task eyes, which align subject needs"
    assert store.manifest.accounting.counts()[reason] == 1
    with_all = prepare(bids, TARGET, tmp_path / "other", jobs=1, band=(1, 60), align="recording")
    assert len(with_all.table["subject"].unique()) == 3


def test_alignment_of_fewer_dimensions_than_channels_stays_finite(raws, tmp_path):
    """An average reference takes one, whose direction is left out."""
    store = prepare(raws[0], TARGET, tmp_path / "store", jobs=1, band=(1, 60), reference="average", align="recording")
    x_NCT = store.whole(range(12)).astype(float)
    covariance_CC = np.mean([x_CT @ x_CT.T / x_CT.shape[1] for x_CT in x_NCT], axis=0)
    np.testing.assert_allclose(np.linalg.eigvalsh(covariance_CC), [0] + [1] * (len(NAMES) - 1), atol=1e-5)


@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(1e-3, 1e3))
def test_alignment_does_not_depend_on_scale_or_order(seed, n_channels, factor):
    x_NCT = np.random.default_rng(seed).normal(size=(5, n_channels, 40)).astype(np.float32)
    mean, other = MeanCovariance(n_channels), MeanCovariance(n_channels)
    mean.add(x_NCT)
    for part in (x_NCT[3:], x_NCT[:3]):
        other.add(np.float32(factor) * part)
    root, same = inverse_root(mean.value()), inverse_root(other.value()) * np.float32(factor)
    np.testing.assert_allclose(root, same, rtol=1e-4, atol=1e-5)


def test_alignment_of_nothing_is_nothing():
    assert (inverse_root(MeanCovariance(3).value()) == 0).all()


def test_a_missing_sample_spreads_to_the_channels_that_depend_on_it():
    steps = Preprocessing(reference=("b",))
    matrix = mixing_matrix(steps, ("a", "b", "c"), ("a", "c"), frozenset())
    x_ST = np.arange(12.0).reshape(3, 4)
    x_ST[0, 1] = x_ST[1, 3] = np.nan
    np.testing.assert_array_equal(
        np.isnan(mix(matrix, x_ST)), [[False, True, False, True], [False, False, False, True]]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_windows": 0}, "max_windows 0: must be at least 1"),
        ({"min_windows": 5, "max_windows": 4}, r"min_windows 5: more than max_windows \(4\) leaves no person"),
        ({"seed": 1}, "seed 1: draws the windows of max_windows, which is not given"),
        ({"seed": -1, "max_windows": 4}, "seed -1: must be at least 0"),
        ({"baseline": (-0.2, 0)}, r"baseline -0.2 0: needs a first and a last time in seconds from 0 to 2, where"),
        ({"baseline": (0.5, 0.2)}, "baseline 0.5 0.2: needs a first and a last time"),
        ({"baseline": (0.001, 0.002)}, "baseline 0.001 0.002: holds no sample of a window at 200 Hz"),
        ({"reject": 0}, "reject 0: must be greater than 0 uV"),
        ({"flat": -1}, "flat -1: must be greater than 0 uV"),
        ({"reject": 10, "flat": 10}, r"reject 10: must be above flat \(10 uV\)"),
        ({"reject": float("inf")}, "reject: must be a finite number"),
        ({"sfreq": 2001.0}, r"^sfreq 2001: more than 10 times the rate of all recordings \(at most 200 Hz\)"),
        ({"band": (float("nan"), 40.0)}, "^band: must be a finite number"),
        ({"align": "riemann"}, "align: must be 'recording' or 'subject'"),
        ({"reference": []}, "reference : needs average, or names of channels"),
        ({"reference": ["M1", "M1"]}, "reference M1,M1: needs average, or names of channels, each once"),
        ({"reference": "M3"}, "no EEG channel 'M3'; did you mean"),
        ({"reference": list(NAMES)}, "no other channel is left"),
        ({"bads": "remove"}, "bads: must be 'drop' or 'interpolate'"),
        ({"bads": "interpolate"}, "bads interpolate: needs the positions of a montage"),
        ({"montage": "biosemi64"}, "montage biosemi64: positions are used by bads interpolate only"),
        (
            {"bads": "interpolate", "montage": "biosemi65"},
            "montage biosemi65: no montage of MNE; did you mean 'biosemi64'",
        ),
        ({"bads": "interpolate", "montage": "nope"}, "montage nope: no montage of MNE; available: .*, standard_1005,"),
        ({"notch": 100}, r"sampled at 200 Hz, so a notch must be below 99.5 Hz \(given 100\)"),
        ({"notch": []}, "notch : needs frequencies of 1 Hz and more, such as 50 or 50,100"),
        ({"notch": [0.5]}, "notch 0.5: needs frequencies of 1 Hz"),
        ({"notch": [50, 51]}, "notch 50,51: 50 and 51 Hz are too close"),
        ({"notch": ["mains"]}, r"^notch mains: needs a frequency in Hz or several, such as 50 or \(50, 100\)"),
        ({"notch": "fifty"}, r"^notch fifty: needs a frequency in Hz or several"),
        ({"band": 8}, r"^band 8: needs two numbers in Hz, such as \(0\.5, 40\)"),
        ({"band": (8,)}, "^band 8: needs two numbers in Hz"),
        ({"reference": 5}, "^reference 5: needs 'average', or names of channels"),
        ({"baseline": (None, 0)}, r"^baseline None,0: needs two numbers in seconds, such as \(-0\.2, 0\)"),
        ({"reject": {"eeg": 150e-6}}, r"^reject \{'eeg': 0\.00015\}: needs a number of microvolts, such as 150"),
        ({"flat": "low"}, "^flat low: needs a number of microvolts, such as 0.5"),
        ({"channels": 5}, "^channels 5: needs names of channels"),
        ({"channels": "Pzz"}, "no EEG channel 'Pzz'"),
    ],
)
def test_what_is_wrong_is_said_before_a_signal_is_read(raws, tmp_path, monkeypatch, options, message):
    monkeypatch.setattr("raypipe.data.store_build.make_shard", None)
    with pytest.raises(UserError, match=message) as error:
        prepare(raws[0], TARGET, tmp_path / "store", jobs=1, **options)
    assert "\n" not in str(error.value)


def test_flags_name_every_step():
    assert flags(Preprocessing()) == []
    assert flags(Preprocessing(notch=(50.0, 16.7), band=(0.0, 40.0))) == ["--notch", "50,16.7", "--band", "0", "40"]
