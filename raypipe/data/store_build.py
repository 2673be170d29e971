"""Make a store of a selection of recordings: only what is missing or outdated is made."""

from __future__ import annotations

import contextlib
from pathlib import Path

from raypipe.core.errors import UserError
from raypipe.core.parallel import map_processes
from raypipe.core.progress import Progress
from raypipe.data.accounting import UNREADABLE
from raypipe.data.alignment import Floats
from raypipe.data.alignment_units import aligned_together, lacking_classes
from raypipe.data.kept_windows import alignment_of
from raypipe.data.manifest import MANIFEST, Plan, Settings, read_manifest
from raypipe.data.output_folder import remove_leftovers
from raypipe.data.plan import (
    Header,
    check_has_channels,
    check_rates,
    left_out_channels,
    make_plan,
    notes_on_bads,
    without_bads,
)
from raypipe.data.scales import CHECK_UNITS, check_usual_scale, other_scales, scale_notes
from raypipe.data.selection import Selection
from raypipe.data.shards import ShardRecord, load_shard_record, make_shard, read_header, remove_shard
from raypipe.data.store_writer import judge_people, write_store
from raypipe.data.window_store import WindowStore
from raypipe.recordings.recording import Recording
from raypipe.recordings.signal import UnreadableRecordingError

MIN_PARALLEL_HEADERS = 200
"""Number of recordings from which several processes read headers; for fewer, starting processes takes longer."""
OTHER_SCALE = "of another scale than the others"
"""Reason for leaving a recording out."""


def open_if_up_to_date(folder: Path, asked: Settings, selection: Selection) -> WindowStore | None:
    """Return the store in the folder, or None if it is not finished, damaged, or made from other settings or files."""
    if not (folder / MANIFEST).is_file():
        return None
    try:
        manifest = read_manifest(folder)
        if manifest.settings != asked or not selection.is_accounted_for(manifest.accounting):
            return None
        current = {r.key: selection.fingerprint(r, manifest.plan) for r in selection.recordings}
        if current != {shard.recording: shard.fingerprint for shard in manifest.shards}:
            return None
        records = [load_shard_record(folder, shard.recording, shard.fingerprint) for shard in manifest.shards]
        whole = [record for record in records if record is not None]
        if len(whole) < len(records):
            return None
        store = WindowStore(folder)
        if judge_people(store.table, store.classes, whole, selection.known_of_people()) != manifest.without_eeg:
            return None
    except UserError:
        return None
    store.redone, store.is_up_to_date = 0, True
    return store


