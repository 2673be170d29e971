"""Verbs to start with: init, spaces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raypipe.cli.common import app, example, write

PANEL = "First steps"
"""Heading of these verbs in `raypipe --help`."""


@app.command(rich_help_panel=PANEL, epilog=example("raypipe init my_study"))
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of the project.")],
    space: Annotated[
        str, typer.Option(metavar="NAME", help="Search space to start from, of those that raypipe spaces lists.")
    ] = "all_families",
) -> None:
    """Write a project to start from: a search space, a Makefile, and the files of a cluster.

    Files that are there already stay as they are.
    """
    from raypipe.core.project import write_project
    from raypipe.storage.local_path import local_path
    from raypipe.storage.remote import shell_quoted

    folder = local_path(folder, "a project is written", "name a folder here")
    written, kept = write_project(folder, space)
    files = f"{len(written)} file{'s' * (len(written) != 1)} written"
    write(f"{folder}: {files}" + (f"; kept as they are: {', '.join(kept)}" if kept else ""))
    if not any(name.startswith("dist/") for name in (*written, *kept)):
        write("the image of a cluster needs raypipe's wheel in dist/ (README.md)")
    if "Makefile" in written:
        write(f"try it: make -C {shell_quoted(str(folder))} try")


@app.command(rich_help_panel=PANEL, epilog=example("raypipe spaces smoke > my_space.py"))
def spaces(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Print this one.", show_default=False)] = None,
) -> None:
    """List the search spaces that come with raypipe, which plan and sweep take by name."""
    from raypipe.core.shipped import shipped_space, shipped_spaces, summary

    if name is not None:
        for line in shipped_space(name).read_text(encoding="utf-8").splitlines():
            write(line)
        return
    found = shipped_spaces()
    for each, file in found.items():
        write(f"{each:{max(map(len, found))}}  {summary(file)}")
