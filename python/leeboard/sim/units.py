"""Quantities with units: "10 Gbit/s", "1.25 GB/s", "50 us", "8 TFLOP/s", "24 GiB", "30 W".

Case counts, as in the SI: `k`, `M`, `G`, `T`, `P`, `E` are powers of 1000, `Ki`, `Mi`, ... of 1024,
`m`, `u` (or `µ`), `n`, `p` are fractions. `B` is a byte and `bit` is a bit; a lone `b` is refused,
because people write it for both. Numbers without a unit are plain SI: bytes, seconds, bytes a
second, FLOP/s, watts. Text is read exactly and rounded once, to the nearest float.
"""

from __future__ import annotations

import difflib
import math
import re
import sys
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from numbers import Integral, Real

Value = float | str

# 2^63 ps, where simulated time ends (csrc/sim/time.h).
LONGEST = 2**63 / 10**12
PICOSECONDS = 10**12

_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,2})?)\s*(.*)", re.ASCII)
_LONE_B = re.compile(r"([kKmMgGtTpPeE]?i?)b(?:/s|ps)?")
_TOO_LONG = 64

_LARGE = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18}
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50}
_SMALL = {"": 1, "m": 10**-3, "u": 10**-6, "µ": 10**-6, "μ": 10**-6, "n": 10**-9, "p": 10**-12}


class UnitError(ValueError):
    """A quantity that cannot be read."""


@dataclass(frozen=True)
class Dimension:
    """What a quantity measures, and the units it may be given in."""

    name: str
    plain: str
    example: str
    units: dict[str, Fraction]
    # Units to print in.
    shown: tuple[str, ...]
    whole: bool = False
    smallest: float = 1e-9
    largest: float = 1e24


def _scaled(
    unit: str, *prefixes: dict[str, int], by: Fraction = Fraction(1)
) -> dict[str, Fraction]:
    return {f"{p}{unit}": scale * by for table in prefixes for p, scale in table.items()}


def _fractions(unit: str, names: str) -> dict[str, Fraction]:
    return {f"{p}{unit}": Fraction(str(_SMALL[p])) for p in ("", *names)}


_RATES = _scaled("B/s", _LARGE, _BINARY) | _scaled("bit/s", _LARGE, _BINARY, by=Fraction(1, 8))
_LARGE_SHOWN = ("E", "P", "T", "G", "M", "k", "")


def _shown(unit: str) -> tuple[str, ...]:
    return tuple(p + unit for p in _LARGE_SHOWN)


# Bandwidths of links print in bit/s, those of memories in B/s; both are read in either.
BANDWIDTH = Dimension("bandwidth", "B/s", "10 Gbit/s", _RATES, _shown("bit/s"))
MEMORY_BANDWIDTH = Dimension("bandwidth", "B/s", "900 GB/s", _RATES, _shown("B/s"))
SIZE = Dimension(
    "size",
    "B",
    "24 GiB",
    _scaled("B", _LARGE, _BINARY),
    ("PiB", "TiB", "GiB", "MiB", "KiB", *_shown("B")),
    whole=True,
    largest=2.0**64 - 2048,
)
TIME = Dimension(
    "time",
    "s",
    "50 us",
    _fractions("s", "muµμnp") | {"min": Fraction(60), "h": Fraction(3600), "d": Fraction(86400)},
    ("s", "ms", "us", "ns", "ps"),
    smallest=1e-15,
    largest=math.nextafter(LONGEST, 0.0),
)
FLOPS = Dimension("rate", "FLOP/s", "8 TFLOP/s", _scaled("FLOP/s", _LARGE), _shown("FLOP/s"))
FLOP = Dimension("count", "FLOP", "2 GFLOP", _scaled("FLOP", _LARGE), _shown("FLOP"))
POWER = Dimension(
    "power",
    "W",
    "30 W",
    _scaled("W", {p: _LARGE[p] for p in ("", "k", "M")}) | {"mW": Fraction(1, 1000)},
    ("MW", "kW", "W", "mW"),
)
RATIO = Dimension("number", "", "0.5", {"": Fraction(1), "%": Fraction(1, 100)}, ("",), largest=1e9)


