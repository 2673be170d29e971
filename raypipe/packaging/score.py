"""A submission's score on a store of windows, as the challenge's organisers compute it.

NRMSE is the root mean square error over the population standard deviation of the targets, all windows pooled; the
overall score is ``0.3 * challenge 1 + 0.7 * challenge 2``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raypipe.core.errors import UserError, nearest
from raypipe.data.challenge import CONTRAST_TASK
from raypipe.data.window_cache import open_windows
from raypipe.data.window_store import WindowStore
from raypipe.packaging import scorer
from raypipe.packaging.check import CheckReport, unpack
from raypipe.packaging.submission import MANIFEST, subject_mark

if TYPE_CHECKING:
    from rich.text import Text

SHARES = {1: 0.3, 2: 0.7}
TASKS = {"challenge1": 1, "challenge2": 2}
WHOSE = ("new", "all")


@dataclass(frozen=True)
class Score:
    """How one challenge was answered."""

    nrmse: float
    rmse: float
    r2: float
    constant: float
    """NRMSE of the best constant that needs no EEG but knows these targets: 1 by definition."""
    windows: int
    subjects: int


@dataclass(frozen=True)
class ScoreReport:
    """Scores by challenge, and what they are of."""

    path: Path
    scores: dict[int, Score]
    notes: list[str] = field(default_factory=list)

    @property
    def overall(self) -> float | None:
        """The challenge's score; None unless both halves are there."""
        if set(self.scores) != set(SHARES):
            return None
        return sum(SHARES[number] * one.nrmse for number, one in self.scores.items())

    def render(self) -> Text:
        """The report for a terminal."""
        from rich.text import Text

        text = Text()
        for number, one in sorted(self.scores.items()):
            text.append(
                f"challenge {number}  NRMSE {one.nrmse:.5f}  RMSE {one.rmse:.5f}  R2 {one.r2:+.5f}  "
                f"({one.windows} windows of {one.subjects} subjects; a constant at their mean: {one.constant:.5f})\n"
            )
        if self.overall is not None:
            text.append(f"overall      {self.overall:.5f}  (0.3 and 0.7 of the two; lower is better)\n")
        for note in self.notes:
            text.append(f"note: {note}\n")
        text.rstrip()
        return text

    def __str__(self) -> str:
        return self.render().plain


def compare(targets: ArrayLike, answers: ArrayLike, subjects: int = 0) -> Score:
    """Score answers (N,) against targets (N,).

    Raises
    ------
    UserError
        The targets are all the same, or an answer is no number.
    """
    y_N, answer_N = np.asarray(targets, np.float64), np.asarray(answers, np.float64)
    if y_N.ndim != 1 or y_N.shape != answer_N.shape:
        raise ValueError(f"targets {y_N.shape} and answers {answer_N.shape} must be (N,) both")
    if len(y_N) == 0 or np.ptp(y_N) == 0.0:
        raise UserError(f"the targets of all {len(y_N)} windows are the same, so there is no NRMSE; score more people")
    if not np.isfinite(answer_N).all():
        raise UserError(f"{int((~np.isfinite(answer_N)).sum())} answers are no numbers; run raypipe check on the zip")
    square = float(np.mean((y_N - answer_N) ** 2))
    spread = float(y_N.std())
    return Score(square**0.5 / spread, square**0.5, 1 - square / spread**2, 1.0, len(y_N), subjects)


