"""Check a submission with the scorer's own loop, in a process that has torch and NumPy only."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter

from raypipe.core.errors import UserError
from raypipe.core.text import one_line
from raypipe.packaging import scorer
from raypipe.packaging.archive import LayoutError, unpack_submission
from raypipe.packaging.bundle import LoadedEnsemble, load_ensemble
from raypipe.packaging.challenge_windows import CHALLENGE_WINDOWS, challenge_of, scorer_misfit
from raypipe.packaging.manifest import MANIFEST, ChallengeEntry, SubmissionManifest
from raypipe.packaging.scorer_process import ScorerProcessError, run_scorer
from raypipe.packaging.submission import INPUT_SCALE
from raypipe.storage.local_path import local_path
from raypipe.storage.regular_files import read_regular
from raypipe.storage.scratch import scratch_folder
from raypipe.training.device import parse_device

if TYPE_CHECKING:
    from rich.text import Text

Answer = dict[str, list[tuple[str, bool, str]]]
"""Lines of each challenge: name of a check, whether it passed, and a detail."""

_ANSWER: TypeAdapter[Answer] = TypeAdapter(Annotated[Answer, Field(max_length=10)])
_MAX_DETAIL = 1000
_MAX_LINES = 50

Request = dict[str, Any]
"""Windows and reference predictions of a challenge, for `scorer`."""


@dataclass(frozen=True)
class CheckLine:
    """One check."""

    name: str
    ok: bool
    detail: str


@dataclass
class CheckReport:
    """Result of `check_submission`, one line per check."""

    path: Path
    lines: list[CheckLine] = field(default_factory=list)
    challenges: list[int] = field(default_factory=list)
    """Challenges that the zip answers."""

    @property
    def ok(self) -> bool:
        """Return whether every check passed."""
        return bool(self.lines) and all(line.ok for line in self.lines)

    @property
    def failures(self) -> list[CheckLine]:
        """Return the checks that failed."""
        return [line for line in self.lines if not line.ok]

    def add(self, name: str, ok: bool, detail: str) -> None:
        """Add a line."""
        self.lines.append(CheckLine(name, ok, detail))

    def render(self) -> Text:
        """Return the lines for a terminal."""
        from rich.text import Text

        text = Text()
        width = max((len(line.name) for line in self.lines), default=0)
        for line in self.lines:
            text.append("pass  " if line.ok else "FAIL  ", style="green" if line.ok else "bold red")
            text.append(one_line(f"{line.name:<{width}}  {line.detail}") + "\n")
        failed = len(self.failures)
        verdict = "ready" if self.ok else f"{failed} of {len(self.lines)} checks failed"
        text.append(one_line(f"{self.path}: {verdict}"))
        return text

    def __str__(self) -> str:
        return self.render().plain


def check_submission(
    path: str | Path, *, bundle: str | Path | None = None, device: str = "cpu", timeout: float = 900.0
) -> CheckReport:
    """Unpack a submission and run the scorer's loop on it.

    Its code is run, in a separate process but with your permissions: check only what you have made or read.

    Parameters
    ----------
    path
        The zip.
    bundle
        A bundle whose predictions it must equal; None compares with the predictions in its manifest.
    device
        ``cpu`` or ``cuda``.
    timeout
        Seconds that the scorer's process may take.

    Raises
    ------
    UserError
        `path` is not a zip, or has no ``submission.py`` at all; or torch can use no GPU.
    """
    parse_device(device)
    report = CheckReport(local_path(path, "a submission is checked", "copy it here"))
    with scratch_folder() as scratch:
        folder = scratch / "submission"
        folder.mkdir()
        try:
            report.add("flat", True, unpack_submission(report.path, folder))
        except LayoutError as error:
            report.add(error.check, False, error.detail)
            return report
        requests = _manifest_requests(report, folder)
        if requests is None:
            return report
        requests = requests or {str(k): CHALLENGE_WINDOWS | {"reference": None, "source": ""} for k in (1, 2)}
        if bundle is not None and not _compare_with_bundle(report, requests, load_ensemble(bundle)):
            return report
        report.challenges = [int(challenge) for challenge in requests]
        _run_checks(report, folder, Path(scratch), {"device": device, "challenges": requests}, timeout)
    return report


def _manifest_requests(report: CheckReport, folder: Path) -> dict[str, Request] | None:
    """Return a request for each challenge in the manifest; an empty dict without one, None if it cannot be used.

    The code is not run then: it would build what the manifest asks for, whatever that is.
    """
    try:
        data = read_regular(folder / MANIFEST, SubmissionManifest.max_bytes)
        manifest = SubmissionManifest.parse(data, MANIFEST)
    except FileNotFoundError:
        report.add("manifest", False, f"{MANIFEST} is missing: the windows and predictions of the models are unknown")
        return {}
    except UserError as error:
        report.add("manifest", False, str(error).replace(f"{folder}/", ""))
        return None
    requests: dict[str, Request] = {
        challenge: {
            "sfreq": entry.spec.sfreq,
            "n_channels": entry.spec.n_channels,
            "n_times": entry.spec.n_times,
            "reference": entry.reference.answers,
            "source": "those of the bundle at export",
        }
        for challenge, entry in manifest.challenges.items()
    }
    names = " and ".join(sorted(requests))
    detail = f"has only challenge {names}" if len(requests) == 1 else f"has challenges {names}"
    report.add("manifest", bool(requests), detail if requests else "has no challenge")
    for challenge, entry in manifest.challenges.items():
        misfit = _misfit(int(challenge), entry)
        detail = misfit or f"{entry.target}, in the scorer's windows"
        report.add(f"challenge {challenge}: target and windows", not misfit, detail)
    return requests


def _misfit(challenge: int, entry: ChallengeEntry) -> str:
    """Return why an entry of the manifest does not answer its challenge; an empty text if it does."""
    spec = entry.spec
    misfit = scorer_misfit(
        challenge, entry.target, channels=entry.channels, n_times=spec.n_times, sfreq=spec.sfreq, tmin=entry.tmin
    )
    if not misfit and len(entry.channels) != spec.n_channels:
        return f"it names {len(entry.channels)} channels, and its networks take {spec.n_channels}"
    return misfit


def _compare_with_bundle(report: CheckReport, requests: dict[str, Request], bundle: LoadedEnsemble) -> bool:
    """Request a comparison with a bundle's predictions; return False if the bundle has other windows."""
    challenge = str(challenge_of(bundle.info.target))
    if challenge not in requests:
        challenge = next(iter(requests))
    request = requests[challenge]
    shape = {"n_channels": len(bundle.channels), "n_times": bundle.info.n_times, "sfreq": bundle.sfreq}
    for name, value in shape.items():
        if request[name] != value:
            report.add("bundle", False, f"the bundle's {name} is {value}, the zip's {request[name]}")
            return False
    x_NCT = scorer.reference_windows(len(bundle.channels), bundle.info.n_times) * np.float32(INPUT_SCALE)
    reference = bundle.predict(x_NCT)[:, -1].astype(float).tolist()
    requests[challenge] = request | {"reference": reference, "source": "those of the bundle given"}
    return True


def _run_checks(report: CheckReport, folder: Path, scratch: Path, request: Request, timeout: float) -> None:
    try:
        answer = run_scorer(folder, scratch, request, _ANSWER, timeout=timeout)
    except ScorerProcessError as error:
        report.add("ends", False, str(error))
        return
    for challenge, lines in answer.items():
        prefix = "" if challenge == "import" else f"challenge {challenge}: "
        for name, ok, detail in lines[:_MAX_LINES]:
            report.add(_printable(prefix + name), ok, _printable(detail))


def _printable(text: str) -> str:
    """Return text of the submission as one line of limited length."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:_MAX_DETAIL])
