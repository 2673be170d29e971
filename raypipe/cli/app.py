"""Run the command line. Bad input gives one line on standard error."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from raypipe.cli import cluster, data, export, inspect, predict, project, search
from raypipe.cli.common import app
from raypipe.cli.terminal import lasting_streams
from raypipe.cli.usage_errors import UsageError, explain
from raypipe.core.errors import InterruptedSweepError, UserError
from raypipe.core.text import one_line

__all__ = ["app", "main"]

USAGE_STATUS, INTERRUPTED_STATUS = 2, 130
"""Exit status after bad input, and after a Ctrl-C."""

WORKING = ("ensemble", "export", "predict", "report", "dashboard", "submit", "stop", "enqueue", "push", "pull", "tidy")
"""Verbs, beside `CONTINUED`, that do more than print: what they do outlives a full disk under their output."""

CONTINUED = ("simulate", "prepare", "sweep", "resume", "rerun", "pretrain")
"""Verbs that continue from where they were interrupted; the others start over."""

PANELS = [module.PANEL for module in (project, data, search, inspect, export, predict, cluster)]
app.registered_commands.sort(key=lambda command: PANELS.index(str(command.rich_help_panel)))  # as --help lists them


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line; bad input gives one line on standard error and exit status 2."""
    os.environ.setdefault("MNE_LOGGING_LEVEL", "ERROR")
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns where it cannot keep its cache
    words = sys.argv[1:] if arguments is None else arguments
    with lasting_streams() as output:
        try:
            _main(words)
        finally:
            output.flush()
            if output.disk_error is not None and not (words[:1] and words[0] in CONTINUED + WORKING):
                _leave(f"error: standard output: {output.disk_error.strerror}", USAGE_STATUS)


def _main(words: list[str]) -> None:
    from raypipe.core.folds import LeakError

    try:
        _refuse_other_versions()
        _run(words)
    except (UserError, LeakError) as error:
        _leave(f"error: {error}", USAGE_STATUS)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _leave(f"error: {where}{error.strerror or error}", USAGE_STATUS)
    except (InterruptedSweepError, KeyboardInterrupt):
        continues = "; the same command continues from here" if words[:1] and words[0] in CONTINUED else ""
        _leave(f"interrupted{continues}", INTERRUPTED_STATUS)


def _run(arguments: list[str]) -> None:
    _check_names(arguments)
    try:
        status = app(arguments, standalone_mode=False)
    except UsageError as error:
        line = explain(error, arguments)
        if line:
            raise UserError(line) from None
        print(error.format_message(), end="")  # click's help
        sys.exit(USAGE_STATUS)
    if status == INTERRUPTED_STATUS:  # Typer returns it after a KeyboardInterrupt
        raise KeyboardInterrupt
    sys.exit(status or 0)


def _check_names(words: list[str]) -> None:
    """Check that the paths among the words of a command line are UTF-8, with the folder that they are relative to.

    Raises
    ------
    UserError
        One is not.
    """
    from raypipe.storage.files import check_places

    values = [word.rpartition("=")[2] if word.startswith("-") else word for word in words[1:] if word != "--"]
    check_places(*(value for value in values if not value.isascii()))
    if any(not word.startswith(("-", "/")) and "://" not in word for word in words[1:]):
        check_places(".")


def _refuse_other_versions() -> None:
    """Refuse to run a submitted job if the cluster's packages are not the submitter's."""
    if "RAYPIPE_EXPECTS" in os.environ:
        from raypipe.core.versions import check_job_versions

        check_job_versions()


def _leave(line: str, status: int) -> None:
    print(f"raypipe: {one_line(line)}", file=sys.stderr)
    sys.exit(status)
