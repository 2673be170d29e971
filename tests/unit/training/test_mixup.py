from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray
from scipy.special import chdtrc
from torch import Tensor

from raypipe.core.config import MixupConfig
from raypipe.training.mixup import mix

EVERY = ["mixup", "cmixup", "cutmix", "cutmix-channels"]
NAMES = st.sampled_from(EVERY)
ALPHAS = st.floats(0.05, 8.0)
SEEDS = st.integers(0, 2**32 - 1)
DRAWS = 1500


def tagged(n: int = 9, times: int = 23) -> tuple[Tensor, Tensor]:
    """Return windows filled with their own row number, so that a mixed value shows its sources."""
    y = torch.arange(n, dtype=torch.float64)
    return y[:, None, None].repeat(1, 7, times), y


def recovered(
    cfg: MixupConfig, y: Tensor, seed: int, size: int = 12, **options: Any
) -> tuple[NDArray[np.float64], Tensor]:
    """Return the weights (B, B) of the windows of a batch in each of the mixed ones, and the mixed targets.

    A window holds its own unit vector along time where channels are cut and along channels otherwise, so the mean over
    the other axis is the row of weights.
    """
    tag = torch.eye(len(y), dtype=torch.float64)
    axis = 1 if cfg.name == "cutmix-channels" else 2
    x = tag.unsqueeze(axis).repeat_interleave(size, dim=axis)
    x, y = mix(cfg, x, y, rng=np.random.default_rng(seed), **{"kind": "regression", **options})
    return x.mean(axis).numpy(), y


def partners(weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the partner (B,) in each mixed window, -1 if there is none."""
    others = weights - np.diag(np.diag(weights))
    return np.where(others.max(axis=1) > 0, others.argmax(axis=1), -1)


def plausible(counts: ArrayLike, chances: ArrayLike = 1.0) -> bool:
    """Pearson's chi-square test of counts against chances (of any sum), at a level of 1e-3."""
    found, expected = np.asarray(counts, dtype=float), np.broadcast_to(np.asarray(chances), np.shape(counts))
    expected = expected * found.sum() / expected.sum()
    assert expected.min() >= 5
    return bool(chdtrc(len(found) - 1, ((found - expected) ** 2 / expected).sum()) > 1e-3)


def draws(cfg: MixupConfig, y: Tensor, times: int = DRAWS, **options: Any) -> NDArray[np.int64]:
    """Return how often each window was the partner of each other, as counts (B, B)."""
    counts = np.zeros((len(y), len(y)), dtype=np.int64)
    for seed in range(times):
        found = partners(recovered(cfg, y, seed, size=1, **options)[0])
        assert (found >= 0).all()
        counts[np.arange(len(y)), found] += 1
    return counts


def mixed(name: Any, alpha: float, seed: int, **options: Any) -> tuple[Tensor, Tensor]:
    x, y = tagged()
    cfg = MixupConfig(name=name, alpha=alpha)
    if options.get("kind") == "classification":
        y = y.long()
    return mix(cfg, x, y, rng=np.random.default_rng(seed), **{"kind": "regression", **options})


@given(NAMES, ALPHAS, SEEDS)
def test_target_follows_the_window(name: str, alpha: float, seed: int) -> None:
    """Target and window are mixed with the same partner and weight: here the window's mean is the target."""
    x, y = mixed(name, alpha, seed)
    torch.testing.assert_close(x.mean((1, 2)), y, rtol=0, atol=1e-12)
    assert y.min() >= 0 and y.max() <= 8


@given(NAMES, ALPHAS, SEEDS)
def test_fractions_of_classes_follow_the_window(name: str, alpha: float, seed: int) -> None:
    x, shares = mixed(name, alpha, seed, kind="classification", n_classes=11)
    assert shares.shape == (9, 11) and shares.dtype == x.dtype
    torch.testing.assert_close(shares.sum(1), torch.ones(9).double())
    assert shares.min() >= 0 and shares.max() <= 1 and ((shares > 0).sum(1) <= 2).all()
    torch.testing.assert_close(x.mean((1, 2)), shares @ torch.arange(11).double(), rtol=0, atol=1e-12)


@given(ALPHAS, SEEDS)
def test_cutmix_takes_one_stretch_in_all_channels(alpha: float, seed: int) -> None:
    x, _ = mixed("cutmix", alpha, seed)
    assert torch.equal(x[:, 0], x[:, 1])
    assert torch.equal(x[:, 0], x[:, -1])
    foreign = (x[:, 0] != torch.arange(9)[:, None]).int()
    assert (foreign.diff(dim=1).abs().sum(1) <= 2).all()
    edges = torch.nn.functional.pad(foreign, (1, 1)).diff(dim=1)
    assert ((edges == 1).sum(1) <= 1).all()
    assert all(len(row.unique()) <= 2 for row in x[:, 0])


@given(NAMES, SEEDS)
def test_one_generator_decides(name: str, seed: int) -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index,union-attr]  # noqa: NPY002
    first, second = mixed(name, 0.3, seed), mixed(name, 0.3, seed)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])  # type: ignore[index]  # noqa: NPY002


