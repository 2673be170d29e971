"""Jobs of a cluster (Ray's Jobs API): raypipe commands that are submitted through its dashboard and run on its head."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from raypipe.backend.process_state import logger_at
from raypipe.core.addresses import dashboard_url, without_password
from raypipe.core.errors import UserError, first_line
from raypipe.core.shipped import install_command
from raypipe.core.versions import EXPECTED_VERSIONS, job_versions
from raypipe.storage.remote import refuse_credentials
from raypipe.storage.scratch import scratch_folder

_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
DEATH_NOTICE_SECONDS = 5.0
"""Seconds within which Ray notices that a job has died, once it checks."""
POLL_SECONDS = 0.5
AGENT_SECONDS = 30.0
"""Seconds that the agent of a head that has just started may take until it accepts jobs."""
ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
"""Environment variable from which Ray's client takes the dashboard's address."""
_NO_AGENT = "No available agent"


@contextlib.contextmanager
def _asked_only(url: str) -> Iterator[None]:
    """Have Ray's client ask this URL: it prefers the environment to the address that it is given."""
    before = os.environ.get(ADDRESS_VARIABLE)
    os.environ[ADDRESS_VARIABLE] = url
    try:
        yield
    finally:
        if before is None:
            del os.environ[ADDRESS_VARIABLE]
        else:
            os.environ[ADDRESS_VARIABLE] = before


class NoDashboardError(UserError):
    """No dashboard answers at an address."""


class Job(NamedTuple):
    """A job of the cluster."""

    name: str
    status: str
    command: str
    started: datetime | None
    message: str


