"""A run behind s3://, on a local server (moto): results equal those on a disk, also while the server fails."""

from __future__ import annotations

import json

import numpy as np
import optuna
import pytest
from pyarrow import fs

from raypipe.cli import app
from raypipe.core.errors import DiskFullError, StorageError, UserError
from raypipe.ensembles.fit import fit_ensemble
from raypipe.ensembles.fitted import Ensemble
from raypipe.search.study import StudyQueue
from raypipe.storage.files import open_folder
from raypipe.storage.journal import open_journal
from raypipe.storage.lease import DRIVER_FILE, EXPIRY_SECONDS, Lease, read_lease
from raypipe.storage.remote import RemoteFolder
from raypipe.storage.remote_retry import RetryPolicy
from raypipe.storage.run_store import RunStore
from raypipe.trial.local import run_trial
from tests.support.records import edit_record
from tests.support.storage import Clock, FaultyProxy
from tests.support.toys import ToyWindows, make_run, tiny

optuna.logging.set_verbosity(optuna.logging.ERROR)

FAULTS = ["500 InternalError", "503 SlowDown", "reset", "lost"]


@pytest.fixture
def bucket(s3):
    """A URI of an empty folder in a bucket."""
    return s3.new_folder()


@pytest.fixture
def proxy(s3):
    """Start a proxy in front of the server, which can inject faults."""
    proxy = FaultyProxy(s3.port)
    yield proxy
    proxy.close()


def through(proxy: FaultyProxy, uri: str, clock: Clock | None = None, **options) -> RemoteFolder:
    """Open the folder through the proxy, with short timeouts and a clock that does not wait."""
    clock = clock or Clock()
    server = fs.S3FileSystem(
        endpoint_override=f"127.0.0.1:{proxy.port}",
        scheme="http",
        region="us-east-1",
        connect_timeout=1,
        request_timeout=1,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
        **options,
    )
    root = uri.removeprefix("s3://").partition("?")[0]
    return RemoteFolder(uri, filesystem=(server, root), retry=RetryPolicy(uri, clock=clock, sleep=clock.sleep))


def healing(proxy: FaultyProxy, after: int = 3) -> Clock:
    """Return a clock that heals the server after some waits."""

    def heal(count: int) -> None:
        if count % after == 0:
            proxy.mode = "pass"

    return Clock(heal)


def test_files_are_written_listed_read_and_removed(bucket):
    folder = open_folder(bucket)
    assert folder.names() == []
    assert not folder.exists("a/b.txt")
    folder.write("a/b.txt", b"one")
    folder.write("a/b.txt", b"two")
    folder.write("c", b"")
    large = np.random.default_rng(0).bytes(12 << 20)  # uploaded in parts
    folder.write("large", large)
    assert folder.read("large") == large
    assert folder.read("a/b.txt") == b"two"
    assert folder.names() == ["a/b.txt", "c", "large"]
    assert folder.names("a") == ["a/b.txt"]
    assert folder.names("b") == []
    folder.remove("c")
    folder.remove("c")
    assert not folder.exists("c")
    with pytest.raises(FileNotFoundError):
        folder.read("c")


def test_a_trial_gives_the_numbers_of_a_local_one(bucket, tmp_path):
    windows, config = ToyWindows(), tiny(sam__name="sam", mixup__name="mixup", optim__ema=0.9)
    runs = []
    for where in (tmp_path / "run", bucket):
        run = make_run(where, windows)
        run.add_trial(0, config)
        result = run_trial(run, windows, 0)
        assert result.state == "complete" and run.verify() == {}
        runs.append(RunStore.open(where))
    here, there = runs
    assert [e.model_dump(exclude={"seconds", "finished"}) for e in here.history(0)] == [
        e.model_dump(exclude={"seconds", "finished"}) for e in there.history(0)
    ]
    np.testing.assert_array_equal(here.oof(0).predictions, there.oof(0).predictions)
    for fold in range(3):
        for name, tensor in here.weights(0, fold).items():
            assert tensor.equal(there.weights(0, fold)[name]), name
    left = [sorted(name for name in run.folder.names() if "/log/" not in name) for run in runs]
    assert left[0] == left[1]


