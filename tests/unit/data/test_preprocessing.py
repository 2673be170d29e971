"""Each step of preprocessing against MNE's own, on the same simulated EEG, and what is refused."""

from __future__ import annotations

import mne
import numpy as np
import pytest

from raypipe.core.errors import UserError
from raypipe.data.prepare import prepare
from raypipe.data.preprocessing import Preprocessing, flags

TASK = "bids-task:rest,eyes"
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
    store = prepare(folder, TASK, tmp_path / "store", jobs=1, window=2.0, **options)
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
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
        prepare(raws[0], TASK, tmp_path / "store", jobs=1, **options)
    assert "\n" not in str(error.value)


def test_flags_name_every_step():
    assert flags(Preprocessing()) == []
    assert flags(Preprocessing(notch=(50.0, 16.7), band=(0.0, 40.0))) == ["--notch", "50,16.7", "--band", "0", "40"]
