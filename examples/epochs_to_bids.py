"""Convert arrays of epochs to a BIDS folder that `raypipe prepare` reads.

This example reads the UCI EEG Database as `epochs.npz` and `trials.tsv` (16 people, 1 s epochs from stimulus onset, 64
channels at 256 Hz). For your own data, change `load`. The rest needs an array of epochs in volts, channel names and
types, and a table with the columns participant_id, value and any trait of the participant.

    python examples/epochs_to_bids.py FOLDER_WITH_EPOCHS OUT
    raypipe prepare OUT --target latency:S1_obj,S2_match,S2_nomatch --out STORE
"""

from __future__ import annotations

import sys
from pathlib import Path

import mne
import numpy as np
import pandas as pd

NOT_EEG = {"X": "eog", "Y": "eog", "nd": "misc"}


def load(folder: Path) -> tuple[np.ndarray, list[str], list[str], float, pd.DataFrame]:
    """Return epochs in volts (N, C, T), channel names, channel types, sampling rate in Hz, and a row per epoch."""
    with np.load(folder / "epochs.npz") as arrays:
        names = [str(name) for name in arrays["ch_names"]]
        epochs_NCT, sfreq = arrays["x_nV"] * 1e-9, float(arrays["sfreq"])
    table = pd.read_csv(folder / "trials.tsv", sep="\t")
    table["value"] = table["condition"].str.replace(" ", "_")
    return epochs_NCT, names, [NOT_EEG.get(name, "eeg") for name in names], sfreq, table


def write(folder: Path, out: Path) -> None:
    """Write one continuous recording per participant: the epochs one after the other, each with an event."""
    epochs_NCT, names, types, sfreq, table = load(folder)
    info = mne.create_info(names, sfreq, types)
    length = epochs_NCT.shape[2] / sfreq
    for subject, rows in table.groupby("participant_id"):
        eeg = out / f"sub-{subject}" / "eeg"
        eeg.mkdir(parents=True, exist_ok=True)
        stem = f"sub-{subject}_task-stimuli"
        x_CT = np.concatenate(list(epochs_NCT[rows.index]), axis=1)
        mne.io.RawArray(x_CT, info, verbose="error").save(eeg / f"{stem}_eeg.fif", overwrite=True, verbose="error")
        onsets = np.arange(len(rows)) * length
        events = pd.DataFrame({"onset": onsets, "duration": length, "value": rows["value"].to_numpy()})
        events.to_csv(eeg / f"{stem}_events.tsv", sep="\t", index=False)
    people = table.groupby("participant_id", as_index=False)["group"].first()
    people["participant_id"] = "sub-" + people["participant_id"].astype(str)
    people.to_csv(out / "participants.tsv", sep="\t", index=False)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/epochs_to_bids.py FOLDER_WITH_EPOCHS OUT")
    write(Path(sys.argv[1]), Path(sys.argv[2]))
