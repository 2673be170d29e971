"""Find the EEG channels of a recording: their types and units, from the file and from its channels.tsv.

Sources: BIDS specification 1.10 (channels.tsv); EDF+ specification (types as the first word of labels).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from unicodedata import normalize

from raypipe.recordings.recording import Recording
from raypipe.recordings.signal import Channel, Signal, UnreadableRecordingError
from raypipe.recordings.tables import find_column, is_missing, list_some, missing_column, read_tsv
from raypipe.recordings.units import volts_per

if TYPE_CHECKING:
    import pandas as pd

NOT_LISTED = "not in channels.tsv"
NO_VOLTAGE = "unit {unit}, not a voltage"

_KINDS = {
    "eog": r"eog|(?<![a-z0-9])[lr]oc(?![a-z])|^(?:eeg |pol )?e[12]-[am][12]",
    "ecg": r"ecg|ekg",
    "emg": r"emg",
    "resp": r"resp|breath|thor(?:ax|acic)|abdo|(?<![a-z])(?:air)?flow(?![a-z])|nasal|snor",
    "trig": r"status|trig|stim|marker|(?<![a-z])event|(?<![a-z])dc\d|(?<![a-z])sti ?\d|photic|(?<![a-z])annotations",
    "misc": r"exg\d|gsr|(?<![a-z])eda(?![a-z])|(?<![a-z])temp(?![a-z])|plet|sp?[oa]o?2|oxi|pulse|(?<![a-z])hr(?![a-z])|"
    r"(?<![a-z])erg\d|acc(?:el|[ _]?[xyz\d])|gyro|photo|audio|counter|battery|(?<![a-z])ibi(?![a-z])|bursts|suppr|vns",
}
"""What labels of channels that are no EEG contain, by type."""


@dataclass(frozen=True)
class EegChannels:
    """The EEG channels of one recording, in file order."""

    names: tuple[str, ...]
    """Names, each once: those of channels.tsv where there is one, else the labels in the file."""
    picks: tuple[int, ...]
    """Places in the file's list of channels."""
    rates: tuple[float, ...]
    """Sampling rates in Hz."""
    volts: tuple[float, ...]
    """Factors from the values in the file to volts."""
    left_out: dict[str, str]
    """Other channels of the file, and the type or reason for which each is left out."""
    notes: tuple[str, ...] = ()
    """What a user should know of file and channels.tsv, sentences without a full stop."""
    bads: tuple[str, ...] = ()
    """Those of `names` whose `status` is bad in channels.tsv, or that a Raw marks as bad."""
    has_confirmed_units: bool = False
    """The file and channels.tsv both state the unit of every channel, and agree."""

    def place(self, name: str) -> int | None:
        """Return the place in `names` of a channel of another recording; None if this one lacks it."""
        return find_name(name, self.names)


@dataclass(frozen=True)
class _Row:
    """A row of channels.tsv; what is missing is empty."""

    name: str
    type: str
    unit: str
    status: str = ""


def eeg_channels(recording: Recording, signal: Signal) -> EegChannels:
    """Find the EEG channels of a recording.

    The type of a channel is that in channels.tsv; where it is ``n/a``, that in the file; where the format has no types,
    that which the label says, else EEG. Channels that channels.tsv does not list are left out.

    Raises
    ------
    UnreadableRecordingError
        There is no EEG channel, channels.tsv is damaged or describes other channels, or the unit of an EEG channel is
        unknown or contradicted by channels.tsv.
    """
    path = recording.sidecar("channels.tsv")
    rows = _read_rows(path) if path.is_file() else []
    row_of = _match(recording, signal.channels, rows, path) if rows else {}
    picks: list[int] = []
    left_out: dict[str, str] = {}
    for place, channel in enumerate(signal.channels):
        row = row_of.get(place)
        kind = _type_of(channel, row, has_table=bool(rows))
        if kind == "eeg":
            picks.append(place)
        else:
            left_out[channel.name] = kind
    left_out |= {row.name: "in channels.tsv only" for row in _unmatched(rows, row_of) if row.type == "eeg"}
    if not picks:
        types = list_some(sorted(set(left_out.values()))) or "no channel at all"
        raise UnreadableRecordingError(f"{recording.path}: no EEG channel (types: {types})")
    names = [(row_of[place].name if place in row_of else signal.channels[place].name) for place in picks]
    unique = _number_repeated(names)
    return EegChannels(
        names=tuple(unique),
        picks=tuple(picks),
        rates=tuple(signal.channels[place].rate for place in picks),
        volts=tuple(_volts(recording, signal, place, row_of.get(place), path) for place in picks),
        left_out=left_out,
        notes=tuple(note for note in (signal.note, _note(path, rows)) if note),
        bads=tuple(
            name
            for name, place in zip(unique, picks, strict=True)
            if (place in row_of and row_of[place].status == "bad")
            or signal.channels[place].name in recording.marked_bad
        ),
        has_confirmed_units=all(_is_confirmed(signal, place, row_of.get(place)) for place in picks),
    )


