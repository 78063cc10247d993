"""Which algorithm a collective uses: rules by ranks and bytes, of which the first that fits holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leeboard.sim.collectives import supported
from leeboard.sim.names import PlatformError, integer, nearest
from leeboard.sim.ops import ALGORITHMS, COLLECTIVES
from leeboard.sim.parts import UNLIMITED, Quantity
from leeboard.sim.units import SIZE

_MOST_RANKS = 2**32 - 1


@dataclass(frozen=True)
class Rule:
    """One line of a table: this collective, of so many ranks and bytes, uses this algorithm.

    Attributes:
        collective: "all_reduce", "all_gather", "reduce_scatter", "broadcast", "reduce", "gather",
            "scatter", "all_to_all" or "barrier".
        algorithm: "ring", "recursive_doubling", "binomial_tree", "direct", "pairwise",
            "hierarchical", "gloo_ring" or "gloo_tree"; not every collective has every one.
        min_ranks: At least so many.
        max_ranks: At most so many.
        min_bytes: At least so many bytes passed in by a rank.
        max_bytes: At most so many, or "unlimited".
    """

    collective: str
    algorithm: str
    min_ranks: int = 1
    max_ranks: int = _MOST_RANKS
    min_bytes: Quantity = Quantity(SIZE, 0)
    max_bytes: Quantity = Quantity(SIZE, "unlimited", unlimited=UNLIMITED)

    def __post_init__(self) -> None:
        _known("collective", self.collective, COLLECTIVES)
        _known("algorithm", self.algorithm, ALGORITHMS[1:])
        algorithms = supported(self.collective)
        if self.algorithm not in algorithms:
            raise PlatformError(
                f"algorithm: {self.collective} has none named {self.algorithm!r}, expected one of "
                f"{', '.join(algorithms)}"
            )
        for name in ("min_ranks", "max_ranks"):
            integer(name, getattr(self, name), 1, _MOST_RANKS)
        if self.max_ranks < self.min_ranks or self.max_bytes < self.min_bytes:
            raise PlatformError(f"rule of {self.collective}: the least is more than the most")


def _known(name: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        hint = nearest(str(given), known)
        raise PlatformError(f"{name}: got {given!r}{hint}, expected one of {', '.join(known)}")


Table = str | tuple[Rule, ...]

# What PyTorch does over gloo, whatever the size: gloo's allreduce.cc, allgather.cc, broadcast.cc,
# reduce.cc, gather.cc, scatter.cc, alltoall.cc, barrier.cc. Its reduce_scatter is torch's own: an
# all_reduce of which each rank keeps a part.
GLOO = (
    Rule("all_reduce", "gloo_ring"),
    Rule("all_gather", "gloo_ring"),
    Rule("reduce_scatter", "gloo_ring"),
    Rule("broadcast", "gloo_tree"),
    Rule("reduce", "gloo_ring"),
    Rule("gather", "direct"),
    Rule("scatter", "direct"),
    Rule("all_to_all", "direct"),
    Rule("barrier", "recursive_doubling"),
)

# Like NCCL, and simpler: NCCL reckons the time of ring and tree from the topology it finds, and its
# trees pass on pieces; here sizes decide, and trees pass on whole tensors. Chains and rings of
# pieces for one-to-all and all-to-one, grouped sends for the rest; a barrier is an all_reduce of
# one element.
NCCL = (
    Rule("all_reduce", "binomial_tree", max_ranks=8, max_bytes="64 KiB"),
    Rule("all_reduce", "binomial_tree", min_ranks=9, max_ranks=64, max_bytes="512 KiB"),
    Rule("all_reduce", "binomial_tree", min_ranks=65, max_bytes="4 MiB"),
    Rule("all_reduce", "ring"),
    Rule("all_gather", "ring"),
    Rule("reduce_scatter", "ring"),
    Rule("broadcast", "ring"),
    Rule("reduce", "ring"),
    Rule("gather", "direct"),
    Rule("scatter", "direct"),
    Rule("all_to_all", "direct"),
    Rule("barrier", "binomial_tree"),
)

TABLES: dict[str, tuple[Rule, ...]] = {"gloo": GLOO, "nccl": NCCL}


def table(given: str | Iterable[Rule]) -> Table:
    """A table as platforms keep it: its name, or its rules.

    Raises:
        PlatformError: An unknown name, or something that is no rule.
    """
    if isinstance(given, str):
        _known("collectives", given, tuple(TABLES))
        return given
    rules = tuple(given)
    for rule in rules:
        if not isinstance(rule, Rule):
            raise PlatformError(f"collectives: got {rule!r}, expected a Rule, or a table's name")
    return rules


def core(given: Table) -> NDArray[np.uint64]:
    """Rows (collective, min_ranks, max_ranks, min_bytes, max_bytes, algorithm), [rules, 6]."""
    rules = TABLES[given] if isinstance(given, str) else given
    rows = [
        (
            COLLECTIVES.index(rule.collective),
            rule.min_ranks,
            rule.max_ranks,
            int(rule.min_bytes),
            int(rule.max_bytes),
            ALGORITHMS.index(rule.algorithm),
        )
        for rule in rules
    ]
    return np.array(rows, np.uint64).reshape(-1, 6)
