"""Find and read recordings: a small BIDS reader (BIDS specification 1.10, EEG) over MNE's file readers.

It replaces mne-bids, which refuses sidecars of HBN-EEG releases 10 and 11, whose types and units are all ``n/a``.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raypipe.core.errors import UserError, first_line, nearest
from raypipe.data.remote_bids import RemoteBids

if TYPE_CHECKING:
    import pandas as pd

EXTENSIONS = (".bdf", ".edf", ".set", ".vhdr", ".fif")
LAYOUT = "sub-*/[ses-*/]eeg/*_eeg.{" + ",".join(e[1:] for e in EXTENSIONS) + "}"

_NA = ["n/a", "N/A", "NaN", "nan", ""]
_EDF_FIXED_HEADER = 256
"""Bytes of the fixed part of the header of an EDF or BDF file."""
_COMPANIONS = {".set": (".fdt",), ".vhdr": (".vmrk", ".eeg")}


class UnreadableRecordingError(UserError):
    """A recording or a table beside it cannot be read. Other recordings may be readable."""


@dataclass(frozen=True)
class Recording:
    """One continuous EEG file.

    Labels have no prefix (`subject` is ``01`` for ``sub-01``). They are None where the file's name has none.
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
    """Mirror that fetches the files while they are read; None for files of this machine."""

    @property
    def key(self) -> str:
        """The file's name without ``_eeg`` and extension, such as ``sub-01_ses-1_task-rest_run-2``."""
        return self.path.stem.removesuffix("_eeg")

    def sidecar(self, suffix: str) -> Path:
        """Return the path of the file beside it that ends in `suffix`, such as ``events.tsv``."""
        return self.path.with_name(f"{self.key}_{suffix}")

    def companions(self) -> list[Path]:
        """Return the other files of its signal that exist."""
        paths = [self.path.with_suffix(ext) for ext in _COMPANIONS.get(self.path.suffix.lower(), ())]
        return [path for path in paths if path.is_file()]

    def files(self) -> list[Path]:
        """Return the files that decide its windows: the recording, its companions, and the sidecars that exist."""
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
                mirror.fetch(paths, int(file.read(192)[184:]))  # the header's length
        else:
            mirror.fetch(path for path in paths if kind != ".vhdr" or path.suffix.lower() != ".eeg")


