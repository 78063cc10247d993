"""Files of SimGrid's time-independent traces: actions, a line each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from leeboard.sim.trace import TraceError

# Bytes by datatype id, as SimGrid 3.32 numbers them (MPI_DOUBLE is 0, MPI_INT 1, MPI_CHAR 2, ...);
# measured by tracing one message of each.
_BYTES = (
    *(8, 4, 1, 2, 8, 4, 1, 8, 1, 1, 2, 4, 8, 8, 16, 4, 1),
    *(1, 2, 4, 8, 1, 2, 4, 8, 8, 16, 32, 8, 8, 8, 16, 16, 8, 8, 8, 16, 16),
    *(4, 4, 8, 16, 8, 16, 16, 4, 2, 4, 8, 16, 32),
)
_DOUBLE, _BYTE = 8, 1
_MOST_SIZE = 2**62


@dataclass(frozen=True)
class Action:
    """A line of a trace.

    Attributes:
        file: Where it stands.
        line: From 1 on.
        rank: Who acts.
        name: In lower case.
        arguments: What follows the name.
        default: Bytes of a datatype that is not named.
    """

    file: Path
    line: int
    rank: int
    name: str
    arguments: tuple[str, ...]
    default: int = _BYTE

    def error(self, problem: str) -> TraceError:
        """A TraceError that names the file and the line."""
        return TraceError(f"{self.file}:{self.line}: {problem}")

    def expect(self, least: int, most: int, usage: str) -> None:
        """Raise TraceError unless there are from `least` up to `most` arguments."""
        if not least <= len(self.arguments) <= most:
            raise self.error(f"got {len(self.arguments)} arguments, expected {usage!r}")

    def number(self, index: int) -> float:
        """An argument as a number that is not negative."""
        text = self.arguments[index]
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            raise self.error(f"got {text!r}, expected a number that is not negative")
        return value

    def integer(self, index: int) -> int:
        """An argument as an integer."""
        text = self.arguments[index]
        try:
            return int(text)
        except ValueError:
            raise self.error(f"got {text!r}, expected an integer") from None

    def size(self, index: int, element: int) -> int:
        """An argument that counts elements, in bytes; -1, which SimGrid writes for unknown, is 0."""
        if self.arguments[index] == "-1":
            return 0
        size = self.number(index) * element
        if size > _MOST_SIZE:
            raise self.error(f"got {self.arguments[index]!r} elements, more than 2^62 bytes")
        return round(size)

    def type_size(self, index: int) -> int:
        """Bytes of the datatype that an argument names; the default where there is none."""
        if index >= len(self.arguments):
            return self.default
        number = self.integer(index)
        if not 0 <= number < len(_BYTES):
            raise self.error(
                f"got datatype {number}, expected 0 to {len(_BYTES) - 1} (SimGrid 3.32)"
            )
        return _BYTES[number]


def read(path: Path) -> list[list[Action]]:
    """All actions of each rank.

    Raises:
        TraceError: A line is no action, a rank is missing, or a file holds another rank's actions.
    """
    first = next(_lines(path), None)
    if first is None:
        raise TraceError(f"{path}: an empty file")
    if _is_rank(first[1][0]):
        return _by_rank(path, [path])
    files = [_found(path, number, " ".join(words)) for number, words in _lines(path)]
    if len(files) == 1:
        return _by_rank(path, files)
    ranks = []
    for rank, file in enumerate(files):
        actions = list(_actions(file))
        for action in actions:
            if action.rank != rank:
                raise action.error(f"an action of rank {action.rank} in the file of rank {rank}")
        ranks.append(_with_defaults(actions))
    return ranks


def _by_rank(path: Path, files: Sequence[Path]) -> list[list[Action]]:
    ranks: dict[int, list[Action]] = {}
    for action in itertools.chain.from_iterable(_actions(file) for file in files):
        ranks.setdefault(action.rank, []).append(action)
    missing = next((rank for rank in range(len(ranks)) if rank not in ranks), None)
    if missing is not None:
        raise TraceError(f"{path}: rank {missing} does nothing, not even 'init'")
    return [_with_defaults(ranks[rank]) for rank in range(len(ranks))]


def _with_defaults(actions: list[Action]) -> list[Action]:
    """The same actions with the default datatype that their rank's init chose."""
    inits = [action for action in actions if action.name == "init"]
    if not inits or not inits[0].arguments:
        return actions
    return [Action(a.file, a.line, a.rank, a.name, a.arguments, default=_DOUBLE) for a in actions]


def _found(path: Path, number: int, name: str) -> Path:
    """A file that a list names: beside the list, or as SimGrid does, from the current folder."""
    for candidate in (path.parent / name, Path(name)):
        if candidate.is_file():
            return candidate
    raise TraceError(f"{path}:{number}: got {name!r}, expected an action or the name of a file")


def _actions(path: Path) -> Iterator[Action]:
    for number, words in _lines(path):
        if not _is_rank(words[0]):
            raise TraceError(f"{path}:{number}: got {words[0]!r:.40}, expected a rank")
        if len(words) < 2:
            raise TraceError(f"{path}:{number}: a rank without an action")
        yield Action(path, number, int(words[0]), words[1].lower(), tuple(words[2:]))


def _is_rank(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) <= 8


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Lines that say something, split at spaces, with their numbers."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            words = line.split()
            if words and not words[0].startswith("#"):
                yield number, words
