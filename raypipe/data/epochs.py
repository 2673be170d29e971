"""Make a store of windows from MNE epochs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypipe.core.errors import UserError
from raypipe.core.metrics import metric_for
from raypipe.core.progress import Progress, no_progress
from raypipe.data.accounting import Ledger
from raypipe.data.epochs_checks import check_overlaps, check_same, common_channels, readable
from raypipe.data.epochs_files import EpochsSource, entity_of, find_epochs, note_on_parts
from raypipe.data.epochs_target import SOURCE, Part, labels_of, parse_target, stored_spec, used_part
from raypipe.data.given_subjects import read_groups, read_subjects, recording_keys
from raypipe.data.given_windows import (
    GivenRows,
    GivenWindows,
    given_settings,
    given_spec,
    make_given_plan,
)
from raypipe.data.plan import NOT_ASKED
from raypipe.data.selection import check_subjects
from raypipe.data.window_store import WindowStore

UNIT_HINT = "MNE keeps EEG in volts: scale the epochs, or the files that they were cut from"


def from_epochs(
    epochs: Any,
    *,
    subject: str | Sequence[Any] = "metadata:subject",
    target: str = "event",
    out: str | Path,
    groups: str | None = None,
    channels: str | Sequence[str] | None = None,
    crop: float | None = None,
    dtype: str = "float32",
    metric: str | None = None,
    max_windows: int | None = None,
    min_windows: int | None = None,
    seed: int = 0,
    skip_unreadable: bool = False,
    progress: Progress = no_progress,
) -> WindowStore:
    """Write a store of windows that are MNE epochs, with their targets.

    Samples are taken as they are: nothing is filtered, resampled or referenced. The store is, byte for byte, the one
    that `prepare` makes of the same signals in a BIDS folder, but for the fields that `from_arrays` names. Onset and
    recording of each epoch are kept. Epochs that MNE has dropped are counted, as are epochs without a target.

    Parameters
    ----------
    epochs
        Epochs of MNE; or a FIF file of them, or a pattern such as ``sub-*_epo.fif``; or several of these. Files are
        read block by block.
    subject
        Where the subject is named: ``metadata:COLUMN``; or ``filename:sub``, an entity in the name of the file; or a
        sequence with the subject of each file.
    target
        What is predicted: ``event``, the name of the event; ``event:A,B``, of these only, in this order; or
        ``metadata:COLUMN``. Numbers in a column are values to regress on, unless they are the codes of two classes;
        ``metadata:COLUMN:classification`` and ``metadata:COLUMN:regression`` decide it. ``metadata:A,B`` is a
        regression of several values; codes of two classes are numbers only with ``:regression`` behind them.
    out
        Folder for the store: new, empty, or a store made with the same settings.
    groups
        ``metadata:COLUMN`` of each subject's group, such as a site. Subjects of one group are kept on one side of every
        split.
    channels
        Names of EEG channels, or one. Default: all, which must then be the same in all files.
    crop, dtype, metric, max_windows, min_windows, seed
        See `from_arrays`.
    skip_unreadable
        Leave out files that are damaged or hold no epochs, instead of stopping.
    progress
        Called with the epochs done, their total and a short text.

    Returns
    -------
    WindowStore
        The windows with their targets. Its ``where`` is the folder.

    Raises
    ------
    UserError
        There are no epochs, files differ in channels, sampling rate or length, a subject or a column is missing, two
        subjects share a piece of signal, samples are not on the scale of EEG, or the folder has other content.
    DiskFullError
        The disk is full.

    Examples
    --------
    >>> from_epochs("sub-*_epo.fif", subject="filename:sub", target="metadata:rt", out="store")  # doctest: +SKIP
    """
    stored: dict[str, Any] = {"crop": crop, "dtype": dtype, "metric": metric, "progress": progress}
    limits: dict[str, Any] = {"max_windows": max_windows, "min_windows": min_windows, "seed": seed}
    where: dict[str, Any] = {"groups": groups, "channels": channels, "skip_unreadable": skip_unreadable}
    return store_of_epochs(SOURCE, epochs, subject=subject, target=target, out=out, **where, **stored, **limits)


def store_of_epochs(
    source: str,
    epochs: Any,
    *,
    subject: str | Sequence[Any],
    target: str,
    out: str | Path,
    groups: str | None,
    channels: str | Sequence[str] | None,
    crop: float | None,
    dtype: str,
    metric: str | None,
    progress: Progress,
    skip_unreadable: bool = False,
    **limits: int | None,
) -> WindowStore:
    """Write a store as `from_epochs` does, which documents the arguments; `source` names its target."""
    wanted, ledger = parse_target(target), Ledger()
    channels = (channels,) if isinstance(channels, str) else channels
    found = find_epochs(epochs)
    ledger.notes += note_on_parts(found)
    sources = readable(found, ledger) if skip_unreadable else found
    names = common_channels(sources, channels)
    check_same(sources)
    parts = [used_part(source, wanted, subjects_of(source, subject, len(found)), ledger) for source in sources]
    subjects = [who for part in parts for who in part.subjects]
    labels, targets = labels_of(parts, subjects, wanted)
    check_subjects(set(subjects), "epochs")
    group_of = None if groups is None else _groups(parts, groups, subjects)
    settings = given_settings(
        stored_spec(wanted, labels) if source == SOURCE else given_spec(source, None, labels),
        crop=crop,
        dtype=dtype,
        metric=metric,
        groups=groups,
        channels=None if channels is None else tuple(channels),
        subject=subject if isinstance(subject, str) and source == SOURCE else None,
        **limits,
    )
    metric_for(labels.kind, metric, settings.target)
    facts = sources[0].facts
    plan = make_given_plan(settings, names, facts.sfreq, facts.samples, facts.tmin)
    onsets = np.concatenate([part.source.facts.onsets[part.rows] for part in parts])
    rows = GivenRows(_keys(parts), subjects, onsets, targets)
    for part in parts:
        people = [group_of.get(who, who) for who in part.subjects] if group_of else part.subjects
        check_overlaps(part.source, part.rows, people, names)
        _note_channels(part.source, names, ledger)
    given = GivenWindows(settings, plan, labels, rows, _in_microvolts(parts, names), ledger, UNIT_HINT, group_of)
    return given.write(out, progress)


def subjects_of(source: EpochsSource, subject: str | Sequence[Any], n_sources: int) -> list[str]:
    """Return the subject of each epoch; `subject` is that of `from_epochs`.

    Raises
    ------
    UserError
        Some epoch has no subject.
    """
    n = len(source.facts.onsets)
    if not isinstance(subject, str):
        if len(subject) != n_sources:
            raise UserError(
                f"subject names {len(subject)}, but there are {n_sources} files or epochs; it needs one each"
            )
        return read_subjects([subject[source.number]] * n)
    how, _, argument = subject.partition(":")
    if how == "filename" and argument:
        return read_subjects([entity_of(source, argument)] * n)
    if how != "metadata" or not argument:
        raise UserError(f"subject '{subject}': must be metadata:COLUMN or filename:sub")
    where = f"{source.name}: column '{argument}' of the metadata"
    return read_subjects(source.facts.column(argument, source.name), where)


def _groups(parts: list[Part], groups: str, subjects: list[str]) -> dict[str, str]:
    how, _, argument = groups.partition(":")
    if how != "metadata" or not argument:
        raise UserError(f"groups '{groups}': must be metadata:COLUMN")
    return read_groups([value for part in parts for value in part.values(argument)], subjects)


def _keys(parts: list[Part]) -> list[str]:
    """Return the key of each epoch's recording.

    Raises
    ------
    UserError
        Two files of one subject have the same name.
    """
    keys: list[str] = []
    owner: dict[str, EpochsSource] = {}
    unnamed = Counter(who for part in parts if not part.source.recording for who in set(part.subjects))
    for source, _, subjects in parts:
        number = f"part-{source.number + 1}"
        names = [source.recording or (number if unnamed[who] > 1 else "") for who in subjects]
        found = recording_keys(subjects, names)
        for key in set(found):
            other = owner.setdefault(key, source)
            if other is not source:
                raise UserError(
                    f"{source.name}: has the name and a subject of {other.name}, so their epochs cannot be "
                    "distinguished; rename one"
                )
        keys += found
    return keys


def _note_channels(source: EpochsSource, names: list[str], ledger: Ledger) -> None:
    facts = source.facts
    unused = {name: NOT_ASKED for name in facts.channels if name not in names}
    ledger.leave_channels_out(facts.others | unused)
    bads = [name for name in facts.bads if name in names]
    if bads:
        ledger.notes.append(f"Channels that MNE has marked as bad are kept: {source.name}: {', '.join(bads)}.")


def _in_microvolts(parts: list[Part], names: list[str]) -> Iterator[NDArray[np.float32]]:
    for part in parts:
        for x_NCT in part.source.read(part.rows, names):
            yield (x_NCT * 1e6).astype(np.float32)
