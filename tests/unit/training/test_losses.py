from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812

from raypipe.core.config import LossConfig
from raypipe.core.errors import UserError
from raypipe.training.losses import Loss, class_weights, make_loss

PLAIN = LossConfig(balanced=False)


def classes(k: int = 3, weights: torch.Tensor | None = None, **options: Any) -> Loss:
    cfg = LossConfig(balanced=weights is not None, **options)
    return make_loss(cfg, kind="classification", n_classes=k, class_weights=weights)


def values(**options: Any) -> Loss:
    return make_loss(LossConfig(**options), kind="regression")


def batch(k: int = 3, n: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(n, k, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), torch.randint(k, (n,), generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)])
def test_cross_entropy_is_torchs(smoothing: float, weights: torch.Tensor | None) -> None:
    logits, y = batch()
    shares = F.one_hot(y, 3).double()
    expected = F.cross_entropy(logits, shares, weight=weights, label_smoothing=smoothing)
    loss = classes(weights=weights, smoothing=smoothing)
    torch.testing.assert_close(loss(logits, y), expected)
    torch.testing.assert_close(loss(logits, shares), expected)


def test_focal_without_gamma_is_cross_entropy() -> None:
    logits, y = batch()
    assert torch.equal(classes(name="focal", gamma=0.0)(logits, y), classes()(logits, y))


def test_focal_is_the_papers_formula() -> None:
    logits, y = batch()
    p_B = logits.softmax(1)[torch.arange(20), y]
    expected = (-((1 - p_B) ** 2.0) * p_B.log()).mean()
    torch.testing.assert_close(classes(name="focal", gamma=2.0)(logits, y), expected)


@given(st.floats(0, 5), st.integers(2, 6))
def test_focal_is_linear_in_fractions_of_classes(gamma: float, k: int) -> None:
    logits, y = batch(k)
    loss, other = classes(k, name="focal", gamma=gamma), (y + 1) % k
    shares = 0.3 * F.one_hot(y, k) + 0.7 * F.one_hot(other, k)
    torch.testing.assert_close(loss(logits, shares), 0.3 * loss(logits, y) + 0.7 * loss(logits, other))


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
def test_gradients_are_finite_at_a_loss_of_zero(gamma: float) -> None:
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    loss = classes(2, name="focal", gamma=gamma)(logits, torch.tensor([0, 0]))
    loss.backward()
    pred = torch.tensor([[1.0], [3.0]], requires_grad=True)
    values(name="focal", gamma=gamma)(pred, torch.tensor([1.0, 1.0])).backward()
    for leaf in (logits, pred):
        assert leaf.grad is not None and leaf.grad.isfinite().all()
        assert leaf.grad[0].abs().max() == 0 < leaf.grad[1].abs().max()


def test_regression_losses_are_their_formulas() -> None:
    pred, y = torch.tensor([[0.0], [2.0], [-1.0]], dtype=torch.float64), torch.tensor([0.5, -1.0, -1.0]).double()
    e = np.array([-0.5, 3.0, 0.0])
    assert values()(pred, y).item() == pytest.approx(np.mean(e**2))
    assert torch.equal(values(name="focal", gamma=0.0)(pred, y), values()(pred, y))
    bracket = 2 / (1 + np.exp(-0.2 * np.abs(e))) - 1
    assert values(name="focal", gamma=1.5, beta=0.2)(pred, y).item() == pytest.approx(np.mean(e**2 * bracket**1.5))
    huber = np.where(np.abs(e) < 2.0, 0.5 * e**2, 2.0 * (np.abs(e) - 1.0))
    assert values(name="huber", delta=2.0)(pred, y).item() == pytest.approx(np.mean(huber))


