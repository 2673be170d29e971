"""Verbs that look at runs and machines: status, trials, logs, report, compare, dashboard, watch, doctor."""

from __future__ import annotations

import contextlib
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from raypipe.cli.common import (
    LOCAL_DASHBOARD,
    ClusterOption,
    RunArg,
    app,
    console,
    example,
    is_outer,
    is_pretrained,
    print_outer,
    print_pretrained,
    print_status,
    write,
)
from raypipe.core.errors import UserError
from raypipe.core.text import one_line
from raypipe.storage.remote import shell_quoted

if TYPE_CHECKING:
    from raypipe.storage.files import Folder
    from raypipe.storage.run_store import RunStore

PANEL = "Inspection"
"""Heading of these verbs in `raypipe --help`."""


@app.command(rich_help_panel=PANEL, epilog=example("raypipe status demo/run"))
def status(run: RunArg) -> None:
    """Show trials, scores, failures and time left of a run."""
    if is_pretrained(run):
        print_pretrained(run)
    elif is_outer(run):
        print_outer(run)
    else:
        print_status(run)


@app.command(rich_help_panel=PANEL, epilog=example("raypipe trials demo/run --csv trials.csv"))
def trials(
    run: RunArg,
    csv: Annotated[str | None, typer.Option(metavar="OUT", help="Write a CSV file; -: to standard output.")] = None,
    json: Annotated[str | None, typer.Option(metavar="OUT", help="Write a JSON list of objects; -: as above.")] = None,
    parquet: Annotated[str | None, typer.Option(metavar="OUT", help="Write a Parquet file.")] = None,
) -> None:
    """Show all trials with their parameters, or write them to a file."""
    from raypipe.reporting.tables import show_trials
    from raypipe.reporting.trial_table import encode_table, trials_table, write_table
    from raypipe.storage.run_store import RunStore

    if parquet == "-":
        raise UserError("--parquet -: Parquet is not text; name a file")
    found = trials_table(RunStore.open(run))
    given = {kind: out for kind, out in (("csv", csv), ("json", json), ("parquet", parquet)) if out is not None}
    for kind, out in given.items():
        if out == "-":
            typer.echo(encode_table(found, kind), nl=False)
        else:
            write_table(found, kind, out)
            write(f"{out}: {len(found)} trials")
    if not given:
        show_trials(console, found)


@app.command(rich_help_panel=PANEL, epilog=example("raypipe logs demo/run 7 -f"))
def logs(
    run: Annotated[str, typer.Argument(metavar="RUN|JOB", help="A run, or a job of a cluster.")],
    trial: Annotated[
        int | None,
        typer.Argument(metavar="[TRIAL]", min=0, help="Number of the trial. Without it: what Ray printed."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Follow until the trial or the job has ended.")
    ] = False,
    cluster: ClusterOption = LOCAL_DASHBOARD,
) -> None:
    """Show the log of a trial, of Ray, or of a job."""
    from raypipe.storage.files import open_folder
    from raypipe.storage.run_store import RunStore

    if trial is not None:
        with contextlib.suppress(KeyboardInterrupt):
            _trial_logs(RunStore.open(run), trial, follow)
    elif RunStore.exists(run) or is_pretrained(run):
        _ray_logs(open_folder(run), follow)
    else:
        _job_logs(run, cluster, follow)


def _trial_logs(store: RunStore, trial: int, follow: bool) -> None:
    from raypipe.storage.lease import read_lease
    from raypipe.storage.trial_log import follow_log, read_log

    def has_driver() -> bool:
        driver = read_lease(store.folder)
        return driver is not None and driver.alive

    if not store.has_trial(trial) and not read_log(store.folder, trial):
        raise UserError(f"{store.where}: no trial {trial}")
    empty = True
    for line in follow_log(store.folder, trial, has_driver) if follow else read_log(store.folder, trial):
        write(line)
        empty = False
    if empty:
        write(f"trial {trial} has no log yet")
    if follow and store.result(trial) is None:
        resume = f"raypipe resume {shell_quoted(store.where)}"
        write(f"trial {trial} has not ended, and no driver is running; continue with: {resume}")


def _ray_logs(folder: Folder, follow: bool) -> None:
    from raypipe.storage.trial_log import OUTPUT_FILE, read_output

    trial_logs = f"raypipe logs {shell_quoted(folder.where)} TRIAL"
    if follow:
        raise UserError(f"--follow: needs a trial or a job: {trial_logs} -f")
    _write_output(read_output(folder).rstrip() or "Ray has printed nothing yet", end="\n")
    write(f"this is {folder.where}/{OUTPUT_FILE}; the log of a trial: {trial_logs}")


def _write_output(text: str, end: str = "") -> None:
    """Print what other processes have printed, which may have many lines."""
    console.print(text, highlight=False, markup=False, soft_wrap=True, end=end)


def _job_logs(job: str, cluster: str, follow: bool) -> None:
    from raypipe.backend.jobs import Jobs

    jobs = Jobs(cluster)

    if not follow:
        _write_output(jobs.logs(job))
        return
    ended = jobs.follow(job, _write_output)
    write(f"{job}: {ended.lower()}")
    if ended != "SUCCEEDED":
        raise typer.Exit(1)


@app.command(rich_help_panel=PANEL, epilog=example("raypipe report demo/run"))
def report(
    run: RunArg,
    out: Annotated[Path | None, typer.Option(help="HTML file.", show_default="report.html in the run")] = None,
) -> None:
    """Write the report of a run, one HTML file."""
    from raypipe.reporting.report import write_report
    from raypipe.storage.run_store import RunStore

    if is_pretrained(run):
        from raypipe.reporting.pretrain_report import write_pretrain_report

        write(f"report: {write_pretrain_report(run, out)}")
        return
    if is_outer(run):
        from raypipe.reporting.outer import write_outer_report
        from raypipe.storage.outer_run import OuterRun

        write(f"report: {write_outer_report(OuterRun(run), out)}")
        return
    write(f"report: {write_report(RunStore.open(run), out)}")


@app.command(rich_help_panel=PANEL, epilog=example("raypipe compare demo/run demo/other"))
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN1 RUN2...", help="Runs. Each is compared with the first.")],
) -> None:
    """Compare runs over the same subjects, with intervals."""
    from raypipe.reporting.compare import compare_runs
    from raypipe.reporting.tables import show_comparison
    from raypipe.storage.run_store import RunStore

    if any(outer := [is_outer(run) for run in runs]):
        from raypipe.reporting.compare_outer import compare_outer
        from raypipe.storage.outer_run import OuterRun

        if not all(outer):
            raise UserError(f"{runs[outer.index(False)]}: a run without --outer; compare runs of one kind")
        show_comparison(console, compare_outer([OuterRun(run) for run in runs]))
        return
    show_comparison(console, compare_runs([RunStore.open(run) for run in runs]))