def test_another_driver_continues_a_study(bucket):
    windows = ToyWindows()
    run = make_run(bucket, windows)
    queue = StudyQueue(run, windows, open_journal(run), trials=4)
    assert [queue.next(), queue.next()] == [0, 1]
    queue.close(0, "failed", "toy")
    run = RunStore.open(bucket)
    again = StudyQueue(run, windows, open_journal(run), trials=4)
    assert [again.next(), again.next(), again.next(), again.next()] == [1, 2, 3, None]
    assert run.result(0).reason == "toy"


def test_a_second_driver_gets_an_error_and_an_expired_lease_is_taken_over(bucket, monkeypatch):
    folder = open_folder(bucket)
    with Lease(folder), pytest.raises(UserError, match="another raypipe is driving this run"):
        Lease(open_folder(bucket)).__enter__()
    assert not read_lease(folder).alive
    with Lease(folder):
        record = json.loads(folder.read(DRIVER_FILE))
        edit_record(folder, DRIVER_FILE, {"host": "elsewhere", "id": "other"})
        assert read_lease(folder).alive
        edit_record(folder, DRIVER_FILE, {"id": "third", "beat": record["beat"] - EXPIRY_SECONDS - 1})
        assert not read_lease(folder).alive
        monkeypatch.setattr("raypipe.storage.lease.EXPIRY_SECONDS", 0.0)
        with Lease(open_folder(bucket)):
            assert read_lease(folder).alive


def test_an_ensemble_is_saved_and_loaded(bucket, values):
    run = values.run
    for name in run.folder.names():
        open_folder(bucket).write(name, run.folder.read(name))
    there = RunStore.open(bucket)
    fit_ensemble(there, top=2, method="equal", windows=values.windows).save()
    assert Ensemble.load(there).trials == [each.number for each in run.ranked()[:2]]


# Faults of the server


@pytest.mark.parametrize("fault", FAULTS)
def test_every_operation_outlasts_a_server_that_fails(bucket, proxy, fault, caplog):
    clock = healing(proxy)
    folder, here = through(proxy, bucket, clock), open_folder(bucket)
    here.write("old", b"old")
    here.write("gone", b"gone")
    for number, operation in enumerate(
        [
            lambda: folder.write("new", b"new"),
            lambda: folder.write("old", b"newer"),
            lambda: folder.read("old") == b"newer",
            lambda: folder.exists("new"),
            lambda: folder.names() == ["gone", "new", "old"],
            lambda: folder.remove("gone"),
        ]
    ):
        proxy.mode, waits = fault, len(clock.slept)
        assert operation() in (None, True), number
        if fault != "lost":
            assert proxy.mode == "pass" and clock.slept[waits:] == [0.5, 1.0, 2.0]
        proxy.mode = "pass"
        clock.slept += [0.0] * (-len(clock.slept) % 3)
    assert proxy.met >= 6
    assert {name: here.read(name) for name in here.names()} == {"old": b"newer", "new": b"new"}
    assert "the storage fails" in caplog.text and "answers again" in caplog.text


def test_a_call_of_a_stalled_server_times_out_and_is_repeated(bucket, proxy):
    clock = healing(proxy, after=1)
    folder = through(proxy, bucket, clock)
    proxy.mode = "stall"
    folder.write("a", b"whole")
    assert proxy.mode == "pass" and proxy.met == 1 and clock.slept == [0.5]
    assert open_folder(bucket).read("a") == b"whole"


def test_a_trial_outlasts_a_server_that_fails_again_and_again(bucket, proxy, tmp_path, caplog):
    windows = ToyWindows()
    undisturbed = make_run(tmp_path / "run", windows)
    undisturbed.add_trial(0, tiny())
    expected = run_trial(undisturbed, windows, 0)

    run = make_run(bucket, windows)
    run.add_trial(0, tiny())
    run = RunStore(through(proxy, bucket, healing(proxy)), run.info, run.folds, run.space)
    write, faults = run.folder.write, iter(FAULTS * 50)

    def disturbed(name, data):
        proxy.mode = next(faults)
        write(name, data)

    run.folder.write = disturbed
    result = run_trial(run, windows, 0)
    assert (result.state, result.score) == ("complete", expected.score)
    assert caplog.text.count("answers again") > 10
    there = RunStore.open(bucket)
    assert there.verify() == {}
    assert there.oof(0).predictions.tolist() == undisturbed.oof(0).predictions.tolist()


