"""A run looked at: its state, logs, ensemble and report."""

from __future__ import annotations

import contextlib
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from raypipe.cli.common import (
    LOCAL,
    ClusterOption,
    RunArg,
    app,
    console,
    example,
    is_pretrained,
    print_pretrained,
    print_status,
)
from raypipe.core.errors import UserError
from raypipe.storage.remote import shell_quoted

if TYPE_CHECKING:
    from raypipe.storage.files import Folder
    from raypipe.storage.run_store import RunStore

PANEL = "Looking"
"""Under which `raypipe --help` lists these verbs."""


@app.command(rich_help_panel=PANEL, epilog=example("raypipe status demo/run"))
def status(run: RunArg) -> None:
    """Show trials, scores, failures and time left, while a run is driven and afterwards."""
    if is_pretrained(run):
        print_pretrained(run)
    else:
        print_status(run)


@app.command(rich_help_panel=PANEL, epilog=example("raypipe logs demo/run 7 -f"))
def logs(
    run: Annotated[
        str, typer.Argument(metavar="RUN|JOB", help="Run: with a trial, or alone for what Ray printed. Or a job.")
    ],
    trial: Annotated[int | None, typer.Argument(metavar="[TRIAL]", min=0, help="Number of the trial.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the trial or the job has ended.")] = False,
    cluster: ClusterOption = LOCAL,
) -> None:
    """Show what happened to a trial, epoch by epoch; or what Ray printed during a run; or what a job prints."""
    from raypipe.storage.files import open_folder
    from raypipe.storage.run_store import RunStore

    if trial is not None:
        with contextlib.suppress(KeyboardInterrupt):
            _trial_logs(RunStore.open(run), trial, follow)
    elif RunStore.exists(run) or is_pretrained(run):
        _ray_logs(open_folder(run), follow)
    else:
        _job_logs(run, cluster, follow)


def _write(text: str, end: str = "\n") -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True, end=end)


def _trial_logs(store: RunStore, trial: int, follow: bool) -> None:
    from raypipe.storage.lease import read_lease
    from raypipe.storage.trial_log import follow_log, read_log

    def alive() -> bool:
        driver = read_lease(store.folder)
        return driver is not None and driver.alive

    if not store.has_trial(trial) and not read_log(store.folder, trial):
        raise UserError(f"{store.where}: no trial {trial}")
    none = True
    for line in follow_log(store.folder, trial, alive) if follow else read_log(store.folder, trial):
        _write(line)
        none = False
    if none:
        _write(f"trial {trial} has no log yet")
    if follow and store.result(trial) is None:
        where = shell_quoted(store.where)
        _write(f"trial {trial} has not ended, and no driver is running; continue with: raypipe resume {where}")


def _ray_logs(folder: Folder, follow: bool) -> None:
    from raypipe.storage.trial_log import OUTPUT_FILE, read_output

    if follow:
        raise UserError(f"--follow: goes with a trial or a job: raypipe logs {shell_quoted(folder.where)} TRIAL -f")
    _write(read_output(folder).rstrip() or "Ray has printed nothing yet")
    _write(f"this is {folder.where}/{OUTPUT_FILE}; a trial's own log: raypipe logs {shell_quoted(folder.where)} TRIAL")


def _job_logs(job: str, cluster: str, follow: bool) -> None:
    from raypipe.backend.jobs import Jobs

    there = Jobs(cluster)

    def write(text: str) -> None:
        _write(text, end="")

    if not follow:
        write(there.logs(job))
        return
    ended = there.follow(job, write)
    console.print(f"{job}: {ended.lower()}", highlight=False)
    if ended != "SUCCEEDED":
        raise typer.Exit(1)


@app.command(rich_help_panel=PANEL, epilog=example("raypipe trials demo/run --csv trials.csv"))
def trials(
    run: RunArg,
    csv: Annotated[str | None, typer.Option(metavar="OUT", help="Write a CSV file; - for standard output.")] = None,
    json: Annotated[str | None, typer.Option(metavar="OUT", help="Write JSON, a list of objects; - as above.")] = None,
    parquet: Annotated[str | None, typer.Option(metavar="OUT", help="Write a Parquet file.")] = None,
) -> None:
    """Show or write every trial: score, each fold's score, parameters, epochs, seconds, failure and reason."""
    from raypipe.cli.console import show_trials
    from raypipe.reporting.trial_table import packed, trials_table, write_table
    from raypipe.storage.run_store import RunStore

    if parquet == "-":
        raise UserError("--parquet -: Parquet is not text; name a file")
    found = trials_table(RunStore.open(run))
    given = {kind: out for kind, out in (("csv", csv), ("json", json), ("parquet", parquet)) if out is not None}
    for kind, out in given.items():
        if out == "-":
            typer.echo(packed(found, kind), nl=False)
        else:
            write_table(found, kind, out)
            console.print(f"{out}: {len(found)} trials", highlight=False, markup=False, soft_wrap=True)
    if not given:
        show_trials(console, found)


