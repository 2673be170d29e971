"""Write a store from windows that are given, instead of cut from recordings."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypipe.core.errors import UserError
from raypipe.core.progress import Progress
from raypipe.core.text import check_one_line
from raypipe.data.accounting import Ledger
from raypipe.data.kept_windows import Losses
from raypipe.data.manifest import MANIFEST, Plan, Settings
from raypipe.data.output_folder import claim_output, remove_leftovers, store_folder
from raypipe.data.plan import parse_settings
from raypipe.data.scales import check_usual_scale, other_scales, scale_notes
from raypipe.data.shards import ShardRecord, shard_path, write_shard_record
from raypipe.data.store_writer import write_store
from raypipe.data.target_base import Labels, Value
from raypipe.data.window_limits import check_limits
from raypipe.data.window_store import WindowStore
from raypipe.data.window_writer import WindowWriter
from raypipe.data.windower import MISSING_SAMPLES, Window
from raypipe.recordings.recording import Recording, entities_of
from raypipe.storage.appended_file import AppendedFile

MAX_SCALE = 1e5
"""Microvolts that windows may spread over: a tenth of a volt. Numbers without a unit, such as z-scores, are above."""
MAX_NAMED_CLASSES = 5
"""Classes up to which a target is named by them."""


@dataclass(frozen=True)
class GivenRows:
    """What is known of the windows beside their samples, in the order in which they are given."""

    keys: Sequence[str]
    """(N,) key of each window's recording."""
    subjects: Sequence[str]
    onsets: NDArray[np.float64]
    """(N,) seconds from the recording's start."""
    targets: NDArray[np.float64]
    """(N,) values, or places of classes; (N, K) where a target has several values."""

    def recordings(self) -> dict[str, Recording]:
        """Return the recordings by key, in the order in which `prepare` finds them in a BIDS folder."""
        found = {key: given_recording(key, who) for key, who in zip(self.keys, self.subjects, strict=True)}
        places = {key: (f"sub-{one.subject}", one.session or "", f"{key}_eeg") for key, one in found.items()}
        return {key: found[key] for key in sorted(found, key=places.__getitem__)}

    def windows(self, plan: Plan) -> dict[str, list[Window]]:
        """Return the windows of each recording, with the evaluated crop in the middle."""
        offset = (plan.window_samples - plan.crop_samples) // 2
        found: dict[str, list[Window]] = {}
        for key, onset, value in zip(self.keys, self.onsets.tolist(), self.targets.tolist(), strict=True):
            target: Value = tuple(value) if isinstance(value, list) else value
            found.setdefault(key, []).append(Window(onset, 0, 0, target, offset))
        return found


def given_recording(key: str, subject: str) -> Recording:
    """Return the recording with a key, whose labels are read from it; there is no such file."""
    entities = entities_of(key)
    return Recording(
        path=Path(f"{key}_eeg.fif"),
        root=Path(),
        subject=subject,
        session=entities.get("ses"),
        task=entities.get("task"),
        run=entities.get("run"),
    )


@dataclass(frozen=True)
class GivenWindows:
    """Windows, all that is known of them, and the store that they make.

    Parameters
    ----------
    rows
        A row per window.
    blocks
        Arrays (n, C, T) of consecutive windows, in microvolts. Those with NaN are left out and counted.
    unit_hint
        How the right unit is said, for messages.
    group_of
        Group of each subject that has one.
    """

    asked: Settings
    plan: Plan
    labels: Labels
    rows: GivenRows
    blocks: Iterable[NDArray[np.float32]]
    ledger: Ledger
    unit_hint: str
    group_of: Mapping[str, str] | None = None

    def write(self, out: str | Path, progress: Progress) -> WindowStore:
        """Write the store, and return it. Windows of an earlier call with the same settings are replaced.

        Raises
        ------
        UserError
            The folder has other content, there is another number of windows than of rows, or samples are not of the
            scale of EEG.
        DiskFullError
            The disk is full.
        """
        folder = store_folder(out)
        recordings = self.rows.recordings()
        for key, recording in recordings.items():
            self.ledger.find(key, recording.subject)
        with claim_output(folder, self.asked, set(recordings)):
            (folder / MANIFEST).unlink(missing_ok=True)
            remove_leftovers(folder, set(recordings))
            records = self._write_shards(folder, recordings, progress)
            self._check_scales(records)
            kept = list(records.values())
            write_store(folder, self.asked, self.plan, self.labels, self.ledger, kept, self.group_of)
        store = WindowStore(folder)
        store.redone = len(kept)
        return store

    def _write_shards(
        self, folder: Path, recordings: dict[str, Recording], progress: Progress
    ) -> dict[str, ShardRecord]:
        windows = self.rows.windows(self.plan)
        shards = {key: _GivenShard(folder, each, self.plan, windows[key]) for key, each in recordings.items()}
        total, done = len(self.rows.keys), 0
        try:
            for x_NCT in self.blocks:
                keys = self.rows.keys[done : done + len(x_NCT)]
                if len(keys) < len(x_NCT):
                    raise UserError(f"X holds more windows than subject has values ({total})")
                for key, places in _by_key(keys).items():
                    shards[key].append(x_NCT[places])
                done += len(x_NCT)
                progress(done, total, keys[-1])
            if done < total:
                raise UserError(f"X holds {done} windows, subject has {total} values: both need one per window")
            return {key: shard.finish() for key, shard in shards.items()}
        finally:
            for shard in shards.values():
                shard.file.discard()

    def _check_scales(self, records: dict[str, ShardRecord]) -> None:
        """Check that samples are of the scale of EEG, and those of each recording of the scale of the others."""
        self.ledger.notes += scale_notes(records, self.plan.channels)
        check_usual_scale(records.values(), self.unit_hint, MAX_SCALE)
        problems = other_scales({key: record.scale for key, record in records.items()})
        for key, problem in problems.items():
            raise UserError(f"{key}: {problem}; give all windows in one unit, or leave these out")


