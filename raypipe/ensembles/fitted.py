"""A fitted ensemble (members, combination and scores), and its files in the run."""

from __future__ import annotations

import io
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from raypipe.core.errors import UserError
from raypipe.core.record import FrozenModel
from raypipe.core.versions import package_versions
from raypipe.ensembles.baselines import Baseline
from raypipe.ensembles.calibration import Calibration
from raypipe.ensembles.family_record import Family
from raypipe.ensembles.held_out_record import HeldOut
from raypipe.ensembles.members import MergedNetworks, MergedRecord
from raypipe.ensembles.oof import Floats
from raypipe.ensembles.output_scores import OutputScores
from raypipe.ensembles.people import People
from raypipe.ensembles.reliability import Reliability
from raypipe.ensembles.rules import MAX_MEMBERS, CalibrationRecord, check_rule_fields, require_shares
from raypipe.ensembles.scores import is_by_subject
from raypipe.models.combine import Rule
from raypipe.storage.files import write_record
from raypipe.storage.records import Member, OwnedRecord, digest, read_owned
from raypipe.storage.run_store import RunStore

if TYPE_CHECKING:
    from rich.console import Group

COLUMNS = ("oof", "held_out", "low", "high", "difference", "subjects", "windows", "units", "smallest_chance")
"""Columns that every score table has."""
_COUNTS = ("subjects", "windows", "units")
"""Columns that are whole numbers."""
RECORD, ARRAYS, TABLE = "ensemble/ensemble.json", "ensemble/held_out.npz", "ensemble/table.csv"


class Diversity(FrozenModel):
    """How much members differ; see `Ensemble.diversity`."""

    members: list[str]
    correlations: list[list[float]]
    curve: dict[str, list[Annotated[list[float | None], Field(min_length=3, max_length=3)]]]

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        n = len(self.members)
        if len(self.correlations) != n or any(len(row) != n for row in self.correlations):
            raise ValueError(f"correlations: not those of {n} members")
        if any(len(scores) != n for scores in self.curve.values()):
            raise ValueError(f"curve: not one score for each number of members up to {n}")
        return self


