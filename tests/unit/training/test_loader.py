"""Windows on the device, dropout masks, and the batches of a fold."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.core.errors import UserError
from raypipe.training import loader
from raypipe.training.loader import (
    FoldData,
    WindowLoader,
    prefetch,
    resident_bytes,
)
from raypipe.training.losses import class_weights, make_fold_loss
from tests.support.toys import ToyWindows, tiny

CPU = torch.device("cpu")


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


def threads():
    return [t for t in threading.enumerate() if t.name.startswith("raypipe-loader")]


def test_on_a_cpu_batches_are_the_stores(windows):
    loaded = WindowLoader(windows)
    assert not loaded.resident
    index = np.array([5, 0, 26, 5])
    for offset in (None, np.array([10, 0, 3, 4])):
        x_BCT = loaded.gather(index, offset)
        assert x_BCT.dtype == torch.float32
        np.testing.assert_array_equal(x_BCT.numpy(), windows.gather(index, offset))


@settings(max_examples=50)
@given(data=st.data(), dtype=st.sampled_from(["float16", "float32"]))
def test_what_is_kept_on_the_device_gives_the_stores_batches_bit_for_bit(windows, data, dtype):
    """Channels of any amplitude and offset, in either type of store; flat channels and missing samples too."""
    exponents = st.floats(-4, 4).map(lambda e: 10.0**e)
    scale_C = np.array(data.draw(st.lists(st.just(0.0) | exponents, min_size=3, max_size=3)))
    centre_C = np.array(data.draw(st.lists(st.just(0.0) | exponents, min_size=3, max_size=3)))
    toy = Shifted()
    toy.x = (windows.x * scale_C[:, None] + centre_C[:, None]).clip(-6e4, 6e4).astype(dtype).astype(np.float32)
    toy.x[5, 0, 3], toy.dtype = np.nan, dtype
    loaded = WindowLoader(toy, resident=True)
    assert loaded.resident and loaded._kept_NCT.dtype == getattr(torch, dtype)
    index = np.array(data.draw(st.lists(st.integers(0, len(toy) - 1), min_size=1, max_size=5)))
    offset = data.draw(st.none() | st.just(index % 7))
    got, want = loaded.gather(index, offset).numpy(), toy.gather(index, offset)
    assert got.shape == want.shape and got.dtype == np.float32
    np.testing.assert_array_equal(got, want)


def test_windows_that_are_not_cropped_are_the_same_too():
    toy = ToyWindows(subjects=2, each=3)
    got = WindowLoader(toy, resident=True).gather(np.array([4, 0, 4]))
    np.testing.assert_array_equal(got.numpy(), toy.x[[4, 0, 4]])


def test_a_store_is_loaded_block_by_block(windows, monkeypatch):
    whole = WindowLoader(windows, resident=True)
    monkeypatch.setattr(loader, "_BLOCK_WINDOWS", 10)  # 27 windows: two full blocks and a rest
    assert whole._kept_NCT.equal(WindowLoader(windows, resident=True)._kept_NCT)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_resident_bytes_are_those_that_are_allocated(dtype):
    toy = Shifted()
    toy.dtype = dtype
    assert WindowLoader(toy, resident=True)._kept_NCT.nbytes == resident_bytes(toy)


@pytest.fixture
def card(windows, monkeypatch):
    """A GPU of a size in stores; returns a function that sets total and free memory."""
    monkeypatch.setattr(WindowLoader, "_load", lambda self: torch.empty(0))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)

    def of(total: float, free: float) -> None:
        size = resident_bytes(windows)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free * size), int(total * size)))

    return of


@pytest.mark.parametrize(
    ("total", "free", "share", "resident"),
    [
        (2.0, 2.0, 1.0, True),
        (2.0, 1.9, 1.0, False),  # another process uses the card
        (1.9, 1.9, 1.0, False),
        (8.0, 8.0, 0.25, True),
        (7.9, 7.9, 0.25, False),
        (80 / 30, 80 / 30, 0.25, False),  # 30 GB of 80, which four workers would hold four times
        (8.0, 1.9, 0.25, False),
    ],
)
def test_a_store_is_kept_on_a_gpu_if_it_takes_half_of_the_workers_share(windows, card, total, free, share, resident):
    card(total, free)
    assert WindowLoader(windows, "cuda", share=share).resident is resident
    assert not WindowLoader(windows, "cuda", resident=False, share=share).resident


def test_memory_that_runs_out_while_the_store_is_loaded_leaves_it_where_it_is(windows, monkeypatch):
    monkeypatch.setattr(windows, "whole", lambda block: oom())

    def oom():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 30 GiB.")

    loaded = WindowLoader(windows, resident=True)
    assert not loaded.resident
    index = np.array([3, 1])
    np.testing.assert_array_equal(loaded.gather(index).numpy(), windows.gather(index))
    monkeypatch.undo()
    loaded.set_resident(True)
    assert not loaded.resident, "no trial waits for another attempt"
    monkeypatch.setattr(windows, "whole", lambda block: (_ for _ in ()).throw(RuntimeError("a damaged file")))
    with pytest.raises(RuntimeError, match="a damaged file"):
        WindowLoader(windows, resident=True)


def test_a_trial_that_needs_the_memory_gets_it_and_the_next_one_finds_the_store_again(windows):
    loaded, index = WindowLoader(windows, resident=True), np.array([2, 0])
    for wanted in (False, False, True, True):
        loaded.set_resident(wanted)
        assert loaded.resident is wanted
        np.testing.assert_array_equal(loaded.gather(index).numpy(), windows.gather(index))
    streamed = WindowLoader(windows, resident=False)
    streamed.set_resident(True)
    assert not streamed.resident


def test_only_what_passes_through_pinned_memory_is_fetched_ahead(windows, monkeypatch):
    batches = iter(range(3))
    assert WindowLoader(windows).prefetched(batches) is batches
    assert WindowLoader(windows, resident=True).prefetched(batches) is batches
    loaded = WindowLoader(windows, "cuda", resident=False)
    assert list(loaded.prefetched(batches)) == [0, 1, 2]


@given(st.lists(st.none() | st.integers()))
def test_items_fetched_ahead_are_the_same_in_the_same_order(items):
    assert list(prefetch(iter(items))) == items
    assert threads() == []


class Immediate:
    """An executor that does its work in `submit`."""

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, work):
        done = Future()
        done.set_result(work())
        return done


def test_one_item_is_fetched_ahead_and_no_more(monkeypatch):
    monkeypatch.setattr(loader, "ThreadPoolExecutor", Immediate)
    fetched = []
    stream = prefetch(fetched.append(number) or number for number in range(4))
    assert next(stream) == 0 and fetched == [0, 1]
    assert next(stream) == 1 and fetched == [0, 1, 2]
    assert list(stream) == [2, 3]


def test_the_next_item_is_fetched_by_another_thread_while_one_is_used():
    fetched = [threading.Event() for _ in range(4)]
    names = set()

    def items():
        for event in fetched:
            event.set()
            names.add(threading.current_thread().name)
            yield event

    stream = prefetch(items())
    next(stream)
    assert fetched[1].wait(60)
    assert len(list(stream)) == 3
    assert len(names) == 1 and threading.current_thread().name not in names


def test_errors_of_the_loading_thread_are_raised():
    def items():
        yield 1
        raise OSError("the disk is gone")

    stream = prefetch(items())
    assert next(stream) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream)
    assert threads() == []


def test_no_thread_is_left_when_the_iteration_stops_early():
    stream = prefetch(iter(range(100)))
    assert next(stream) == 0
    assert len(threads()) == 1
    stream.close()
    assert threads() == []


@pytest.mark.parametrize("sampling", ["window", "subject"])
@pytest.mark.parametrize(("each", "size", "wanted"), [(9, 48, [45, 45]), (7, 64, [35, 35]), (6, 32, [30, 30])])
def test_every_window_is_in_one_batch_of_an_epoch(sampling, each, size, wanted):
    """90 windows at a size of 48 were 48 and nothing: 53 % of them were seen."""
    toy = ToyWindows(subjects=10, each=each)
    train = np.arange(10 * each)
    data = FoldData(tiny(batch_size=size, sampling=sampling), WindowLoader(toy), train, train[:1], fold=0)
    seen = []
    gather = toy.gather
    toy.gather = lambda index, offset=None: seen.append(index) or gather(index, offset)
    batches = list(data.batches(1, lambda size: [(size, 0.5)]))
    assert [len(batch.y) for batch in batches] == [len(batch.dropout) for batch in batches] == wanted
    assert data.steps_per_epoch == len(batches)
    if sampling == "window":
        np.testing.assert_array_equal(np.sort(np.concatenate(seen)), train)


@pytest.mark.parametrize("mixup", ["none", "mixup"])
def test_streamed_batches_are_the_same(mixup):
    """A GPU's batches are loaded by another thread, one ahead."""
    toy, train = ToyWindows(subjects=10, each=9, spare=4), np.arange(90)
    data = FoldData(tiny(batch_size=40, mixup__name=mixup), WindowLoader(toy), train, train[:1], fold=0)
    plain = list(data.batches(3, lambda size: []))
    data.loader.prefetched = prefetch
    streamed = list(data.batches(3, lambda size: []))
    assert [len(batch.y) for batch in streamed] == [40, 25, 25]
    for one, other in zip(plain, streamed, strict=True):
        assert one.x.equal(other.x) and one.y.equal(other.y)


