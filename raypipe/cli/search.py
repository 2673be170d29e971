"""Verbs that search and train: plan, sweep, resume, rerun, pretrain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from raypipe.cli.common import (
    DataOption,
    RunArg,
    app,
    console,
    example,
    is_pretrained,
    print_advice,
    print_pretrained,
    print_status,
)
from raypipe.cli.flags import sweep_flags
from raypipe.cli.process import training_process
from raypipe.core.errors import UserError
from raypipe.core.options import SweepOptions, parse_held_out

PANEL = "Search and training"
"""Heading of these verbs in `raypipe --help`."""

SpaceArg = Annotated[Path, typer.Argument(metavar="SPACE", help="Search space: a Python file.")]
NewRun = Annotated[str, typer.Option(help="Folder or pyarrow.fs URI of the run. An existing run is continued.")]


@app.command(
    rich_help_panel=PANEL,
    epilog=example("raypipe plan search_spaces/focal_mixup_sam.py --data demo/store --trials 200 --cpus 64"),
)
@sweep_flags("trials", "folds", "workers", "cpus_per_worker", "gpus_per_worker", "concurrent", "address")
def plan(
    space: SpaceArg,
    data: DataOption,
    cpus: Annotated[
        float | None, typer.Option(help="CPU cores of the sweep.", show_default="the cluster's, or this machine's")
    ] = None,
    gpus: Annotated[float | None, typer.Option(help="GPUs of the sweep.", show_default="the cluster's, or 0")] = None,
    **options: Any,
) -> None:
    """Estimate a sweep's time, memory and disk from a few training steps."""
    from raypipe.cli.console import ProgressCounter
    from raypipe.search.forecast import forecast

    with training_process(), ProgressCounter(console, "planning") as counter:
        found = forecast(space, data, cpus=cpus, gpus=gpus, progress=counter, callback=counter, **options)
    console.print(found.render(), highlight=False, soft_wrap=True)


@app.command(
    rich_help_panel=PANEL,
    epilog=example("raypipe sweep search_spaces/focal_mixup_sam.py --data demo/store --run demo/run --trials 40"),
)
@sweep_flags(*SweepOptions.model_fields)
def sweep(
    space: SpaceArg,
    data: DataOption,
    run: NewRun,
    warm_start: Annotated[
        str | None, typer.Option(metavar="RUN", help="Start the sampler of a new run from this run's trials.")
    ] = None,
    init: Annotated[
        str | None, typer.Option(metavar="RUN", help="Start training from this pretrained run or exported encoder.")
    ] = None,
    **options: Any,
) -> None:
    """Search a space over subject folds.

    The same command continues a run after a crash, and a larger --trials extends it.
    """
    from raypipe.cli.progress import SweepView
    from raypipe.search.sweep import sweep as search

    with training_process() as stop, SweepView(console) as view:
        done = search(space, data, run, warm_start=warm_start, init=init, callback=view, stop=stop, **options)
    print_status(done.where)
    print_advice(done.where)


@app.command(rich_help_panel=PANEL, epilog=example("raypipe resume demo/run --trials 60"))
@sweep_flags(unchanged=("trials", "time_budget", "gpu_hours", "address", "workers"))
def resume(run: RunArg, **options: Any) -> None:
    """Continue a run. Options that are given replace its own."""
    from raypipe.cli.progress import SweepView
    from raypipe.search.sweep import resume as continue_sweep

    if is_pretrained(run):
        _resume_pretraining(run, **options)
        return
    with training_process() as stop, SweepView(console) as view:
        continue_sweep(run, callback=view, stop=stop, **options)
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
@sweep_flags("time_budget", "gpu_hours", unchanged=("address", "workers"))
def rerun(
    run: RunArg,
    top: Annotated[int, typer.Option(min=1, help="Number of best trials to train again.")] = 3,
    seeds: Annotated[int, typer.Option(min=1, help="New seeds for each of them.")] = 5,
    **options: Any,
) -> None:
    """Train the best trials again on new seeds.

    This shows how much of a score was luck, and adds ensemble members. The same command continues after a crash.
    """
    from raypipe.cli.progress import SweepView
    from raypipe.search.sweep import rerun as train_again

    if is_pretrained(run):
        raise UserError(f"{run}: a pretrained run has no trials to train again")
    with training_process() as stop, SweepView(console) as view:
        train_again(run, top=top, seeds=seeds, callback=view, stop=stop, **options)
    print_status(run)
    print_advice(run)


