"""Options of sweeps and pretraining. Flags, their help, docstrings of the API and tables in docs/ come from here."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from raypipe.core.addresses import check_cluster_address
from raypipe.core.errors import UserError, nearest
from raypipe.core.record import FrozenModel

Options = TypeVar("Options", bound=BaseModel)
Function = TypeVar("Function", bound=Callable[..., Any])

StemOption = Literal["auto", "fourier", "direct"]
"""Values of ``--stem``."""
StackOption = Literal["auto", "on", "off"]
"""Values of ``--stack``."""

MAX_SEED = 2**32 - 2
"""The seed and its successor split subjects, with a generator that takes 32 bits."""

SECONDS_PER_UNIT = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(given: object) -> object:
    """Convert ``90s``, ``30m``, ``2h`` or ``1.5d`` to seconds. A value that is no text is returned unchanged."""
    if not isinstance(given, str):
        return given
    unit = SECONDS_PER_UNIT.get(given[-1:])
    try:
        seconds = float(given[:-1] if unit else given) * (unit or 1)
    except ValueError:
        raise ValueError("must be a time such as 90s, 30m or 2h") from None
    if not seconds > 0:
        raise ValueError("must be longer than 0 s")
    return seconds


def parse_held_out(given: object) -> object:
    """Convert ``0.2`` to a number, and ``NDAR1,R5`` to a list. ``auto`` and a value that is no text are unchanged."""
    if not isinstance(given, str) or given == "auto":
        return given
    try:
        return float(given)
    except ValueError:
        return [name.strip() for name in given.split(",") if name.strip()]


@dataclass(frozen=True)
class Flag:
    """Presentation of an option on the command line and in documents."""

    group: str
    """Heading under which it is listed."""
    unset: str | None = None
    """Meaning of its default where that is None or ``auto``."""
    metavar: str | None = None
    envvar: str | None = None


SIZE, LIMITS, RESOURCES, STOPPING, SPEED = "Trials and folds", "Limits", "Resources", "Early stopping", "Computation"
FOLDS, PROBES = "Folds", "Probes"
"""Headings of options."""

_DEFAULT_HELD_OUT = "release R5 if the store has it among others, otherwise 0.2"


class SweepOptions(FrozenModel):
    """Options of a sweep. Its seed, metric, folds, repeats and held-out subjects are fixed when the run is created."""

    model_config = ConfigDict(allow_inf_nan=False)

    trials: Annotated[int, Flag(SIZE)] = Field(20, ge=1)
    """Trials of the run in all. A larger number extends a finished run."""
    folds: Annotated[int, Flag(SIZE)] = 5
    """Subject folds."""
    repeats: Annotated[int, Flag(SIZE)] = Field(1, ge=1)
    """Times that the subjects which are not held out are distributed over the folds, each time from another seed. A
    trial trains a network for each fold of each repeat."""
    held_out: Annotated[
        float | list[str] | Literal["auto"],
        BeforeValidator(parse_held_out),
        Flag(SIZE, _DEFAULT_HELD_OUT, metavar="SHARE|NAMES"),
    ] = "auto"
    """Subjects that no trial, weight or choice sees: a share of all, which is rounded to 1/2, 1/3, 1/4 and so on, or
    names of subjects and of HBN-EEG releases, separated by commas. A name of both is the subject's."""
    seed: Annotated[int, Flag(SIZE)] = Field(0, ge=0, le=MAX_SEED)
    """Seed of the fold map and of the sampler."""
    metric: Annotated[str | None, Flag(SIZE, "that of the windows")] = None
    """Metric that trials are ranked, stopped and reported by. Classes: auc, balanced-accuracy, accuracy, f1, kappa,
    log-loss, brier. Values: nrmse, rmse, mae, r2, pearson. Or a function of your own: file.py:name."""
    time_budget: Annotated[float | None, BeforeValidator(parse_duration), Flag(LIMITS, "no limit", metavar="TIME")] = (
        Field(None, gt=0)
    )
    """Time that the run may take in all, such as 90s, 30m or 2h; a number is seconds. Trials that are running then
    end with the epochs they have."""
    gpu_hours: Annotated[float | None, Flag(LIMITS, "no limit")] = Field(None, gt=0)
    """GPU-hours that the run may hold in all. Trials that are running then end with the epochs they have."""
    workers: Annotated[int | None, Flag(RESOURCES, "as many as the cores allow")] = Field(None, ge=1)
    """Train workers per trial. Its folds are distributed over them."""
    cpus_per_worker: Annotated[float, Flag(RESOURCES)] = Field(1, gt=0)
    """CPU cores per worker."""
    gpus_per_worker: Annotated[float, Flag(RESOURCES)] = Field(0, ge=0, le=1)
    """Share of a GPU per worker, at most 1. A GPU has as many workers as have their whole share there: three of 0.3,
    one of 0.6."""
    concurrent: Annotated[int | None, Flag(RESOURCES, "as many as fit")] = Field(None, ge=1)
    """Trials that run at the same time."""
    address: Annotated[str | None, Flag(RESOURCES, "start Ray on this machine", envvar="RAY_ADDRESS")] = None
    """Address of a running Ray cluster."""
    storage: Annotated[str | None, Flag(RESOURCES, "a temporary folder on the driver's machine")] = None
    """Folder or URI that all nodes reach, for Ray's scratch files."""
    prune: Annotated[bool, Flag(STOPPING)] = True
    """Stop unpromising trials early, by successive halving."""
    grace: Annotated[int | None, Flag(STOPPING, "passes of the longest trial / reduction²")] = Field(None, ge=1)
    """Passes over the training windows before a trial may be stopped early."""
    reduction: Annotated[int, Flag(STOPPING)] = Field(3, ge=2)
    """Successive halving keeps the best 1/reduction of the trials at each rung."""
    stem: Annotated[StemOption, Flag(SPEED, "the faster one, measured at the start")] = "auto"
    """Algorithm of the stem of `conformer` and `shallow`."""
    stack: Annotated[StackOption, Flag(SPEED, "the faster one, measured at the start")] = "auto"
    """Train a worker's folds as one stacked program."""
    track: Annotated[list[str], Flag("Tracking")] = Field(["tensorboard"])
    """Where curves are logged: tensorboard, mlflow, wandb, or none. Several may be given."""


