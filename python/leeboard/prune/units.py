"""What of a model can be pruned: heads and feed-forward channels, declared by module type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Kind = Literal["attention", "feed_forward"]


class Tokens(NamedTuple):
    """Tokens of one sample that a sublayer works on.

    Attributes:
        queries: Whose outputs it makes.
        keys: Whom its attention reads; `queries` in self-attention.
    """

    queries: int
    keys: int


@dataclass(frozen=True)
class Sublayer:
    """An attention or a feed-forward block, whose units can be shed one by one.

    A unit is a group of neighbouring input columns of one linear layer, the reader (the output
    projection, the down projection), along with the rows of the writers that make them. That holds
    for heads and channels alike, so scores, masks and plans know only this.

    Attributes:
        name: Dotted name of the block in the model; unique.
        kind: "attention" or "feed_forward".
        family: How the block is run under a plan, e.g. "linear", "torch_mha".
        reader: Dotted name of the linear layer that reads the units.
        writers: Dotted names of those that write them: (q, k, v), or (up,) or (up, gate).
        units: Query heads, or channels.
        width: Columns of the reader in a unit: head_dim, or 1.
        group: Units that are kept or shed together: query heads of a key-value head, else 1.
        in_features: Of the writers (the queries' one in cross-attention).
        key_features: Of the keys' and values' writers, as a rule `in_features`.
        out_features: Of the reader.
        gated: Whether the feed-forward block has a gate beside the up projection.
        pairs: Query-key pairs that attention computes per pair of lengths, as a share of Lq * Lk;
            1 for dense attention.
        element_bytes: Bytes of a weight.
    """

    name: str
    kind: Kind
    family: str
    reader: str
    writers: tuple[str, ...]
    units: int
    width: int
    group: int
    in_features: int
    key_features: int
    out_features: int
    gated: bool = False
    pairs: float = 1.0
    element_bytes: int = 4

    @property
    def columns(self) -> int:
        """Input columns of the reader."""
        return self.units * self.width

    @property
    def blocks(self) -> int:
        """Groups of units that are kept or shed together."""
        return self.units // self.group


class LeftAlone(NamedTuple):
    """A module with weights that no plan touches.

    Attributes:
        name: Dotted name.
        type: Its class.
        reason: Why, and what would change that.
    """

    name: str
    type: str
    reason: str


@dataclass(frozen=True)
class Units:
    """The prunable units of a model, and what its modalities feed them.

    Attributes:
        sublayers: In the order in which the model holds them.
        left_alone: Modules with weights that are not pruned.
        modalities: Names of the model's inputs; ("input",) for a model without.
        fingerprint: Of names, sizes and types; a plan fits the model that has its plan's.
        passing: For each non-empty set of present modalities that the model tells apart, what
            each sublayer works on; a sublayer that is missing there does not run. Empty for a model
            that does not tell: then every sublayer works on `default`.
        default: Tokens that a sublayer works on where `passing` says nothing.
    """

    sublayers: tuple[Sublayer, ...]
    left_alone: tuple[LeftAlone, ...]
    modalities: tuple[str, ...]
    fingerprint: str
    passing: Mapping[frozenset[str], Mapping[str, Tokens]]
    default: Tokens

    def __iter__(self) -> Iterator[Sublayer]:
        return iter(self.sublayers)

    def __len__(self) -> int:
        return len(self.sublayers)

    def __str__(self) -> str:
        """A table: a line for each sublayer, then what is left alone and why."""
        heads = ("name", "kind", "units", "group", "width", "in", "out")
        rows: list[tuple[str, ...]] = [heads]
        for s in self.sublayers:
            sizes = (s.units, s.group, s.width, s.in_features, s.out_features)
            rows.append((s.name or "(model)", s.kind, *map(str, sizes)))
        widths = [max(len(row[n]) for row in rows) for n in range(len(heads))]
        lines = [
            "  ".join(
                cell.ljust(width) if n < 2 else cell.rjust(width)
                for n, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        total = {
            k: sum(s.units for s in self if s.kind == k) for k in ("attention", "feed_forward")
        }
        lines.append(
            f"{total['attention']} heads and {total['feed_forward']} channels in {len(self)} "
            f"sublayers; modalities: {', '.join(self.modalities)}; fingerprint {self.fingerprint}"
        )
        if self.left_alone:
            lines.append(f"left alone ({len(self.left_alone)}):")
            lines += [f"  {n or '(model)'} ({kind}): {why}" for n, kind, why in self.left_alone]
        return "\n".join(lines)

    def __getitem__(self, name: str) -> Sublayer:
        for sublayer in self.sublayers:
            if sublayer.name == name:
                return sublayer
        known = ", ".join(s.name for s in self.sublayers)
        raise KeyError(f"name: got {name!r}, expected one of {known}")

    def check_present(self, present: Sequence[str] | frozenset[str] | None) -> tuple[str, ...]:
        """The present modalities in the model's order; None means all.

        Raises:
            ValueError: For none, or a name that the model does not know.
        """
        if present is None:
            return self.modalities
        if isinstance(present, str):
            raise TypeError(f"present: got the string {present!r}, expected a list of modalities")
        unknown = sorted(set(present) - set(self.modalities))
        if unknown:
            raise ValueError(
                f"present: got {unknown[0]!r}, expected modalities of the model: "
                f"{', '.join(self.modalities)}"
            )
        chosen = tuple(m for m in self.modalities if m in set(present))
        if not chosen:
            raise ValueError(
                f"present: got no modality, expected at least one of {', '.join(self.modalities)}"
            )
        return chosen

    def tokens(self, present: Sequence[str] | frozenset[str] | None = None) -> dict[str, Tokens]:
        """What each sublayer works on with these modalities; one that does not run is missing."""
        chosen = frozenset(self.check_present(present))
        if not self.passing:
            return {s.name: self.default for s in self.sublayers}
        found = self.passing[chosen]
        return {s.name: found[s.name] for s in self.sublayers if s.name in found}
