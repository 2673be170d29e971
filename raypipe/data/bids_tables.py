"""Read the tables beside recordings: channels, events and participants (BIDS specification 1.10)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from raypipe.core.errors import UserError, first_line, nearest
from raypipe.data.bids import Recording, UnreadableRecordingError

if TYPE_CHECKING:
    import pandas as pd

_NA = ["n/a", "N/A", "NaN", "nan", ""]


def eeg_channels(recording: Recording, raw: Any) -> list[str]:
    """Return the names of the EEG channels, in file order.

    Types come from the ``channels.tsv`` beside the recording. MNE's type is used if there is no such file, and for
    channels that are missing in it or have the type ``n/a``. (EDF and BDF store no types: MNE assumes EEG.)

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
    """Read the ``events.tsv`` beside a recording; see `read_events_file`."""
    return read_events_file(recording.sidecar("events.tsv"))


def read_events_file(path: Path) -> pd.DataFrame:
    """Read an ``events.tsv``.

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

    if not path.is_file():
        raise UnreadableRecordingError(f"{path}: no such file; the task needs the recording's events")
    events = read_tsv(path, text=("value", "trial_type"))
    if "value" not in events.columns and "trial_type" in events.columns:
        events["value"] = events["trial_type"]
    for column in ("onset", "value"):
        if column not in events.columns:
            raise UnreadableRecordingError(missing_column(path, column, events))
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
    """Read the ``participants.tsv`` of a BIDS folder; ``n/a`` becomes NaN.

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
        raise UserError(missing_column(path, "participant_id", table))
    table = table.dropna(subset=["participant_id"])
    table.index = table.pop("participant_id").str.removeprefix("sub-").rename("subject")
    if not table.index.is_unique:
        raise UserError(f"{path}: subject '{table.index[table.index.duplicated()][0]}' has two rows; keep one")
    return table


def missing_column(path: Path, column: str, table: pd.DataFrame) -> str:
    """Return the message for a table that lacks a column; it names the most similar one."""
    return f"{path}: no column '{column}'; {nearest(column, table.columns)}"


def read_tsv(path: Path, text: tuple[str, ...] = ()) -> pd.DataFrame:
    """Read a BIDS table. Columns named in `text` are read as strings; ``n/a`` is read as missing.

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
