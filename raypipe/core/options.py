"""Options of a sweep: the one place where they, their defaults and their checks stand."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raypipe.core.errors import UserError


class SweepOptions(BaseModel):
    """How a run is driven. The seed, the folds and the held-out subjects are fixed when it is made."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    trials: int = Field(20, ge=1)
    """Trials the run is to have in all."""
    folds: int = 5
    held_out: float | list[str] | Literal["auto"] = "auto"
    """Share of subjects, or names of subjects and releases of HBN-EEG. auto: the challenge's warm-up release R5 where
    the store holds it among others, else a fifth."""
    seed: int = Field(0, ge=0)
    workers: int | None = Field(None, ge=1)
    """Train workers a trial; its folds are dealt among them. None: as many as keep the cores busy."""
    cpus_per_worker: float = Field(1, gt=0)
    gpus_per_worker: float = Field(0, ge=0)
    concurrent: int | None = Field(None, ge=1)
    """Trials at a time. None: as many as there is room for."""
    time_budget: float | None = Field(None, gt=0)
    """Seconds the run may be driven for in all; trials in flight then end with what they have."""
    gpu_hours: float | None = Field(None, gt=0)
    """The same for hours of GPUs that its workers hold."""
    grace: int | None = Field(None, ge=1)
    """Passes over the training windows before successive halving may stop a trial. None: a ninth of the longest."""
    reduction: int = Field(3, ge=2)
    """Successive halving keeps the best 1/reduction at each rung."""
    prune: bool = True
    """Whether successive halving stops trials at all."""
    stem: Literal["auto", "fourier", "direct"] = "auto"
    """How the Conformer's stem is computed. auto: the quicker, as measured at the start and recorded."""
    stack: Literal["auto", "on", "off"] = "auto"
    """Whether a worker trains its folds as one program. auto: as measured at the start and recorded."""
    track: list[str] = ["tensorboard"]
    """Who is told of trials' curves (`raypipe.search.trackers`); none: an empty list."""
    address: str | None = None
    """A running Ray cluster; None starts Ray on this machine."""
    storage: str | None = None
    """Folder or URI that all nodes reach, for Ray's own scratch files."""


def parse_options(given: dict[str, Any]) -> SweepOptions:
    """Options, or one line on what is wrong with them."""
    try:
        options = SweepOptions.model_validate(given)
    except ValidationError as error:
        problem = error.errors()[0]
        name = "--" + "-".join(str(part) for part in problem["loc"]).replace("_", "-")
        raise UserError(f"{name}: {problem['msg']} (given {problem['input']!r})") from None
    if options.gpu_hours is not None and not options.gpus_per_worker:
        raise UserError("--gpu-hours: the sweep uses no GPU, so they would never end; say --gpus-per-worker too")
    return options