def test_a_trial_that_ends_with_a_server_outage_can_be_resumed(bucket, proxy, tmp_path, monkeypatch):
    windows = ToyWindows()
    undisturbed = make_run(tmp_path / "run", windows)
    undisturbed.add_trial(0, tiny())
    run_trial(undisturbed, windows, 0)

    run = make_run(bucket, windows)
    run.add_trial(0, tiny())
    clock = Clock()
    remote = RunStore(through(proxy, bucket, clock), run.info, run.folds, run.space)

    write = remote.write_checkpoint

    def away(number, fold, epoch, data):
        if epoch == 3:
            proxy.mode = "503 SlowDown"
        write(number, fold, epoch, data)

    monkeypatch.setattr(remote, "write_checkpoint", away)
    with pytest.raises(StorageError, match="has not answered for 5 minutes"):
        run_trial(remote, windows, 0)
    assert 300 <= clock.now < 330
    assert run.result(0) is None
    run_trial(run, windows, 0)
    assert run.oof(0).predictions.tolist() == undisturbed.oof(0).predictions.tolist()


def test_a_lease_outlasts_a_server_that_fails(bucket, proxy):
    with Lease(through(proxy, bucket, healing(proxy))) as lease:
        proxy.mode = "reset"
        lease._beat()
        assert read_lease(open_folder(bucket)).alive


def test_a_full_store_is_a_full_disk(bucket, proxy):
    folder = through(proxy, bucket)
    proxy.mode = "507 XMinioStorageFull"
    with pytest.raises(DiskFullError, match=r"no space left.*same command again"):
        folder.write("a", b"1")


# Errors of the user


def refused(capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit) as leave:
        app.main([str(word) for word in arguments])
    lines = capsys.readouterr().err.strip().splitlines()
    assert leave.value.code == 2 and len(lines) == 1, lines
    return lines[0].removeprefix("raypipe: error: ")


def test_a_missing_bucket_gives_one_line(s3, capsys):
    uri = s3.uri("elsewhere/run")
    assert refused(capsys, "status", uri).startswith("s3://elsewhere/run: there is no bucket 'elsewhere'; create it")
    with pytest.raises(StorageError, match="no such bucket"):
        open_folder(uri).write("a", b"1")


def test_a_missing_run_gives_one_line(bucket, capsys):
    assert "no raypipe run there" in refused(capsys, "status", bucket)


@pytest.mark.parametrize("answer", ["403 AccessDenied", "403 InvalidAccessKeyId", "403 SignatureDoesNotMatch"])
def test_wrong_keys_give_one_line_without_a_retry(bucket, proxy, answer):
    clock = Clock()
    proxy.mode = answer
    folder = through(proxy, bucket, clock)
    for operation in (lambda: folder.exists("a"), lambda: folder.names(), lambda: folder.write("a", b"1")):
        with pytest.raises(StorageError, match=r"denies access.*AWS_ACCESS_KEY_ID") as caught:
            operation()
        assert "\n" not in str(caught.value)
    assert clock.slept == []


def test_missing_keys_give_one_line(bucket, proxy, capsys, monkeypatch, tmp_path):
    """Without keys, requests are not signed, and the server denies them."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    proxy.mode = "403 AccessDenied"
    uri = f"{bucket.partition('?')[0]}?scheme=http&endpoint_override=127.0.0.1:{proxy.port}&region=us-east-1"
    assert "denies access" in refused(capsys, "status", uri)


def test_an_unreachable_server_is_retried_and_then_named(tmp_path):
    clock = Clock()
    server = fs.S3FileSystem(
        endpoint_override="127.0.0.1:1",
        scheme="http",
        region="us-east-1",
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
    )
    retry = RetryPolicy("s3://bucket/run", clock=clock, sleep=clock.sleep)
    folder = RemoteFolder("s3://bucket/run", filesystem=(server, "bucket/run"), retry=retry)
    with pytest.raises(StorageError, match="s3://bucket/run: the storage has not answered for 5 minutes"):
        folder.exists("run.json")
