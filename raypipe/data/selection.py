"""Select the recordings of a task, and read their labels."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from raypipe.core.errors import UserError
from raypipe.data.bids import Recording, find_recordings
from raypipe.data.hbn import add_releases, release_folders
from raypipe.data.manifest import Plan
from raypipe.data.remote_bids import RemoteBids
from raypipe.data.task_base import Labels, Task


@dataclass(frozen=True)
class Selection:
    """The recordings that `prepare` cuts, with their labels."""

    task: Task
    labels: Labels
    recordings: list[Recording]
    left_out: Counter[str]
    """Counts of recordings that were left out, by reason."""

    def labels_of(self, recording: Recording) -> Labels:
        """Return the labels that a recording's shard depends on: those without the targets of other subjects."""
        if self.labels.by_subject is None:
            return self.labels
        own = {recording.subject: self.labels.by_subject[recording.subject]}
        return Labels(self.labels.kind, self.labels.classes, own)

    def fingerprint(self, recording: Recording, plan: Plan) -> str:
        """Return a hash of everything that a shard depends on: plan, labels, and sizes and times of the files."""
        place = recording.path.relative_to(recording.root).as_posix()
        digest = hashlib.sha256(plan.model_dump_json().encode())
        digest.update(repr((self.labels_of(recording), recording.release, recording.age, place)).encode())
        for path in [*recording.files(), *self.task.extra_files(recording)]:
            # A link to data that was not fetched has no target; the error is raised when it is read.
            stat = path.stat() if path.exists() else path.lstat()
            digest.update(f"{path.name}/{stat.st_size}/{stat.st_mtime_ns}".encode())
        return digest.hexdigest()


def select_recordings(task: Task, folders: Sequence[Path | RemoteBids]) -> Selection:
    """Find the recordings of a task, and read their labels.

    Parameters
    ----------
    folders
        BIDS folders, folders of such folders, or mirrors of either.

    Raises
    ------
    UserError
        There is no recording, one is found twice, all are of one subject, or labels are missing.
    """
    found = task.select(_find(folders))
    _fetch_tables(found)
    recordings, left_out = task.exclude(add_releases(found))
    if not recordings:
        reasons = ", ".join(f"{n} {what}" for what, n in left_out.items())
        raise UserError(f"task '{task.spec}': all recordings were left out ({reasons})")
    labels = task.read_labels(recordings)
    if labels.by_subject is not None:
        _check_finite(task, labels.by_subject)
        labelled = [r for r in recordings if r.subject in labels.by_subject]
        left_out["recordings of subjects without a target"] = len(recordings) - len(labelled)
        recordings = labelled
    check_subjects({r.subject for r in recordings}, ", ".join(str(_local(folder)) for folder in folders))
    return Selection(task, labels, recordings, left_out)


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


def _check_finite(task: Task, targets: dict[str, float]) -> None:
    for subject, target in targets.items():
        if not math.isfinite(target):
            raise UserError(f"task '{task.spec}': the target of subject '{subject}' is {target}, not a finite number")


def _local(folder: Path | RemoteBids) -> Path:
    return folder.local if isinstance(folder, RemoteBids) else folder


def _find(folders: Sequence[Path | RemoteBids]) -> list[Recording]:
    """Return the recordings of BIDS folders, and of folders that contain BIDS folders (releases)."""
    by_key: dict[str, Recording] = {}
    roots = {
        root: folder if isinstance(folder, RemoteBids) else None
        for folder in folders
        for root in release_folders(_local(folder))
    }
    for root, mirror in roots.items():
        for recording in find_recordings(root, mirror):
            twin = by_key.setdefault(recording.key, recording)
            if twin is not recording:
                raise UserError(f"{recording.path}: {twin.path} is the same recording; name one of the folders")
    return list(by_key.values())


def _fetch_tables(recordings: Iterable[Recording]) -> None:
    """Fetch events.tsv and channels.tsv of recordings behind a URI, and of other runs of the same tasks."""
    wanted: dict[RemoteBids, set[Path]] = defaultdict(set)
    for folder, task, mirror in {(r.path.parent, r.task, r.mirror) for r in recordings}:
        if mirror is not None:
            beside = folder.glob(f"*_task-{task}_*.tsv" if task else "*.tsv")
            wanted[mirror] |= {path for path in beside if path.name.endswith(("_events.tsv", "_channels.tsv"))}
    for mirror, paths in wanted.items():
        mirror.fetch_tables(sorted(paths))
