"""Find and open recordings: a small BIDS reader (BIDS specification 1.10, EEG) that uses MNE's file readers.

It replaces mne-bids, which refuses sidecars of HBN-EEG releases 10 and 11, whose types and units are all ``n/a``.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raypipe.core.errors import UserError, first_line
from raypipe.data.remote_bids import RemoteBids

EXTENSIONS = (".bdf", ".edf", ".set", ".vhdr", ".fif")
LAYOUT = "sub-*/[ses-*/]eeg/*_eeg.{" + ",".join(e[1:] for e in EXTENSIONS) + "}"

_EDF_FIXED_HEADER = 256
"""Bytes of the fixed part of the header of an EDF or BDF file."""
_COMPANIONS = {".set": (".fdt",), ".vhdr": (".vmrk", ".eeg")}


class UnreadableRecordingError(UserError):
    """A recording or a table beside it cannot be read. Other recordings may be readable."""


@dataclass(frozen=True)
class Recording:
    """One continuous EEG recording, found by the name of its file.

    Labels have no prefix (`subject` is ``01`` for ``sub-01``). Those that the file's name lacks are None.
    """

    path: Path
    root: Path
    """The BIDS folder."""
    subject: str
    session: str | None = None
    task: str | None = None
    run: str | None = None
    release: str | None = None
    """Release of HBN-EEG, such as ``R5``."""
    age: float | None = None
    """Age of the subject in years."""
    mirror: RemoteBids | None = None
    """Mirror that fetches the recording from a URI while it is read; None for local files."""

    @property
    def key(self) -> str:
        """Return the file's name without ``_eeg`` and extension, such as ``sub-01_ses-1_task-rest_run-2``."""
        return self.path.stem.removesuffix("_eeg")

    def sidecar(self, suffix: str) -> Path:
        """Return the path of the file beside the recording that ends in `suffix`, such as ``events.tsv``."""
        return self.path.with_name(f"{self.key}_{suffix}")

    def companions(self) -> list[Path]:
        """Return the other files that hold parts of the signal and exist."""
        paths = [self.path.with_suffix(ext) for ext in _COMPANIONS.get(self.path.suffix.lower(), ())]
        return [path for path in paths if path.is_file()]

    def files(self) -> list[Path]:
        """Return the files that windows are made from: the recording, its companions, and the sidecars that exist."""
        beside = [self.sidecar("events.tsv"), self.sidecar("channels.tsv")]
        return [self.path, *self.companions(), *(path for path in beside if path.is_file())]

    @contextlib.contextmanager
    def fetched(self, *, header: bool = False) -> Iterator[None]:
        """Fetch the signal of a recording behind a URI for the duration of the block.

        Parameters
        ----------
        header
            Fetch the header only, where the format has one at the start of the file.

        Raises
        ------
        UserError
            The storage fails, or the disk is full.
        """
        if self.mirror is None:
            yield
            return
        paths = self._signal_files()
        try:
            if header:
                self._fetch_header(self.mirror, paths)
            else:
                self.mirror.fetch(paths)
            yield
        finally:
            self.mirror.evict(paths)

    def _signal_files(self) -> list[Path]:
        splits = self.path.parent.glob(self.path.name.replace("_split-01_", "_split-*_"))
        return sorted({*splits, self.path, *self.companions()})

    def _fetch_header(self, mirror: RemoteBids, paths: list[Path]) -> None:
        kind = self.path.suffix.lower()
        if kind in (".bdf", ".edf"):
            mirror.fetch(paths, _EDF_FIXED_HEADER)
            with contextlib.suppress(ValueError), open(self.path, "rb") as file:
                mirror.fetch(paths, int(file.read(192)[184:]))  # these 8 bytes are the length of the header
        else:
            mirror.fetch(path for path in paths if kind != ".vhdr" or path.suffix.lower() != ".eeg")


