"""Whether a submission will survive the scorer: its own loop, in a fresh process that has torch and NumPy only."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from raypipe.core.errors import UserError
from raypipe.packaging import scorer
from raypipe.packaging.bundle import LoadedEnsemble, load_ensemble
from raypipe.packaging.submission import FORMAT, INPUT_SCALE, MANIFEST, challenge_of

if TYPE_CHECKING:
    from rich.text import Text

LARGEST = 4 * 2**30
CHALLENGE = {"sfreq": 100.0, "n_channels": 129, "n_times": 200}
"""What the challenge's windows look like; used for a zip that does not say what it takes."""


@dataclass(frozen=True)
class CheckLine:
    """One check."""

    name: str
    ok: bool
    detail: str


@dataclass
class CheckReport:
    """What `check_submission` found, one line a check."""

    path: Path
    lines: list[CheckLine] = field(default_factory=list)
    challenges: list[int] = field(default_factory=list)
    """Challenges that the zip answers."""

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return bool(self.lines) and all(line.ok for line in self.lines)

    @property
    def failures(self) -> list[CheckLine]:
        """The checks that failed."""
        return [line for line in self.lines if not line.ok]

    def add(self, name: str, ok: bool, detail: str) -> bool:
        """Add a line."""
        self.lines.append(CheckLine(name, ok, detail))
        return ok

    def render(self) -> Text:
        """The lines for a terminal."""
        from rich.text import Text

        text = Text()
        width = max((len(line.name) for line in self.lines), default=0)
        for line in self.lines:
            text.append("pass  " if line.ok else "FAIL  ", style="green" if line.ok else "bold red")
            text.append(f"{line.name:<{width}}  {line.detail}\n")
        failed = len(self.failures)
        text.append(f"{self.path}: " + ("ready" if self.ok else f"{failed} of {len(self.lines)} checks failed"))
        return text

    def __str__(self) -> str:
        return self.render().plain


def check_submission(
    path: str | Path, *, bundle: str | Path | None = None, device: str = "cpu", timeout: float = 900.0
) -> CheckReport:
    """Unpack a submission and run the scorer's loop on it.

    Its code is run, in a process of its own but with your rights: check what you have made or read.

    Parameters
    ----------
    path
        The zip.
    bundle
        A bundle whose answers it must give; else the answers that its manifest carries.
    device
        Where to run the models.
    timeout
        Seconds that the scorer's process may take.

    Raises
    ------
    UserError
        `path` is no zip, or holds no ``submission.py`` at all.
    """
    report = CheckReport(Path(path))
    with tempfile.TemporaryDirectory(prefix="raypipe-check-") as scratch:
        folder = Path(scratch) / "submission"
        folder.mkdir()
        if not unpack(report, folder):
            return report
        manifest = _manifest(report, folder)
        requests = _requests(report, manifest, None if bundle is None else load_ensemble(bundle))
        if requests:
            _examine(report, folder, Path(scratch), {"device": device, "challenges": requests}, timeout)
    return report


def unpack(report: CheckReport, folder: Path) -> bool:
    """Unpack a submission that is safe and flat; else add a line that says why not."""
    path = report.path
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError):
        raise UserError(f"{path}: not a zip file") from None
    with archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        if not any(PurePosixPath(name.replace("\\", "/")).name == "submission.py" for name in names):
            raise UserError(f"{path}: no submission.py in it; make one with: raypipe export RUN OUT.zip")
        problem = _unsafe(members)
        if problem:
            return report.add("safe to unpack", False, problem)
        deep = [name for name in names if "/" in name]
        if deep:
            where = "" if "submission.py" in names else "; the scorer looks for submission.py at the top"
            mend = "zip the files, not the folder"
            return report.add("flat", False, f"'{deep[0]}' lies in a folder; all must be at the top{where}: {mend}")
        try:
            for member in members:
                (folder / member.filename).write_bytes(archive.read(member))
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
            raise UserError(f"{path}: damaged ({error})") from None
    return report.add("flat", True, f"{len(names)} files, {path.stat().st_size / 2**20:.1f} MB")


