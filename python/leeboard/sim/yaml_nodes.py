"""YAML as nodes that know their place: what platform files are read from.

Scalars stay text: what reads a node decides what the text means, so that nothing depends on YAML's
own idea of `no`, `010` or `1e9`. Anchors, aliases and merge keys work; tags do not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

from leeboard.sim.names import PlatformError, nearest

MOST_BYTES = 16 << 20
_MOST_NODES = 500_000
_DEEPEST = 32

T = TypeVar("T")


@dataclass(slots=True)
class Node:
    """A scalar (text), list or mapping, with the line and column where it begins, from 1 on."""

    value: str | list[Node] | dict[str, tuple[Node, Node]]
    line: int
    column: int
    # Nodes in it, aliases counted in full.
    size: int = 1
    merged: list[tuple[str, tuple[Node, Node]]] = field(default_factory=list)


def read(content: bytes, file: str) -> At:
    """Parse one YAML document.

    Args:
        content: UTF-8, 16 MiB at most.
        file: Its name, for errors.

    Raises:
        PlatformError: Too large, not UTF-8, not YAML, a tag, a key given twice, an unknown alias,
            more than 500,000 nodes (aliases counted in full), nested more than 32 deep.
        ImportError: PyYAML is missing.
    """
    try:
        import yaml
    except ImportError as error:
        raise ImportError("platform files need PyYAML: pip install 'leeboard[sim]'") from error

    if len(content) > MOST_BYTES:
        raise PlatformError(
            f"{file}: {len(content)} bytes, expected at most {MOST_BYTES}; describe large "
            "platforms by `topology:`, or groups with `count:`"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PlatformError(f"{file}: not UTF-8 (byte {error.start})") from None
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    tree = _Tree(file)
    try:
        for event in yaml.parse(text, Loader=loader):
            tree.take(type(event).__name__, event)
    except yaml.YAMLError as error:
        raise PlatformError(_explain(file, error)) from None
    except PlatformError:
        raise
    except (ValueError, OverflowError) as error:
        raise PlatformError(f"{file}: not YAML: {error}") from None
    if tree.root is None:
        raise PlatformError(f"{file}: empty, expected a platform")
    return At(tree.root, file, "")


def _explain(file: str, error: Any) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"{file}{where}: not YAML: {problem}"


class _Tree:
    """Builds nodes of events."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.root: Node | None = None
        self.documents = 0
        self.anchors: dict[str, Node] = {}
        # Open collections: node, anchor, and a mapping's key that waits for its value.
        self.open: list[tuple[Node, str | None, list[Node]]] = []

    def fail(self, event: Any, message: str) -> NoReturn:
        mark = event.start_mark
        raise PlatformError(f"{self.file}:{mark.line + 1}:{mark.column + 1}: {message}")

    def take(self, kind: str, event: Any) -> None:
        if kind == "DocumentStartEvent":
            self.documents += 1
            if self.documents > 1:
                self.fail(event, "a second document, expected one")
        elif kind == "AliasEvent":
            if event.anchor not in self.anchors:
                self.fail(event, f"unknown alias *{event.anchor}")
            self.add(self.anchors[event.anchor], event)
        elif kind in ("ScalarEvent", "SequenceStartEvent", "MappingStartEvent"):
            if event.tag is not None:
                self.fail(event, f"tags are not allowed, got {event.tag[:40]!r}")
            place = event.start_mark.line + 1, event.start_mark.column + 1
            if kind == "ScalarEvent":
                # `key:`, `key: ~` and `key: null` give nothing; "null" in quotes is a name.
                nothing = event.implicit[0] and event.value in ("~", "null")
                node = Node("" if nothing else event.value, *place)
                if event.anchor:
                    self.anchors[event.anchor] = node
                self.add(node, event)
                return
            if len(self.open) >= _DEEPEST:
                self.fail(event, f"nested more than {_DEEPEST} deep")
            node = Node([] if kind == "SequenceStartEvent" else {}, *place)
            self.open.append((node, event.anchor, []))
        elif kind in ("SequenceEndEvent", "MappingEndEvent"):
            node, anchor, _ = self.open.pop()
            if isinstance(node.value, dict):
                for key, entry in node.merged:
                    node.value.setdefault(key, entry)
            # Known from here on only: a node cannot hold itself.
            if anchor:
                self.anchors[anchor] = node
            self.add(node, event)

    def add(self, node: Node, event: Any) -> None:
        if not self.open:
            self.root = node
            return
        into, _, waiting = self.open[-1]
        into.size += node.size
        if into.size > _MOST_NODES:
            self.fail(
                event,
                f"more than {_MOST_NODES} values, aliases counted in full; describe large "
                "platforms by `topology:`, or groups with `count:`",
            )
        if isinstance(into.value, list):
            into.value.append(node)
        elif isinstance(into.value, dict):
            if not waiting:
                if not isinstance(node.value, str):
                    self.fail(event, "expected a name as the key")
                if node.value in into.value:
                    self.fail(event, f"the key {node.value!r} is given twice")
                waiting.append(node)
                return
            key = waiting.pop()
            if key.value == "<<":
                self.merge(into, node, event)
            else:
                into.value[str(key.value)] = key, node

    def merge(self, into: Node, node: Node, event: Any) -> None:
        for source in node.value if isinstance(node.value, list) else [node]:
            if not isinstance(source.value, dict):
                self.fail(event, "<<: expected a mapping, or a list of mappings")
            into.merged.extend(source.value.items())


