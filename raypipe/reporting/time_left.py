"""The time that a sweep needs for the rest of its trials, estimated from those so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from raypipe.core.text import format_duration


class TimeLeft(NamedTuple):
    """An estimate."""

    seconds: float
    at_least: bool
    """Trials have been fitted in closed form only so far, and networks may follow."""

    def __str__(self) -> str:
        return f"{'at least' if self.at_least else 'about'} {format_duration(self.seconds)}"


class TrialWork(NamedTuple):
    """What a trial has cost so far."""

    seconds: float
    """Of a worker, or of a clock; the estimate is in the same."""
    gained: float
    """Fraction of its epochs that these seconds were for; 1 of one that was stopped early: it needs no more."""
    left: float
    """Fraction of its epochs that are still to be trained; 0 of one that has ended."""
    epochs: int
    """Planned epochs."""


def time_left(trials: Sequence[TrialWork], planned: int, workers: int) -> TimeLeft | None:
    """Return the time that the open trials and those that are not started will take.

    Models that are fitted in closed form, in one epoch, cost a fraction of a network. Each kind has its own mean, and
    trials that are not started are reckoned as networks once there is one: rather too long than too short.

    Parameters
    ----------
    trials
        All that have started.
    planned
        Number of all trials.
    workers
        Workers that share the seconds, or trials at a time where these are of a clock.

    Returns
    -------
    TimeLeft or None
        None while nothing shows what a trial of a kind costs, and when all have ended.
    """
    costs: dict[bool, list[float]] = {}
    for trial in trials:
        if trial.gained > 0:
            costs.setdefault(trial.epochs > 1, []).append(trial.seconds / trial.gained)
    means = {trains: sum(each) / len(each) for trains, each in costs.items()}
    if planned <= len(trials) and not any(trial.left for trial in trials):
        return None
    if not means or any(trial.left and (trial.epochs > 1) not in means for trial in trials):
        return None
    running = sum(
        trial.left * (trial.seconds / trial.gained if trial.gained else means[trial.epochs > 1]) for trial in trials
    )
    seconds = running + max(0, planned - len(trials)) * means[max(means)]
    return TimeLeft(seconds / workers, at_least=True not in means)
