"""The files of a store of windows, and the schema of those that are JSON.

=========================  ============================================================================
``settings.json``          the settings of `prepare`; written first, and locked while `prepare` runs
``shards/<key>.npy``       the windows of one recording (`raypipe.data.shard_file`)
``shards/<key>.json``      a hash of the shard's input files, and its rows of the table (`raypipe.data.shards`)
``windows.csv``            the table: a row per window
``manifest.json``          everything else; written last, so a store without it is unfinished
=========================  ============================================================================
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from raypipe.core.errors import UserError
from raypipe.core.metrics import METRICS, Kind, MetricName
from raypipe.core.record import FrozenModel, OtherFormatError, Record
from raypipe.data.accounting import Accounting
from raypipe.data.confounds import WithoutEeg
from raypipe.data.preprocessing import Preprocessing
from raypipe.data.target_base import TargetSpec
from raypipe.storage.regular_files import read_whole

MANIFEST = "manifest.json"
TABLE = "windows.csv"
SETTINGS = "settings.json"
SHARDS = "shards"
COLUMNS = (
    "window",
    "recording",
    "subject",
    "session",
    "task",
    "run",
    "onset",
    "target",
    "shard",
    "row",
    "offset",
    "digest",
)
OUTPUT = "target:"
"""Beginning of the columns that a table has in place of `target` where a target has several values; then the name."""
OPTIONAL_COLUMNS = ("release", "mark", "age", "group")
"""Columns that the table has only if a window has a value in them."""


class Settings(TargetSpec):
    """The arguments of `prepare` that decide, together with the recordings, what the windows are."""

    sfreq: float | None
    channels: tuple[str, ...] | None
    window: float | None
    crop: float | None
    stride: float | None
    tmin: float | None
    dtype: Literal["float16", "float32"]
    metric: str | None = None
    """None for the default of the target's kind."""
    groups: str | None = None
    """Column of participants.tsv whose equal values make a group of subjects."""
    preprocessing: Preprocessing = Preprocessing()
    max_windows: int | None = None
    """Windows of a person that are drawn at most."""
    min_windows: int | None = None
    """Windows of a person below which all are left out."""
    seed: int = 0
    """Of the draw of `max_windows`."""
    subject: str | None = None
    """Where epochs name their subject; None for recordings and arrays."""


class SettingsFile(Record):
    """The content of ``settings.json``."""

    format: Literal["raypipe-settings/4"] = "raypipe-settings/4"
    settings: Settings


class Plan(TargetSpec):
    """The settings by which recordings are cut, with every default filled in from the target and the recordings."""

    joined_on: tuple[str, ...] = ()
    """Columns that a table of labels was joined on; empty for other targets."""
    channels: tuple[str, ...]
    sources: tuple[str, ...]
    """Channels that are read: those above, and others that a reference or an interpolation needs."""
    sfreq: float
    """Sampling rate of the windows (Hz)."""
    window: float
    """Seconds, as are `stride` and `tmin`."""
    stride: float
    tmin: float
    window_samples: int
    crop_samples: int
    target_is_offset: bool
    dtype: Literal["float16", "float32"]
    crops: Literal["own", "scorer"]
    """Start of evaluated crops: `scorer`, where the challenge's scorer draws it; `own`, as `windower` places it."""
    preprocessing: Preprocessing = Preprocessing()

    @property
    def times(self) -> NDArray[np.float64]:
        """Return the times of a window's samples from its event, or else from its start (s), as MNE counts them."""
        return (round(self.tmin * self.sfreq) + np.arange(self.window_samples)) / self.sfreq


class Shard(FrozenModel):
    """The windows of one recording."""

    recording: str
    rows: int
    sha256: str
    """Hash of the samples, their shape and type (`shard_file.content_hash`); empty for no rows and hence no file."""
    fingerprint: str
    """Hash of the files and labels that the shard was made from."""

    @property
    def file(self) -> str:
        """Return the path of the ``.npy`` file in the store."""
        return f"{SHARDS}/{self.recording}.npy"


class Summary(FrozenModel):
    """Counts of what the store contains."""

    recordings: int
    """Recordings with at least one window."""
    windows: int
    subjects: int
    scale: float
    """Median over recordings and channels of a window's standard deviation (uV); 0 where it is unknown."""


class Manifest(Record):
    """Everything about a store but its windows (``manifest.json``)."""

    format: Literal["raypipe-windows/5"] = "raypipe-windows/5"
    settings: Settings
    plan: Plan
    kind: Kind
    metric: MetricName
    """Metric of a sweep that names none."""
    classes: tuple[str, ...]
    unit: Literal["uV", "1"] = "uV"
    """Of the samples; aligned windows have none."""
    shards: tuple[Shard, ...]
    table_sha256: str
    data_hash: str
    """Hash of shards and table: equal for equal windows, wherever the store is."""
    summary: Summary
    accounting: Accounting
    """What became of every recording and person found."""
    without_eeg: WithoutEeg | None = None
    """Windows by class, and what is known of the classes without EEG."""
    versions: dict[str, str]

    @model_validator(mode="after")
    def _metric_fits(self) -> Self:
        if METRICS[self.metric].kind != self.kind:
            raise ValueError(f"metric: not a metric of {self.kind}")
        return self

    @property
    def target(self) -> str:
        """Return the specification of the target."""
        return self.plan.target


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of a store.

    Raises
    ------
    UserError
        There is no such folder, it is no store, its prepare did not finish, or its manifest is damaged.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder of windows; make one with raypipe prepare")
    file = path / MANIFEST
    if not file.is_file():
        if (path / SETTINGS).is_file():
            raise UserError(f"{path}: prepare did not finish; run the same prepare command again to continue it")
        raise UserError(f"{path}: not a store of windows (no {MANIFEST}); make one with raypipe prepare")
    try:
        return Manifest.parse(read_whole(file), str(file))
    except OtherFormatError:
        raise
    except UserError as error:
        raise UserError(f"{error}; or delete the file and run prepare again") from None