@app.command(rich_help_panel=PANEL, epilog=example("raypipe dashboard demo/run"))
def dashboard(
    run: RunArg,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of this machine.")] = 8080,
) -> None:
    """Open optuna-dashboard (an extra) on a run's study, while it runs or later; Ctrl-C ends it."""
    from raypipe.cli.dashboard import serve
    from raypipe.storage.run_store import RunStore

    serve(RunStore.open(run), port, lambda where: console.print(f"{where}  (Ctrl-C ends it)", highlight=False))


@app.command(rich_help_panel=PANEL, epilog=example("raypipe ensemble demo/run --top 5"))
def ensemble(
    run: RunArg,
    top: Annotated[int, typer.Option(min=1, help="How many of the best trials.")] = 10,
    method: Annotated[
        str,
        typer.Option(
            help="auto: the best by nested cross-validation over subjects; all: as auto, with a "
            "table of every method; or one of best, equal, snapshots, average, inverse-mse, confidence, softmax, "
            "sample, member-sample, greedy, ridge, boosting; or soup (greedy), uniform-soup, swa (snapshots): averaged "
            "weights, one network a fold, of members that share their start. See docs/ensembles.md."
        ),
    ] = "auto",
    max_members: Annotated[int | None, typer.Option(min=1, help="Networks that may be shipped.")] = None,
    max_mb: Annotated[float | None, typer.Option(help="Megabytes of weights that may be shipped.")] = None,
    distill: Annotated[
        bool, typer.Option("--distill", help="Ship one network, trained to answer as the ensemble does.")
    ] = False,
) -> None:
    """Fit an ensemble on out-of-fold predictions; score it on the held-out subjects."""
    from raypipe.cli.console import Counter
    from raypipe.ensembles.fit import fit_ensemble
    from raypipe.reporting.baselines import write_baselines
    from raypipe.reporting.report import write_plots, write_report
    from raypipe.storage.run_store import RunStore

    store = RunStore.open(run)
    with Counter(console, "predicting held-out subjects") as counter:
        fitted = fit_ensemble(
            store,
            top=top,
            method=method,
            max_members=max_members,
            max_mb=max_mb,
            distilled=distill,
            progress=counter,
        )
    fitted.save()
    write_baselines(store)
    console.print(fitted.render())
    snapshots = sum(member.epoch > 0 for member in fitted.members)
    more = f" and {snapshots} snapshot(s)" if snapshots else ""
    more += ", distilled into one network" if distill else ""
    alone = len(fitted.members) == 1 and not distill
    what = (
        f"{fitted.members[0]} alone ({fitted.method})" if alone else f"{fitted.method}, {len(fitted.trials)} trial(s)"
    )
    console.print(f"shipped: {what}{'' if alone else more}", highlight=False)
    for name, reason in (fitted.left_out or {}).items() if method == "all" else ():
        console.print(f"{name} was left out: {reason}", highlight=False)
    console.print(fitted.verdict, highlight=False)
    write_plots(store, fitted)
    console.print(f"report: {write_report(store)}", highlight=False, soft_wrap=True)


@app.command(rich_help_panel=PANEL, epilog=example("raypipe report demo/run"))
def report(
    run: RunArg,
    out: Annotated[Path | None, typer.Option(help="HTML file. Default: report.html in the run.")] = None,
) -> None:
    """Write the run's report, one HTML file that opens anywhere."""
    from raypipe.reporting.report import write_report
    from raypipe.storage.run_store import RunStore

    if is_pretrained(run):
        from raypipe.reporting.pretrain_report import write_pretrain_report

        console.print(f"report: {write_pretrain_report(run, out)}", highlight=False, soft_wrap=True)
        return
    console.print(f"report: {write_report(RunStore.open(run), out)}", highlight=False, soft_wrap=True)


@app.command(rich_help_panel=PANEL, epilog=example("raypipe compare demo/run demo/other"))
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN1 RUN2...", help="Runs; each is compared with the first.")],
) -> None:
    """Compare runs over the same subjects: differences with intervals, data and folds, parameters, cost."""
    from raypipe.cli.console import show_comparison
    from raypipe.reporting.compare import compare_runs
    from raypipe.storage.run_store import RunStore

    show_comparison(console, compare_runs([RunStore.open(run) for run in runs]))


@app.command(rich_help_panel=PANEL, epilog=example("raypipe doctor demo/run"))
def doctor(
    target: Annotated[
        str | None, typer.Argument(metavar="[STORE-OR-RUN]", help="A store, run, pretrained run, bundle or storage.")
    ] = None,
) -> None:
    """Check this machine, and a store or run or a storage's URI; say of each finding how to mend it.

    Leaves with exit status 1 if something is broken.
    """
    from raypipe.cli.doctor import diagnose
    from raypipe.cli.machine import examine

    styles = {"ok": "green", "look": "yellow", "broken": "bold red"}
    broken = 0
    local = target if target is not None and "://" not in target else "."
    if not Path(local).expanduser().exists():
        raise UserError(f"{target}: no such folder; name what raypipe prepare, sweep, pretrain or export wrote")
    for found in chain(examine(local), diagnose(target) if target is not None else ()):
        broken += found.level == "broken"
        line = found.what + (f"; mend: {found.mend}" if found.mend else "")
        console.print(Text(f"{found.level:<7}", styles[found.level]), Text(line), soft_wrap=True)
    if broken:
        console.print(f"{broken} broken", style="bold red", highlight=False)
        raise typer.Exit(1)
