"""Sweeps and pretraining: begun, and gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from raypipe.cli.common import (
    RunArg,
    app,
    console,
    example,
    held_out_of,
    is_pretrained,
    print_advice,
    print_pretrained,
    print_status,
    seconds_of,
)
from raypipe.core.errors import UserError

PANEL = "Searching and training"
"""Under which `raypipe --help` lists these verbs."""


@app.command(
    rich_help_panel=PANEL,
    epilog=example("raypipe plan search_spaces/focal_mixup_sam.py --data demo/store --trials 200 --cpus 64"),
)
def plan(
    space: Annotated[Path, typer.Argument(metavar="SPACE", help="Search space, a Python file.")],
    data: Annotated[str, typer.Option(help="Windows made by prepare: a folder, or a URI that push copied them to.")],
    trials: Annotated[int, typer.Option(min=1, help="Trials of the sweep.")] = 20,
    folds: Annotated[int, typer.Option(help="Subject folds.")] = 5,
    cpus: Annotated[
        float | None, typer.Option(help="Cores that it will have. Default: the cluster's, or this machine's.")
    ] = None,
    gpus: Annotated[float | None, typer.Option(help="GPUs that it will have. Default: the cluster's, or none.")] = None,
    workers: Annotated[int | None, typer.Option(help="Train workers a trial. Default: fills the cores.")] = None,
    cpus_per_worker: Annotated[float, typer.Option(help="Cores a worker.")] = 1,
    gpus_per_worker: Annotated[float, typer.Option(help="GPUs a worker; may be a fraction.")] = 0,
    concurrent: Annotated[
        int | None, typer.Option("--concurrent", "--max-concurrent", help="Trials at a time. Default: what fits.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to measure on; default: this machine.", envvar="RAY_ADDRESS")
    ] = None,
) -> None:
    """Say how long a sweep takes, and how much disk and memory, from a few steps of some of its trials."""
    from raypipe.cli.console import Counter
    from raypipe.search.forecast import forecast

    with Counter(console, "planning") as counter:
        found = forecast(
            space,
            data,
            cpus=cpus,
            gpus=gpus,
            address=address,
            trials=trials,
            folds=folds,
            workers=workers,
            cpus_per_worker=cpus_per_worker,
            gpus_per_worker=gpus_per_worker,
            concurrent=concurrent,
            progress=counter,
            callback=counter,
        )
    console.print(found.render(), highlight=False, soft_wrap=True)


@app.command(
    rich_help_panel=PANEL,
    epilog=example("raypipe sweep search_spaces/focal_mixup_sam.py --data demo/store --run demo/run --trials 40"),
)
def sweep(
    space: Annotated[Path, typer.Argument(metavar="SPACE", help="Search space, a Python file.")],
    data: Annotated[str, typer.Option(help="Windows made by prepare: a folder, or a URI that push copied them to.")],
    run: Annotated[str, typer.Option(help="Run folder or pyarrow.fs URI; one that is there is continued.")],
    trials: Annotated[int, typer.Option(help="Trials the run is to have in all.")] = 20,
    folds: Annotated[int, typer.Option(help="Subject folds.")] = 5,
    held_out: Annotated[
        str, typer.Option(help="Share of subjects, or names (also of releases, R5), that no choice sees.")
    ] = "auto",
    workers: Annotated[int | None, typer.Option(help="Train workers a trial. Default: fills the cores.")] = None,
    cpus_per_worker: Annotated[float, typer.Option(help="Cores a worker.")] = 1,
    gpus_per_worker: Annotated[float, typer.Option(help="GPUs a worker; may be a fraction.")] = 0,
    concurrent: Annotated[
        int | None, typer.Option("--concurrent", "--max-concurrent", help="Trials at a time. Default: what fits.")
    ] = None,
    time_budget: Annotated[str | None, typer.Option(help="Such as 90s, 30m, 2h: time the run may take in all.")] = None,
    gpu_hours: Annotated[float | None, typer.Option(help="Hours of GPUs that the run may hold in all.")] = None,
    grace: Annotated[int | None, typer.Option(help="Passes over the data before a trial may be stopped.")] = None,
    prune: Annotated[bool, typer.Option(help="Stop unpromising trials early (successive halving).")] = True,
    stem: Annotated[str, typer.Option(help="auto (measured), fourier or direct: the stem's algorithm.")] = "auto",
    stack: Annotated[str, typer.Option(help="auto (measured), on or off: folds trained as one program.")] = "auto",
    address: Annotated[
        str | None, typer.Option(help="Ray cluster; default: this machine.", envvar="RAY_ADDRESS")
    ] = None,
    storage: Annotated[str | None, typer.Option(help="Where Ray keeps its scratch files on a cluster.")] = None,
    track: Annotated[
        list[str], typer.Option(help="Who is told of curves: tensorboard, mlflow, wandb; may be given twice; or none.")
    ] = ["tensorboard"],  # noqa: B006 - typer copies it
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    warm_start: Annotated[
        str | None, typer.Option(metavar="RUN", help="A run whose trials a new run's sampler begins with.")
    ] = None,
    init: Annotated[
        str | None, typer.Option(metavar="RUN", help="A pretrained run, or its exported encoder, to start from.")
    ] = None,
) -> None:
    """Search a space over subject folds. The same command begins, goes on after a crash, and extends."""
    from raypipe.cli.progress import SweepView
    from raypipe.search.sweep import sweep as search

    with SweepView(console) as view:
        done = search(
            space,
            data,
            run,
            warm_start=warm_start,
            init=init,
            callback=view,
            trials=trials,
            folds=folds,
            held_out=held_out_of(held_out),
            workers=workers,
            cpus_per_worker=cpus_per_worker,
            gpus_per_worker=gpus_per_worker,
            concurrent=concurrent,
            time_budget=seconds_of(time_budget),
            gpu_hours=gpu_hours,
            grace=grace,
            prune=prune,
            stem=stem,
            stack=stack,
            address=address,
            storage=storage,
            track=track,
            seed=seed,
        )
    print_status(done.where)
    print_advice(done.where)


@app.command(rich_help_panel=PANEL, epilog=example("raypipe pretrain mae --data demo/store --run demo/mae --epochs 20"))
def pretrain(
    objective: Annotated[str, typer.Argument(metavar="mae|simclr", help="What is learnt, without targets.")],
    data: Annotated[str, typer.Option(help="Windows made by prepare: a folder, or a URI that push copied them to.")],
    run: Annotated[str, typer.Option(help="Run folder or pyarrow.fs URI; one that is there is continued.")],
    epochs: Annotated[int, typer.Option(help="Epochs.")] = 20,
    batch: Annotated[int, typer.Option(help="Windows of a step, over all workers.")] = 64,
    micro_batch: Annotated[int | None, typer.Option(min=1, help="Windows a worker passes at a time.")] = None,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 1e-3,
    mask: Annotated[float, typer.Option(help="MAE: share of patches that are masked.")] = 0.75,
    temperature: Annotated[float, typer.Option(help="SimCLR: of the softmax.")] = 0.5,
    negatives: Annotated[str, typer.Option(help="SimCLR: all, other-subject or same-subject.")] = "all",
    time_shift: Annotated[bool, typer.Option(help="SimCLR: shift in time too; not for response times.")] = False,
    set: Annotated[list[str] | None, typer.Option(help="NAME=VALUE of a search space, e.g. model/patch=50.")] = None,
    folds: Annotated[int, typer.Option(help="Subject folds, as of the sweep it is for.")] = 5,
    held_out: Annotated[
        str, typer.Option(help="Share of subjects, or names (also of releases, R5), that are not seen.")
    ] = "auto",
    serves: Annotated[str | None, typer.Option(metavar="RUN", help="Take the fold map of this run instead.")] = None,
    fold_wise: Annotated[bool, typer.Option("--fold-wise", help="An encoder a fold, without its subjects.")] = False,
    probe_every: Annotated[int, typer.Option(min=0, help="Epochs between linear probes; 0 for none.")] = 5,
    tuned_probe: Annotated[
        int, typer.Option(min=0, help="Epochs of a second probe, which trains the encoder on; 0 for none.")
    ] = 0,
    workers: Annotated[int, typer.Option(help="Workers that share a batch (Ray Train if more than one).")] = 1,
    cpus_per_worker: Annotated[float, typer.Option(help="Cores a worker.")] = 1,
    gpus_per_worker: Annotated[float, typer.Option(help="GPUs a worker.")] = 0,
    address: Annotated[str | None, typer.Option(help="Ray cluster; default: this machine.")] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
) -> None:
    """Pretrain an encoder without labels, for sweeps with --init. The same command goes on after a crash."""
    from raypipe.cli.console import Counter
    from raypipe.search.pretrain import parse_values
    from raypipe.search.pretrain import pretrain as begin

    if objective not in ("mae", "simclr"):
        raise UserError(f"pretrain {objective}: no such objective; there is mae and simclr")
    params: dict[str, Any] = {"epochs": epochs, "batch_size": batch, "optim/lr": lr, "pretrain/mask": mask}
    params |= {"pretrain/temperature": temperature, "pretrain/negatives": negatives, "pretrain/time_shift": time_shift}
    with Counter(console, f"pretraining ({objective})") as counter:
        begin(
            objective,  # type: ignore[arg-type]
            data,
            run,
            params=params | parse_values(set or []),
            folds=folds,
            held_out=held_out_of(held_out),
            seed=seed,
            serves=serves,
            fold_wise=fold_wise,
            probe_every=probe_every,
            tuned_probe=tuned_probe,
            micro_batch=micro_batch,
            workers=workers,
            cpus_per_worker=cpus_per_worker,
            gpus_per_worker=gpus_per_worker,
            address=address,
            progress=counter,
            callback=counter,
        )
    print_pretrained(run)


@app.command(rich_help_panel=PANEL, epilog=example("raypipe rerun demo/run --top 3 --seeds 5"))
def rerun(
    run: RunArg,
    top: Annotated[int, typer.Option(min=1, help="How many of the best trials.")] = 3,
    seeds: Annotated[int, typer.Option(min=1, help="New seeds for each.")] = 5,
    time_budget: Annotated[str | None, typer.Option(help="Time the run may take in all. Default: no end.")] = None,
    gpu_hours: Annotated[float | None, typer.Option(help="Hours of GPUs in all. Default: no end.")] = None,
    address: Annotated[str | None, typer.Option(help="Another Ray cluster.", envvar="RAY_ADDRESS")] = None,
    workers: Annotated[int | None, typer.Option(help="Another number of workers.")] = None,
) -> None:
    """Train the best trials again on new seeds: how much was luck, and more members. The same command goes on."""
    from raypipe.cli.progress import SweepView
    from raypipe.search.sweep import rerun as train_again

    if is_pretrained(run):
        raise UserError(f"{run}: a pretrained run has no trials to train again")
    limits = {"time_budget": seconds_of(time_budget), "gpu_hours": gpu_hours}
    with SweepView(console) as view:
        train_again(run, top=top, seeds=seeds, callback=view, address=address, workers=workers, **limits)
    print_status(run)
    print_advice(run)


@app.command(rich_help_panel=PANEL, epilog=example("raypipe resume demo/run --trials 60"))
def resume(
    run: RunArg,
    trials: Annotated[int | None, typer.Option(help="A new number of trials in all.")] = None,
    time_budget: Annotated[str | None, typer.Option(help="A new time budget.")] = None,
    gpu_hours: Annotated[float | None, typer.Option(help="A new limit of GPU-hours.")] = None,
    address: Annotated[str | None, typer.Option(help="Another Ray cluster.", envvar="RAY_ADDRESS")] = None,
    workers: Annotated[int | None, typer.Option(help="Another number of workers.")] = None,
) -> None:
    """Go on with a run: the same as its sweep command again."""
    if is_pretrained(run):
        from raypipe.cli.console import Counter
        from raypipe.search.pretrain import resume as pretrain_on

        if any(given is not None for given in (trials, time_budget, gpu_hours)):
            raise UserError(f"{run}: a pretrained run has no --trials, no --time-budget and no --gpu-hours")
        with Counter(console, "pretraining") as counter:
            pretrain_on(run, workers=workers, address=address, progress=counter, callback=counter)
        print_pretrained(run)
        return
    from raypipe.cli.progress import SweepView
    from raypipe.search.sweep import resume as go_on

    with SweepView(console) as view:
        limits = {"trials": trials, "time_budget": seconds_of(time_budget), "gpu_hours": gpu_hours}
        go_on(run, callback=view, address=address, workers=workers, **limits)
    print_status(run)
    print_advice(run)
