"""Write the table and the manifest of a store whose shards are finished."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from raypipe.core.errors import UserError
from raypipe.core.metrics import metric_for
from raypipe.data.accounting import Ledger
from raypipe.data.confounds import WithoutEeg, without_eeg
from raypipe.data.manifest import COLUMNS, MANIFEST, OPTIONAL_COLUMNS, OUTPUT, TABLE, Manifest, Plan, Settings, Summary
from raypipe.data.scales import usual_scale
from raypipe.data.selection import check_subjects
from raypipe.data.shards import ShardRecord
from raypipe.data.splits import copied_windows
from raypipe.data.target_base import Labels
from raypipe.data.window_limits import limit_windows
from raypipe.recordings.tables import list_some
from raypipe.storage.files import write_atomic

if TYPE_CHECKING:
    import pandas as pd

MAX_COPIES = 20
"""Pairs of recordings with equal windows that the account names."""
NO_WINDOW = "without a window"
"""Reason for leaving recordings out."""


def write_store(
    folder: Path,
    asked: Settings,
    plan: Plan,
    labels: Labels,
    ledger: Ledger,
    records: list[ShardRecord],
    group_of: Mapping[str, str] | None = None,
    people: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
) -> None:
    """Write the table, and then the manifest with the account of everything found.

    Parameters
    ----------
    group_of
        Group of each subject that has one.
    people
        What is known of each subject: cells of participants.tsv by column.

    Raises
    ------
    UserError
        There is no window, none of a class, or windows of one subject only.
    """
    for record in records:
        _account(ledger, record)
    ledger.notes += _notes_on_limits(records)
    table = _table(asked, labels, ledger, records, group_of)
    ledger.notes += _copies(table)
    subjects = set(table["subject"])
    try:
        check_subjects(subjects, str(folder))
    except UserError as error:
        reasons = _reasons(ledger)
        raise UserError(f"{error}" + (f" (left out: {reasons})" if reasons else "")) from None
    text = table.to_csv(index=False, lineterminator="\n").encode()
    table_sha256 = hashlib.sha256(text).hexdigest()
    manifest = Manifest(
        settings=asked,
        plan=plan,
        kind=labels.kind,
        metric=metric_for(labels.kind, asked.metric, plan.target),
        classes=labels.classes,
        unit=plan.preprocessing.unit,
        shards=tuple(record.shard for record in records),
        table_sha256=table_sha256,
        data_hash=_data_hash(records, table_sha256, plan, labels.classes),
        summary=Summary(
            recordings=table["recording"].nunique(),
            windows=len(table),
            subjects=len(subjects),
            scale=usual_scale({record.shard.recording: record.scale for record in records}),
        ),
        accounting=ledger.close(),
        without_eeg=judge_people(table, labels.classes, records, people),
        versions={"mne": version("mne")},  # importing it takes a second
    )
    write_atomic(folder / TABLE, lambda file: file.write(text))
    write_atomic(folder / MANIFEST, lambda file: file.write(manifest.to_json()))


def judge_people(
    table: pd.DataFrame,
    classes: Sequence[str],
    records: Iterable[ShardRecord],
    people: Mapping[str, Mapping[str, str]],
) -> WithoutEeg:
    """Describe the windows of a table by class, and judge what is known of the classes without EEG."""
    return without_eeg(table, classes, {each.shard.recording: each.duration for each in records}, people)


def _account(ledger: Ledger, record: ShardRecord) -> None:
    """Note what was left out of a recording, or that nothing of it is in the store."""
    key = record.shard.recording
    ledger.leave_parts_out(ledger.person_of[key], record.left_out)
    if not record.shard.rows:
        ledger.leave_out(key, NO_WINDOW, ", ".join(f"{n} {what}" for what, n in record.left_out.items()))


def _notes_on_limits(records: list[ShardRecord]) -> list[str]:
    """Return a sentence for each limit of amplitude, with the channels that were outside of it most often."""
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        for reason, channels in record.outside.items():
            found[reason].update(channels)
    return [
        f"Channels with {reason} ({list_some(f'{name} {n}' for name, n in channels.most_common())})."
        for reason, channels in found.items()
    ]


def _copies(table: pd.DataFrame) -> list[str]:
    """Return sentences on windows that hold the same samples: of two recordings, or twice in one.

    In different folds they are a leak (`splits.audit_subjects`).
    """
    recordings = table["recording"].tolist()
    pairs = Counter(
        tuple(sorted((recordings[one], recordings[other])))
        for one, other in copied_windows(table["digest"].to_numpy(str))
    )
    return [
        f"Recording {one} holds {n} windows twice; look for events that are given twice."
        if one == other
        else f"Recordings {one} and {other} hold {n} windows with the same samples; keep one."
        for (one, other), n in pairs.items()
    ][:MAX_COPIES]


def _table(
    asked: Settings,
    labels: Labels,
    ledger: Ledger,
    records: list[ShardRecord],
    group_of: Mapping[str, str] | None,
) -> pd.DataFrame:
    """Return the table of all windows, and check that there are windows of every class.

    Several values of a target have a column each, ``target:NAME``, in place of `target`.
    """
    import pandas as pd

    spec = asked.target
    rows = [
        row | {"shard": number, "row": place}
        for number, record in enumerate(records)
        for place, row in enumerate(record.rows)
    ]
    if not rows:
        raise UserError(f"target '{spec}': no window was found ({_reasons(ledger) or 'no matching event'})")
    table = limit_windows(pd.DataFrame(rows), asked, ledger)
    if table.empty:
        raise UserError(f"target '{spec}': no person has {asked.min_windows} windows; choose a lower --min-windows")
    if group_of is not None:
        table["group"] = table["subject"].map(dict(group_of)).fillna("")
    if labels.classes:
        table["target"] = table["target"].astype(int)
        _check_classes(table, spec, labels.classes, ledger)
    table.insert(0, "window", range(len(table)))
    used = [name for name in OPTIONAL_COLUMNS if name in table and table[name].fillna("").astype(bool).any()]
    targets = [f"{OUTPUT}{name}" for name in labels.outputs] or ["target"]
    if labels.outputs:
        table[targets] = [list(values) for values in table["target"]]
    columns = [each for name in COLUMNS for each in (targets if name == "target" else [name])]
    return table[[*columns, *used]]


def _reasons(ledger: Ledger) -> str:
    """Return in words what was left out, and how much of it."""
    return ", ".join(f"{n} {what}" for what, n in ledger.counts().items())


def _check_classes(table: pd.DataFrame, spec: str, classes: tuple[str, ...], ledger: Ledger) -> None:
    missing = set(range(len(classes))) - set(table["target"])
    if missing:
        reasons = _reasons(ledger)
        left_out = f" (left out: {reasons})" if reasons else ""
        raise UserError(f"target '{spec}': no window of class '{classes[min(missing)]}'{left_out}")


def _data_hash(records: list[ShardRecord], table_sha256: str, plan: Plan, classes: tuple[str, ...]) -> str:
    """Return a hash of everything that training depends on."""
    content = {
        "shards": [record.shard.sha256 for record in records],
        "table": table_sha256,
        "plan": plan.model_dump(mode="json", include={"channels", "sfreq", "crop_samples", "target_is_offset"}),
        "classes": classes,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
