from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from raypipe.models.conformer import FEATURES, Conformer, elu_means
from raypipe.models.sizes import fitting_kernels, kernel_sizes
from raypipe.models.stem import ALGORITHMS
from raypipe.models.transformer import Block


def small(**options: object) -> Conformer:
    torch.manual_seed(0)
    sizes = {"kernel": 5, "pool": 12, "stride": 4, "filters": 8, "heads": 2, "depth": 2, "hidden": 16}
    return Conformer(6, 50, 3, **{**sizes, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(("shape", "count"), [((129, 200, 1), 407_713), ((22, 1000, 4), 789_572)])
def test_parameter_counts_equal_the_papers(shape: tuple[int, int, int], count: int) -> None:
    assert sum(p.numel() for p in Conformer(*shape).parameters()) == count


def test_kernel_sizes_scale_with_the_sampling_rate() -> None:
    assert kernel_sizes(250, "rate") == kernel_sizes(100, "paper") == (25, 75, 15)
    assert kernel_sizes(100, "rate") == (10, 30, 6)
    assert kernel_sizes(100, "short") == (10, 10, 6)
    assert kernel_sizes(1, "rate") == (1, 1, 1)
    with pytest.raises(ValueError, match="rate, paper, short"):
        kernel_sizes(100, "auto")


@pytest.mark.parametrize("kernels", ["paper", "rate", "short"])
def test_short_windows_have_the_next_shorter_kernels(kernels) -> None:
    fitting = [fitting_kernels(n_times, 100, kernels) for n_times in (99, 98, 39, 38, 19, 18)]
    medium = "short" if kernels == "short" else "rate"
    assert fitting == [kernels, medium, medium, "short", "short", "short"]


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_parameter_has_a_gradient_but_biases_that_batchnorm_removes(features: str, algorithm: str) -> None:
    model = small(features=features)
    model.stem.algorithm = algorithm
    out = model(torch.randn(4, 6, 50))
    assert out.shape == (4, 3)
    out.square().sum().backward()
    for name, parameter in model.named_parameters():
        if name in ("stem.temporal.bias", "stem.spatial.bias"):
            assert parameter.grad is None and not parameter.requires_grad, name
        else:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_prepared_windows_give_equal_outputs(algorithm: str) -> None:
    model = small().eval()
    model.stem.algorithm = algorithm
    x_BCT = torch.randn(4, 6, 50)
    assert torch.equal(model(model.prepare(x_BCT), prepared=True), model(x_BCT))


def test_attention_equals_torchs_own() -> None:
    block = Block(8, heads=2, expansion=4, dropout=0.0)
    x_BNF = torch.randn(3, 5, 8)
    q, k, v = block.qkv(block.norm1(x_BNF)).view(3, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
    mixed_BNF = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(3, 5, 8)
    y_BNF = x_BNF + block.projection(mixed_BNF)
    torch.testing.assert_close(block(x_BNF), y_BNF + block.feed(block.norm2(y_BNF)))


@settings(deadline=None)
@given(b=st.integers(1, 3), t=st.integers(4, 40), pool=st.integers(1, 4), stride=st.integers(1, 5), big=st.booleans())
def test_means_of_the_elu_and_their_gradient_are_those_of_the_layers(
    b: int, t: int, pool: int, stride: int, big: bool
) -> None:
    y_BFT = torch.randn(b, 3, t, dtype=torch.float64) * (1000.0 if big else 1.0)
    y_BFT[0, 0, 0] = 0.0
    layer = nn.AvgPool1d(pool, stride)
    means_NT = layer(torch.eye(t, dtype=torch.float64)).T.contiguous()
    results = []
    for means in (lambda y: layer(nn.functional.elu(y)), lambda y: elu_means(y, means_NT)):
        y = y_BFT.clone().requires_grad_()
        out = means(y)
        results.append((out, *torch.autograd.grad(out.square().sum(), y)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)


def test_windows_are_evaluated_independently() -> None:
    model = small().eval()
    x_BCT = torch.randn(5, 6, 50)
    one_by_one = torch.cat([model(x[None]) for x in x_BCT])
    torch.testing.assert_close(one_by_one, model(x_BCT), rtol=1e-4, atol=1e-5)


def test_wrong_windows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(B, 6, 50\)"):
        small()(torch.zeros(2, 6, 51))
    with pytest.raises(ValueError, match="needs 99"):
        Conformer(2, 98, 1)
    with pytest.raises(ValueError, match="multiple of heads"):
        Conformer(2, 200, 1, filters=10, heads=3)
    with pytest.raises(ValueError, match="features must be one of"):
        Conformer(2, 200, 1, features="max")


def test_training_runs_under_autocast() -> None:
    model = small()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(torch.randn(4, 6, 50))
    out.float().sum().backward()
    assert model.stem.temporal.weight.grad is not None


@pytest.mark.parametrize("algorithm", ["fourier", "direct"])
def test_folds_can_be_stacked(algorithm: str) -> None:
    """torch.func trains several models as one program: batched parameters, BatchNorm statistics and dropout masks."""
    models = [small() for _ in range(3)]
    for seed, model in enumerate(models):
        torch.manual_seed(seed)
        nn.init.normal_(model.stem.spatial.weight, std=0.1)
        model.stem.algorithm = algorithm
    skeleton = copy.deepcopy(models[0]).to("meta")
    parameters, buffers = torch.func.stack_module_state(models)
    x_SBCT = torch.randn(3, 4, 6, 50)

    def loss(p: dict[str, Tensor], b: dict[str, Tensor], x_BCT: Tensor) -> tuple[Tensor, Tensor]:
        out: Tensor = torch.func.functional_call(skeleton, (p, b), (x_BCT,))
        return out.square().mean(), out

    step = torch.func.vmap(torch.func.grad(loss, has_aux=True), randomness="different")
    grads, _ = step(parameters, buffers, x_SBCT)
    assert all(g.isfinite().all() for g in grads.values())
    skeleton.eval()
    _, out_SBK = step(parameters, buffers, x_SBCT)
    for s, model in enumerate(models):
        assert buffers["batch_norm.num_batches_tracked"][s] == 1
        model.load_state_dict({**model.state_dict(), **{name: b[s] for name, b in buffers.items()}})
        torch.testing.assert_close(model.eval()(x_SBCT[s]), out_SBK[s], rtol=1e-4, atol=1e-5)
