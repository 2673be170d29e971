from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812

from raypipe.pretraining.simclr import gather, nt_xent


def reference(z: np.ndarray, temperature: float, subjects=None, negatives: str = "all", weight: float = 2.0):
    """Chen et al. 2020, eq. 1, in float64 and with loops."""
    n = len(z) // 2
    losses = []
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        total = 0.0
        for k in range(2 * n):
            if k == i:
                continue
            factor = 1.0
            if k != partner and negatives != "all" and subjects[k % n] == subjects[i % n]:
                factor = 0.0 if negatives == "other-subject" else weight
            total += factor * math.exp(float(z[i] @ z[k]) / temperature)
        losses.append(-math.log(math.exp(float(z[i] @ z[partner]) / temperature) / total))
    return np.array(losses)


@pytest.mark.parametrize("negatives", ["all", "other-subject", "same-subject"])
@given(n=st.integers(2, 7), temperature=st.floats(0.1, 2.0), seed=st.integers(0, 99))
def test_it_is_the_formula(negatives, n, temperature, seed):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(2 * n, 5))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    subjects = rng.integers(0, 3, n)
    options = {"temperature": temperature, "subject_N": torch.from_numpy(subjects), "negatives": negatives, "weight": 3}
    found = nt_xent(torch.from_numpy(z), torch.from_numpy(z), 0, n, **options)
    np.testing.assert_allclose(found.numpy(), reference(z, temperature, subjects, negatives, 3.0), rtol=1e-9)
    single = nt_xent(torch.from_numpy(z).float(), torch.from_numpy(z).float(), 0, n, **options)
    np.testing.assert_allclose(single.numpy(), found.numpy(), rtol=1e-3, atol=1e-4)


def test_a_part_of_the_anchors_gives_their_losses():
    z = F.normalize(torch.randn(12, 4, dtype=torch.float64), dim=1)
    whole = nt_xent(z, z, 0, 6)
    for first, n in ((0, 2), (2, 4)):
        rows = torch.cat((torch.arange(first, first + n), torch.arange(first, first + n) + 6))
        torch.testing.assert_close(nt_xent(z[rows], z, first, n), whole[rows])


def test_same_subject_options_need_subjects():
    z = torch.eye(4)
    with pytest.raises(ValueError, match="subjects"):
        nt_xent(z, z, 0, 2, negatives="other-subject")


def test_a_single_process_returns_its_own_rows():
    x = torch.ones(2, 2)
    assert gather(x, [2]) is x
