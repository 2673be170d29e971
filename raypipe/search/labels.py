"""What the labels of a run are, and whether those of two runs with one target are the same."""

from __future__ import annotations

import hashlib

import numpy as np

from raypipe.core.folds import name_some
from raypipe.core.levels import level_of
from raypipe.data.given_target import python_call
from raypipe.data.window_store import WindowStore
from raypipe.storage.records import LabelsInfo

OPTIONS = {
    "bids_task": "--bids-task",
    "events_from": "--events-from",
    "select": "--select",
    "joined_on": "columns that the table was joined on:",
}
"""Words for fields of `LabelsInfo` in messages."""


def labels_of(windows: WindowStore) -> LabelsInfo:
    """Return what the labels of a store's windows are.

    Labels of people are hashed where each person has one. So are those of windows that were given, because their
    target's text says nothing about them. Other windows may be chosen differently, so theirs are not compared.
    """
    plan = windows.manifest.plan
    people = {}
    if level_of(windows.subjects, windows.targets) == "person" or python_call(plan.target):
        people = {str(name): _hash_of(windows, name) for name in np.unique(windows.subjects)}
    return LabelsInfo(
        bids_task=plan.bids_task,
        events_from=plan.events_from,
        select=plan.select,
        joined_on=plan.joined_on,
        of_people=people,
    )


def _hash_of(windows: WindowStore, person: str) -> str:
    """Return a hash of the different labels of a person."""
    labels = np.unique(windows.targets[windows.subjects == person], axis=0).tolist()
    named = [windows.classes[int(label)] for label in labels] if windows.classes else labels
    return hashlib.sha256(repr(sorted(named)).encode()).hexdigest()[:16]


def labels_differ(old: LabelsInfo, new: LabelsInfo) -> str:
    """Return how the labels of two runs with the same target differ; an empty text if they do not."""
    for field, words in OPTIONS.items():
        before, now = (_words(getattr(info, field)) for info in (old, new))
        if before != now:
            return f"{words} {before}, not {now}"
    others = [person for person, label in new.of_people.items() if old.of_people.get(person, label) != label]
    return f"those of {len(others)} subject(s) of both runs ({name_some(others)})" if others else ""


def _words(value: str | tuple[str, ...] | None) -> str:
    if isinstance(value, tuple):
        value = ",".join(sorted(value))
    return value or "none"
