"""Readers and tasks on real recordings."""

from __future__ import annotations

import re
import shutil

import mne
import numpy as np
import pandas as pd
import pytest

from raypipe.data.challenge import contrast_trials
from raypipe.data.prepare import prepare
from raypipe.data.target_base import Labels, WindowTiming
from raypipe.data.targets import parse_target
from raypipe.data.windower import OpenRecording
from raypipe.recordings.channels import eeg_channels
from raypipe.recordings.events import read_events
from raypipe.recordings.layout import find_recordings
from raypipe.recordings.recording import Recording
from raypipe.recordings.signal import Channel, Signal, Span
from tests.support.recordings import eeg_names, microvolts

pytestmark = pytest.mark.real

EEG_19 = ["Fp1", "Fp2", "F3", "F4", "F7", "F8", "T3", "T4", "C3", "C4", "T5", "T6", "P3", "P4", "O1", "O2"]
EEG_19 += ["Fz", "Cz", "Pz"]


def test_edf_channel_types_come_from_the_sidecar(real_data):
    recordings = find_recordings(real_data / "eegmat_bids")
    assert len(recordings) == 72 and len({r.subject for r in recordings}) == 36
    assert len(OpenRecording(recordings[0]).signal.channels) == 21
    assert eeg_names(recordings[0]) == EEG_19


def test_bdf_and_edf_of_the_same_subject_agree(real_data):
    for bdf in find_recordings(real_data / "eegmat_bdf_sample"):
        edf = Recording(
            real_data / "eegmat_bids" / f"sub-{bdf.subject}" / "eeg" / bdf.path.with_suffix(".edf").name,
            real_data / "eegmat_bids",
            bdf.subject,
        )
        a_CT, b_CT = microvolts(bdf, EEG_19), microvolts(edf, EEG_19)
        np.testing.assert_allclose(a_CT, b_CT, atol=0.02)


def test_rest_and_arithmetic_make_a_store_of_two_classes(real_data, tmp_path):
    store = prepare(real_data / "eegmat_bdf_sample", "bids-task:rest,arithmetic", tmp_path / "s", window=4, jobs=1)
    assert store.classes == ["rest", "arithmetic"] and store.channels == EEG_19
    assert store.window_samples == 400 and len(set(store.subjects)) == 3
    arithmetic = store.table[store.table["task"] == "arithmetic"]
    assert (arithmetic["target"] == 1).all() and len(arithmetic) == 3 * 15
    assert 2 < store.gather(range(len(store))).std() < 50


def test_eeglab_files_make_a_store(real_data, tmp_path):
    source = real_data / "format_fixtures" / "eeglab_set"
    folder = tmp_path / "sub-01" / "eeg"
    folder.mkdir(parents=True)
    shutil.copy(source / "eeglab_data.fdt", folder / "eeglab_data.fdt")
    shutil.copy(source / "eeglab_data.set", folder / "sub-01_task-square_eeg.set")
    (recording,) = find_recordings(tmp_path)
    signal = OpenRecording(recording).signal
    assert {c.rate for c in signal.channels} == {128} and len(signal.channels) == 32
    raw = mne.io.read_raw_eeglab(source / "eeglab_data.set", verbose="ERROR")
    assert round(signal.spans[-1].onset * 128 + signal.spans[-1].duration * 128) == 30504 == raw.n_times
    np.testing.assert_allclose(
        microvolts(recording)[:, 100:200], raw.get_data(eeg_names(recording), 100, 200) * 1e6, rtol=1e-6
    )
    # Write the file's own markers as BIDS events.
    rows = [f"{a['onset']}\t0\t{a['description']}" for a in raw.annotations]
    recording.sidecar("events.tsv").write_text("onset\tduration\tvalue\n" + "\n".join(rows) + "\n")
    recording.sidecar("channels.tsv").write_text("name\ttype\tunits\nEOG1\tEOG\tuV\nEOG2\tEOG\tuV\nFPz\tn/a\tn/a\n")
    assert eeg_names(recording) == ["FPz"]
    recording.sidecar("channels.tsv").write_text(
        "name\ttype\n" + "".join(f"{c.name}\tEEG\n" for c in signal.channels[1:])
    )
    assert len(eeg_names(recording)) == 31
    shutil.copytree(tmp_path / "sub-01", tmp_path / "sub-02")
    for path in (tmp_path / "sub-02" / "eeg").glob("sub-01*"):
        path.rename(path.with_name(path.name.replace("sub-01", "sub-02")))
    store = prepare(tmp_path, "latency:square", tmp_path / "store", band=(1, 30), sfreq=64, jobs=1)
    assert len(store) == 2 * 80 and store.window_samples == 64 and store.crop_samples == 32
    assert 1 < store.gather(range(10)).std() < 100


