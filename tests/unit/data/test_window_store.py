from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.core.errors import DamagedFileError, UserError
from raypipe.data import shard_file
from raypipe.data.manifest import COLUMNS
from raypipe.data.prepare import prepare
from raypipe.data.window_store import WindowStore


@pytest.fixture(scope="module")
def cropped(tiny_bids: Path, tmp_path_factory: pytest.TempPathFactory) -> WindowStore:
    """Prepare half-second crops of one-second windows, whose target is their start."""
    out = tmp_path_factory.mktemp("latency")
    return prepare(tiny_bids, "latency:left_target,right_target", out, window=1.0, crop=0.5, tmin=-0.2, jobs=1)


@pytest.fixture
def copy(tiny_store: WindowStore, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_store.path, tmp_path / "store"))


def _naive(store: WindowStore, index: list[int], offset: list[int]) -> np.ndarray:
    out = []
    for i, o in zip(index, offset, strict=True):
        row = store.table.iloc[i]
        x_NCT = np.load(store.path / "shards" / f"{row['recording']}.npy")
        out.append(x_NCT[row["row"], :, o : o + store.crop_samples])
    return np.array(out, np.float32).reshape(len(index), store.n_channels, store.crop_samples)


def test_a_store_has_the_properties_of_its_windows(tiny_store):
    assert tiny_store.kind == "regression" and tiny_store.metric == "nrmse"
    assert tiny_store.classes == [] and tiny_store.n_outputs == 1
    assert tiny_store.channels == [*(f"E{i}" for i in range(1, 8)), "Cz"] and tiny_store.n_channels == 8
    assert tiny_store.sfreq == 100.0
    assert tiny_store.window_samples == tiny_store.crop_samples == 200
    assert not tiny_store.target_is_offset
    assert list(tiny_store.table.columns) == [*COLUMNS, "release", "age"]
    assert tiny_store.table["window"].tolist() == list(range(len(tiny_store)))
    assert tiny_store.targets.dtype == np.float32 and len(tiny_store.targets) == len(tiny_store)
    assert sorted(set(tiny_store.subjects)) == [f"SIM{i:04d}" for i in range(6)]
    assert tiny_store.manifest.summary.windows == len(tiny_store)
    assert f"{len(tiny_store)} windows of 8 channels x 200 samples at 100 Hz" in tiny_store.describe()
    tiny_store.verify()


@given(data=st.data())
def test_gather_equals_indexing_of_loaded_shards(cropped, data):
    index = data.draw(st.lists(st.integers(0, len(cropped) - 1), max_size=6))
    spare = cropped.window_samples - cropped.crop_samples
    offset = data.draw(st.lists(st.integers(0, spare), min_size=len(index), max_size=len(index)))
    got = cropped.gather(index, offset)
    assert got.dtype == np.float32 and got.shape == (len(index), 8, 50)
    np.testing.assert_array_equal(got, _naive(cropped, index, offset))
    at_table = [int(cropped.table["offset"].iloc[i]) for i in index]
    np.testing.assert_array_equal(cropped.gather(index), _naive(cropped, index, at_table))


def test_latency_targets_are_the_offsets(cropped):
    assert cropped.target_is_offset
    index = np.arange(len(cropped))
    offset = cropped.table["offset"].to_numpy()
    assert offset.min() >= 0 and offset.max() <= 50 and len(np.unique(offset)) > 20
    np.testing.assert_array_equal(cropped.targets, (offset / 100).astype(np.float32))
    np.testing.assert_array_equal(cropped.target_at(index, offset), cropped.targets)
    np.testing.assert_array_equal(cropped.target_at([0, 1], [0, 50]), np.float32([0, 0.5]))


def test_other_targets_do_not_depend_on_the_offset(tiny_store):
    np.testing.assert_array_equal(tiny_store.target_at([3, 1], [0, 0]), tiny_store.targets[[3, 1]])


def test_gather_refuses_what_is_out_of_range(cropped):
    for index, offset in [([0], [51]), ([0], [-1]), ([0, 1], [0]), ([len(cropped)], [0])]:
        with pytest.raises(IndexError):
            cropped.gather(index, offset)


def test_a_pickle_contains_the_path_only(tiny_store):
    tiny_store.gather([0])
    data = pickle.dumps(tiny_store)
    assert len(data) < 1000
    np.testing.assert_array_equal(pickle.loads(data).gather([5, 2]), tiny_store.gather([5, 2]))


