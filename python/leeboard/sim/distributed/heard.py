"""What the ranks of a folded run did, for the trace of all ranks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leeboard.sim.distributed.expand import Ops, expand, moves
from leeboard.sim.distributed.mesh import Folding
from leeboard.sim.distributed.witness import check
from leeboard.sim.ops import OP, OpKind
from leeboard.sim.trace import Trace


@dataclass
class Moved:
    """What the engine was not told: who the ranks that a rank's ops name really are."""

    peers: list[int] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    roots: list[int] = field(default_factory=list)


class Heard:
    """What each rank that ran did, in numbers of all ranks.

    Args:
        folding: Who ran.
        program: What `SimLive.program` returned.
        moved: Whom their ops name, for each that ran.
        groups: Members of the groups after the first.
        names: Of the marks.

    Attributes:
        lists: By rank, its ops.
        groups: As given.

    Raises:
        FoldError: A witness did something else than its representative.
    """

    def __init__(
        self,
        folding: Folding,
        program: Mapping[str, Any],
        moved: Sequence[Moved],
        groups: list[tuple[int, ...]],
        names: Sequence[str],
    ) -> None:
        self.lists: dict[int, Ops] = {}
        self.groups = groups
        self._folding, self._names = folding, names
        bounds = [*map(int, program["size_offsets"]), len(program["sizes"])]
        self._sizes = [program["sizes"][a:b] for a, b in itertools.pairwise(bounds)]
        # By rank: how many of its first ops are part of the program.
        self._parts: dict[int, NDArray[np.int64]] = {}
        ops = np.asarray(program["ops"]).view(OP)
        for rank, begin, end, there in zip(
            folding.live, program["begin"], program["end"], moved, strict=True
        ):
            own = ops[int(begin) : int(end)]
            part = ~_between_ranks_that_run(own)
            self._parts[rank] = np.concatenate([[0], np.cumsum(part)])
            own = own[part]
            pairs, collectives = moves(own)
            own["peer"][pairs] = there.peers
            own["tag"][collectives] = there.groups
            own["peer"][collectives] = there.roots
            self.lists[rank] = own
        for rank in set(folding.live).difference(folding.mesh.classes):
            check(folding.mesh, rank, self.lists, groups)

    def places(self, places: Mapping[int, Sequence[int]]) -> dict[int, list[int]]:
        """Places in `lists`, from such among the ops that the engine was given; by rank."""
        return {rank: self._parts[rank][own].tolist() for rank, own in sorted(places.items())}

    def expanded(self, lists: Mapping[int, Ops]) -> Trace:
        """The trace of all ranks, from what the representatives did."""
        mesh = self._folding.mesh
        return expand(
            mesh,
            {rank: lists[rank] for rank in mesh.classes},
            self.groups,
            sizes=self._sizes,
            names=self._names,
            metadata={"fold": str(mesh), "witness": self._folding.witness},
        )


def _between_ranks_that_run(ops: Ops) -> NDArray[np.bool_]:
    """What is no part of the program: waiting at stores, and looking at what is over."""
    kind = ops["kind"]
    apart: NDArray[np.bool_] = np.isin(kind, (OpKind.SIGNAL, OpKind.AWAIT))
    apart |= (kind == OpKind.SLEEP) & (ops["a"] == 0)
    return apart
