"""Recordings in memory: `mne.io.Raw` in place of a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from raypipe.core.errors import UserError
from raypipe.recordings.fif import RawSignal, companions
from raypipe.recordings.formats import open_signal
from raypipe.recordings.layout import recording_at
from raypipe.recordings.recording import Recording
from raypipe.recordings.signal import Signal, UnreadableRecordingError


@dataclass(frozen=True)
class RawRecording(Recording):
    """A recording that MNE has read. If its file is there, the tables beside that apply to it too.

    `subject` is empty where neither the file's name nor ``info["subject_info"]["his_id"]`` names it. The ``X`` of an
    anonymous EDF+ header is no name.
    """

    raw: Any = field(default=None, compare=False, repr=False)

    def open_signal(self) -> Signal:
        """Return the samples as they are in the Raw."""
        return RawSignal(self.raw, self.path)

    @property
    def marked_bad(self) -> frozenset[str]:
        """Return ``info["bads"]``."""
        return frozenset(self.raw.info["bads"])

    def sidecar(self, suffix: str) -> Path:
        """Return the table beside the Raw's file, as `Recording.sidecar` does.

        Raises
        ------
        UnreadableRecordingError
            Events are asked for, and there is no file of the Raw, or the Raw begins later than it.
        """
        if not self.path.is_file():
            if suffix == "events.tsv":
                raise UnreadableRecordingError(
                    f"{self.stem}: its windows are at events, which a Raw without a file does not bring; predict the "
                    "recording's file, or cut mne.Epochs and predict these"
                )
            return self.path / suffix  # there is none
        if suffix == "events.tsv" and _begins_later(self.raw, self.path):
            raise UnreadableRecordingError(
                f"{self.stem}: its start was cropped, so onsets in its events.tsv do not fit; predict all of it"
            )
        return super().sidecar(suffix)

    def companions(self) -> list[Path]:
        """Return no file: all samples are in the Raw."""
        return []


def raws_in(value: object) -> list[Any]:
    """Return the Raw that a value is, or those that a list of them has; else none. MNE is not imported.

    Raises
    ------
    UserError
        A list has Raws and something else.
    """
    if isinstance(value, list | tuple):
        raws = [each for each in value if _is_raw(each)]
        if 0 < len(raws) < len(value):
            other = next(type(each).__name__ for each in value if not _is_raw(each))
            raise UserError(f"a list of Raws and a {other}: all must be Raws; predict the others on their own")
        return raws
    return [value] if _is_raw(value) else []


def _is_raw(value: object) -> bool:
    return any(kind.__name__ == "BaseRaw" and kind.__module__.startswith("mne.") for kind in type(value).__mro__)


def raw_recordings(raws: Sequence[Any], subjects: Sequence[str] | None = None) -> list[Recording]:
    """Return recordings of Raws.

    Parameters
    ----------
    raws
        One or several.
    subjects
        Whose each is, without ``sub-``. None: as their files or ``his_id`` say.

    Raises
    ------
    UserError
        Names are not as many as Raws, or two Raws are of one recording.
    """
    names = [None] * len(raws) if subjects is None else subjects
    if len(names) != len(raws):
        raise UserError(f"subject: {len(names)} names for {len(raws)} Raws; give one for each")
    found: list[Recording] = []
    for number, (raw, name) in enumerate(zip(raws, names, strict=True), start=1):
        recording = _recording_of(raw, number)
        found.append(recording if name is None else replace(recording, subject=name))
    twice = [key for key, count in Counter(each.key for each in found).items() if count > 1]
    if twice:
        raise UserError(f"{twice[0]}: two Raws are of this recording; predict one after the other")
    return found


def _recording_of(raw: Any, number: int) -> Recording:
    path = _file_of(raw)
    if path is not None:
        return RawRecording(**vars(recording_at(path)), raw=raw)
    return RawRecording(Path(f"raw-{number}"), Path(), _subject_of(raw.info["subject_info"] or {}), raw=raw)


def _subject_of(info: Any) -> str:
    """Return the subject that a Raw's header names; empty for none, or for what stands in place of one.

    In EDF+ an ``X`` is a field that is not known, or was made anonymous (Kemp & Olivan 2003).
    `mne.io.Raw.anonymize` names everyone ``0``.
    """
    name = str(info.get("his_id") or "").strip().removeprefix("sub-")
    is_anonymous = name.upper() == "X" or (name == "0" and info.get("last_name") == "mne_anonymize")
    return "" if is_anonymous else name


def _file_of(raw: Any) -> Path | None:
    """Return the file that a Raw was read from; None for one without a file, or of several recordings."""
    files = [None if name is None else Path(name) for name in raw.filenames]
    first = files[0] if files else None
    if first is None or not first.is_file():
        return None
    parts = [first] if len(files) == 1 else [first, *companions(first)]
    return first if all(file in parts for file in files) else None


def _begins_later(raw: Any, path: Path) -> bool:
    """Return whether a Raw was cropped at its start; raises UnreadableRecordingError if its file cannot be read."""
    signal = open_signal(path) if path.suffix.lower() == ".fif" else None
    return bool(raw.first_samp != (signal.first_sample if isinstance(signal, RawSignal) else 0))