def test_focal_r_has_the_papers_slope() -> None:
    """The paper's beta of 0.2 is per year of age; in standard deviations of the targets it makes a cubed error."""
    years_per_deviation = 17.6  # ages of AgeDB
    e = np.linspace(0.1, 3, 30)
    years = e * years_per_deviation
    papers = years**2 * (2 / (1 + np.exp(-0.2 * years)) - 1)
    loss = values(name="focal")
    ours = np.array([loss(torch.tensor([[one]]), torch.zeros(1, dtype=torch.float64)).item() for one in e])
    np.testing.assert_allclose(ours * years_per_deviation**2, papers, rtol=0.02)
    # The exponent of the error, from 1 to 2 standard deviations: 2 is the squared error, 3 a cubed one.
    assert (
        2.0
        < np.log2(
            loss(torch.tensor([[2.0]]), torch.zeros(1)).item() / loss(torch.tensor([[1.0]]), torch.zeros(1)).item()
        )
        < 2.2
    )


@pytest.mark.parametrize("name", ["plain", "focal", "huber"])
@pytest.mark.parametrize(("pred", "y"), [((4, 1), (4, 1)), ((4,), (4,)), ((4, 2), (4,)), ((4, 1), (3,))])
def test_regression_never_broadcasts(name: str, pred: tuple[int, ...], y: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(B, 1\)"):
        values(name=name)(torch.zeros(pred), torch.zeros(y))


def test_class_shapes_are_checked() -> None:
    loss = classes()
    for pred, y in [
        (torch.zeros(4, 2), torch.zeros(4, dtype=torch.long)),
        (torch.zeros(4, 3), torch.zeros(4)),
        (torch.zeros(4, 3), torch.zeros(4, 1, dtype=torch.long)),
        (torch.zeros(4, 3), torch.zeros(4, 3, dtype=torch.long)),
    ]:
        with pytest.raises(ValueError, match=r"expected logits|classes"):
            loss(pred, y)


@pytest.mark.parametrize(
    ("options", "kind", "name"),
    [
        ({"name": "huber"}, "classification", "loss/name"),
        ({"smoothing": 0.1}, "regression", "loss/smoothing"),
    ],
)
def test_configuration_must_suit_the_target(options: dict[str, Any], kind: Any, name: str) -> None:
    with pytest.raises(UserError, match=f"^{name}: ") as caught:
        make_loss(LossConfig(**options), kind=kind, n_classes=2, class_weights=torch.ones(2))
    assert "\n" not in str(caught.value)


def test_misuse() -> None:
    with pytest.raises(ValueError, match="class_weights are needed"):
        make_loss(LossConfig(), kind="classification", n_classes=2)
    with pytest.raises(ValueError, match=r"must be \(2,\)"):
        make_loss(LossConfig(), kind="classification", n_classes=2, class_weights=torch.ones(3))
    with pytest.raises(ValueError, match="two classes"):
        make_loss(PLAIN, kind="classification", n_classes=1)
    with pytest.raises(ValueError, match="kind"):
        make_loss(PLAIN, kind="ranking")  # type: ignore[arg-type]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60))
def test_class_weights_balance(targets: list[int]) -> None:
    weights = class_weights(targets, 4).numpy()
    counts = np.bincount(targets, minlength=4)
    assert weights[targets].mean() == pytest.approx(1.0, rel=1e-5)
    shares = (weights * counts)[counts > 0]
    assert shares == pytest.approx(np.full(len(shares), shares[0]), rel=1e-5)
    assert (weights[counts == 0] == 0).all()


def test_class_weights_refuse() -> None:
    for targets in ([], [[0, 1]], [0, 4], [-1]):
        with pytest.raises(ValueError, match="from 0 to 3"):
            class_weights(targets, 4)


def test_balanced_loss_ignores_how_often_a_class_occurs() -> None:
    y = torch.tensor([0] * 9 + [1])
    loss = classes(2, weights=class_weights(y, 2))
    assert loss(torch.zeros(10, 2), y).item() == pytest.approx(math.log(2))
    logits = torch.tensor([[1.0, 0.0]]).repeat(10, 1).requires_grad_()
    loss(logits - 0.5, y).backward()
    assert logits.grad is not None
    assert logits.grad[9, 1] < 0 < logits.grad[0, 1]
    flat = torch.zeros(10, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(flat, y), flat)
    assert gradient.sum(0).abs().max() < 1e-6
