"""A tiny model of two modalities with gates of its own, to check measurements by plain autograd."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leeboard.prune import Sublayer, Tokens, Units

DIM, WIDTH, HEADS, GROUP, HIDDEN, CLASSES = 6, 3, 4, 2, 20, 3
NAMES = ("a.attention", "b.feed_forward", "cross", "feed_forward")


class Attention(nn.Module):
    """Grouped queries: heads 2i and 2i + 1 read key-value head i. Three columns a head."""

    def __init__(self, key_dim: int) -> None:
        super().__init__()
        self.q = nn.Linear(DIM, HEADS * WIDTH)
        self.k = nn.Linear(key_dim, HEADS // GROUP * WIDTH)
        self.v = nn.Linear(key_dim, HEADS // GROUP * WIDTH)
        self.o = nn.Linear(HEADS * WIDTH, DIM)

    def heads(self, x: Tensor, keys: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (HEADS, WIDTH)).transpose(1, 2)
        k, v = (
            p(keys).unflatten(-1, (-1, WIDTH)).transpose(1, 2).repeat_interleave(GROUP, dim=1)
            for p in (self.k, self.v)
        )
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Channels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(DIM, HIDDEN), nn.Linear(HIDDEN, DIM)


class Tiny(nn.Module):
    """a: 5 tokens with self-attention; b: 3 wider tokens; queries of a learned token read both."""

    modalities = ("a", "b")

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.ModuleDict({"embed": nn.Linear(2, DIM), "attention": Attention(DIM)})
        self.b = nn.ModuleDict({"embed": nn.Linear(4, DIM), "feed_forward": Channels()})
        self.token = nn.Parameter(torch.randn(1, 1, DIM))
        self.widen = nn.Linear(DIM, DIM + 2)
        self.cross = Attention(DIM + 2)
        self.feed_forward = Channels()
        self.head = nn.Linear(DIM, CLASSES)
        self.recorded: dict[str, list[Tensor]] = {name: [] for name in NAMES}

    def forward(self, inputs: dict[str, Tensor], gates: dict[str, Tensor] | None = None) -> Tensor:
        def gated(name: str, x: Tensor) -> Tensor:
            self.recorded[name].append(x.detach())
            if gates is None:
                return x
            units = gates[name].shape[-1]
            return x * gates[name].repeat_interleave(x.shape[-1] // units, dim=-1)

        found = []
        if "a" in inputs:
            x = self.a["embed"](inputs["a"])
            attention = self.a["attention"]
            found.append(x + attention.o(gated("a.attention", attention.heads(x, x))))
        if "b" in inputs:
            x = self.b["embed"](inputs["b"])
            block = self.b["feed_forward"]
            found.append(x + block.down(gated("b.feed_forward", F.gelu(block.up(x)))))
        keys = self.widen(torch.cat(found, dim=1))
        x = self.token.expand(len(keys), 1, DIM)
        x = x + self.cross.o(gated("cross", self.cross.heads(x, keys)))
        hidden = F.gelu(self.feed_forward.up(x))
        return self.head((x + self.feed_forward.down(gated("feed_forward", hidden)))[:, 0])


def tiny_units() -> Units:
    def attention(name: str, key_features: int) -> Sublayer:
        return Sublayer(
            name=name,
            kind="attention",
            family="linear",
            reader=f"{name}.o",
            writers=(f"{name}.q", f"{name}.k", f"{name}.v"),
            units=HEADS,
            width=WIDTH,
            group=GROUP,
            in_features=DIM,
            key_features=key_features,
            out_features=DIM,
        )

    def channels(name: str) -> Sublayer:
        return Sublayer(
            name=name,
            kind="feed_forward",
            family="linear",
            reader=f"{name}.down",
            writers=(f"{name}.up",),
            units=HIDDEN,
            width=1,
            group=1,
            in_features=DIM,
            key_features=DIM,
            out_features=DIM,
        )

    sublayers = (
        attention("a.attention", DIM),
        channels("b.feed_forward"),
        attention("cross", DIM + 2),
        channels("feed_forward"),
    )
    passing = {}
    for n in (1, 2):
        for present in itertools.combinations(("a", "b"), n):
            tokens = {"feed_forward": Tokens(1, 1)}
            tokens["cross"] = Tokens(1, sum({"a": 5, "b": 3}[m] for m in present))
            if "a" in present:
                tokens["a.attention"] = Tokens(5, 5)
            if "b" in present:
                tokens["b.feed_forward"] = Tokens(3, 3)
            passing[frozenset(present)] = tokens
    return Units(sublayers, (), ("a", "b"), "tiny", passing, Tokens(1, 1))


def tiny_batches(sizes: tuple[int, ...] = (7, 5, 6)) -> list[tuple[dict[str, Tensor], Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        (
            {
                "a": torch.randn(n, 5, 2, generator=generator),
                "b": torch.randn(n, 3, 4, generator=generator) + 0.5,
            },
            torch.randint(CLASSES, (n,), generator=generator),
        )
        for n in sizes
    ]
