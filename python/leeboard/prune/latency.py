"""How long sublayers take on a device: measured once, looked up by `plan`."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from leeboard._files import replacing
from leeboard.prune import _latency_file
from leeboard.prune._device import Device, this_device
from leeboard.prune.costs import macs
from leeboard.prune.units import Sublayer, Tokens


@dataclass(frozen=True)
class Curve:
    """Milliseconds of one shape of sublayer on a number of tokens.

    Attributes:
        tokens: What it worked on.
        kept: Numbers of kept units, ascending from 0 to all.
        milliseconds: For each, not falling; 0 for none.
        macs: Multiply-adds with all units, by which other numbers of tokens are interpolated.
    """

    tokens: Tokens
    kept: tuple[int, ...]
    milliseconds: tuple[float, ...]
    macs: float

    def __post_init__(self) -> None:
        if len(self.kept) != len(self.milliseconds) or len(self.kept) < 2 or self.kept[0] != 0:
            raise ValueError("curve: expected milliseconds for 0 units and for further numbers")
        if any(b <= a for a, b in pairwise(self.kept)):
            raise ValueError(f"curve: numbers of kept units must ascend, got {list(self.kept)}")
        if self.milliseconds[0] < 0.0 or any(b < a for a, b in pairwise(self.milliseconds)):
            raise ValueError("curve: milliseconds must be at least 0 and must not fall")
        if min(self.tokens) < 1 or not self.macs > 0.0:
            raise ValueError("curve: tokens and multiply-adds must be positive")

    def at(self, kept: float) -> float:
        """Milliseconds with `kept` units, linear between those that were measured."""
        place = min(bisect.bisect_left(self.kept, kept), len(self.kept) - 1)
        if self.kept[place] == kept or place == 0:
            return self.milliseconds[place]
        low, high = self.kept[place - 1], self.kept[place]
        share = (kept - low) / (high - low)
        return (1.0 - share) * self.milliseconds[place - 1] + share * self.milliseconds[place]


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """Milliseconds of sublayers on one device; `leeboard.prune.calibrate` measures it.

    Attributes:
        device: What it was measured on.
        curves: By shape (`shape_of`), a curve for each number of tokens, the fewest first.
        rests: Milliseconds of a model's unprunable rest, by its present modalities joined with "+";
            empty if no whole model was measured, then it counts as 0.
    """

    device: Device
    curves: Mapping[str, tuple[Curve, ...]]
    rests: Mapping[str, float]

    def milliseconds(self, sublayer: Sublayer, kept: int, tokens: Tokens) -> float:
        """Of one sublayer with `kept` of its units, for one sample.

        Between the numbers of tokens that were measured it is linear in the multiply-adds; fewer
        tokens than those cost as much as the fewest.

        Raises:
            ValueError: For a number of units that the sublayer does not have.
            LookupError: If the table lacks its shape, or was measured on fewer tokens only.
        """
        if not 0 <= kept <= sublayer.units:
            raise ValueError(
                f"kept: got {kept} units of {sublayer.name}, expected 0 to {sublayer.units}"
            )
        if kept == 0:
            return 0.0
        curves = self.curves.get(shape_of(sublayer))
        if not curves:
            raise LookupError(
                f"latency: the table lacks the shape of {sublayer.name} ({shape_of(sublayer)}); "
                "measure this model with `leeboard prune calibrate`"
            )
        size = macs(sublayer, sublayer.units, tokens)
        place = bisect.bisect_left(curves, size, key=lambda curve: curve.macs)
        if place == len(curves):
            raise LookupError(
                f"latency: the table knows {sublayer.name} for up to {curves[-1].tokens.queries} "
                f"queries and {curves[-1].tokens.keys} keys; got {tokens.queries} and {tokens.keys}"
            )
        high = curves[place]
        if place == 0 or high.macs == size:
            return high.at(kept)
        low = curves[place - 1]
        share = (size - low.macs) / (high.macs - low.macs)
        return (1.0 - share) * low.at(kept) + share * high.at(kept)

    def rest(self, present: Sequence[str]) -> float:
        """Milliseconds of what is not prunable; of the whole set where this one is not known."""
        known = self.rests.get("+".join(present))
        return max(self.rests.values(), default=0.0) if known is None else known

    def __str__(self) -> str:
        return _latency_file.text(self)

    def save(self, path: str | Path) -> None:
        """Write the table to a JSON file, which is there whole or not at all.

        Raises:
            OSError: If it cannot be written.
        """
        with replacing(Path(path)) as temporary:
            temporary.write_text(_latency_file.dump(self), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path, *, any_device: bool = False) -> LatencyTable:
        """The table in a file of `save`.

        Times of another processor, instruction-set level or number of threads mislead, so such a
        table is refused, unless plans are made here for a device elsewhere.

        Args:
            path: Of the file.
            any_device: Whether a table of another device is taken, too.

        Raises:
            OSError: If it cannot be read.
            ValueError: If it holds no table, or one of another device; the message names the file.
        """
        try:
            table = cls(**_latency_file.read(Path(path).read_bytes().decode()))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error
        here = this_device()
        odd = "" if any_device else table.device.difference(here)
        if odd:
            raise ValueError(
                f"{path}: measured with {odd}; measure here with `leeboard prune calibrate`, or "
                "take it for a device elsewhere with LatencyTable.load(path, any_device=True)"
            )
        return table


@functools.lru_cache(maxsize=4096)
def shape_of(sublayer: Sublayer) -> str:
    """What a sublayer's time depends on besides tokens and kept units, as text."""
    s = sublayer
    sizes = f"{s.in_features}>{s.units}x{s.width}>{s.out_features}"
    if s.kind == "attention":
        extra = "" if s.group == 1 else f" groups {s.blocks}"
        extra += "" if s.key_features == s.in_features else f" keys {s.key_features}"
        extra += "" if s.pairs == 1.0 else f" pairs {s.pairs:.4g}"
    else:
        extra = " gated" if s.gated else ""
    bits = "" if s.element_bytes == 4 else f" {8 * s.element_bytes}-bit"
    return f"{s.family} {sizes}{extra}{bits}"