def parse(name: str, value: Value, dimension: Dimension) -> float:
    """Read a quantity: a number in plain SI units, or text with a unit.

    Args:
        name: Of the argument, for the error.
        value: A finite number, not negative, or text such as "10 Gbit/s".
        dimension: BANDWIDTH, MEMORY_BANDWIDTH, SIZE, TIME, FLOPS, FLOP, POWER or RATIO.

    Returns:
        Bytes a second, bytes (a whole number), seconds, FLOP/s, FLOP, watts, or the number.

    Raises:
        UnitError: Not a number, negative, not finite, out of range, an unknown or ambiguous unit.
    """
    if isinstance(value, str):
        exact = _read(name, value, dimension)
    else:
        exact = _number(name, value, dimension)
    number = float(exact)
    if number < 0 or number > dimension.largest or 0 < number < dimension.smallest:
        limits = (
            f"0, or {dimension.smallest:g} to {dimension.largest:.3g} {dimension.plain}".rstrip()
        )
        raise UnitError(f"{name}: got {value!r}, expected a {dimension.name} of {limits}")
    if dimension.whole:
        if exact.denominator != 1:
            raise UnitError(f"{name}: got {value!r}, expected a whole number of bytes")
        return int(exact)
    return number


def _number(name: str, value: object, dimension: Dimension) -> Fraction:
    if not isinstance(value, bool):
        if isinstance(value, Integral):
            # What no float holds is out of any range.
            exact = Fraction(int(value))
            if abs(exact) <= sys.float_info.max:
                return exact
        elif isinstance(value, Real) and math.isfinite(value):
            return Fraction(float(value))
    raise UnitError(_message(name, value, dimension))


def _read(name: str, text: str, dimension: Dimension) -> Fraction:
    match = _NUMBER.fullmatch(text.strip()) if len(text) <= _TOO_LONG else None
    if match is None:
        raise UnitError(_message(name, text, dimension))
    number, unit = match.groups()
    scale = Fraction(1) if unit == "" else dimension.units.get(unit)
    if scale is None:
        raise UnitError(_message(name, text, dimension, unit))
    return Fraction(Decimal(number)) * scale


def _message(name: str, value: object, dimension: Dimension, unit: str = "") -> str:
    given = repr(value) if len(repr(value)) <= _TOO_LONG else repr(value)[:_TOO_LONG] + "..."
    expected = f"a {dimension.name} such as {dimension.example!r}"
    if dimension.plain:
        expected += f", or a number of {dimension.plain}"
    start = f"{name}: got {given}"
    lone = _LONE_B.fullmatch(unit)
    if lone and dimension.plain in ("B/s", "B"):
        prefix = _upper(lone[1])
        pair = f"{prefix}bit/s (bits) or {prefix}B/s (bytes)"
        pair = pair if dimension.plain == "B/s" else f"{prefix}B (bytes)"
        return f"{start}: {unit!r} may mean bits or bytes; write {pair}"
    if unit:
        similar = [known for known in dimension.units if known.lower() == unit.lower()]
        similar = similar or difflib.get_close_matches(unit, dimension.units, n=1)
        hint = f" (did you mean {similar[0]!r}?)" if similar and similar[0] else ""
        return f"{start}: unknown unit {unit!r}{hint}; expected {expected}"
    return f"{start}, expected {expected}"


def _upper(prefix: str) -> str:
    """The prefix that was meant, of powers of 1000 and 1024."""
    if prefix.endswith("i"):
        return prefix.capitalize()
    return "k" if prefix in ("k", "K") else prefix.upper()


def show(value: float, dimension: Dimension, *, digits: int | None = None) -> str:
    """Print a quantity so that `parse` reads the same value back.

    Args:
        value: In plain SI units.
        dimension: What it is.
        digits: Round to so many significant digits, for people; None: exactly.
    """
    if value == 0:
        return f"0 {dimension.plain}".rstrip()
    exact = Fraction(Decimal(value if isinstance(value, int) else repr(float(value))))
    candidates = []
    for unit in dimension.shown:
        ratio = exact / dimension.units[unit]
        if ratio >= 1 or unit == dimension.shown[-1]:
            text = _decimal(ratio) if digits is None else _rounded(ratio, digits)
            if text is not None:
                candidates.append(f"{text} {unit}".rstrip())
    # The shortest number; of equals the largest unit.
    return min(candidates, key=lambda text: len(text.split(" ")[0]))


def _rounded(ratio: Fraction, digits: int) -> str:
    return str(round(ratio)) if ratio >= 10**digits else f"{float(ratio):.{digits}g}"


def _decimal(ratio: Fraction) -> str | None:
    """Digits of a fraction; None where they would not end."""
    twos = fives = 0
    rest = ratio.denominator
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    places = max(twos, fives)
    if rest != 1 or places > 40:
        return None
    whole = ratio.numerator * 10**places // ratio.denominator
    digits = str(whole).rjust(places + 1, "0")
    if not places:
        return digits
    return f"{digits[:-places]}.{digits[-places:]}".rstrip("0").rstrip(".")


def picoseconds(seconds: float) -> int:
    """Simulated time of a number of seconds, to the nearest picosecond."""
    return round(seconds * PICOSECONDS)