@pytest.mark.parametrize("name", EVERY)
def test_input_is_not_changed(name: Any) -> None:
    x, y = tagged()
    before = x.clone(), y.clone()
    out = mix(MixupConfig(name=name), x, y, rng=np.random.default_rng(1), kind="regression")
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])
    assert not torch.equal(out[0], x) and out[0].data_ptr() != x.data_ptr() and out[1].data_ptr() != y.data_ptr()


def test_none_draws_nothing() -> None:
    rng = np.random.default_rng(1)
    x, y = tagged()
    out = mix(MixupConfig(), x, y, rng=rng, kind="regression")
    assert out[0] is x and out[1] is y
    assert rng.bit_generator.state == np.random.default_rng(1).bit_generator.state


def test_prob_is_the_fraction_of_batches() -> None:
    rng = np.random.default_rng(0)
    x, y = tagged(4, 3)
    cfg = MixupConfig(name="mixup", prob=0.25)
    mixes = [mix(cfg, x, y, rng=rng, kind="regression")[0] is not x for _ in range(1000)]
    assert 0.2 < np.mean(mixes) < 0.3


@pytest.mark.parametrize("name", ["mixup", "cutmix", "cutmix-channels"])
def test_weights_are_beta_distributed(name: Any) -> None:
    x = torch.zeros(4000, *((200, 1) if name == "cutmix-channels" else (1, 200)), dtype=torch.float64)
    rng = np.random.default_rng(0)
    y = torch.arange(4000).double()
    _, out = mix(MixupConfig(name=name, alpha=0.5), x, y, rng=rng, kind="regression")
    partner = np.random.default_rng(0)
    partner.random()
    order = partner.permutation(4000)
    other = torch.from_numpy(order).double()
    moved = other != y
    kept = ((out - other) / (y - other))[moved]
    assert kept.mean().item() == pytest.approx(0.5, abs=0.03)
    assert kept.var().item() == pytest.approx(0.125, abs=0.01)  # 1 / (4 (2 alpha + 1))


def test_shapes_are_checked_and_single_windows_survive() -> None:
    x, y = tagged()
    with pytest.raises(ValueError, match="expected targets"):
        mix(MixupConfig(name="mixup"), x, y[:, None], rng=np.random.default_rng(0), kind="regression")
    out = mix(MixupConfig(name="cutmix"), x[:1], y[:1], rng=np.random.default_rng(0), kind="regression")
    assert torch.equal(out[0], x[:1]) and torch.equal(out[1], y[:1])


def test_dtypes_are_kept() -> None:
    x, y = tagged()
    out = mix(MixupConfig(name="mixup"), x.float(), y.float(), rng=np.random.default_rng(0), kind="regression")
    assert out[0].dtype == out[1].dtype == torch.float32


# Weights that are recovered from the windows


