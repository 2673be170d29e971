"""Find out whether a run's sweep has ended, before its held-out subjects are scored."""

from __future__ import annotations

from typing import NamedTuple

from raypipe.core.errors import UserError
from raypipe.storage.lease import read_lease
from raypipe.storage.records import read_options
from raypipe.storage.run_store import RunStore


class SweepProgress(NamedTuple):
    """How far a run's sweep is."""

    ended: int
    """Trials that have ended."""
    planned: int
    """Trials that the sweep will have."""
    running: bool
    """A driver is alive. Where all planned trials have ended, it may be about to plan more, or to end."""

    @property
    def text(self) -> str:
        """Return ``N of M trials``."""
        return f"{self.ended} of {self.planned} trials"


def sweep_progress(run: RunStore) -> SweepProgress:
    """Return how far a run's sweep is."""
    ended, begun = len(run.results()), len(run.numbers())
    planned = max(begun, int(read_options(run.folder, run.run_id).get("trials") or 0))
    driver = read_lease(run.folder)
    return SweepProgress(ended, planned, bool(driver and driver.alive))


def require_ended(run: RunStore, *, so_far: bool) -> list[str]:
    """Return a note if the sweep has trials left, or is running.

    Raises
    ------
    UserError
        The sweep is running, and `so_far` is False: held-out subjects are scored on purpose only.
    """
    found = sweep_progress(run)
    if found.running and not so_far:
        raise UserError(
            f"{run.where}: the sweep is still running ({found.text}), and an ensemble now would score the held-out "
            "subjects once more than needed; wait, or use --so-far (in Python so_far=True)"
        )
    if found.ended >= found.planned and not found.running:
        return []
    return [f"Made after {found.text}{', while the sweep was running' if found.running else ''}."]
