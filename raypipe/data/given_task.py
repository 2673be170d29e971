"""The task of a store whose windows were given, instead of cut from recordings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raypipe.core.errors import UserError
from raypipe.data.task_base import Labels, Segments, Task, WindowTiming
from raypipe.recordings.recording import Recording


@dataclass(frozen=True)
class GivenTask(Task):
    """Predict the target that was given with each window. It cuts no windows."""

    def read_labels(self, recordings: Sequence[Recording]) -> Labels:
        raise UserError(f"task '{self.spec}': its windows are given in Python, with raypipe.from_arrays or the like")

    def segment(self, recording: Recording, duration: float, timing: WindowTiming, labels: Labels | None) -> Segments:
        raise UserError(
            f"task '{self.spec}': its windows were given, so it cuts none from recordings; give arrays or epochs to "
            "raypipe.predict"
        )
