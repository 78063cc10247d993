"""Import of Chakra execution traces (MLCommons), one file per rank.

docs/sim/importing.md says how a graph becomes a program, and what is lost.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from leeboard.sim.chakra_node import (
    COLLECTIVE,
    COMPUTE,
    INVALID,
    LOAD,
    METADATA,
    RECV,
    SEND,
    STORE,
    Node,
)
from leeboard.sim.chakra_order import emission_order
from leeboard.sim.chakra_schema import read_nodes
from leeboard.sim.chakra_write import write
from leeboard.sim.trace import Trace, TraceError

# Collectives by CollectiveCommType.
_UNSUPPORTED = {8: "STORAGE_NODE", 9: "BATCH_NODE", 10: "CHECKPOINT_NODE"}
COLLECTIVES = (
    "all_reduce",
    "reduce",
    "all_gather",
    "gather",
    "scatter",
    "broadcast",
    "all_to_all",
    "reduce_scatter",
    "reduce_scatter",
    "barrier",
)
_ROOTS = ("root_rank", "root", "comm_src")
_ET = re.compile(r"(.+)\.(\d{1,7})\.et(\.gz)?")
_LARGEST_TAG = 2**31 - 1

Costs = Literal["auto", "work", "recorded"]


def load_chakra(
    path: str | Path | Sequence[str | Path],
    *,
    groups: Mapping[str, Sequence[int]] | None = None,
    costs: Costs = "auto",
) -> Trace:
    """Read Chakra execution traces.

    Args:
        path: The files in the order of their ranks; or one of PREFIX.0.et, PREFIX.1.et, ..., or the
            PREFIX. Files may be gzipped.
        groups: Ranks of process groups by name, beside those that the traces define.
        costs: "work": computing costs what num_ops and tensor_size say; "recorded": what it took
            when it was recorded; "auto": work where there is some, else what it took.

    Raises:
        TraceError: A file is cut off or damaged, or a graph has a cycle, a missing dependency, an
            unknown type or group, or lacks an attribute: the file, rank and node are named.
        ImportError: The package protobuf is not installed.
        OSError: A file cannot be opened.
    """
    if costs not in ("auto", "work", "recorded"):
        raise ValueError(f"costs: got {costs!r}, expected 'auto', 'work' or 'recorded'")
    files = _files(path)
    known = {name: tuple(ranks) for name, ranks in (groups or {}).items()}
    graphs = [
        _nodes(_Reader(file, rank, len(files), dict(known), costs))
        for rank, file in enumerate(files)
    ]
    return write(graphs, emission_order(graphs))


def _nodes(reader: _Reader) -> list[Node]:
    try:
        return reader.nodes()
    except TraceError as error:
        text = str(error)
        start = str(reader.file)
        raise TraceError(text if text.startswith(start) else f"{start}: {text}") from None


def _files(path: str | Path | Sequence[str | Path]) -> list[Path]:
    if not isinstance(path, str | Path):
        return [Path(file) for file in path]
    given = Path(path)
    match = _ET.fullmatch(given.name)
    prefix = given.with_name(match[1]) if match else given
    found = {}
    for file in prefix.parent.glob(f"{_escaped(prefix.name)}.*.et*"):
        at = _ET.fullmatch(file.name)
        if at is not None and at[1] == prefix.name:
            found[int(at[2])] = file
    if not found:
        if given.is_file():
            return [given]
        raise FileNotFoundError(f"{given}: there is no {prefix.name}.0.et")
    missing = [rank for rank in range(len(found)) if rank not in found]
    if missing:
        raise TraceError(f"{prefix}.{missing[0]}.et: missing, and there are {len(found)} files")
    return [found[rank] for rank in range(len(found))]


def _escaped(name: str) -> str:
    return re.sub(r"([\[*?])", r"[\1]", name)


@dataclass
class _Reader:
    """Reads one rank's file."""

    file: Path
    rank: int
    ranks: int
    groups: dict[str, tuple[int, ...]]
    costs: Costs

    def nodes(self) -> list[Node]:
        """The nodes in the order of the file, with their dependencies."""
        messages = list(read_nodes(self.file))
        for message in messages:
            if message.type == METADATA:
                self._define_groups(message)
        nodes: dict[int, Node] = {}
        for message in messages:
            node = self._node(message)
            if node.id in nodes:
                raise TraceError(f"{node!r}: this id is there twice")
            nodes[node.id] = node
        for message in messages:
            node = nodes[message.id]
            for id_ in dict.fromkeys([*message.data_deps, *message.ctrl_deps]):
                if id_ not in nodes:
                    raise TraceError(f"{node!r} depends on node {id_}, which is missing")
                node.deps.append(nodes[id_])
        return list(nodes.values())

    def _node(self, message: Any) -> Node:
        kind = message.type
        node = Node(self.rank, message.id, message.name, kind)
        if kind in _UNSUPPORTED:
            raise TraceError(f"{node!r}: {_UNSUPPORTED[kind]} is not supported")
        if not INVALID <= kind <= COLLECTIVE:
            raise TraceError(f"{node!r}: unknown type {kind}")
        values = {attr.name: attr for attr in message.attr}
        node.seconds = message.duration_micros * 1e-6
        if kind in (LOAD, STORE):
            node.type = COMPUTE
            node.work = (0, self._integer(node, values, "tensor_size"))
        elif kind == COMPUTE:
            self._cost(node, values)
        elif kind in (SEND, RECV):
            node.size = self._integer(node, values, "comm_size")
            peer = self._integer(node, values, "comm_dst" if kind == SEND else "comm_src")
            if peer >= self.ranks:
                raise TraceError(f"{node!r}: peer {peer}, of {self.ranks} ranks")
            node.peer = peer
            node.tag = self._integer(node, values, "comm_tag", 0) & _LARGEST_TAG
        elif kind == COLLECTIVE:
            self._collective(node, values)
        else:
            node.type = METADATA
        return node

    def _cost(self, node: Node, values: Mapping[str, Any]) -> None:
        flops = self._integer(node, values, "num_ops", 0)
        traffic = self._integer(node, values, "tensor_size", 0)
        if self.costs == "work" or (self.costs == "auto" and flops > 0):
            node.work = (flops, traffic)

    def _collective(self, node: Node, values: Mapping[str, Any]) -> None:
        kind = self._integer(node, values, "comm_type")
        if kind >= len(COLLECTIVES):
            raise TraceError(f"{node!r}: unknown collective {kind}")
        node.collective = COLLECTIVES[kind]
        if node.collective != "barrier":
            node.size = self._integer(node, values, "comm_size")
        dims = values.get("involved_dim")
        if dims is not None and not all(dims.bool_list.values):
            raise TraceError(
                f"{node!r}: involved_dim leaves dimensions out; name the ranks by pg_name and "
                "groups=..."
            )
        node.group = self._group(node, values)
        if node.collective in ("reduce", "gather", "scatter", "broadcast"):
            members = range(self.ranks) if node.group is None else node.group
            name = next((name for name in _ROOTS if name in values), None)
            node.peer = members[0] if name is None else self._integer(node, values, name)
            if node.peer not in members:
                raise TraceError(f"{node!r}: root {node.peer} is not in its group")

    def _group(self, node: Node, values: Mapping[str, Any]) -> tuple[int, ...] | None:
        name = values["pg_name"].string_val if "pg_name" in values else ""
        ranks = self.groups.get(name, ())
        if not ranks:
            # As ASTRA-sim has it: no name and "0" are all ranks; so is a group without ranks.
            if name in ("", "0") or name in self.groups:
                return None
            raise TraceError(
                f"{node!r}: unknown group {name!r}; known: {', '.join(self.groups) or 'none'}. "
                "groups={name: ranks} defines more"
            )
        if self.rank not in ranks or len(set(ranks)) < len(ranks) or max(ranks) >= self.ranks:
            raise TraceError(f"{node!r}: group {name!r} of ranks {list(ranks)!r:.80}")
        return ranks

    def _define_groups(self, message: Any) -> None:
        """Groups that PyTorch recorded: a JSON list in the first input of a metadata node."""
        text = message.inputs.values
        start, end = text.find("[{"), text.rfind("}]")
        if "pg_name" not in text or start < 0 or end < start:
            return
        try:
            entries = json.loads(text[start : end + 2])
            for entry in entries:
                ranks = tuple(int(rank) for rank in entry["ranks"])
                self.groups.setdefault(str(entry["pg_name"]), ranks)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise TraceError(
                f"rank {self.rank}, node {message.id}: unreadable process groups ({error})"
            ) from None

    def _integer(
        self, node: Node, values: Mapping[str, Any], name: str, default: int | None = None
    ) -> int:
        """An attribute of any numeric type, as an integer that is not negative."""
        attr = values.get(name)
        if attr is None:
            if default is None:
                raise TraceError(f"{node!r}: it has no attribute {name}")
            return default
        kind = attr.WhichOneof("value")
        value = getattr(attr, kind) if kind else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**62:
            raise TraceError(f"{node!r}: {name} is {value!r:.40}, expected a number from 0 up")
        return round(value)