FIXED = ("folds", "repeats", "held_out", "seed", "metric")
"""Options of a sweep that a run keeps for good."""


class PretrainOptions(FrozenModel):
    """Options of pretraining. The seed, the folds and the held-out subjects are fixed when the run is created."""

    model_config = ConfigDict(allow_inf_nan=False)

    folds: Annotated[int, Flag(FOLDS)] = 5
    """Subject folds, as in the sweep that the encoder is for."""
    held_out: Annotated[
        float | list[str] | Literal["auto"],
        BeforeValidator(parse_held_out),
        Flag(FOLDS, _DEFAULT_HELD_OUT, metavar="SHARE|NAMES"),
    ] = "auto"
    """Subjects that the encoder does not see, as in the sweep that it is for."""
    seed: Annotated[int, Flag(FOLDS)] = Field(0, ge=0, le=MAX_SEED)
    """Seed of the fold map, as in the sweep, and of training."""
    serves: Annotated[str | Path | None, Flag(FOLDS, "make one", metavar="RUN")] = None
    """Run whose fold map is used instead, so that its held-out subjects are not seen."""
    fold_wise: Annotated[bool, Flag(FOLDS)] = False
    """Train one encoder per fold, without the fold's subjects."""
    probe_every: Annotated[int, Flag(PROBES)] = Field(5, ge=0)
    """Epochs between linear probes; 0 for none."""
    tuned_probe: Annotated[int, Flag(PROBES)] = Field(0, ge=0)
    """Epochs of a second probe after every linear one, which trains a copy of the encoder for each fold on the targets
    of the fold's training subjects; 0 for none. It costs as much as a trial of that many epochs."""
    micro_batch: Annotated[int | None, Flag(RESOURCES, "all of its batch")] = Field(None, ge=1)
    """Windows whose activations a worker holds at a time."""
    workers: Annotated[int, Flag(RESOURCES)] = Field(1, ge=1)
    """Workers that share a batch. More than one run on Ray; they may change from one call to the next."""
    cpus_per_worker: Annotated[float, Flag(RESOURCES)] = Field(1, gt=0)
    """CPU cores per worker."""
    gpus_per_worker: Annotated[float, Flag(RESOURCES)] = Field(0, ge=0, le=1)
    """Share of a GPU per worker, at most 1. Several workers need 1 each."""
    address: Annotated[str | None, Flag(RESOURCES, "this process, or a Ray started on this machine")] = None
    """Address of a running Ray cluster."""


