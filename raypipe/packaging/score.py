"""Score a submission on a store of windows as the challenge's organisers do.

NRMSE is the root mean square error over the population standard deviation of the targets, all windows pooled; the
overall score is ``0.3 * challenge 1 + 0.7 * challenge 2``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import TypeAdapter

from raypipe.core.errors import UserError, nearest
from raypipe.core.text import one_line
from raypipe.data.challenge import CONTRAST_TASK
from raypipe.data.window_cache import open_windows
from raypipe.data.window_store import WindowStore
from raypipe.packaging.archive import LayoutError, unpack_submission
from raypipe.packaging.challenge_windows import other_cuts, other_steps, scorer_misfit, shown_from
from raypipe.packaging.manifest import MANIFEST, SubmissionManifest, subject_hash
from raypipe.packaging.scorer import MAX_SECONDS_PER_WINDOW
from raypipe.packaging.scorer_process import ScorerProcessError, run_scorer
from raypipe.storage.local_path import local_path
from raypipe.storage.regular_files import read_regular
from raypipe.storage.scratch import scratch_folder
from raypipe.training.device import parse_device

if TYPE_CHECKING:
    from rich.text import Text

WEIGHTS = {1: 0.3, 2: 0.7}
"""Weight of each challenge in the overall score."""
CHALLENGES = {"challenge1": 1, "challenge2": 2}
"""Number of each challenge by target."""
SUBJECTS = ("new", "all")
START_SECONDS = 300.0
"""Time for the scorer's process to start and to load the models."""

_ANSWER: TypeAdapter[dict[str, list[float]]] = TypeAdapter(dict[str, list[float]])


@dataclass(frozen=True)
class ChallengeScore:
    """Scores of one challenge."""

    nrmse: float
    rmse: float
    r2: float
    constant: float
    """NRMSE of the targets' mean, which needs the targets but no EEG: 1 by definition."""
    windows: int
    subjects: int


@dataclass(frozen=True)
class ScoreReport:
    """Scores by challenge, and notes on them."""

    path: Path
    scores: dict[int, ChallengeScore]
    notes: list[str] = field(default_factory=list)

    @property
    def overall(self) -> float | None:
        """The overall score; None unless both challenges are scored."""
        if set(self.scores) != set(WEIGHTS):
            return None
        return sum(WEIGHTS[challenge] * score.nrmse for challenge, score in self.scores.items())

    def render(self) -> Text:
        """Return the report for a terminal."""
        from rich.text import Text

        text = Text()
        for challenge, score in sorted(self.scores.items()):
            text.append(
                f"challenge {challenge}  NRMSE {score.nrmse:.5f}  RMSE {score.rmse:.5f}  R2 {score.r2:+z.5f}  "
                f"({score.windows} windows of {score.subjects} subjects; their mean target: {score.constant:.5f})\n"
            )
        if self.overall is not None:
            text.append(f"overall      {self.overall:.5f}  (weights 0.3 and 0.7; lower is better)\n")
        for note in self.notes:
            text.append(one_line(f"note: {note}") + "\n")
        text.rstrip()
        return text

    def __str__(self) -> str:
        return self.render().plain


def score_predictions(targets: ArrayLike, predictions: ArrayLike, subjects: int = 0) -> ChallengeScore:
    """Score predictions (N,) of targets (N,).

    Raises
    ------
    UserError
        The targets are all the same, or a prediction is not finite.
    """
    y_N, predicted_N = np.asarray(targets, np.float64), np.asarray(predictions, np.float64)
    if y_N.ndim != 1 or y_N.shape != predicted_N.shape:
        raise ValueError(f"targets {y_N.shape} and predictions {predicted_N.shape} must both be (N,)")
    n = len(y_N)
    if n == 0 or np.ptp(y_N) == 0.0:
        raise UserError(f"the targets of all {n} windows are the same, so there is no NRMSE; score more subjects")
    if not np.isfinite(predicted_N).all():
        count = int((~np.isfinite(predicted_N)).sum())
        raise UserError(f"{count} predictions are not finite; run raypipe check on the zip")
    mse, sd = float(np.mean((y_N - predicted_N) ** 2)), float(y_N.std())
    return ChallengeScore(mse**0.5 / sd, mse**0.5, 1 - mse / sd**2, 1.0, n, subjects)


