"""What there is to cut: the recordings of folders that a task is about, with their labels."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from raypipe.errors import UserError
from raypipe.hbn import release_folders, with_releases
from raypipe.mirror import Mirror
from raypipe.recordings import Recording, find_recordings
from raypipe.tasks import Labels, Task
from raypipe.windows import Plan


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


def select(task: Task, folders: Sequence[Path | Mirror]) -> Work:
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


def _place(folder: Path | Mirror) -> Path:
    return folder.place if isinstance(folder, Mirror) else folder


def _find(folders: Sequence[Path | Mirror]) -> list[Recording]:
    """The recordings of BIDS folders, and of releases that lie side by side in a folder."""
    by_key: dict[str, Recording] = {}
    roots = {
        root: folder if isinstance(folder, Mirror) else None
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
    wanted: dict[Mirror, set[Path]] = defaultdict(set)
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
