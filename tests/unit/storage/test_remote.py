"""Folders behind a URI whose server fails: a store in memory and a fake clock. A real server is in test_s3."""

from __future__ import annotations

import errno
import logging
import signal
import threading
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.core.errors import DiskFullError, StorageError, UserError, first_line
from raypipe.core.record import Record
from raypipe.storage.files import open_folder, read_record
from raypipe.storage.remote import RemoteFolder, refuse_credentials, shell_quoted, without_settings
from raypipe.storage.remote_retry import FIRST_PAUSE, MAX_OUTAGE_SECONDS, MAX_PAUSE, RetryPolicy, describe_failure
from tests.support.storage import Clock, MemoryStore

URI = "s3://bucket/run"
SLOW = OSError("When putting key: AWS Error SLOW_DOWN during PutObject operation: Please reduce your request rate.")


def remote(store: MemoryStore, clock: Clock | None = None) -> RemoteFolder:
    clock = clock or Clock()
    retry = RetryPolicy(URI, clock=clock, sleep=clock.sleep)
    return RemoteFolder(URI, filesystem=(store, "bucket/run"), retry=retry)


def failing(*numbers: int, error: BaseException = SLOW):
    return lambda number, call: error if number in numbers else None


OPERATIONS = {
    "write": lambda folder: folder.write("b", b"new"),
    "read": lambda folder: folder.read("a"),
    "exists": lambda folder: folder.exists("a"),
    "names": lambda folder: folder.names(),
    "remove": lambda folder: folder.remove("a"),
}


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_outlasts_a_server_that_fails(name, lost, caplog):
    quiet, clock = MemoryStore(), Clock()
    store = MemoryStore(failing(*range(1, 8)), lost=lost)
    for each in (quiet, store):
        remote(each).write("a", b"old")
    expected = OPERATIONS[name](remote(quiet))
    assert OPERATIONS[name](remote(store, clock)) == expected
    assert store.objects == quiet.objects
    # If the removal succeeded and only its answer was lost, the second attempt finds no file and succeeds.
    assert clock.slept == ([0.5] if name == "remove" and lost else [0.5, 1, 2, 4, 8, 16, 20])
    begin, end = caplog.messages
    assert begin.startswith(f"{URI}: the storage fails (") and "SLOW_DOWN" in begin and "up to 5 minutes" in begin
    assert end.startswith(f"{URI}: the storage answers again, after ")


def test_waiting_ends_after_the_limit_with_one_line():
    store, clock = MemoryStore(lambda number, call: SLOW), Clock()
    folder = remote(store, clock)
    with pytest.raises(StorageError) as caught:
        folder.write("a", b"new")
    assert one_line(caught) == (
        f"{URI}: the storage has not answered for 5 minutes (writing a: {first_line(SLOW)}); run the same command "
        "again when it does (nothing written so far is lost)"
    )
    assert clock.now == MAX_OUTAGE_SECONDS
    assert clock.slept[0] == FIRST_PAUSE and max(clock.slept) == MAX_PAUSE
    assert clock.slept[:-1] == sorted(clock.slept[:-1])


def one_line(caught) -> str:
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_operations_after_the_limit_fail_without_waiting(caplog):
    store, clock = MemoryStore(lambda number, call: SLOW), Clock()
    folder = remote(store, clock)
    for name in OPERATIONS:
        with pytest.raises(StorageError):
            OPERATIONS[name](folder)
    assert clock.now == MAX_OUTAGE_SECONDS
    assert len(caplog.messages) == 1
    store.fault = failing()
    folder.write("a", b"new")
    assert folder.read("a") == b"new"
    waits, store.fault = len(clock.slept), failing(len(store.calls), len(store.calls) + 1)
    assert folder.read("a") == b"new"  # the next outage has a limit of its own
    assert clock.slept[waits:] == [0.5, 1.0]


