from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from raypipe.cli import app
from raypipe.core.errors import UserError
from raypipe.data.window_cache import LIMIT_VARIABLE, RemoteWindowStore, ShardCache, open_windows, push_store
from raypipe.data.window_store import WindowStore
from raypipe.storage.transfer import copy_folder
from tests.support.toys import ToyWindows, write_store


@pytest.fixture
def store(tmp_path):
    return WindowStore(write_store(tmp_path / "store", ToyWindows()))


@pytest.fixture
def uri(store, tmp_path):
    """Copy the store to a folder that acts as shared storage, and return its URI."""
    push_store(str(store.path), f"file://{tmp_path}/shared")
    return f"file://{tmp_path}/shared"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYPIPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def shards(cache):
    return sorted(path.name for path in cache.glob("*.npy"))


def test_a_store_behind_a_uri_equals_the_local_store(store, uri, cache):
    there = open_windows(uri)
    assert there.where == uri and there.data_hash == store.data_hash
    index = np.arange(len(store))[::-3]
    np.testing.assert_array_equal(there.gather(index), store.gather(index))
    there.verify()
    assert isinstance(open_windows(store.path), WindowStore) and open_windows(store.path).where == str(store.path)


def test_a_store_on_an_object_store_equals_the_local_store(store, cache, s3):
    bucket = s3.new_folder()
    push_store(str(store.path), bucket)
    np.testing.assert_array_equal(open_windows(bucket).gather([5, 60, 0]), store.gather([5, 60, 0]))


def test_each_shard_is_fetched_once_for_all_processes_and_by_its_content(store, uri, cache, tmp_path):
    first = open_windows(uri)
    assert shards(cache) == sorted(f"{shard.sha256}.npy" for shard in store.manifest.shards)
    for path in (tmp_path / "shared/shards").iterdir():
        path.unlink()  # a second fetch would fail
    again = pickle.loads(pickle.dumps(first))
    np.testing.assert_array_equal(again.gather([3]), store.gather([3]))
    program = f"from raypipe.data.window_cache import open_windows; print(len(open_windows({uri!r}).gather([0, 40])))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "2\n"


def test_a_small_cache_keeps_the_latest_shards_and_evicted_maps_stay_readable(store, uri, cache):
    size = (cache.parent / "store" / store.manifest.shards[0].file).stat().st_size
    small = RemoteWindowStore(uri, ShardCache(cache, limit=2 * size))
    assert shards(cache) == []  # they do not all fit, so none is fetched before its use
    whole = store.gather(np.arange(len(store)))
    for _ in range(2):  # the second time from maps of evicted files
        np.testing.assert_array_equal(small.gather(np.arange(len(store))), whole)
    assert len(shards(cache)) == 2
    assert f"{store.manifest.shards[-1].sha256}.npy" in shards(cache)


def test_a_cached_shard_is_not_fetched_again(store, uri, cache):
    reads = []
    there = ShardCache(cache)
    mirrored = RemoteWindowStore(uri, there)
    read = mirrored._folder.read
    mirrored._folder.read = lambda name: reads.append(name) or read(name)
    shard = store.manifest.shards[0]
    mirrored._use(shard, Path).unlink()
    mirrored._use(shard, Path)
    mirrored._use(shard, Path)
    assert reads == [shard.file]


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped"])
def test_a_damaged_shard_is_not_cached(store, uri, cache, tmp_path, damage):
    file = tmp_path / "shared" / store.manifest.shards[2].file
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(data[:-8] if damage == "cut" else data)
    with pytest.raises(UserError, match="missing" if damage == "missing" else "damaged") as error:
        open_windows(uri)
    assert store.manifest.shards[2].file in str(error.value) and "\n" not in str(error.value)
    assert f"{store.manifest.shards[2].sha256}.npy" not in shards(cache)


