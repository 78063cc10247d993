"""Small models with units made by hand, for the tests of scores."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor, nn

from leeboard.prune import Sublayer, Tokens, Units


def units_of(
    sizes: dict[str, tuple[str, int, int, int]],
    modalities: tuple[str, ...] = ("input",),
    *,
    missing: dict[str, str] | None = None,
    fingerprint: str = "tiny",
    features: int = 8,
) -> Units:
    """Units of readers: name -> (kind, units, width, group).

    `missing` maps a sublayer to the modality without which it does not run.
    """
    sublayers = tuple(
        Sublayer(
            name=name,
            kind=kind,  # type: ignore[arg-type]
            family="test",
            reader=f"{name}.reader",
            writers=(f"{name}.writer",),
            units=units,
            width=width,
            group=group,
            in_features=features,
            key_features=features,
            out_features=features,
        )
        for name, (kind, units, width, group) in sizes.items()
    )
    passing = {}
    if missing is not None:
        for count in range(1, len(modalities) + 1):
            for present in combinations(modalities, count):
                passing[frozenset(present)] = {
                    s.name: Tokens(4, 4)
                    for s in sublayers
                    if missing.get(s.name, present[0]) in present
                }
    return Units(sublayers, (), modalities, fingerprint, passing, Tokens(4, 4))


class Pair(nn.Module):
    """x + reader(act(writer(x))): the smallest sublayer."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.writer = nn.Linear(features, hidden)
        self.reader = nn.Linear(hidden, features)

    def forward(self, x: Tensor, gates: Tensor | None = None) -> Tensor:
        hidden = torch.tanh(self.writer(x))
        if gates is not None:
            hidden = hidden * gates[:, None]
        return x + self.reader(hidden)


class Tiny(nn.Module):
    """Tokens of each modality through an encoder of its own, then one for all: [B, classes]."""

    def __init__(self, modalities: tuple[str, ...] = ("a", "b", "c"), features: int = 8) -> None:
        super().__init__()
        self.modalities = modalities
        self.encoders = nn.ModuleDict({m: Pair(features, 6) for m in modalities})
        self.heads = Pair(features, 12)
        self.ffn = Pair(features, 40)
        self.classify = nn.Linear(features, 3)

    def forward(self, inputs: dict[str, Tensor], present: Tensor | None = None) -> Tensor:
        there = [m for m in self.modalities if m in inputs]
        tokens = torch.cat([self.encoders[m](inputs[m]) for m in there], 1)
        rows, length = tokens.shape[0], next(iter(inputs.values())).shape[1]
        mask = torch.ones(rows, len(there)) if present is None else present[:, _at(self, there)]
        weight = mask.float().repeat_interleave(length, 1)[..., None]
        # Tokens meet only in the means that each sublayer adds, over those that are there.
        for block in (self.heads, self.ffn):
            tokens = block(tokens + (tokens * weight).sum(1, True) / weight.sum(1, True))
        return self.classify((tokens * weight).sum(1) / weight.sum(1))

    def units(self) -> Units:
        sizes = {f"encoders.{m}": ("feed_forward", 6, 1, 1) for m in self.modalities}
        sizes |= {"heads": ("attention", 4, 3, 2), "ffn": ("feed_forward", 40, 1, 1)}
        missing = {f"encoders.{m}": m for m in self.modalities}
        return units_of(sizes, self.modalities, missing=missing)


def _at(model: Tiny, there: list[str]) -> list[int]:
    return [model.modalities.index(m) for m in there]


def batch_for(model: Tiny, rows: int, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs and targets."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {m: torch.randn(rows, 4, 8, generator=generator) for m in model.modalities}
    return inputs, torch.randint(3, (rows,), generator=generator)
