"""Write an inspection as text: short sections in which equal things are counted and odd ones are named."""

from __future__ import annotations

import math
import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from statistics import median
from typing import TYPE_CHECKING

from raypipe.core.text import format_duration
from raypipe.data.accounting import UNREADABLE
from raypipe.data.facts import NO_EVENTS, RecordingFacts
from raypipe.data.table_facts import NO_TARGET, ColumnFacts, EventValue
from raypipe.data.target_base import Target
from raypipe.recordings.channels import find_name
from raypipe.recordings.tables import list_some

if TYPE_CHECKING:
    from raypipe.data.inspection import Inspection

WIDTH = 98
"""Characters of a line, without the two by which it is indented."""
LABEL_WIDTH = 12
MAX_ROWS = 15
"""Rows of a table of values or columns."""
MAX_CHANNELS = 24
"""Names of channels that are listed."""
MAX_MESSAGES = 3
"""Messages of errors of one kind that are shown."""
MAX_NAMED = 3
"""Names of recordings or people that are listed."""
MAX_COMMANDS = 10

Section = tuple[str, list[str]]


def sections_of(found: Inspection) -> list[Section]:
    """Return the titles of all sections that are not empty, and their lines."""
    sections: list[Section] = [
        ("Folders", list(found.folders) if len(found.folders) > 1 else []),
        ("Problems: prepare stops at these, whatever the target", _problems(found)),
        ("Recordings", list(_recordings(found))),
        ("Left out", list(_left_out(found))),
        ("People", list(_people(found))),
        *_events(found),
        ("Columns of participants.tsv", list(_columns(found.columns))),
        ("Targets that could be asked", list(_targets(found))),
    ]
    return [(title, lines) for title, lines in sections if lines]


def _problems(found: Inspection) -> list[str]:
    return [line for problem in found.problems for line in _wrap(_shortened(problem, found), "  ")]


def _shortened(message: str, found: Inspection) -> str:
    """Return a message in which paths are relative to the BIDS folder, or to the folder that holds it."""
    roots = {recording.root for recording in found.recordings}
    for root in roots:
        message = message.replace(f"{root}/", "" if len(roots) == 1 else f"{root.name}/")
    return message


