"""A recording of a BIDS folder: its labels, its files, and the tables that apply to it."""

from __future__ import annotations

import contextlib
import itertools
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from raypipe.recordings.remote_bids import RemoteBids
from raypipe.recordings.signal import Signal, UnreadableRecordingError

_EDF_FIXED_HEADER = 256
"""Bytes of the fixed part of the header of an EDF or BDF file."""


@dataclass(frozen=True)
class Recording:
    """One continuous EEG recording, found by the name of its file.

    Labels have no prefix (`subject` is ``01`` for ``sub-01``). Those that the file's name lacks are None.
    """

    path: Path
    root: Path
    """The BIDS folder."""
    subject: str
    """The person: the label, or ``dataset/label`` where several data sets use the same label for different people."""
    session: str | None = None
    task: str | None = None
    run: str | None = None
    release: str | None = None
    """Release of HBN-EEG, such as ``R5``."""
    age: float | None = None
    """Age of the subject in years."""
    mirror: RemoteBids | None = None
    """Mirror that fetches the recording from a URI while it is read; None for local files."""
    dataset: str = ""
    """Name of the data set, where several use the same labels; else empty."""
    has_long_key: bool = False
    """The key has the data set's name in front, since another data set has a file of the same name."""

    @property
    def key(self) -> str:
        """Return the name in the store: that of the file without ``_eeg``, such as ``sub-01_ses-1_task-rest_run-2``."""
        return f"{self.dataset}_{self.stem}" if self.has_long_key else self.stem

    @property
    def stem(self) -> str:
        """Return the file's name without ``_eeg`` and extension."""
        stem = unicodedata.normalize("NFC", self.path.stem)
        return stem[:-4] if stem.lower().endswith("_eeg") else stem

    @property
    def label(self) -> str:
        """Return the subject's label in the data set."""
        return self.subject.removeprefix(f"{self.dataset}/") if self.dataset else self.subject

    def sidecar(self, suffix: str) -> Path:
        """Return the table that applies to the recording, such as ``events.tsv``, by BIDS' inheritance principle.

        Of the tables whose name has no entity that the recording lacks, the one nearest to the recording applies. If
        there is none, return the path that it would have beside the recording.

        Raises
        ------
        UnreadableRecordingError
            Two tables in one folder apply.
        """
        beside = self.path.with_name(f"{self.stem}_{suffix}")
        if beside.is_file():
            return beside
        own = entities_of(self.stem)
        for folder in self._folders():
            names = _possible_names(own, suffix) if folder == self.root != self.path.parent else None
            found = _applicable(folder, suffix, own, names)
            if found:
                return found
        return beside

    def _folders(self) -> list[Path]:
        """Return the folders whose tables may apply, from the recording's own to the root."""
        inside = [folder for folder in self.path.parents if folder.is_relative_to(self.root)]
        return inside or [self.path.parent]

    def open_signal(self) -> Signal:
        """Open the recording; see `raypipe.recordings.formats.open_signal`."""
        from raypipe.recordings.formats import open_signal

        return open_signal(self.path)

    @property
    def marked_bad(self) -> frozenset[str]:
        """Return channels that are bad though channels.tsv does not say so."""
        return frozenset()

    def companions(self) -> list[Path]:
        """Return the other files that hold parts of the signal and exist."""
        from raypipe.recordings.formats import companions

        return companions(self.path)

    def files(self) -> list[Path]:
        """Return the files that windows are made from: the recording, its companions, and the tables that exist."""
        tables = [self.sidecar("events.tsv"), self.sidecar("channels.tsv")]
        return [self.path, *self.companions(), *(path for path in tables if path.is_file())]

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
        fetched: list[Path] = [self.path]
        try:
            if header and self.path.suffix.lower() in (".bdf", ".edf"):
                self._fetch_header(self.mirror)
            else:
                self.mirror.fetch(fetched)
                others = [path for path in self.companions() if not (header and self.path.suffix.lower() == ".vhdr")]
                fetched += others
                self.mirror.fetch(others)
            yield
        finally:
            self.mirror.evict(fetched)

    def _fetch_header(self, mirror: RemoteBids) -> None:
        mirror.fetch([self.path], _EDF_FIXED_HEADER)
        with contextlib.suppress(ValueError), open(self.path, "rb") as file:
            mirror.fetch([self.path], int(file.read(192)[184:]))  # these 8 bytes are the length of the header


def entities_of(stem: str) -> dict[str, str]:
    """Return the entities in a file's name, such as ``{"sub": "01", "task": "rest"}``, in their order."""
    parts = unicodedata.normalize("NFC", stem).split("_")
    return {key.lower(): label for key, hyphen, label in (part.partition("-") for part in parts) if hyphen and label}


def same_label(key: str, one: str, other: str) -> bool:
    """Return whether two labels of an entity are equal, in any case; runs and splits are compared as numbers."""
    if key in ("run", "split") and one.isdigit() and other.isdigit():
        return int(one) == int(other)
    return one.casefold() == other.casefold()


def _possible_names(own: dict[str, str], suffix: str) -> list[str]:
    """Return the names of tables in the BIDS folder itself that would apply.

    The folder is not listed, since it has an entry for each of what may be thousands of subjects.
    """
    parts = [f"{key}-{label}" for key, label in own.items() if key != "sub"]
    chosen = (picked for n in range(len(parts), -1, -1) for picked in itertools.combinations(parts, n))
    return ["_".join([*picked, suffix]) for picked in chosen]


def _applicable(folder: Path, suffix: str, own: dict[str, str], names: list[str] | None) -> Path | None:
    """Return the table in a folder that applies to a recording with the entities `own`."""
    if names is None:
        try:
            names = [path.name for path in folder.iterdir() if path.name.lower().endswith(suffix)]
        except OSError:
            return None
    found: list[tuple[int, Path]] = []
    for name in names:
        stem = name[: -len(suffix)].rstrip("_")
        entities = entities_of(stem)
        others = [part for part in stem.split("_") if part and "-" not in part]
        applies = all(key in own and same_label(key, label, own[key]) for key, label in entities.items())
        if applies and not others and not name.startswith(".") and (folder / name).is_file():
            found.append((len(entities), folder / name))
    found.sort(key=lambda each: (-each[0], each[1].name))
    if len(found) > 1 and found[0][0] == found[1][0]:
        raise UnreadableRecordingError(f"{found[0][1]}: {found[1][1].name} applies to the same recordings; keep one")
    return found[0][1] if found else None


def fetch_tables(recordings: Iterable[Recording]) -> None:
    """Fetch events.tsv and channels.tsv of recordings behind a URI, and of other runs of the same tasks."""
    wanted: dict[RemoteBids, set[Path]] = defaultdict(set)
    for recording in recordings:
        if recording.mirror is not None:
            tables = (recording.sidecar("events.tsv"), recording.sidecar("channels.tsv"))
            wanted[recording.mirror] |= {path for path in tables if path.is_file()}
    for folder, task, mirror in {(r.path.parent, r.task, r.mirror) for r in recordings}:
        if mirror is not None:
            beside = folder.glob(f"*_task-{task}_*.tsv" if task else "*.tsv")
            wanted[mirror] |= {path for path in beside if path.name.endswith(("_events.tsv", "_channels.tsv"))}
    for mirror, paths in wanted.items():
        mirror.fetch_tables(sorted(paths))
