"""leeboard.nn.CrossAttention against torch's attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from leeboard.nn import CrossAttention


def like(mha: nn.MultiheadAttention, **options: Any) -> CrossAttention:
    """A module with the weights of torch's."""
    module = CrossAttention(mha.embed_dim, mha.num_heads, key_dim=mha.kdim, **options)
    with torch.no_grad():
        rows = zip(
            (mha.q_proj_weight, mha.k_proj_weight, mha.v_proj_weight),
            mha.in_proj_bias.chunk(3),
            (module.q_proj, module.k_proj, module.v_proj),
            strict=True,
        )
        for weight, bias, layer in rows:
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
    module.out_proj = mha.out_proj
    return module


def test_equals_torch() -> None:
    mha = nn.MultiheadAttention(24, 4, kdim=10, vdim=10, batch_first=True)
    nn.init.normal_(mha.in_proj_bias)
    module = like(mha)
    x, memory = torch.randn(2, 3, 24), torch.randn(2, 7, 10)
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 5:] = True
    expected = mha(x, memory, memory, key_padding_mask=padding)[0]
    y = module(x, memory, key_padding=padding)
    torch.testing.assert_close(y, expected)
    # Padding equals leaving out.
    torch.testing.assert_close(module(x[1:], memory[1:, :5]), y[1:])
    y.sum().backward()
    assert module.k_proj.weight.grad is not None
    assert module.k_proj.weight.grad.isfinite().all()


def test_grouped_heads_and_active_heads() -> None:
    module = CrossAttention(24, 4, 2)
    x, memory = torch.randn(2, 3, 24), torch.randn(2, 5, 24)
    assert module.k_proj.out_features == 12
    seen = []
    module.out_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    module(x, memory)
    module(x, memory, active_heads=[0, 3])
    full, some = (t.view(2, 3, 4, 6) for t in seen)
    torch.testing.assert_close(some[:, :, [0, 3]], full[:, :, [0, 3]])
    assert not some[:, :, [1, 2]].any()


def test_fewer_heads_run_as_they_are() -> None:
    """A compact module has smaller projections and no other change."""
    module = CrossAttention(24, 4, 2)
    x, memory = torch.randn(2, 3, 24), torch.randn(2, 5, 24)
    expected = module(x, memory, active_heads=[2, 3])
    kept = {"q_proj": slice(12, 24), "k_proj": slice(6, 12), "v_proj": slice(6, 12)}
    for name, rows in kept.items():
        layer = module.get_submodule(name)
        smaller = nn.Linear(24, rows.stop - rows.start)
        smaller.weight = nn.Parameter(layer.weight[rows].detach())
        smaller.bias = nn.Parameter(layer.bias[rows].detach())
        setattr(module, name, smaller)
    reader = nn.Linear(12, 24)
    reader.weight = nn.Parameter(module.out_proj.weight[:, 12:].detach())
    reader.bias = module.out_proj.bias
    module.out_proj = reader
    torch.testing.assert_close(module(x, memory), expected)


def test_wrong_arguments_are_named() -> None:
    module = CrossAttention(24, 4, key_dim=10)
    x, memory = torch.randn(2, 3, 24), torch.randn(2, 5, 10)
    with pytest.raises(ValueError, match=r"x: got shape \[2, 5, 10\], expected \[B, L, 24\]"):
        module(memory, memory)
    with pytest.raises(ValueError, match=r"memory: got shape \[2, 3, 24\], expected \[B, L, 10\]"):
        module(x, x)
    with pytest.raises(ValueError, match="memory: got 1 sequences, expected 2"):
        module(x, memory[:1])
    with pytest.raises(ValueError, match="key_dim: got 0"):
        CrossAttention(24, 4, key_dim=0)
    with pytest.raises(ValueError, match="num_heads: got 5"):
        CrossAttention(24, 5)
