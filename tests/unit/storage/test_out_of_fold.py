from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.storage.out_of_fold import EpochPredictions, OutOfFold, unpack_tensors

PREDICTIONS = np.arange(3, dtype=np.float32)[:, None]
OOF = OutOfFold(np.arange(3), np.array([0, 1, 0]), PREDICTIONS)


@pytest.mark.parametrize("oof", [OOF, OutOfFold(OOF.windows, OOF.folds, PREDICTIONS, PREDICTIONS[:, 0] + 1)])
def test_out_of_fold_predictions_are_read_back(oof):
    again = OutOfFold.from_npz(oof.to_npz())
    for name, array in vars(oof).items():
        np.testing.assert_array_equal(getattr(again, name), array)
        assert array is None or getattr(again, name).dtype == array.dtype


@pytest.mark.parametrize("n_outputs", [1, 2, 3])
@pytest.mark.parametrize("varied", [False, True])
def test_predictions_of_an_epoch_are_read_back(n_outputs, varied):
    rng = np.random.default_rng(0)
    values = rng.random((50, n_outputs)).astype(np.float32)
    values /= values.sum(1, keepdims=True) if n_outputs > 1 else 1
    variances = values[:, 0] + 1 if varied else None
    data = EpochPredictions(values, variances).to_npz()
    again = EpochPredictions.from_npz(data)
    assert again.predictions.dtype == np.float32
    np.testing.assert_allclose(again.predictions, values, atol=2e-7)
    np.testing.assert_array_equal(again.predictions[:, -1], values[:, -1])
    assert again.variances is None if not varied else np.array_equal(again.variances, variances)
    assert len(data) < 4 * 50 * (max(1, n_outputs - 1) + varied) + 1500
    with pytest.raises(ValueError, match="format"):
        OutOfFold.from_npz(data)


@pytest.mark.parametrize("columns", [np.ones(3, np.float32), np.ones((3, 2), np.float32)])
def test_predictions_of_an_epoch_with_another_shape_are_refused(columns):
    buffer = io.BytesIO()
    np.savez(buffer, format=np.array("raypipe-epoch-predictions/1"), columns=columns, n_outputs=np.array(2))
    with pytest.raises(ValueError, match=r"shape \(3"):
        EpochPredictions.from_npz(buffer.getvalue())


@settings(max_examples=100)
@given(
    data=st.binary(max_size=60), read=st.sampled_from([OutOfFold.from_npz, EpochPredictions.from_npz, unpack_tensors])
)
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
