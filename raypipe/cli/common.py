"""Share the application, the console, common arguments and the output about a run among the verbs."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated

import typer

from raypipe.core.errors import UserError
from raypipe.core.shipped import DISTRIBUTION
from raypipe.reporting.plain_console import PlainConsole

if TYPE_CHECKING:
    from raypipe.storage.requests import Request
    from raypipe.storage.run_store import RunStore

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Fault-tolerant hyperparameter search and leak-free ensembles for EEG decoding.",
    epilog="[dim]First steps:[/dim]\n\n"
    "raypipe simulate demo/bids\n\n"
    "raypipe inspect demo/bids\n\n"
    "raypipe prepare demo/bids --target challenge1 --out demo/store\n\n"
    "raypipe sweep smoke --data demo/store --run demo/run --trials 2 --folds 4\n\n"
    "raypipe ensemble demo/run",
)
console = PlainConsole()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"raypipe {version(DISTRIBUTION)}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


LOCAL_DASHBOARD = "http://127.0.0.1:8265"
"""Local address to which `ray dashboard` and `ssh -L` forward a cluster's dashboard."""

ClusterOption = Annotated[
    str,
    typer.Option(
        metavar="URL",
        help="Address of the cluster's dashboard, as ssh forwards it here.",
        envvar="RAY_API_SERVER_ADDRESS",
    ),
]
DataOption = Annotated[
    str, typer.Option(metavar="STORE", help="Windows made by prepare: a folder, or a URI that push copied them to.")
]
StoresOption = Annotated[
    str,
    typer.Option(
        metavar="STORE",
        help="Windows made by prepare: a folder, or a URI that push copied them to. Or several stores of the same "
        "windows, such as broad=STORE1,alpha=STORE2: trials choose one (data/store).",
    ),
]
DeviceOption = Annotated[str, typer.Option(metavar="cpu|cuda", help="Where networks are run.")]
RunArg = Annotated[str, typer.Argument(metavar="RUN", help="Run folder, or a pyarrow.fs URI such as s3://bucket/run.")]


def example(line: str, other: str | None = None) -> str:
    """Return the epilog of a verb's help."""
    return f"[dim]Example:[/dim]  {line}" + (f"  [dim]or[/dim]  {other}" if other else "")


def write(text: object) -> None:
    """Print a line as it is, without markup and unwrapped."""
    from raypipe.reporting.tables import print_line

    print_line(console, str(text))


def is_pretrained(where: str) -> bool:
    """Return whether a run was made by `pretrain`."""
    from raypipe.storage.files import open_folder
    from raypipe.storage.records import PRETRAIN_FILE

    return open_folder(where).exists(PRETRAIN_FILE)  # without torch, which takes seconds to import


def is_outer(where: str) -> bool:
    """Return whether a run was made by `sweep --outer`."""
    from raypipe.storage.outer_run import OuterRun

    return OuterRun.exists(where)


def print_outer(where: str) -> None:
    """Print the progress of an outer cross-validation."""
    from raypipe.reporting.outer import status_lines
    from raypipe.storage.outer_run import OuterRun

    for line in status_lines(OuterRun(where)):
        write(line)


def print_pretrained(where: str) -> None:
    """Print the progress of a pretraining."""
    from raypipe.reporting.pretrain_report import status_lines

    for line in status_lines(where):
        write(line)


def print_status(where: str) -> None:
    """Print the state of a run."""
    from raypipe.reporting.status import read_status
    from raypipe.reporting.tables import show_status
    from raypipe.storage.run_store import RunStore

    show_status(console, read_status(RunStore.open(where)))


def summary_line(where: str) -> str:
    """Return the state of a run that has ended in one line: its driver, trials by state, and the best score."""
    from raypipe.reporting.status import read_status
    from raypipe.storage.run_store import RunStore

    if is_pretrained(where) or is_outer(where):
        return "ended"
    run = RunStore.open(where)
    status, ranked = read_status(run), run.ranked()
    states = ", ".join(f"{count} {state}" for state, count in sorted(status.states.items()))
    best = f"; best score {ranked[0].score:z.4f} (trial {ranked[0].number})" if ranked else ""
    return f"{status.driver}; {len(status.rows)} of {status.planned} trials: {states or 'none'}{best}"


def print_asked(run: RunStore, request: Request) -> None:
    """Print what a run was asked for, and where its driver's answer is seen, or which command takes it up."""
    from raypipe.search.requests import next_driver
    from raypipe.storage.lease import HEARTBEAT_SECONDS
    from raypipe.storage.remote import shell_quoted

    answers = f"the driver answers in about {HEARTBEAT_SECONDS:.0f} s: raypipe status {shell_quoted(run.where)}"
    write(f"asked to {request.describe()}; {next_driver(run, request) or answers}")


def print_advice(where: str) -> None:
    """Print what a search has cost, and what to do next."""
    from raypipe.reporting.advice import advise
    from raypipe.storage.remote import shell_quoted
    from raypipe.storage.run_store import RunStore

    for line in advise(RunStore.open(where), shell_quoted(where)).lines:
        write(line)


def refuse_given(context: typer.Context, names: Sequence[str], reason: str) -> None:
    """Refuse options that are given and would have no effect."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UserError(f"--{name}: {reason}")