def _wrap(text: str, hanging: str = "", first: str = "") -> list[str]:
    """Return a text in lines; paths and words are not broken, so that they can be copied."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=hanging,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [first + text]


def _labelled(label: str, text: str) -> list[str]:
    """Return a text with a label in the first line, and later lines beside the label."""
    return _wrap(f"{label:<{LABEL_WIDTH}}{text}", " " * LABEL_WIDTH)


def _recordings(found: Inspection) -> Iterator[str]:
    """Yield lines about the recordings: counts, and what their headers say."""
    account = found.accounting
    unreadable = sum(each.header is None for each in found.facts)
    others = account.recordings_found - len(found.recordings)
    yield f"{account.recordings_found} found, {account.recordings_used} can be read, {unreadable + others} left out"
    formats = Counter(recording.path.suffix.lower().lstrip(".").upper() for recording in found.recordings)
    yield from _labelled("format", _counts(formats))
    for name in ("task", "session", "run", "release"):
        labels = Counter(str(getattr(r, name)) for r in found.recordings if getattr(r, name) is not None)
        if labels:
            lacking = len(found.recordings) - labels.total()
            none = f", none ({lacking})" if lacking else ""
            yield from _labelled("BIDS task" if name == "task" else name, _counts(labels) + none)
    readable = [(recording.key, each) for recording, each in found.pairs() if each.header]
    if readable:
        yield from _headers(readable)
        yield from _channels_left_out(account.channels_left_out, len(readable))


def _counts(counter: Mapping[str, int], at_most: int = MAX_ROWS) -> str:
    """Return names with their numbers, in the order of the names."""
    return list_some((f"{name} ({count})" for name, count in sorted(counter.items())), at_most)


def _headers(readable: Sequence[tuple[str, RecordingFacts]]) -> Iterator[str]:
    """Yield lines about durations, rates, units and EEG channels."""
    yield from _durations(readable)
    yield from _labelled("rate", _grouped(readable, _rates))
    yield from _labelled("unit", _grouped(readable, _units))
    yield from _labelled("types from", _grouped(readable, lambda each: each.types_from))
    yield from _channels([(key, each.header.channels) for key, each in readable if each.header is not None])


def _durations(readable: Sequence[tuple[str, RecordingFacts]]) -> Iterator[str]:
    durations = sorted(each.duration for _, each in readable if not math.isnan(each.duration))
    if durations:
        low, middle, high = (format_duration(value) for value in (durations[0], median(durations), durations[-1]))
        span = low if low == high else f"{low} to {high}, median {middle}"
        yield from _labelled("duration", f"{span}; {format_duration(sum(durations))} in all")
    short = [key for key, each in readable if each.duration < Target.default_window]
    if short:
        yield from _labelled("", f"shorter than {Target.default_window:g} s: {_recordings_named(short)}")
    with_gaps = [key for key, each in readable if len(each.spans) > 1]
    if with_gaps:
        yield from _labelled("gaps", f"in {_recordings_named(with_gaps)}; no window reaches into one")


def _rates(facts: RecordingFacts) -> str:
    rates = sorted(set(facts.header.rates)) if facts.header else []
    return " and ".join(f"{rate:.10g}" for rate in rates) + " Hz"


def _units(facts: RecordingFacts) -> str:
    return " and ".join(unit or "blank" for unit in dict.fromkeys(facts.units))


def _grouped(readable: Sequence[tuple[str, RecordingFacts]], text_of: Callable[[RecordingFacts], str]) -> str:
    """Return what recordings have, the most frequent first, with the names of recordings that have another."""
    groups = _groups((key, text_of(each)) for key, each in readable)
    (usual, keys), *others = groups
    if not others:
        return f"{usual} ({_all(len(keys))})"
    return "; ".join([f"{usual} ({len(keys)})", *(f"{text} ({_recordings_named(names)})" for text, names in others)])


def _all(count: int) -> str:
    return "1 recording" if count == 1 else f"all {count} recordings"


def _groups(pairs: Iterable[tuple[str, Hashable]]) -> list[tuple[Hashable, list[str]]]:
    """Return the names of each value, the most frequent value first."""
    names: dict[Hashable, list[str]] = defaultdict(list)
    for name, value in pairs:
        names[value].append(name)
    return sorted(names.items(), key=lambda each: -len(each[1]))


def _recordings_named(keys: Sequence[str]) -> str:
    return f"{len(keys)}: {list_some(keys, MAX_NAMED)}"


def _channels(readable: Sequence[tuple[str, tuple[str, ...]]]) -> Iterator[str]:
    """Yield lines about the EEG channels that all recordings have, and about those that only some have."""
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for key, names in readable:
        groups[names].append(key)
    first = readable[0][1]
    common = [name for name in first if all(find_name(name, names) is not None for names in groups)]
    yield from _labelled("channels", f"{len(common)} EEG in {_all(len(readable))}{_listed(common)}")
    others = sorted(_others(groups, common).items(), key=lambda each: -len(each[1]))
    for count, same in groupby(others, key=lambda each: len(each[1])):
        with_it = list(same)
        where = f" ({list_some(with_it[0][1], MAX_NAMED)})" if count <= MAX_NAMED else ""
        names_only = [name for name, _ in with_it]
        yield from _labelled("", f"{len(names_only)} more in {count} only{where}{_listed(names_only)}")


def _others(groups: Mapping[tuple[str, ...], list[str]], common: Sequence[str]) -> dict[str, list[str]]:
    """Return the recordings of each channel that is not common to all."""
    owners: dict[str, list[str]] = defaultdict(list)
    for names, keys in groups.items():
        shared = {find_name(name, names) for name in common}
        for place, name in enumerate(names):
            if place not in shared:
                owners[name] += keys
    return owners


def _listed(names: Sequence[str]) -> str:
    return f": {list_some(names, MAX_CHANNELS)}" if names else ""


def _channels_left_out(left_out: Mapping[str, Mapping[str, int]], total: int) -> Iterator[str]:
    """Yield lines about channels that are no EEG, by type or reason."""
    label = "not used"
    for reason, counts in left_out.items():
        for count, same in groupby(sorted(counts, key=lambda name: -counts[name]), key=lambda name: counts[name]):
            where = _all(count) if count == total else f"{count} of {total}"
            yield from _labelled(label, f"{reason} ({where}): {list_some(same, MAX_CHANNELS)}")
            label = ""


def _left_out(found: Inspection) -> Iterator[str]:
    """Yield lines about the recordings that are left out, by reason."""
    left_out = found.accounting.recordings_left_out
    for reason, count in Counter(each.reason for each in left_out).most_common():
        same = [each for each in left_out if each.reason == reason]
        if reason != UNREADABLE:
            yield from _wrap(f"{count} {reason}: {list_some((each.name for each in same), MAX_NAMED)}", "  ")
            continue
        yield f"{count} {reason}; prepare stops at them, or leaves them out with --skip-unreadable"
        for each in same[:MAX_MESSAGES]:
            yield from _wrap(_shortened(each.detail, found), "    ", first="  ")
        if count > MAX_MESSAGES:
            yield f"  and {count - MAX_MESSAGES} more"


def _people(found: Inspection) -> Iterator[str]:
    """Yield lines about the people found, those without recordings and those without a row."""
    account = found.accounting
    with_recordings = {recording.subject for recording in found.recordings}
    yield f"{account.people_found} found, {len(with_recordings)} with recordings"
    for reason, names in account.people_left_out.items():
        yield from _wrap(f"{len(names)} left out, {reason}: {list_some(names, MAX_NAMED)}", "  ")
    if found.without_row:
        yield f"{len(found.without_row)} without a row in participants.tsv: {list_some(found.without_row, MAX_NAMED)}"
    for note in account.notes:
        yield from _wrap(note, "  ")


def _events(found: Inspection) -> Iterator[Section]:
    """Yield a section for each column of events, and lines about recordings without events."""
    lines = list(_without_events(found))
    for column, same in groupby(found.events, key=lambda each: each.column):
        yield f"Events by {column}", [*_event_table(list(same)), *lines]
        lines = []
    if lines and any(each.events_problem != NO_EVENTS for each in found.facts):
        yield "Events", lines


def _without_events(found: Inspection) -> Iterator[str]:
    problems = [(recording.key, each.events_problem) for recording, each in found.pairs() if each.events_problem]
    missing = [key for key, problem in problems if problem == NO_EVENTS]
    if missing:
        yield from _wrap(f"{_count(missing)} with {NO_EVENTS}: {list_some(missing, MAX_NAMED)}", "  ")
    empty = [r.key for r, each in found.pairs() if each.events and not any(each.events.values())]
    if empty:
        yield from _wrap(f"{_count(empty)} whose events.tsv holds no value: {list_some(empty, MAX_NAMED)}", "  ")
    damaged = list(dict.fromkeys(problem for _, problem in problems if problem != NO_EVENTS))
    for problem in damaged[:MAX_MESSAGES]:
        yield from _wrap(_shortened(problem, found), "  ")
    if len(damaged) > MAX_MESSAGES:
        yield f"and {len(damaged) - MAX_MESSAGES} more tables of events that cannot be read"


def _count(keys: Sequence[str]) -> str:
    return f"{len(keys)} recording{'s' * (len(keys) > 1)}"


def _event_table(values: Sequence[EventValue]) -> Iterator[str]:
    """Yield a table of values, and what is odd about their spelling."""
    shown = values[:MAX_ROWS]
    width = max(len("value"), *(len(each.value) for each in shown))
    yield f"{'value':<{width}}  events  people  per person"
    for each in shown:
        few, most = min(each.by_person.values(), default=0), max(each.by_person.values(), default=0)
        span = f"{few}" if few == most else f"{few} to {most}"
        line = f"{each.value:<{width}}  {each.count:>6}  {len(each.by_person):>6}  {span:>10}"
        if 0 < len(each.lacking) <= MAX_NAMED:
            line += f"  not {', '.join(each.lacking)}"
        elif each.lacking:
            line += f"  {len(each.lacking)} people lack it"
        yield line
    if len(values) > MAX_ROWS:
        yield f"and {len(values) - MAX_ROWS} more values"
    for each in values:
        if each.spellings:
            others = _quoted(each.spellings)
            yield from _wrap(f"'{each.value}' is also spelt {others}; prepare takes them for one value", "  ")
        if each.unmatched:
            others = _quoted(each.unmatched)
            yield from _wrap(f"{others} beside '{each.value}' in one file: prepare takes them for other values", "  ")


def _quoted(spellings: Mapping[str, int]) -> str:
    return list_some((f"'{cell}' ({count})" for cell, count in spellings.items()), MAX_NAMED)


def _columns(columns: Sequence[ColumnFacts]) -> Iterator[str]:
    """Yield a line for each column that could be a target, and then those that cannot, by reason."""
    usable = [column for column in columns if not column.problem]
    width = max((len(column.name) for column in usable), default=0)
    for column in usable[:MAX_ROWS]:
        missing = f"; missing for {_people_named(column.missing)}" if column.missing else ""
        line = f"{column.name:<{width}}  {column.kind}  {column.describe()}{missing}"
        yield from _wrap(line, " " * (width + 11))
    hidden = [column.name for column in usable[MAX_ROWS:]]
    if hidden:
        yield from _wrap(f"and {len(hidden)} more: {list_some(hidden, MAX_ROWS)}", "  ")
    yield from _no_targets([column for column in columns if column.problem])


def _no_targets(columns: Sequence[ColumnFacts]) -> Iterator[str]:
    groups = _groups((column.name, column.problem) for column in columns)
    for problem, names in groups[:MAX_ROWS]:
        yield from _wrap(f"{NO_TARGET}: {list_some(names, MAX_ROWS)}: {problem}", "  ")
    if len(groups) > MAX_ROWS:
        yield f"and {sum(len(names) for _, names in groups[MAX_ROWS:])} more that are {NO_TARGET}"


def _people_named(people: Sequence[str]) -> str:
    return list_some(people, MAX_NAMED) if len(people) <= MAX_NAMED else f"{len(people)} people"


def _targets(found: Inspection) -> Iterator[str]:
    """Yield commands, which are not wrapped so that they can be copied."""
    yield from found.commands[:MAX_COMMANDS]
    if len(found.commands) > MAX_COMMANDS:
        yield f"and {len(found.commands) - MAX_COMMANDS} more columns with participants:COLUMN"
    if not found.commands:
        yield "none" + (" before the problems above are solved" if found.problems else "")
        for problem in list(dict.fromkeys(found.refused.values()))[:MAX_MESSAGES]:
            yield from _wrap(_shortened(problem, found), "  ")
