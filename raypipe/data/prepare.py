"""A folder for windows, taken by one `prepare`: no foreign files in it, the same settings, nobody else at work."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raypipe.core.errors import UserError
from raypipe.core.parallel import map_processes
from raypipe.core.progress import Progress, no_progress
from raypipe.data.bids import Recording, UnreadableRecordingError
from raypipe.data.plan import (
    Header,
    Work,
    check_settings,
    check_subjects,
    fingerprint,
    make_plan,
    parse_settings,
    select,
)
from raypipe.data.remote_bids import open_remote_bids
from raypipe.data.shards import Made, load_made, make_shard, probe
from raypipe.data.tasks import parse_task
from raypipe.data.window_store import (
    COLUMNS,
    EXTRA,
    MANIFEST,
    SETTINGS,
    SHARDS,
    TABLE,
    Manifest,
    Plan,
    Settings,
    Summary,
    WindowStore,
    read_manifest,
)
from raypipe.storage.files import TEMPORARY, lock, write_atomic


@contextlib.contextmanager
def claim_output(folder: Path, asked: Settings, keys: set[str]) -> Iterator[None]:
    """Make the folder this run's own for as long as this lasts.

    Parameters
    ----------
    folder
        For windows; made if need be.
    asked
        Settings that the windows that are there must have been made with.
    keys
        Of the recordings; some of what is there must be of these.

    Raises
    ------
    UserError
        Foreign files, other settings, another data set, or another process at work.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: a file, not a folder for windows")
    path = folder / SETTINGS
    made = {entry.stem for entry in (folder / SHARDS).glob("*.json")}
    # Recordings without a window leave no shard to protect: a prepare that found none at all may be put right.
    finished = any((folder / SHARDS / f"{stem}.npy").is_file() for stem in made)
    if path.is_file() and finished:
        _check_same(path, asked)
    elif not path.is_file() and folder.is_dir() and any(not e.name.endswith(TEMPORARY) for e in folder.iterdir()):
        raise UserError(f"{folder}: holds other files and is not a store of windows; choose another folder")
    else:
        write_atomic(path, lambda file: file.write(asked.model_dump_json(indent=1).encode() + b"\n"))
    with open(path, "rb") as file:
        if not lock(file):
            raise UserError(f"{folder}: another prepare is at work there; wait for it to end")
        if finished and not made & keys:
            raise UserError(f"{folder}: holds windows of another data set; choose another folder")
        yield


def _check_same(path: Path, asked: Settings) -> None:
    try:
        before = Settings.model_validate_json(path.read_bytes())
    except ValidationError:
        raise UserError(f"{path}: damaged; delete the folder {path.parent} or choose another") from None
    for name in Settings.model_fields:
        old, new = getattr(before, name), getattr(asked, name)
        if old != new:
            raise UserError(
                f"{path.parent}: was made with {name} {_show(old)}, not {_show(new)}; choose another folder for --out"
            )


def _show(value: Any) -> str:
    if value is None:
        return "left to its default"
    return ",".join(map(str, value)) if isinstance(value, tuple) else f"'{value}'"


def remove_leftovers(folder: Path, keys: set[str]) -> None:
    """Remove what a killed run left half-written, and shards of recordings that are gone."""
    for path in (folder / SHARDS).glob("*"):
        if path.name.endswith(TEMPORARY) or (path.suffix in (".npy", ".json") and path.stem not in keys):
            path.unlink()


FEW = 200
"""Headers of so many recordings are read faster than processes start."""


