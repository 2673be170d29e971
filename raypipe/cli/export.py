"""Verbs that combine and export: ensemble, chance, export, check, bench, score."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raypipe.cli.common import DeviceOption, RunArg, app, console, example, is_outer, is_pretrained, print_outer, write
from raypipe.core.errors import UserError
from raypipe.storage.remote import shell_quoted

if TYPE_CHECKING:
    from raypipe.storage.run_store import RunStore

PANEL = "Ensembles and export"
"""Heading of these verbs in `raypipe --help`."""


@app.command(rich_help_panel=PANEL, epilog=example("raypipe ensemble demo/run --top 5"))
def ensemble(
    run: RunArg,
    top: Annotated[int, typer.Option(min=1, help="Number of best trials to combine.")] = 10,
    method: Annotated[
        str,
        typer.Option(
            help="auto: the simplest method within one standard error of the best nested score; all: the same, with a "
            "table of every method; or one of best, equal, greedy, ridge, sample, snapshots, average, inverse-mse, "
            "confidence, softmax, member-sample, boosting, soup, uniform-soup, swa. See docs/ensembles.md."
        ),
    ] = "auto",
    max_members: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of networks.", show_default="no limit")
    ] = None,
    max_mb: Annotated[
        float | None, typer.Option(help="Maximum size of all weights in MB.", show_default="no limit")
    ] = None,
    distill: Annotated[
        bool, typer.Option("--distill", help="Train one network to predict as the ensemble does, and ship that.")
    ] = False,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="cpu|cuda",
            help="Where networks are run.",
            show_default="cpu; to train for --distill a GPU if there is one",
        ),
    ] = None,
    so_far: Annotated[
        bool,
        typer.Option(
            "--so-far",
            help="Use the trials that have ended while the sweep is still running: the held-out subjects are scored "
            "nevertheless. Without it, a terminal is asked.",
        ),
    ] = False,
) -> None:
    """Combine the best trials, score them on held-out subjects and report.

    The ensemble is fitted on out-of-fold predictions and saved in the run, for export.
    """
    from raypipe.cli.console import ProgressCounter
    from raypipe.ensembles.fit import fit_ensemble
    from raypipe.reporting.report import write_plots, write_report
    from raypipe.storage.run_store import RunStore

    if is_outer(run):
        limits = {"max_members": max_members, "max_mb": max_mb, "distilled": distill, "device": device}
        _ensembles_of_parts(run, top=top, method=method, so_far=so_far, **limits)
        return
    store = RunStore.open(run)
    so_far = so_far or _asked_and_agreed(store)
    with ProgressCounter(console, "predicting held-out subjects") as counter:
        fitted = fit_ensemble(
            store,
            top=top,
            method=method,
            max_members=max_members,
            max_mb=max_mb,
            distilled=distill,
            device=device,
            so_far=so_far,
            progress=counter,
        )
    fitted.save()
    console.print(fitted.render())
    if method == "all":
        for name, reason in fitted.excluded.items():
            write(f"{name} was left out: {reason}")
    write_plots(store, fitted)
    write(f"report: {write_report(store)}")


def _asked_and_agreed(run: RunStore) -> bool:
    """Ask in a terminal whether held-out subjects are to be scored while the sweep is running; False elsewhere."""
    from raypipe.ensembles.unfinished import sweep_progress

    if not (sys.stdin and sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    found = sweep_progress(run)
    question = f"The sweep is still running ({found.text}). Score the held-out subjects now, and again at its end?"
    return found.running and typer.confirm(question, abort=True)


def _ensembles_of_parts(where: str, *, top: int, method: str, **limits: Any) -> None:
    """Fit the ensembles of an outer cross-validation, and print the score of all subjects."""
    from raypipe.cli.console import ProgressCounter
    from raypipe.reporting.cross_validation import CrossValidation
    from raypipe.reporting.report import write_report

    cross_validation = CrossValidation(where)
    with ProgressCounter(console, "predicting held-out subjects") as counter:
        cross_validation.ensemble(top=top, method=method, progress=counter, **limits)
    for part in cross_validation.parts:
        write_report(part.store)
    print_outer(where)
    write(f"report: {cross_validation.report()}")


@app.command(rich_help_panel=PANEL, epilog=example("raypipe chance demo/run --permutations 1000"))
def chance(
    run: RunArg,
    permutations: Annotated[int, typer.Option(min=1, help="Number of orders of the targets.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the orders.")] = 0,
) -> None:
    """Test the ensemble against chance, by shuffling the targets of held-out people.

    Nothing is trained again: the held-out subjects were never used for training or model selection, so the test
    holds for the whole search. Targets are shuffled between people if each has one, else within each person: whole
    recordings or blocks where these have one target, else trials.
    """
    from raypipe.ensembles.chance import chance_test
    from raypipe.storage.run_store import RunStore

    if is_outer(run):
        raise UserError(
            f"{run}: parts of an outer cross-validation are trained on one another's people, so shuffling is no test; "
            f"test one: raypipe chance {shell_quoted(f'{run}/part-1')}"
        )
    write(chance_test(RunStore.open(run), permutations=permutations, seed=seed).render())


@app.command(
    rich_help_panel=PANEL,
    epilog=example("raypipe export demo/run demo/bundle", "raypipe export demo/run demo/model.onnx"),
)
def export(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN [RUN2] OUT",
            help="A run, or one run per challenge; then a folder, or a .onnx, .pt2 or .zip file.",
        ),
    ],
    format: Annotated[
        str | None,
        typer.Option(help="bundle, onnx, pt2 or submission.", show_default="by the ending of OUT; without one, bundle"),
    ] = None,
) -> None:
    """Write a run's ensemble as a bundle, as one graph (ONNX or torch.export), or as a submission zip.

    A bundle is for Python and for predict. A graph runs without raypipe, in any language that ONNX Runtime has. A
    pretrained run is exported as an encoder.

    A submission is for the EEG Foundation Challenge. It may have two runs, one per challenge.
    """
    from raypipe.packaging.export import export as write_export
    from raypipe.packaging.graph_info import KINDS, read_graph_info

    if not 2 <= len(paths) <= 3:
        raise UserError(f"export takes one run or two, then what to write: RUN [RUN2] OUT (given {len(paths)} names)")
    run, *also, out = paths
    if is_pretrained(run):
        from raypipe.pretraining.encoders import export_encoder

        if format is not None or also:
            raise UserError(f"{run}: a pretrained run is exported as an encoder: no second run, no --format")
        write(export_encoder(run, out))
        return
    path = write_export(run, out, format=format, also=also[0] if also else None)
    write(path)
    if path.suffix in KINDS and path.is_file():
        from raypipe.packaging.check_graph import graph_text, level_text
        from raypipe.packaging.graph_difference import difference_text

        info = read_graph_info(path)
        difference = difference_text(info.difference, info.kind)
        write(f"{graph_text(path, info)}; predictions differ from torch's by {difference}")
        if level := level_text(info):
            write(level)


@app.command(rich_help_panel=PANEL, epilog=example("raypipe check demo/submission.zip", "raypipe check model.onnx"))
def check(
    file: Annotated[Path, typer.Argument(metavar="OUT", help="A submission (.zip) or a graph (.onnx, .pt2).")],
    bundle: Annotated[Path | None, typer.Option(help="Bundle whose predictions it must equal.")] = None,
    device: DeviceOption = "cpu",
) -> None:
    """Check a submission zip with the challenge's own scoring loop, or that a graph gives what it gave at export.

    It runs in a fresh process without raypipe and Ray. The exit status is 1 if a check fails. Code in a zip and in a
    .pt2 file is run: check only what you have made or read.
    """
    from raypipe.packaging.graph_info import KINDS

    if file.suffix in KINDS:
        from raypipe.packaging.check_graph import check_graph

        if device != "cpu":
            raise UserError(f"--device {device}: a graph is checked on the CPU")
        found = check_graph(file, bundle=bundle)
    else:
        from raypipe.packaging.check import check_submission

        found = check_submission(file, bundle=bundle, device=device)
    console.print(found.render())
    if not found.ok:
        raise typer.Exit(1)


@app.command(rich_help_panel=PANEL, epilog=example("raypipe bench demo/bundle", "raypipe bench demo/model.onnx"))
def bench(
    path: Annotated[Path, typer.Argument(metavar="OUT", help="A bundle, or a graph (.onnx, .pt2).")],
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of torch or onnxruntime.", show_default="theirs")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="Time for each measurement.")] = 5.0,
    trust_code: Annotated[bool, typer.Option("--trust-code", help="Run the code of networks in a bundle.")] = False,
) -> None:
    """Measure latency of one window, throughput in batches, and memory, on this machine's CPU.

    It runs in a fresh process, on random windows. A .pt2 file may run code when it is read: measure only what you made.
    """
    from raypipe.packaging.bench import bench as measure

    for line in measure(path, threads=threads, seconds=seconds, trust_code=trust_code).lines():
        write(line)


@app.command(
    rich_help_panel=PANEL,
    epilog=example(
        "raypipe score submission.zip --target challenge1 --data c1/store --target challenge2 --data c2/store"
    ),
)
def score(
    submission: Annotated[Path, typer.Argument(metavar="OUT.zip", help="Submission to score.")],
    target: Annotated[list[str], typer.Option(help="challenge1 or challenge2. Give both for the overall score.")],
    data: Annotated[list[Path], typer.Option(help="Windows made by prepare for each target, in the same order.")],
    release: Annotated[
        str | None, typer.Option(help="Score subjects of this release, such as R5.", show_default="all releases")
    ] = None,
    subjects: Annotated[str, typer.Option(help="new: subjects that the models were not trained on; or all.")] = "new",
    device: DeviceOption = "cpu",
) -> None:
    """Score a submission zip as the challenge does."""
    from raypipe.packaging.score import score_submission

    if len(target) != len(data) or len(set(target)) != len(target):
        raise UserError(
            f"score needs one --data for each --target, and no target twice (given {len(target)} and {len(data)})"
        )
    stores = dict(zip(target, data, strict=True))
    console.print(score_submission(submission, stores, release=release, subjects=subjects, device=device).render())