def find_name(name: str, names: Sequence[str]) -> int | None:
    """Return the place of a channel in `names`: by its exact name, else by the only one that is spelt otherwise.

    Spelt otherwise means: upper and lower case, a leading ``EEG``, and dots or spaces at the end.
    """
    if name in names:
        return names.index(name)
    found = [place for place, other in enumerate(names) if _folded(other) == _folded(name)]
    return found[0] if len(found) == 1 else None


def _folded(name: str) -> str:
    return normalize("NFC", name).casefold().removeprefix("eeg ").strip(" .")


def _plain(name: str) -> str:
    """Return a label without type and reference: ``fp1`` for ``EEG Fp1-Ref``."""
    return re.split(r"[-:]", re.sub(r"^(?:eeg|eog|ecg|emg)[ _]", "", name.casefold()))[0].strip(" .")


def _number_repeated(names: Sequence[str]) -> list[str]:
    """Return names of which each is there once: repeated ones are numbered as MNE does (``ECG-0``, ``ECG-1``)."""
    repeated = {name for name, count in Counter(names).items() if count > 1}
    seen: Counter[str] = Counter()
    out = []
    for name in names:
        out.append(f"{name}-{seen[name]}" if name in repeated else name)
        seen[name] += 1
    return out


def _read_rows(path: Path) -> list[_Row]:
    table = read_tsv(path)
    column = find_column(table, "name")
    if column is None:
        raise UnreadableRecordingError(missing_column(path, "name", table))
    columns = [table[column].tolist()]
    for names in (("type", "types", "kind", "channel_type", "ch_type"), ("units", "unit"), ("status",)):
        found = next((known for name in names if (known := find_column(table, name))), None)
        columns.append(["" if found is None or is_missing(cell) else cell for cell in _cells(table, found)])
    return [
        _Row(name, kind.lower(), unit, status.lower())
        for name, kind, unit, status in zip(*columns, strict=True)
        if name
    ]


def _cells(table: pd.DataFrame, column: str | None) -> list[str]:
    return table[column].tolist() if column is not None else [""] * len(table)


def _match(recording: Recording, channels: Sequence[Channel], rows: list[_Row], path: Path) -> dict[int, _Row]:
    """Return the row of each channel that has one.

    Channels and rows are matched by name: exactly, by the numbered names that MNE gives to repeated labels, in any
    case, and without type and reference. What is left is matched by its place, if the two lists have the same length
    and neither their order nor a label (an ``ECG`` at the place of EEG) contradicts it.

    Raises
    ------
    UnreadableRecordingError
        No row matches, or rows of the same name say different things.
    """
    labels = [channel.name for channel in channels]
    numbered = dict(zip(range(len(labels)), _number_repeated(labels), strict=True))
    found: dict[int, int] = {}
    passes: tuple[tuple[Callable[[int], str], Callable[[str], str]], ...] = (
        (lambda place: labels[place], str),
        (lambda place: numbered[place], str),
        (lambda place: _folded(labels[place]), _folded),
        (lambda place: _plain(labels[place]), _plain),
    )
    for name_of_channel, name_of_row in passes:
        _match_names(found, len(labels), name_of_channel, [name_of_row(row.name) for row in rows])
    if not found:
        raise UnreadableRecordingError(
            f"{path}: none of its names ({list_some(row.name for row in rows)}) is a channel of {recording.path.name} "
            f"({list_some(labels)})"
        )
    if len(rows) == len(labels) and all(place == number for place, number in found.items()):
        free = (place for place in range(len(labels)) if place not in found)
        found |= {place: place for place in free if rows[place].type != "eeg" or _type_in_label(labels[place]) is None}
    _check_repeated(path, rows, labels, found)
    return {place: rows[number] for place, number in found.items()}


