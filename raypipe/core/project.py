"""A folder to start a project from: a search space, a Makefile, and the files of a cluster."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from raypipe.core.shipped import DISTRIBUTION, shipped, shipped_space

_FILES = (
    "cluster.yaml",
    "constraints.txt",
    "deploy/Dockerfile",
    "deploy/rayjob.yaml",
    "deploy/slurm.sh",
    "examples/arrays.ipynb",
    "examples/bids_with_labels.ipynb",
    "examples/epochs.ipynb",
    "examples/own/metrics.py",
    "examples/own/mine.py",
    "examples/own/my_nets.py",
    "examples/own/space.py",
)
"""Files that a project has as raypipe has them."""


def write_project(folder: Path, space: str) -> tuple[list[str], list[str]]:
    """Write the files of a project that `folder` does not have.

    Parameters
    ----------
    folder
        Made if it does not exist.
    space
        Name of the search space whose copy is ``space.py``.

    Returns
    -------
    tuple[list[str], list[str]]
        Paths of the files that were written, and of those that were there and are as they were.

    Raises
    ------
    UserError
        No search space has that name.
    """
    sources = {"space.py": shipped_space(space), **{name: shipped(name) for name in _FILES}}
    sources |= {name: shipped(f"examples/project/{name}") for name in ("Makefile", "README.md")}
    if wheel := installed_wheel():
        sources[f"dist/{wheel.name}"] = wheel
    written, kept = [], []
    for name, source in sorted(sources.items()):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(target, "xb") as file:
                file.write(source.read_bytes())
        except FileExistsError:
            kept.append(name)
            continue
        written.append(name)
        if source.stat().st_mode & 0o100:
            target.chmod(target.stat().st_mode | 0o111)
    return written, kept


def installed_wheel() -> Path | None:
    """Return the wheel that raypipe was installed from, if it is a file of this machine (PEP 610)."""
    try:
        record = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    url = urlsplit(json.loads(record)["url"] if record else "")
    path = Path(url2pathname(url.path))
    return path if url.scheme == "file" and path.suffix == ".whl" and path.is_file() else None
