"""From ordered Chakra nodes to a program.

A rank's own thread computes. Messages and collectives run beside it: it begins them as soon as what
they depend on has begun, and waits for one where a node computes that depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from leeboard.sim.chakra_node import COLLECTIVE, COMPUTE, RECV, SEND, Node
from leeboard.sim.handles import Handle
from leeboard.sim.members import Rank
from leeboard.sim.ops import ProgramError
from leeboard.sim.program import Program
from leeboard.sim.trace import Trace, TraceError

_STREAMS = 254


def write(graphs: Sequence[Sequence[Node]], order: Sequence[Node]) -> Trace:
    """Add the nodes of all ranks in an order that respects their dependencies."""
    program = Program(len(graphs))
    writers = [_Writer(program[rank]) for rank in range(len(graphs))]
    for node in order:
        writers[node.rank].add(node)
    for writer in writers:
        if writer.handles:
            writer.rank.wait_all()
    return program.trace()


@dataclass
class _Writer:
    rank: Rank
    # Communication under way that the thread has not waited for.
    handles: dict[Node, Handle] = field(default_factory=dict)
    # Communication that must be over before a node counts as over, beside what the thread waited
    # for: itself, or what nodes without cost pass on.
    open: dict[Node, frozenset[Node]] = field(default_factory=dict)
    streams: dict[object, int] = field(default_factory=dict)

    def add(self, node: Node) -> None:
        """Add a node after those it depends on."""
        before: frozenset[Node] = frozenset().union(*(self.open[dep] for dep in node.deps))
        waits = sorted((dep for dep in before if dep in self.handles), key=lambda n: n.id)
        try:
            self.open[node] = self._add(node, waits)
        except ProgramError as error:
            raise TraceError(f"{node!r}: {error}") from None

    def _add(self, node: Node, waits: list[Node]) -> frozenset[Node]:
        if node.type == COMPUTE:
            for dep in waits:
                self.rank.wait(self.handles.pop(dep))
            self._compute(node)
            return frozenset()
        if node.type == RECV:
            # It may be posted before what it depends on is over; who uses it waits for both.
            self.handles[node] = self.rank.irecv(node.peer, node.tag, node.size)
            return frozenset([node, *waits])
        if node.type in (SEND, COLLECTIVE):
            stream = self._stream(node, late=bool(waits))
            for dep in waits:
                self.rank.wait(self.handles[dep], stream=stream)
            self.handles[node] = self._begin(node, stream)
            return frozenset([node])
        return frozenset(waits)

    def _compute(self, node: Node) -> None:
        if node.work is not None:
            if any(node.work):
                self.rank.compute(flops=node.work[0], bytes=node.work[1])
        elif node.seconds > 0:
            self.rank.compute(seconds=node.seconds)

    def _begin(self, node: Node, stream: int) -> Handle:
        if node.type == SEND:
            assert node.peer is not None
            return self.rank.isend(node.peer, node.size, node.tag, stream=stream)
        handle = self.rank._collective(
            node.collective,
            node.size,
            node.peer,
            group=node.group,
            async_op=True,
            stream=stream,
        )
        assert handle is not None
        return handle

    def _stream(self, node: Node, *, late: bool) -> int:
        """Where communication waits for other communication without holding the rank up.

        What must keep its order goes to one stream: collectives of a group, messages of a receiver
        and tag from the first on that had to wait (`late`).
        """
        key: tuple[object, ...] = ("group", node.group)
        if node.type == SEND:
            key = ("to", node.peer, node.tag)
            if not late and key not in self.streams:
                return 0
        return self.streams.setdefault(key, len(self.streams) % _STREAMS + 1)
