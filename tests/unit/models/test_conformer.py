from __future__ import annotations

import ast
import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from raypipe.core.config import ModelConfig
from raypipe.core.errors import UserError
from raypipe.models import conformer
from raypipe.models.conformer import FEATURES, NORMS, Block, Conformer, Dropout, kernel_sizes, normalise
from raypipe.models.registry import build_model
from raypipe.models.stem import ALGORITHMS, Stem, fast_length
from raypipe.packaging.submission import CODE

SHAPES = [(3, 5, 40, 4, 7), (2, 1, 41, 3, 8), (4, 7, 101, 6, 1), (1, 3, 16, 2, 16), (2, 129, 200, 8, 25)]


def small(**options: object) -> Conformer:
    torch.manual_seed(0)
    sizes = {"kernel": 5, "pool": 12, "stride": 4, "filters": 8, "heads": 2, "depth": 2, "hidden": 16}
    return Conformer(6, 50, 3, **{**sizes, **options})  # type: ignore[arg-type]


def upstream_of(y: Tensor) -> Tensor:
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.dtype)


def run_stem(stem: Stem, x_BCT: Tensor) -> list[Tensor]:
    y = stem(x_BCT)
    return [y, *torch.autograd.grad(y, list(stem.parameters()), upstream_of(y))]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("algorithm", ["fourier", "direct"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_stem_equals_the_two_layers(
    shape: tuple[int, ...], algorithm: str, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(1)
    batch, channels, times, filters, kernel = shape
    stem = Stem(channels, times, filters=filters, kernel=kernel, algorithm="reference").to(dtype)
    x_BCT = torch.randn(batch, channels, times, dtype=dtype)
    expected = run_stem(stem.double(), x_BCT.double())
    stem.to(dtype).algorithm = algorithm
    for got, want in zip(run_stem(stem, x_BCT), expected, strict=True):
        assert got.shape == want.shape and got.dtype == dtype
        assert (got.double() - want).abs().max() <= tolerance * want.abs().max()


def test_stem_reads_no_sample_twice() -> None:
    """An impulse in the last sample must reach the last output only, not wrap around to the first."""
    stem = Stem(1, 30, filters=2, kernel=6).double()
    x_BCT = torch.zeros(1, 1, 30, dtype=torch.float64)
    x_BCT[..., -1] = 1.0
    y_BFT = stem(x_BCT) - stem(torch.zeros_like(x_BCT))
    assert y_BFT[..., :-1].abs().max() < 1e-14 < y_BFT[..., -1].abs().min()


def test_stem_keeps_its_precision_through_dtype_changes() -> None:
    stem = Stem(3, 20, filters=2, kernel=4).float().double()
    x_BCT = torch.randn(2, 3, 20, dtype=torch.float64)
    fourier = stem(x_BCT)
    stem.algorithm = "reference"
    torch.testing.assert_close(fourier, stem(x_BCT), rtol=1e-12, atol=1e-12)


def test_stem_shapes_are_the_two_layers() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in Stem(22, 100, filters=40, kernel=25).state_dict().items()}
    assert shapes == {
        "temporal.weight": (40, 1, 1, 25),
        "temporal.bias": (40,),
        "spatial.weight": (40, 40, 22, 1),
        "spatial.bias": (40,),
    }


def test_unknown_algorithm() -> None:
    with pytest.raises(ValueError, match="fourier, direct, reference"):
        Stem(1, 9, kernel=2, algorithm="fft")(torch.zeros(1, 1, 9))


def test_fast_length() -> None:
    for n in range(1, 500):
        m = fast_length(n)
        assert m >= n and m % 2 == 0
        assert all(f in (2, 3, 5, 7) for f in prime_factors(m))
    assert (fast_length(200), fast_length(401)) == (200, 420)


def prime_factors(n: int) -> set[int]:
    out, p = set(), 2
    while n > 1:
        while n % p == 0:
            out.add(p)
            n //= p
        p += 1
    return out


@pytest.mark.parametrize(("shape", "count"), [((129, 200, 1), 407_713), ((22, 1000, 4), 789_572)])
def test_parameter_counts_are_the_papers(shape: tuple[int, int, int], count: int) -> None:
    assert sum(p.numel() for p in Conformer(*shape).parameters()) == count


def test_kernel_sizes() -> None:
    assert kernel_sizes(250, "rate") == kernel_sizes(100, "paper") == (25, 75, 15)
    assert kernel_sizes(100, "rate") == (10, 30, 6)
    assert kernel_sizes(100, "short") == (10, 10, 6)
    assert kernel_sizes(1, "rate") == (1, 1, 1)
    with pytest.raises(ValueError, match="rate, paper, short"):
        kernel_sizes(100, "auto")


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_parameter_learns(features: str, algorithm: str) -> None:
    model = small(features=features)
    model.stem.algorithm = algorithm
    out = model(torch.randn(4, 6, 50))
    assert out.shape == (4, 3)
    out.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if not name.startswith("stem.") or not name.endswith("bias"):  # BatchNorm takes a constant out again
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_prepared_windows_give_the_same(algorithm: str) -> None:
    model = small().eval()
    model.stem.algorithm = algorithm
    x_BCT = torch.randn(4, 6, 50)
    assert torch.equal(model(model.prepare(x_BCT), prepared=True), model(x_BCT))


@pytest.mark.parametrize("norm", ["channel", "window", "robust"])
@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_unit_does_not_matter(norm: str, unit: float) -> None:
    model = small(norm=norm).eval()
    x_BCT = torch.randn(4, 6, 50) * torch.logspace(-1, 1, 6)[:, None] + 3.0
    torch.testing.assert_close(model(x_BCT * unit), model(x_BCT), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("offset", [0.0, 0.3])
def test_flat_channels_and_empty_windows_are_harmless(norm: str, offset: float) -> None:
    x_BCT = 1e-5 * torch.randn(4, 6, 50)
    x_BCT[:, 2] = offset
    x_BCT[1] = offset
    x_BCT[2] = 0.0
    x_BCT.requires_grad_()
    z_BCT = normalise(x_BCT, norm)
    if norm != "none":
        assert (z_BCT[:, 2] == 0).all() and (z_BCT[1:3] == 0).all() and z_BCT[0, 0].abs().max() > 0
    model = small(norm=norm)
    model(x_BCT).sum().backward()
    assert x_BCT.grad is not None and x_BCT.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_what_each_norm_does() -> None:
    torch.manual_seed(0)
    x_BCT = torch.randn(2, 4, 999, dtype=torch.float64) * torch.tensor([1.0, 2.0, 3.0, 1e-9])[:, None] + 5.0
    channel = normalise(x_BCT, "channel")
    assert channel[:, :3].mean(-1).abs().max() < 1e-12
    assert (channel[:, :3].std(-1, correction=0) - 1).abs().max() < 1e-12
    assert channel[:, 3].abs().max() < 1e-4  # quiet, but not flat: not blown up to the size of the others
    window = normalise(x_BCT, "window")
    assert (window.square().mean((1, 2)) - 1).abs().max() < 1e-12
    ratio = window.std(-1)[:, 2] / window.std(-1)[:, 0]
    torch.testing.assert_close(ratio, x_BCT.std(-1)[:, 2] / x_BCT.std(-1)[:, 0])
    x_BCT[:, 0, 7] = 1e9
    robust = normalise(x_BCT, "robust")
    assert robust[:, 0, 7].eq(15.0).all()
    assert (robust[:, :3].abs().median(-1).values * 1.4826 - 1).abs().max() < 1e-3
    assert normalise(x_BCT, "none") is x_BCT
    with pytest.raises(ValueError, match="norm"):
        normalise(x_BCT, "layer")


def test_robust_falls_back_where_most_samples_agree() -> None:
    x_BCT = torch.zeros(1, 1, 21)
    x_BCT[..., :5] = 1.0
    z_BCT = normalise(x_BCT, "robust")
    assert z_BCT.isfinite().all() and 0 < z_BCT.max() < 15


def test_dropout_is_dropout() -> None:
    torch.manual_seed(0)
    drop, x = Dropout(0.3), torch.ones(200_000, requires_grad=True)
    out = drop(x)
    out.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, out.detach())
    assert out.detach().unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert abs((out == 0).float().mean() - 0.3) < 0.01
    assert drop.eval()(x) is x


def test_attention_equals_torchs_own() -> None:
    block = Block(8, heads=2, expansion=4, dropout=0.0)
    x_BNF = torch.randn(3, 5, 8)
    q, k, v = block.qkv(block.norm1(x_BNF)).view(3, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
    mixed_BNF = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(3, 5, 8)
    y_BNF = x_BNF + block.projection(mixed_BNF)
    torch.testing.assert_close(block(x_BNF), y_BNF + block.feed(block.norm2(y_BNF)))


def test_evaluation_is_by_window() -> None:
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
    with pytest.raises(ValueError, match="unknown features"):
        Conformer(2, 200, 1, features="max")


def test_build_model_follows_its_configuration() -> None:
    cfg = ModelConfig(filters=8, heads=2, depth=1, hidden=16, dropout=0.25, features="log-power", norm="window")
    model = build_model(cfg, n_channels=4, n_times=100, n_outputs=2, sfreq=100)
    assert isinstance(model, Conformer)
    assert (model.n_tokens, model.summary, model.norm, len(model.blocks)) == (11, "log-power", "window", 1)
    assert model.stem.kernel == 10
    assert [m.p for m in model.head if isinstance(m, Dropout)] == pytest.approx([0.25, 0.15])
    assert model.train()(torch.randn(3, 4, 100)).shape == (3, 2)


def test_build_model_explains_short_windows() -> None:
    with pytest.raises(UserError, match=r"90 samples \(0.9 s at 100 Hz\).*99 samples or more, or model/kernels=short$"):
        build_model(ModelConfig(kernels="paper"), n_channels=4, n_times=90, n_outputs=1, sfreq=100)
    with pytest.raises(UserError, match=r"19 samples or more$"):
        build_model(ModelConfig(kernels="short"), n_channels=4, n_times=18, n_outputs=1, sfreq=100)


def test_autocast() -> None:
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


@pytest.mark.parametrize("name", CODE)
def test_files_of_a_submission_need_torch_and_each_other_alone(name: str) -> None:
    tree = ast.parse(Path(conformer.__file__).with_name(name).read_text(encoding="utf-8"))
    branches = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "__package__"]
    for branch in branches:  # what they do within raypipe
        branch.body = [ast.Pass()]
    nodes = list(ast.walk(tree))
    roots = {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    roots |= {(node.module or "").split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}
    assert "torch" in roots
    assert roots <= sys.stdlib_module_names | {"torch"} | {Path(other).stem for other in CODE}