def _match_names(found: dict[int, int], n_channels: int, name_of: Callable[[int], str], row_names: list[str]) -> None:
    """Match channels and rows that are left and have equal names, the first with the first; ambiguous ones are kept."""
    places: dict[str, list[int]] = defaultdict(list)
    numbers: dict[str, list[int]] = defaultdict(list)
    taken = set(found.values())
    for place in range(n_channels):
        if place not in found:
            places[name_of(place)].append(place)
    for number, name in enumerate(row_names):
        if number not in taken:
            numbers[name].append(number)
    for name, same in places.items():
        if name and len(same) == len(numbers[name]):
            found.update(zip(same, numbers[name], strict=True))


def _check_repeated(path: Path, rows: list[_Row], labels: Sequence[str], found: dict[int, int]) -> None:
    """Check that a name that could not be matched for being there more than once does not matter; else match it."""
    for place, label in enumerate(labels):
        if place in found:
            continue
        same = [number for number, row in enumerate(rows) if row.name == label]
        if len({rows[number] for number in same}) > 1:
            raise UnreadableRecordingError(f"{path}: has different rows of channel '{label}'; keep one of each")
        if same:
            found[place] = same[0]


def _note(path: Path, rows: list[_Row]) -> str:
    """Return a note about a channels.tsv without types, in which labels decide."""
    return f"{path.name}: names the type of no channel" if rows and not any(row.type for row in rows) else ""


def _unmatched(rows: list[_Row], row_of: dict[int, _Row]) -> list[_Row]:
    matched = {id(row) for row in row_of.values()}
    return [row for row in rows if id(row) not in matched]


def _type_of(channel: Channel, row: _Row | None, *, has_table: bool) -> str:
    """Return the type of a channel in lower case, or the reason for leaving it out."""
    if row is not None and row.type:
        return row.type
    kind = channel.type if channel.type not in (None, "eeg") else _type_in_label(channel.name) or channel.type
    if kind is not None and kind != "eeg":
        return kind
    if has_table and row is None and channel.type is None:
        return NOT_LISTED
    if kind is None and _is_other_unit(row.unit if row and row.unit else channel.unit):
        return NO_VOLTAGE.format(unit=channel.unit)
    return "eeg"


def _type_in_label(label: str) -> str | None:
    """Return the type that a label says, such as ``ecg`` for ``EEG EKG1-REF``; None if it says none."""
    return next((kind for kind, pattern in _KINDS.items() if re.search(pattern, label, re.IGNORECASE)), None)


def _is_other_unit(unit: str) -> bool:
    """Return whether a unit is that of something other than a voltage, such as ``%``; a garbled ``?V`` is not."""
    return not is_missing(unit) and volts_per(unit) is None and "v" not in unit.casefold()


def _is_confirmed(signal: Signal, place: int, row: _Row | None) -> bool:
    """Return whether the file and channels.tsv both state the unit of a channel."""
    stated = signal.unit_source == "file" and volts_per(signal.channels[place].unit) is not None
    return stated and row is not None and volts_per(row.unit) is not None


def _volts(recording: Recording, signal: Signal, place: int, row: _Row | None, table: Path) -> float:
    """Return the factor from a channel's values to volts.

    Raises
    ------
    UnreadableRecordingError
        The channel cannot be read, or its unit is not known.
    """
    channel = signal.channels[place]
    where = f"{recording.path}: EEG channel '{channel.name}'"
    if channel.problem:
        raise UnreadableRecordingError(f"{where}: {channel.problem}")
    listed_unit = row.unit if row else ""
    own, listed = volts_per(channel.unit), volts_per(listed_unit)
    if own is None and listed is None:
        units = f"'{channel.unit}' in the file" + (f", '{listed_unit}' in {table.name}" if listed_unit else "")
        raise UnreadableRecordingError(
            f"{where} has no known unit ({units}); give it, such as uV, in the column 'units' of {table}"
        )
    if listed is not None and (own is None or signal.unit_source == "convention"):
        return listed
    contradicts = _is_other_unit(listed_unit) or listed not in (None, own)
    if signal.unit_source != "format" and contradicts:
        raise UnreadableRecordingError(
            f"{where} is in {channel.unit} in the file, but in {listed_unit} in {table}; correct one of them"
        )
    assert own is not None
    return own
