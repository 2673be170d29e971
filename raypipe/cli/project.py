"""Verbs to start with: spaces."""

from __future__ import annotations

from typing import Annotated

import typer

from raypipe.cli.common import app, example, write
from raypipe.core.errors import UserError, nearest

PANEL = "First steps"
"""Heading of these verbs in `raypipe --help`."""


@app.command(rich_help_panel=PANEL, epilog=example("raypipe spaces smoke > my_space.py"))
def spaces(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Print this one.", show_default=False)] = None,
) -> None:
    """List the search spaces that come with raypipe, which plan and sweep take by name."""
    from raypipe.core.shipped import shipped_spaces, summary

    found = shipped_spaces()
    if name is None:
        for each, file in found.items():
            write(f"{each:{max(map(len, found))}}  {summary(file)}")
    elif name in found:
        for line in found[name].read_text(encoding="utf-8").splitlines():
            write(line)
    else:
        raise UserError(f"spaces {name}: no such search space; {nearest(name, found)}")