def find_recordings(root: str | Path, mirror: RemoteBids | None = None) -> list[Recording]:
    """List the recordings of a BIDS folder, sorted by path.

    Parameters
    ----------
    root
        The folder.
    mirror
        The mirror that contains the folder; None for a folder of this machine.

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
    """Make a recording of a single file. Labels come from its name; the subject is the name where it has none.

    Raises
    ------
    UserError
        There is no such file, or its format cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix.lower() not in EXTENSIONS:
        raise UserError(f"{path}: not a format that is read ({', '.join(EXTENSIONS)})")
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
    """Open a recording with MNE. Its signal stays on disk, but that of EEGLAB files that contain it is loaded.

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
        what = "a link to data that was not fetched" if path.is_symlink() else "no such file"
        raise UnreadableRecordingError(f"{path}: {what}")
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
    except Exception as error:  # MNE's readers raise whatever their parsers do
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        raise UnreadableRecordingError(f"{path}: cannot be read ({reason})") from None


def _check_whole(path: Path, bytes_per_sample: int) -> None:
    # MNE only warns about a truncated file, and reads what is left of it.
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
        return  # "unknown" (EDF specification): recording was interrupted, and MNE counts the records by the size
    expected = header_bytes + n_records * record_samples * bytes_per_sample
    size = path.stat().st_size
    if size < expected:
        raise UnreadableRecordingError(f"{path}: truncated: its header announces {expected} bytes, the file has {size}")


def eeg_channels(recording: Recording, raw: Any) -> list[str]:
    """Return the names of the EEG channels, in file order.

    Types come from the ``channels.tsv`` beside the recording. MNE's type is used where there is no such file, and for
    channels that it lacks or has as ``n/a``. (EDF and BDF store no types: MNE takes all of their channels for EEG.)

    Raises
    ------
    UnreadableRecordingError
        There is no EEG channel, or the sidecar is damaged.
    """
    types = dict(zip(raw.ch_names, raw.get_channel_types(), strict=True))
    sidecar = recording.sidecar("channels.tsv")
    if sidecar.is_file():
        table = read_tsv(sidecar, text=("name", "type"))
        if {"name", "type"} <= set(table.columns):
            known = table.dropna(subset=["name", "type"])
            types |= {n: t.lower() for n, t in zip(known["name"], known["type"], strict=True) if n in types}
    names = [name for name in raw.ch_names if types[name] == "eeg"]
    if not names:
        raise UnreadableRecordingError(
            f"{recording.path}: no EEG channel (types: {', '.join(sorted(set(types.values())))})"
        )
    return names


def read_events(recording: Recording) -> pd.DataFrame:
    """Read the ``events.tsv`` beside a recording.

    Returns
    -------
    pandas.DataFrame
        Rows by ascending onset, equal onsets in file order; rows without an onset are left out. Columns: `onset` (s,
        float), `duration` (s, float, may be NaN), `value` (str; from ``trial_type`` where there is no ``value``), and
        the file's other columns.

    Raises
    ------
    UnreadableRecordingError
        The file is missing or damaged, or lacks a column.
    """
    import pandas as pd

    path = recording.sidecar("events.tsv")
    if not path.is_file():
        raise UnreadableRecordingError(f"{path}: no such file; the task needs the recording's events")
    events = read_tsv(path, text=("value", "trial_type"))
    if "value" not in events.columns and "trial_type" in events.columns:
        events["value"] = events["trial_type"]
    for column in ("onset", "value"):
        if column not in events.columns:
            raise UnreadableRecordingError(f"{path}: no column '{column}'; {nearest(column, events.columns)}")
    if "duration" not in events.columns:
        events["duration"] = float("nan")
    for column in ("onset", "duration"):
        try:
            events[column] = pd.to_numeric(events[column]).astype(float)
        except (ValueError, TypeError) as error:
            raise UnreadableRecordingError(f"{path}: column '{column}' is not a number of seconds ({error})") from None
    events["value"] = events["value"].fillna("n/a").astype(str)
    return events.dropna(subset=["onset"]).sort_values("onset", kind="stable", ignore_index=True)


def read_participants(root: str | Path) -> pd.DataFrame:
    """Read ``participants.tsv``; ``n/a`` becomes NaN.

    Returns
    -------
    pandas.DataFrame
        Indexed by the subject's label without ``sub-``.

    Raises
    ------
    UserError
        The file is missing or damaged, or has two rows of a subject.
    """
    path = Path(root) / "participants.tsv"
    if not path.is_file():
        raise UserError(f"{path}: no such file; the task takes its targets from it")
    table = read_tsv(path, text=("participant_id",))
    if "participant_id" not in table.columns:
        raise UserError(f"{path}: no column 'participant_id'; {nearest('participant_id', table.columns)}")
    table = table.dropna(subset=["participant_id"])
    table.index = table.pop("participant_id").str.removeprefix("sub-").rename("subject")
    if not table.index.is_unique:
        raise UserError(f"{path}: subject '{table.index[table.index.duplicated()][0]}' has two rows; keep one")
    return table


def read_tsv(path: Path, text: tuple[str, ...] = ()) -> pd.DataFrame:
    """Read a BIDS table. Columns named in `text` are read as strings, ``n/a`` as missing.

    Raises
    ------
    UnreadableRecordingError
        The file is not a table of tab-separated values in UTF-8.
    """
    import pandas as pd

    try:
        return pd.read_csv(
            path,
            sep="\t",
            dtype=dict.fromkeys(text, str),
            na_values=_NA,
            keep_default_na=False,
            encoding="utf-8-sig",  # spreadsheets write a byte-order mark
            skipinitialspace=True,
            index_col=False,
            low_memory=False,
        )
    except (ValueError, OSError) as error:  # pandas' parser errors and UnicodeDecodeError are ValueErrors
        raise UnreadableRecordingError(f"{path}: not a table of tab-separated values ({first_line(error)})") from None
