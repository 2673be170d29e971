"""Versions of the packages that must agree between the process that submits a job and the job."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version

from raypipe.core.errors import UserError

EXPECTS = "RAYPIPE_EXPECTS"
"""Environment variable of a job: the versions that it was submitted with, as JSON."""


_SHIPPED = ("ray", "torch", "optuna", "numpy", "pydantic")


def own_versions() -> dict[str, str]:
    """Versions that must be the same where a job is submitted and where it runs."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python} | {name: version(name).partition("+")[0] for name in _SHIPPED}


def refuse_other_versions() -> None:
    """Compare this process with where its job was submitted.

    Raises
    ------
    UserError
        Names what differs.
    """
    text = os.environ.get(EXPECTS)
    if not text:
        return
    here, there = own_versions(), json.loads(text)
    odd = [
        f"{name} {here.get(name, 'missing')} here, {want} there"
        for name, want in there.items()
        if here.get(name) != want
    ]
    if odd:
        raise UserError(
            f"this cluster is not what the job was submitted with: {'; '.join(odd)}; "
            "install both with -c constraints.txt"
        )