def test_the_time_of_a_stalled_call_counts_towards_the_limit():
    clock = Clock()

    def stall(number, call):
        clock.now += 70.0
        return OSError("curlCode: 28, Timeout was reached")

    with pytest.raises(StorageError, match="Timeout was reached"):
        remote(MemoryStore(stall), clock).read("a")
    assert len(clock.slept) == 4
    assert clock.now < MAX_OUTAGE_SECONDS + 70 + MAX_PAUSE


def test_threads_share_an_outage(caplog):
    gate = threading.Barrier(2)
    store = MemoryStore(failing(0, 1))
    clock = Clock(lambda count: gate.wait(timeout=60))
    folder = remote(store, clock)
    other = threading.Thread(target=folder.write, args=("b", b"2"))
    other.start()
    folder.write("a", b"1")
    other.join()
    assert store.objects == {"bucket/run/a": b"1", "bucket/run/b": b"2"}
    assert [message.split("(")[0] for message in caplog.messages] == [
        f"{URI}: the storage fails ",
        f"{URI}: the storage answers again, after 1 s",
    ]


def test_a_ctrl_c_while_a_file_is_written_leaves_it_whole():
    """An exception between opening and writing would close the stream, which stores an empty object."""
    store = MemoryStore()
    folder = remote(store)
    folder.write("a", b"old")
    opened = store.open_output_stream

    def interrupted(path):
        stream = opened(path)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        return stream

    store.open_output_stream = interrupted
    with pytest.raises(KeyboardInterrupt):
        folder.write("a", b"new")
        folder.read("a")  # the signal may arrive as late as this
    assert store.objects == {"bucket/run/a": b"new"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("AWS Error NO_SUCH_BUCKET during PutObject operation: The specified bucket does not exist", "no such bucket"),
        ("Bucket 'bucket' not found", "no such bucket"),
        ("AWS Error ACCESS_DENIED during PutObject operation: Access Denied", "AWS_ACCESS_KEY_ID"),
        ("AWS Error INVALID_ACCESS_KEY_ID during GetObject operation: no such key id", "denies access"),
        ("AWS Error UNKNOWN (HTTP status 403) during HeadObject operation: No response body.", "denies access"),
        ("AWS Error UNKNOWN (HTTP status 301) during HeadBucket operation: No response body.", "refuses this"),
        ("AWS Error UNKNOWN (HTTP status 405) during PutObject operation: MethodNotAllowed", "refuses this"),
        ("AWS Error UNKNOWN (HTTP status 507) during PutObject operation: XMinioStorageFull", "no space left"),
        ("AWS Error UNKNOWN (HTTP status 400) during PutObject operation: QuotaExceeded", "no space left"),
    ],
)
def test_a_permanent_error_gives_one_line_without_a_retry(text, message, caplog):
    clock = Clock()
    folder = remote(MemoryStore(lambda number, call: OSError(text)), clock)
    for name in OPERATIONS:
        with pytest.raises(StorageError, match=message) as caught:
            OPERATIONS[name](folder)
        assert one_line(caught).startswith(f"{URI}: ")
        assert isinstance(caught.value, DiskFullError) == (message == "no space left")
    assert clock.slept == [] and caplog.messages == []


@pytest.mark.parametrize("status", ["408", "425", "429", "500", "502", "503", "504"])
def test_a_transient_status_is_retried(status):
    assert (
        describe_failure(OSError(f"AWS Error UNKNOWN (HTTP status {status}) during PutObject operation"), "x") is None
    )


def test_a_missing_file_is_not_retried():
    clock = Clock()
    folder = remote(MemoryStore(failing(0)), clock)
    with pytest.raises(FileNotFoundError):
        folder.read("a")
    folder.remove("a")
    assert not folder.exists("a")
    assert clock.slept == [0.5]