@app.command(rich_help_panel=PANEL, epilog=example("raypipe pretrain mae --data demo/store --run demo/mae --epochs 20"))
@sweep_flags("folds", "held_out", "seed", "cpus_per_worker", "gpus_per_worker")
def pretrain(
    objective: Annotated[str, typer.Argument(metavar="mae|simclr", help="Masked autoencoder, or SimCLR.")],
    data: DataOption,
    run: NewRun,
    epochs: Annotated[int, typer.Option(help="Epochs.")] = 20,
    batch: Annotated[int, typer.Option(help="Windows per step, over all workers.")] = 64,
    micro_batch: Annotated[
        int | None, typer.Option(min=1, help="Windows per pass of a worker.", show_default="all of its batch")
    ] = None,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 1e-3,
    mask: Annotated[float, typer.Option(help="MAE: share of patches that are masked.")] = 0.75,
    temperature: Annotated[float, typer.Option(help="SimCLR: temperature of the softmax.")] = 0.5,
    negatives: Annotated[str, typer.Option(help="SimCLR: all, other-subject or same-subject.")] = "all",
    time_shift: Annotated[
        bool, typer.Option(help="SimCLR: shift views in time too. Not for targets that lie in time.")
    ] = False,
    set: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Another parameter, such as model/patch=50.")
    ] = None,
    serves: Annotated[str | None, typer.Option(metavar="RUN", help="Use the fold map of this run.")] = None,
    fold_wise: Annotated[
        bool, typer.Option("--fold-wise", help="Train one encoder per fold, without the fold's subjects.")
    ] = False,
    probe_every: Annotated[int, typer.Option(min=0, help="Epochs between linear probes; 0: none.")] = 5,
    tuned_probe: Annotated[int, typer.Option(min=0, help="Epochs of an additional fine-tuned probe; 0: none.")] = 0,
    workers: Annotated[int, typer.Option(help="Workers that share a batch. More than one run on Ray.")] = 1,
    address: Annotated[str | None, typer.Option(help="Address of a running Ray cluster.")] = None,
    **options: Any,
) -> None:
    """Pretrain an encoder without targets, for sweeps with --init.

    The same command continues after a crash.
    """
    from raypipe.cli.console import ProgressCounter
    from raypipe.search.pretrain import parse_values
    from raypipe.search.pretrain import pretrain as begin

    if objective not in ("mae", "simclr"):
        raise UserError(f"pretrain {objective}: no such objective; there is mae and simclr")
    params: dict[str, Any] = {"epochs": epochs, "batch_size": batch, "optim/lr": lr, "pretrain/mask": mask}
    params |= {"pretrain/temperature": temperature, "pretrain/negatives": negatives, "pretrain/time_shift": time_shift}
    options["held_out"] = parse_held_out(options["held_out"])
    with training_process() as stop, ProgressCounter(console, f"pretraining ({objective})") as counter:
        begin(
            objective,  # type: ignore[arg-type]
            data,
            run,
            params=params | parse_values(set or []),
            serves=serves,
            fold_wise=fold_wise,
            probe_every=probe_every,
            tuned_probe=tuned_probe,
            micro_batch=micro_batch,
            workers=workers,
            address=address,
            progress=counter,
            callback=counter,
            stop=stop,
            **options,
        )
    print_pretrained(run)