@dataclass(frozen=True, slots=True)
class At:
    """A node, and how to get there: where errors point."""

    node: Node
    file: str
    path: str

    def error(self, message: str) -> PlatformError:
        """An error that names file, line, column and path."""
        where = f"{self.file}:{self.node.line}:{self.node.column}: "
        text = where + (f"{self.path}: " if self.path else "") + message
        return PlatformError(text.encode("utf-8", "backslashreplace").decode())

    def fail(self, message: str) -> NoReturn:
        """Raise that error."""
        raise self.error(message)

    def call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """What a function gives; its ValueError becomes one that points here."""
        try:
            return function(*args, **kwargs)
        except ValueError as error:
            name, colon, rest = str(error).partition(": ")
            keys = self.node.value if isinstance(self.node.value, dict) else {}
            if colon and name in keys:
                raise self.mapping()[name].error(rest) from None
            own = name == self.path.rpartition(".")[2]
            raise self.error(rest if own else str(error)) from None

    def what(self) -> str:
        """The node in a few words."""
        value = self.node.value
        if isinstance(value, str):
            return repr(value) if len(value) <= 60 else repr(value[:60]) + "..."
        return "a list" if isinstance(value, list) else "a mapping"

    def mapping(self, known: Collection[str] | None = None) -> dict[str, At]:
        """The values of a mapping, by key.

        Args:
            known: The keys that are allowed; None: any.
        """
        if not isinstance(self.node.value, dict):
            self.fail(f"got {self.what()}, expected a mapping")
        if known is not None:
            for key, (at, _) in self.node.value.items():
                if key not in known:
                    hint = nearest(key, known)
                    At(at, self.file, self.path).fail(
                        f"unknown key {key[:60]!r}{hint}; allowed are {', '.join(known)}"
                    )
        start = f"{self.path}." if self.path else ""
        return {
            key: At(value, self.file, start + key) for key, (_, value) in self.node.value.items()
        }

    def items(self) -> list[At]:
        """The values of a list."""
        if not isinstance(self.node.value, list):
            self.fail(f"got {self.what()}, expected a list")
        return [
            At(value, self.file, f"{self.path}[{number}]")
            for number, value in enumerate(self.node.value)
        ]

    def text(self) -> str:
        """A scalar that is not empty."""
        if not isinstance(self.node.value, str) or not self.node.value:
            self.fail(f"got {self.what()}, expected a value")
        return self.node.value

    def integer(self, least: int, most: int) -> int:
        """A whole number in decimal digits."""
        text = self.text()
        plain = text.isascii() and text.isdecimal() and len(text) <= 20
        if not plain or not least <= int(text) <= most or str(int(text)) != text:
            self.fail(f"got {self.what()}, expected a whole number from {least} to {most}")
        return int(text)

    def boolean(self) -> bool:
        """`true` or `false`."""
        text = self.text()
        if text not in ("true", "false"):
            self.fail(f"got {self.what()}, expected true or false")
        return text == "true"
