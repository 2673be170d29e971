"""The two targets of the EEG Foundation Challenge 2025 on HBN-EEG, as the organisers define them.

Sources: EEGDash, ``eegdash/hbn/windows.py``; the scorer's ingestion (100 Hz, 129 channels, windows of 2 s).
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from raypipe.core.errors import UserError, nearest
from raypipe.data import hbn
from raypipe.data.person_column import read_person_column
from raypipe.data.target_base import Labels, Segment, Segments, Target, WindowTiming, segments_of_subject, split_names
from raypipe.recordings.events import read_events, read_events_file
from raypipe.recordings.recording import Recording
from raypipe.recordings.signal import UnreadableRecordingError

if TYPE_CHECKING:
    import pandas as pd

CONTRAST_TASK = "contrastChangeDetection"
TRIAL_START = "contrastTrial_start"
FACTOR = "externalizing"
SCORER_SEED = 42

NO_FEEDBACK = "feedback columns, which events.tsv lacks (trials kept; the organisers' code wants them)"
MIN_COPIED_TRIALS = 5
"""Consecutive trials that must equal those of another run to be copies."""

_TARGETS = ("left_target", "right_target")
_PRESSES = ("left_buttonPress", "right_buttonPress")
_COMMON_OPTIONS = ("with-excluded", "no-caution")


@dataclass(frozen=True)
class _HbnTarget(Target):
    """Base class of the two targets: the options that they share."""

    bids_tasks: tuple[str, ...] = (CONTRAST_TASK,)
    with_excluded: bool = False
    """Keep the subjects that the start kit leaves out."""
    no_caution: bool = False
    """Leave out recordings that participants.tsv marks ``caution``."""

    def exclude(self, recordings: Sequence[Recording]) -> dict[Recording, str]:
        return hbn.excluded_recordings(recordings, with_excluded=self.with_excluded, no_caution=self.no_caution)


@dataclass(frozen=True)
class Challenge1(_HbnTarget):
    """Predict the response time after a contrast change.

    A window goes from 0.5 s to 2.5 s after the target. The response time is in seconds from the target
    (`contrast_trials`).
    """

    drop_duplicates: bool = False
    """Leave out trials that are copies of trials of an earlier run of the subject (`copied_trials`)."""
    mark_early: bool = False
    """Mark windows of trials in which a button was pressed before the target."""

    default_tmin: ClassVar[float] = 0.5
    event_locked: ClassVar[bool] = True
    target_is_time: ClassVar[bool] = True
    selects_recordings: ClassVar[bool] = True

    def extra_files(self, recording: Recording) -> list[Path]:
        return _earlier_runs(recording) if self.drop_duplicates else []

    def segment(self, recording: Recording, duration: float, timing: WindowTiming, labels: Labels | None) -> Segments:
        events = read_events(recording)
        trials = contrast_trials(events)
        left_out = Counter[str]()
        left_out[NO_FEEDBACK] = int("feedback" not in events.columns)
        shown = trials.dropna(subset=["stimulus"])
        left_out["trials without a target"] = len(trials) - len(shown)
        usable = self._answered(recording, trials, shown, left_out) if labels else shown.assign(rt=float("nan"))
        marks = ["early" if early and self.mark_early else "" for early in usable["early"]]
        rows = zip(usable["stimulus"], usable["rt"], marks, strict=True)
        return Segments([Segment(stimulus + timing.tmin, rt, mark) for stimulus, rt, mark in rows], left_out)

    def _answered(
        self, recording: Recording, trials: pd.DataFrame, shown: pd.DataFrame, left_out: Counter[str]
    ) -> pd.DataFrame:
        """Return the trials with a response, without copies if `drop_duplicates` is set; count the others."""
        answered = shown.dropna(subset=["rt"])
        left_out["trials without a response"] = len(shown) - len(answered)
        if not self.drop_duplicates:
            return answered
        copied = copied_trials(trials, [_trials_of(path) for path in _earlier_runs(recording)])
        fresh = answered[~copied[answered.index]]
        left_out["trials of a block that an earlier run repeats"] = len(answered) - len(fresh)
        return fresh


@dataclass(frozen=True)
class Challenge2(_HbnTarget):
    """Predict the externalizing factor of participants.tsv.

    Recordings of any BIDS task can be used; the scorer uses contrast-change detection. Windows are 4 s long and start
    every 2 s. A model sees a crop of 2 s of each: at random in training, where the scorer draws it in evaluation
    (`scorer_offsets`). Every window is scored separately.
    """

    default_window: ClassVar[float] = 4.0
    default_stride: ClassVar[float | None] = 2.0
    scorer_crops: ClassVar[bool] = True

    def default_crop(self, window: float) -> float | None:
        return window / 2

    def read_labels(self, recordings: Sequence[Recording]) -> Labels:
        column = read_person_column(recordings, FACTOR)
        if column.values and not column.is_numeric:
            raise UserError(f"{column.where} holds text ('{next(iter(column.values.values()))}'); it must be numbers")
        known = {subject: float(value) for subject, value in column.values.items()}
        if len(set(known.values())) < 2:
            raise UserError(
                f"target '{self.spec}': {len(known)} subject(s) have a value of '{FACTOR}'; two must differ"
            )
        return Labels("regression", (), known)

    def segment(self, recording: Recording, duration: float, timing: WindowTiming, labels: Labels | None) -> Segments:
        return segments_of_subject(recording, duration, timing, labels)


def scorer_offsets(count: int, spare: int) -> list[int]:
    """Return the start of the scorer's crop in each window of a recording, in samples from the window's start.

    The scorer makes one ``random.Random(42)`` per recording and draws one ``randint(0, spare)`` per window, in order.

    Parameters
    ----------
    count
        Number of windows of the recording.
    spare
        Samples of a window minus samples of a crop.
    """
    draw = random.Random(SCORER_SEED)
    return [draw.randint(0, spare) for _ in range(count)]


def contrast_trials(events: pd.DataFrame) -> pd.DataFrame:
    """Find stimulus and response of every contrast-change trial of a run.

    A trial lasts from one ``contrastTrial_start`` to the next, so the run's last start begins no trial. Its stimulus is
    its first target. Its response is its first button press, of either side, at or after the stimulus. Source: EEGDash,
    ``eegdash/hbn/windows.py``, the challenge organisers' code.

    Parameters
    ----------
    events
        Columns `onset` (s) and `value`.

    Returns
    -------
    pandas.DataFrame
        A row per trial: `start`, `stimulus` and `response` (s from the recording's start), `rt` (response - stimulus,
        s), NaN where there is none, and `early` (bool): a button was pressed between start and stimulus.
    """
    import pandas as pd

    events = events.sort_values("onset", kind="stable")
    onset = events["onset"].to_numpy(float)
    value = events["value"].astype(str)
    starts = onset[(value == TRIAL_START).to_numpy()]
    stimuli = onset[value.isin(_TARGETS).to_numpy()]
    presses = onset[value.isin(_PRESSES).to_numpy()]
    stimulus = _first_in(stimuli, starts[:-1], starts[1:])
    response = _first_in(presses, stimulus, starts[1:])
    early = np.searchsorted(presses, np.nan_to_num(stimulus)) > np.searchsorted(presses, starts[:-1])
    table = pd.DataFrame(
        {"start": starts[:-1], "stimulus": stimulus, "response": response, "rt": response - stimulus}, dtype=float
    )
    return table.assign(early=early & np.isfinite(stimulus))


def _first_in(times: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return the first of the sorted `times` in each half-open interval; NaN where there is none."""
    padded = np.append(times, np.inf)
    first = padded[np.searchsorted(times, begin)]
    return np.where(first < end, first, np.nan)


