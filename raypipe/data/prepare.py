"""Cut the recordings of BIDS folders into a store of windows with targets."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from raypipe.core.errors import UserError
from raypipe.core.metrics import metric_for
from raypipe.core.parallel import map_processes, usable_cores
from raypipe.core.progress import Progress, no_progress
from raypipe.data.alignment_units import aligned_together, lacking_classes
from raypipe.data.manifest import (
    MANIFEST,
    Plan,
    Settings,
    read_manifest,
)
from raypipe.data.output_folder import claim_output, remove_leftovers
from raypipe.data.plan import (
    Header,
    check_has_channels,
    check_rates,
    check_settings,
    left_out_channels,
    make_plan,
    notes_on_bads,
    parse_settings,
    without_bads,
)
from raypipe.data.preprocessing import parse_preprocessing
from raypipe.data.scales import CHECK_UNITS, check_usual_scale, other_scales, scale_notes
from raypipe.data.selection import Selection, select_recordings
from raypipe.data.shards import ShardRecord, load_shard_record, make_shard, read_header, remove_shard
from raypipe.data.store_writer import judge_people, write_store
from raypipe.data.targets import parse_target
from raypipe.data.window_store import WindowStore
from raypipe.recordings.recording import Recording
from raypipe.recordings.remote_bids import open_remote_bids
from raypipe.recordings.signal import UnreadableRecordingError

MIN_PARALLEL_HEADERS = 200
"""Number of recordings from which several processes read headers; for fewer, starting processes takes longer."""


UNREADABLE = "unreadable"
OTHER_SCALE = "of another scale than the others"
"""Reasons for leaving recordings out."""


def prepare(
    bids: str | Path | Sequence[str | Path],
    target: str,
    out: str | Path,
    *,
    bids_task: str | Sequence[str] = (),
    events_from: str | None = None,
    select: str | None = None,
    sfreq: float | None = None,
    notch: float | Sequence[float] | None = None,
    band: tuple[float, float] | None = None,
    bads: Literal["drop", "interpolate"] | None = None,
    montage: str | None = None,
    reference: str | Sequence[str] | None = None,
    channels: Sequence[str] | None = None,
    window: float | None = None,
    crop: float | None = None,
    stride: float | None = None,
    tmin: float | None = None,
    baseline: tuple[float, float] | None = None,
    reject: float | None = None,
    flat: float | None = None,
    align: Literal["recording", "subject"] | None = None,
    max_windows: int | None = None,
    min_windows: int | None = None,
    seed: int = 0,
    dtype: str = "float32",
    metric: str | None = None,
    groups: str | None = None,
    jobs: int | None = None,
    skip_unreadable: bool = False,
    progress: Progress = no_progress,
) -> WindowStore:
    """Cut the recordings of a BIDS folder into windows with targets.

    A later call reads only recordings that are new or changed, and continues a call that was killed.

    Parameters
    ----------
    bids
        BIDS folder, folder of BIDS folders (releases of HBN-EEG side by side), or several of either. Also a pyarrow.fs
        URI (``s3://bucket/folder``): tables are fetched first, and each recording only while it is read.
    target
        Specification of the target; see `raypipe.data.targets`.
    out
        Folder for the store: new, empty, or a store made with the same settings.
    bids_task
        BIDS tasks whose recordings are used: one or several names, as in ``sub-01_task-rest_eeg.edf``. Default: all.
    events_from
        Column of events.tsv that values of events are read from. Default: ``value`` or ``trial_type``.
    select
        Condition on the columns of events.tsv that events must satisfy, such as
        ``'trial_type == "target" and correct == 1'``; see `raypipe.recordings.event_query`.
    sfreq
        Sampling rate of the windows (Hz). Default: that of the recordings, which must then be the same for all.
    notch
        Frequencies (Hz) that `mne.filter.notch_filter` removes, such as those of the mains and their multiples.
    band
        Edges of a zero-phase FIR band-pass (Hz), MNE's default design. A lower edge of 0 makes it a low-pass.
    bads
        ``drop`` or ``interpolate`` channels whose `status` is bad in channels.tsv. A dropped channel is missing in its
        recording; interpolation is by spherical splines. Default: they are used as they are, and named.
    montage
        Template montage of MNE, such as ``standard_1005``, with the positions by which bad channels are interpolated.
    reference
        ``average`` of all EEG channels that recordings have in common, or names of channels, whose mean is subtracted.
        Channels of the reference are in the store only if `channels` names them.
    channels
        Names of channels. Default: the EEG channels that all recordings have, in the first one's order.
    window, stride, tmin
        Seconds: length of a window, time from one window to the next, start of a window after its event. Default: the
        target's. Consecutive windows do not overlap by default.
    crop
        Seconds of a window that a model sees at a time: a random part in training, a fixed part in evaluation. Default:
        the whole window; half of it for ``latency`` and ``challenge2``.
    baseline
        First and last time (s) from the event, or else from the window's start. The mean in between is subtracted.
    reject, flat
        Peak-to-peak amplitudes (uV): windows with a channel above `reject` or below `flat` are left out and counted.
    align
        ``recording`` or ``subject``: the windows of each are whitened by their mean covariance, without labels (He &
        Wu 2020). `predict` does the same, so it needs whole recordings, or all of a subject. Aligned samples have no
        unit.
    max_windows, min_windows
        Windows of a person. Of more than `max_windows`, so many are drawn, spread over the person's recordings. People
        with fewer than `min_windows` are left out. Counted after `reject` and `flat`; `predict` has no such limits.
    seed
        Of the draw.
    dtype
        Type of the stored samples. ``float16`` halves the size of the store and has 11 bits of precision.
    metric
        Metric of sweeps over the windows that name none: auc, balanced-accuracy, accuracy, f1, kappa, log-loss or
        brier for classes; nrmse, rmse, mae, r2 or pearson for values. Default: auc or nrmse.
    groups
        Column of participants.tsv. Subjects with equal values, such as a family, a site or one person under two labels,
        are kept on one side of every split.
    jobs
        Processes. Default: one per core. They do not import the script, so it needs no main guard.
    skip_unreadable
        Leave out and count recordings that cannot be read, instead of stopping at the first.
    progress
        Called with the recordings done, their total and a short text.

    Returns
    -------
    WindowStore
        The windows with their targets. Its ``where`` is the folder.

    Raises
    ------
    UserError
        An argument is wrong, the folder has other content, or a recording cannot be read.
    DiskFullError
        The disk is full; finished shards are kept.
    """
    asked = parse_settings(
        target=target,
        bids_task=(bids_task,) if isinstance(bids_task, str) else bids_task,
        events_from=events_from,
        select=select,
        sfreq=sfreq,
        preprocessing=parse_preprocessing(
            notch=notch,
            band=band,
            bads=bads,
            montage=montage,
            reference=reference,
            baseline=baseline,
            reject=reject,
            flat=flat,
            align=align,
        ),
        channels=channels,
        window=window,
        crop=crop,
        stride=stride,
        tmin=tmin,
        max_windows=max_windows,
        min_windows=min_windows,
        seed=seed,
        dtype=dtype,
        metric=metric,
        groups=groups,
    )
    if jobs is not None and jobs < 1:
        raise UserError(f"jobs {jobs}: must be at least 1")
    chosen = parse_target(asked)
    check_settings(chosen, asked)
    folder = Path(out).expanduser().absolute()
    with open_remote_bids([bids] if isinstance(bids, str | Path) else list(bids), folder) as folders:
        selection = select_recordings(chosen, folders)
        metric_for(selection.labels.kind, metric, chosen.spec)  # fails before anything is written
        if groups is not None:
            selection.groups(groups)  # a wrong column stops before anything is cut
        build = _Build(folder, selection, jobs or usable_cores(), skip_unreadable, progress)
        with claim_output(folder, asked, {r.key for r in selection.recordings}):
            return build.run(asked)


def _open_if_up_to_date(folder: Path, asked: Settings, selection: Selection) -> WindowStore | None:
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


class _Build:
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
        store = _open_if_up_to_date(self.folder, asked, self.selection)
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
        labels_of, steps = self.selection.labels_of, plan.preprocessing
        left = [r for r in recordings if r.key not in kept]
        together = [aligned_together(r, recordings, steps) for r in left]
        calls = [
            (r, labels_of(r), plan, self.folder, fingerprints[r.key], unit)
            for r, unit in zip(left, together, strict=True)
        ]
        made: dict[str, ShardRecord] = {}
        with contextlib.closing(map_processes(make_shard, calls, self.jobs)) as results:
            for number, result in results:
                if isinstance(result, UserError):
                    self._skip_or_raise(left[number], result)
                else:
                    made[left[number].key] = result
                    self.progress(len(kept) + len(made), total, left[number].key)
        return made

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
