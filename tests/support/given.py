"""Windows with targets and subjects, as arrays and as the BIDS folder that holds the same signals."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pandas as pd
from numpy.typing import NDArray

CHANNELS = ("Fz", "Cz", "Pz", "Oz")
SFREQ = 100.0


@dataclass
class Given:
    """Windows in volts that float32 holds exactly, those of a subject one after the other."""

    X: NDArray[Any]
    y: NDArray[Any]
    subject: NDArray[Any]

    def arguments(self, **others: Any) -> dict[str, Any]:
        return {"X_NCT": self.X, "y": self.y, "subject": self.subject, "sfreq": SFREQ, "ch_names": CHANNELS} | others


def simulate_windows(subjects: int = 6, each: int = 10, samples: int = 100, seed: int = 0) -> Given:
    """Pink noise of 10 uV; the windows of class ``right`` have an oscillation of 10 Hz at ``Oz``."""
    rng = np.random.default_rng(seed)
    n = subjects * each
    spectrum = rng.standard_normal((n, len(CHANNELS), samples // 2 + 1)) + 1j * rng.standard_normal(
        (n, len(CHANNELS), samples // 2 + 1)
    )
    x_NCT = np.fft.irfft(spectrum / np.sqrt(np.arange(1, samples // 2 + 2)), samples)
    x_NCT *= 10e-6 / x_NCT.std()
    y = np.array(["left", "right"])[rng.permutation(n) % 2]
    x_NCT[y == "right", -1] += 15e-6 * np.sin(2 * np.pi * 10 * np.arange(samples) / SFREQ)
    return Given(x_NCT.astype(np.float32), y, np.repeat([f"{k:02d}" for k in range(1, subjects + 1)], each))


def write_bids(folder: Path, given: Given, people: pd.DataFrame | None = None) -> Path:
    """Write one recording per subject: its windows one after the other, an event at the start of each."""
    length = given.X.shape[2] / SFREQ
    for subject in dict.fromkeys(given.subject):
        rows = np.flatnonzero(given.subject == subject)
        eeg = folder / f"sub-{subject}" / "eeg"
        eeg.mkdir(parents=True)
        raw = mne.io.RawArray(np.concatenate(given.X[rows], axis=1), info(), verbose="ERROR")
        raw.save(eeg / f"sub-{subject}_eeg.fif", verbose="ERROR")
        events = {"onset": np.arange(len(rows)) * length, "duration": length, "value": given.y[rows]}
        pd.DataFrame(events).to_csv(eeg / f"sub-{subject}_events.tsv", sep="\t", index=False)
    if people is not None:
        people.to_csv(folder / "participants.tsv", sep="\t", index=False)
    return folder


def info() -> mne.Info:
    return mne.create_info(list(CHANNELS), SFREQ, "eeg")


def store_files(folder: Path) -> dict[str, bytes]:
    """The files of a store but its manifest, settings and records of shards."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".json"
    }


def manifest_of(folder: Path) -> dict[str, Any]:
    """The manifest of a store without the fields that say where its windows came from, and without its own digest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["settings"], manifest["plan"]["target"], manifest["digest"]
    for shard in manifest["shards"]:
        del shard["fingerprint"]
    return manifest


def save_epochs(folder: Path, given: Given) -> None:
    """Write a file of epochs per subject, with metadata."""
    for number, subject in enumerate(dict.fromkeys(given.subject)):
        rows = np.flatnonzero(given.subject == subject)
        times = np.arange(len(rows)) * given.X.shape[2]
        events = np.stack([times, 0 * times, 1 + (given.y[rows] == "right")], axis=1)
        metadata = pd.DataFrame({"subject": subject, "rt": 0.3 + 0.01 * rows, "site": "AB"[number % 2]})
        epochs = mne.EpochsArray(
            given.X[rows], info(), events, 0, {"left": 1, "right": 2}, metadata=metadata, verbose="ERROR"
        )
        epochs.save(folder / f"sub-{subject}_epo.fif", verbose="ERROR")
