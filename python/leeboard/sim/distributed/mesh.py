"""The mesh of a folded run: which ranks do the same, and who stands for them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from leeboard.sim.errors import SimulationError

Ranks = NDArray[np.int64]

_AXIS = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=([0-9]+)(\*?)", re.ASCII)
_MOST_RANKS = 2**24
WITNESSES = ("one", "all", "none")


class FoldError(SimulationError, ValueError):
    """A run that cannot be folded as asked: which rank, which op, and what to change."""


@dataclass(frozen=True)
class Axis:
    """One axis of the mesh.

    Attributes:
        name: Of the axis.
        size: How many coordinates it has.
        distinct: Whether ranks at different coordinates do different things.
    """

    name: str
    size: int
    distinct: bool = False

    def __str__(self) -> str:
        return f"{self.name}={self.size}{'*' if self.distinct else ''}"


@dataclass(frozen=True)
class Mesh:
    """All ranks as a row-major grid, the last axis fastest.

    Ranks that differ only along axes that are not distinct form a class: they run the same program,
    each with partners as far away as those of the others (around the axis). The rank of a class
    whose coordinates on these axes are 0 represents it.
    """

    axes: tuple[Axis, ...]

    @classmethod
    def parse(cls, text: str) -> Mesh:
        """Read "dp=8 pp=16* tp=8": axes from slowest to fastest; * marks distinct ones.

        Raises:
            FoldError: It does not read like that; an axis is named twice or has no ranks.
        """
        axes = []
        for part in text.replace(",", " ").split():
            match = _AXIS.fullmatch(part)
            if match is None:
                raise FoldError(
                    f'fold: got {part!r} in {text!r}, expected axes like "dp=8 pp=16* tp=8" '
                    "(* where ranks along the axis do different things)"
                )
            axes.append(Axis(match[1], int(match[2]), bool(match[3])))
        names = [axis.name for axis in axes]
        twice = [name for i, name in enumerate(names) if name in names[:i]]
        if twice:
            raise FoldError(f"fold: axis {twice[0]!r} is given twice in {text!r}")
        ranks = math.prod(axis.size for axis in axes)
        if not axes or not 1 <= ranks <= _MOST_RANKS:
            raise FoldError(
                f"fold: got {text!r}, expected axes with 1 to {_MOST_RANKS} ranks in all"
            )
        return cls(tuple(axes))

    def __str__(self) -> str:
        return " ".join(map(str, self.axes))

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return tuple(axis.size for axis in self.axes)

    @cached_property
    def ranks(self) -> int:
        """How many ranks there are."""
        return math.prod(self.shape)

    @cached_property
    def folded(self) -> tuple[int, ...]:
        """Positions of the axes along which all ranks do the same."""
        return tuple(i for i, axis in enumerate(self.axes) if not axis.distinct)

    @cached_property
    def offsets(self) -> Ranks:
        """[ranks]: a rank's place in its class: what `shift` adds to the representative."""
        return self._part(distinct=False)

    @cached_property
    def representatives(self) -> Ranks:
        """[ranks]: the rank that stands for each."""
        return self._part(distinct=True)

    @cached_property
    def classes(self) -> tuple[int, ...]:
        """The representatives, ascending."""
        return tuple(np.unique(self.representatives).tolist())

    @cached_property
    def copies(self) -> tuple[int, ...]:
        """The offsets there are, ascending: 0 first."""
        return tuple(np.unique(self.offsets).tolist())

    def _part(self, *, distinct: bool) -> Ranks:
        """[ranks]: the rank with the other kind of axes at 0."""
        coordinates = np.array(np.unravel_index(np.arange(self.ranks), self.shape))
        for i, axis in enumerate(self.axes):
            if axis.distinct is not distinct:
                coordinates[i] = 0
        part: Ranks = np.ravel_multi_index(tuple(coordinates), self.shape).astype(np.int64)
        part.setflags(write=False)
        return part

    def shift(self, ranks: Sequence[int] | Ranks, offset: int) -> Ranks:
        """Ranks moved by an offset along the folded axes, around their ends."""
        moved = np.array(np.unravel_index(np.asarray(ranks, np.int64), self.shape))
        step = np.unravel_index(offset, self.shape)
        for i in self.folded:
            moved[i] = (moved[i] + step[i]) % self.shape[i]
        found: Ranks = np.ravel_multi_index(tuple(moved), self.shape).astype(np.int64)
        return found

    def unshift(self, ranks: Sequence[int] | Ranks, offset: int) -> Ranks:
        """What `shift` undoes."""
        back = [-int(c) % size for c, size in zip(self.at(offset), self.shape, strict=True)]
        return self.shift(ranks, int(np.ravel_multi_index(tuple(back), self.shape)))

    def at(self, rank: int) -> tuple[int, ...]:
        """A rank's coordinates."""
        return tuple(int(c) for c in np.unravel_index(rank, self.shape))

    def describe(self, rank: int) -> str:
        """ "rank 137 (dp=1 pp=1 tp=1)"."""
        where = zip(self.axes, self.at(rank), strict=True)
        return f"rank {rank} ({' '.join(f'{axis.name}={c}' for axis, c in where)})"

    def witnesses(self, which: str) -> tuple[int, ...]:
        """Offsets at which ranks run to check that they do as their representatives do.

        Args:
            which: "one": those at the far end of every folded axis; "all": every rank; "none".
        """
        if which not in WITNESSES:
            raise FoldError(f"witness: got {which!r}, expected one of {', '.join(WITNESSES)}")
        return (
            {"one": self.copies[-1:], "all": self.copies, "none": ()}[which]
            if (len(self.copies) > 1)
            else ()
        )

    def check_group(self, name: str, members: Sequence[int]) -> None:
        """Refuse a group that the copies of its members would disagree on.

        Every member must see its class's group, moved to its own place, as this very group.

        Raises:
            FoldError: Ranks along a folded axis are in different groups of this kind.
        """
        own = np.sort(np.asarray(members, np.int64))
        offsets = self.offsets[own]
        # Equal under a and under b: equal under the difference. So steps from one member will do.
        home = self.unshift(own, int(offsets[0]))
        for offset in np.unique(offsets).tolist():
            if not np.array_equal(np.sort(self.shift(home, offset)), own):
                other = int(own[offsets == offset][0])
                self._refuse(name, own, int(own[0]), other)

    def _refuse(self, name: str, own: Ranks, one: int, other: int) -> None:
        folded = ", ".join(self.axes[i].name for i in self.folded)
        shown = ", ".join(map(str, own[:8])) + (", ..." if len(own) > 8 else "")
        raise FoldError(
            f"fold: group {name!r} of ranks {shown} cannot be folded over {folded}: moved from "
            f"{self.describe(one)} to {self.describe(other)}, it is another group. Split the axis "
            "in two (tp=8 as tp_far=2 tp=4), or mark it as distinct (*)"
        )


