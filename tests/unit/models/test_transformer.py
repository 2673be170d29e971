from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.models import transformer
from raypipe.models.transformer import Block, ShortAttention

SIZES = {"b": st.integers(1, 5), "n": st.integers(1, 12), "heads": st.integers(1, 4), "d": st.integers(1, 5)}


def by_definition(qkv_BNX: torch.Tensor, mask_BHNN: torch.Tensor | None, heads: int) -> torch.Tensor:
    """Attention as Vaswani et al. 2017, eq. 1 has it, head by head."""
    b, n, _ = qkv_BNX.shape
    q, k, v = qkv_BNX.view(b, n, 3, heads, -1).unbind(2)
    out = []
    for head in range(heads):
        weights_BNN = (q[:, :, head] @ k[:, :, head].mT / q.shape[-1] ** 0.5).softmax(-1)
        out.append((weights_BNN if mask_BHNN is None else weights_BNN * mask_BHNN[:, head]) @ v[:, :, head])
    return torch.cat(out, -1)


@settings(deadline=None)
@given(masked=st.booleans(), seed=st.integers(0, 99), **SIZES)
def test_short_attention_and_its_gradient_are_those_of_the_definition(b, n, heads, d, masked, seed):
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(b, n, 3 * heads * d, generator=generator, dtype=torch.float64)
    mask = 2.0 * (torch.rand(b, heads, n, n, generator=generator) > 0.5).double() if masked else None
    g = torch.randn(b, n, heads * d, generator=generator, dtype=torch.float64)
    before, results = qkv.clone(), []
    for attend in (by_definition, lambda *inputs: ShortAttention.apply(*inputs)[0]):
        x = qkv.clone().requires_grad_()
        out = attend(x, mask, heads)
        results.append((out, *torch.autograd.grad(out, x, g)))
        torch.testing.assert_close(x.detach(), before, rtol=0, atol=0)
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-10)


def test_short_attention_of_stacked_models_is_that_of_each():
    qkv = torch.randn(3, 4, 5, 24, dtype=torch.float64, requires_grad=True)
    mask = 2.0 * (torch.rand(3, 4, 2, 5, 5) > 0.5).double()
    stacked = torch.func.vmap(lambda x, m: ShortAttention.apply(x, m, 2)[0])(qkv, mask)
    single = torch.stack([ShortAttention.apply(x, m, 2)[0] for x, m in zip(qkv, mask, strict=True)])
    torch.testing.assert_close(stacked, single)
    g = torch.randn_like(single)
    torch.testing.assert_close(torch.autograd.grad(stacked, qkv, g), torch.autograd.grad(single, qkv, g))


@pytest.mark.parametrize(("tokens", "is_short"), [(transformer.MAX_SHORT, True), (transformer.MAX_SHORT + 1, False)])
def test_a_block_is_the_same_network_in_training_and_evaluation(tokens, is_short, monkeypatch):
    calls = []
    apply = ShortAttention.apply
    monkeypatch.setattr(ShortAttention, "apply", lambda *inputs: calls.append(1) or apply(*inputs))
    block = Block(8, 2, 2, dropout=0.0).double()
    x_BNF = torch.randn(3, tokens, 8, dtype=torch.float64)
    trained, evaluated = block.train()(x_BNF), block.eval()(x_BNF)
    assert bool(calls) == is_short
    torch.testing.assert_close(trained, evaluated)