def copied_trials(trials: pd.DataFrame, earlier: Sequence[pd.DataFrame]) -> np.ndarray:
    """Find the trials that are copies of trials of earlier runs.

    In HBN-EEG, 285 runs consist of two blocks, one of which is another run of the same subject. A trial is a copy if it
    is one of `MIN_COPIED_TRIALS` or more consecutive trials that equal consecutive trials of another run. Two trials
    are equal if their times from start to target and from target to press are, to 10 ms. A trial without a target
    equals no other.

    Returns
    -------
    numpy.ndarray
        (N,) bool, true for copies.
    """
    own = _signature(trials)
    copied = np.zeros(len(own), dtype=bool)
    for table in earlier:
        other = _signature(table)
        if not len(own) or not len(other):
            continue
        same = (own[:, None] == other[None]).all(axis=2)
        # length[j + 1]: number of consecutive trials, up to `row` here and up to j in the other run, that are equal
        length = np.zeros(len(other) + 1, dtype=int)
        for row in range(len(own)):
            length[1:] = np.where(same[row], length[:-1] + 1, 0)
            if length.max() >= MIN_COPIED_TRIALS:
                copied[row - length.max() + 1 : row + 1] = True
    return copied


def _signature(trials: pd.DataFrame) -> np.ndarray:
    """Return the times (N, 2) that are compared, in units of 10 ms; NaN, which equals nothing, without a target."""
    table = np.stack([trials["stimulus"] - trials["start"], trials["rt"].fillna(-1.0)], axis=1)
    return np.asarray(np.round(100 * table), dtype=float).reshape(-1, 2)


def _run_number(name: str) -> int:
    found = re.search(r"_run-(\d+)", name)
    return int(found[1]) if found else 0


def _earlier_runs(recording: Recording) -> list[Path]:
    """Return the events.tsv of each earlier run of the same subject and task."""
    pattern = f"sub-{recording.subject}*_task-{recording.task}_*events.tsv"
    own = _run_number(recording.path.name)
    return sorted(path for path in recording.path.parent.glob(pattern) if _run_number(path.name) < own)


def _trials_of(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        return contrast_trials(read_events_file(path))
    except UnreadableRecordingError:  # reported when that run itself is read
        return contrast_trials(pd.DataFrame({"onset": [], "value": []}))


def _options(spec: str, argument: str, known: Sequence[str]) -> dict[str, Any]:
    chosen = split_names(spec, argument, 1) if argument else ()
    for name in chosen:
        if name not in known:
            raise UserError(f"target '{spec}': unknown option '{name}'; {nearest(name, known)}")
    return {name.replace("-", "_"): True for name in chosen}


def parse_challenge1(spec: str, argument: str) -> Target:
    """Make the target of challenge 1 from its options, separated by commas."""
    return Challenge1(spec, **_options(spec, argument, ("drop-duplicates", "mark-early", *_COMMON_OPTIONS)))


def parse_challenge2(spec: str, argument: str) -> Target:
    """Make the target of challenge 2 from its options, separated by commas."""
    return Challenge2(spec, **_options(spec, argument, _COMMON_OPTIONS))
