"""Commands run on a cluster by Ray's Jobs API: submitted from anywhere that reaches its dashboard, then left alone."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from raypipe.core.errors import UserError, first_line, missing_package
from raypipe.core.versions import EXPECTED_VERSIONS, job_versions
from raypipe.storage.remote import refuse_credentials

_OVER = ("SUCCEEDED", "FAILED", "STOPPED")
LOOK = 5.0
"""Seconds in which Ray notices that a job has died, once it looks."""


class Job(NamedTuple):
    """A job, as lists show it."""

    name: str
    status: str
    command: str
    begun: datetime | None
    message: str


class Jobs:
    """The jobs of a cluster.

    Parameters
    ----------
    address
        Of its dashboard, such as ``http://127.0.0.1:8265``.

    Raises
    ------
    UserError
        Nothing answers there, the cluster has another Ray, or this machine has no ``ray[default]``.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        logging.getLogger("ray").setLevel(logging.ERROR)  # it tells of every upload
        try:
            from ray.job_submission import JobSubmissionClient

            self._client: Any = JobSubmissionClient(address)
        except ConnectionError:
            raise UserError(
                f"--cluster {address}: no Ray dashboard answers there; reach one with "
                f"`ray dashboard cluster.yaml` or `ssh -N -L 8265:127.0.0.1:8265 HEAD`, then say http://127.0.0.1:8265"
            ) from None
        except (RuntimeError, ValueError) as error:
            if "ray[default]" in str(error):
                raise UserError(f"jobs need Ray's dashboard client: {missing_package('cluster')}") from None
            raise UserError(f"--cluster {address}: {first_line(error)}") from None

    def submit(self, command: Sequence[str], run: str, files: Sequence[Path] = ()) -> str:
        """Have the cluster's head run a raypipe command; the job's name. It returns at once.

        The command's code is this machine's raypipe, shipped as it is; its packages are the cluster's, and the job
        refuses to begin where their versions differ.

        Parameters
        ----------
        command
            Words after ``raypipe``.
        run
            The run that it drives: one job at a time.
        files
            Files beside which the command is run.

        Raises
        ------
        UserError
            A job is at work on the run.
        """
        stem = job_stem(run)
        before = [job for job in self.list() if job.name.rpartition("-")[0] == stem]
        for job in before:
            if job.status not in _OVER and self._lives(job.name):
                raise UserError(f"{run}: job {job.name} is at work on it; look with raypipe logs {job.name} -f")
        name = f"{stem}-{1 + max((int(job.name.rpartition('-')[2]) for job in before), default=0)}"
        with tempfile.TemporaryDirectory(prefix="raypipe-job-") as folder:
            for file in files:
                shutil.copy(file, folder)
            runtime_env = {
                "working_dir": folder,
                "py_modules": [str(Path(__file__).parents[1])],
                "excludes": ["__pycache__"],
                "env_vars": {EXPECTED_VERSIONS: json.dumps(job_versions()), "RAY_USAGE_STATS_ENABLED": "0"},
            }
            try:
                return str(
                    self._client.submit_job(
                        entrypoint=shlex.join(["python", "-m", "raypipe", *command]),
                        submission_id=name,
                        runtime_env=runtime_env,
                        metadata={"run": run},
                    )
                )
            except RuntimeError as error:
                raise UserError(f"--cluster {self.address}: refused ({first_line(error)})") from None

    def _lives(self, name: str) -> bool:
        """Whether a job that is said to run does so.

        A head that was started again has its jobs from the control store, where those that died with it still run. Ray
        looks after them only once somebody has asked for something that the head's agent has to do, such as a log.
        """
        with contextlib.suppress(RuntimeError):  # where the agent has gone too
            self._client.get_job_logs(name)
        deadline = time.monotonic() + LOOK
        while time.monotonic() < deadline:
            if self._status(name) in _OVER:
                return False
            time.sleep(0.5)
        return True

    def _status(self, name: str) -> str:
        status = self._client.get_job_status(name)
        return str(getattr(status, "value", status))

    def list(self) -> list[Job]:
        """All submitted jobs, the newest first."""
        found = [job for job in self._client.list_jobs() if job.submission_id]
        found.sort(key=lambda job: job.start_time or 0, reverse=True)
        return [
            Job(
                name=job.submission_id,
                status=str(getattr(job.status, "value", job.status)),
                command=job.entrypoint.removeprefix("python -m raypipe "),
                begun=datetime.fromtimestamp(job.start_time / 1e3) if job.start_time else None,
                message=(job.message or "").partition("\n")[0],
            )
            for job in found
        ]

    def _known(self, name: str) -> None:
        if name not in {job.name for job in self.list()}:
            raise UserError(f"{name}: no such job on {self.address}; raypipe jobs lists them")

    def logs(self, name: str) -> str:
        """What a job has printed so far."""
        self._known(name)
        return str(self._client.get_job_logs(name))

    def follow(self, name: str, write: Callable[[str], None]) -> str:
        """Hand on what a job prints until it is over; how it ended."""
        self._known(name)

        async def read() -> None:
            async for text in self._client.tail_job_logs(name):
                write(text)

        asyncio.run(read())
        return self._status(name)

    def stop(self, name: str) -> None:
        """End a job; its run stays, and goes on when it is submitted again."""
        self._known(name)
        self._client.stop_job(name)


def job_stem(run: str) -> str:
    """What the names of a run's jobs begin with: readable, and another one for another run."""
    plain = run.partition("?")[0].rstrip("/")
    readable = re.sub(r"[^A-Za-z0-9]+", "-", plain.rpartition("/")[2]).strip("-") or "run"
    return f"{readable}-{hashlib.sha256(plain.encode()).hexdigest()[:6]}"


def refuse_local(option: str, where: str) -> None:
    """Refuse a place that a cluster cannot see, or that would put keys on its record.

    Raises
    ------
    UserError
        `where` is a path of this machine, or a URI with keys in it.
    """
    refuse_credentials(where)
    if "://" not in where and not Path(where).is_absolute():
        raise UserError(
            f"{option} {where}: a folder of this machine, which the cluster does not see; "
            "say s3://..., or the absolute path of a file system that all its machines share"
        )