def _by_key(keys: Sequence[str]) -> dict[str, list[int] | slice]:
    """Return the places of each recording's windows in a block."""
    if len(set(keys)) == 1:
        return {keys[0]: slice(None)}
    found: dict[str, list[int] | slice] = {}
    places: dict[str, list[int]] = {}
    for place, key in enumerate(keys):
        found[key] = places.setdefault(key, [])
        places[key].append(place)
    return found


class _GivenShard:
    """The windows of one recording, which may arrive with those of others in between."""

    def __init__(self, folder: Path, recording: Recording, plan: Plan, windows: list[Window]) -> None:
        self._folder, self._recording, self._plan, self._windows = folder, recording, plan, windows
        self._writer = WindowWriter(plan, len(windows), recording.key)
        self._given, self._written = 0, list[Window]()
        self.file = AppendedFile(shard_path(folder, recording.key))

    def append(self, x_NCT: NDArray[np.float32]) -> None:
        with self.file.append() as file:
            if not self._given:
                self._writer.begin(file)
            for x_CT in x_NCT:
                window = self._windows[self._given]
                self._given += 1
                if self._writer.add(file, np.ascontiguousarray(x_CT)):
                    self._written.append(window)

    def finish(self) -> ShardRecord:
        if self._written:
            self.file.finish(self._writer.finish)
        else:
            shard_path(self._folder, self._recording.key).unlink(missing_ok=True)
        content = repr((self._plan.model_dump_json(), self._written, self._writer.sha256))
        fingerprint = hashlib.sha256(content.encode()).hexdigest()
        left_out = +Counter({MISSING_SAMPLES: len(self._windows) - len(self._written)})
        return write_shard_record(
            self._folder, self._recording, self._writer, self._written, fingerprint, Losses(left_out), False
        )


def make_given_plan(asked: Settings, channels: Sequence[str], sfreq: float, samples: int, tmin: float = 0.0) -> Plan:
    """Return the plan of windows that are given, of `samples` samples.

    Raises
    ------
    UserError
        The crop is longer than a window, or shorter than a sample.
    """
    window = samples / sfreq
    crop = asked.crop or window
    crop_samples = round(crop * sfreq)
    if crop_samples > samples:
        raise UserError(f"crop {crop:g}: longer than the window ({window:g} s)")
    if crop_samples < 1:
        raise UserError(f"a window or crop is shorter than a sample at {sfreq:g} Hz")
    return Plan(
        target=asked.target,
        channels=tuple(channels),
        sources=tuple(channels),
        sfreq=sfreq,
        window=window,
        stride=window,
        tmin=tmin,
        window_samples=samples,
        crop_samples=crop_samples,
        target_is_offset=False,
        dtype=asked.dtype,
        crops="own",
    )


def check_channel_names(channels: Sequence[str], what: str = "ch_names") -> None:
    """Check that there are channels, each with a name of its own.

    Raises
    ------
    UserError
        They are not, or a name holds a line break or another control character.
    """
    if not len(channels):
        raise UserError(f"{what} is empty")
    for name in channels:
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{what}: '{name}' is no name of a channel")
        check_one_line(name.strip(), what)
    repeated = [name for name, n in Counter(channels).items() if n > 1]
    if repeated:
        raise UserError(f"{what}: '{repeated[0]}' is there twice; each channel needs a name of its own")


def given_spec(source: str, name: str | None, labels: Labels) -> str:
    """Return the specification of the target of a store from given windows.

    It is the source, and after a colon what is predicted: a name, or the classes or values if there are few.
    """
    names = labels.classes or labels.outputs
    shown = (" and " if labels.outputs else ",").join(names) if 0 < len(names) <= MAX_NAMED_CLASSES else "y"
    return f"{source}:{name or shown}"


def given_settings(spec: str, **asked: Any) -> Settings:
    """Validate the settings of a store from given windows; those of cutting are left to their defaults.

    Raises
    ------
    UserError
        One has the wrong type, or is out of range.
    """
    unset = dict.fromkeys(("sfreq", "channels", "window", "crop", "stride", "tmin"))
    settings = parse_settings(target=spec, **unset | asked)
    if settings.crop is not None and not 0 < settings.crop < math.inf:
        raise UserError(f"crop {settings.crop:g}: must be greater than 0")
    check_limits(settings)
    return settings