@given(
    NAMES,
    ALPHAS,
    SEEDS,
    st.lists(st.floats(-3, 3), min_size=2, max_size=8),
    st.floats(0.05, 3.0),
    st.booleans(),
    st.data(),
)
def test_targets_are_mixed_by_the_weights_of_the_windows(
    name: Any, alpha: float, seed: int, targets: list[float], bandwidth: float, other: bool, data: st.DataObject
) -> None:
    """A mixed window is w times itself plus 1 - w times one other; so is its target."""
    n = len(targets)
    subjects = data.draw(st.lists(st.sampled_from("abc"), min_size=n, max_size=n))
    cfg = MixupConfig(name=name, alpha=alpha, bandwidth=bandwidth, other_subject=other)
    weights, values = recovered(cfg, torch.tensor(targets, dtype=torch.float64), seed, subjects=subjects)
    assert weights.min() >= 0 and ((weights - np.diag(np.diag(weights))) > 0).sum(axis=1).max() <= 1
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-12)
    np.testing.assert_allclose(values, weights @ targets, atol=1e-12)
    if name.startswith("cutmix"):
        np.testing.assert_allclose(weights * 12, np.rint(weights * 12), atol=1e-9)

    classes = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    weights, shares = recovered(cfg, classes, seed, kind="classification", n_classes=4, subjects=subjects)
    np.testing.assert_allclose(shares, weights @ np.eye(4)[classes], atol=1e-12)
    np.testing.assert_allclose(shares.sum(1), 1.0, atol=1e-12)


@given(NAMES, SEEDS, st.lists(st.integers(0, 3), min_size=1, max_size=10))
def test_partners_are_of_other_subjects(name: Any, seed: int, subjects: list[int]) -> None:
    """All partners are, if the batch has two subjects; if it has one, the windows are not changed."""
    cfg = MixupConfig(name=name, alpha=50.0, other_subject=True)
    names, n = np.array(subjects), len(subjects)
    weights, y = recovered(cfg, torch.arange(n).double(), seed, size=40, subjects=subjects)
    found = partners(weights)
    if len(set(subjects)) == 1:
        assert np.array_equal(weights, np.eye(n)) and torch.equal(y, torch.arange(n).double())
    else:
        assert (found >= 0).all() and (names[found] != names).all()