def prepare(
    bids: str | Path | Sequence[str | Path],
    task: str,
    out: str | Path,
    *,
    sfreq: float | None = None,
    band: tuple[float, float] | None = None,
    channels: Sequence[str] | None = None,
    window: float | None = None,
    crop: float | None = None,
    stride: float | None = None,
    tmin: float | None = None,
    dtype: str = "float32",
    jobs: int | None = None,
    skip_unreadable: bool = False,
    progress: Progress | None = None,
) -> WindowStore:
    """Cut the recordings of a BIDS folder into windows with targets.

    Run again, it reads only recordings that are new or changed; killed, it goes on where it was.

    Parameters
    ----------
    bids
        BIDS folder, a folder of such folders (releases of HBN-EEG side by side), or several of them. A pyarrow.fs URI
        (``s3://bucket/folder``) will do: tables are fetched first, a recording for as long as it is read.
    task
        What is predicted; see `raypipe.data.tasks`.
    out
        Folder for the store: new, empty, or a store made with the same settings.
    sfreq
        Rate of the windows (Hz). Default: the recordings' own, if it is one.
    band
        Edges of a zero-phase FIR band-pass (Hz), MNE's default design; a lower edge of 0 makes it a low-pass.
    channels
        Names. Default: the EEG channels that all recordings have, in the first one's order.
    window, stride, tmin
        Seconds: length of a window, step between windows side by side, start of a window after its event. Default: the
        task's; windows side by side do not overlap.
    crop
        Seconds of a window that a model sees at a time: at random places in training, at a fixed one in evaluation.
        Default: all of it, and half of it for ``latency``.
    dtype
        Type of the stored samples; ``float16`` takes half the space and has 11 bits of precision.
    jobs
        Processes. Default: one a core. A script that calls this with more than one must be guarded by
        ``if __name__ == "__main__":``, as for any use of multiprocessing.
    skip_unreadable
        Leave out recordings that cannot be read, and count them, instead of stopping at the first.
    progress
        Called as ``progress(recordings done, recordings in all, text)``.

    Returns
    -------
    WindowStore
        The windows with their targets. Its ``where`` is the folder.

    Raises
    ------
    UserError
        Anything that is wrong with the request, the folder or the recordings.
    DiskFullError
        No room is left; finished shards are kept.
    """
    say: Progress = progress or no_progress
    asked = parse_settings(
        task=task,
        sfreq=sfreq,
        band=band,
        channels=channels,
        window=window,
        crop=crop,
        stride=stride,
        tmin=tmin,
        dtype=dtype,
    )
    if jobs is not None and jobs < 1:
        raise UserError(f"jobs {jobs}: must be at least 1")
    wanted = parse_task(task)
    check_settings(wanted, asked)
    folder = Path(out).expanduser().absolute()
    jobs = jobs or len(os.sched_getaffinity(0))
    with open_remote_bids([bids] if isinstance(bids, str | Path) else list(bids), folder) as folders:
        work = select(wanted, folders)
        with claim_output(folder, asked, {r.key for r in work.recordings}):
            store = _up_to_date(folder, asked, work)
            if store is None:
                store = _build(folder, asked, work, jobs, skip_unreadable, say)
            else:
                say(len(work.recordings), len(work.recordings), "up to date, nothing to do")
    return store


def _up_to_date(folder: Path, asked: Settings, work: Work) -> WindowStore | None:
    if not (folder / MANIFEST).is_file():
        return None
    try:
        manifest = read_manifest(folder)
        if manifest.settings != asked:
            return None
        now = {r.key: fingerprint(r, manifest.plan, work) for r in work.recordings}
        if now != {shard.recording: shard.fingerprint for shard in manifest.shards}:
            return None
        if any(load_made(folder, shard.recording, shard.fingerprint) is None for shard in manifest.shards):
            return None
        store = WindowStore(folder)
    except UserError:
        return None  # damaged: it is made again from its shards
    store.redone = 0
    return store