def test_a_fold_of_one_window_is_refused():
    with pytest.raises(UserError, match=r"fold 2 has 1 window\(s\) to train on; training needs 2"):
        FoldData(tiny(), WindowLoader(ToyWindows()), np.array([3]), np.arange(2), fold=2)


@pytest.fixture
def uneven():
    """Two people of class 0 with 16 windows, nine of class 1 with three; targets of regression follow the class."""

    def make(*, classes):
        toy = ToyWindows(subjects=11, each=16, classes=True)
        kept = np.array([n for n, s in enumerate(toy.subjects) if s in ("s00", "s01") or n % 16 < 3])
        label = np.where(np.isin(toy.subjects, ["s00", "s01"]), 0, 1)
        toy.targets = label if classes else label + 0.01 * np.arange(len(label)).astype(np.float32)
        if not classes:
            toy.classes, toy.kind, toy.metric, toy.n_outputs = [], "regression", "nrmse", 1
        return toy, kept

    return make


@pytest.mark.parametrize("sampling", ["window", "subject"])
def test_classes_have_equal_weight_among_the_drawn_windows(uneven, sampling):
    """By window, class 0 is more than half of the data; with people drawn evenly, two elevenths of what is drawn."""
    toy, train = uneven(classes=True)
    data = FoldData(tiny(sampling=sampling), WindowLoader(toy), train, train[:1], fold=0)
    weights = class_weights(toy.targets[train], 2, data.chances).numpy().astype(float)
    rng = np.random.default_rng(0)
    drawn = np.concatenate([toy.targets[data.order(rng)] for _ in range(400)])
    shares = np.bincount(drawn) / len(drawn)
    np.testing.assert_allclose(shares, [32 / 59, 27 / 59] if sampling == "window" else [2 / 11, 9 / 11], atol=0.01)
    np.testing.assert_allclose(shares * weights, 0.5, atol=0.02)
    # The loss of the fold uses them: a network that answers 0 logits has the same gradient for both classes.
    loss = make_fold_loss(data.config, data)
    logits = torch.zeros(len(drawn), 2, requires_grad=True)
    loss(logits, torch.from_numpy(drawn)).backward()
    assert float(logits.grad[:, 0].sum()) == pytest.approx(0.0, abs=0.02)


@pytest.mark.parametrize("scale", ["standard", "robust"])
@pytest.mark.parametrize("sampling", ["window", "subject"])
def test_targets_are_scaled_by_what_is_drawn(uneven, sampling, scale):
    """Centre, scale, and the mean that predictions are shrunk to are those of many epochs' draws."""
    toy, train = uneven(classes=False)
    config = tiny(sampling=sampling, target_scale=scale, shrink=0.25)
    data = FoldData(config, WindowLoader(toy), train, train[:1], fold=0)
    rng = np.random.default_rng(0)
    drawn = np.concatenate([toy.targets[data.order(rng)] for _ in range(2000)]).astype(float)
    assert data.mean == pytest.approx(drawn.mean(), abs=0.01)
    if scale == "standard":
        assert (data.centre, data.scale) == pytest.approx((drawn.mean(), drawn.std()), abs=0.01)
    else:
        centre = np.median(drawn)
        assert data.centre == pytest.approx(centre, abs=0.02)
        assert data.scale == pytest.approx(1.4826 * np.median(np.abs(drawn - centre)), abs=0.03)
    assert data.out_centre == pytest.approx(0.75 * data.centre + 0.25 * data.mean)
