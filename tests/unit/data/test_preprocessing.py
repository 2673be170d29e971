"""Each step of preprocessing against MNE's own, on the same simulated EEG, and what is refused."""

from __future__ import annotations

import shutil

import mne
import numpy as np
import pytest

from raypipe.core.errors import UserError
from raypipe.data.montage import template_of
from raypipe.data.prepare import prepare
from raypipe.data.preprocessing import Preprocessing, flags
from raypipe.data.spatial import mix, mixing_matrix

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
    assert note == "Interpolated channels, and in how many recordings: O1 (1), Cz (1), Fp2 (1)."


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
    assert note.startswith("Channels used though channels.tsv marks them as bad") and note.endswith(": Cz (1).")


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
        ({"reference": []}, "reference : needs average, or names of channels"),
        ({"reference": ["M1", "M1"]}, "reference M1,M1: needs average, or names of channels, each once"),
        ({"reference": "M3"}, "no EEG channel 'M3'; did you mean"),
        ({"reference": list(NAMES)}, "no other channel is left"),
        ({"bads": "remove"}, "bads: Input should be 'drop' or 'interpolate'"),
        ({"bads": "interpolate"}, "bads interpolate: needs the positions of a montage"),
        ({"montage": "biosemi64"}, "montage biosemi64: positions are used by bads interpolate only"),
        (
            {"bads": "interpolate", "montage": "biosemi65"},
            "montage biosemi65: no montage of MNE; did you mean 'biosemi64'",
        ),
        ({"notch": 100}, r"sampled at 200 Hz, so a notch must be below 99.5 Hz \(given 100\)"),
        ({"notch": []}, "notch : needs frequencies of 1 Hz and more, such as 50 or 50,100"),
        ({"notch": [0.5]}, "notch 0.5: needs frequencies of 1 Hz"),
        ({"notch": [50, 51]}, "notch 50,51: 50 and 51 Hz are too close"),
        ({"notch": ["mains"]}, "notch/0: Input should be a valid number"),
    ],
)
def test_what_is_wrong_is_said_before_a_signal_is_read(raws, tmp_path, monkeypatch, options, message):
    monkeypatch.setattr("raypipe.data.prepare.make_shard", None)
    with pytest.raises(UserError, match=message) as error:
        prepare(raws[0], TARGET, tmp_path / "store", jobs=1, **options)
    assert "\n" not in str(error.value)


def test_flags_name_every_step():
    assert flags(Preprocessing()) == []
    assert flags(Preprocessing(notch=(50.0, 16.7), band=(0.0, 40.0))) == ["--notch", "50,16.7", "--band", "0", "40"]