def test_a_full_disk_and_a_path_that_is_a_folder_are_not_retried(tmp_path):
    folder = open_folder(f"file://{tmp_path}")
    folder.write("a/b", b"1")
    with pytest.raises(OSError, match="directory"):
        folder.read("a")
    store = MemoryStore(lambda number, call: OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(DiskFullError, match=r"s3://bucket/run: no space left.*same command again"):
        remote(store).write("a", b"new")


def test_a_missing_bucket_is_distinguished_from_an_empty_folder():
    store = MemoryStore()
    assert remote(store).names() == [] and not remote(store).exists("a")
    store.buckets.clear()
    for call in (lambda folder: folder.names(), lambda folder: folder.exists("run.json")):
        with pytest.raises(StorageError, match="s3://bucket/run: there is no bucket 'bucket'; create it"):
            call(remote(store))


def test_a_uri_in_a_command_keeps_its_settings_quoted_for_the_shell_and_not_its_keys():
    assert shell_quoted("s3://key:secret@bucket/run?scheme=http&region=x") == "'s3://bucket/run?scheme=http&region=x'"
    assert shell_quoted(Path("demo/run")) == "demo/run"


def test_keys_in_a_uri_are_not_shown():
    assert without_settings("s3://key:secret@bucket/run/?scheme=http&endpoint_override=x:1") == "s3://bucket/run"
    assert without_settings("file:///data/run") == "file:///data/run"
    with pytest.raises(UserError, match=r"^ftp://bucket: not a storage that pyarrow.fs can open"):
        open_folder("ftp://bucket")


@pytest.mark.parametrize(
    "uri",
    [
        "s3://key:geheim@bucket/run",
        "s3://key:ge/he/geheim@bucket/run",
        "s3://key:geheim@bucket/run?scheme=http",
        "s3://bucket/run?access_key=key&secret_key=geheim",
        "s3://bucket/run?scheme=http&session_token=geheim",
        "abfs://account/run?client_secret=geheim",
        "abfs://account/run?sig=geheim",
        "ftp://key:geheim@bucket",
    ],
)
def test_a_uri_with_keys_is_not_opened_and_they_are_not_shown(uri):
    with pytest.raises(UserError, match="leave the keys out of the URI") as caught:
        open_folder(uri)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    ["s3://bucket/a@b", "hdfs://host:9000/a@b", "file:///a:b@c", "s3://bucket/run?endpoint_override=x:1&region=y"],
)
def test_a_port_and_a_path_with_an_at_sign_are_no_keys(uri):
    refuse_credentials(uri)
    assert without_settings(uri) == uri.partition("?")[0]


class Beat(Record):
    """A record that changes."""

    format: Literal["test-beat/1"] = "test-beat/1"
    beat: float


def test_a_record_that_is_rewritten_while_it_is_read_is_read_again():
    folder = remote(MemoryStore())
    whole = Beat(beat=17.5).to_json()
    reads = [whole[:-9], whole]
    folder.read = lambda name: reads.pop(0)
    assert read_record(Beat, folder, "driver.json").beat == 17.5 and not reads


@settings(max_examples=100)
@given(
    failures=st.lists(st.integers(0, 30), max_size=12),
    lost=st.booleans(),
    calls=st.lists(st.tuples(st.sampled_from("abc"), st.one_of(st.none(), st.binary(max_size=9))), max_size=10),
)
def test_after_any_transient_failures_the_files_are_those_that_were_written(failures, lost, calls):
    logging.getLogger("raypipe.storage.remote_retry").setLevel(logging.ERROR)
    folder, model = remote(MemoryStore(failing(*failures), lost=lost)), {}
    for name, data in calls:
        if data is None:
            folder.remove(name)
            model.pop(name, None)
        else:
            folder.write(name, data)
            model[name] = data
        assert folder.names() == sorted(model)
        assert {name: folder.read(name) for name in model} == model
    logging.getLogger("raypipe.storage.remote_retry").setLevel(logging.NOTSET)
