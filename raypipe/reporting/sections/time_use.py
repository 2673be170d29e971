"""Section "Time": use of the run's time and of its workers' time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from raypipe.core.text import format_duration
from raypipe.reporting.page import Table, format_share, render_template
from raypipe.reporting.trial_spans import TrialSpan, merge_intervals
from raypipe.storage.lease import read_lease
from raypipe.storage.records import TrialResult
from raypipe.storage.run_store import RunStore


@dataclass(frozen=True)
class TimeUse:
    """Use of a run's time, in seconds."""

    wall: float
    """From the request of the first trial to the end of the last."""
    busy: float
    """Part of `wall` in which a trial was trained."""
    driven: float | None
    """Time that the run's drivers ran, summed; None where it was not recorded."""
    assigned: float
    """Time that workers had a trial, summed over workers; 0 where no log has the number of workers."""
    trained: float
    """Part of `assigned` in which they trained and predicted."""


def time_section(run: RunStore, results: Sequence[TrialResult], spans: Sequence[TrialSpan]) -> Markup:
    """Render the section; empty where no trial has ended."""
    if not results:
        return Markup()
    use = _use_table(measure_time_use(run, spans)) if spans else None
    return render_template("time_use", use=use, by_kind=_kind_table(run, results))


def measure_time_use(run: RunStore, spans: Sequence[TrialSpan]) -> TimeUse:
    """Measure the use of time by the trials that have ended."""
    wall = max(span.finished for span in spans) - min(span.requested for span in spans)
    busy = sum(end - start for start, end in merge_intervals(each for span in spans for each in span.trained))
    driver = read_lease(run.folder)
    known = [span for span in spans if span.workers]
    assigned = sum(span.workers * (end - start) for span in known for start, end in span.trained)
    trained = sum(span.result.seconds for span in known)
    return TimeUse(wall, busy, driver.spent if driver else None, max(assigned, trained), trained)


def _use_table(use: TimeUse) -> Table:
    idle = max(0.0, use.wall - use.busy)
    rows = [
        ["wall-clock, from the first trial queued to the end of the last", format_duration(use.wall), ""],
        ["of this, with a trial on workers", format_duration(use.busy), format_share(use.busy, use.wall)],
        ["of this, idle: start-up, waiting, pauses", format_duration(idle), format_share(idle, use.wall)],
    ]
    if use.driven is not None:
        rows.append(["wall-clock of drivers, pauses excluded", format_duration(use.driven), ""])
    if use.assigned:
        rest = use.assigned - use.trained
        rows += [
            ["compute, summed over workers with a trial", format_duration(use.assigned), ""],
            ["of this, training and predicting", format_duration(use.trained), format_share(use.trained, use.assigned)],
            [
                "of this, loading, checkpoints, waiting for other workers",
                format_duration(rest),
                format_share(rest, use.assigned),
            ],
        ]
    return Table(["", "time", "share"], rows)


def _kind_table(run: RunStore, results: Sequence[TrialResult]) -> Table:
    """Return training time by the trials' state and optimiser step, largest first."""
    total = sum(result.seconds for result in results)
    groups: dict[str, list[TrialResult]] = {}
    for result in results:
        sam = run.config(result.number).sam.name
        kind = f"{result.state}, {'plain steps' if sam == 'none' else sam.upper() + ' steps'}"
        groups.setdefault(kind, []).append(result)
    rows = []
    for kind, group in sorted(groups.items(), key=lambda item: -sum(r.seconds for r in item[1])):
        seconds, epochs = sum(r.seconds for r in group), sum(r.epochs for r in group)
        per_epoch = f"{seconds / epochs:.2f} s" if epochs else ""
        row = [kind, str(len(group)), str(epochs), format_duration(seconds), format_share(seconds, total), per_epoch]
        rows.append(row)
    return Table(["state and steps", "trials", "epochs", "training time", "share", "time per epoch"], rows)
