"""What sublayers cost: multiply-adds, bytes of weights, and milliseconds where a table is given.

The counts are those of the linear layers and of attention's two products, half of what
`torch.utils.flop_counter` counts. Biases, norms, activations and softmax are left out. Costs depend
on how many units are kept, not on which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from leeboard.prune.units import Sublayer, Tokens, Units


class Latency(Protocol):
    """What predicts milliseconds, e.g. a `LatencyTable`."""

    def milliseconds(self, sublayer: Sublayer, kept: int, tokens: Tokens) -> float:
        """Of one sublayer with `kept` of its units, for one sample."""
        ...

    def rest(self, present: Sequence[str]) -> float:
        """Of all that is not prunable, for one sample with these modalities."""
        ...


class Part(NamedTuple):
    """A sublayer's share of what a plan costs.

    Attributes:
        units: All its units, kept or not.
        macs: Multiply-adds for one sample.
        dense_macs: With all units.
        milliseconds: Predicted, or None.
        dense_milliseconds: With all units, or None.
    """

    units: int
    macs: float
    dense_macs: float
    milliseconds: float | None = None
    dense_milliseconds: float | None = None


@dataclass(frozen=True)
class Costs:
    """What the prunable part of a model costs, for one sample; fields as those of `Plan`.

    Milliseconds hold what is not prunable, too, where the table knows it.
    """

    macs: float
    dense_macs: float
    bytes: float
    dense_bytes: float
    milliseconds: float | None
    dense_milliseconds: float | None
    parts: Mapping[str, Part]


def macs(sublayer: Sublayer, kept: int, tokens: Tokens, *, blocks: int | None = None) -> float:
    """Multiply-adds of a sublayer for one sample, with `kept` of its units.

    Attention with a query heads, k key-value heads and p pairs of query and key:
        Lq d_in D a + 2 Lk d_key D k + 2 p D a + Lq D a d_out.
    A feed-forward block with F channels: Lq F (d_in + d_out), one d_in more with a gate.

    Args:
        sublayer: Whose.
        kept: Units that stay, 0 to all.
        tokens: What it works on.
        blocks: Key-value heads that stay; the fewest that hold the kept heads by default.

    Raises:
        ValueError: For a number of units that the sublayer does not have.
    """
    blocks = _blocks(sublayer, kept, blocks)
    lq, lk = tokens
    if sublayer.kind == "feed_forward":
        reads = sublayer.in_features * (2 if sublayer.gated else 1)
        return float(lq * kept * (reads + sublayer.out_features))
    d = sublayer.width
    projections = lq * kept * d * (sublayer.in_features + sublayer.out_features)
    keys_and_values = 2 * lk * blocks * d * sublayer.key_features
    return projections + keys_and_values + 2 * sublayer.pairs * lq * lk * kept * d


def weight_bytes(sublayer: Sublayer, kept: int, *, blocks: int | None = None) -> float:
    """Bytes of the weight matrices that a sublayer reads with `kept` of its units.

    Raises:
        ValueError: For a number of units that the sublayer does not have.
    """
    blocks = _blocks(sublayer, kept, blocks)
    if sublayer.kind == "feed_forward":
        reads = sublayer.in_features * (2 if sublayer.gated else 1)
        weights = kept * (reads + sublayer.out_features)
    else:
        weights = kept * (sublayer.in_features + sublayer.out_features)
        weights = sublayer.width * (weights + 2 * blocks * sublayer.key_features)
    return float(sublayer.element_bytes * weights)


def blocks_of(sublayer: Sublayer, kept: Sequence[int]) -> int:
    """Blocks (key-value heads) that hold at least one of the kept units."""
    return len(kept) if sublayer.group == 1 else len({u // sublayer.group for u in kept})


def costs(
    units: Units,
    keep: Mapping[str, Sequence[int]] | None = None,
    present: Sequence[str] | None = None,
    latency: Latency | None = None,
) -> Costs:
    """What a model costs with these units kept.

    Args:
        units: Of the model.
        keep: Kept units by sublayer; a sublayer that is missing keeps all. None keeps everything.
        present: Modalities that are there; all by default.
        latency: Predicts milliseconds.

    Raises:
        ValueError: For a modality or a number of units that the model does not have.
        LookupError: If the latency table lacks a sublayer's shape.
    """
    chosen = units.check_present(present)
    keep = {} if keep is None else keep
    parts: dict[str, Part] = {}
    read = dense_read = 0.0
    for name, tokens in units.tokens(chosen).items():
        s = units[name]
        kept = keep.get(name, range(s.units))
        n, held = len(kept), blocks_of(s, kept)
        times: tuple[float | None, float | None] = (None, None)
        if latency is not None:
            times = (
                latency.milliseconds(s, n, tokens) if n else 0.0,
                latency.milliseconds(s, s.units, tokens),
            )
        parts[name] = Part(
            s.units, macs(s, n, tokens, blocks=held), macs(s, s.units, tokens), *times
        )
        read += weight_bytes(s, n, blocks=held)
        dense_read += weight_bytes(s, s.units)
    rest = None if latency is None else latency.rest(chosen)
    return Costs(
        sum(p.macs for p in parts.values()),
        sum(p.dense_macs for p in parts.values()),
        read,
        dense_read,
        None if rest is None else rest + sum(p.milliseconds or 0.0 for p in parts.values()),
        None if rest is None else rest + sum(p.dense_milliseconds or 0.0 for p in parts.values()),
        parts,
    )


def _blocks(sublayer: Sublayer, kept: int, blocks: int | None) -> int:
    if not 0 <= kept <= sublayer.units:
        raise ValueError(
            f"kept: got {kept} units of {sublayer.name}, expected 0 to {sublayer.units}"
        )
    fewest = -(-kept // sublayer.group)
    if blocks is None:
        return fewest
    if not fewest <= blocks <= min(kept, sublayer.blocks):
        raise ValueError(
            f"blocks: got {blocks} of {sublayer.name} for {kept} units, "
            f"expected {fewest} to {min(kept, sublayer.blocks)}"
        )
    return blocks
