from __future__ import annotations

import hashlib
import io
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from raypipe.core.errors import CheckpointError
from raypipe.storage.checkpoint_file import pack_raw, read_raw
from raypipe.storage.out_of_fold import unpack_tensors
from raypipe.training import checkpoint

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@st.composite
def tensors(draw) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    return (
        torch.arange(draw(st.integers(0, 9)), 99)[: math.prod(shape)].reshape(shape).to(draw(st.sampled_from(DTYPES)))
    )


def parts(each: st.SearchStrategy) -> st.SearchStrategy:
    keys = st.text() | st.integers()
    return st.lists(each) | st.lists(each).map(tuple) | st.dictionaries(keys, each)


@given(st.dictionaries(st.text(), st.recursive(PLAIN | tensors(), parts, max_leaves=12)))
def test_checkpoints_hold_what_they_were_given(state):
    assert_same(checkpoint.loads(checkpoint.dumps(state)), state)


def assert_same(found, given):
    assert type(found) is type(given)
    if isinstance(given, torch.Tensor):
        assert found.dtype is given.dtype and found.shape == given.shape and found.equal(given)
    elif isinstance(given, dict):
        assert list(found) == list(given)
        for key in given:
            assert_same(found[key], given[key])
    elif isinstance(given, list | tuple):
        assert len(found) == len(given)
        for one, other in zip(found, given, strict=True):
            assert_same(one, other)
    else:
        assert found == given


def test_numbers_that_are_not_finite_are_kept():
    again = checkpoint.loads(checkpoint.dumps({"loss": math.nan, "best": -math.inf}))
    assert math.isnan(again["loss"]) and again["best"] == -math.inf


def test_tensors_that_share_memory_are_kept_and_one_that_is_there_twice_is_written_once():
    whole = torch.randn(200, 3)
    views = {"rows": whole[1:], "columns": whole[:, 1], "whole": whole, "alias": whole.detach()}
    again = checkpoint.loads(checkpoint.dumps(views))
    assert all(again[name].equal(views[name]) for name in views)
    once, twice = checkpoint.dumps({"a": whole}), checkpoint.dumps({"a": whole, "b": whole})
    assert len(twice) < len(once) + 100


def test_what_a_checkpoint_cannot_hold_is_refused():
    with pytest.raises(TypeError, match="a checkpoint cannot hold a set"):
        checkpoint.dumps({"a": {1, 2}})


@given(st.dictionaries(st.text(min_size=1), tensors()))
def test_a_checkpoint_is_read_without_torch_and_its_tensors_written_as_they_are(given_tensors):
    raw = read_raw(checkpoint.dumps({"weights": given_tensors}))["weights"]
    for name, tensor in given_tensors.items():
        if tensor.dtype is not torch.bfloat16:  # numpy has none
            np.testing.assert_array_equal(raw[name].numpy(), tensor.numpy())
    written = unpack_tensors(pack_raw(raw))
    assert written.keys() == given_tensors.keys()
    for name, tensor in given_tensors.items():
        assert_same(written[name], tensor)


def test_every_bit_that_flips_and_every_cut_is_noticed():
    whole = checkpoint.dumps({"a": torch.arange(4)})
    for place in range(len(whole)):
        for damaged in (whole[:place], *(flipped(whole, place, 1 << bit) for bit in range(8))):
            with pytest.raises(CheckpointError):
                checkpoint.loads(damaged)


def flipped(data: bytes, place: int, bits: int) -> bytes:
    return data[:place] + bytes([data[place] ^ bits]) + data[place + 1 :]


@settings(max_examples=100)
@given(st.data())
def test_a_mixture_of_two_checkpoints_is_noticed(data):
    old, new = (checkpoint.dumps({"epoch": epoch, "a": torch.full((9,), epoch)}) for epoch in (1, 2))
    begin = data.draw(st.integers(0, len(new)))
    end = data.draw(st.integers(begin, len(new)))
    mixed = old[:begin] + new[begin:end] + old[end:]
    if mixed in (old, new):
        assert checkpoint.loads(mixed)["epoch"] in (1, 2)
    else:
        with pytest.raises(CheckpointError):
            checkpoint.loads(mixed)


def forged(content: bytes) -> bytes:
    """Return a checkpoint whose checksum is right."""
    return b"raypipe-checkpoint-2\n" + hashlib.sha256(content).digest() + content


def test_a_checkpoint_never_runs_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("owned").touch, ())

    buffer = io.BytesIO()
    torch.save({"a": Evil()}, buffer)
    for content in (buffer.getvalue(), pickle.dumps(Evil())):
        for read in (checkpoint.loads, read_raw):
            with pytest.raises(CheckpointError, match="not what raypipe writes"):
                read(forged(content))
    assert not (tmp_path / "owned").exists()


def with_state(state: str) -> bytes:
    """The content of a checkpoint with a state of one's own."""
    return save({"0": torch.zeros(2)}, {"state": state})


FORGED = [
    *(b"", b"hello", b"PK\x03\x04" + bytes(60), b"\x80\x02N.", save({"0": torch.zeros(2)}), b"\xff" * 40),
    *map(with_state, ("", "[]", "3", '{"dict": [["a", {"tensor": "7"}]]}', '{"dict": 3}', '{"set": [1]}', "[" * 10**5)),
    (70).to_bytes(8, "little") + b'{"__metadata__":{"state":"{\\"dict\\":[]}"},"0":{"dtype":"F32","shape":[9]}}',
]


@pytest.mark.parametrize("read", [checkpoint.loads, read_raw])
@pytest.mark.parametrize("content", FORGED)
def test_a_forged_checkpoint_of_something_else_is_one_line(content, read):
    with pytest.raises(CheckpointError) as caught:
        read(forged(content), "run: trial 0, fold 1, epoch 2")
    assert str(caught.value).startswith("run: trial 0, fold 1, epoch 2: ") and "\n" not in str(caught.value)