def score_submission(
    path: str | Path,
    stores: Mapping[str, str | Path],
    *,
    release: str | None = None,
    subjects: str = "new",
    device: str = "cpu",
) -> ScoreReport:
    """Run the scorer's loop over the windows of stores: batch size 1, in order, in volts.

    Parameters
    ----------
    path
        The zip. Its code is run, in a separate process but with your permissions.
    stores
        For ``challenge1``, ``challenge2`` or both, the store of the windows. Only recordings of contrast change
        detection are scored, as in the challenge.
    release
        Score only subjects of this release of HBN-EEG, such as ``R5``.
    subjects
        ``new``: subjects that the zip's models were not trained on, according to its manifest. ``all``: every subject.
    device
        ``cpu`` or ``cuda``.

    Raises
    ------
    UserError
        The zip cannot be run, does not answer a challenge, there is nothing to score, or torch can use no GPU.
    """
    if subjects not in SUBJECTS:
        raise UserError(f"--subjects {subjects}: no such choice; {nearest(subjects, SUBJECTS)}")
    parse_device(device)
    for target in stores:
        if target not in CHALLENGES:
            raise UserError(f"--target {target}: not a target of the challenge; {nearest(target, CHALLENGES)}")
    path = local_path(path, "a submission is scored", "copy it here")
    places = {target: local_path(where, "windows are scored", "copy them here") for target, where in stores.items()}
    with scratch_folder() as scratch:
        folder = scratch / "submission"
        folder.mkdir()
        try:
            unpack_submission(path, folder)
        except LayoutError as error:
            raise UserError(f"{path}: {error.detail}") from None
        try:
            trained_on = _training_subjects(folder)
        except UserError as error:
            raise UserError(f"{path}: {str(error).replace(f'{folder}/', '')}") from None
        parts, notes = [], []
        for target, where in places.items():
            part, more = select_windows(open_windows(where), target, trained_on, release, only_new=subjects == "new")
            parts.append(part)
            notes += more
        predictions = _predict(path, folder, parts, device)
    return ScoreReport(path, {part.challenge: part.score(predictions[part.challenge]) for part in parts}, notes)


@dataclass(frozen=True)
class ScoredWindows:
    """Windows that one challenge is scored on."""

    challenge: int
    store: WindowStore
    index: NDArray[np.int64]

    def request(self) -> dict[str, Any]:
        """Return what `scorer.predict_store` needs."""
        rows = self.store.table.iloc[self.index]
        return {
            "shards": [str(self.store.path / shard.file) for shard in self.store.manifest.shards],
            "windows": rows[["shard", "row", "offset"]].to_numpy().tolist(),
            "samples": self.store.crop_samples,
        }

    def score(self, predictions: ArrayLike) -> ChallengeScore:
        """Score predictions of these windows."""
        targets = self.store.table["target"].to_numpy(np.float64)[self.index]
        return score_predictions(targets, predictions, len(set(self.store.subjects[self.index].tolist())))


def _training_subjects(folder: Path) -> dict[int, set[str]]:
    """Return the hashes of the training subjects by challenge; an empty dict without a manifest.

    Raises
    ------
    UserError
        The manifest cannot be used.
    """
    try:
        data = read_regular(folder / MANIFEST, SubmissionManifest.max_bytes)
    except FileNotFoundError:
        return {}
    manifest = SubmissionManifest.parse(data, MANIFEST)
    return {int(challenge): set(entry.learned_from) for challenge, entry in manifest.challenges.items()}


