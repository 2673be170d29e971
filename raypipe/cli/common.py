"""What the verbs share: the application, the terminal, ways to read options and to show a run."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer
from rich.console import Console

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


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"raypipe {version('raypipe')}")
        raise typer.Exit


@app.callback()
def _every_verb(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_tell_version, help="Say which version this is.")
    ] = False,
) -> None:
    pass


LOCAL = "http://127.0.0.1:8265"
"""Where `ray dashboard` and `ssh -L` put a cluster's dashboard."""

ClusterOption = Annotated[
    str,
    typer.Option(
        metavar="URL", help="The cluster's dashboard, as ssh brings it here.", envvar="RAY_API_SERVER_ADDRESS"
    ),
]
DataOption = Annotated[
    str, typer.Option(metavar="STORE", help="Windows made by prepare: a folder, or a URI that push copied them to.")
]
RunArg = Annotated[str, typer.Argument(metavar="RUN", help="Run folder, or a pyarrow.fs URI such as s3://bucket/run.")]


def example(line: str, other: str | None = None) -> str:
    """What stands below a verb's help."""
    return f"[dim]Example:[/dim]  {line}" + (f"  [dim]or[/dim]  {other}" if other else "")


def is_pretrained(where: str) -> bool:
    """Whether a run is one of `pretrain`."""
    from raypipe.storage.files import open_folder
    from raypipe.storage.records import PRETRAINED

    return open_folder(where).exists(PRETRAINED)  # without torch, which takes seconds to import


def print_pretrained(where: str) -> None:
    """Show how far a pretraining is."""
    from raypipe.reporting.pretrain_report import status_lines

    for line in status_lines(where):
        console.print(line, highlight=False, soft_wrap=True)


def print_status(where: str) -> None:
    """Show how far a sweep is."""
    from raypipe.cli.console import show_status
    from raypipe.reporting.status import read_status
    from raypipe.storage.run_store import RunStore

    show_status(console, read_status(RunStore.open(where)))


def print_advice(where: str) -> None:
    """What a search has cost, and what to do next."""
    from raypipe.reporting.advice import advise
    from raypipe.storage.remote import shell_quoted
    from raypipe.storage.run_store import RunStore

    for line in advise(RunStore.open(where), shell_quoted(where)).lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
