"""`prepare --epochs`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from raypipe.cli.common import console
from raypipe.core.errors import UserError

if TYPE_CHECKING:
    from raypipe.data.window_store import WindowStore

STORED = ("groups", "crop", "dtype", "metric", "max_windows", "min_windows", "seed", "skip_unreadable")
OPTIONS = ("epochs", "subject", "target", "out", "channels", *STORED)
"""Options of `prepare` that `--epochs` takes."""


def prepare_epochs(context: typer.Context, channels: Sequence[str] | None) -> WindowStore:
    """Make windows of the files of epochs that the options of `prepare` name.

    Raises
    ------
    UserError
        An option is for recordings only, or the files do not fit.
    """
    from raypipe.cli.console import ProgressCounter
    from raypipe.data.epochs import from_epochs

    options = context.params
    for name in options:
        source = context.get_parameter_source(name)
        if name not in OPTIONS and source is not None and source.name == "COMMANDLINE":
            if name == "bids":
                raise UserError(f"{options['bids'][0]}: not with --epochs; put a pattern in quotes: 'sub-*_epo.fif'")
            reason = "which one process reads" if name == "jobs" else "whose windows are taken as they are"
            raise UserError(f"--{name.replace('_', '-')}: not with --epochs, {reason}")
    with ProgressCounter(console, "preparing") as counter:
        return from_epochs(
            options["epochs"],
            subject=options["subject"] or "metadata:subject",
            target=options["target"],
            out=options["out"],
            channels=channels,
            progress=counter,
            **{name: options[name] for name in STORED},
        )
