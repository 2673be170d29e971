from __future__ import annotations

import hashlib
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.core.errors import CheckpointError
from raypipe.training import checkpoint


def test_checkpoints_hold_what_they_were_given():
    state = {"a": torch.randn(3), "b": {"c": [1, 2.5, None, "x"]}}
    again = checkpoint.loads(checkpoint.dumps(state))
    assert again["a"].equal(state["a"])
    assert again["b"] == state["b"]


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


def forged(payload: bytes) -> bytes:
    """A checkpoint whose checksum is right."""
    return b"raypipe-checkpoint-1\n" + hashlib.sha256(payload).digest() + payload


def test_a_checkpoint_never_runs_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("owned").touch, ())

    buffer = io.BytesIO()
    torch.save({"a": Evil()}, buffer)
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        checkpoint.loads(forged(buffer.getvalue()))
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("payload", [b"", b"hello", b"PK\x03\x04" + bytes(60), b"\x80\x02N."])
def test_a_forged_checkpoint_of_something_else_is_one_line(payload):
    with pytest.raises(CheckpointError) as caught:
        checkpoint.loads(forged(payload), "run: trial 0, fold 1, epoch 2")
    assert str(caught.value).startswith("run: trial 0, fold 1, epoch 2: ") and "\n" not in str(caught.value)
