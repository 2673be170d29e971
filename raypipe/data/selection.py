"""Select the recordings of a target, read their labels, and note what is left out."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from raypipe.core.errors import UserError, nearest
from raypipe.data.accounting import NO_FOLDER, NO_RECORDING, Accounting, Ledger
from raypipe.data.alignment_units import aligned_together
from raypipe.data.confounds import is_looked_at
from raypipe.data.hbn import add_releases, release_of
from raypipe.data.manifest import Plan
from raypipe.data.target_base import Labels, Target, Value
from raypipe.data.unfit import refuses_data
from raypipe.recordings.layout import (
    Layout,
    dataset_folders,
    is_derived,
    no_recording,
    read_layout,
    without_desc,
)
from raypipe.recordings.participants import match_labels, participant_rows, participants_table
from raypipe.recordings.recording import Recording, fetch_tables
from raypipe.recordings.remote_bids import RemoteBids
from raypipe.recordings.tables import is_missing, list_some

HBN_PREFIX = "NDAR"
"""Beginning of the labels of HBN-EEG, which are the same person's in every release."""
OTHER_TASK = "of another BIDS task"
NO_TARGET = "of a subject without a target"
NO_ROW = "without a target in the table"
"""Reasons for leaving recordings out."""


@dataclass(frozen=True)
class Selection:
    """The recordings that `prepare` cuts, with their labels."""

    target: Target
    labels: Labels
    recordings: list[Recording]
    ledger: Ledger
    """Everything found, and what was left out so far."""
    predictable: list[Recording]
    """`recordings` and those without a label: what `predict` takes from the same folders, and aligns together."""

    def labels_of(self, recording: Recording) -> Labels:
        """Return the labels that a recording's shard depends on."""
        return self.labels.of(recording)

    def groups(self, column: str) -> dict[str, str]:
        """Return the value of a column of participants.tsv by subject, without missing values.

        Raises
        ------
        UserError
            No participants.tsv has such a column, or a subject has two values.
        """
        rows = participant_rows(self.recordings)
        columns = list(dict.fromkeys(name for row in rows.values() for name in row))
        if column not in columns:
            raise UserError(f"--groups {column}: no participants.tsv has this column; {nearest(column, columns)}")
        found: dict[str, str] = {}
        for recording in self.recordings:
            value = rows.get((recording.root, recording.label), {}).get(column, "").strip()
            if not value or is_missing(value):
                continue
            if found.setdefault(recording.subject, value) != value:
                raise UserError(
                    f"--groups {column}: subject '{recording.subject}' is of two groups, '{found[recording.subject]}' "
                    f"and '{value}'; write one of them everywhere"
                )
        return found

    def known_of_people(self) -> dict[str, dict[str, str]]:
        """Return the cells of participants.tsv that may tell classes apart, by subject and column; not the target."""
        asked = [name.strip().casefold() for name in re.split(r"[:,]", self.target.spec)]
        rows = participant_rows(self.recordings)
        return {
            recording.subject: {
                name: cell for name, cell in row.items() if is_looked_at(name) and name.casefold() not in asked
            }
            for recording in self.recordings
            if (row := rows.get((recording.root, recording.label)))
        }

    def is_accounted_for(self, accounting: Accounting) -> bool:
        """Return whether an account has the same recordings and people, and all that was left out so far."""
        is_same = accounting.recordings_found == len(self.ledger.person_of)
        is_same = is_same and accounting.people_found == len(self.ledger.people)
        without = {person for person, reason in self.ledger.people.items() if reason}
        left_out = {person for people in accounting.people_left_out.values() for person in people}
        is_same = is_same and without <= left_out
        is_same = is_same and set(self.ledger.notes) <= set(accounting.notes)
        return is_same and set(self.ledger.left_out.values()) <= set(accounting.recordings_left_out)

    def fingerprint(self, recording: Recording, plan: Plan) -> str:
        """Return a hash of everything that a shard depends on: plan, labels, and places, sizes and times of files."""
        digest = hashlib.sha256(plan.model_dump_json().encode())
        digest.update(repr((self.labels_of(recording), recording.subject, recording.release, recording.age)).encode())
        for each in aligned_together(recording, self.predictable, plan.preprocessing):
            for path in [*each.files(), *self.target.extra_files(each)]:
                # A link to data that was not fetched has no target; the error is raised when it is read.
                stat = path.stat() if path.exists() else path.lstat()
                place = path.relative_to(each.root).as_posix() if path.is_relative_to(each.root) else path.name
                digest.update(f"{place}/{stat.st_size}/{stat.st_mtime_ns}".encode())
        return digest.hexdigest()


