"""The command line. Every verb does one step, says what it does, and can be run again."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from raypipe.errors import InterruptedSweepError, UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Fault-tolerant hyperparameter search and leak-free ensembles for EEG decoding, on Ray.\n\n"
    "The order of things: [b]prepare[/b] recordings into windows, [b]sweep[/b] a search space over subject folds "
    "(kill it at any moment and [b]resume[/b]), fit an [b]ensemble[/b] on out-of-fold predictions, [b]export[/b] and "
    "[b]check[/b] it. [b]simulate[/b] makes data to try all of it on.",
)
console = Console()
INTERRUPTED = 130
"""Exit status after a Ctrl-C."""


def _example(line: str) -> str:
    return f"[dim]Example:[/dim]  {line}"


RunArg = Annotated[str, typer.Argument(metavar="RUN", help="Run folder, or a pyarrow.fs URI such as s3://bucket/run.")]


@app.command(epilog=_example("raypipe simulate demo/bids --subjects 24"))
def simulate(
    out: Annotated[
        list[str], typer.Argument(metavar="[hbn] OUT", help="Folder for the BIDS tree; hbn: releases R1 and R5 in it.")
    ],
    subjects: Annotated[int, typer.Option(min=1, help="Subjects.")] = 24,
    channels: Annotated[int, typer.Option(min=2, help="Channels; the last is the flat reference.")] = 129,
    trials: Annotated[int, typer.Option(min=1, help="Contrast-change trials a run.")] = 24,
    runs: Annotated[int, typer.Option(min=1, help="Runs a subject.")] = 1,
    sfreq: Annotated[float, typer.Option(min=50, help="Sampling rate in Hz.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    null: Annotated[bool, typer.Option("--null", help="Sever the link: nothing can be predicted.")] = False,
    events: Annotated[Path | None, typer.Option(help="hbn: a folder of real event files to take events from.")] = None,
) -> None:
    """Make a BIDS tree of simulated EEG (BDF, HBN-like) with a known answer."""
    from raypipe.console import Counter
    from raypipe.simulate import simulate as make
    from raypipe.simulate_release import simulate_release

    release, folder = (out[0] == "hbn", out[-1]) if len(out) == 2 else (False, out[0])
    if len(out) > 2 or (len(out) == 2 and not release):
        raise UserError(f"simulate takes one folder, or hbn and a folder (given {' '.join(out)})")
    if events is not None and not release:
        raise UserError("--events: goes with simulate hbn OUT")
    if release:
        with Counter(console, "simulating") as counter:
            simulate_release(
                folder, events=events, subjects=subjects, channels=channels, trials=trials, seed=seed, null=null,
                progress=counter,
            )  # fmt: skip
        console.print(f"{folder}: R1 and R5 with {subjects} subjects each, {channels} channels", highlight=False)
        return
    with Counter(console, "simulating") as counter:
        path = make(
            folder,
            subjects=subjects,
            channels=channels,
            trials=trials,
            runs=runs,
            sfreq=sfreq,
            seed=seed,
            null=null,
            progress=counter,
        )
    console.print(
        f"{path}: {subjects} subjects, {channels} channels, {runs} run(s) of {trials} trials", highlight=False
    )


@app.command(epilog=_example("raypipe prepare demo/bids --task challenge1 --out demo/store"))
def prepare(
    bids: Annotated[
        list[str], typer.Argument(help="BIDS folders, or a folder of them: sub-*/[ses-*/]eeg/*_eeg.{bdf,edf,...}.")
    ],
    task: Annotated[
        str,
        typer.Option(
            help="Predicted: challenge1, challenge2, participants:COLUMN, events:A,B, bids-task:A,B or latency:A."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the windows.")],
    sfreq: Annotated[float | None, typer.Option(help="Resample to this rate in Hz.")] = None,
    band: Annotated[tuple[float, float] | None, typer.Option(help="Band-pass, two numbers in Hz.")] = None,
    channels: Annotated[str | None, typer.Option(help="Names, by commas. Default: those common to all.")] = None,
    window: Annotated[float | None, typer.Option(help="Window length in seconds. Default: the task's.")] = None,
    crop: Annotated[float | None, typer.Option(help="Seconds of a window that the model sees.")] = None,
    stride: Annotated[float | None, typer.Option(help="Seconds between windows. Default: no overlap.")] = None,
    tmin: Annotated[float | None, typer.Option(help="Start of a window after its event, in seconds.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, or float16 for half the space.")] = "float32",
    jobs: Annotated[int | None, typer.Option(min=1, help="Recordings read at a time. Default: one a core.")] = None,
    skip_unreadable: Annotated[bool, typer.Option(help="Leave out damaged recordings instead of stopping.")] = False,
    mini: Annotated[bool, typer.Option("--mini", help="Of hbn:R1 to hbn:R11: the small version.")] = False,
    cache: Annotated[Path, typer.Option(help="Where hbn:R1 to hbn:R11 are downloaded to.")] = Path("hbn"),
) -> None:
    """Turn recordings into cached windows with targets. A second time it does only what has changed."""
    from raypipe.console import Counter
    from raypipe.fetch import SCHEME, fetch
    from raypipe.preparation import prepare as make

    folders: list[str | Path] = []
    for name in bids:
        folders += fetch(name, cache, mini=mini) if name.startswith(SCHEME) else [name]
    with Counter(console, "preparing") as counter:
        store = make(
            folders,
            task,
            out,
            sfreq=sfreq,
            band=band,
            channels=[name.strip() for name in channels.split(",")] if channels else None,
            window=window,
            crop=crop,
            stride=stride,
            tmin=tmin,
            dtype=dtype,
            jobs=jobs,
            skip_unreadable=skip_unreadable,
            progress=counter,
        )
    console.print(f"{out}: {store.describe()}", highlight=False, soft_wrap=True)


@app.command(
    epilog=_example("raypipe sweep search_spaces/focal_mixup_sam.py --data demo/store --run demo/run --trials 40")
)
def sweep(
    space: Annotated[Path, typer.Argument(metavar="SPACE", help="Search space, a Python file.")],
    data: Annotated[Path, typer.Option(help="Windows made by prepare.")],
    run: Annotated[str, typer.Option(help="Run folder or pyarrow.fs URI; one that is there is continued.")],
    trials: Annotated[int, typer.Option(help="Trials the run is to have in all.")] = 20,
    folds: Annotated[int, typer.Option(help="Subject folds.")] = 5,
    held_out: Annotated[
        str, typer.Option(help="Share of subjects, or names (also of releases, R5), that no choice sees.")
    ] = "auto",
    workers: Annotated[int | None, typer.Option(help="Train workers a trial. Default: fills the cores.")] = None,
    cpus_per_worker: Annotated[float, typer.Option(help="Cores a worker.")] = 1,
    gpus_per_worker: Annotated[float, typer.Option(help="GPUs a worker; may be a fraction.")] = 0,
    concurrent: Annotated[int | None, typer.Option(help="Trials at a time. Default: what fits.")] = None,
    time_budget: Annotated[str | None, typer.Option(help="Such as 90s, 30m, 2h: time the run may take in all.")] = None,
    grace: Annotated[int | None, typer.Option(help="Passes over the data before a trial may be stopped.")] = None,
    prune: Annotated[bool, typer.Option(help="Stop unpromising trials early (successive halving).")] = True,
    stem: Annotated[str, typer.Option(help="auto (measured), fourier or direct: the stem's algorithm.")] = "auto",
    stack: Annotated[str, typer.Option(help="auto (measured), on or off: folds trained as one program.")] = "auto",
    address: Annotated[
        str | None, typer.Option(help="Ray cluster; default: this machine.", envvar="RAY_ADDRESS")
    ] = None,
    storage: Annotated[str | None, typer.Option(help="Where Ray keeps its scratch files on a cluster.")] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    warm_start: Annotated[
        str | None, typer.Option(metavar="RUN", help="A run whose trials a new run's sampler begins with.")
    ] = None,
    init: Annotated[
        str | None, typer.Option(metavar="RUN", help="A pretrained run, or its exported encoder, to start from.")
    ] = None,
) -> None:
    """Search a space over subject folds. The same command begins, goes on after a crash, and extends."""
    from raypipe.console import SweepView
    from raypipe.driver import sweep as search

    with SweepView(console) as view:
        done = search(
            space,
            data,
            run,
            warm_start=warm_start,
            init=init,
            watch=view,
            trials=trials,
            folds=folds,
            held_out=_held_out(held_out),
            workers=workers,
            cpus_per_worker=cpus_per_worker,
            gpus_per_worker=gpus_per_worker,
            concurrent=concurrent,
            time_budget=_seconds(time_budget),
            grace=grace,
            prune=prune,
            stem=stem,
            stack=stack,
            address=address,
            storage=storage,
            seed=seed,
        )
    _print_status(done.where)


@app.command(epilog=_example("raypipe pretrain mae --data demo/store --run demo/mae --epochs 20"))
def pretrain(
    objective: Annotated[str, typer.Argument(metavar="mae|simclr", help="What is learnt, without targets.")],
    data: Annotated[Path, typer.Option(help="Windows made by prepare.")],
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
    workers: Annotated[int, typer.Option(help="Workers that share a batch (Ray Train if more than one).")] = 1,
    cpus_per_worker: Annotated[float, typer.Option(help="Cores a worker.")] = 1,
    gpus_per_worker: Annotated[float, typer.Option(help="GPUs a worker.")] = 0,
    address: Annotated[str | None, typer.Option(help="Ray cluster; default: this machine.")] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
) -> None:
    """Pretrain an encoder without labels, for sweeps with --init. The same command goes on after a crash."""
    from raypipe.console import Counter
    from raypipe.pretrain import parse_values
    from raypipe.pretrain import pretrain as begin

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
            held_out=_held_out(held_out),
            seed=seed,
            serves=serves,
            fold_wise=fold_wise,
            probe_every=probe_every,
            micro_batch=micro_batch,
            workers=workers,
            cpus_per_worker=cpus_per_worker,
            gpus_per_worker=gpus_per_worker,
            address=address,
            progress=counter,
        )
    _print_pretrained(run)


def _print_pretrained(where: str) -> None:
    from raypipe.pretrain_report import status_lines

    for line in status_lines(where):
        console.print(line, highlight=False, soft_wrap=True)


def _is_pretrained(where: str) -> bool:
    from raypipe.pretrained import PretrainedRun

    return PretrainedRun.exists(where)


@app.command(epilog=_example("raypipe resume demo/run --trials 60"))
def resume(
    run: RunArg,
    trials: Annotated[int | None, typer.Option(help="A new number of trials in all.")] = None,
    time_budget: Annotated[str | None, typer.Option(help="A new time budget.")] = None,
    address: Annotated[str | None, typer.Option(help="Another Ray cluster.", envvar="RAY_ADDRESS")] = None,
    workers: Annotated[int | None, typer.Option(help="Another number of workers.")] = None,
) -> None:
    """Go on with a run: the same as its sweep command again."""
    if _is_pretrained(run):
        from raypipe.console import Counter
        from raypipe.pretrain import resume as pretrain_on

        if trials is not None or time_budget is not None:
            raise UserError(f"{run}: a pretrained run has no --trials and no --time-budget")
        with Counter(console, "pretraining") as counter:
            pretrain_on(run, workers=workers, address=address, progress=counter)
        _print_pretrained(run)
        return
    from raypipe.console import SweepView
    from raypipe.driver import resume as go_on

    with SweepView(console) as view:
        go_on(run, watch=view, trials=trials, time_budget=_seconds(time_budget), address=address, workers=workers)
    _print_status(run)


@app.command(epilog=_example("raypipe status demo/run"))
def status(run: RunArg) -> None:
    """Show trials, scores, failures and time left, while a run is driven and afterwards."""
    if _is_pretrained(run):
        _print_pretrained(run)
    else:
        _print_status(run)


def _print_status(where: str) -> None:
    from raypipe.console import show_status
    from raypipe.status import read_status
    from raypipe.store import RunStore

    show_status(console, read_status(RunStore.open(where)))


@app.command(epilog=_example("raypipe logs demo/run 7"))
def logs(
    run: RunArg,
    trial: Annotated[int, typer.Argument(metavar="TRIAL", min=0, help="Number of the trial.")],
) -> None:
    """Show what happened to a trial, as its workers, its slot and the driver have written it down."""
    from raypipe.logs import read_log
    from raypipe.store import RunStore

    store = RunStore.open(run)
    lines = read_log(store.folder, trial)
    if not lines and not store.has_trial(trial):
        raise UserError(f"{store.where}: no trial {trial}")
    for line in lines or [f"trial {trial} has no log yet"]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


@app.command(epilog=_example("raypipe ensemble demo/run --top 5"))
def ensemble(
    run: RunArg,
    top: Annotated[int, typer.Option(min=1, help="How many of the best trials.")] = 10,
    method: Annotated[
        str,
        typer.Option(
            help="auto: the best by nested cross-validation over subjects; all: as auto, with a "
            "table of every method; or one of best, equal, average, inverse-mse, confidence, softmax, sample, "
            "member-sample, greedy, ridge, boosting."
        ),
    ] = "auto",
    max_members: Annotated[int | None, typer.Option(min=1, help="Networks that may be shipped.")] = None,
    max_mb: Annotated[float | None, typer.Option(help="Megabytes of weights that may be shipped.")] = None,
) -> None:
    """Fit an ensemble on out-of-fold predictions; score it on the held-out subjects."""
    from raypipe.baselines import write_baselines
    from raypipe.console import Counter
    from raypipe.ensemble import fit_ensemble
    from raypipe.report import write_plots, write_report
    from raypipe.store import RunStore

    store = RunStore.open(run)
    with Counter(console, "predicting held-out subjects") as counter:
        fitted = fit_ensemble(store, top=top, method=method, max_members=max_members, max_mb=max_mb, progress=counter)
    fitted.save()
    write_baselines(store)
    console.print(fitted.render())
    console.print(f"shipped: {fitted.method}, {len(fitted.trials)} trial(s)", highlight=False)
    for name, reason in (fitted.left_out or {}).items() if method == "all" else ():
        console.print(f"{name} was left out: {reason}", highlight=False)
    console.print(fitted.verdict, highlight=False)
    write_plots(store, fitted)
    console.print(f"report: {write_report(store)}", highlight=False, soft_wrap=True)


@app.command(epilog=_example("raypipe report demo/run"))
def report(
    run: RunArg,
    out: Annotated[Path | None, typer.Option(help="HTML file. Default: report.html in the run.")] = None,
) -> None:
    """Write the run's report, one HTML file that opens anywhere."""
    from raypipe.report import write_report
    from raypipe.store import RunStore

    if _is_pretrained(run):
        from raypipe.pretrain_report import write_pretrain_report

        console.print(f"report: {write_pretrain_report(run, out)}", highlight=False, soft_wrap=True)
        return
    console.print(f"report: {write_report(RunStore.open(run), out)}", highlight=False, soft_wrap=True)