def find_recordings(root: str | Path, mirror: RemoteBids | None = None) -> list[Recording]:
    """List the recordings of a BIDS folder, sorted by path.

    Parameters
    ----------
    root
        The folder.
    mirror
        The mirror that contains the folder; None for a local folder.

    Raises
    ------
    UserError
        There is no such folder, it has no recording, or it has the same recording in two formats.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder" if not root.exists() else f"{root}: a file, not a BIDS folder")
    found = [
        path
        for pattern in ("sub-*/eeg/*_eeg.*", "sub-*/ses-*/eeg/*_eeg.*")
        for path in root.glob(pattern)
        if path.suffix.lower() in EXTENSIONS and not _is_later_split(path)
    ]
    if not found:
        raise UserError(f"{root}: no recording there; raypipe looks for {LAYOUT}")
    by_key: dict[str, Recording] = {}
    for path in sorted(found):
        recording = _parse(path, root, mirror)
        twin = by_key.setdefault(recording.key, recording)
        if twin is not recording:
            raise UserError(f"{path}: {twin.path.name} is the same recording in another format; keep one of them")
    return list(by_key.values())


def recording_from_file(path: str | Path) -> Recording:
    """Make a `Recording` of a single file, with labels from its name. Without a subject label, the name is the subject.

    Raises
    ------
    UserError
        There is no such file, or its format cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix.lower() not in EXTENSIONS:
        raise UserError(f"{path}: not a supported format ({', '.join(EXTENSIONS)})")
    root = next((folder.parent for folder in path.parents if folder.name.startswith("sub-")), path.parent)
    return _parse(path, root)


def _parse(path: Path, root: Path, mirror: RemoteBids | None = None) -> Recording:
    entities = dict(part.split("-", 1) for part in path.stem.split("_") if "-" in part)
    return Recording(
        path=path,
        root=root,
        subject=entities.get("sub") or path.stem,
        session=entities.get("ses"),
        task=entities.get("task"),
        run=entities.get("run"),
        mirror=mirror,
    )


def _is_later_split(path: Path) -> bool:
    # MNE finds the later files of a split FIF itself.
    split = re.search(r"_split-(\d+)", path.name)
    return split is not None and int(split.group(1)) > 1


def read_raw(recording: Recording) -> Any:
    """Open a recording with MNE. The signal stays on disk, except that of an EEGLAB file without a ``.fdt`` file.

    Returns
    -------
    mne.io.BaseRaw
        The signal is in volts.

    Raises
    ------
    UnreadableRecordingError
        The file is missing, truncated or unreadable.
    """
    import mne

    path = recording.path
    extension = path.suffix.lower()
    if not path.exists():
        problem = "a link to data that was not fetched" if path.is_symlink() else "no such file"
        raise UnreadableRecordingError(f"{path}: {problem}")
    if extension in (".bdf", ".edf"):
        _check_whole(path, bytes_per_sample=3 if extension == ".bdf" else 2)
    readers = {
        ".bdf": mne.io.read_raw_bdf,
        ".edf": mne.io.read_raw_edf,
        ".set": mne.io.read_raw_eeglab,
        ".vhdr": mne.io.read_raw_brainvision,
        ".fif": mne.io.read_raw_fif,
    }
    try:
        return readers[extension](path, preload=False, verbose="ERROR")
    except Exception as error:  # MNE's readers raise exceptions of many types
        raise UnreadableRecordingError(f"{path}: cannot be read ({first_line(error)})") from None


def _check_whole(path: Path, bytes_per_sample: int) -> None:
    """Check that an EDF or BDF file has the size that its header says: MNE only warns about a truncated file."""
    with open(path, "rb") as file:
        fixed = file.read(_EDF_FIXED_HEADER)
        try:
            header_bytes, n_records, n_signals = int(fixed[184:192]), int(fixed[236:244]), int(fixed[252:256])
            file.seek(_EDF_FIXED_HEADER + n_signals * 216)
            samples = file.read(n_signals * 8)
            record_samples = sum(int(samples[8 * i : 8 * i + 8]) for i in range(n_signals))
        except ValueError:
            kind = "a BDF" if bytes_per_sample == 3 else "an EDF"
            raise UnreadableRecordingError(f"{path}: not {kind} file (its header cannot be read)") from None
    if n_records == -1:
        return  # "unknown" (EDF specification): the recording was interrupted, and MNE derives the number from the size
    expected = header_bytes + n_records * record_samples * bytes_per_sample
    size = path.stat().st_size
    if size < expected:
        raise UnreadableRecordingError(f"{path}: truncated: its header announces {expected} bytes, the file has {size}")
