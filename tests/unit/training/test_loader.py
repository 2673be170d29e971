"""Windows on the device: the same numbers as the store's, however they get there."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.training import loader
from raypipe.training.loader import WindowLoader, prefetch, resident_bytes
from tests.support.toys import ToyWindows


class Shifted(ToyWindows):
    """Crops that are evaluated at other places than the windows' starts."""

    def __init__(self):
        super().__init__(subjects=3, each=9, spare=10)

    def offsets(self, index):
        return np.asarray(index) % 11

    def gather(self, index, offset=None):
        return super().gather(index, self.offsets(index) if offset is None else offset)


@pytest.fixture(scope="module")
def windows():
    return Shifted()


def feeds():
    return [t for t in threading.enumerate() if t.name.startswith("raypipe-feed")]


def test_on_a_cpu_batches_are_the_stores(windows):
    fed = WindowLoader(windows)
    assert not fed.resident
    index = np.array([5, 0, 26, 5])
    for offset in (None, np.array([10, 0, 3, 4])):
        x_BCT = fed.gather(index, offset)
        assert x_BCT.dtype == torch.float32
        np.testing.assert_array_equal(x_BCT.numpy(), windows.gather(index, offset))


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_what_is_kept_on_the_device_is_the_store_rounded(windows, data):
    """Loud channels beside quiet ones, far from zero or not; and flat ones, which stay what they are."""
    exponents = st.floats(-6, 6).map(lambda e: 10.0**e)
    scale_C = np.array(data.draw(st.lists(st.just(0.0) | exponents, min_size=3, max_size=3)))
    centre_C = np.array(data.draw(st.lists(st.just(0.0) | exponents, min_size=3, max_size=3)))
    toy = Shifted()
    toy.x = (windows.x * scale_C[:, None] + centre_C[:, None]).astype(np.float32)
    fed = WindowLoader(toy, resident=True)
    assert fed.resident
    index = np.array(data.draw(st.lists(st.integers(0, len(toy) - 1), min_size=1, max_size=5)))
    offset = data.draw(st.none() | st.just(index % 7))
    got, want = fed.gather(index, offset).numpy(), toy.gather(index, offset)
    assert got.shape == want.shape and got.dtype == np.float32
    whole = toy.x[index]
    spread_BC1 = np.ptp(whole, axis=2, keepdims=True).astype(np.float64)
    rounding_BC1 = 4 * np.finfo(np.float32).eps * np.abs(whole).max(axis=2, keepdims=True)
    assert (np.abs(got - want.astype(np.float64)) <= spread_BC1 / 8192 + rounding_BC1).all()
    flat_BC = spread_BC1[..., 0] == 0
    np.testing.assert_array_equal(got[flat_BC], want[flat_BC])


def test_a_store_is_loaded_block_by_block(windows, monkeypatch):
    whole = WindowLoader(windows, resident=True)
    monkeypatch.setattr(loader, "_BLOCK", 10)  # 27 windows: two full blocks and a rest
    for one, other in zip(whole._kept, WindowLoader(windows, resident=True)._kept, strict=True):
        assert one.equal(other)


def test_what_is_asked_for_is_what_is_taken(windows):
    assert sum(t.nbytes for t in WindowLoader(windows, resident=True)._kept) == resident_bytes(windows)


@pytest.mark.parametrize(("free", "resident"), [(2.0, True), (1.9, False)])
def test_a_store_that_leaves_room_is_kept_on_a_gpu(windows, monkeypatch, free, resident):
    monkeypatch.setattr(loader, "_free", lambda device: free * resident_bytes(windows))
    monkeypatch.setattr(WindowLoader, "_load", lambda self: "loaded")
    assert WindowLoader(windows, "cuda").resident is resident
    assert not WindowLoader(windows, "cuda", resident=False).resident


def test_only_what_passes_through_pinned_memory_is_fetched_ahead(windows, monkeypatch):
    batches = iter(range(3))
    assert WindowLoader(windows).ahead(batches) is batches
    assert WindowLoader(windows, resident=True).ahead(batches) is batches
    fed = WindowLoader(windows, "cuda", resident=False)
    assert list(fed.ahead(batches)) == [0, 1, 2]


@given(st.lists(st.none() | st.integers()))
def test_items_fetched_ahead_are_the_same_in_the_same_order(items):
    assert list(prefetch(iter(items))) == items
    assert feeds() == []


def test_the_next_item_is_fetched_while_one_is_used_and_no_further():
    asked = [threading.Event() for _ in range(4)]
    names = set()

    def items():
        for event in asked:
            event.set()
            names.add(threading.current_thread().name)
            yield event

    stream = prefetch(items())
    next(stream)
    assert asked[1].wait(5.0)
    assert not asked[2].wait(0.05)
    assert len(list(stream)) == 3
    assert len(names) == 1 and threading.current_thread().name not in names


def test_what_goes_wrong_in_the_other_thread_is_passed_on():
    def items():
        yield 1
        raise OSError("the disk is gone")

    stream = prefetch(items())
    assert next(stream) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream)
    assert feeds() == []


def test_one_who_stops_early_leaves_no_thread_behind():
    stream = prefetch(iter(range(100)))
    assert next(stream) == 0
    assert len(feeds()) == 1
    stream.close()
    assert feeds() == []
