"""From what was asked and what the recordings are to one plan for all of them."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raypipe.core.errors import UserError, nearest
from raypipe.data.bids import Recording, find_recordings
from raypipe.data.hbn import release_folders, with_releases
from raypipe.data.remote_bids import RemoteBids
from raypipe.data.tasks import Labels, Task
from raypipe.data.window_store import Plan, Settings

Header = tuple[float, tuple[str, ...]]
"""Sampling rate (Hz) and EEG channels of a recording."""


def make_plan(
    task: Task, asked: Settings, recordings: Sequence[Recording], headers: Sequence[Header]
) -> tuple[Plan, Counter[str]]:
    """Fill in what the settings leave to the task and the recordings.

    Returns
    -------
    plan, left_out
        The plan, and how many EEG channels it leaves out.

    Raises
    ------
    UserError
        Recordings differ in rate, share no channel or lack one that is asked for; or a length is below one sample.
    """
    left_out: Counter[str] = Counter()
    sfreq = asked.sfreq or _common_rate(recordings, [rate for rate, _ in headers])
    if asked.channels:
        channels = asked.channels
        for recording, (_, names) in zip(recordings, headers, strict=True):
            for name in channels:
                if name not in names:
                    raise UserError(f"{recording.path}: no EEG channel '{name}'; {nearest(name, names)}")
    else:
        channels = _common_channels(recordings, [names for _, names in headers], left_out)
    window = asked.window or task.default_window
    stride = asked.stride or task.default_stride or window
    crop = asked.crop or task.default_crop(window) or window
    window_samples, crop_samples = round(window * sfreq), round(crop * sfreq)
    if min(crop_samples, round(stride * sfreq)) < 1:
        raise UserError(f"a window, crop or stride is shorter than a sample at {sfreq:g} Hz")
    plan = Plan(
        task=task.spec,
        channels=channels,
        sfreq=sfreq,
        band=asked.band,
        window=window,
        stride=stride,
        tmin=task.default_tmin if asked.tmin is None else asked.tmin,
        window_samples=window_samples,
        crop_samples=crop_samples,
        target_is_offset=task.target_is_offset,
        dtype=asked.dtype,
        crops="scorer" if task.scorer_crops else "own",
    )
    return plan, left_out


def _common_rate(recordings: Sequence[Recording], rates: Sequence[float]) -> float:
    first = dict(zip(reversed(rates), reversed(recordings), strict=True))
    if len(first) > 1:
        shown = ", ".join(f"{rate:g} Hz ({first[rate].path.name})" for rate in sorted(first))
        raise UserError(f"recordings differ in sampling rate: {shown}; choose one with --sfreq")
    return rates[0]


def _common_channels(
    recordings: Sequence[Recording], names: Sequence[tuple[str, ...]], left_out: Counter[str]
) -> tuple[str, ...]:
    common = list(names[0])
    for recording, here in zip(recordings, names, strict=True):
        rest = [name for name in common if name in here]
        if not rest:
            raise UserError(
                f"no EEG channel is common to all recordings: {recording.path.name} ({', '.join(here[:3])}, ...) has "
                f"none of those up to it ({', '.join(common[:3])}, ...; {recordings[0].path.name})"
            )
        common = rest
    left_out["EEG channels that not every recording has"] = len({n for here in names for n in here}) - len(common)
    return tuple(common)


def parse_settings(**asked: Any) -> Settings:
    """Validate types of what was asked of `prepare`.

    Raises
    ------
    UserError
        Names the setting that is of the wrong type.
    """
    try:
        return Settings(**asked)
    except ValidationError as error:
        problem = error.errors()[0]
        raise UserError(f"{problem['loc'][0]} {problem['input']!r}: {problem['msg']}") from None


def check_settings(task: Task, asked: Settings) -> None:
    """Check values of settings against each other and against the task.

    Raises
    ------
    UserError
        Names the setting that is out of range or does not go with the task.
    """
    for name in ("sfreq", "window", "crop", "stride"):
        value = getattr(asked, name)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"{name} {value:g}: must be greater than 0")
    if asked.band and not 0 <= asked.band[0] < asked.band[1]:
        raise UserError(
            f"band {asked.band[0]:g} {asked.band[1]:g}: wants a lower and a higher edge in Hz, such as 0.5 40"
        )
    if asked.band and asked.sfreq and asked.band[1] > asked.sfreq / 2:
        raise UserError(f"band: windows at {asked.sfreq:g} Hz hold nothing above {asked.sfreq / 2:g} Hz")
    if asked.channels is not None and len(set(asked.channels)) != len(asked.channels):
        raise UserError("channels: a name is there twice")
    if asked.channels == ():
        raise UserError("channels: the list is empty")
    if task.event_locked and asked.stride is not None:
        raise UserError(f"task '{task.spec}': its windows lie at events; leave out stride")
    if not task.event_locked and asked.tmin is not None:
        raise UserError(f"task '{task.spec}': its windows lie side by side; leave out tmin")
    window = asked.window or task.default_window
    if asked.crop is not None and asked.crop > window:
        raise UserError(f"crop {asked.crop:g}: longer than the window ({window:g} s)")
    if task.target_is_offset and asked.crop == window:
        raise UserError(f"task '{task.spec}': the crop must be shorter than the window, or its offset is always 0")


@dataclass(frozen=True)
class Work:
    """What there is to cut."""

    task: Task
    labels: Labels
    recordings: list[Recording]
    left_out: Counter[str]

    def labels_of(self, recording: Recording) -> Labels:
        """The labels without other subjects' targets: what a shard depends on."""
        if self.labels.by_subject is None:
            return self.labels
        own = {recording.subject: self.labels.by_subject[recording.subject]}
        return Labels(self.labels.kind, self.labels.classes, own)


