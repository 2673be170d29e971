"""The target of a store whose windows were given, instead of cut from recordings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raypipe.core.errors import UserError
from raypipe.data.target_base import Labels, Segments, Target, WindowTiming
from raypipe.recordings.recording import Recording

FUNCTIONS = {
    "arrays": "from_arrays",
    "epochs": "from_epochs",
    "moabb": "from_moabb",
    "braindecode": "from_braindecode",
}
"""Functions of the public API that make stores of given windows, by the name of the target of these stores."""


def python_call(spec: str) -> str:
    """Return the call that makes windows of a target, in outline; empty for one that `prepare` cuts windows for."""
    function = FUNCTIONS.get(spec.partition(":")[0])
    return f"raypipe.{function}(..., out='STORE')  # in Python" if function else ""


@dataclass(frozen=True)
class GivenTarget(Target):
    """Predict the target that was given with each window. It cuts no windows."""

    def read_labels(self, recordings: Sequence[Recording]) -> Labels:
        raise UserError(
            f"target '{self.spec}': prepare cuts none of its windows; make them with {python_call(self.spec)}"
        )

    def segment(self, recording: Recording, duration: float, timing: WindowTiming, labels: Labels | None) -> Segments:
        raise UserError(
            f"target '{self.spec}': its windows were given, so it cuts none from recordings; give arrays or epochs to "
            "raypipe.predict"
        )
