"""Verbs that search and train: plan, sweep, resume, rerun, pretrain."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from raypipe.cli.common import (
    DataOption,
    RunArg,
    StoresOption,
    app,
    console,
    example,
    is_outer,
    is_pretrained,
    print_advice,
    print_asked,
    print_outer,
    print_pretrained,
    print_status,
    summary_line,
    write,
)
from raypipe.cli.flags import option_flags
from raypipe.cli.process import training_process
from raypipe.core.errors import UserError
from raypipe.core.options import PretrainOptions, SweepOptions
from raypipe.search.notify import NOTIFY_VARIABLE, Notifier
from raypipe.trial.callback import CallbackList

PANEL = "Search and training"
"""Heading of these verbs in `raypipe --help`."""
OBJECTIVE = "Objective and training"
"""Heading of pretraining's own flags."""

SpaceArg = Annotated[
    Path, typer.Argument(metavar="SPACE", help="Search space: a name that raypipe spaces lists, or a Python file.")
]
OuterOption = Annotated[
    int | None,
    typer.Option(
        metavar="K",
        help="Nested cross-validation: K searches, each of which holds out another part of the subjects.",
        show_default="one search",
    ),
]
NotifyOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="URL",
        help="Send a message there when the run ends, fails, is stopped or needs someone (apprise). May be given "
        "several times. Every user of this machine can read a command line: set the variable where a URL holds a "
        "password.",
        envvar=NOTIFY_VARIABLE,
        show_default="no message",
    ),
]
NewRun = Annotated[str, typer.Option(help="Folder or pyarrow.fs URI of the run. An existing run is continued.")]


@app.command(
    rich_help_panel=PANEL,
    epilog=example("raypipe plan all_families --data demo/store --trials 200 --cpus 64"),
)
@option_flags(
    SweepOptions,
    "trials",
    "folds",
    "repeats",
    "workers",
    "cpus_per_worker",
    "gpus_per_worker",
    "concurrent",
    "address",
)
def plan(
    space: SpaceArg,
    data: StoresOption,
    cpus: Annotated[
        float | None,
        typer.Option(
            help="CPU cores of the sweep, as of one machine.", show_default="the cluster's, or this machine's"
        ),
    ] = None,
    gpus: Annotated[
        float | None, typer.Option(help="GPUs of the sweep, as of one machine.", show_default="the cluster's, or 0")
    ] = None,
    outer: OuterOption = None,
    **options: Any,
) -> None:
    """Estimate a sweep's time, memory and disk from a few training steps."""
    from raypipe.cli.console import ProgressCounter
    from raypipe.search.forecast import forecast

    with training_process(), ProgressCounter(console, "planning") as counter:
        found = forecast(space, data, cpus=cpus, gpus=gpus, outer=outer, progress=counter, callback=counter, **options)
    console.print(found.render(), highlight=False, soft_wrap=True)


@app.command(
    rich_help_panel=PANEL,
    epilog=example("raypipe sweep all_families --data demo/store --run demo/run --trials 40"),
)
@option_flags(SweepOptions, *SweepOptions.model_fields)
def sweep(
    space: SpaceArg,
    data: StoresOption,
    run: NewRun,
    warm_start: Annotated[
        str | None, typer.Option(metavar="RUN", help="Start the sampler of a new run from this run's trials.")
    ] = None,
    init: Annotated[
        str | None, typer.Option(metavar="RUN", help="Start training from this pretrained run or exported encoder.")
    ] = None,
    outer: OuterOption = None,
    notify: NotifyOption = None,
    **options: Any,
) -> None:
    """Search a space over subject folds.

    Starts, resumes or extends a run: the same command resumes it after a crash, a larger --trials extends it.
    """
    from raypipe.cli.progress import SweepView
    from raypipe.search.sweep import sweep as search

    notifier = _notifier(notify, run)
    if outer is not None:
        _sweep_outer(space, data, run, outer, warm_start, init, notifier, options)
        return
    with training_process() as stop, notifier, SweepView(console) as view:
        done = search(
            space,
            data,
            run,
            warm_start=warm_start,
            init=init,
            callback=CallbackList([view, notifier]),
            stop=stop,
            **options,
        )
    print_status(done.where)
    print_advice(done.where)


def _notifier(addresses: list[str] | None, run: str) -> Notifier:
    """Return what sends messages about a run; its addresses are in the environment of no process that starts later."""
    os.environ.pop(NOTIFY_VARIABLE, None)
    return Notifier(addresses or [], run, write, lambda: summary_line(run))


def _sweep_outer(
    space: Path,
    data: str,
    run: str,
    outer: int,
    warm_start: str | None,
    init: str | None,
    notifier: Notifier,
    options: dict[str, Any],
) -> None:
    from raypipe.cli.progress import SweepView
    from raypipe.search.outer import sweep_outer

    if warm_start is not None:
        raise UserError("--warm-start: its trials have seen subjects that --outer holds out; leave one of them out")
    with training_process() as stop, notifier, SweepView(console) as view:
        done = sweep_outer(
            space, data, run, outer=outer, init=init, callback=CallbackList([view, notifier]), stop=stop, **options
        )
    print_outer(done.where)