def _unsafe(members: list[zipfile.ZipInfo]) -> str | None:
    seen: set[str] = set()
    for member in members:
        name, kind = member.filename, stat.S_IFMT(member.external_attr >> 16)
        pure = PurePosixPath(name.replace("\\", "/"))
        if not pure.name or pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name:
            return f"'{name}' would be written outside the folder it is unpacked to"
        if stat.S_ISLNK(kind):
            return f"'{name}' is a link"
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            return f"'{name}' is no file"
        if name in seen:
            return f"'{name}' is in it twice: which of them counts depends on who unpacks it"
        seen.add(name)
    size = sum(member.file_size for member in members)
    return f"unpacked it would take {size / 2**30:.1f} GB" if size > LARGEST else None


def _manifest(report: CheckReport, folder: Path) -> dict[str, Any]:
    """The manifest's challenges; none where there is no manifest that can be read."""
    file = folder / MANIFEST
    if not file.is_file():
        report.add("manifest", False, f"{MANIFEST} is missing: nothing says what the models take and must answer")
        return {}
    try:
        manifest = json.loads(file.read_bytes())
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']!r}, not {FORMAT!r}")
        found = {}
        for challenge, entry in manifest["challenges"].items():
            spec = entry["spec"]
            found[str(int(challenge))] = {
                "sfreq": float(spec["sfreq"]),
                "n_channels": int(spec["n_channels"]),
                "n_times": int(spec["n_times"]),
                "reference": [float(answer) for answer in entry["reference"]["answers"]],
                "source": "those of the bundle at export",
            }
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        report.add("manifest", False, f"{MANIFEST} is damaged: {type(error).__name__}: {error}")
        return {}
    held = " and ".join(sorted(found))
    note = f"holds only challenge {held}" if len(found) == 1 else f"holds challenges {held}"
    report.add("manifest", bool(found), note if found else "holds no challenge")
    return found


def _requests(report: CheckReport, manifest: dict[str, Any], bundle: LoadedEnsemble | None) -> dict[str, Any]:
    requests = manifest or {str(k): CHALLENGE | {"reference": None, "source": ""} for k in (1, 2)}
    if bundle is not None:
        mine = str(challenge_of(bundle.info.task))
        if mine not in requests:
            mine = next(iter(requests))
        wanted = requests[mine]
        n_channels, n_times = len(bundle.channels), bundle.info.n_times
        shape = {"n_channels": n_channels, "n_times": n_times, "sfreq": bundle.sfreq}
        other = [name for name, value in shape.items() if wanted[name] != value]
        if other:
            report.add("bundle", False, f"the bundle's {other[0]} is {shape[other[0]]}, the zip's {wanted[other[0]]}")
            return {}
        x_NCT = scorer.reference_windows(n_channels, n_times) * np.float32(INPUT_SCALE)
        answers = bundle.predict(x_NCT)[:, -1].astype(float).tolist()
        requests[mine] = wanted | {"reference": answers, "source": "those of the bundle given"}
    report.challenges = [int(challenge) for challenge in requests]
    return requests


def _examine(report: CheckReport, folder: Path, scratch: Path, request: dict[str, Any], timeout: float) -> None:
    """Run `scorer` by its path: ``-I`` keeps this process's folder and PYTHONPATH out of it."""
    asked, answered, elsewhere = scratch / "request.json", scratch / "answer.json", scratch / "elsewhere"
    elsewhere.mkdir()
    asked.write_text(json.dumps(request), encoding="utf-8")
    command = [sys.executable, "-I", str(scorer.__file__), str(folder), str(asked), str(answered)]
    try:
        done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        report.add("ends", False, f"the scorer's process did not end within {timeout:g} s")
        return
    if not answered.is_file():
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        report.add("ends", False, f"the scorer's process died (exit status {done.returncode}): {last[:300]}")
        return
    for challenge, lines in json.loads(answered.read_bytes()).items():
        prefix = "" if challenge == "import" else f"challenge {challenge}: "
        for name, ok, detail in lines:
            report.add(prefix + name, bool(ok), str(detail))
