"""Tables of operator times, measured on a real device: files of them, and looking calls up."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from leeboard._files import write_json
from leeboard.sim.distributed.compute.mode import Call
from leeboard.sim.distributed.compute.report import ESTIMATED, EXACT, ROOFLINE, Found
from leeboard.sim.ops import PRECISIONS
from leeboard.sim.parts import Device
from leeboard.sim.table import aligned, text_of
from leeboard.sim.units import PICOSECONDS

FORMAT = "leeboard-profile"
VERSION = 1
_MOST_BYTES = 256 << 20
_SHOWN = 12


class ProfileError(ValueError):
    """A profile that cannot be read: which file, what was found, what is expected."""


@dataclass(frozen=True)
class Entry:
    """A call that was timed.

    Attributes:
        seconds: Median of one call.
        count: How often the profiled program made it.
        flops: Of one call.
        bytes: Of one call.
        precision: Which of `PRECISIONS`.
    """

    seconds: float
    count: int
    flops: int
    bytes: int
    precision: int


@dataclass(eq=False)
class Profile:
    """A table of operator times of one device.

    Attributes:
        device: Name of the device; one of that kind in a platform is charged by it.
        flops: FLOP/s of a float32 matrix product there.
        memory_bandwidth: Bytes a second there.
        host: What the device was, in words: processor, torch's version, threads.
        operators: By operator ("aten.mm.default") and signature ("float32[8,16] float32[16,4]").
    """

    device: str
    flops: float
    memory_bandwidth: float
    host: Mapping[str, str] = field(default_factory=dict)
    operators: dict[str, dict[str, Entry]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._found: dict[Call, Found] = {}
        self._roofline = Device(
            self.device, flops=self.flops, memory_bandwidth=self.memory_bandwidth
        )

    def __len__(self) -> int:
        return sum(map(len, self.operators.values()))

    def add(self, call: Call, seconds: float, count: int) -> None:
        """Put a timed call in, in place of what was known of it."""
        cost = call.cost
        entries, key = self.operators.setdefault(str(call.rule.func), {}), signature(call)
        if key in entries:
            # Alike in all that a signature holds.
            count += entries[key].count
        entries[key] = Entry(seconds, count, cost.flops, cost.bytes, cost.precision)
        self._found.clear()

    def __str__(self) -> str:
        memory = f"{self.memory_bandwidth / 1e9:.4g}"
        lines = [
            f"device          {self.device}",
            f"speed           {self.flops / 1e9:.4g} GFLOP/s in a float32 product, {memory} GB/s",
            f"operators       {len(self.operators)}, with {len(self)} shapes",
        ]
        lines += [f"  {key:<13} {value}" for key, value in self.host.items()]
        totals = [
            (name, len(of), sum(e.count for e in of.values()), sum(map(_total, of.values())))
            for name, of in self.operators.items()
        ]
        totals.sort(key=lambda row: (-row[3], row[0]))
        rows = [(n, f"{s:,}", f"{c:,}", text_of(t, "s")) for n, s, c, t in totals[:_SHOWN]]
        lines.append(aligned(("operator", "shapes", "calls", "time of the calls"), rows))
        if len(totals) > _SHOWN:
            lines.append(f"... and {len(totals) - _SHOWN:,} more")
        return "\n".join(lines)

    def merge(self, other: Profile) -> None:
        """Put all entries of another profile in, in place of what was known."""
        for name, entries in other.operators.items():
            self.operators.setdefault(name, {}).update(entries)
        self._found.clear()

    def find(self, call: Call) -> Found:
        """The time of a call.

        An equal call's time is taken as it is. Otherwise that of the nearest call of the same
        operator in the same precision (by ratio of flops and of bytes), times the ratio of what a
        roofline of the device says of both. Otherwise nothing is known.
        """
        found = self._found.get(call)
        if found is None:
            found = self._found[call] = self._look(call)
        return found

    def _look(self, call: Call) -> Found:
        entries = self.operators.get(str(call.rule.func))
        if not entries:
            return ROOFLINE
        exact = entries.get(signature(call))
        if exact is not None:
            return Found(EXACT, round(exact.seconds * PICOSECONDS))
        cost = call.cost
        like = [entry for entry in entries.values() if entry.precision == cost.precision]
        if not like:
            return ROOFLINE
        near = min(like, key=lambda entry: _distance(entry, cost.flops, cost.bytes))
        here, there = self._bound(cost.flops, cost.bytes), self._bound(near.flops, near.bytes)
        ratio = here / there if here and there else 1.0
        return Found(ESTIMATED, round(near.seconds * ratio * PICOSECONDS))

    def _bound(self, flops: int, size: int) -> float:
        return self._roofline.seconds(flops, size)

    def save(self, path: str | Path) -> None:
        """Write the profile to a file, whole or not at all."""
        operators = {
            name: {
                key: [e.seconds, e.count, e.flops, e.bytes, e.precision] for key, e in of.items()
            }
            for name, of in sorted(self.operators.items())
        }
        content = {
            "format": FORMAT,
            "version": VERSION,
            "device": self.device,
            "flops": self.flops,
            "memory_bandwidth": self.memory_bandwidth,
            "host": dict(self.host),
            "operators": operators,
        }
        write_json(Path(path), content)

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read a file of `save`.

        Raises:
            ProfileError: Not a profile, damaged, or of a newer version.
            OSError: It cannot be read.
        """
        file = Path(path)
        with file.open("rb") as stream:
            raw = stream.read(_MOST_BYTES + 1)
        if len(raw) > _MOST_BYTES:
            raise ProfileError(f"{file}: larger than {_MOST_BYTES >> 20} MiB, expected a profile")
        try:
            content = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise ProfileError(f"{file}: no JSON ({error}), expected a profile") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ProfileError(
                f'{file}: "format" is not {FORMAT!r}, expected a file of `leeboard sim profile`'
            )
        if content.get("version") != VERSION:
            raise ProfileError(
                f"{file}: version {content.get('version')!r}, expected {VERSION}; "
                "a newer leeboard may read it"
            )
        return cls(
            _text(file, content, "device"),
            _positive(file, "flops", content.get("flops")),
            _positive(file, "memory_bandwidth", content.get("memory_bandwidth")),
            {str(key): str(value) for key, value in _mapping(file, content, "host").items()},
            {
                name: {key: _entry(file, f"{name} {key}", row) for key, row in of.items()}
                for name, of in _operators(file, content)
            },
        )