def score_submission(
    path: str | Path,
    stores: Mapping[str, str | Path],
    *,
    release: str | None = None,
    whose: str = "new",
    device: str = "cpu",
) -> ScoreReport:
    """Run the scorer's loop over the windows of stores: batch 1, in order, in volts.

    Parameters
    ----------
    path
        The zip. Its code is run, in a process of its own but with your rights.
    stores
        ``challenge1`` and ``challenge2``, or one of them, to the store of its windows. Only recordings of contrast
        change are scored, as the organisers do.
    release
        Only subjects of this release of HBN-EEG, such as ``R5``.
    whose
        ``new``: subjects that the zip's models have not learned from, as far as its manifest says; ``all``.
    device
        Where to run the models.

    Raises
    ------
    UserError
        The zip cannot be run, does not answer a challenge, or there is nothing to score.
    """
    if whose not in WHOSE:
        raise UserError(f"--subjects {whose}: no such choice; {nearest(whose, WHOSE)}")
    for name in stores:
        if name not in TASKS:
            raise UserError(f"--task {name}: no task of the challenge; {nearest(name, TASKS)}")
    with tempfile.TemporaryDirectory(prefix="raypipe-score-") as scratch:
        folder = Path(scratch) / "submission"
        folder.mkdir()
        unpacked = CheckReport(Path(path))
        if not unpack(unpacked, folder):
            raise UserError(f"{path}: {unpacked.lines[-1].detail}")
        learned = _learned(folder)
        jobs: dict[str, Any] = {}
        chosen: dict[int, tuple[WindowStore, NDArray[np.int64]]] = {}
        notes: list[str] = []
        for name, where in stores.items():
            number = TASKS[name]
            store = open_windows(where)
            chosen[number] = store, _choose(store, name, learned.get(str(number)), release, whose, notes)
            jobs[str(number)] = _job(*chosen[number])
        request = {"device": device, "sfreq": next(iter(chosen.values()))[0].sfreq, "score": jobs}
        answers = _run(folder, Path(scratch), request)
    scores = {}
    for number, (store, index) in chosen.items():
        people = len(set(store.subjects[index].tolist()))
        targets = store.table["target"].to_numpy(np.float64)[index]
        scores[number] = compare(targets, answers[str(number)], people)
    return ScoreReport(Path(path), scores, notes)


def _learned(folder: Path) -> dict[str, set[str]]:
    """Marks of the subjects that each challenge's models were learned from; none where nothing says."""
    try:
        entries = json.loads((folder / MANIFEST).read_bytes())["challenges"]
        return {number: set(entry["learned_from"]) for number, entry in entries.items() if "learned_from" in entry}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _choose(
    store: WindowStore, name: str, learned: set[str] | None, release: str | None, whose: str, notes: list[str]
) -> NDArray[np.int64]:
    if store.manifest.task.partition("@")[0].partition(":")[0] != name:
        raise UserError(
            f"{store.path}: holds windows of task '{store.manifest.task}', not {name}; prepare them with --task {name}"
        )
    keep = np.array(store.table["task"] == CONTRAST_TASK)
    if not keep.any():
        raise UserError(f"{store.path}: no recording of {CONTRAST_TASK}, the task that the challenge scores")
    if release is not None:
        releases = store.releases
        keep &= np.array([releases.get(subject) == release for subject in store.subjects])
        if not keep.any():
            there = ", ".join(sorted({r for r in releases.values() if r})) or "none known"
            raise UserError(f"{store.path}: no subject of release {release}; there is: {there}")
    if learned is None:
        notes.append(f"{name}: the zip does not say whom it was learned from; these subjects may be among them")
    else:
        old = np.array([subject_mark(str(subject)) in learned for subject in store.subjects])
        count = len(set(store.subjects[keep & old].tolist()))
        if whose == "new":
            keep &= ~old
            if not keep.any():
                raise UserError(
                    f"{store.path}: the models have learned from every subject in it, so a score would say nothing; "
                    "prepare other people, or ask for it with --subjects all"
                )
            if count:
                notes.append(f"{name}: {count} subjects that the models have learned from were left out")
        elif count:
            notes.append(f"{name}: {count} subjects have been learned from; this score is no forecast")
    return np.flatnonzero(keep)


def _job(store: WindowStore, index: NDArray[np.int64]) -> dict[str, Any]:
    rows = store.table.iloc[index]
    return {
        "shards": [str(store.path / shard.file) for shard in store.manifest.shards],
        "windows": rows[["shard", "row", "offset"]].to_numpy().tolist(),
        "samples": store.crop_samples,
    }


def _run(folder: Path, scratch: Path, request: dict[str, Any]) -> dict[str, list[float]]:
    asked, answered, elsewhere = scratch / "request.json", scratch / "answer.json", scratch / "elsewhere"
    elsewhere.mkdir()
    asked.write_text(json.dumps(request), encoding="utf-8")
    command = [sys.executable, "-I", str(scorer.__file__), str(folder), str(asked), str(answered)]
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=False)
    if not answered.is_file():
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise UserError(f"the submission failed in the scorer's loop: {last[:300]}; raypipe check says more")
    found: dict[str, list[float]] = json.loads(answered.read_bytes())
    return found