@pytest.fixture(scope="module")
def trials(real_data):
    return pd.read_csv(real_data / "hbn_text" / "all_ccd_trials.csv.gz")


def test_challenge1_trials_equal_the_table_of_all_runs(real_data, trials):
    """Compare every run whose events are stored. They differ where events share an onset: the table uses their order in
    the file, the organisers' code (and ours) the onset. A press at the next trial's start is then late, and one at the
    target is 0 s."""
    runs = dict(list(trials[~trials["last"]].groupby(["ds", "participant_id", "run"])))
    compared = usable = late = zero = 0
    for path in sorted((real_data / "hbn_text").glob("ds*/sub-*/eeg/*_events.tsv")):
        run = int(re.search(r"run-(\d+)", path.name)[1])
        expected = runs[path.parts[-4], path.parts[-3], run]
        recording = Recording(path.with_name(path.name.replace("events.tsv", "eeg.bdf")), real_data, path.parts[-3])
        found = contrast_trials(read_events(recording))
        assert len(found) == len(expected)
        assert found["stimulus"].notna().tolist() == expected["has_stim"].tolist()
        rt = expected["rt"].where(expected["has_resp"]).to_numpy()
        ends = np.append(found["start"].to_numpy()[1:], np.inf)
        ours = found["rt"].to_numpy()
        at_end = np.isclose(found["stimulus"] + rt, ends, rtol=0, atol=1e-9) & np.isnan(ours)
        at_target = (ours == 0) & (rt != 0)
        tied = at_end | at_target
        np.testing.assert_allclose(ours[~tied], rt[~tied], atol=1e-9)
        compared, usable = compared + 1, usable + int(np.isfinite(ours).sum())
        late, zero = late + int(at_end.sum()), zero + int(at_target.sum())
    assert (compared, usable, late, zero) == (411, 8576, 4, 3)


def test_the_number_and_distribution_of_hbn_trials(trials):
    usable = trials[~trials["last"] & trials["has_resp"]]
    assert len(usable) == 116_149
    assert abs(usable["rt"].mean() - 1.598) < 5e-4 and abs(usable["rt"].std() - 0.408) < 5e-4


def test_hbn_sidecars_without_types(real_data):
    """Releases 10 and 11 have n/a for every channel's type, so labels decide."""
    (path, *_) = sorted((real_data / "hbn_text" / "ds005515").glob("sub-*/eeg/*_channels.tsv"))
    recording = Recording(path.with_name(path.name.replace("channels.tsv", "eeg.bdf")), real_data, "x")
    names = [*(f"E{i}" for i in range(1, 129)), "Cz"]

    class Unread(Signal):
        channels = tuple(Channel(name, 500.0, "uV") for name in names)
        spans = (Span(0.0, 1.0),)

        def read(self, picks, span, begin, stop):
            raise AssertionError

    assert pd.read_csv(path, sep="\t", keep_default_na=False)["type"].unique().tolist() == ["n/a"]
    assert list(eeg_channels(recording, Unread()).names) == names


