from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest

from raypipe.core.errors import StorageError, UserError
from raypipe.core.record import with_digest
from raypipe.search.sweep import resume
from raypipe.storage.files import open_folder
from raypipe.storage.lease import DRIVER_FILE, EXPIRY_SECONDS, Lease, read_lease
from tests.support.faults import FailingFolder
from tests.support.toys import ToyWindows, make_run


@pytest.fixture
def folder(tmp_path):
    return open_folder(tmp_path)


def write(folder, **changes):
    record = {
        "format": "raypipe-driver/1",
        "id": "x",
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": time.time() - 9,
        "beat": time.time(),
        "spent": 100.0,
        "gpu_hours": 0.0,
        "ended": False,
    }
    folder.write(DRIVER_FILE, with_digest(record | changes))


def dead_pid():
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        pass
    return child.pid


def test_a_second_driver_gets_an_error_that_names_the_first(folder):
    with Lease(folder), pytest.raises(UserError, match=rf"another raypipe is driving this run \(process {os.getpid()}"):
        Lease(folder).__enter__()
    with Lease(folder):
        assert read_lease(folder).alive
    assert not read_lease(folder).alive


def test_a_driver_on_another_host_holds_the_lease_until_its_heartbeat_expires(folder):
    write(folder, host="elsewhere")
    with pytest.raises(UserError, match="elsewhere"):
        Lease(folder).__enter__()
    write(folder, host="elsewhere", beat=time.time() - EXPIRY_SECONDS - 1)
    with Lease(folder):
        pass


def test_a_dead_driver_on_this_host_is_taken_over_at_once_and_its_time_counts(folder):
    write(folder, pid=dead_pid())
    with Lease(folder) as lease:
        assert 100 <= lease.spent < 200
    assert read_lease(folder).spent >= 100


def test_a_dead_driver_whose_process_id_is_used_again_is_taken_over(folder):
    write(folder, pid=os.getpid())  # a restarted container often reuses the process id
    assert not read_lease(folder).alive
    with Lease(folder):
        pass


def test_a_driver_that_was_taken_over_keeps_the_new_record(folder):
    with Lease(folder):
        write(folder, host="elsewhere", id="other")
    assert read_lease(folder).id == "other"


def test_a_driver_notices_that_another_has_taken_over_its_run(folder, monkeypatch):
    monkeypatch.setattr("raypipe.storage.lease.HEARTBEAT_SECONDS", 0.01)
    with Lease(folder) as lease:
        assert lease.lost is None
        write(folder, host="elsewhere", id="other")
        lease._thread.join(30)
        assert not lease._thread.is_alive()
        assert "another raypipe is driving this run" in str(lease.lost) and "elsewhere" in str(lease.lost)


def test_behind_a_uri_the_process_id_and_the_heartbeat_are_checked(tmp_path):
    folder = open_folder(f"file://{tmp_path}")
    with Lease(folder), pytest.raises(UserError, match="another raypipe"):
        Lease(folder).__enter__()
    write(folder)
    with Lease(folder):
        pass
    write(folder, pid=1)
    with pytest.raises(UserError, match="process 1 on"):
        Lease(folder).__enter__()


def test_a_storage_that_fails_does_not_free_the_lease(folder):
    with Lease(folder):
        failing = FailingFolder(folder, 0, times=2, error=StorageError("has not answered"), calls=["read"])
        for attempt in (lambda: read_lease(failing), lambda: Lease(failing).__enter__()):
            with pytest.raises(StorageError):
                attempt()
        assert failing.count == 2


def test_a_missing_or_damaged_record_is_no_lease(folder):
    assert read_lease(folder) is None
    folder.write(DRIVER_FILE, b"{broken")
    assert read_lease(folder) is None


def test_a_record_of_another_version_is_not_taken_over(folder):
    write(folder, format="raypipe-driver/2")
    with pytest.raises(UserError, match=r"driver.json: format 'raypipe-driver/2', expected 'raypipe-driver/1'; use "):
        Lease(folder).__enter__()


def test_a_run_whose_driver_has_just_started_is_in_use(tmp_path):
    run = make_run(tmp_path / "run", ToyWindows())
    with pytest.raises(UserError, match="no sweep was started"):
        resume(run.where)
    with Lease(run.folder), pytest.raises(UserError, match="another raypipe is driving this run"):
        resume(run.where)
