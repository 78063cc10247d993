"""Units and rankings to make plans of, without discovery or training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from leeboard.nn import FeedForward, SparseGQA
from leeboard.prune import Plan, Sublayer, Tokens, Units

TOKENS = {"acc": 12, "eda": 4}


def attention(name: str, **changes: object) -> Sublayer:
    sizes: dict[str, object] = {
        "family": "sparse_gqa",
        "units": 6,
        "width": 8,
        "group": 1,
        "in_features": 48,
        "key_features": 48,
        "out_features": 48,
    }
    sizes |= changes
    return Sublayer(  # type: ignore[arg-type]
        name, "attention", reader=f"{name}.out_proj", writers=(), **sizes
    )


def feed_forward(name: str, **changes: object) -> Sublayer:
    sizes: dict[str, object] = {
        "family": "feed_forward",
        "units": 96,
        "width": 1,
        "group": 1,
        "in_features": 48,
        "key_features": 48,
        "out_features": 48,
    }
    sizes |= changes
    return Sublayer(  # type: ignore[arg-type]
        name, "feed_forward", reader=f"{name}.down", writers=(), **sizes
    )


def units_of(
    sublayers: Sequence[Sublayer],
    *,
    only: Mapping[str, str] = {},
    fingerprint: str = "0123456789abcdef",
) -> Units:
    """Two modalities; every sublayer works on the tokens of those present, or of `only` one."""
    passing = {}
    for k in (1, 2):
        for present in combinations(TOKENS, k):
            rows = {}
            for s in sublayers:
                names = [n for n in present if only.get(s.name, n) == n]
                count = sum(TOKENS[n] for n in names)
                if count:
                    rows[s.name] = Tokens(count, count)
            passing[frozenset(present)] = rows
    return Units(tuple(sublayers), (), tuple(TOKENS), fingerprint, passing, Tokens(1, 1))


class Encoder(nn.Module):
    """Blocks of leeboard's modules over the tokens of the modalities that are there."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({"attn": SparseGQA(48, 6, 3), "ff": FeedForward(48, 96)})
            for _ in range(layers)
        )

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        x = torch.cat([inputs[name] for name in TOKENS if name in inputs], 1)
        for layer in self.layers:
            x = layer["ff"](x + layer["attn"](x))  # type: ignore[index]
        return x.mean(1)


def encoder_units(layers: int = 2) -> Units:
    found = []
    for i in range(layers):
        found.append(attention(f"layers.{i}.attn", group=2))
        found.append(feed_forward(f"layers.{i}.ff"))
    return units_of(found)


class Ranking:
    """Random scores, means to compensate with, a version."""

    def __init__(self, units: Units, seed: int = 0, *, means: bool = True) -> None:
        self.units, self.name, self.version = units, f"random {seed}", 0
        g = torch.Generator().manual_seed(seed)
        self.values = {s.name: torch.rand(s.units, generator=g) for s in units}
        self.mean_inputs = {s.name: torch.randn(s.columns, generator=g) for s in units}
        self.has_means, self.asked = means, 0

    def scores(self, present: Sequence[str] | None = None) -> dict[str, Tensor]:
        self.asked += 1
        # Another order for each set of modalities.
        shift = len(self.units.check_present(present))
        return {name: values.roll(shift) for name, values in self.values.items()}

    def means(self, present: Sequence[str] | None = None) -> dict[str, Tensor] | None:
        factor = len(self.units.check_present(present))
        return {n: factor * m for n, m in self.mean_inputs.items()} if self.has_means else None

    def refine(self, plan: Plan) -> Plan:
        return plan
