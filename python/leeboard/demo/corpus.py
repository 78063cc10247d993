"""The corpus: functions of the Python standard library, parsed with `ast`.

A function's signature and docstring are the user's turn, its body is the assistant's.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import os
import sysconfig
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

# Tests repeat themselves; the rest is not the standard library's own code.
SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "_bundled"}
)


@dataclasses.dataclass(frozen=True)
class Function:
    """One function of the corpus. `user + body` is its source, dedented.

    Attributes:
        file: Path of its file, relative to the corpus' root.
        name: Its name.
        user: Signature and docstring (if it has one).
        body: Everything after.
        documented: It has a docstring.
    """

    file: str
    name: str
    user: str
    body: str
    documented: bool


def standard_library() -> Path:
    """Where the running Python keeps its standard library."""
    return Path(sysconfig.get_path("stdlib"))


def source_files(root: Path) -> list[Path]:
    """Python files under `root` in a fixed order, without tests and installed packages."""
    found: list[Path] = []
    for folder, below, names in os.walk(root):
        below[:] = [name for name in below if name not in SKIPPED_FOLDERS]
        found += (Path(folder, name) for name in names if name.endswith(".py"))
    return sorted(found)


def fingerprint(root: Path, files: Iterable[Path]) -> str:
    """Hash of the files' names and sizes: does the corpus change between two runs?"""
    listing = "\n".join(f"{path.relative_to(root)} {path.stat().st_size}" for path in files)
    return hashlib.sha256(listing.encode()).hexdigest()[:16]


def functions_of(text: str, file: str) -> Iterator[Function]:
    """Outermost functions and methods of a module's source; nested ones stay in their owner's body.

    Functions with nothing but a docstring are left out.

    Raises:
        SyntaxError: `text` is no Python of the running version.
    """
    with warnings.catch_warnings():
        # Invalid escapes and the like in somebody else's source.
        warnings.simplefilter("ignore")
        tree = ast.parse(text)
    # The offsets of `ast` count UTF-8 bytes; a form feed does not end a line for it.
    lines = [line.encode() for line in text.split("\n")]
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            function = _function(node, lines, file)
            if function is not None:
                yield function
        else:
            stack.extend(reversed(list(ast.iter_child_nodes(node))))


def read_corpus(root: Path, files: Iterable[Path]) -> list[Function]:
    """The distinct functions of the files; unreadable files are passed over."""
    seen: set[tuple[str, str]] = set()
    functions = []
    for path in files:
        try:
            with tokenize.open(path) as stream:
                found = list(functions_of(stream.read(), path.relative_to(root).as_posix()))
        except (SyntaxError, UnicodeDecodeError, ValueError, RecursionError):
            continue
        for function in found:
            if (function.user, function.body) not in seen:
                seen.add((function.user, function.body))
                functions.append(function)
    return functions


def is_held_out(file: str, seed: int, share: float) -> bool:
    """Whether a file belongs to the held-out part: a hash of its name, the same on every run."""
    return draw(seed, file) < share


def draw(seed: int, text: str) -> float:
    """A number in [0, 1) that follows from the seed and the text alone."""
    digest = hashlib.sha256(f"{seed}:{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _function(
    node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[bytes], file: str
) -> Function | None:
    documented = ast.get_docstring(node, clean=False) is not None
    if documented and len(node.body) == 1:
        return None
    start = (node.lineno, 0)
    end = (node.end_lineno or node.lineno, node.end_col_offset or 0)
    if documented:
        docstring = node.body[0]
        cut = _next_line(docstring.end_lineno or docstring.lineno, node.body[1])
    else:
        # The header ends on the line before the body, or on the body's own line.
        cut = _next_line(_header_end(node, lines), node.body[0])
    user = _dedent(_between(lines, start, cut), node.col_offset)
    body = _dedent(_between(lines, cut, end), node.col_offset)
    if not body.strip():
        return None
    return Function(file, node.name, user, body + "\n", documented)


def _header_end(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[bytes]) -> int:
    """Line of the colon that ends the signature: the first from its last part on that ends in one.

    A comment between colon and body belongs to the body.
    """
    known = [part for part in ast.walk(node.args) if isinstance(part, (ast.arg, ast.expr))]
    if node.returns is not None:
        known.append(node.returns)
    last = max((part.end_lineno or part.lineno for part in known), default=node.lineno)
    for line in range(last, node.body[0].lineno):
        if lines[line - 1].split(b"#")[0].rstrip().endswith(b":"):
            return line
    return node.body[0].lineno


def _next_line(line: int, following: ast.stmt) -> tuple[int, int]:
    """The position after `line`, or the following statement's own if it shares the line."""
    if following.lineno <= line:
        return following.lineno, following.col_offset
    return line + 1, 0


def _between(lines: list[bytes], start: tuple[int, int], end: tuple[int, int]) -> str:
    """Source from one (line from 1, byte) to another."""
    (first, begin), (last, stop) = start, end
    if first == last:
        return lines[first - 1][begin:stop].decode()
    tail = lines[last - 1][:stop] if stop else b""
    parts = [lines[first - 1][begin:], *lines[first : last - 1], tail]
    return b"\n".join(parts).decode()


def _dedent(text: str, margin: int) -> str:
    """Take up to `margin` leading blanks off every line; less where a string has fewer."""
    lines = text.split("\n")
    cut = [len(line) - len(line.lstrip(" \t")) for line in lines]
    return "\n".join(line[min(blank, margin) :] for line, blank in zip(lines, cut, strict=True))