def _build(folder: Path, asked: Settings, work: Work, jobs: int, skip: bool, say: Progress) -> WindowStore:
    left_out = Counter(work.left_out)
    recordings, headers = _headers(work, jobs if len(work.recordings) > FEW else 1, skip, left_out, say)
    plan, channels_left_out = make_plan(work.task, asked, recordings, headers)
    left_out += channels_left_out
    prints = {r.key: fingerprint(r, plan, work) for r in recordings}
    (folder / MANIFEST).unlink(missing_ok=True)
    remove_leftovers(folder, set(prints))
    kept = {key: load_made(folder, key, prints[key]) for key in prints}
    made: dict[str, Made] = {key: one for key, one in kept.items() if one is not None}
    todo = [r for r in recordings if r.key not in made]
    redone = 0
    say(len(made), len(recordings), f"{len(made)} kept" if made else "")
    calls = [(r, work.task.spec, work.labels_of(r), plan, folder, prints[r.key]) for r in todo]
    with contextlib.closing(map_processes(make_shard, calls, jobs)) as answers:
        for place, answer in answers:
            key = todo[place].key
            if isinstance(answer, Made):
                made[key] = answer
                redone += 1
                say(len(made), len(recordings), key)
            elif skip and isinstance(answer, UnreadableRecordingError):
                left_out["unreadable recordings"] += 1
            else:
                raise answer
    ordered = [made[r.key] for r in recordings if r.key in made]
    store = _finish(folder, asked, work, plan, ordered, left_out)
    store.redone = redone
    return store


def _headers(
    work: Work, jobs: int, skip: bool, left_out: Counter[str], say: Progress
) -> tuple[list[Recording], list[Header]]:
    found: dict[int, Header] = {}
    # Processes take longer to start than a few headers to read.
    with contextlib.closing(map_processes(probe, [(r,) for r in work.recordings], jobs)) as answers:
        for place, answer in answers:
            if isinstance(answer, tuple):
                found[place] = answer
                say(0, len(work.recordings), f"header of {work.recordings[place].key}")
            elif skip and isinstance(answer, UnreadableRecordingError):
                left_out["unreadable recordings"] += 1
            else:
                raise answer
    if not found:
        raise UserError("no recording can be read")
    readable = [r for place, r in enumerate(work.recordings) if place in found]
    headers = [found[place] for place in sorted(found)]
    return readable, headers


def _finish(
    folder: Path, asked: Settings, work: Work, plan: Plan, made: list[Made], left_out: Counter[str]
) -> WindowStore:
    import mne
    import pandas as pd

    for one in made:
        left_out.update(one.left_out)
    rows = [
        row | {"shard": number, "row": place} for number, one in enumerate(made) for place, row in enumerate(one.rows)
    ]
    left_out = +left_out
    if not rows:
        reasons = ", ".join(f"{n} {what}" for what, n in left_out.items())
        raise UserError(f"task '{work.task.spec}': no window at all ({reasons or 'no matching event'})")
    table = pd.DataFrame(rows)
    if work.labels.classes:
        table["target"] = table["target"].astype(int)
        empty = set(range(len(work.labels.classes))) - set(table["target"])
        if empty:
            name = work.labels.classes[min(empty)]
            raise UserError(f"task '{work.task.spec}': no window of class '{name}'")
    table.insert(0, "window", range(len(table)))
    subjects = set(table["subject"])
    check_subjects(subjects, str(folder))
    extra = [name for name in EXTRA if name in table and table[name].fillna("").astype(bool).any()]
    text = table[[*COLUMNS, *extra]].to_csv(index=False, lineterminator="\n").encode()
    table_sha256 = hashlib.sha256(text).hexdigest()
    content = {
        "shards": [one.shard.sha256 for one in made],
        "table": table_sha256,
        "plan": plan.model_dump(mode="json", include={"channels", "sfreq", "crop_samples", "target_is_offset"}),
        "classes": work.labels.classes,
    }
    manifest = Manifest(
        settings=asked,
        plan=plan,
        kind=work.labels.kind,
        metric="nrmse" if work.labels.kind == "regression" else "auc",
        classes=work.labels.classes,
        shards=tuple(one.shard for one in made),
        table_sha256=table_sha256,
        data_hash=hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
        summary=Summary(
            recordings=sum(one.shard.rows > 0 for one in made),
            windows=len(table),
            subjects=len(subjects),
            left_out=dict(left_out),
        ),
        versions={"mne": mne.__version__},
    )
    write_atomic(folder / TABLE, lambda file: file.write(text))
    write_atomic(folder / MANIFEST, lambda file: file.write(manifest.model_dump_json(indent=1).encode() + b"\n"))
    return WindowStore(folder)
