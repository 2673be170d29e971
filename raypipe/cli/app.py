"""The command line. Every verb does one step, says what it does, and can be run again."""

from __future__ import annotations

import os
import sys
from typing import Any

from raypipe.cli import cluster, data, export, inspect, search  # noqa: F401 - the order of --help
from raypipe.cli.common import app
from raypipe.cli.usage_errors import UsageError, explain
from raypipe.core.errors import InterruptedSweepError, UserError

__all__ = ["app", "main"]

INTERRUPTED = 130
"""Exit status after a Ctrl-C."""


def _run(arguments: list[str] | None) -> None:
    try:
        status = app(arguments, standalone_mode=False)
    except UsageError as error:
        line = explain(error, sys.argv[1:] if arguments is None else arguments)
        if line:
            raise UserError(line) from None
        print(error.format_message(), end="")  # click's help, for who has said nothing
        sys.exit(2)
    if status == INTERRUPTED:  # Typer makes this of a KeyboardInterrupt, without a word
        raise KeyboardInterrupt
    sys.exit(status or 0)


def _refuse_other_versions() -> None:
    if "RAYPIPE_EXPECTS" in os.environ:  # in a job
        from raypipe.core.versions import refuse_other_versions

        refuse_other_versions()


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line; bad input gives one line on standard error and exit status 2."""
    from raypipe.core.folds import LeakError

    os.environ.setdefault("MNE_LOGGING_LEVEL", "ERROR")
    try:
        _refuse_other_versions()
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
