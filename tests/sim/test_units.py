"""Quantities with units: read exactly, printed so that they read back, refused where ambiguous."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leeboard.sim import units
from leeboard.sim.units import (
    BANDWIDTH,
    FLOP,
    FLOPS,
    MEMORY_BANDWIDTH,
    POWER,
    RATIO,
    SIZE,
    TIME,
    Dimension,
    UnitError,
)

DIMENSIONS = (BANDWIDTH, MEMORY_BANDWIDTH, SIZE, TIME, FLOPS, FLOP, POWER, RATIO)


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("10 Gbit/s", BANDWIDTH, 1.25e9),
        ("1.25 GB/s", BANDWIDTH, 1.25e9),
        ("1 GiB/s", BANDWIDTH, 2.0**30),
        ("8 Kibit/s", BANDWIDTH, 1024.0),
        ("1000", BANDWIDTH, 1000.0),
        ("1e9", MEMORY_BANDWIDTH, 1e9),
        ("50 us", TIME, 5e-5),
        ("50 µs", TIME, 5e-5),
        ("50 μs", TIME, 5e-5),
        ("50us", TIME, 5e-5),
        (" .5  ms ", TIME, 5e-4),
        ("2 h", TIME, 7200.0),
        ("1.5 d", TIME, 129600.0),
        ("8 TFLOP/s", FLOPS, 8e12),
        ("2 MFLOP", FLOP, 2e6),
        ("24 GiB", SIZE, 24 * 2**30),
        ("24 GB", SIZE, 24 * 10**9),
        ("0.5 KiB", SIZE, 512),
        ("30 W", POWER, 30.0),
        ("300 mW", POWER, 0.3),
        ("80 %", RATIO, 0.8),
        ("0.25", RATIO, 0.25),
        (3, TIME, 3.0),
        (0.25, TIME, 0.25),
    ],
)
def test_read(text: str | float, dimension: Dimension, value: float) -> None:
    read = units.parse("x", text, dimension)
    assert read == value
    assert isinstance(read, int if dimension is SIZE else float)


def test_read_exactly() -> None:
    """Rounded once: 0.1 + 0.2 style errors of multiplying floats do not happen."""
    for digits in ("0.1", "0.3", "1.1", "2.675", "123.456789"):
        assert units.parse("x", f"{digits} us", TIME) == float(Fraction(digits) / 10**6)
        assert units.parse("x", f"{digits} Gbit/s", BANDWIDTH) == float(
            Fraction(digits) * 10**9 / 8
        )


@pytest.mark.parametrize(
    ("text", "dimension", "words"),
    [
        ("10 Gb/s", BANDWIDTH, ["bits or bytes", "Gbit/s (bits)", "GB/s (bytes)"]),
        ("10 Gbps", BANDWIDTH, ["Gbit/s (bits) or GB/s (bytes)"]),
        ("10 mb/s", BANDWIDTH, ["Mbit/s (bits) or MB/s (bytes)"]),
        ("10 Kib/s", BANDWIDTH, ["Kibit/s (bits) or KiB/s (bytes)"]),
        ("10 Gb", SIZE, ["bits or bytes", "GB (bytes)"]),
        ("10 gbit/s", BANDWIDTH, ["did you mean 'Gbit/s'?"]),
        ("10 KB", SIZE, ["did you mean 'kB'?"]),
        ("8 TFLOPS", FLOPS, ["did you mean 'TFLOP/s'?"]),
        ("8 TFLOP", FLOPS, ["did you mean 'TFLOP/s'?"]),
        ("50 us", BANDWIDTH, ["unknown unit 'us'", "such as '10 Gbit/s'"]),
        ("10 Gbit/s", TIME, ["unknown unit 'Gbit/s'", "such as '50 us'"]),
        ("-1 s", TIME, ["a time of 0, or 1e-15 to"]),
        ("1e99 s", TIME, ["a time of 0"]),
        ("1e999999999 s", TIME, ["expected a time"]),
        ("1.5 B", SIZE, ["whole number of bytes"]),
        ("fast", FLOPS, ["'8 TFLOP/s'", "number of FLOP/s"]),
        ("", TIME, ["expected a time"]),
        ("1 2 s", TIME, ["unknown unit '2 s'"]),
        ("1_000 s", TIME, ["unknown unit '_000 s'"]),
        ("٣ s", TIME, ["expected a time"]),
        ("nan", TIME, ["expected a time"]),
        ("9" * 1000, TIME, ["9999..."]),
        (math.nan, TIME, ["got nan"]),
        (math.inf, TIME, ["got inf"]),
        (-1, TIME, ["got -1"]),
        (True, TIME, ["got True"]),
        (None, TIME, ["got None"]),
        ([1], TIME, [r"got [1]"]),
        (10**400, TIME, ["expected a time"]),
        (2**64, SIZE, ["expected a size"]),
    ],
)
def test_refused(text: object, dimension: Dimension, words: list[str]) -> None:
    with pytest.raises(UnitError) as error:
        units.parse("the argument", text, dimension)  # type: ignore[arg-type]
    assert str(error.value).startswith("the argument: got ")
    for word in words:
        assert word in str(error.value)


@given(
    st.sampled_from([d for d in DIMENSIONS if d is not SIZE]),
    st.floats(1e-9, 1e6, allow_nan=False),
)
def test_printed_numbers_read_back(dimension: Dimension, value: float) -> None:
    assert units.parse("x", units.show(value, dimension), dimension) == value


@given(st.integers(0, 2**60))
def test_printed_sizes_read_back(size: int) -> None:
    assert units.parse("x", units.show(size, SIZE), SIZE) == size


@pytest.mark.parametrize(
    ("value", "dimension", "text", "short"),
    [
        (1.25e9, BANDWIDTH, "10 Gbit/s", "10 Gbit/s"),
        (1.25e9, MEMORY_BANDWIDTH, "1.25 GB/s", "1.25 GB/s"),
        (24 * 2**30, SIZE, "24 GiB", "24 GiB"),
        (24 * 10**9, SIZE, "24 GB", "24 GB"),
        (1 / 3, TIME, "333.3333333333333 ms", "333.3 ms"),
        (5e-5, TIME, "50 us", "50 us"),
        (0, TIME, "0 s", "0 s"),
        (604800, TIME, "604800 s", "604800 s"),
        (0.5, RATIO, "0.5", "0.5"),
    ],
)
def test_printed(value: float, dimension: Dimension, text: str, short: str) -> None:
    assert units.show(value, dimension) == text
    assert units.show(value, dimension, digits=4) == short


def test_every_shown_unit_can_be_read() -> None:
    for dimension in DIMENSIONS:
        assert set(dimension.shown) <= set(dimension.units)
        assert units.parse("x", dimension.example, dimension) > 0


@pytest.mark.parametrize(("seconds", "ps"), [(1e-12, 1), (5e-5, 50_000_000), (0.1, 10**11)])
def test_picoseconds(seconds: float, ps: int) -> None:
    assert units.picoseconds(seconds) == ps
