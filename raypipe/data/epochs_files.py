"""Read MNE epochs, in files or in memory: what is known of each epoch, and the samples block by block."""

from __future__ import annotations

import glob
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypipe.core.errors import UserError, first_line, nearest
from raypipe.recordings.fif import check_whole, is_fif, next_part
from raypipe.recordings.recording import entities_of
from raypipe.recordings.signal import UnreadableRecordingError
from raypipe.recordings.tables import find_column, list_some

DAMAGED = "damaged: MNE cannot read its epochs"
BLOCK_BYTES = 1 << 25
"""Bytes of epochs, as float64, that are in memory at a time."""
_SUFFIX = re.compile(r"[-_](?:epo|epochs)$", re.IGNORECASE)
_LATER_PART = (
    re.compile(r"(?P<before>.+[-_](?:epo|epochs))-(?P<number>\d+)(?P<after>)", re.IGNORECASE),
    re.compile(r"(?P<before>.+_split-)(?P<number>\d+)(?P<after>(?:_.+)?)"),
)
"""Stems of the later files of epochs that MNE has split by size: ``-1``, or ``_split-02_`` in BIDS' way."""


@dataclass
class EpochsSource:
    """The epochs of one file or object, of which a file is open only while it is read."""

    path: Path | None
    """The file; None for epochs in memory."""
    given: Any = None
    """Epochs in memory."""
    number: int = 0
    """Place among the sources."""
    later: tuple[Path, ...] = ()
    """Its next parts, if they were given too; MNE reads them with it."""
    _header: list[Any] = field(default_factory=list, repr=False)

    @property
    def name(self) -> str:
        """Return the file's path, or the place of the epochs, for messages."""
        return str(self.path) if self.path else f"epochs[{self.number}]"

    @property
    def file_name(self) -> Path | None:
        """Return the file that the epochs are in, or were read from."""
        if self.path is not None:
            return self.path
        return Path(self.given.filename) if getattr(self.given, "filename", None) else None

    @property
    def recording(self) -> str:
        """Return the name of the recording that the epochs are of: the file's, without ``_epo`` or ``-epo``."""
        return _SUFFIX.sub("", self.file_name.stem) if self.file_name else ""

    def open(self) -> Any:
        """Return the epochs without bad ones; those of a file are not in memory.

        Raises
        ------
        UserError
            The file cannot be read.
        """
        epochs = self.given if self.path is None else read_epochs_file(self.path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                epochs.drop_bad(verbose="ERROR")  # some versions of MNE return None
                return epochs
        except Exception as error:  # MNE raises exceptions of many types
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> UserError:
        if self.path is None:
            return UserError(f"{self.name}: its epochs cannot be read ({first_line(error)})")
        return UnreadableRecordingError(f"{self.path}: {DAMAGED}")

    @cached_property
    def facts(self) -> EpochsFacts:
        """Return what is known without the samples."""
        return _facts(self)

    def read(self, rows: NDArray[np.int64], channels: Sequence[str]) -> Iterator[NDArray[Any]]:
        """Yield the samples of epochs in volts, (n, C, T), block by block.

        Raises
        ------
        UserError
            The file cannot be read.
        """
        epochs = self.open()
        step = max(1, BLOCK_BYTES // (8 * len(epochs.ch_names) * max(1, len(epochs.times))))
        for start in range(0, len(rows), step):
            yield self._read(epochs, rows[start : start + step], channels)

    def _read(self, epochs: Any, rows: NDArray[np.int64], channels: Sequence[str]) -> NDArray[Any]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                x_NCT: NDArray[Any] = epochs.get_data(picks=list(channels), item=rows, copy=False, verbose="ERROR")
        except Exception as error:  # MNE raises exceptions of many types
            raise self._unreadable(error) from None
        return x_NCT


@dataclass(frozen=True)
class EpochsFacts:
    """What is known of epochs without their samples."""

    sfreq: float
    samples: int
    tmin: float
    """Seconds from the event to the first sample."""
    channels: tuple[str, ...]
    """EEG channels."""
    others: dict[str, str]
    """Types of the other channels, by name."""
    bads: tuple[str, ...]
    """EEG channels that are marked as bad."""
    onsets: NDArray[np.float64]
    """(N,) start of each epoch in the clock of its events (s)."""
    events: list[str]
    """(N,) name of each epoch's event."""
    metadata: Any
    """Table with a row per epoch; None if there is none."""
    dropped: Counter[str]
    """Number of epochs that MNE has dropped, by reason."""

    def column(self, name: str, where: str) -> Any:
        """Return a column of the metadata.

        Raises
        ------
        UserError
            There is no metadata, or no such column.
        """
        if self.metadata is None:
            raise UserError(f"{where}: its epochs have no metadata, so none has the column '{name}'")
        found = find_column(self.metadata, name)
        if found is None:
            raise UserError(f"{where}: its metadata has no column '{name}'; {nearest(name, self.metadata.columns)}")
        return self.metadata[found]


def _facts(source: EpochsSource) -> EpochsFacts:
    epochs = source.open()
    if source.path is not None:
        _check_is_first(source.path, epochs)
    if not len(epochs):
        reasons = ", ".join(f"{n} {reason}" for reason, n in _dropped(epochs).items())
        raise UserError(f"{source.name}: it holds no epochs{f' (dropped: {reasons})' if reasons else ''}")
    types = dict(zip(epochs.ch_names, epochs.get_channel_types(), strict=True))
    eeg = tuple(name for name, kind in types.items() if kind == "eeg")
    if not eeg:
        raise UserError(f"{source.name}: no EEG channel (types: {list_some(sorted(set(types.values())))})")
    # Events count samples of the continuous recording, of which epochs may keep every second or so.
    rate = getattr(epochs, "_raw_sfreq", None)
    rate = float(np.ravel(rate)[0]) if rate is not None else float(epochs.info["sfreq"])
    return EpochsFacts(
        sfreq=float(epochs.info["sfreq"]),
        samples=len(epochs.times),
        tmin=float(epochs.times[0]),
        channels=eeg,
        others={name: kind for name, kind in types.items() if kind != "eeg"},
        bads=tuple(name for name in epochs.info["bads"] if name in eeg),
        onsets=epochs.events[:, 0] / rate + float(epochs.times[0]),
        events=_event_names(source, epochs),
        metadata=epochs.metadata,
        dropped=_dropped(epochs),
    )


def _event_names(source: EpochsSource, epochs: Any) -> list[str]:
    names: dict[int, str] = {}
    for name, code in epochs.event_id.items():
        other = names.setdefault(int(code), str(name))
        if other != name:
            raise UserError(f"{source.name}: events '{other}' and '{name}' have one code ({code}); keep one name")
    return [names[int(code)] for code in epochs.events[:, 2]]


def _dropped(epochs: Any) -> Counter[str]:
    """Count the epochs that were dropped, by the first reason; epochs of events that were not asked for are none."""
    channels = set(epochs.ch_names)
    reasons = (log[0] for log in epochs.drop_log if log and log[0] != "IGNORED")
    return Counter("amplitude" if reason in channels else str(reason) for reason in reasons)


def read_epochs_file(path: Path) -> Any:
    """Return the epochs of a FIF file, which are not in memory.

    MNE would apply projectors, such as one of an average reference, that were not applied when the file was written.
    Then the file would give other windows than the same epochs in memory.

    Raises
    ------
    UserError
        There is no such file.
    UnreadableRecordingError
        It holds no epochs, or is damaged.
    """
    import mne

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if not is_fif(path):
        raise UnreadableRecordingError(f"{path}: not a FIF file of MNE epochs")
    for part in [path, *sorted(_parts_after(path))]:
        if not part.is_file():
            raise UnreadableRecordingError(f"{path}: split, and its part {part.name} is not there")
        check_whole(part)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that do not end as MNE's do
            return mne.read_epochs(path, proj=False, preload=False, verbose="ERROR")
    except Exception as error:  # MNE raises exceptions of many types
        lacks = re.match(r"Could not find (epochs|event|processed) data", str(error))
        problem = "not a FIF file of MNE epochs, but of something else" if lacks else DAMAGED
        raise UnreadableRecordingError(f"{path}: {problem}") from None


def find_epochs(epochs: Any) -> list[EpochsSource]:
    """Return the epochs that are meant by a file, a pattern such as ``sub-*_epo.fif``, epochs of MNE, or several.

    Raises
    ------
    UserError
        No file fits a pattern, or what is given is neither.
    """
    several = not is_epochs(epochs) and not isinstance(epochs, str | Path) and isinstance(epochs, Iterable)
    found: list[EpochsSource] = []
    for each in list(epochs) if several else [epochs]:
        if isinstance(each, str | Path):
            found += [EpochsSource(path) for path in _paths(str(each))]
        elif is_epochs(each):
            found.append(EpochsSource(None, each))
        else:
            raise UserError(f"epochs: a {type(each).__name__} is neither MNE epochs nor a file of them")
    if not found:
        raise UserError("epochs: there are none")
    found = _without_later_parts(found)
    for number, source in enumerate(found):
        source.number = number
    return found


def _without_later_parts(sources: list[EpochsSource]) -> list[EpochsSource]:
    """Leave out the files that go on from others: MNE reads them with the first one of a split file."""
    later: set[Path] = set()
    for source in sources:
        parts = _parts_after(source.path) if source.path else set()
        source.later = tuple(other.path for other in sources if other.path and other.path.resolve() in parts)
        later |= parts
    return [source for source in sources if source.path is None or source.path.resolve() not in later]


def _parts_after(path: Path) -> set[Path]:
    """Return the files that go on from a file, one after another, as they name each other."""
    found: set[Path] = set()
    following = _next(path)
    while following is not None and following.resolve() not in found | {path.resolve()}:
        found.add(following.resolve())
        following = _next(following)
    return found


def _next(path: Path) -> Path | None:
    return next_part(path) if path.is_file() and is_fif(path) else None


def note_on_parts(sources: Sequence[EpochsSource]) -> list[str]:
    """Return a sentence on the files that go on from others; none if there are none."""
    later = [path.name for source in sources for path in source.later]
    return [f"Later parts of split files are read with their first ({list_some(later)})."] if later else []


def _check_is_first(path: Path, epochs: Any) -> None:
    """Refuse a later part of a split file that is given without its first.

    Raises
    ------
    UnreadableRecordingError
        It is one: the file before it names it, or is not there and MNE has left the first epochs to that.
    """
    found = next(filter(None, (pattern.fullmatch(path.stem) for pattern in _LATER_PART)), None)
    if found is None:
        return
    before, digits, after = found["before"], found["number"], found["after"]
    number, is_bids = int(digits), before.endswith("_split-")
    stem = f"{before}{number - 1:0{len(digits)}d}{after}" if is_bids else f"{before}-{number - 1}".removesuffix("-0")
    previous = path.with_name(f"{stem}{path.suffix}")
    goes_on = _next(previous) == path if previous.is_file() else epochs.drop_log[:1] == (("IGNORED",),)
    if number > is_bids and goes_on:
        raise UnreadableRecordingError(
            f"{path}: a later part of a split file, without its epochs in {previous.name}; give the first file"
            f"{'' if previous.is_file() else ', which is not there'}"
        )


def is_epochs(value: object) -> bool:
    """Return whether a value is epochs of MNE; MNE is not imported."""
    return any(kind.__name__ == "BaseEpochs" and kind.__module__.startswith("mne.") for kind in type(value).__mro__)


def _paths(pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        raise UserError(f"{pattern}: a folder; name its files by a pattern such as '{path / 'sub-*_epo.fif'}'")
    if not glob.has_magic(pattern):
        raise UserError(f"{pattern}: no such file; a pattern such as 'sub-*_epo.fif' names several")
    found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207 - Path.glob takes no absolute one
    if not found:
        raise UserError(f"{pattern}: no file fits")
    return found


def entity_of(source: EpochsSource, entity: str) -> str:
    """Return the label of an entity, such as ``sub``, in the name of the file.

    Raises
    ------
    UserError
        The epochs are of no file, or its name has no such entity.
    """
    if source.file_name is None:
        raise UserError(f"{source.name}: epochs in memory have no file name; give subject as metadata:COLUMN or a list")
    found = entities_of(source.recording)
    if entity not in found:
        raise UserError(f"{source.name}: its name has no entity '{entity}-'; {nearest(entity, found)}")
    return found[entity]
