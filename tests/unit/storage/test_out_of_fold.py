from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.storage.out_of_fold import OutOfFold, unpack_tensors

PREDICTIONS = np.arange(3, dtype=np.float32)[:, None]
OOF = OutOfFold(np.arange(3), np.array([0, 1, 0]), PREDICTIONS)


@pytest.mark.parametrize("oof", [OOF, OutOfFold(OOF.windows, OOF.folds, PREDICTIONS, PREDICTIONS[:, 0] + 1)])
def test_out_of_fold_predictions_are_read_back(oof):
    again = OutOfFold.from_npz(oof.to_npz())
    for name, array in vars(oof).items():
        np.testing.assert_array_equal(getattr(again, name), array)
        assert array is None or getattr(again, name).dtype == array.dtype


@settings(max_examples=100)
@given(data=st.binary(max_size=60), read=st.sampled_from([OutOfFold.from_npz, unpack_tensors]))
def test_other_content_raises_a_value_error(data, read):
    with pytest.raises(ValueError):
        read(data + b"\x00")


@settings(max_examples=60)
@given(st.data())
def test_truncated_predictions_raise_a_value_error(data):
    whole = OOF.to_npz()
    with pytest.raises(ValueError):
        OutOfFold.from_npz(whole[: data.draw(st.integers(0, len(whole) - 1))])


@pytest.mark.parametrize("form", [{}, {"format": np.array("raypipe-oof/2")}])
def test_predictions_of_another_format_are_refused(form):
    buffer = io.BytesIO()
    np.savez(buffer, **vars(OOF) | {"variances": PREDICTIONS[:, 0]}, **form)
    with pytest.raises(ValueError, match=r"format '.*', expected 'raypipe-oof/1'"):
        OutOfFold.from_npz(buffer.getvalue())