@app.command(epilog=_example("raypipe export run1 run2 submission.zip"))
def export(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="RUN [RUN2] OUT", help="One run, or one for each challenge; then a folder or a zip."),
    ],
    format: Annotated[str | None, typer.Option(help="bundle or submission. Default: by OUT's name.")] = None,
) -> None:
    """Write a run's ensemble as a bundle (for Python and predict) or as a submission zip (needs torch only).

    A submission takes two runs, one for each half of the challenge.
    """
    from raypipe.export import export as write

    if not 2 <= len(paths) <= 3:
        raise UserError(f"export takes one run or two, then what to write: RUN [RUN2] OUT (given {len(paths)} names)")
    run, *also, out = paths
    if _is_pretrained(run):
        from raypipe.pretrained import export_encoder

        if format is not None or also:
            raise UserError(f"{run}: a pretrained run is exported as an encoder: no second run, no --format")
        console.print(export_encoder(run, Path(out)), highlight=False, soft_wrap=True)
        return
    console.print(write(run, out, format=format, also=also[0] if also else None), highlight=False, soft_wrap=True)


@app.command(
    epilog=_example("raypipe score submission.zip --task challenge1 --data c1/store --task challenge2 --data c2/store")
)
def score(
    submission: Annotated[Path, typer.Argument(metavar="OUT.zip", help="Submission to score.")],
    task: Annotated[list[str], typer.Option(help="challenge1 or challenge2; twice for the overall score.")],
    data: Annotated[list[Path], typer.Option(help="Windows made by prepare for that task, in the same order.")],
    release: Annotated[str | None, typer.Option(help="Only subjects of this release, such as R5.")] = None,
    subjects: Annotated[str, typer.Option(help="new: whom the models have not learned from; or all.")] = "new",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Score a submission as the challenge's organisers do: NRMSE, RMSE, R2, and overall for both tasks."""
    from raypipe.scoring import score_submission

    if len(task) != len(data) or len(set(task)) != len(task):
        raise UserError(f"score wants one --data for each --task, no task twice (given {len(task)} and {len(data)})")
    stores = dict(zip(task, data, strict=True))
    console.print(score_submission(submission, stores, release=release, whose=subjects, device=device).render())


@app.command(epilog=_example("raypipe check demo/submission.zip"))
def check(
    zip_file: Annotated[Path, typer.Argument(metavar="OUT.zip", help="Submission to check.")],
    bundle: Annotated[Path | None, typer.Option(help="A bundle whose answers it must give.")] = None,
) -> None:
    """Run the scorer's own loop on a submission, in a fresh process without raypipe and Ray."""
    from raypipe.check import check_submission

    found = check_submission(zip_file, bundle=bundle)
    console.print(found.render())
    if not found.ok:
        raise typer.Exit(1)


@app.command(epilog=_example("raypipe predict demo/bundle demo/bids --out predictions.csv"))
def predict(
    bundle: Annotated[Path, typer.Argument(help="Bundle made by export.")],
    recordings: Annotated[Path, typer.Argument(metavar="RECORDING-OR-BIDS", help="A recording or a BIDS folder.")],
    out: Annotated[Path, typer.Option(help="CSV file, a row a window.")],
) -> None:
    """Predict recordings that the ensemble has never seen."""
    from raypipe.console import Counter
    from raypipe.predict import predict as run_bundle

    with Counter(console, "predicting") as counter:
        table = run_bundle(bundle, recordings, out, progress=counter)
    console.print(f"{out}: {len(table)} windows", highlight=False, soft_wrap=True)


def _seconds(text: str | None) -> float | None:
    """``90s``, ``30m``, ``2h``, ``1.5d`` or a number of seconds."""
    if text is None:
        return None
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    try:
        seconds = float(number) * units[unit]
    except ValueError:
        raise UserError(f"--time-budget {text}: not a time; say for example 90s, 30m or 2h") from None
    if not seconds > 0:
        raise UserError(f"--time-budget {text}: must be longer than nothing")
    return seconds


def _held_out(text: str) -> float | list[str] | Literal["auto"]:
    """``0.2`` to a share, ``NDAR1,NDAR2`` to names; ``auto`` stays."""
    if text == "auto":
        return "auto"
    try:
        return float(text)
    except ValueError:
        return [name.strip() for name in text.split(",") if name.strip()]


def _run(arguments: list[str] | None) -> None:
    try:
        app(arguments)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # Typer makes this of a KeyboardInterrupt, without a word
            raise KeyboardInterrupt from None
        raise


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line; bad input gives one line on standard error and exit status 2."""
    from raypipe.folds import LeakError

    os.environ.setdefault("MNE_LOGGING_LEVEL", "ERROR")
    try:
        _run(arguments)
    except (UserError, LeakError) as error:
        print(f"raypipe: error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"raypipe: error: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except (InterruptedSweepError, KeyboardInterrupt):
        print("raypipe: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(INTERRUPTED)
