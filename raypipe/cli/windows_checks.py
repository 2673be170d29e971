"""Check a store of windows, by itself and as that of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from raypipe.cli.machine import Finding
from raypipe.core.errors import UserError, first_line
from raypipe.data.splits import audit_subjects, copied_windows
from raypipe.data.window_cache import open_windows
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.oof import read_oof_predictions
from raypipe.storage.records import Member
from raypipe.storage.remote import without_settings
from raypipe.storage.run_store import RunStore


def check_windows(windows: WindowStore) -> Iterator[Finding]:
    """Check that a store is intact, that its targets are numbers, and that no two subjects have the same samples."""
    place = without_settings(windows.where)
    damaged = 0
    for line in windows.damaged():
        damaged += 1
        yield Finding("broken", line)
    if not damaged:
        yield Finding("ok", f"{place}: intact: {windows.describe()}")
    if windows.kind == "regression" and not np.isfinite(windows.targets).all():
        yield Finding(
            "broken",
            f"{place}: some targets are not numbers",
            "correct participants.tsv or the events and prepare again",
        )
    yield from _copies(windows)


def _copies(windows: WindowStore) -> Iterator[Finding]:
    """Find windows of different subjects with the same samples."""
    recordings, group_of = windows.table["recording"].tolist(), windows.group_of
    persons = [group_of.get(subject, f"sub-{subject}") for subject in windows.subjects.tolist()]
    pairs = Counter(
        " and ".join(sorted((recordings[one], recordings[other])))
        for one, other in copied_windows(windows.table["digest"].to_numpy(str))
        if persons[one] != persons[other]
    )
    for names, n in pairs.items():
        yield Finding(
            "broken",
            f"{without_settings(windows.where)}: {n} windows of {names} hold the same samples, but belong to different "
            "subjects",
            "remove one of them, or group the subjects with --groups, and prepare again; in different folds they would "
            "be a leak",
        )


def check_run_windows(run: RunStore, *, whole: bool) -> Iterator[Finding]:
    """Check that a run's windows are there, are those it was made from, are intact, and are split by its fold map."""
    try:
        windows = open_windows(run.info.data)
    except UserError as error:
        yield Finding("broken", f"its windows cannot be opened: {first_line(error)}")
        return
    if windows.data_hash != run.info.data_hash:
        yield Finding(
            "broken",
            f"{without_settings(windows.where)}: not the windows that the run was made from (hash "
            f"{windows.data_hash[:12]}, the run has {run.info.data_hash[:12]})",
            "prepare them again from the same recordings, or name a new run",
        )
        return
    yield from check_windows(windows)
    audit_subjects(windows, run.folds)
    yield Finding("ok", "no leak: no subject, recording or copy of one is on both sides of a split")
    ranked = run.ranked()
    if ranked and whole:
        members = [Member(result.number, epoch) for result in ranked for epoch in (0, *result.snapshots)]
        read_oof_predictions(run, members, windows.subjects, windows.targets)
        yield Finding("ok", f"out-of-fold predictions of {len(ranked)} trial(s) follow the fold map and are finite")
