"""In which order the nodes of Chakra graphs begin: one order for all ranks.

A program is a list, a graph is not. The order comes from running the graphs once by rough times: a
rank computes one node at a time, the one with the smallest id of those that are ready;
communication begins when it is ready. Because it is an order in which all ranks can run together,
lists in this order cannot deadlock against each other.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Sequence

from leeboard.sim.chakra_node import COLLECTIVE, COMPUTE, RECV, SEND, Node
from leeboard.sim.trace import TraceError

# Rough: only the order is taken from them.
_FLOPS, _MEMORY, _LINK, _LATENCY = 1e14, 1e12, 1e10, 1e-5


def emission_order(graphs: Sequence[Sequence[Node]]) -> list[Node]:
    """All nodes of all ranks in the order in which they begin.

    Raises:
        TraceError: A graph has a cycle, or ranks wait for each other in a circle.
    """
    schedule = _Schedule(len(graphs))
    for graph in graphs:
        schedule.number(_sorted(graph))
    return schedule.run()


def _sorted(graph: Sequence[Node]) -> list[Node]:
    """A rank's nodes so that each comes after those it depends on, small ids first.

    Raises:
        TraceError: There is a cycle; one of its nodes is named.
    """
    waiting = {node: len(node.deps) for node in graph}
    users: dict[Node, list[Node]] = {node: [] for node in graph}
    for node in graph:
        for dep in node.deps:
            users[dep].append(node)
    ready = [(node.id, node) for node in graph if not node.deps]
    heapq.heapify(ready)
    order = []
    while ready:
        _, node = heapq.heappop(ready)
        order.append(node)
        for user in users[node]:
            waiting[user] -= 1
            if waiting[user] == 0:
                heapq.heappush(ready, (user.id, user))
    if len(order) < len(graph):
        node = min((n for n in graph if waiting[n] > 0), key=lambda n: n.id)
        seen = []
        while node not in seen:
            seen.append(node)
            node = next(dep for dep in node.deps if waiting[dep] > 0)
        circle = " <- ".join(str(n.id) for n in [*seen[seen.index(node) :], node])
        raise TraceError(f"{node!r} depends on itself: {circle}")
    return order


class _Schedule:
    """Runs graphs by rough times."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self.waiting: dict[Node, int] = {}
        self.users: dict[Node, list[Node]] = {}
        # What meets: sends and receives of a pair and tag, collectives of a group.
        self.meeting: dict[Node, list[Node]] = {}
        self.lines: dict[tuple[object, ...], dict[int, list[Node]]] = {}
        # Communication of a kind on a rank begins in one order, which all its partners know.
        self.turns: dict[tuple[object, ...], deque[Node]] = {}
        self.come: set[Node] = set()
        self.order: list[Node] = []
        self.heap: list[tuple[float, int, Node]] = []
        self.ready: dict[int, list[tuple[int, Node]]] = {}
        self.free: dict[int, bool] = {}
        # Ranks that may begin to compute.
        self.woken: set[int] = set()
        self.events = 0

    def number(self, nodes: Sequence[Node]) -> None:
        """Add a rank's nodes, sorted."""
        for node in nodes:
            self.waiting[node] = len(node.deps)
            self.users[node] = []
            for dep in node.deps:
                self.users[dep].append(node)
            for key in self._keys(node):
                self.turns.setdefault((node.rank, node.type, *key), deque()).append(node)
                self.lines.setdefault(key, {}).setdefault(_side(node), []).append(node)
        if nodes:
            self.ready[nodes[0].rank] = []
            self.free[nodes[0].rank] = True

    @staticmethod
    def _keys(node: Node) -> Iterator[tuple[object, ...]]:
        if node.type == SEND:
            yield ("message", node.rank, node.peer, node.tag)
        elif node.type == RECV:
            yield ("message", node.peer, node.rank, node.tag)
        elif node.type == COLLECTIVE:
            yield ("collective", node.group)

    def run(self) -> list[Node]:
        """The order, when every node has begun."""
        self._meet()
        for node in list(self.waiting):
            if self.waiting[node] == 0:
                self._become_ready(node, 0.0)
        self._compute_next(0.0)
        while self.heap:
            now, _, node = heapq.heappop(self.heap)
            if node.type == COMPUTE:
                self.free[node.rank] = True
                self.woken.add(node.rank)
            for user in self.users[node]:
                self.waiting[user] -= 1
                if self.waiting[user] == 0:
                    self._become_ready(user, now)
            if not self.heap or self.heap[0][0] > now:
                self._compute_next(now)
        if len(self.order) < len(self.waiting):
            begun = set(self.order)
            left = [node for node in self.waiting if node not in begun]
            raise TraceError(f"ranks wait for each other in a circle: {left[0]!r} never begins")
        return self.order

    def _meet(self) -> None:
        """Find what meets: the k-th of each side of a line.

        Raises:
            TraceError: A side has fewer than another, or collectives that meet differ.
        """
        for key, sides in self.lines.items():
            counts = {side: len(nodes) for side, nodes in sides.items()}
            if key[0] == "message":
                _, source, target, tag = key
                if counts.get(SEND) != counts.get(RECV):
                    raise TraceError(
                        f"rank {source} sends {counts.get(SEND, 0)} messages of tag {tag} to rank "
                        f"{target}, which receives {counts.get(RECV, 0)}"
                    )
            else:
                self._check_collectives(sides, counts)
            for together in zip(*sides.values(), strict=True):
                for node in together:
                    self.meeting[node] = list(together)

    def _check_collectives(self, sides: dict[int, list[Node]], counts: dict[int, int]) -> None:
        most = max(counts, key=lambda rank: counts[rank])
        last = sides[most][-1]
        members = range(self.ranks) if last.group is None else last.group
        for rank in members:
            if counts.get(rank, 0) < counts[most]:
                raise TraceError(
                    f"{last!r}: not all ranks of its group call as many collectives: rank {rank} "
                    f"calls {counts.get(rank, 0)}, not {counts[most]}"
                )
        for together in zip(*sides.values(), strict=True):
            first = together[0]
            for node in together:
                if (node.collective, node.size, node.peer) != (
                    first.collective,
                    first.size,
                    first.peer,
                ):
                    raise TraceError(
                        f"{node!r} is {node.collective} of {node.size} bytes, and {first!r} is "
                        f"{first.collective} of {first.size}"
                    )

    def _become_ready(self, node: Node, now: float) -> None:
        keys = list(self._keys(node))
        if node.type == COMPUTE:
            heapq.heappush(self.ready[node.rank], (node.id, node))
            self.woken.add(node.rank)
        elif keys:
            self._take_turns(node, keys[0], now)
        else:
            self.order.append(node)
            self._end(node, now)

    def _take_turns(self, node: Node, key: tuple[object, ...], now: float) -> None:
        """Begin communication that is ready, each after those before it in its line."""
        self.come.add(node)
        turn = self.turns[(node.rank, node.type, *key)]
        while turn and turn[0] in self.come:
            first = turn.popleft()
            self.order.append(first)
            self.waiting[first] = -1
            together = self.meeting[first]
            if all(self.waiting[other] == -1 for other in together):
                for other in together:
                    self._end(other, now + _LATENCY + first.size / _LINK)

    def _compute_next(self, now: float) -> None:
        woken, self.woken = self.woken, set()
        for rank in sorted(woken):
            ready = self.ready[rank]
            if self.free[rank] and ready:
                node = heapq.heappop(ready)[1]
                self.free[rank] = False
                self.order.append(node)
                self._end(node, now + _duration(node))

    def _end(self, node: Node, at: float) -> None:
        self.events += 1
        heapq.heappush(self.heap, (at, self.events, node))


def _side(node: Node) -> int:
    """Messages have two sides, collectives one a rank."""
    return node.type if node.type in (SEND, RECV) else node.rank


def _duration(node: Node) -> float:
    if node.work is None:
        return node.seconds
    return max(node.work[0] / _FLOPS, node.work[1] / _MEMORY)