def fingerprint(recording: Recording, plan: Plan, work: Work) -> str:
    """A digest of all that a recording's shard depends on: plan, labels, and sizes and times of its files."""
    labels = work.labels_of(recording)
    digest = hashlib.sha256(plan.model_dump_json().encode())
    digest.update(
        repr((labels, recording.release, recording.age, recording.path.relative_to(recording.root).as_posix())).encode()
    )
    for path in [*recording.files(), *work.task.beside(recording)]:
        # A link to data that was not fetched has no size; reading it will tell.
        stat = path.stat() if path.exists() else path.lstat()
        digest.update(f"{path.name}/{stat.st_size}/{stat.st_mtime_ns}".encode())
    return digest.hexdigest()


def select(task: Task, folders: Sequence[Path | RemoteBids]) -> Work:
    """Find a task's recordings and their labels.

    Raises
    ------
    UserError
        There is none, one is there twice, all are of one subject, or the labels are not there.
    """
    found = task.select(_find(folders))
    _fetch_tables(found)
    recordings, left_out = task.sift(with_releases(found))
    if not recordings:
        reasons = ", ".join(f"{n} {what}" for what, n in left_out.items())
        raise UserError(f"task '{task.spec}': no recording is left ({reasons})")
    labels = task.bind(recordings)
    if labels.by_subject is not None:
        known = [r for r in recordings if r.subject in labels.by_subject]
        left_out["recordings of subjects without a target"] = len(recordings) - len(known)
        recordings = known
    check_subjects({r.subject for r in recordings}, ", ".join(map(str, map(_place, folders))))
    return Work(task, labels, recordings, left_out)


def _place(folder: Path | RemoteBids) -> Path:
    return folder.place if isinstance(folder, RemoteBids) else folder


def _find(folders: Sequence[Path | RemoteBids]) -> list[Recording]:
    """The recordings of BIDS folders, and of releases that lie side by side in a folder."""
    by_key: dict[str, Recording] = {}
    roots = {
        root: folder if isinstance(folder, RemoteBids) else None
        for folder in folders
        for root in release_folders(_place(folder))
    }
    for root, mirror in roots.items():
        for recording in find_recordings(root, mirror):
            twin = by_key.setdefault(recording.key, recording)
            if twin is not recording:
                raise UserError(f"{recording.path}: {twin.path} is the same recording; name one of the folders")
    return list(by_key.values())


def _fetch_tables(recordings: Iterable[Recording]) -> None:
    """Fetch the events and channels of recordings in mirrors, and of all runs of the same tasks beside them."""
    wanted: dict[RemoteBids, set[Path]] = defaultdict(set)
    for folder, task, mirror in {(r.path.parent, r.task, r.mirror) for r in recordings}:
        if mirror is not None:
            beside = folder.glob(f"*_task-{task}_*.tsv" if task else "*.tsv")
            wanted[mirror] |= {path for path in beside if path.name.endswith(("_events.tsv", "_channels.tsv"))}
    for mirror, paths in wanted.items():
        mirror.fetch_tables(sorted(paths))


def check_subjects(subjects: set[str], where: str) -> None:
    """Refuse windows of one subject only.

    Raises
    ------
    UserError
        Names the subject, and `where`.
    """
    if len(subjects) == 1:
        raise UserError(f"{where}: windows of one subject only ('{subjects.pop()}'); subject folds need at least three")