class StoreBuild:
    """Make the shards that are missing, then the table and the manifest.

    Parameters
    ----------
    folder
        The store's folder, which this process has locked.
    selection
        The recordings.
    jobs
        Processes.
    skip_unreadable
        Leave out and count recordings that cannot be read, instead of raising an error.
    progress
        Called with the recordings done, their total and a short text.
    """

    def __init__(
        self, folder: Path, selection: Selection, jobs: int, skip_unreadable: bool, progress: Progress
    ) -> None:
        self.folder, self.selection, self.jobs, self.progress = folder, selection, jobs, progress
        self.skip_unreadable = skip_unreadable
        self.ledger = selection.ledger

    def run(self, asked: Settings) -> WindowStore:
        """Return the store, of which only what is missing or outdated is made."""
        store = open_if_up_to_date(self.folder, asked, self.selection)
        if store is None:
            return self._make_store(asked)
        total = len(self.selection.recordings)
        self.progress(total, total, "up to date, nothing to do")
        return store

    def _make_store(self, asked: Settings) -> WindowStore:
        recordings, headers = self._read_headers()
        if asked.preprocessing.bads == "drop":
            headers = [without_bads(header) for header in headers]
        recordings, headers = self._with_channels(recordings, headers, asked)
        plan = make_plan(self.selection.target, asked, recordings, headers)
        for header in headers:
            self.ledger.leave_channels_out(left_out_channels(header, plan, asked))
        recordings = self._with_all_classes(self._with_rates(recordings, headers, plan), plan)
        self.ledger.add_notes(note for header in headers for note in header.notes)
        self.ledger.notes += notes_on_bads(headers, plan)
        fingerprints = {r.key: self.selection.fingerprint(r, plan) for r in recordings}
        (self.folder / MANIFEST).unlink(missing_ok=True)
        remove_leftovers(self.folder, set(fingerprints))
        found = {key: load_shard_record(self.folder, key, fingerprints[key]) for key in fingerprints}
        kept = {key: record for key, record in found.items() if record is not None}
        made = self._make_shards(recordings, set(kept), plan, fingerprints)
        records = self._check_scales(kept | made, plan)
        group_of = None if asked.groups is None else self.selection.groups(asked.groups)
        cut = [records[r.key] for r in recordings if r.key in records]
        known = self.selection.known_of_people()
        write_store(self.folder, asked, plan, self.selection.labels, self.ledger, cut, group_of, known)
        store = WindowStore(self.folder)
        store.redone = len(made)
        return store

    def _read_headers(self) -> tuple[list[Recording], list[Header]]:
        """Return the readable recordings and their headers."""
        recordings = self.selection.recordings
        jobs = self.jobs if len(recordings) > MIN_PARALLEL_HEADERS else 1
        found: dict[int, Header] = {}
        with contextlib.closing(map_processes(read_header, [(r,) for r in recordings], jobs)) as results:
            for number, result in results:
                if isinstance(result, UserError):
                    self._skip_or_raise(recordings[number], result)
                else:
                    found[number] = result
                    self.progress(0, len(recordings), f"header of {recordings[number].key}")
        if not found:
            raise UserError(f"no recording can be read; the first: {next(iter(self.ledger.left_out.values())).detail}")
        readable = sorted(found)
        return [recordings[number] for number in readable], [found[number] for number in readable]

    def _make_shards(
        self, recordings: list[Recording], kept: set[str], plan: Plan, fingerprints: dict[str, str]
    ) -> dict[str, ShardRecord]:
        """Make the shards of the recordings, and return their records by the recording's key.

        Parameters
        ----------
        kept
            Keys of those whose shards are up to date.
        """
        total = len(fingerprints)
        self.progress(len(kept), total, f"{len(kept)} kept" if kept else "")
        labels_of, align = self.selection.labels_of, plan.preprocessing.align
        left = [r for r in recordings if r.key not in kept]
        matrix_of: dict[str, Floats] = {}
        if align == "subject":
            matrix_of = self._align_subjects(left, recordings, plan)
            left = [r for r in left if r.subject in matrix_of]
        calls = [(r, labels_of(r), plan, self.folder, fingerprints[r.key], matrix_of.get(r.subject)) for r in left]
        made: dict[str, ShardRecord] = {}
        with contextlib.closing(map_processes(make_shard, calls, self.jobs)) as results:
            for number, result in results:
                if isinstance(result, UserError):
                    self._skip_or_raise(left[number], result)
                else:
                    made[left[number].key] = result
                    self.progress(len(kept) + len(made), total, left[number].key)
        return made

    def _align_subjects(self, left: list[Recording], recordings: list[Recording], plan: Plan) -> dict[str, Floats]:
        """Return the matrix that aligns each subject of some recordings; one that cannot be read has none.

        A process has all recordings of a subject, so that none is fetched by two at a time. Those without a label are
        among them, because `predict` aligns by all.
        """
        first_of = {r.subject: r for r in reversed(left)}
        units = [aligned_together(r, self.selection.predictable, plan.preprocessing) for r in first_of.values()]
        found: dict[str, Floats] = {}
        with contextlib.closing(map_processes(alignment_of, [(unit, plan) for unit in units], self.jobs)) as results:
            for number, result in results:
                subject = units[number][0].subject
                if isinstance(result, UserError):
                    for recording in (r for r in left if r.subject == subject):
                        self._skip_or_raise(recording, result)
                else:
                    found[subject] = result
                    self.progress(len(recordings) - len(left), len(recordings), f"alignment of {subject}")
        return found

    def _with_channels(
        self, recordings: list[Recording], headers: list[Header], asked: Settings
    ) -> tuple[list[Recording], list[Header]]:
        """Return the recordings that have the channels of the settings, and their headers."""
        kept = []
        for recording, header in zip(recordings, headers, strict=True):
            try:
                check_has_channels(recording, header, asked)
                kept.append((recording, header))
            except UnreadableRecordingError as error:
                self._skip_or_raise(recording, error)
        if not kept:
            raise UserError("no recording has the channels of the settings")
        return [recording for recording, _ in kept], [header for _, header in kept]

    def _with_rates(self, recordings: list[Recording], headers: list[Header], plan: Plan) -> list[Recording]:
        """Return the recordings of which the sampling rates fit the filters."""
        kept = []
        for recording, header in zip(recordings, headers, strict=True):
            try:
                check_rates(recording, header, plan)
                kept.append(recording)
            except UnreadableRecordingError as error:
                self._skip_or_raise(recording, error)
        return kept

    def _with_all_classes(self, recordings: list[Recording], plan: Plan) -> list[Recording]:
        """Return the recordings of subjects that can be aligned."""
        lacking = lacking_classes(recordings, self.selection.target, plan.preprocessing)
        for recording in recordings:
            if recording.subject in lacking:
                self.ledger.leave_out(recording.key, lacking[recording.subject])
        return [recording for recording in recordings if recording.subject not in lacking]

    def _skip_or_raise(self, recording: Recording, error: UserError, reason: str = UNREADABLE) -> None:
        if not (self.skip_unreadable and isinstance(error, UnreadableRecordingError)):
            raise error
        self.ledger.leave_out(recording.key, reason, str(error))

    def _check_scales(self, records: dict[str, ShardRecord], plan: Plan) -> dict[str, ShardRecord]:
        """Return the records without recordings whose samples are much larger or smaller than those of the others.

        A recording is kept, and named, if its file and channels.tsv agree on the unit.

        Raises
        ------
        UnreadableRecordingError
            There is one, and unreadable recordings are not to be skipped.
        """
        self.ledger.notes += scale_notes(records, plan.channels)
        check_usual_scale(records.values())
        problems = other_scales({key: record.scale for key, record in records.items()})
        for recording in self.selection.recordings:
            if recording.key not in problems:
                continue
            problem = f"{recording.path}: {problems[recording.key]}"
            if records[recording.key].has_confirmed_units:
                self.ledger.notes.append(f"Of another scale: {problem}.")
                continue
            self._skip_or_raise(recording, UnreadableRecordingError(f"{problem}; {CHECK_UNITS}"), OTHER_SCALE)
            del records[recording.key]
            remove_shard(self.folder, recording.key)
        return records
