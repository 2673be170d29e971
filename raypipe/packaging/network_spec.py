"""Schema of the networks in a bundle or a submission, with limits: the file may come from somebody else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from raypipe.core.model_config import ModelConfig, OwnConfig
from raypipe.core.record import FrozenModel, describe_problem, first_problem
from raypipe.ensembles.rules import CalibrationMap, Finite, check_rule, require_shares
from raypipe.models.from_config import check_sizes
from raypipe.models.program import check_program

MAX_SFREQ = 20_000.0
"""Hz."""
MAX_CHANNELS = 4096
MAX_WINDOW_VALUES = 2**22
"""Values of a window: channels times samples."""
MAX_OUTPUTS = 1000
MAX_NETWORKS = 10_000
MAX_LAYERS = 10_000
"""Blocks of all distinct networks. Each takes a fraction of a millisecond to build."""
MAX_TABLE_BYTES = 2**29
"""Memory of the tables that stems of all networks compute from the window's length."""

Kind = Literal["regression", "classification"]


Positive = Annotated[float, Field(gt=0.0, le=1e30)]


class TensorKind(FrozenModel):
    """Shape and type of a weight or a constant of a program."""

    shape: Annotated[list[Annotated[int, Field(ge=0, le=2**31)]], Field(max_length=16)]
    dtype: str
    parameter: bool


class Program(FrozenModel):
    """A network of a user's as a list of torch's operators (`raypipe.models.program`)."""

    tensors: dict[str, TensorKind]
    nodes: list[tuple[str, list[Any], dict[str, Any]]]
    output: int


class NetworkMember(FrozenModel):
    """One fold model of a trial, or of a snapshot."""

    trial: int = Field(ge=0)
    epoch: int = Field(default=0, ge=0)
    """Epoch of the snapshot; 0 for the trial's best epoch."""
    fold: int = Field(ge=0)
    weight: float = Field(ge=0.0, le=1.0)
    """Its share of the ensemble; the shares sum to one."""
    centre: Finite | list[Finite]
    """Added to the scaled output, in target units; of several values, one for each."""
    scale: Positive | list[Positive]
    """Target units per unit of output; of several values, one for each."""
    model: ModelConfig
    program: str | None = None
    """Its program, if it is a network of a user's; None for one that is built from its source."""

    @property
    def name(self) -> tuple[int, int]:
        """Return trial and epoch."""
        return self.trial, self.epoch


class NetworkSpec(FrozenModel):
    """Describe networks as `raypipe.models.ensemble.EnsembleModule` takes them.

    A file that fits this schema can be built and run: its sizes are within limits, its weights sum to one, and its rule
    fits its members.
    """

    kind: Kind
    n_channels: int = Field(ge=1, le=MAX_CHANNELS)
    n_times: int = Field(ge=1, le=MAX_WINDOW_VALUES)
    """Samples of a window that the networks see."""
    n_outputs: int = Field(ge=1, le=MAX_OUTPUTS)
    sfreq: float = Field(gt=0.0, le=MAX_SFREQ)
    """Hz."""
    stored: Literal["float16", "float32"] = "float32"
    """Type of the windows that the networks were trained on."""
    members: Annotated[list[NetworkMember], Field(min_length=1, max_length=MAX_NETWORKS)]
    rule: dict[str, Any] | None = None
    """Combines the members (`raypipe.models.combine`); None for their weighted mean."""
    calibration: CalibrationMap | None = None
    """Of class probabilities."""
    programs: dict[str, Program] = Field(default_factory=dict)
    """By the names that members have."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.kind == "classification" and self.n_outputs < 2:
            raise ValueError("classification with one output: classes have one each")
        for each in (number for member in self.members for number in (member.centre, member.scale)):
            if isinstance(each, list) and (self.kind == "classification" or len(each) != self.n_outputs):
                raise ValueError(
                    f"members: {len(each)} centres or scales for {self.kind} with {self.n_outputs} outputs"
                )
        if self.n_channels * self.n_times > MAX_WINDOW_VALUES:
            raise ValueError(
                f"windows of {self.n_channels} x {self.n_times} values; at most {MAX_WINDOW_VALUES:,} are read"
            )
        require_shares([member.weight for member in self.members], "members")
        self._check_networks()
        if self.rule is not None:
            self._check_rule(self.rule)
        if self.calibration is not None and (
            self.kind == "regression" or len(self.calibration.shift) != self.n_outputs
        ):
            raise ValueError(f"calibration: {len(self.calibration.shift)} shifts for {self.n_outputs} outputs")
        return self

    def _check_networks(self) -> None:
        models = [member.model for member in self.members]
        distinct = list(dict.fromkeys(models))
        layers = sum(model.n_blocks + 1 for model in distinct)
        if layers > MAX_LAYERS:
            raise ValueError(f"members: {layers:,} blocks; at most {MAX_LAYERS:,} are read")
        if any(model.for_regression_only and self.n_outputs > 1 for model in distinct):
            raise ValueError("members: model/bins and model/variance are for regressions of one value")
        for program in self.programs.values():
            shape = {"n_channels": self.n_channels, "n_times": self.n_times, "n_outputs": self.n_outputs}
            check_program(program.model_dump(), **shape)
        if any(m.program is not None and m.program not in self.programs for m in self.members):
            raise ValueError("members: one has no program")
        if any((m.program is not None) > isinstance(m.model, OwnConfig) for m in self.members):
            raise ValueError("members: a program is for a network of a user's")
        table_bytes = {
            model: check_sizes(
                model, n_channels=self.n_channels, n_times=self.n_times, n_outputs=self.n_outputs, sfreq=self.sfreq
            )
            for model in distinct
        }
        total = sum(table_bytes[model] for model in models)
        if total > MAX_TABLE_BYTES:
            raise ValueError(f"members: their stems take {total / 2**20:,.0f} MB for windows of {self.n_times} samples")

    def _check_rule(self, rule: dict[str, Any]) -> None:
        n_folds = _count_folds(self.members)
        first = self.members[::n_folds]
        check_rule(
            rule,
            n_members=len(first),
            n_outputs=self.n_outputs,
            n_variances=sum(bool(member.model.uncertainty) for member in first) if self.n_outputs == 1 else 0,
            classification=self.kind == "classification",
        )


class CombinedSpec(NetworkSpec):
    """Networks that take windows of different stores, and what combines them. Sizes are checked for each store."""

    def _check_networks(self) -> None:
        """Check nothing: the networks of each store are described by a `NetworkSpec`."""


def _count_folds(members: Sequence[NetworkMember]) -> int:
    """Return the number of folds, after a check that members are in order of trial, then of fold."""
    n_folds = len({member.fold for member in members})
    for place, member in enumerate(members):
        same = members[place - place % n_folds]
        if member.name != same.name or member.fold != members[place % n_folds].fold:
            raise ValueError("members: with a rule, they are in order of trial, and each trial has the same folds")
    return n_folds


def make_spec(fields: Mapping[str, Any], kind: type[NetworkSpec] = NetworkSpec) -> NetworkSpec:
    """Validate the description of networks as a `NetworkSpec`, or as the `CombinedSpec` of several stores.

    Raises
    ------
    ValueError
        Says in one line what is outside the limits, or does not fit.
    """
    try:
        return kind.model_validate(dict(fields))
    except ValidationError as error:
        raise ValueError(describe_problem(first_problem(error))) from None
