"""Interface of a fold's training, whatever is trained and however."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from raypipe.training.result import FoldEpoch

Interrupted = Callable[[], bool]
"""Called before every batch; True ends the epoch with `InterruptedEpochError`."""


def never() -> bool:
    """Do not interrupt."""
    return False


class FoldTrainer(Protocol):
    """Interface of a fold's training, supervised or self-supervised; `FoldRunner` adds checkpoints and reports."""

    fold: int

    @property
    def epoch(self) -> int:
        """Return the number of epochs that were trained."""

    @property
    def stopped(self) -> bool:
        """Return whether the fold has stopped by itself; then `run_epoch` returns the same predictions again."""

    def run_epoch(self, interrupted: Interrupted = never) -> FoldEpoch:
        """Train one epoch and predict the validation windows.

        It raises `NonFiniteError` if the loss or a gradient is not finite, `InterruptedEpochError` if interrupted.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue exactly after this epoch, as copies.

        ``weights`` are those that are evaluated and shipped, ``target`` the centre and scale of their output, and
        ``initial`` identifies the weights before the first step.
        """

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return to where `state` was taken; raise `ValueError` if it is of another configuration or fold."""