@pytest.mark.parametrize("name", EVERY)
def test_one_subject_keeps_its_windows(name: Any) -> None:
    """Windows are not changed, and classes become one-hot; also for cmixup of a single window."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(5, 3, 11, generator=generator), torch.tensor([0, 2, 1, 1, 0])
    for n, other in ((5, True), (1, True), (1, False)):
        out, shares = mix(
            MixupConfig(name=name, other_subject=other),
            x[:n],
            y[:n],
            rng=np.random.default_rng(3),
            kind="classification",
            n_classes=3,
            subjects=["a"] * n,
        )
        assert torch.equal(out, x[:n]) and torch.equal(shares, torch.eye(3)[y[:n]])


def test_other_subject_needs_the_subjects() -> None:
    x, y = tagged()
    cfg = MixupConfig(name="mixup", other_subject=True)
    for subjects in (None, ["a"] * 8, [["a"]] * 9):
        with pytest.raises(ValueError, match="subject of each of 9"):
            mix(cfg, x, y, rng=np.random.default_rng(0), kind="regression", subjects=subjects)


def test_partners_are_a_permutation() -> None:
    """Without a rule for partners, each window is a partner once."""
    for seed in range(20):
        found = partners(recovered(MixupConfig(name="mixup", alpha=50.0), torch.arange(9).double(), seed)[0])
        found = found[found >= 0]
        assert len(set(found)) == len(found) > 3


@pytest.mark.parametrize("kind", ["regression", "classification"])
@pytest.mark.parametrize("other", [False, True])
def test_cmixup_draws_by_the_kernel(kind: Any, other: bool) -> None:
    """Counts of partners against exp(-d^2 / 2 h^2), with d^2 = 2 between classes; never the window itself."""
    bandwidth = 1.5 if kind == "regression" else 0.8
    subjects = ["a", "a", "b", "b", "c", "c"]
    if kind == "regression":
        y = torch.tensor([-1.5, -0.3, 0.0, 0.4, 1.0, 2.5], dtype=torch.float64)
        square = (y[:, None] - y).square().numpy()
    else:
        y = torch.tensor([0, 1, 1, 2, 0, 1])
        one_hot = np.eye(3)[y]
        square = ((one_hot[:, None] - one_hot) ** 2).sum(-1)
    kernel = np.exp(-square / (2 * bandwidth**2))
    for i, j in np.ndindex(kernel.shape):
        if i == j or (other and subjects[i] == subjects[j]):
            kernel[i, j] = 0.0
    expected = kernel / kernel.sum(axis=1, keepdims=True)

    cfg = MixupConfig(name="cmixup", alpha=50.0, bandwidth=bandwidth, other_subject=other)
    counts = draws(cfg, y, kind=kind, n_classes=3, subjects=subjects)
    assert (counts[expected == 0] == 0).all()
    for row, chances in zip(counts, expected, strict=True):
        allowed = chances > 0
        assert plausible(row[allowed], chances[allowed])
    uniform = (expected > 0) / (expected > 0).sum(axis=1, keepdims=True)
    assert max(abs(counts / DRAWS - uniform).max(axis=1)) > 0.1  # the kernel did something


def test_other_subjects_are_equally_likely() -> None:
    subjects = ["a", "b", "b", "c", "c", "c"]
    cfg = MixupConfig(name="mixup", alpha=50.0, other_subject=True)
    counts = draws(cfg, torch.arange(6).double(), subjects=subjects)
    for i, row in enumerate(counts):
        allowed = np.array([s != subjects[i] for s in subjects])
        assert (row[~allowed] == 0).all() and plausible(row[allowed])


@pytest.mark.parametrize("bandwidth", [1e-3, 0.5, 100.0])
def test_cmixup_of_a_window_far_from_all(bandwidth: float) -> None:
    """Its partner is the nearest of the others (of another subject), and there is no warning."""
    y = torch.tensor([0.0, 0.1, 0.2, 1000.0], dtype=torch.float64)
    for other, nearest in ((False, [[1], [0, 2], [1], [2]]), (True, [[3], [3], [3], [2]])):
        cfg = MixupConfig(name="cmixup", alpha=50.0, bandwidth=bandwidth, other_subject=other)
        for seed in range(20):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                found = partners(recovered(cfg, y, seed, subjects=["a", "a", "a", "b"])[0])
            assert (found >= 0).all() and (found != np.arange(4)).all()
            if bandwidth == 1e-3:
                assert all(partner in best for partner, best in zip(found, nearest, strict=True))


@given(ALPHAS, SEEDS)
def test_channels_are_exchanged_whole(alpha: float, seed: int) -> None:
    """Each channel is the window's own or that of one partner; the target has the fraction that was kept."""
    x = torch.randn(6, 5, 9, generator=torch.Generator().manual_seed(0)).double()
    y = torch.arange(6)
    cfg = MixupConfig(name="cutmix-channels", alpha=alpha)
    out, shares = mix(cfg, x, y, rng=np.random.default_rng(seed), kind="classification", n_classes=6)
    for i in range(6):
        kept = [torch.equal(out[i, c], x[i, c]) for c in range(5)]
        sources = [j for j in range(6) if all(kept[c] or torch.equal(out[i, c], x[j, c]) for c in range(5))]
        assert sources == list(range(6)) if all(kept) else len(sources) == 1
        assert shares[i, i].item() == pytest.approx(sum(kept) / 5)
        assert all(kept) or shares[i, sources[0]].item() == pytest.approx(1 - sum(kept) / 5)


def test_channels_are_equally_likely() -> None:
    """So are the starts of an interval."""
    x = torch.arange(2000).double()[:, None, None].repeat(1, 6, 6)
    y = torch.arange(2000).double()
    own = y[:, None]
    out, _ = mix(MixupConfig(name="cutmix-channels"), x, y, rng=np.random.default_rng(0), kind="regression")
    taken = (out[:, :, 0] != own).sum(0)
    assert taken.sum() > 4000 and plausible(taken)
    out, _ = mix(MixupConfig(name="cutmix"), x, y, rng=np.random.default_rng(0), kind="regression")
    foreign = out[:, 0] != own
    thirds = foreign.sum(1) == 4  # of six samples: it can begin at 0, 1 or 2
    begins = foreign[thirds].int().argmax(1).bincount(minlength=3)
    assert len(begins) == 3 and begins.sum() > 100 and plausible(begins)