@dataclass(frozen=True)
class Folding:
    """How a run is folded.

    Attributes:
        mesh: Ranks and their classes.
        witness: Whose ops are checked against those of its representative: "one" rank of each
            class, that at the far end of every folded axis; "all"; or "none".
        live: Ranks that run, ascending: the representatives and the witnesses.
    """

    mesh: Mesh
    witness: str = "one"
    live: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        mesh = self.mesh
        checked = mesh.witnesses(self.witness)
        columns = (0, *(offset for offset in checked if offset))
        live = sorted(int(r) for offset in columns for r in mesh.shift(mesh.classes, offset))
        object.__setattr__(self, "live", tuple(live))

    @classmethod
    def parse(cls, text: str, ranks: int | None = None, witness: str = "one") -> Folding:
        """Read `Mesh.parse`'s text.

        Args:
            text: "dp=8 pp=16* tp=8".
            ranks: How many the run is to have; None: as many as the mesh.
            witness: See the class.

        Raises:
            FoldError: It does not read, or the mesh has another number of ranks.
        """
        mesh = Mesh.parse(text)
        if ranks is not None and ranks != mesh.ranks:
            raise FoldError(f"fold: {text!r} has {mesh.ranks} ranks, expected {ranks}, as asked")
        return cls(mesh, witness)
