"""Sections "Trial outcomes" and "Successive halving": states of trials, and training that halving saved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from raypipe.core.text import format_duration
from raypipe.reporting.page import Table, render_template
from raypipe.storage.records import TrialResult
from raypipe.storage.run_store import RunStore

_STATES = ("complete", "stopped", "pruned", "failed")


class HalvingSavings(NamedTuple):
    """Training of the trials that successive halving stopped."""

    trials: int
    trained: int
    """Epochs that they were trained for."""
    saved: int
    """Epochs that they were planned for beyond these."""
    seconds: float
    """Estimated time of the saved epochs on one worker, at the mean duration of the trial's own epochs."""


def outcomes_section(run: RunStore, results: Sequence[TrialResult]) -> Markup:
    """Render the number of trials by state, and the reasons of those that failed or were stopped."""
    ended = {result.number for result in results}
    counts: Counter[str] = Counter(result.state for result in results)
    unfinished = sum(number not in ended for number in run.numbers())
    parts = [f"{counts[state]} {state}" for state in _STATES if counts[state]]
    if unfinished:
        parts.append(f"{unfinished} not ended (interrupted or still running)")
    rows = [
        [str(r.number), r.state, r.failure or "", str(r.epochs), r.reason]
        for r in results
        if r.state in ("failed", "stopped")
    ]
    reasons = Table(["trial", "state", "kind", "epochs", "reason"], rows, {1, 2, 4}) if rows else None
    return render_template("outcomes", counts=", ".join(parts), reasons=reasons)


def halving_section(run: RunStore, results: Sequence[TrialResult]) -> Markup:
    """Render the training that successive halving saved; empty where it stopped no trial."""
    savings = halving_savings(run, results)
    if not savings.trials:
        return Markup()
    spent = sum(result.seconds for result in results)
    return render_template(
        "halving",
        savings=savings,
        results=len(results),
        duration=format_duration(savings.seconds),
        share=f"{savings.seconds / (spent + savings.seconds):.0%}",
    )


def halving_savings(run: RunStore, results: Sequence[TrialResult]) -> HalvingSavings:
    """Return the training that successive halving saved."""
    pruned = [result for result in results if result.state == "pruned"]
    trained = saved = 0
    seconds = 0.0
    for result in pruned:
        if result.epochs:
            rest = max(0, run.config(result.number).epochs - result.epochs)
            trained, saved = trained + result.epochs, saved + rest
            seconds += rest * result.seconds / result.epochs
    return HalvingSavings(len(pruned), trained, saved, seconds)
