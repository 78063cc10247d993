"""A node of a Chakra execution trace, as the importer sees it."""

from __future__ import annotations

from dataclasses import dataclass, field

# NodeType of the schema.
INVALID, METADATA, LOAD, STORE, COMPUTE, SEND, RECV, COLLECTIVE = range(8)


@dataclass(eq=False)
class Node:
    """A node of one rank's graph.

    Attributes:
        rank: Whose.
        id: Unique on the rank.
        name: For people.
        type: COMPUTE, SEND, RECV, COLLECTIVE, or METADATA for what costs nothing.
        deps: Nodes that must be over before.
        work: Flops and bytes of memory traffic; None: the recorded time counts.
        seconds: As recorded.
        size: Bytes sent, received, or passed into a collective.
        peer: The other rank; of a collective, its root (None: none).
        tag: Of a message.
        collective: Its name.
        group: Its ranks; None: all.
    """

    rank: int
    id: int
    name: str
    type: int
    deps: list[Node] = field(default_factory=list)
    work: tuple[int, int] | None = None
    seconds: float = 0.0
    size: int = 0
    peer: int | None = None
    tag: int = 0
    collective: str = ""
    group: tuple[int, ...] | None = None

    def __repr__(self) -> str:
        return f"rank {self.rank}, node {self.id} ({self.name!r:.60})"