def test_the_number_of_open_memory_maps_is_limited(tiny_store):
    store = WindowStore(tiny_store.path)
    store._max_maps = 2
    index = np.random.default_rng(0).permutation(len(store))
    np.testing.assert_array_equal(store.gather(index), tiny_store.gather(index))
    assert len(store._maps) == 2


def test_threads_can_read_at_the_same_time(tiny_store):
    """Each fold of a stack reads its batches in a thread of its own."""
    store = WindowStore(tiny_store.path)
    store._max_maps = 1
    index = np.random.default_rng(0).permutation(len(store))
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            read = list(pool.map(lambda _: store.gather(index), range(40)))
    finally:
        sys.setswitchinterval(before)
    expected = tiny_store.gather(index)
    assert all(np.array_equal(each, expected) for each in read)


def test_folders_that_are_no_store_give_one_line(tmp_path, copy):
    with pytest.raises(UserError, match="no such folder of windows"):
        WindowStore(tmp_path / "none")
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="not a store of windows"):
        WindowStore(tmp_path / "other")
    (copy / "manifest.json").unlink()
    with pytest.raises(UserError, match="prepare did not finish; run the same prepare command again"):
        WindowStore(copy)


@pytest.mark.parametrize(
    ("message", "damage"),
    [
        ("manifest.json: damaged", lambda data: data[:-20]),
        ("manifest.json: metric", lambda data: data.replace(b'"auc"', b'"f2"').replace(b'"nrmse"', b'"f2"')),
        ("manifest.json: format 'old'", lambda data: data.replace(b'"raypipe-windows/5"', b'"old"')),
        ("windows.csv: damaged", lambda data: data.replace(b"SIM0001", b"SIM0002")),
    ],
)
def test_a_damaged_manifest_or_table_is_named(copy, message, damage):
    path = copy / message.partition(":")[0]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=message):
        WindowStore(copy)


def test_a_missing_table_is_named(copy):
    (copy / "windows.csv").unlink()
    with pytest.raises(UserError, match=r"windows\.csv: missing"):
        WindowStore(copy)


def test_damaged_shards_are_named(copy):
    shards = sorted((copy / "shards").glob("*.npy"))
    data = bytearray(shards[2].read_bytes())
    data[-5] ^= 1
    shards[2].write_bytes(data)
    with pytest.raises(UserError, match=rf"{shards[2].name}: damaged"):
        WindowStore(copy).verify()
    shards[2].write_bytes(data[:-100])
    with pytest.raises(UserError, match=rf"{shards[2].name}: damaged"):
        WindowStore(copy).gather(range(len(WindowStore(copy))))
    shards[2].write_bytes(b"")
    with pytest.raises(UserError, match=rf"{shards[2].name}: damaged \(empty"):
        WindowStore(copy).verify()
    shards[2].unlink()
    with pytest.raises(UserError, match=rf"{shards[2].name}: missing"):
        WindowStore(copy).gather(range(len(WindowStore(copy))))
    np.save(shards[2], np.zeros((1, 8, 200), np.float32))
    with pytest.raises(UserError, match=rf"{shards[2].name}: damaged \(6528 bytes, not"):
        WindowStore(copy).verify()


def test_windows_that_change_are_noticed_before_they_are_read(copy):
    """A change keeps the size. Each process compares a shard with its checksum before it first reads it."""
    store, index = WindowStore(copy), range(len(WindowStore(copy)))
    before = store.gather(index)
    for shard in sorted((copy / "shards").glob("*.npy")):
        whole = shard.read_bytes()
        shard.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
        with pytest.raises(DamagedFileError, match=rf"{shard.name}: damaged \(its content is not what prepare wrote"):
            WindowStore(copy).gather(index)
        code = f"from raypipe.data.window_store import WindowStore as W; s = W({str(copy)!r}); s.gather(range(len(s)))"
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert ended.returncode == 1 and f"{shard.name}: damaged" in ended.stderr
        shard.write_bytes(whole)
    np.testing.assert_array_equal(WindowStore(copy).gather(index), before)


def test_a_shard_is_hashed_once_in_a_process(copy, monkeypatch):
    hashed = []
    plain = shard_file.content_hash
    monkeypatch.setattr(shard_file, "content_hash", lambda x: hashed.append(x.shape) or plain(x))
    for _ in range(3):
        WindowStore(copy).gather(range(len(WindowStore(copy))))
    assert len(hashed) == len(WindowStore(copy).manifest.shards)