class EnsembleRecord(OwnedRecord):
    """An ensemble as JSON (``ensemble/ensemble.json``)."""

    format: Literal["raypipe-ensemble/11"] = "raypipe-ensemble/11"
    created: float
    """Unix time."""
    method: str
    trials: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=MAX_MEMBERS)]
    epochs: list[Annotated[int, Field(ge=0)]]
    """Epoch of each member that is a snapshot; 0 for the trial's best epoch."""
    weights: list[Annotated[float, Field(ge=0.0, le=1.0)]]
    """Share of each member; they sum to one."""
    table: Annotated[dict[str, dict[str, Annotated[int, Field(ge=0, lt=2**53)] | float | None]], Field(min_length=1)]
    baselines: list[Baseline]
    """Rows of the table that are classical baselines."""
    verdict: str
    notes: list[str]
    held_out_evaluations: int
    """Number of times that a held-out subject was scored by runs on the store (`raypipe.ensembles.evaluation_log`)."""
    rule: dict[str, Any] | None
    diversity: Diversity
    families: Annotated[list[Family], Field(max_length=MAX_MEMBERS)]
    top: Annotated[int, Field(ge=1)]
    """Trials that were candidates, beside the best one of each other family."""
    left_out: dict[str, str]
    """Methods that could not be used, and why."""
    data_hash: str
    versions: dict[str, str]
    soup: MergedRecord | None
    calibration: CalibrationRecord | None
    reliability: Reliability | None
    people: People | None
    outputs: list[OutputScores] = Field(default_factory=list)
    """Of each value of a target with several."""
    files: dict[str, str]
    """SHA-256 of the arrays and of the table, by file."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        n = len(self.trials)
        if len(self.epochs) != n or len(self.weights) != n:
            raise ValueError(
                f"{n} trials, {len(self.epochs)} epochs and {len(self.weights)} weights; one each is needed"
            )
        if len(set(self.members)) < n:
            raise ValueError("trials: a member is there twice")
        require_shares(self.weights, "members")
        if self.rule is not None:
            check_rule_fields(self.rule, n)
        for name, row in self.table.items():
            if missing := [column for column in COLUMNS if column not in row]:
                raise ValueError(f"table/{name}: has no column '{missing[0]}'")
            if not all(isinstance(row[column], int) for column in _COUNTS):
                raise ValueError(f"table/{name}: {', '.join(_COUNTS)} must be whole numbers")
        if unknown := [one.name for one in self.baselines if one.name not in self.table]:
            raise ValueError(f"baselines: '{unknown[0]}' is no row of the table")
        if self.soup is not None and len(self.soup.trials) != len(self.soup.epochs):
            raise ValueError("soup: its lists have different lengths")
        return self

    @property
    def members(self) -> list[Member]:
        """Trials and snapshots."""
        return [Member(*pair) for pair in zip(self.trials, self.epochs, strict=True)]


@dataclass(frozen=True, repr=False)
class Ensemble:
    """Members and how they are combined: a weighted mean, or a rule (`raypipe.models.combine`) applied fold by fold."""

    run: RunStore
    method: str
    members: list[Member]
    """Trials, and snapshots of them, best out-of-fold score first."""
    weights: Floats
    """(M,) not negative, with sum one; approximate for a rule that has other weights."""
    rule: Rule | None
    """Combines the members; None for the weighted mean."""
    merged: MergedNetworks | None
    """Networks that replace those of the members: a soup, or a distilled network."""
    calibration: Calibration | None
    """Of class probabilities, with the weights that decide between classes; None for a regression."""
    reliability: Reliability | None
    """Of nested predictions; None where there are none, as of a soup."""
    people: People | None
    """How mean predictions of people are read; None where the target is not the person's."""
    table: pd.DataFrame
    """See `scores.score_table`."""
    baselines: list[Baseline]
    """Rows of the table that are classical baselines."""
    outputs: list[OutputScores]
    """Scores of each value of a target with several; the table has means over them."""
    verdict: str
    """Two or three sentences on the scores."""
    notes: list[str]
    """Notes on how to read the table."""
    held_out: HeldOut
    held_out_evaluations: int
    """Number of times that this run was scored on its held-out subjects, this one included."""
    diversity: dict[str, Any]
    """`members` (names), `correlations` of their errors, and `curve`: nested score and the ends of its 95 % interval
    by number of members."""
    families: list[Family]
    """What each family of models brings; empty where all trials are of one."""
    top: int
    """Trials that were candidates, beside the best one of each other family."""
    excluded: dict[str, str]
    """Methods that could not be used, and why."""

    @property
    def trials(self) -> list[int]:
        """Numbers of the trials of all members, and of those that merged networks come from, each once."""
        others = self.merged.members if self.merged else []
        return list(dict.fromkeys(member.trial for member in [*self.members, *others]))

    @property
    def decision_weights(self) -> list[float] | None:
        """Return the weight of each class (`raypipe.ensembles.decisions`); None for a regression."""
        return None if self.calibration is None else list(self.calibration.decision_weights)

    @property
    def threshold(self) -> float | None:
        """Return the probability above which the second of two classes is predicted; None for other tasks."""
        weights = self.decision_weights
        return weights[0] if weights is not None and len(weights) == 2 else None

    @property
    def by_subject(self) -> bool:
        """Return whether the primary level of the scores is the subjects', because each has one target."""
        return is_by_subject(self.table)

    @property
    def distilled(self) -> bool:
        """Return whether a single network is shipped, trained to predict what the ensemble predicts."""
        return self.merged is not None and self.merged.distilled

    def save(self) -> None:
        """Write the ensemble to its run: arrays, table and merged networks, then the record."""
        buffer = io.BytesIO()
        np.savez(buffer, **vars(self.held_out))
        files = {ARRAYS: buffer.getvalue(), TABLE: self.table.to_csv().encode()}
        for name, data in files.items():
            self.run.folder.write(name, data)
        merged = self.merged.save(self.run) if self.merged else None
        record = EnsembleRecord(
            run=self.run.run_id,
            files={name: digest(data) for name, data in files.items()},
            created=time.time(),
            method=self.method,
            trials=[member.trial for member in self.members],
            epochs=[member.epoch for member in self.members],
            weights=self.weights.tolist(),
            table=self.table_record(),
            baselines=self.baselines,
            verdict=self.verdict,
            notes=self.notes,
            held_out_evaluations=self.held_out_evaluations,
            rule=None if self.rule is None else dict(self.rule),
            diversity=Diversity.model_validate(without_nan(self.diversity)),
            families=self.families,
            top=self.top,
            left_out=self.excluded,
            data_hash=self.run.info.data_hash,
            versions=package_versions(),
            soup=merged,
            calibration=None if self.calibration is None else CalibrationRecord(**vars(self.calibration)),
            reliability=self.reliability,
            people=self.people,
            outputs=self.outputs,
        )
        write_record(self.run.folder, RECORD, record)

    def table_record(self) -> dict[str, dict[str, int | float | None]]:
        """Return the score table by row and column, with None for undefined scores."""
        table = self.table.astype(object).where(self.table.notna(), None)
        rows = table.to_dict("index").items()
        return {str(name): {str(column): value for column, value in row.items()} for name, row in rows}

    @staticmethod
    def exists(run: RunStore) -> bool:
        """Return whether the run has a saved ensemble."""
        return run.folder.exists(RECORD)

    @classmethod
    def load(cls, run: RunStore) -> Ensemble:
        """Read the ensemble that `save` wrote.

        Raises
        ------
        UserError
            The run has none, or it is damaged.
        """
        record = read_ensemble_record(run)
        if record is None:
            raise UserError(f"{run.where}: no ensemble yet; fit one with: raypipe ensemble RUN")
        try:
            arrays, counts = _read_checked(run, record, ARRAYS), (len(record.trials), len(record.baselines))
            held_out = HeldOut.from_npz(arrays, n_members=counts[0], n_baselines=counts[1])
            merged = MergedNetworks.load(run, record.soup) if record.soup else None
        except (ValueError, OSError) as error:
            raise UserError(
                f"{run.where}/{ARRAYS}: damaged ({error}); fit the ensemble again with: raypipe ensemble RUN"
            ) from None
        _read_checked(run, record, TABLE)  # users open it; the record has the same table
        table = pd.DataFrame.from_dict(record.table, orient="index").astype(float).rename_axis("predictor")
        return cls(
            run=run,
            method=record.method,
            members=record.members,
            weights=np.array(record.weights, dtype=np.float64),
            rule=record.rule,
            merged=merged,
            calibration=None if record.calibration is None else Calibration(**dict(record.calibration)),
            reliability=record.reliability,
            people=record.people,
            outputs=record.outputs,
            table=table.astype(dict.fromkeys(_COUNTS, int)),
            baselines=record.baselines,
            verdict=record.verdict,
            notes=record.notes,
            held_out=held_out,
            held_out_evaluations=record.held_out_evaluations,
            diversity=record.diversity.model_dump(),
            families=record.families,
            top=record.top,
            excluded=record.left_out,
        )

    def __repr__(self) -> str:
        """Return the run, the method and the verdict."""
        return f"Ensemble({self.run.where!r}, method {self.method!r}): {self.verdict}"

    def _repr_html_(self) -> str:
        from raypipe.ensembles.notebook import ensemble_html

        return ensemble_html(self)

    def render(self) -> Group:
        """Return verdict, score table, members and notes for a terminal of 80 columns."""
        from raypipe.ensembles.terminal import render

        return render(self)


def read_ensemble_record(run: RunStore) -> EnsembleRecord | None:
    """Read the record of a run's ensemble without its arrays; None if the run has no ensemble.

    Raises
    ------
    UserError
        The record is damaged, or has another format.
    """
    return read_owned(EnsembleRecord, run.folder, RECORD, run.run_id) if run.folder.exists(RECORD) else None


def _read_checked(run: RunStore, record: EnsembleRecord, name: str) -> bytes:
    """Return the content of a file of the ensemble.

    Raises
    ------
    UserError
        It is missing or damaged.
    """
    try:
        data = run.folder.read(name)
        problem = "" if digest(data) == record.files.get(name) else "damaged (its checksum differs)"
    except FileNotFoundError:
        problem = "missing"
    if problem:
        raise UserError(f"{run.where}/{name}: {problem}; fit the ensemble again with: raypipe ensemble RUN")
    return data


def without_nan(value: Any) -> Any:
    """Return nested lists and dicts with None in place of NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {name: without_nan(part) for name, part in value.items()}
    if isinstance(value, list):
        return [without_nan(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value
