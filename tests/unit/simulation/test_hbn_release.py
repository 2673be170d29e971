from __future__ import annotations

import numpy as np
import pytest

from raypipe.core.errors import UserError
from raypipe.data.challenge import contrast_trials
from raypipe.recordings.events import read_events
from raypipe.recordings.layout import find_recordings
from raypipe.simulation.hbn_release import simulate_release

REAL = """onset\tduration\tsample\tvalue\tevent_code\tfeedback
0\tn/a\t0\tbreak cnt\tbreak cnt\tn/a
80\tn/a\t1\tcontrastTrial_start\t5\tn/a
82.8\tn/a\t1\tright_target\t9\tn/a
84.3\tn/a\t1\tright_buttonPress\t13\tsmiley_face
86\tn/a\t1\tcontrastTrial_start\t5\tn/a
86.5\tn/a\t1\t9999\t9999\tn/a
88\tn/a\t1\tleft_target\t8\tn/a
92\tn/a\t1\tcontrastTrial_start\t5\tn/a
94\tn/a\t1\tleft_target\t8\tn/a
95\tn/a\t1\tleft_buttonPress\t12\tsmiley_face
99\tn/a\t1\tcontrastTrial_start\t5\tn/a
"""


def test_simulated_runs_have_the_events_of_real_runs(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "sub-x_task-contrastChangeDetection_run-1_events.tsv").write_text(REAL)
    out = simulate_release(tmp_path / "hbn", events=tmp_path / "real", subjects=2, channels=5, trials=2)
    recordings = [r for name in ("R1", "R5") for r in find_recordings(out / f"{name}_mini_L100_bdf")]
    assert [r.subject for r in recordings] == ["R1SIM0000", "R1SIM0001", "R5SIM0000", "R5SIM0001"]
    events = read_events(recordings[0])
    assert "9999" in set(events["value"]) and "sample" in events and events["onset"].iloc[0] == 2.0
    trials = contrast_trials(events)
    np.testing.assert_allclose(trials["rt"], [1.5, np.nan])
    assert "R5" in (out / "R5_mini_L100_bdf" / "participants.tsv").read_text()
    # More subjects with other events, or with simulated ones, would be another data set.
    simulate_release(tmp_path / "hbn", events=tmp_path / "real", subjects=2, channels=5, trials=2)
    with pytest.raises(UserError, match=r"was simulated with events \w{12}, not simulated; choose another folder"):
        simulate_release(tmp_path / "hbn", subjects=3, channels=5, trials=2)


def test_events_without_a_usable_trial_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no contrastChangeDetection events\.tsv"):
        simulate_release(tmp_path / "hbn", events=tmp_path, subjects=2)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("onset", "onst", r"run-1_events\.tsv: no column 'onset'; did you mean 'onst'"),
        ("value", "code", r"run-1_events\.tsv: no column 'value'"),
        ("88\t", "soon\t", r"run-1_events\.tsv: column 'onset' is not a number of seconds"),
    ],
)
def test_damaged_events_give_one_line(tmp_path, old, new, message):
    path = tmp_path / "sub-x_task-contrastChangeDetection_run-1_events.tsv"
    path.write_text(REAL.replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        simulate_release(tmp_path / "hbn", events=tmp_path, subjects=2)
