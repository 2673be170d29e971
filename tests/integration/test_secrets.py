"""Keys in a driver's environment are written nowhere, and its temporary files are private and removed."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from raypipe.backend.connection import RAY_FOLDER
from tests.support.keys import KEYS
from tests.support.rays import OwnRay
from tests.support.sweeps import FLAGS, ROOT, Driver, Gate, epochs_of

pytestmark = pytest.mark.ray

CANARY = "canary-7f3a"
SECRET = "secret-91c4"
"""Part of the URL of a message, which is in the environment of the driver alone."""
VALUES = {name: f"{CANARY}-{name}" for name in KEYS} | {"RAYPIPE_NOTIFY": f"json://127.0.0.1:1/{CANARY}/{SECRET}"}


@pytest.fixture
def base() -> Iterator[Path]:
    """A folder for all that a sweep writes; pytest's own paths are too long for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="c-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        for name in ("tmp", "home"):
            Path(folder, name).mkdir()
        yield Path(folder)


def places_with_keys(folder: Path, drivers: Iterable[Driver] = ()) -> list[str]:
    """Return the files with keys in them, below a folder and in shared memory, and the command lines of processes."""
    command_lines = [Path(f"/proc/{pid}/cmdline") for driver in drivers for pid in driver.processes()]
    found = []
    for path in (*folder.rglob("*"), *Path("/dev/shm").rglob("*"), *command_lines):
        with contextlib.suppress(OSError):  # a process or a file has just ended
            if path.is_file() and not path.is_symlink() and CANARY.encode() in path.read_bytes():
                found.append(str(path))
    return found


def processes_with_the_url(driver: Driver) -> list[int]:
    """Return the processes that a driver has started, and whose environment has the URL of its messages."""
    found = []
    for pid in driver.processes():
        with contextlib.suppress(OSError):
            if SECRET.encode() in Path(f"/proc/{pid}/environ").read_bytes() and pid != driver.child.pid:
                found.append(pid)
    return found


def test_keys_of_the_environment_are_in_no_file_and_temporary_files_do_not_outlive_a_sweep(toy, base, tmp_path):
    """Tune forwards keys to its actors in a way that Ray writes to a log, which it leaves for every user to read."""
    run, drivers = base / "run", []
    alone = OwnRay(tmp_path, env=VALUES | {"TMPDIR": str(base / "tmp"), "HOME": str(base / "home")})
    with contextlib.ExitStack() as stack:
        stack.callback(alone.end)  # Ray's agents would take a minute to end
        gate = Gate(tmp_path / "gate", 3)
        alone.hooks.set(gate.hooks)
        sweep = ("sweep", toy / "space.py", "--data", toy / "store", "--run", run, *FLAGS, "--trials", 1)
        drivers.append(alone.drive(*sweep))
        drivers[0].wait_until(lambda: epochs_of(run) == 2, "the second epoch")
        assert places_with_keys(base, drivers) == []
        assert len(drivers[0].processes()) > 3 and processes_with_the_url(drivers[0]) == []
        (killed,) = (base / "tmp").iterdir()
        assert stat.S_IMODE(killed.stat().st_mode) == 0o700
        assert {RAY_FOLDER, "token"} <= {path.name for path in killed.iterdir()}
        drivers[0].kill()
        drivers[0].finish()
        alone.settle()
        assert places_with_keys(base) == [], "after a crash"
        gate.open(3)
        drivers.append(alone.drive(*sweep))
        drivers[1].wait_until(lambda: epochs_of(run) == 4, "the last epoch")
        assert places_with_keys(base, drivers) == []
        assert not killed.exists()
        said = drivers[1].finish()
        assert "Traceback" not in said and drivers[1].child.returncode == 0
        assert "--notify: a message was not sent to address 1 of 1" in said, "nothing listens there"
        assert list((base / "tmp").iterdir()) == [] == list((base / "home").rglob("*auth*"))
        drivers.append(alone.drive("report", run))
        drivers[2].finish()
    assert (run / "report.html").exists()
    assert places_with_keys(base) == [], "after a sweep"
    assert CANARY not in "".join(driver.output() for driver in drivers)


def test_keys_of_a_head_and_of_who_submits_are_in_no_record_of_a_job(toy, base):
    """The job's driver runs on the head, whose environment has the keys of the cluster."""
    from ray.cluster_utils import Cluster
    from ray.job_submission import JobSubmissionClient

    env = VALUES | {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    drivers = []
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        for name, value in env.items():
            patch.setenv(name, value)
        head = Cluster()
        stack.callback(head.shutdown)
        with socket.create_server(("127.0.0.1", 0)) as free:
            agent = free.getsockname()[1]  # the agent of another Ray on this machine has the usual port
        ports = {"dashboard_port": 0, "dashboard_agent_listen_port": agent}
        node = head.add_node(num_cpus=2, include_dashboard=True, temp_dir=str(base / "tmp"), **ports)
        address = f"http://{node.webui_url}"

        def run_raypipe(verb: str, *words: object) -> str:
            drivers.append(Driver(verb, "--cluster", address, *words, env=env))
            return drivers[-1].finish()

        where = ("--data", toy / "store", "--run", base / "run", *FLAGS, "--trials", 1)
        said = run_raypipe("submit", "sweep", toy / "space.py", *where)
        found = re.search(r"(\S+): submitted", said)
        assert found, said
        job = found[1]
        log = run_raypipe("logs", job, "-f")
        assert f"{job}: succeeded" in log, log
        records = JobSubmissionClient(address).list_jobs()
        assert [record.submission_id for record in records if record.submission_id] == [job]
        assert CANARY not in str(records) and CANARY not in log
        assert places_with_keys(base, drivers) == []