@app.command(rich_help_panel=PANEL, epilog=example("raypipe resume demo/run --trials 60"))
@option_flags(SweepOptions, unchanged=("trials", "time_budget", "gpu_hours", "address", "workers"))
def resume(run: RunArg, notify: NotifyOption = None, **options: Any) -> None:
    """Continue a run. Options that are given replace its own."""
    from raypipe.cli.progress import SweepView
    from raypipe.search.sweep import resume as continue_sweep

    notifier = _notifier(notify, run)
    if is_pretrained(run):
        with notifier:
            _resume_pretraining(run, **options)
        return
    if is_outer(run):
        from raypipe.search.outer import resume_outer

        with training_process() as stop, notifier, SweepView(console) as view:
            resume_outer(run, callback=CallbackList([view, notifier]), stop=stop, **options)
        print_outer(run)
        return
    with training_process() as stop, notifier, SweepView(console) as view:
        continue_sweep(run, callback=CallbackList([view, notifier]), stop=stop, **options)
    print_status(run)
    print_advice(run)


def _resume_pretraining(run: str, workers: int | None, address: str | None, **others: Any) -> None:
    from raypipe.cli.console import ProgressCounter
    from raypipe.search.pretrain import resume as continue_pretraining

    if any(given is not None for given in others.values()):
        raise UserError(f"{run}: a pretrained run has no --trials, no --time-budget and no --gpu-hours")
    with training_process() as stop, ProgressCounter(console, "pretraining") as counter:
        continue_pretraining(run, workers=workers, address=address, progress=counter, callback=counter, stop=stop)
    print_pretrained(run)


@app.command(rich_help_panel=PANEL, epilog=example("raypipe rerun demo/run --top 3 --seeds 5"))
@option_flags(SweepOptions, "time_budget", "gpu_hours", unchanged=("address", "workers"))
def rerun(
    run: RunArg,
    top: Annotated[int, typer.Option(min=1, help="Number of best trials to train again.")] = 3,
    seeds: Annotated[int, typer.Option(min=1, help="New seeds for each of them.")] = 5,
    notify: NotifyOption = None,
    **options: Any,
) -> None:
    """Train the best trials again on new seeds.

    This shows how much of a score was luck, and adds ensemble members. The same command continues after a crash.
    """
    from raypipe.cli.progress import SweepView
    from raypipe.search.sweep import rerun as train_again

    if is_pretrained(run):
        raise UserError(f"{run}: a pretrained run has no trials to train again")
    notifier = _notifier(notify, run)
    with training_process() as stop, notifier, SweepView(console) as view:
        train_again(run, top=top, seeds=seeds, callback=CallbackList([view, notifier]), stop=stop, **options)
    print_status(run)
    print_advice(run)


@app.command(rich_help_panel=PANEL, epilog=example("raypipe enqueue demo/run optim/lr=0.003 sam/name=none"))
def enqueue(
    run: RunArg,
    point: Annotated[
        list[str], typer.Argument(metavar="NAME=VALUE...", help="Every parameter that the search space draws.")
    ],
) -> None:
    """Enqueue a point of the search space as the next trial of a run.

    It is one of the run's --trials. Where no sweep is running, the command that takes it up is printed.
    """
    from raypipe.search.requests import ask_to_enqueue
    from raypipe.storage.run_store import RunStore

    store = RunStore.open(run)
    print_asked(store, ask_to_enqueue(store, point))


@app.command(rich_help_panel=PANEL, epilog=example("raypipe pretrain mae --data demo/store --run demo/mae --epochs 20"))
@option_flags(PretrainOptions, *PretrainOptions.model_fields)
def pretrain(
    objective: Annotated[str, typer.Argument(metavar="mae|simclr", help="Masked autoencoder, or SimCLR.")],
    data: DataOption,
    run: NewRun,
    epochs: Annotated[int, typer.Option(help="Epochs.", rich_help_panel=OBJECTIVE)] = 20,
    batch: Annotated[int, typer.Option(help="Windows per step, over all workers.", rich_help_panel=OBJECTIVE)] = 64,
    lr: Annotated[float, typer.Option(help="Learning rate.", rich_help_panel=OBJECTIVE)] = 1e-3,
    mask: Annotated[float, typer.Option(help="MAE: share of patches masked.", rich_help_panel=OBJECTIVE)] = 0.75,
    temperature: Annotated[
        float, typer.Option(help="SimCLR: temperature of the softmax.", rich_help_panel=OBJECTIVE)
    ] = 0.5,
    negatives: Annotated[
        str, typer.Option(help="SimCLR: all, other-subject or same-subject.", rich_help_panel=OBJECTIVE)
    ] = "all",
    time_shift: Annotated[
        bool,
        typer.Option(
            "--time-shift",
            help="SimCLR: shift views in time too. Not for targets that depend on response timing.",
            rich_help_panel=OBJECTIVE,
        ),
    ] = False,
    set: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="Another parameter, such as model/patch=50.", rich_help_panel=OBJECTIVE
        ),
    ] = None,
    **options: Any,
) -> None:
    """Pretrain an encoder without targets, for sweeps with --init.

    The same command continues after a crash.
    """
    from raypipe.cli.console import ProgressCounter
    from raypipe.search.pretrain import parse_values
    from raypipe.search.pretrain import pretrain as train_encoder

    if objective not in ("mae", "simclr"):
        raise UserError(f"pretrain {objective}: no such objective; there is mae and simclr")
    params: dict[str, Any] = {"epochs": epochs, "batch_size": batch, "optim/lr": lr, "pretrain/mask": mask}
    params |= {"pretrain/temperature": temperature, "pretrain/negatives": negatives, "pretrain/time_shift": time_shift}
    params |= parse_values(set or [])
    with training_process() as stop, ProgressCounter(console, f"pretraining ({objective})") as counter:
        train_encoder(
            objective,  # type: ignore[arg-type]
            data,
            run,
            params=params,
            progress=counter,
            callback=counter,
            stop=stop,
            **options,
        )
    print_pretrained(run)