@app.command(rich_help_panel=PANEL, epilog=example("raypipe dashboard demo/run"))
def dashboard(
    run: RunArg,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 8080,
) -> None:
    """Serve a run's study in optuna-dashboard, on this machine only."""
    from raypipe.cli.dashboard import serve
    from raypipe.storage.run_store import RunStore

    serve(RunStore.open(run), port, lambda where: write(f"{where}  (Ctrl-C ends it)"))


@app.command(rich_help_panel=PANEL, epilog=example("raypipe watch demo/run"))
def watch(
    run: RunArg,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on this machine.", show_default="a free one")] = 0,
) -> None:
    """Serve a live page of a run, on this machine only, also while no sweep runs.

    It can stop a trial, enqueue a point and end the sweep, so keep its address, which holds a token, to yourself.
    """
    from raypipe.reporting.live_server import serve
    from raypipe.storage.run_store import RunStore

    if is_pretrained(run):
        raise UserError(f"watch {run}: a pretrained run has no trials; follow it with: raypipe status {run}")
    if is_outer(run):
        raise UserError(f"watch {run}: an outer cross-validation; watch one of its parts, such as {run}/part-1")
    serve(RunStore.open(run), port, lambda where: write(f"{where}  (Ctrl-C ends it)"))


@app.command(rich_help_panel=PANEL, epilog=example("raypipe doctor demo/run"))
def doctor(
    target: Annotated[
        str | None,
        typer.Argument(metavar="[TARGET]", help="Store, run, pretrained run, bundle, or URI of a storage."),
    ] = None,
) -> None:
    """Check this machine, and a store, run, bundle or storage.

    Each finding says how to fix what is broken. The exit status is 1 if something is broken.
    """
    from raypipe.cli.doctor import diagnose
    from raypipe.cli.machine import examine

    styles = {"ok": "green", "warning": "yellow", "broken": "bold red"}
    broken = 0
    folder = target if target is not None and "://" not in target else "."
    if not Path(folder).expanduser().exists():
        raise UserError(f"{target}: no such folder; name what raypipe prepare, sweep, pretrain or export wrote")
    for found in chain(examine(folder), diagnose(target) if target is not None else ()):
        broken += found.level == "broken"
        line = found.what + (f"; fix: {found.fix}" if found.fix else "")
        console.print(Text(f"{found.level:<7}", styles[found.level]), Text(one_line(line)), soft_wrap=True)
    if broken:
        console.print(f"{broken} broken", style="bold red", highlight=False)
        raise typer.Exit(1)
