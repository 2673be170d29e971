"""Work on a cluster: submitted, watched, stopped; stores and runs carried to and from shared storage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from raypipe.cli.common import LOCAL, ClusterOption, RunArg, app, console, example
from raypipe.core.errors import UserError
from raypipe.storage.remote import shell_quoted

PANEL = "Cluster and storage"
"""Under which `raypipe --help` lists these verbs."""

SUBMITTED = ("plan", "sweep", "rerun", "resume", "pretrain", "ensemble", "report")
"""What a cluster's head can be told to do."""


@app.command(
    rich_help_panel=PANEL,
    epilog=example("raypipe submit sweep search_spaces/latency.py --data s3://lab/store --run s3://lab/run"),
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False},
)
def submit(
    context: typer.Context,
    verb: Annotated[
        str, typer.Argument(metavar="VERB ...", help=f"A command as on this machine: {', '.join(SUBMITTED)}.")
    ],
    cluster: ClusterOption = LOCAL,
) -> None:
    """Run a command on a cluster's head; returns at once. Submitted again after a crash, it goes on."""
    from raypipe.backend.jobs import Jobs, refuse_local

    if verb not in SUBMITTED:
        raise UserError(f"submit {verb}: not submitted; there is {', '.join(SUBMITTED)}")
    words = list(context.args)
    values = _parsed(verb, words)
    # One job at a time drives a run; a plan drives none, and is named by what it measures.
    if verb == "plan":
        run = f"{str(values['data']).partition('?')[0]}/plan-{Path(values['space']).stem}"
    else:
        run = str(values["run"])
    for option in ("run", "data", "init", "warm_start", "serves"):
        if values.get(option) is not None:
            refuse_local(
                "RUN" if option == "run" and verb != "sweep" else f"--{option.replace('_', '-')}", str(values[option])
            )
    files = []
    if values.get("space"):
        space = Path(values["space"])
        if not space.is_file():
            raise UserError(f"{space}: no such search space")
        files.append(space)
        words[next(place for place, word in enumerate(words) if Path(word) == space)] = space.name
    name = Jobs(cluster).submit([verb, *words], run, files)
    look = f"raypipe logs {name} -f" + ("" if verb == "plan" else f", raypipe status {shell_quoted(run)}")
    console.print(f"{name}: submitted; {look}", highlight=False, soft_wrap=True)


def _parsed(verb: str, words: list[str]) -> dict[str, Any]:
    """Values of a command's options; a mistake in them is told here and not by a job."""
    from raypipe.core.options import SweepOptions, parse_options

    command: Any = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    values = dict(command.make_context(f"raypipe submit {verb}", list(words)).params)
    if verb in ("plan", "sweep"):
        parse_options({name: value for name, value in values.items() if name in SweepOptions.model_fields})
    return values


@app.command(rich_help_panel=PANEL, epilog=example("raypipe jobs --cluster http://127.0.0.1:8265"))
def jobs(cluster: ClusterOption = LOCAL) -> None:
    """List a cluster's jobs, the newest first."""
    from rich.table import Table

    from raypipe.backend.jobs import Jobs

    found = Jobs(cluster).list()
    if not found:
        console.print("no jobs yet")
        return
    table = Table("job", "status", "since", "command", box=None)
    for job in found:
        table.add_row(job.name, job.status.lower(), f"{job.begun:%Y-%m-%d %H:%M}" if job.begun else "", job.command)
    console.print(table)


@app.command(rich_help_panel=PANEL, epilog=example("raypipe stop run-1a2b3c-1"))
def stop(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Name, as raypipe jobs lists it.")],
    cluster: ClusterOption = LOCAL,
) -> None:
    """End a job. Its run stays as it is; submit the same command again and it goes on."""
    from raypipe.backend.jobs import Jobs

    Jobs(cluster).stop(job)
    console.print(f"{job}: told to stop", highlight=False)


@app.command(rich_help_panel=PANEL, epilog=example("raypipe push demo/store s3://lab/store"))
def push(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Windows made by prepare.")],
    target: Annotated[str, typer.Argument(metavar="URI", help="Folder or pyarrow.fs URI to copy them to.")],
) -> None:
    """Copy a store of windows to shared storage, from which a cluster's machines fetch it once each."""
    from raypipe.cli.console import Counter
    from raypipe.data.window_cache import push_store

    with Counter(console, "copying") as counter:
        count = push_store(str(store), target, progress=counter)
    console.print(f"{target}: {count} files", highlight=False, soft_wrap=True)


@app.command(rich_help_panel=PANEL, epilog=example("raypipe pull s3://lab/run run"))
def pull(
    run: RunArg,
    target: Annotated[str, typer.Argument(metavar="OUT", help="Folder to copy it to.")],
) -> None:
    """Copy a run from shared storage to this machine."""
    from raypipe.cli.console import Counter
    from raypipe.storage.transfer import pull_run

    with Counter(console, "copying") as counter:
        count = pull_run(run, target, progress=counter)
    console.print(f"{target}: {count} files", highlight=False, soft_wrap=True)
