"""Versions of installed packages: for the records of a run, and for jobs that run elsewhere."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version

from raypipe.core.errors import UserError

EXPECTED_VERSIONS = "RAYPIPE_EXPECTS"
"""Environment variable of a job: the versions of the process that submitted it, as JSON."""

_RECORDED = ("raypipe", "torch", "ray", "optuna", "mne", "scikit-learn", "numpy")
_SHIPPED = ("ray", "torch", "optuna", "numpy", "pydantic")


def package_versions() -> dict[str, str]:
    """Return the versions of what a run's numbers depend on, to be recorded with them."""
    return {"python": platform.python_version(), **{name: version(name) for name in _RECORDED}}


def job_versions() -> dict[str, str]:
    """Return the versions that must be equal where a job is submitted and where it runs."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python} | {name: version(name).partition("+")[0] for name in _SHIPPED}


def check_job_versions() -> None:
    """Compare this process's versions with those of the process that submitted the job; do nothing outside a job.

    Raises
    ------
    UserError
        Names the packages that differ.
    """
    text = os.environ.get(EXPECTED_VERSIONS)
    if not text:
        return
    here, there = job_versions(), json.loads(text)
    different = [
        f"{name} {here.get(name, 'missing')} here, {expected} there"
        for name, expected in there.items()
        if here.get(name) != expected
    ]
    if different:
        raise UserError(
            f"this cluster is not what the job was submitted with: {'; '.join(different)}; "
            "install both with -c constraints.txt"
        )