def test_an_unfinished_copy_is_no_store(store, cache, tmp_path):
    with pytest.raises(UserError, match="not a store of windows"):
        open_windows(f"file://{tmp_path}")
    target = f"file://{tmp_path}/half"

    def stop(done, total, name):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        push_store(str(store.path), target, progress=stop)
    with pytest.raises(UserError, match="copy a store there with raypipe push"):
        open_windows(target)
    push_store(str(store.path), target)
    assert len(open_windows(target)) == len(store)


def test_a_changed_store_is_fetched_again(uri, cache, tmp_path):
    before = open_windows(uri)
    other = WindowStore(write_store(tmp_path / "other", ToyWindows(subjects=5)))
    push_store(str(other.path), uri)
    after = open_windows(uri)
    assert (before.data_hash, len(after)) != (after.data_hash, len(before))
    np.testing.assert_array_equal(after.gather([0, 39]), other.gather([0, 39]))


def test_the_limit_is_read_from_the_environment(cache, monkeypatch):
    monkeypatch.setenv(LIMIT_VARIABLE, "1.5")
    assert ShardCache().limit == 1_500_000_000
    monkeypatch.setenv(LIMIT_VARIABLE, "much")
    with pytest.raises(UserError, match="RAYPIPE_CACHE_GB=much"):
        ShardCache()
    monkeypatch.delenv(LIMIT_VARIABLE)
    assert 0 < ShardCache().limit < os.statvfs(cache).f_blocks * os.statvfs(cache).f_frsize


def test_the_command_line_pushes_a_store_and_pulls_a_run(values, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        app.main(["pull", values.run.where, str(tmp_path / "run")])
    assert end.value.code == 0
    assert copy_folder(values.run.where, str(tmp_path / "again")) == len(
        [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    )
    for path in (tmp_path / "again").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "run" / path.relative_to(tmp_path / "again")).read_bytes()
    with pytest.raises(SystemExit) as end:
        app.main(["push", str(tmp_path), "file:///nowhere"])
    assert end.value.code == 2 and "not a store of windows" in capsys.readouterr().err


def test_a_locked_shard_is_not_evicted(store, uri, cache):
    size = (cache.parent / "store" / store.manifest.shards[0].file).stat().st_size
    small = RemoteWindowStore(uri, ShardCache(cache, limit=size))
    first, second = store.manifest.shards[:2]

    def while_mapped(path):
        small._use(second, Path)  # would evict the first if it were not locked
        return path.is_file()

    assert small._use(first, while_mapped)
    small._use(store.manifest.shards[2], Path)
    assert not (cache / f"{first.sha256}.npy").is_file(), "it is evicted when it is no longer locked"


def test_a_fifo_in_place_of_a_shards_lock_is_one_line(store, uri, cache):
    remote, first = RemoteWindowStore(uri, ShardCache(cache)), store.manifest.shards[0]
    cache.mkdir(parents=True, exist_ok=True)
    lock = cache / f"{first.sha256}.lock"
    lock.unlink(missing_ok=True)
    os.mkfifo(lock)
    with pytest.raises(UserError, match=r"\.lock: not a regular file; remove it"):
        remote._use(first, Path)
    lock.unlink()
    assert remote._use(first, Path.is_file)


def test_keys_in_a_uri_are_refused(cache):
    with pytest.raises(UserError, match="leave the keys out") as error:
        open_windows("s3://key:geheim@lab/store")
    assert "geheim" not in str(error.value)


@pytest.mark.parametrize("where", ["shared", "cache"])
def test_a_table_that_was_damaged_is_fetched_again(store, uri, cache, tmp_path, where):
    if where == "cache":
        assert len(open_windows(uri)) == len(store)
    (table,) = (tmp_path / where).rglob("windows.csv")
    table.write_bytes(table.read_bytes()[:-7])
    if where == "shared":
        with pytest.raises(UserError, match=r"^file://.*shared/windows\.csv: damaged .* copy the whole"):
            open_windows(uri)
        push_store(str(store.path), uri)
    assert len(open_windows(uri)) == len(store)