@refuses_data
def select_recordings(target: Target, folders: Sequence[Path | RemoteBids]) -> Selection:
    """Find the recordings of a target, and read their labels.

    Parameters
    ----------
    folders
        BIDS folders, folders of such folders, or mirrors of either.

    Raises
    ------
    UserError
        There is no recording, one is found twice, all are of one subject, or labels are missing.
    """
    ledger = Ledger()
    found = find_in_folders(folders, ledger)
    recordings = target.select(found)
    _leave_out_others(ledger, found, recordings, OTHER_TASK)
    fetch_tables(recordings)
    recordings = predictable = add_releases(recordings)
    excluded = target.exclude(recordings)
    for recording, reason in excluded.items():
        ledger.leave_out(recording.key, reason)
    recordings = [recording for recording in recordings if recording not in excluded]
    if not recordings:
        raise UserError(f"target '{target.spec}': all recordings were left out ({list_some(set(excluded.values()))})")
    labels = target.read_labels(recordings)
    ledger.notes += labels.notes
    if labels.by_subject is not None:
        _check_finite(target, labels.by_subject)
    labelled = [recording for recording in recordings if labels.has(recording)]
    _leave_out_others(ledger, recordings, labelled, NO_TARGET if labels.by_subject is not None else NO_ROW)
    recordings = labelled
    check_subjects({r.subject for r in recordings}, ", ".join(str(_local(folder)) for folder in folders))
    return Selection(target, labels, recordings, ledger, predictable)


def check_subjects(subjects: set[str], where: str) -> None:
    """Check that there are windows of more than one subject.

    Parameters
    ----------
    subjects
        Labels of the subjects.
    where
        Path of the data, for the message.

    Raises
    ------
    UserError
        There is one subject only.
    """
    if len(subjects) == 1:
        (subject,) = subjects
        raise UserError(f"{where}: windows of one subject only ('{subject}'); subject folds need at least three")


def _check_finite(target: Target, targets: Mapping[str, Value]) -> None:
    for subject, value in targets.items():
        if not all(map(math.isfinite, value if isinstance(value, tuple) else (value,))):
            raise UserError(f"target '{target.spec}': the value of subject '{subject}' is {value}, not a finite number")


def _leave_out_others(ledger: Ledger, found: Iterable[Recording], kept: Iterable[Recording], reason: str) -> None:
    keys = {recording.key for recording in kept}
    for recording in found:
        if recording.key not in keys:
            ledger.leave_out(recording.key, reason)


def _local(folder: Path | RemoteBids) -> Path:
    return folder.local if isinstance(folder, RemoteBids) else folder


def find_in_folders(folders: Sequence[Path | RemoteBids], ledger: Ledger) -> list[Recording]:
    """Return the recordings of BIDS folders, and of folders that contain BIDS folders (releases).

    Where two data sets use the same label, they are different people, and labels get the data set's name in front, as
    do keys that both have. In releases of HBN-EEG the same label is the same person.

    Parameters
    ----------
    ledger
        Gets everything that is found.

    Raises
    ------
    UserError
        There is no recording; a folder holds copies of recordings of another one.
    """
    layouts = [layout for folder in folders for layout in _layouts(folder)]
    layouts = list({layout.root.resolve(): layout for layout in layouts}.values())
    _check_derived(layouts)
    names = _dataset_names(layouts, ledger)
    stems = Counter(recording.stem for layout in layouts for recording in layout.recordings)
    by_key: dict[str, Recording] = {}
    for layout, name in zip(layouts, names, strict=True):
        _note_people(layout, name, ledger)
        for recording in layout.recordings:
            person = _person(name, recording.subject)
            is_shared = bool(name) and stems[recording.stem] > 1
            named = replace(recording, dataset=name, subject=person, has_long_key=is_shared)
            twin = by_key.setdefault(named.key, named)
            if twin is not named:
                raise UserError(f"{named.path}: {twin.path} is the same recording; name one of the folders")
            ledger.find(named.key, person)
        _note_left_out(layout, name, ledger, prefix=f"{layout.root.name}/" if len(layouts) > 1 else "")
    return list(by_key.values())


