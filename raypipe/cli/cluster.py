"""Verbs for clusters and storage: submit, jobs, stop, push, pull, tidy."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from raypipe.cli.common import (
    LOCAL_DASHBOARD,
    ClusterOption,
    RunArg,
    app,
    console,
    example,
    is_outer,
    is_pretrained,
    print_asked,
    write,
)
from raypipe.core.errors import UserError
from raypipe.core.own_code import file_of, named_files, read_source
from raypipe.core.shipped import find_space
from raypipe.core.text import decode_source, one_line
from raypipe.search.notify import NOTIFY_VARIABLE
from raypipe.storage.records import KEPT_TRIALS
from raypipe.storage.remote import shell_quoted

PANEL = "Cluster and storage"
"""Heading of these verbs in `raypipe --help`."""

SUBMITTABLE = ("plan", "sweep", "rerun", "resume", "pretrain", "ensemble", "report")
"""Verbs that can be submitted to a cluster."""


@app.command(
    rich_help_panel=PANEL,
    epilog=example("raypipe submit sweep latency --data s3://lab/store --run s3://lab/run"),
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False},
)
def submit(
    context: typer.Context,
    verb: Annotated[
        str, typer.Argument(metavar="VERB ...", help=f"Command as on this machine: {', '.join(SUBMITTABLE)}.")
    ],
    cluster: ClusterOption = LOCAL_DASHBOARD,
) -> None:
    """Run a command on a cluster's head, and return at once.

    Submitted again after a crash, it continues.
    """
    from raypipe.backend.jobs import Jobs

    if verb not in SUBMITTABLE:
        raise UserError(f"submit {verb}: cannot be submitted; choose one of {', '.join(SUBMITTABLE)}")
    words = list(context.args)
    if any(word.partition("=")[0] == "--notify" for word in words):
        raise UserError(f"--notify: a job's record would keep the URL; set {NOTIFY_VARIABLE} where the head starts Ray")
    values = _parsed(verb, words)
    run = _run_of(verb, values)
    _refuse_local_paths(verb, values)
    files = _ship_space(values, words)
    if path := file_of(values.get("metric") or ""):
        files |= _own_files([path], Path(), f"--metric {values['metric']}")
    job = Jobs(cluster).submit([verb, *words], run, files)
    follow = f"raypipe logs {job} -f" + ("" if verb == "plan" else f", raypipe status {shell_quoted(run)}")
    write(f"{job}: submitted; {follow}")


def _parsed(verb: str, words: list[str]) -> dict[str, Any]:
    """Parse and check a command's options, so that bad ones are refused before a job is started."""
    from raypipe.core.options import PretrainOptions, SweepOptions, parse_options, parse_pretrain_options

    command: Any = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    values = dict(command.make_context(f"raypipe submit {verb}", list(words)).params)
    if verb in ("plan", "sweep"):
        parse_options({name: value for name, value in values.items() if name in SweepOptions.model_fields})
    if verb == "pretrain":
        parse_pretrain_options({name: value for name, value in values.items() if name in PretrainOptions.model_fields})
    return values


def _run_of(verb: str, values: dict[str, Any]) -> str:
    """Return the run by which a job is named, since a run has one job at a time; for a plan, its data and space."""
    if verb == "plan":
        return f"{str(values['data']).partition('?')[0]}/plan-{Path(values['space']).stem}"
    return str(values["run"])


def _refuse_local_paths(verb: str, values: dict[str, Any]) -> None:
    from raypipe.backend.jobs import refuse_local
    from raypipe.core.store_names import places_of

    for option in ("run", "data", "init", "warm_start", "serves"):
        if values.get(option) is not None:
            is_argument = option == "run" and verb not in ("sweep", "pretrain")
            name = "RUN" if is_argument else f"--{option.replace('_', '-')}"
            for place in places_of(values[option]) if option == "data" else [str(values[option])]:
                refuse_local(name, place)


def _ship_space(values: dict[str, Any], words: list[str]) -> dict[str, Path]:
    """Return files to send, by their paths there; in `words`, the search space's path becomes that."""
    if not values.get("space"):
        return {}
    space = Path(values["space"])
    file = find_space(space)
    words[next(place for place, word in enumerate(words) if Path(word) == space)] = file.name
    named = named_files(decode_source(file.read_bytes(), file))
    return {file.name: file} | _own_files(named, file.parent, str(space))


def _own_files(paths: Iterable[str], folder: Path, where: str) -> dict[str, Path]:
    """Return users' files in a folder by the paths that name them; each is read, so that a bad one is refused here."""
    for path in paths:
        read_source(path, folder, where)
        if Path(path).is_absolute() or path.startswith("~") or ".." in Path(path).parts:
            raise UserError(
                f"{where}: '{path}': a job is sent files of the folder {folder.resolve()} only; name one there"
            )
    return {path: folder / path for path in paths}


