"""Find what is in BIDS folders, what `prepare` would use, what not and why, without reading a signal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from raypipe.core.errors import UserError, first_line
from raypipe.core.parallel import map_processes, usable_cores
from raypipe.core.progress import Progress, no_progress
from raypipe.data.accounting import NO_RECORDING, UNREADABLE, Accounting, Ledger
from raypipe.data.facts import RecordingFacts, read_facts
from raypipe.data.hbn import add_releases
from raypipe.data.selection import find_in_folders
from raypipe.data.store_build import MIN_PARALLEL_HEADERS
from raypipe.data.suggestions import Suggestion, suggest_targets
from raypipe.data.table_facts import (
    ColumnFacts,
    EventValue,
    describe_columns,
    find_event_values,
    people_without_row,
)
from raypipe.recordings.layout import dataset_folders, read_layout
from raypipe.recordings.recording import Recording, fetch_tables
from raypipe.recordings.remote_bids import RemoteBids, open_remote_bids
from raypipe.storage.remote import without_settings
from raypipe.storage.scratch import scratch_folder


@dataclass(frozen=True)
class Inspection:
    """What is in BIDS folders. ``print(inspection.render())`` shows it."""

    folders: tuple[str, ...]
    """Folders and URIs, as they were given."""
    recordings: tuple[Recording, ...]
    """Recordings that raypipe can try to read."""
    facts: tuple[RecordingFacts, ...]
    """Channels, rates, units, duration and events of each recording."""
    accounting: Accounting
    """Recordings and people found, and those left out with the reason."""
    without_row: tuple[str, ...]
    """People with recordings but without a row in participants.tsv."""
    events: tuple[EventValue, ...]
    """Values of events, and the people who have them."""
    columns: tuple[ColumnFacts, ...]
    """Columns of participants.tsv."""
    targets: tuple[Suggestion, ...]
    """Targets that `prepare` accepts."""
    refused: Mapping[str, str]
    """Messages for other targets that the data suggest, by specification."""
    problems: tuple[str, ...]
    """Messages of errors that would make `prepare` stop whatever the target."""

    def pairs(self) -> Iterator[tuple[Recording, RecordingFacts]]:
        """Yield each recording with its facts."""
        return zip(self.recordings, self.facts, strict=True)

    @property
    def commands(self) -> list[str]:
        """Return a command line of `prepare` for each target that could be asked."""
        return [target.command(self.folders) for target in self.targets]

    def sections(self) -> list[tuple[str, list[str]]]:
        """Return titles, and lines of text of at most 100 characters where names allow it."""
        from raypipe.data.inspection_text import sections_of

        return sections_of(self)

    def lines(self) -> list[str]:
        """Return everything as lines of text."""
        return [line for title, lines in self.sections() for line in (title, *(f"  {each}" for each in lines))]

    def render(self) -> str:
        """Return everything as text."""
        return "\n".join(self.lines())


def inspect_bids(
    bids: str | Path | Sequence[str | Path], *, jobs: int | None = None, progress: Progress = no_progress
) -> Inspection:
    """Find what is in BIDS folders, what `prepare` would use, what not and why. Signals are not read.

    Damaged files are findings, not errors.

    Parameters
    ----------
    bids
        BIDS folder, folder of BIDS folders, or several of either, also behind a pyarrow.fs URI.
    jobs
        Processes. Default: one per core. They do not import the script, so it needs no main guard.
    progress
        Called with the recordings done, their total and a short text.

    Returns
    -------
    Inspection
        Its ``render()`` is the text that ``raypipe inspect`` prints.

    Raises
    ------
    UserError
        A folder is not there, or holds nothing that looks like a recording of EEG or a list of people.
    """
    given = [bids] if isinstance(bids, str | Path) else list(bids)
    if jobs is not None and jobs < 1:
        raise UserError(f"jobs {jobs}: must be at least 1")
    with (
        scratch_folder() as scratch,
        open_remote_bids(given, scratch / "tables") as opened,
    ):
        found = _inspect(opened, jobs or usable_cores(), progress)
        return _with_uris(replace(found, folders=tuple(str(folder) for folder in given)), opened)


def _inspect(folders: Sequence[Path | RemoteBids], jobs: int, progress: Progress) -> Inspection:
    recordings, ledger, problems = _find(folders)
    try:
        fetch_tables(recordings)
        recordings = add_releases(recordings)
    except UserError as error:
        problems.append(first_line(error))
    facts = _read_all(recordings, jobs, progress)
    for recording, each in zip(recordings, facts, strict=True):
        if each.header is None:
            ledger.leave_out(recording.key, UNREADABLE, each.problem)
        else:
            ledger.leave_channels_out(each.header.left_out)
    ledger.add_notes(note for each in facts if each.header is not None for note in each.header.notes)
    events = find_event_values(recordings, facts)
    columns: list[ColumnFacts] = []
    without_row: list[str] = []
    try:
        columns, without_row = describe_columns(recordings), people_without_row(recordings)
    except UserError as error:
        problems.append(first_line(error))
    targets, refused = suggest_targets(recordings, facts, events, columns) if not problems else ([], {})
    return Inspection(
        folders=(),
        recordings=tuple(recordings),
        facts=tuple(facts),
        accounting=ledger.close(),
        without_row=tuple(without_row),
        events=tuple(events),
        columns=tuple(columns),
        targets=tuple(targets),
        refused=refused,
        problems=tuple(dict.fromkeys(problems)),
    )


def _find(folders: Sequence[Path | RemoteBids]) -> tuple[list[Recording], Ledger, list[str]]:
    """Return the recordings, the account of everything found, and messages of errors that make `prepare` stop.

    Raises
    ------
    UserError
        There is nothing to show.
    """
    ledger = Ledger()
    try:
        return find_in_folders(folders, ledger), ledger, []
    except UserError as error:
        ledger = Ledger()
        recordings, problems = _find_what_can_be(folders, ledger)
        if not ledger.person_of and not ledger.people:
            raise
        return recordings, ledger, list(dict.fromkeys([first_line(error), *problems]))


def _find_what_can_be(folders: Sequence[Path | RemoteBids], ledger: Ledger) -> tuple[list[Recording], list[str]]:
    """Return the recordings of folders that `prepare` refuses, each folder for itself, and what is wrong with them."""
    by_key: dict[str, Recording] = {}
    problems = []
    for folder in folders:
        local, mirror = (folder.local, folder) if isinstance(folder, RemoteBids) else (folder, None)
        for root in dataset_folders(local):
            try:
                layout = read_layout(root, mirror)
            except UserError as error:
                problems.append(first_line(error))
                continue
            for label in layout.subjects:
                ledger.find_person(label, NO_RECORDING)
            for recording in layout.recordings:
                by_key.setdefault(recording.key, recording)
                ledger.find(recording.key, recording.subject)
            for path, reason in layout.left_out.items():
                name = path.relative_to(root.parent).as_posix()
                ledger.find(name, "")
                ledger.leave_out(name, reason)
    return list(by_key.values()), problems


def _read_all(recordings: Sequence[Recording], jobs: int, progress: Progress) -> list[RecordingFacts]:
    jobs = jobs if len(recordings) > MIN_PARALLEL_HEADERS else 1
    found: dict[int, RecordingFacts] = {}
    with contextlib.closing(map_processes(read_facts, [(r,) for r in recordings], jobs)) as results:
        for number, result in results:
            found[number] = RecordingFacts(problem=first_line(result)) if isinstance(result, UserError) else result
            progress(len(found), len(recordings), recordings[number].key)
    return [found[number] for number in sorted(found)]


def _with_uris(found: Inspection, opened: Iterable[Path | RemoteBids]) -> Inspection:
    """Replace paths of mirrors by their URIs in all messages."""
    mirrors = {str(each.local): without_settings(each.uri) for each in opened if isinstance(each, RemoteBids)}

    def named(text: str) -> str:
        for local, uri in mirrors.items():
            text = text.replace(local, uri)
        return text

    if not mirrors:
        return found
    left_out = (each.model_copy(update={"detail": named(each.detail)}) for each in found.accounting.recordings_left_out)
    return replace(
        found,
        facts=tuple(
            replace(each, problem=named(each.problem), events_problem=named(each.events_problem))
            for each in found.facts
        ),
        accounting=found.accounting.model_copy(update={"recordings_left_out": tuple(left_out)}),
        columns=tuple(replace(each, problem=named(each.problem)) for each in found.columns),
        refused={spec: named(problem) for spec, problem in found.refused.items()},
        problems=tuple(named(each) for each in found.problems),
    )