def _layouts(folder: Path | RemoteBids) -> list[Layout]:
    """Return the layouts of a BIDS folder, or of the BIDS folders in a folder.

    Raises
    ------
    UserError
        They have no recording, or two of them have the same one.
    """
    mirror = folder if isinstance(folder, RemoteBids) else None
    layouts = [read_layout(root, mirror) for root in dataset_folders(_local(folder))]
    if not any(layout.recordings for layout in layouts):
        raise UserError(no_recording(layouts[0]))
    owner: dict[str, Path] = {}
    for layout in layouts:
        for recording in layout.recordings:
            plain = without_desc(recording.key)
            other = owner.setdefault(plain, layout.root)
            if other != layout.root:
                raise UserError(
                    f"{_local(folder)}: {other.name} and {layout.root.name} both have the recording {plain}; "
                    f"name the one to use ({other}), or name both if they are different people"
                )
    return layouts


def _check_derived(layouts: Sequence[Layout]) -> None:
    """Check that no data set is named beside one that is derived from it.

    Raises
    ------
    UserError
        Both have recordings of the same subject.
    """
    for derived in layouts:
        for other in layouts:
            same = {r.subject for r in derived.recordings} & {r.subject for r in other.recordings}
            if derived is not other and same and _looks_derived(derived) and not _looks_derived(other):
                raise UserError(
                    f"{derived.root}: holds data derived from other recordings, and {other.root} has subject "
                    f"'{min(same)}' too; name one of the folders"
                )


def _looks_derived(layout: Layout) -> bool:
    return is_derived(layout.root) or all(without_desc(r.key) != r.key for r in layout.recordings)


def _dataset_names(layouts: Sequence[Layout], ledger: Ledger) -> list[str]:
    """Return the name of each data set that goes in front of labels; empty where no label is used twice."""
    users: dict[str, set[int]] = defaultdict(set)
    for number, layout in enumerate(layouts):
        is_release = release_of(layout.root.name) is not None
        for label in _labels_in(layout):
            if not (is_release and label.upper().startswith(HBN_PREFIX)):
                users[label.casefold()].add(number)
    shared = [label for label, numbers in users.items() if len(numbers) > 1]
    if not shared:
        return [""] * len(layouts)
    names = _distinct_names([layout.root.resolve() for layout in layouts])
    ledger.notes.append(
        f"Subjects are named DATASET/LABEL: {len(shared)} labels ({list_some(shared)}) are used in several data sets "
        f"({list_some(names)}) and are taken for different people."
    )
    return names


def _labels_in(layout: Layout) -> set[str]:
    """Return all labels of subjects that a data set has, with recordings or without."""
    return set(layout.subjects) | set(_rows_in(layout))


def _rows_in(layout: Layout) -> list[str]:
    """Return the labels of the rows of participants.tsv; none if it cannot be read."""
    try:
        table = participants_table(layout.root)
    except UserError:
        return []
    return [] if table is None else list(table.index)


def _distinct_names(roots: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that differ, with hyphens for slashes."""
    depth = 1
    while True:
        names = ["-".join(root.parts[-depth:]) for root in roots]
        if len(set(names)) == len(names) or depth > max(len(root.parts) for root in roots):
            return names
        depth += 1


def _person(dataset: str, label: str) -> str:
    return f"{dataset}/{label}" if dataset else label


def _note_people(layout: Layout, name: str, ledger: Ledger) -> None:
    """Note the people with a folder or a row in participants.tsv."""
    for label in layout.subjects:
        ledger.find_person(_person(name, label), NO_RECORDING)
    try:
        table = participants_table(layout.root)
    except UserError as error:  # stops the targets that need the table, and no others
        ledger.notes.append(f"People in participants.tsv are not counted: {error}.")
        return
    if table is not None:
        matched = set(match_labels(layout.subjects, table.index).values())
        for label in table.index:
            if label not in matched:
                ledger.find_person(_person(name, label), NO_FOLDER)


def _note_left_out(layout: Layout, name: str, ledger: Ledger, prefix: str) -> None:
    """Note the files that look like recordings and are left out."""
    for path, reason in layout.left_out.items():
        inside = path.relative_to(layout.root)
        label = inside.parts[0][len("sub-") :] if len(inside.parts) > 1 else ""
        ledger.find(f"{prefix}{inside.as_posix()}", _person(name, label) if label else "")
        ledger.leave_out(f"{prefix}{inside.as_posix()}", reason)