def flag_of(options: type[BaseModel], name: str) -> Flag:
    """Return how an option is presented."""
    return next(each for each in options.model_fields[name].metadata if isinstance(each, Flag))


def help_of(options: type[BaseModel], name: str) -> str:
    """Return an option's description in one line."""
    return " ".join((options.model_fields[name].description or "").split())


def default_of(options: type[BaseModel], name: str) -> str:
    """Return an option's default in words."""
    flag, default = flag_of(options, name), options.model_fields[name].default
    if default is None:
        return str(flag.unset)
    shown = ", ".join(default) if isinstance(default, list) else str(default)
    return f"{shown}: {flag.unset}" if flag.unset else shown


def document_options(
    options: type[BaseModel], *, unchanged: Collection[str] | None = None
) -> Callable[[Function], Function]:
    """List options in a function's signature and, in place of ``{options}``, in its docstring.

    Parameters
    ----------
    options
        Model of the options.
    unchanged
        Options that cannot be changed and are left out; the others have the default None, which keeps that of the run.
        None: all options, with their own defaults.
    """
    fields = {name: field for name, field in options.model_fields.items() if name not in (unchanged or ())}
    kept = unchanged is not None
    described = {
        name: f"{help_of(options, name)} Default: {'that of the run' if kept else default_of(options, name)}."
        for name in fields
    }
    text = "\n".join(
        f"{name}\n{textwrap.indent(textwrap.fill(each, 112), ' ' * 4)}" for name, each in described.items()
    )
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None if kept else field.default,
            annotation=field.annotation | None if kept and field.annotation else field.annotation,
        )
        for name, field in fields.items()
    ]

    def document(function: Function) -> Function:
        # Python indents docstrings as the source does up to 3.12, and not from 3.13 on.
        function.__doc__ = inspect.cleandoc(function.__doc__ or "").replace("{options}", text)
        signature = inspect.signature(function)
        own = [param for param in signature.parameters.values() if param.kind is not param.VAR_KEYWORD]
        function.__signature__ = signature.replace(parameters=[*own, *parameters])  # type: ignore[attr-defined]
        return function

    return document


def parse_options(given: dict[str, Any]) -> SweepOptions:
    """Validate options of a sweep.

    Raises
    ------
    UserError
        Names an unknown option with the nearest right name, the value that is out of range, or what is no address.
    """
    options = _validate(SweepOptions, given, "a sweep")
    check_cluster_address(options.address)
    if options.gpu_hours is not None and not options.gpus_per_worker:
        raise UserError("--gpu-hours: the sweep uses no GPU, so they never run out; give --gpus-per-worker too")
    return options


def parse_pretrain_options(given: dict[str, Any]) -> PretrainOptions:
    """Validate options of pretraining.

    Raises
    ------
    UserError
        Names an unknown option with the nearest right name, the value that is out of range, what is no address, or
        workers that would share a GPU.
    """
    options = _validate(PretrainOptions, given, "pretraining")
    check_cluster_address(options.address)
    if options.workers > 1 and 0 < options.gpus_per_worker < 1:
        raise UserError(
            f"--gpus-per-worker {options.gpus_per_worker:g}: NCCL does not let {options.workers} workers of one "
            "pretraining share a GPU; use 1 for each, or --workers 1"
        )
    return options


def _validate(kind: type[Options], given: dict[str, Any], work: str) -> Options:
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0])
        if problem["type"] == "extra_forbidden":
            raise UserError(f"{name}: no such option of {work}; {nearest(name, kind.model_fields)}") from None
        message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        message = message.partition(", unable")[0]
        raise UserError(f"--{name.replace('_', '-')} {problem['input']}: {message}") from None
