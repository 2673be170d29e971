"""The JSON records of a run and of its trials: schemas, file names and checksums."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from pydantic import Field

from raypipe.core.config import TrialConfig
from raypipe.core.errors import DamagedFileError
from raypipe.core.levels import Level
from raypipe.core.metrics import Direction, Kind, get_metric
from raypipe.core.record import FrozenModel, Record
from raypipe.storage.files import Folder, read_record, write_record

RUN_FILE, FOLDS_FILE, SPACE_FILE = "run.json", "folds.json", "space.py"
TRIAL_FILE, HISTORY_FILE, RESULT_FILE = "trial.json", "history.json", "result.json"
OOF_FILE = "oof.npz"
"""Names of files in a run's folder, and in a trial's."""
OPTIONS_FILE = "options.json"
"""Options that a run was last driven with."""
OUTER_FILE = "outer.json"
"""Present in an outer cross-validation only (`raypipe.storage.outer_run`)."""
PRETRAIN_FILE = "pretrain.json"
"""Present in a pretrained run only (`raypipe.pretraining.encoders`)."""

_OTHER_FOLDERS = {
    "manifest.json": "a store of windows, not a run",
    "settings.json": "a store of windows that prepare did not finish, not a run",
    OUTER_FILE: "an outer cross-validation (sweep --outer); its parts are runs: part-1 and so on",
    PRETRAIN_FILE: "a run of raypipe pretrain, which has no trials",
    "bundle.json": "a bundle, not a run",
}

Owned = TypeVar("Owned", bound="OwnedRecord")

State = Literal["complete", "pruned", "stopped", "failed"]


class WindowsInfo(Record):
    """The data and the versions that a run, an outer cross-validation or a pretrained run was made with."""

    created: float
    """Unix time (s)."""
    data: str
    data_hash: str
    target: str
    metric: str
    versions: dict[str, str]


class SearchInfo(WindowsInfo):
    """The same, and the search: of a run or of an outer cross-validation."""

    kind: Kind
    classes: list[str]
    seed: int
    space: str
    space_hash: str
    code: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of the users' files that the space names, by path; they are in the folder ``code``."""


class LabelsInfo(FrozenModel):
    """What the labels of a run's windows are, beside the target's text."""

    bids_task: tuple[str, ...] = ()
    events_from: str | None = None
    select: str | None = None
    """The options of `prepare` with these names."""
    joined_on: tuple[str, ...] = ()
    """Columns that a table of labels was joined on."""
    of_people: dict[str, str] = Field(default_factory=dict)
    """A hash of each person's labels, where it must agree with that of another run of the same target."""


class RunInfo(SearchInfo):
    """The data, the target, the search space and the versions that a run was made with (``run.json``)."""

    format: Literal["raypipe-run/7"] = "raypipe-run/7"
    id: str
    """Random. Every record of the run's trials has it, so that one of another run is noticed."""
    level: Level
    """What a score of the run is of: windows, or people where each has one target (`raypipe.core.levels`)."""
    direction: Direction
    labels: LabelsInfo
    outputs: list[str] = Field(default_factory=list)
    """Names of the values, where the target has several."""
    stores: dict[str, str] = Field(default_factory=dict)
    """Hashes of the stores by name, where there are several."""
    folds_hash: str
    warm: dict[str, Any] | None = None
    """Trials of other runs that the study starts with (`raypipe.search.warm_start`)."""
    init: dict[str, Any] | None = None
    """Pretrained run whose encoders are in the run's ``init`` folder: place, objective, subjects, checksums."""


class Epoch(FrozenModel):
    """One epoch of one trial over all its folds."""

    epoch: int
    passes: int
    """Forward and backward passes over the training windows so far (SAM: two per epoch). Successive halving counts
    these."""
    score: float | None
    """Ranking score of the out-of-fold predictions of this epoch (`raypipe.core.levels.ranking_score`).

    None where it is undefined."""
    fold_scores: list[float | None]
    """Score of each fold; None where it is undefined (AUC of one class)."""
    losses: list[float]
    """Mean training loss of each fold."""
    seconds: float
    """Seconds of one worker for training and prediction, summed over the folds."""
    by_fold: bool = False
    """Each fold chooses its own epoch, on subjects of its training side. The latest epoch then holds the choices."""
    over: bool = False
    """Every fold has stopped by itself (``early_stop=fold``)."""
    finished: float
    """Unix time (s) at which the epoch was scored."""
    predictions: str = ""
    """SHA-256 of the epoch's out-of-fold predictions (`epoch_file`), written before this record; empty if not kept."""


class OwnedRecord(Record):
    """A record that belongs to a run, and perhaps to one of its trials; `read_owned` checks both."""

    run: str = ""
    """`RunInfo.id`, set where the record is written."""
    number: int | None = None
    """The trial."""

    def check_owner(self, where: str, run: str, number: int | None) -> None:
        """Check whose record this is.

        Raises
        ------
        DamagedFileError
            It is that of another run or trial.
        """
        if self.number != number:
            what = f"the record of trial {self.number}, not of trial {number}"
            raise DamagedFileError(f"{where}: {what}; restore it from a copy")
        if self.run != run:
            raise DamagedFileError(f"{where}: the record of another run; restore it from a copy")


class History(OwnedRecord):
    """Epochs of a trial (``history.json``)."""

    format: Literal["raypipe-history/4"] = "raypipe-history/4"
    scored: str
    """What `Epoch.score` is of (`raypipe.core.levels.describe_level`)."""
    epochs: list[Epoch]


KEPT_TRIALS = 10
"""Best trials whose weights `raypipe tidy` keeps by default: as many as `raypipe ensemble` combines."""