def _total(entry: Entry) -> float:
    return entry.count * entry.seconds


def _distance(entry: Entry, flops: int, size: int) -> float:
    work = math.log((entry.flops + 1) / (flops + 1))
    return abs(work) + abs(math.log((entry.bytes + 1) / (size + 1)))


def signature(call: Call) -> str:
    """What a call's time depends on, in words: shapes, dtypes, strides that are not plain, whole
    numbers."""
    return " ".join(map(_word, call.key[1:]))


def _word(part: Any) -> str:
    if isinstance(part, tuple):
        shape, dtype, strides = part
        sizes = ",".join(map(str, shape))
        text = f"{str(dtype).removeprefix('torch.')}[{sizes}]"
        if strides is None or _plain(shape, strides):
            return text
        return f"{text}{{{','.join(map(str, strides))}}}"
    if isinstance(part, torch.dtype):
        return str(part).removeprefix("torch.")
    return part.__name__ if isinstance(part, type) else str(part)


def _plain(shape: Any, strides: Any) -> bool:
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _mapping(file: Path, content: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = content.get(key)
    if not isinstance(value, dict):
        raise ProfileError(f"{file}: {key!r} is {_short(value)}, expected a mapping")
    return value


def _operators(file: Path, content: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    operators = _mapping(file, content, "operators")
    return [(name, _mapping(file, operators, name)) for name in operators]


def _text(file: Path, content: Mapping[str, Any], key: str) -> str:
    value = content.get(key)
    if not isinstance(value, str):
        raise ProfileError(f"{file}: {key!r} is {_short(value)}, expected text")
    return value


def _positive(file: Path, what: str, value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise ProfileError(f"{file}: {what} is {_short(value)}, expected a number above 0")
    return float(value)


def _entry(file: Path, where: str, row: Any) -> Entry:
    if not isinstance(row, list) or len(row) != 5:
        raise ProfileError(
            f"{file}: {where}: got {_short(row)}, expected [seconds, count, flops, bytes, precision]"
        )
    whole = [n for n in row[1:] if isinstance(n, int) and not isinstance(n, bool) and n >= 0]
    if len(whole) != 4 or whole[3] >= len(PRECISIONS):
        raise ProfileError(
            f"{file}: {where}: got {_short(row[1:])}, expected whole numbers from 0 on, the last "
            f"below {len(PRECISIONS)}"
        )
    seconds = _positive(file, f"{where}: seconds", row[0])
    if seconds > 1e6:
        raise ProfileError(f"{file}: {where}: {seconds:g} seconds, expected at most a million")
    return Entry(seconds, *whole)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
