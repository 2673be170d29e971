from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from raypipe.core.errors import UserError
from raypipe.data.challenge import contrast_trials
from raypipe.data.windower import OpenRecording
from raypipe.recordings.events import read_events
from raypipe.recordings.layout import find_recordings
from raypipe.recordings.participants import read_participants
from raypipe.simulation.contrast_change import simulate
from tests.support.recordings import microvolts

SMALL = {"subjects": 2, "channels": 5, "trials": 6}


def contents(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def trials_of(root: Path):
    return [contrast_trials(read_events(recording)) for recording in find_recordings(root)]


def test_a_simulated_folder_has_the_form_of_hbn(tmp_path):
    root = simulate(tmp_path / "a", **SMALL, runs=2)
    recordings = find_recordings(root)
    assert [(r.subject, r.task, r.run) for r in recordings[:2]] == [
        ("SIM0000", "contrastChangeDetection", "1"),
        ("SIM0000", "contrastChangeDetection", "2"),
    ]
    channels = OpenRecording(recordings[0]).channels
    assert set(channels.rates) == {100.0} and channels.names == ("E1", "E2", "E3", "E4", "Cz")
    x_CT = microvolts(recordings[0])
    assert not x_CT[-1].any()
    assert 3 < x_CT[:-1].std() < 40
    events = read_events(recordings[1])
    codes = dict(zip(events["value"], events["event_code"], strict=True))
    assert events["value"].iloc[0] == "contrastChangeB2_start" and codes["contrastChangeB2_start"] == "95"
    assert codes["contrastTrial_start"] == "5"
    assert events["value"].iloc[-1] == "contrastTrial_start"
    assert events["onset"].iloc[-1] + 2 < x_CT.shape[1] / 100
    assert {"duration", "feedback"} <= set(events.columns)
    participants = read_participants(root)
    assert participants.index.tolist() == ["SIM0000", "SIM0001"]
    assert {"externalizing", "p_factor", "contrastChangeDetection_1"} <= set(participants.columns)
    assert not list(root.rglob(".*"))


def test_the_same_arguments_give_the_same_bytes(tmp_path):
    a = simulate(tmp_path / "a", **SMALL)
    b = simulate(tmp_path / "b", **SMALL)
    assert contents(a) == contents(b)
    simulate(a, **SMALL)
    assert contents(a) == contents(b)
    assert contents(simulate(tmp_path / "c", **SMALL, seed=1)) != contents(a)


def test_a_subject_does_not_depend_on_the_number_of_subjects(tmp_path):
    few = contents(simulate(tmp_path / "few", **SMALL))
    more = contents(simulate(tmp_path / "few", **(SMALL | {"subjects": 3})))
    again = contents(simulate(tmp_path / "more", **(SMALL | {"subjects": 3})))
    assert more == again
    assert all(more[name] == digest for name, digest in few.items() if name.startswith("sub-"))


def test_an_interrupted_simulation_is_completed(tmp_path):
    whole = contents(simulate(tmp_path / "a", **SMALL))

    def stop(done, total, text):
        assert (total, text) == (2, f"sub-SIM{done - 1:04d}")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path / "b", **SMALL, progress=stop)
    (tmp_path / "b" / ".sub-SIM0001.0000.part" / "eeg").mkdir(parents=True)
    simulate(tmp_path / "b", **SMALL)
    assert contents(tmp_path / "b") == whole


def test_response_times_are_distributed_as_in_hbn(tmp_path):
    trials = trials_of(simulate(tmp_path / "a", subjects=60, channels=2, trials=20))
    rt = np.concatenate([t["rt"].dropna() for t in trials])
    assert abs(rt.mean() - 1.598) < 0.08
    assert abs(rt.std() - 0.408) < 0.05
    assert rt.min() > 0.2 and rt.max() < 2.5
    means = np.array([t["rt"].mean() for t in trials])
    assert abs(means.std() - 0.214) < 0.06
    assert 0.9 < np.mean(np.concatenate([t["rt"].notna() for t in trials])) < 1


def evoked_correlation(root: Path) -> float:
    """Return the correlation over trials of the response time with the latency of the centro-parietal maximum."""
    rts, peaks = [], []
    for recording in find_recordings(root):
        x_T = microvolts(recording)[0]
        x_T = np.convolve(x_T, np.hanning(31) / np.hanning(31).sum(), "same")
        for _, trial in contrast_trials(read_events(recording)).dropna().iterrows():
            start = round(trial["stimulus"] * 100)
            rts.append(trial["rt"])
            peaks.append(np.argmax(x_T[start : start + 260]))
    return float(np.corrcoef(rts, peaks)[0, 1])


def test_the_evoked_response_follows_the_response_time_unless_null(tmp_path):
    design = {"subjects": 12, "channels": 9, "trials": 20}
    assert evoked_correlation(simulate(tmp_path / "linked", **design)) > 0.3
    assert abs(evoked_correlation(simulate(tmp_path / "null", **design, null=True))) < 0.2


def theta_correlation(root: Path) -> float:
    """Return the correlation over recordings of the log power of theta with the subject's factor."""
    factors = read_participants(root)["externalizing"].astype(float)
    power = []
    for recording in find_recordings(root):
        x_CT = microvolts(recording)[:-1]
        spectrum = np.abs(np.fft.rfft(x_CT)) ** 2
        hertz = np.fft.rfftfreq(x_CT.shape[1], 0.01)
        power.append(np.log(spectrum[:, (hertz > 5) & (hertz < 7)].sum()))
    return float(np.corrcoef(power, factors)[0, 1])


def test_theta_follows_the_factor_unless_null(tmp_path):
    design = {"subjects": 30, "channels": 9, "trials": 5}
    assert theta_correlation(simulate(tmp_path / "linked", **design)) > 0.4
    assert abs(theta_correlation(simulate(tmp_path / "null", **design, null=True))) < 0.4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subjects": 0}, "subjects 0: must be at least 1"),
        ({"channels": 1}, "channels 1: must be at least 2"),
        ({"trials": 0}, "trials 0: must be at least 1"),
        ({"runs": 4}, "runs 4: the task has at most 3"),
        ({"sfreq": 20}, "sfreq 20: must be at least 50 Hz"),
        ({"sfreq": 100.5}, "sfreq 100.5: must be a whole number"),
        ({"seed": -1}, "seed -1: must not be negative"),
    ],
)
def test_wrong_arguments_give_one_line(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        simulate(tmp_path / "a", **(SMALL | options))
    assert not (tmp_path / "a").exists()


def test_folders_with_other_content_are_refused(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(UserError, match="not an empty folder"):
        simulate(tmp_path, **SMALL)
    other = tmp_path / "other"
    other.mkdir()
    (other / "dataset_description.json").write_text('{"Name": "someone\'s"}')
    with pytest.raises(UserError, match="did not simulate"):
        simulate(other, **SMALL)
    simulate(tmp_path / "mine", **SMALL)
    with pytest.raises(UserError, match="was simulated with channels 5, not 6"):
        simulate(tmp_path / "mine", **(SMALL | {"channels": 6}))