class TrialResult(OwnedRecord):
    """The state and the score that a trial ended with (``result.json``)."""

    format: Literal["raypipe-result/3"] = "raypipe-result/3"
    number: int
    state: State
    score: float | None
    """Score over all folds at the best epoch; None where no epoch was finished, or the score of each is undefined."""
    best_epoch: int
    epochs: int
    seconds: float
    reason: str
    failure: str | None = None
    """Kind of failure: bad-configuration, non-finite, out-of-memory, error, lost-worker."""
    finished: float
    files: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of the trial's files, by name in its folder."""
    snapshots: list[int] = Field(default_factory=list)
    """Epochs that ended a cycle of the learning rate, whose weights and predictions are stored too."""
    initial: list[str] = Field(default_factory=list)
    """Id of the initial weights of each fold (`finetuning.initial_id`). Weights of equal ids can be averaged."""
    tidied: bool = False
    """Its weights were removed to free the disk (`raypipe.ensembles.tidy`)."""


class Ended(Protocol):
    """What trials are ranked by."""

    @property
    def number(self) -> int: ...
    @property
    def state(self) -> str: ...
    @property
    def score(self) -> float | None: ...


AnyEnded = TypeVar("AnyEnded", bound=Ended)


def best_first(trials: Iterable[AnyEnded], metric: str) -> list[AnyEnded]:
    """Return the trials that have weights (complete, or stopped by a budget), best first and then by number."""
    sign = get_metric(metric).sign
    usable = [each for each in trials if each.state in ("complete", "stopped") and each.score is not None]
    return sorted(usable, key=lambda each: (sign * (each.score or 0.0), each.number))


class TrialRecord(OwnedRecord):
    """The configuration of a trial, written before it starts (``trial.json``)."""

    format: Literal["raypipe-trial/2"] = "raypipe-trial/2"
    number: int
    started: float
    """Unix time (s) at which the trial was recorded, before it started."""
    config: TrialConfig
    rerun_of: int | None = None
    """The trial whose configuration it repeats on another seed (`raypipe.search.reruns`)."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Parameters that the study drew, by name; from these and `distributions` a lost study is rebuilt."""
    distributions: dict[str, str] = Field(default_factory=dict)
    """Optuna's distribution of each parameter, as JSON."""


class Member(NamedTuple):
    """The networks of a trial, one per fold: those of its best epoch, or of a snapshot."""

    trial: int
    epoch: int = 0
    """Epoch of the snapshot; 0 for the best epoch."""

    def __str__(self) -> str:
        return f"trial {self.trial}" + (f" at epoch {self.epoch}" if self.epoch else "")

    def file(self, name: str) -> str:
        """Return the name that a file of the trial, such as ``oof.npz``, has for this member."""
        stem, dot, kind = name.partition(".")
        return f"{stem}-epoch-{self.epoch:04d}{dot}{kind}" if self.epoch else name


def epoch_file(epoch: int) -> str:
    """Return the name of the file with a trial's out-of-fold predictions of an epoch."""
    return f"predictions/epoch-{epoch:04d}.npz"


def epoch_checksums(history: Sequence[Epoch]) -> dict[str, str]:
    """Return the checksums of the predictions of a history's epochs, by name of the file."""
    return {epoch_file(epoch.epoch): epoch.predictions for epoch in history if epoch.predictions}


def trial_file(number: int, name: str = "") -> str:
    """Return the path of a trial's file, relative to the run."""
    return f"trials/{number:04d}/{name}"


def read_owned(kind: type[Owned], folder: Folder, name: str, run: str, number: int | None = None) -> Owned:
    """Read a record of a run, or of one of its trials.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    DamagedFileError
        The file is damaged, or is that of another run or trial.
    """
    record = read_record(kind, folder, name)
    record.check_owner(f"{folder.where}/{name}", run, number)
    return record


class OptionsFile(OwnedRecord):
    """The options that a run was last driven with (``options.json``)."""

    format: Literal["raypipe-options/2"] = "raypipe-options/2"
    options: dict[str, Any]


def read_options(folder: Folder, run: str = "") -> dict[str, Any]:
    """Return the options that a run was last driven with; empty where it was never driven.

    Parameters
    ----------
    folder
        Folder of the run.
    run
        `RunInfo.id` or `PretrainInfo.id`; empty for an outer cross-validation.

    Raises
    ------
    UserError
        The record is damaged, or is that of another run.
    """
    return read_owned(OptionsFile, folder, OPTIONS_FILE, run).options if folder.exists(OPTIONS_FILE) else {}


def write_options(folder: Folder, options: dict[str, Any], run: str = "") -> None:
    """Record the options that a run is driven with; `run` as for `read_options`."""
    write_record(folder, OPTIONS_FILE, OptionsFile(run=run, options=options))


def describe_other_folder(folder: Folder) -> str | None:
    """Return what raypipe folder this is, in words; None for a run of a sweep and for unknown content."""
    return next((words for name, words in _OTHER_FOLDERS.items() if folder.exists(name)), None)


def best_epoch(history: Sequence[Epoch], direction: Direction) -> Epoch | None:
    """Return the epoch with the best score over all folds; of equal scores, the first. Undefined scores come last.

    Return the latest epoch where folds choose their own epochs, and None for an empty history.
    """
    if not history:
        return None
    if history[-1].by_fold:
        return history[-1]
    sign = 1.0 if direction == "minimize" else -1.0
    return min(history, key=lambda epoch: math.inf if epoch.score is None else sign * epoch.score)


def digest(data: bytes) -> str:
    """Return the SHA-256 of a file's content in hex digits."""
    return hashlib.sha256(data).hexdigest()
