"""Jacobi's method in ONNX against LAPACK."""

from __future__ import annotations

import functools

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.models.covariance import log_matrix
from raypipe.packaging.graphs import _quiet
from raypipe.packaging.onnx_eigh import eigh, round_robin


class Eigh(torch.nn.Module):
    def forward(self, a):
        return torch.linalg.eigh(a)


@functools.cache
def session(size, dtype=torch.float64):
    a = torch.eye(size, dtype=dtype).repeat(3, 1, 1)
    batch = torch.export.Dim("batch", min=1, max=1000)
    with _quiet():
        program = torch.export.export(Eigh(), (a,), dynamic_shapes=({0: batch},))
        table = {torch.ops.aten._linalg_eigh.default: eigh}
        model = torch.onnx.export(program, dynamo=True, verbose=False, opset_version=18, custom_translation_table=table)
    return onnxruntime.InferenceSession(model.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])


def run(a, dtype=torch.float64):
    made = session(a.shape[-1], dtype)
    return made.run(None, {made.get_inputs()[0].name: a})


def turned(a):
    return a.swapaxes(-1, -2)  # `mT` is of numpy 2


def logarithms(values, vectors):
    return (vectors * np.log(np.maximum(values, 1e-10 * values.mean(-1, keepdims=True)))[:, None]) @ turned(vectors)


@given(st.sampled_from([1, 2, 3, 8, 15]), st.sampled_from([0.0, 2.0, 6.0, 9.0]), st.integers(0, 10), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_eigenvalues_and_logarithms_are_those_of_lapack(size, decades, n_zero, seed):
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.standard_normal((4, size, size)))[0]
    values = 37.0 * np.logspace(0, -decades, size)
    values[size - min(n_zero, size - 1) :] = 0.0
    a = (q * values) @ turned(q)
    a = (a + turned(a)) / 2
    found, vectors = run(a)
    expected = np.linalg.eigh(a)
    np.testing.assert_allclose(found, expected[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose((vectors * found[:, None]) @ turned(vectors), a, rtol=0, atol=1e-12)
    np.testing.assert_allclose(turned(vectors) @ vectors, np.broadcast_to(np.eye(size), a.shape), rtol=0, atol=1e-12)
    np.testing.assert_allclose(logarithms(found, vectors), log_matrix(torch.from_numpy(a)).numpy(), rtol=0, atol=1e-6)


def test_a_montage_of_129_channels_with_an_average_reference():
    x = np.random.default_rng(0).standard_normal((2, 129, 150)) * np.logspace(0, 2, 129)[:, None]
    x -= x.mean(1, keepdims=True)
    a = x @ turned(x)
    expected = log_matrix(torch.from_numpy(a)).numpy()
    np.testing.assert_allclose(logarithms(*run(a)), expected, rtol=0, atol=1e-6)


def test_negative_and_equal_eigenvalues_zeros_and_one_triangle():
    a = np.array([[[0.0, 9.0], [2.0, 0.0]], [[5.0, 9.0], [0.0, 5.0]], [[0.0, 9.0], [0.0, 0.0]]])
    found, vectors = run(a)
    np.testing.assert_allclose(found, [[-2, 2], [5, 5], [0, 0]], atol=1e-15)
    np.testing.assert_allclose(
        (vectors * found[:, None]) @ turned(vectors), np.tril(a) + turned(np.tril(a, -1)), atol=1e-15
    )


def test_single_precision():
    rng = np.random.default_rng(1)
    a = rng.standard_normal((3, 8, 8)).astype(np.float32)
    a = a @ turned(a)
    found, vectors = run(a, torch.float32)
    assert found.dtype == np.float32
    np.testing.assert_allclose((vectors * found[:, None]) @ turned(vectors), a, atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 129])
def test_every_pair_meets_once_in_a_sweep(size):
    partner_RD, direction_RD = round_robin(size)
    place_D = np.arange(size)
    met = set()
    for partner_D, direction_D in zip(partner_RD, direction_RD, strict=True):
        np.testing.assert_array_equal(partner_D[partner_D], place_D)
        np.testing.assert_array_equal(direction_D, np.sign(partner_D - place_D))
        met |= {(i, j) for i, j in enumerate(partner_D) if i < j}
    assert len(met) == size * (size - 1) // 2
