"""The arguments of a simulation, which are recorded in its folder: another simulation does not add to it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raypipe.core.errors import UserError
from raypipe.storage.files import write_atomic

_GENERATOR = "raypipe simulate"


@dataclass(frozen=True)
class Design:
    """The arguments that signals and events depend on; recorded in the folder's dataset_description.json."""

    channels: int
    trials: int
    runs: int
    sfreq: float
    seed: int
    null: bool
    events: str = "simulated"
    """What `digest_events` returns for the real events that were given."""


def digest_events(texts: Sequence[str]) -> str:
    """Return 12 digits of the SHA-256 of real events; ``simulated`` where there are none."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12] if texts else "simulated"


def claim(folder: Path, design: Design) -> None:
    """Check that the folder is empty or of the same design, and record the design in it.

    Raises
    ------
    UserError
        It has other content, or was simulated with other arguments.
    """
    path = folder / "dataset_description.json"
    if path.is_file():
        _check_same_design(folder, _recorded_design(path), design)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: not an empty folder; choose another")
    description = {
        "Name": "Simulated contrast-change detection",
        "BIDSVersion": "1.9.0",
        "DatasetType": "raw",
        "License": "CC0",
        "GeneratedBy": [{"Name": _GENERATOR, "Parameters": asdict(design)}],
    }
    text = json.dumps(description, indent=1) + "\n"
    write_atomic(path, lambda file: file.write(text.encode()))


def _recorded_design(path: Path) -> dict[str, Any] | None:
    """Return the parameters in a dataset_description.json that raypipe wrote; None for other files."""
    try:
        (generator,) = json.loads(path.read_bytes())["GeneratedBy"]
        return dict(generator["Parameters"]) if generator["Name"] == _GENERATOR else None
    except (ValueError, KeyError, TypeError):
        return None


def _check_same_design(folder: Path, before: dict[str, Any] | None, design: Design) -> None:
    if before is None:
        raise UserError(f"{folder}: has a data set that raypipe did not simulate; choose another folder")
    before = {"events": "simulated"} | before  # was not recorded at first
    for name, value in asdict(design).items():
        if before.get(name) != value:
            raise UserError(
                f"{folder}: was simulated with {name} {before.get(name)}, not {value}; choose another folder"
            )