class Jobs:
    """Submit, list, read and stop the jobs of a cluster.

    Parameters
    ----------
    address
        Address of its dashboard, such as ``http://127.0.0.1:8265``.

    Raises
    ------
    UserError
        The address is not valid, no dashboard answers (`NoDashboardError`), the cluster has another version of Ray, or
        this machine has no ``ray[default]``.
    """

    def __init__(self, address: str) -> None:
        url = dashboard_url(address)
        self.address = without_password(url)
        try:
            from ray.job_submission import JobSubmissionClient

            with logger_at("ray", logging.ERROR), _asked_only(url):
                self._client = JobSubmissionClient(url)
        except ConnectionError:
            raise NoDashboardError(
                f"--cluster {self.address}: no Ray dashboard answers there; reach one with "
                "`ray dashboard cluster.yaml` or `ssh -N -L 8265:127.0.0.1:8265 HEAD`, then use "
                "--cluster http://127.0.0.1:8265"
            ) from None
        except (RuntimeError, ValueError) as error:
            if "ray[default]" in str(error):
                raise UserError(f"jobs need Ray's dashboard client: {install_command('cluster')}") from None
            reason = first_line(error).replace(url, self.address)
            raise UserError(f"--cluster {self.address}: {reason}") from None

    def submit(self, command: Sequence[str], run: str, files: Mapping[str, Path] | None = None) -> str:
        """Submit a raypipe command to the cluster's head and return the job's name, without waiting for its end.

        The job runs this machine's raypipe, which is uploaded, with the packages of the cluster. It ends with an error
        if their versions differ from those of this machine.

        Parameters
        ----------
        command
            Arguments of ``raypipe``.
        run
            The run that the command drives; a run has one job at a time.
        files
            Files that are sent, by their paths in the job's working directory.

        Raises
        ------
        UserError
            An argument contains keys, another job drives the run, or the cluster refuses the job.
        """
        for word in command:  # they are stored in the job's record and shown by `raypipe jobs`
            refuse_credentials(word)
        stem = job_stem(run)
        before = [job for job in self.list() if job.name.rpartition("-")[0] == stem]
        for job in before:
            if job.status not in _ENDED and self._is_running(job.name):
                raise UserError(f"{run}: job {job.name} drives it; follow it with: raypipe logs {job.name} -f")
        name = f"{stem}-{1 + max((int(job.name.rpartition('-')[2]) for job in before), default=0)}"
        with scratch_folder() as scratch:
            folder = tempfile.mkdtemp(dir=scratch)
            for path, file in (files or {}).items():
                target = Path(folder, path)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target)
            runtime_env = {
                "working_dir": folder,
                "py_modules": [str(Path(__file__).parents[1])],
                "excludes": ["__pycache__"],
                "env_vars": {EXPECTED_VERSIONS: json.dumps(job_versions()), "RAY_USAGE_STATS_ENABLED": "0"},
            }
            submission: dict[str, Any] = {
                "entrypoint": shlex.join(["python", "-m", "raypipe", *command]),
                "submission_id": name,
                "runtime_env": runtime_env,
                "metadata": {"run": run},
            }
            return self._submit(submission)

    def _submit(self, submission: dict[str, Any]) -> str:
        """Submit a job and return its name; a head that has just started has no agent for some seconds."""
        deadline = time.monotonic() + AGENT_SECONDS
        while True:
            try:
                with logger_at("ray", logging.ERROR):  # it logs every upload
                    return str(self._client.submit_job(**submission))
            except RuntimeError as error:
                if _NO_AGENT not in str(error) or time.monotonic() > deadline:
                    raise UserError(f"--cluster {self.address}: refused ({first_line(error)})") from None
            time.sleep(POLL_SECONDS)

    def _is_running(self, name: str) -> bool:
        """Return whether a job runs that Ray lists as running.

        A head that was restarted reads its jobs from the control store (GCS), where those that died with it are still
        running. Ray checks them only after a request that the head's agent answers, such as one for a log.
        """
        with contextlib.suppress(RuntimeError):  # the agent may have died too
            self._client.get_job_logs(name)
        deadline = time.monotonic() + DEATH_NOTICE_SECONDS
        while time.monotonic() < deadline:
            if self._status(name) in _ENDED:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def _status(self, name: str) -> str:
        status = self._client.get_job_status(name)
        return str(getattr(status, "value", status))

    def list(self) -> list[Job]:
        """Return all submitted jobs, the newest first."""
        found = [job for job in self._client.list_jobs() if job.submission_id]
        found.sort(key=lambda job: job.start_time or 0, reverse=True)
        return [
            Job(
                name=job.submission_id,
                status=str(getattr(job.status, "value", job.status)),
                command=job.entrypoint.removeprefix("python -m raypipe "),
                started=datetime.fromtimestamp(job.start_time / 1e3) if job.start_time else None,
                message=(job.message or "").partition("\n")[0],
            )
            for job in found
        ]

    def _check_exists(self, name: str) -> None:
        if name not in {job.name for job in self.list()}:
            raise UserError(f"{name}: no such job on {self.address}; raypipe jobs lists them")

    def logs(self, name: str) -> str:
        """Return the output of a job so far."""
        self._check_exists(name)
        return str(self._client.get_job_logs(name))

    def follow(self, name: str, write: Callable[[str], None]) -> str:
        """Write the output of a job until it ends; return its last status."""
        self._check_exists(name)

        async def read() -> None:
            async for text in self._client.tail_job_logs(name):
                write(text)

        asyncio.run(read())
        return self._status(name)

    def stop(self, name: str) -> None:
        """Stop a job; its run stays, and the same command submitted again continues it."""
        self._check_exists(name)
        self._client.stop_job(name)


def job_stem(run: str) -> str:
    """Return the beginning of the names of a run's jobs: the folder's name and a hash of the path."""
    plain = run.partition("?")[0].rstrip("/")
    readable = re.sub(r"[^A-Za-z0-9]+", "-", plain.rpartition("/")[2]).strip("-") or "run"
    return f"{readable}-{hashlib.sha256(plain.encode()).hexdigest()[:6]}"


def refuse_local(option: str, where: str) -> None:
    """Refuse a path that a cluster cannot read, and a URI whose keys would be stored in the job's record.

    Raises
    ------
    UserError
        `where` is a relative path, or a URI with keys in it.
    """
    refuse_credentials(where)
    if "://" not in where and not Path(where).is_absolute():
        raise UserError(
            f"{option} {where}: a folder of this machine, which the cluster does not see; "
            "use s3://..., or the absolute path of a file system that all its machines share"
        )
