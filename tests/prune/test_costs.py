"""Costs of sublayers against an independent count: torch's own, over real layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from leeboard.prune import Tokens, costs
from leeboard.prune.costs import blocks_of, macs, weight_bytes
from plan_models import attention, feed_forward, units_of


def counted(run: Any) -> float:
    """Multiply-adds of the matrix products that torch runs."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 2


class Heads(nn.Module):
    """Attention with grouped keys and values over a memory, in products that torch counts."""

    def __init__(self, heads: int, groups: int, width: int, d: int, d_key: int, out: int) -> None:
        super().__init__()
        self.heads, self.groups = heads, groups
        self.q = nn.Linear(d, heads * width)
        self.k, self.v = (nn.Linear(d_key, groups * width) for _ in range(2))
        self.out = nn.Linear(heads * width, out)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(0, 1)
        k, v = (
            layer(memory)
            .unflatten(-1, (self.groups, -1))
            .transpose(0, 1)
            .repeat_interleave(self.heads // self.groups, 0)
            for layer in (self.k, self.v)
        )
        mixed = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
        return self.out(mixed.transpose(0, 1).flatten(1))


@pytest.mark.parametrize("blocks", [1, 2, 4])
@pytest.mark.parametrize(("queries", "keys", "d_key"), [(7, 7, 24), (5, 11, 24), (5, 11, 40)])
def test_attention_is_what_torch_counts(blocks: int, queries: int, keys: int, d_key: int) -> None:
    s = attention("a", units=8, width=6, group=2, in_features=24, key_features=d_key)
    pruned = Heads(2 * blocks, blocks, 6, 24, d_key, 48)
    x, memory = torch.randn(queries, 24), torch.randn(keys, d_key)
    tokens = Tokens(queries, keys)
    assert macs(s, 2 * blocks, tokens) == counted(lambda: pruned(x, memory))
    weights = sum(p.numel() for p in pruned.parameters() if p.dim() == 2)
    assert weight_bytes(s, 2 * blocks) == 4 * weights


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("kept", [1, 16, 40])
def test_feed_forward_is_what_torch_counts(kept: int, gated: bool) -> None:
    s = feed_forward("f", units=40, in_features=24, out_features=32, gated=gated, element_bytes=2)
    up, gate, down = nn.Linear(24, kept), nn.Linear(24, kept), nn.Linear(kept, 32)
    x = torch.randn(9, 24)

    def run() -> Tensor:
        return down(up(x) * gate(x).sigmoid() if gated else up(x).relu())

    assert macs(s, kept, Tokens(9, 9)) == counted(run)
    assert weight_bytes(s, kept) == 2 * kept * (24 * (2 if gated else 1) + 32)


def test_a_pattern_computes_its_share_of_the_pairs() -> None:
    whole, band = attention("a"), attention("a", pairs=0.25)
    tokens = Tokens(20, 20)
    # q k^T and p v, of 6 heads with 8 channels.
    products = 2 * 6 * 8 * 20 * 20
    assert macs(whole, 6, tokens) - macs(band, 6, tokens) == 0.75 * products


def test_scattered_heads_keep_their_key_value_heads() -> None:
    s = attention("a", units=8, width=6, group=2)
    assert [blocks_of(s, kept) for kept in ((), (0, 1), (0, 7), (1, 2, 3))] == [0, 1, 2, 2]
    tokens = Tokens(4, 4)
    more = macs(s, 2, tokens, blocks=2) - macs(s, 2, tokens)
    assert more == 2 * 4 * 6 * 48
    with pytest.raises(ValueError, match="blocks: got 3 of a for 2 units, expected 1 to 2"):
        macs(s, 2, tokens, blocks=3)


@pytest.mark.parametrize("kept", [-1, 7])
def test_units_that_are_not_there(kept: int) -> None:
    with pytest.raises(ValueError, match=f"kept: got {kept} units of a, expected 0 to 6"):
        macs(attention("a"), kept, Tokens(4, 4))


def test_costs_of_a_model_are_those_of_what_runs() -> None:
    a, f, e = attention("a"), feed_forward("f"), feed_forward("e")
    units = units_of([a, f, e], only={"e": "eda"})
    found = costs(units, {"a": (0, 3), "f": ()}, ["acc"])
    tokens = Tokens(12, 12)
    assert list(found.parts) == ["a", "f"]
    assert found.macs == macs(a, 2, tokens)
    assert found.dense_macs == macs(a, 6, tokens) + macs(f, 96, tokens)
    assert found.bytes == weight_bytes(a, 2)
    assert found.dense_bytes == weight_bytes(a, 6) + weight_bytes(f, 96)
    assert found.milliseconds is None
    assert found.parts["f"].units == 96
    assert costs(units).macs == costs(units).dense_macs > found.dense_macs
