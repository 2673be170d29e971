"""Versions of installed packages: for the records of a run, and for jobs that run elsewhere."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata

from raypipe.core.errors import UserError
from raypipe.core.shipped import DISTRIBUTION

EXPECTED_VERSIONS = "RAYPIPE_EXPECTS"
"""Environment variable of a job: the versions of the process that submitted it, as JSON."""

_RECORDED = ("raypipe", "torch", "ray", "optuna", "mne", "scikit-learn", "numpy")
"""Packages that the numbers of a run depend on."""
_CHECKED = ("ray", "torch", "optuna", "numpy", "pydantic")
"""Packages whose versions must be equal where a job is submitted and where it runs."""


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a run's numbers depend on."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _RECORDED}}


def job_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that must be equal where a job is submitted and runs."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python} | {name: _version(name).partition("+")[0] for name in _CHECKED}


def _version(name: str) -> str:
    """Return the version of a package; a part of raypipe may run where another package, or itself, is not installed."""
    try:
        return metadata.version(DISTRIBUTION if name == "raypipe" else name)
    except metadata.PackageNotFoundError:
        return "not installed"


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
    here, submitted = job_versions(), json.loads(text)
    different = [
        f"{name} {here.get(name, 'missing')} here, {expected} where it was submitted"
        for name, expected in submitted.items()
        if here.get(name) != expected
    ]
    if different:
        raise UserError(
            f"the cluster's versions differ from those of the job: {'; '.join(different)}; "
            "install both with -c constraints.txt"
        )