def select_windows(
    store: WindowStore, target: str, trained_on: Mapping[int, set[str]], release: str | None, *, only_new: bool
) -> tuple[ScoredWindows, list[str]]:
    """Select the windows of a store that are scored, and write notes on the subjects.

    Raises
    ------
    UserError
        The store is of another target or has other windows than the scorer's, or none of them can be scored.
    """
    if store.manifest.target.partition(":")[0] != target:
        raise UserError(
            f"{store.path}: has windows of target '{store.manifest.target}', not {target}; prepare them with --target "
            f"{target}"
        )
    keep_N = np.array(store.table["task"] == CONTRAST_TASK)
    if not keep_N.any():
        raise UserError(f"{store.path}: no recording of {CONTRAST_TASK}, the BIDS task that the challenge scores")
    if release is not None:
        keep_N &= _of_release(store, keep_N, release)
    challenge = CHALLENGES[target]
    _require_scorers(store, challenge)
    if challenge not in trained_on:
        notes = [f"{target}: the zip does not name its training subjects; these subjects may be among them"]
    else:
        known_N = np.array([subject_hash(str(subject)) in trained_on[challenge] for subject in store.subjects])
        keep_N, notes = _exclude_training_subjects(store, target, keep_N, known_N, only_new=only_new)
    return ScoredWindows(challenge, store, np.flatnonzero(keep_N)), notes


def _require_scorers(store: WindowStore, challenge: int) -> None:
    """Check that a store has the windows that the challenge's scorer shows, and all of them.

    Raises
    ------
    UserError
        It has others, so a score would not be the challenge's.
    """
    manifest = store.manifest
    misfit = scorer_misfit(
        challenge,
        manifest.target,
        channels=store.channels,
        n_times=store.crop_samples,
        sfreq=store.sfreq,
        tmin=shown_from(manifest.plan),
    )
    words = [*other_steps(manifest.plan), *other_cuts(manifest, challenge)]
    if misfit or words:
        reason = misfit or f"its windows were made with {' '.join(words)}"
        raise UserError(
            f"{store.path}: {reason}; the score is of the challenge's windows: prepare them with no option but "
            "--sfreq 100 and --band 0.5 50"
        )


def _of_release(store: WindowStore, keep_N: NDArray[np.bool_], release: str) -> NDArray[np.bool_]:
    """Return the mask (N,) of the windows of a release."""
    releases = store.releases
    inside_N = np.array([releases.get(subject) == release for subject in store.subjects])
    if not (keep_N & inside_N).any():
        known = ", ".join(sorted({r for r in releases.values() if r})) or "none known"
        raise UserError(f"{store.path}: no subject of release {release}; available: {known}")
    return inside_N


def _exclude_training_subjects(
    store: WindowStore, target: str, keep_N: NDArray[np.bool_], known_N: NDArray[np.bool_], *, only_new: bool
) -> tuple[NDArray[np.bool_], list[str]]:
    """Drop the windows of training subjects if only new subjects are scored, and write a note."""
    count = len(set(store.subjects[keep_N & known_N].tolist()))
    if not only_new:
        note = f"{target}: the models were trained on {count} of these subjects, so this score is optimistic"
        return keep_N, [note] if count else []
    if not (keep_N & ~known_N).any():
        raise UserError(
            f"{store.path}: the models were trained on every subject in it, so a score would show nothing; prepare "
            "other subjects, or score these with --subjects all"
        )
    note = f"{target}: {count} subjects that the models were trained on are left out"
    return keep_N & ~known_N, [note] if count else []


def _predict(path: Path, folder: Path, parts: list[ScoredWindows], device: str) -> dict[int, list[float]]:
    """Return the predictions of a submission, which is unpacked in `folder`, by challenge."""
    windows = {str(part.challenge): part.request() for part in parts}
    request = {"device": device, "sfreq": parts[0].store.sfreq, "score": windows}
    timeout = START_SECONDS + MAX_SECONDS_PER_WINDOW * sum(len(part.index) for part in parts)
    try:
        answer = run_scorer(folder, folder.parent, request, _ANSWER, timeout=timeout)
        if {name: len(answer[name]) for name in answer} != {str(part.challenge): len(part.index) for part in parts}:
            raise ScorerProcessError("the scorer's answer was changed by the submission (other windows)")
    except ScorerProcessError as error:
        raise UserError(f"{path}: {error}; for details run: raypipe check {path}") from None
    return {int(challenge): predictions for challenge, predictions in answer.items()}