@app.command(rich_help_panel=PANEL, epilog=example("raypipe jobs --cluster http://127.0.0.1:8265"))
def jobs(cluster: ClusterOption = LOCAL_DASHBOARD) -> None:
    """List the jobs of a cluster, newest first."""
    from rich.table import Table

    from raypipe.backend.jobs import Jobs

    found = Jobs(cluster).list()
    if not found:
        write("no jobs yet")
        return
    table = Table("job", "status", "since", "command", box=None)
    for job in found:
        since = f"{job.started:%Y-%m-%d %H:%M}" if job.started else ""
        table.add_row(one_line(job.name), job.status.lower(), since, one_line(job.command))
    console.print(table)


@app.command(rich_help_panel=PANEL, epilog=example("raypipe stop demo/run --trial 7", "raypipe stop run-1a2b3c-1"))
def stop(
    run: Annotated[str, typer.Argument(metavar="RUN|JOB", help="A run, or a job as raypipe jobs lists it.")],
    trial: Annotated[
        int | None, typer.Option(min=0, help="Trial that stops after its epoch.", show_default="the whole sweep")
    ] = None,
    cluster: ClusterOption = LOCAL_DASHBOARD,
) -> None:
    """Stop a running sweep or one of its trials, or a job.

    Epochs under way are finished, and the run is kept: raypipe resume, or the job submitted again, continues it.
    """
    from raypipe.search.requests import ask_to_end, ask_to_stop
    from raypipe.storage.run_store import RunStore

    if is_outer(run):
        raise UserError(f"stop {run}: an outer cross-validation; stop the part that runs, such as {run}/part-1")
    if trial is None and "/" not in run and not RunStore.exists(run):
        _stop_job(run, cluster)
        return
    store = RunStore.open(run)
    asked = ask_to_end(store) if trial is None else ask_to_stop(store, trial)
    print_asked(store, asked)


def _stop_job(name: str, cluster: str) -> None:
    from raypipe.backend.jobs import Jobs, NoDashboardError
    from raypipe.core.addresses import dashboard_url, without_password

    try:
        found = Jobs(cluster)
    except NoDashboardError:
        address = without_password(dashboard_url(cluster))
        raise UserError(
            f"{name}: no run here, and no Ray dashboard at {address} to ask for a job of that name; "
            "name the run's folder, or the dashboard with --cluster URL"
        ) from None
    found.stop(name)
    write(f"{name}: stopping")


@app.command(rich_help_panel=PANEL, epilog=example("raypipe push demo/store s3://lab/store"))
def push(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Windows made by prepare.")],
    target: Annotated[str, typer.Argument(metavar="URI", help="Folder or pyarrow.fs URI to copy them to.")],
) -> None:
    """Copy windows to shared storage, for a cluster."""
    from raypipe.cli.console import ProgressCounter
    from raypipe.data.window_cache import push_store

    with ProgressCounter(console, "copying") as counter:
        count = push_store(str(store), target, progress=counter)
    write(f"{target}: {count} files")


@app.command(rich_help_panel=PANEL, epilog=example("raypipe pull s3://lab/run run"))
def pull(
    run: RunArg,
    target: Annotated[str, typer.Argument(metavar="OUT", help="Folder to copy it to.")],
) -> None:
    """Copy a run from shared storage to this machine, or an outer cross-validation with all its parts."""
    from raypipe.cli.console import ProgressCounter
    from raypipe.storage.transfer import pull_run

    with ProgressCounter(console, "copying") as counter:
        count = pull_run(run, target, progress=counter)
    write(f"{target}: {count} files")


@app.command(rich_help_panel=PANEL, epilog=example("raypipe tidy demo/run --keep best:10"))
def tidy(
    run: RunArg,
    keep: Annotated[str, typer.Option(metavar="best:N", help="Trials whose weights are kept.")] = f"best:{KEPT_TRIALS}",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")] = False,
) -> None:
    """Free the disk of weights that neither the ensemble nor the report needs.

    The best of each family and the members of a fitted ensemble are kept too, and all scores, predictions and logs.
    """
    from raypipe.core.text import format_bytes
    from raypipe.ensembles.tidy import tidy as free
    from raypipe.storage.outer_run import OuterRun
    from raypipe.storage.run_store import RunStore

    number = keep.removeprefix("best:")
    if number == keep or not number.isdecimal():
        raise UserError(f"--keep {keep}: must be best:N, such as best:10")
    if is_pretrained(run):
        raise UserError(f"tidy {run}: a pretrained run has no trials; tidy takes what raypipe sweep wrote")
    for store in OuterRun(run).runs if is_outer(run) else [RunStore.open(run)]:
        done = free(store, int(number), dry_run=dry_run)
        size = "" if done.size is None else f", {format_bytes(done.size)}"
        what = "would be removed" if dry_run else "removed"
        write(
            f"{store.where}: {what}: {done.files} files of {done.trials} trials{size}; weights of {done.kept} trials "
            "are kept, and all scores and predictions"
        )
