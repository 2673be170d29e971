"""Which recordings are aligned together, how, and subjects that cannot be."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from raypipe.core.errors import UserError
from raypipe.data.alignment import Floats
from raypipe.data.kept_windows import alignment_of
from raypipe.data.manifest import Plan
from raypipe.data.preprocessing import Preprocessing
from raypipe.data.target_base import Target
from raypipe.data.targets import BidsTask
from raypipe.recordings.recording import Recording


def aligned_together(recording: Recording, recordings: Sequence[Recording], steps: Preprocessing) -> list[Recording]:
    """Return the recordings whose windows share one alignment: all of the subject, or the one."""
    if steps.align != "subject":
        return [recording]
    return [other for other in recordings if other.subject == recording.subject]


class SubjectAlignments:
    """The matrices that align subjects, each made when a recording of the subject first needs it.

    Parameters
    ----------
    recordings
        All recordings to predict.
    plan
        How windows are made.
    """

    def __init__(self, recordings: Sequence[Recording], plan: Plan) -> None:
        self._recordings, self._plan = recordings, plan
        self._found: dict[str, Floats | UserError] = {}

    def of(self, recording: Recording) -> Floats | None:
        """Return the matrix (C, C) for a recording; None where it is not aligned, or by itself.

        Raises
        ------
        UserError
            A recording of the subject cannot be read.
        """
        if self._plan.preprocessing.align != "subject":
            return None
        if recording.subject not in self._found:
            unit = aligned_together(recording, self._recordings, self._plan.preprocessing)
            try:
                self._found[recording.subject] = alignment_of(unit, self._plan)
            except UserError as error:
                self._found[recording.subject] = error
        found = self._found[recording.subject]
        if isinstance(found, UserError):
            raise found
        return found


def lacking_classes(recordings: Sequence[Recording], target: Target, steps: Preprocessing) -> dict[str, str]:
    """Return why subjects cannot be aligned, by subject.

    Where the class is the BIDS task, alignment takes the mean of all classes from a subject. Without one of them, it
    would take the difference between the others and it.
    """
    if steps.align != "subject" or not isinstance(target, BidsTask):
        return {}
    tasks_of: dict[str, set[str]] = defaultdict(set)
    for recording in recordings:
        tasks_of[recording.subject].add(recording.task or "")
    missing = {who: [task for task in target.bids_tasks if task not in has] for who, has in tasks_of.items()}
    return {
        who: f"subjects without a recording of BIDS task {' or '.join(tasks)}, which align subject needs"
        for who, tasks in missing.items()
        if tasks
    }