def test_hbn_participants(real_data):
    root = real_data / "hbn_text" / "ds005505"
    recordings = [
        Recording(path, root, path.parts[-3].removeprefix("sub-"), task="contrastChangeDetection")
        for path in sorted(root.glob("sub-*/eeg/*_events.tsv"))
    ]
    labels = parse_target("participants:externalizing").read_labels(recordings)
    assert labels.kind == "regression" and labels.by_subject["NDARAC904DMU"] == 0.325
    assert parse_target("participants:sex").read_labels(recordings).classes == ("F", "M")


def test_hbn_distribution_of_response_times(trials):
    """Check constants of the simulation and the docs on the organisers' trials of all 5390 runs."""
    inner = trials[~trials["last"]]
    usable = inner[inner["has_resp"]]
    rt, runs = usable["rt"], inner.groupby(["ds", "participant_id", "run"])["has_resp"].sum()
    assert len(trials) == 141_826 and len(inner) == 136_436
    assert abs(inner["has_stim"].mean() - 0.998) < 5e-4 and abs(inner["has_resp"].mean() - 0.851) < 5e-4
    assert runs.median() == 22 and (runs == 0).sum() == 9
    assert (runs < 5).sum() == 53  # including the nine without any
    assert rt.min() == pytest.approx(0.006) and rt.max() == pytest.approx(2.498) and abs(rt.skew() + 0.86) < 0.01
    found = rt.quantile([0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99]).tolist()
    np.testing.assert_allclose(found, [0.19, 0.92, 1.38, 1.626, 1.87, 2.21, 2.36], atol=0.006)
    assert abs((rt < 0.5).mean() - 0.024) < 1e-3
    early = usable["n_presses_before_stim"] > 0
    assert abs(early.mean() - 0.122) < 1e-3 and abs(rt[early].mean() - 1.44) < 5e-3
    by_subject = usable.groupby("participant_id")["rt"]
    assert abs(by_subject.mean().std() - 0.214) < 5e-3 and by_subject.size().median() == 64


def test_early_presses_equal_the_table(real_data, trials):
    """Compare trials with a target in every run whose events are stored."""
    runs = dict(list(trials[~trials["last"]].groupby(["ds", "participant_id", "run"])))
    early = differ = 0
    for path in sorted((real_data / "hbn_text").glob("ds*/sub-*/eeg/*_events.tsv")):
        expected = runs[path.parts[-4], path.parts[-3], int(re.search(r"run-(\d+)", path.name)[1])]
        recording = Recording(path.with_name(path.name.replace("events.tsv", "eeg.bdf")), real_data, path.parts[-3])
        found = contrast_trials(read_events(recording))["early"].to_numpy()
        wanted = ((expected["n_presses_before_stim"] > 0) & expected["has_stim"]).to_numpy()
        early, differ = early + int(wanted.sum()), differ + int((found != wanted).sum())
    # They differ where a press shares its onset with a target or a start: the table uses the order in the file.
    assert (early, differ) == (1615, 8)


def test_hbn_duplicated_blocks(real_data):
    """Find the real runs that repeat a block of another run of the same subject."""
    option = parse_target("challenge1:drop-duplicates")
    copies, subjects = 0, set()
    for path in sorted((real_data / "hbn_text").glob("ds*/sub-*/eeg/*_events.tsv")):
        subject = path.parts[-3].removeprefix("sub-")
        run = re.search(r"run-(\d+)", path.name)[1]
        eeg = path.with_name(path.name.replace("events.tsv", "eeg.bdf"))
        recording = Recording(eeg, real_data, subject, task="contrastChangeDetection", run=run)
        cut = option.segment(recording, 1e4, WindowTiming(2, 2, 0.5), Labels("regression"))
        found = cut.left_out["trials of a block that an earlier run repeats"]
        copies += found
        subjects |= {subject} if found else set()
    assert (copies, len(subjects)) == (628, 31)
