"""What a platform is made of: devices, links, protocols. Immutable, every field with its unit."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from leeboard.sim import units
from leeboard.sim.names import PlatformError
from leeboard.sim.ops import PRECISIONS
from leeboard.sim.units import BANDWIDTH, MEMORY_BANDWIDTH, POWER, RATIO, SIZE, TIME, Dimension

Curve = tuple[tuple[float, float], ...]
CurvePoints = Iterable[tuple[units.Value, units.Value]]

UNLIMITED = 2**64 - 1
# The fields of a device that are FLOP/s, in the order of PRECISIONS.
PEAKS = ("flops", *(f"flops_{name}" for name in PRECISIONS[1:]))
# Sums along a route stay far from the end of simulated time.
_MOST_SECONDS = 900.0


class Quantity:
    """A dataclass field that takes a number or text with a unit, and holds a number."""

    def __init__(
        self,
        dimension: Dimension,
        default: units.Value | None = None,
        *,
        positive: bool = False,
        least: float = 0.0,
        most: float | None = None,
        **words: float,
    ) -> None:
        self.dimension = dimension
        self.positive = positive
        self.least = least
        self.most = most
        # Names for special values.
        self.words = words
        self.default = default if default is None else self.read("default", default)

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: object | None, owner: type | None = None) -> float:
        if instance is None:
            if self.default is None:
                raise AttributeError(self.name)
            return self.default
        value: float = instance.__dict__[self.name]
        return value

    def __set__(self, instance: object, value: units.Value) -> None:
        instance.__dict__[self.name] = self.read(self.name, value)

    def read(self, name: str, value: units.Value) -> float:
        """The number of a value, for the argument `name`."""
        if isinstance(value, str) and value in self.words:
            return self.words[value]
        if isinstance(value, (int, float)) and value in self.words.values():
            return value
        number = units.parse(name, value, self.dimension)
        if self.positive and number == 0:
            raise units.UnitError(f"{name}: got {value!r}, expected more than 0")
        if number < self.least:
            raise units.UnitError(f"{name}: got {value!r}, expected at least {self.least:g}")
        if self.most is not None and number > self.most:
            raise units.UnitError(f"{name}: got {value!r}, expected at most {self.most:g}")
        return number

    def show(self, value: float, digits: int | None = None) -> str:
        """The text that gives `value`."""
        for word, meant in self.words.items():
            if value == meant:
                return word
        return units.show(value, self.dimension, digits=digits)


class Points:
    """A dataclass field for an efficiency curve: pairs of work and efficiency."""

    def __init__(self, dimension: Dimension) -> None:
        self.dimension = dimension

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: object | None, owner: type | None = None) -> Curve:
        curve: Curve = () if instance is None else instance.__dict__[self.name]
        return curve

    def __set__(self, instance: object, value: CurvePoints) -> None:
        instance.__dict__[self.name] = self.read(self.name, value)

    def read(self, name: str, value: CurvePoints) -> Curve:
        """The points of a value, for the argument `name`."""
        try:
            pairs = [(work, efficiency) for work, efficiency in value]
        except (TypeError, ValueError):
            raise PlatformError(
                f"{name}: got {value!r}, expected pairs of work and efficiency, such as "
                f"({self.dimension.example!r}, 0.5)"
            ) from None
        points = tuple(
            (units.parse(name, work, self.dimension), units.parse(name, share, RATIO))
            for work, share in pairs
        )
        works = [work for work, _ in points]
        if works and (works[0] <= 0 or any(a >= b for a, b in itertools.pairwise(works))):
            raise PlatformError(f"{name}: got {value!r}, expected ascending work above 0")
        if not all(0 < share <= 1 for _, share in points):
            raise PlatformError(f"{name}: got {value!r}, expected efficiencies in (0, 1]")
        return points

    def show(self, value: Curve) -> list[list[str | float]]:
        """The text that gives `value`."""
        return [[units.show(work, self.dimension), share] for work, share in value]


def efficiency(curve: Curve, amount: float) -> float:
    """Of an amount of work: linear in its logarithm, constant beyond the ends, 1 without points."""
    if not curve:
        return 1.0
    if amount <= curve[0][0]:
        return curve[0][1]
    for (low, share), (high, above) in itertools.pairwise(curve):
        if amount < high:
            part = math.log(amount / low) / math.log(high / low)
            return share + part * (above - share)
    return curve[-1][1]


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise PlatformError(f"{name}: got {value!r}, expected {' or '.join(map(repr, allowed))}")


@dataclass(frozen=True)
class Device:
    """A processor with its memory.

    A compute op of F flops and B bytes takes the larger of F / (flops * efficiency) and
    B / (memory_bandwidth * efficiency), over `speed`, plus `overhead`.

    Attributes:
        name: Of the kind of device; a preset's name, or free text.
        flops: FLOP/s, in every precision that has no figure of its own below. The presets' is that
            of the precision which the device is sold for: 16 bits for accelerators, float32 for
            processors.
        memory_bandwidth: Bytes a second.
        memory: Bytes; "unlimited" (0) where exceeding it is of no interest.
        speed: Times the speed that the other figures give.
        overhead: Seconds added to every compute op, such as the launch of a kernel.
        jitter: Sigma of the logarithm of a lognormal factor of mean 1 on compute times.
        reduce_bandwidth: Bytes a second that a reduction takes in; "free" (0): it costs nothing.
        flops_curve: Points (work in FLOP, efficiency in (0, 1]), piecewise linear in the logarithm
            of work, constant beyond the ends; empty: always 1.
        bytes_curve: The same for memory traffic, work in bytes.
        idle_power: Watts while it does not compute.
        active_power: Watts while it computes.
        flops_float64: FLOP/s of float64; "same" (0): as `flops`. The same for the others.
        flops_float32: Of float32 (without TF32).
        flops_float16: Of float16 and bfloat16.
        flops_float8: Of 8-bit floats.
        flops_int8: Operations a second of 8-bit integers.
    """

    name: str = ""
    flops: Quantity = Quantity(units.FLOPS, "1 TFLOP/s", positive=True)
    memory_bandwidth: Quantity = Quantity(MEMORY_BANDWIDTH, "100 GB/s", positive=True)
    memory: Quantity = Quantity(SIZE, 0, unlimited=0)
    speed: Quantity = Quantity(RATIO, 1.0, positive=True)
    overhead: Quantity = Quantity(TIME, 0.0)
    jitter: Quantity = Quantity(RATIO, 0.0, most=10.0)
    reduce_bandwidth: Quantity = Quantity(MEMORY_BANDWIDTH, 0.0, free=0.0)
    flops_curve: Points = Points(units.FLOP)
    bytes_curve: Points = Points(SIZE)
    idle_power: Quantity = Quantity(POWER, 0.0)
    active_power: Quantity = Quantity(POWER, 0.0)
    flops_float64: Quantity = Quantity(units.FLOPS, 0.0, same=0.0)
    flops_float32: Quantity = Quantity(units.FLOPS, 0.0, same=0.0)
    flops_float16: Quantity = Quantity(units.FLOPS, 0.0, same=0.0)
    flops_float8: Quantity = Quantity(units.FLOPS, 0.0, same=0.0)
    flops_int8: Quantity = Quantity(units.FLOPS, 0.0, same=0.0)

    def __post_init__(self) -> None:
        _text("name", self.name)
        if self.active_power < self.idle_power:
            raise PlatformError(
                f"active_power: got {self.active_power:g} W, expected at least idle_power "
                f"({self.idle_power:g} W)"
            )

    @property
    def peaks(self) -> tuple[float, ...]:
        """FLOP/s in each of `PRECISIONS`."""
        return tuple(getattr(self, name) or self.flops for name in PEAKS)

    def seconds(self, flops: float, traffic: float = 0.0, precision: int = 0) -> float:
        """What a compute op takes, without jitter.

        Args:
            flops: Of the op.
            traffic: Bytes of memory traffic.
            precision: Which of `PRECISIONS` it computes in.
        """
        arms = (
            (flops, self.peaks[precision], self.flops_curve),
            (traffic, self.memory_bandwidth, self.bytes_curve),
        )
        longest = max(
            amount / (rate * efficiency(curve, amount)) if amount > 0 else 0.0
            for amount, rate, curve in arms
        )
        return longest / self.speed + self.overhead


@dataclass(frozen=True)
class Link:
    """A cable, or a radio channel.

    Attributes:
        bandwidth: Bytes a second, each way; both ways together if half duplex.
        latency: Seconds, one way.
        overhead: Seconds of a message on this link in which it carries nothing else for the pair.
        duplex: "full" or "half".
    """

    bandwidth: Quantity = Quantity(BANDWIDTH, positive=True)
    latency: Quantity = Quantity(TIME, 0.0, most=_MOST_SECONDS)
    overhead: Quantity = Quantity(TIME, 0.0, most=_MOST_SECONDS)
    duplex: str = "full"

    def __post_init__(self) -> None:
        _one_of("duplex", self.duplex, ("full", "half"))


@dataclass(frozen=True)
class Protocol:
    """How a message travels.

    Attributes:
        name: "gloo", "mpi", "nccl", "ideal", or of one's own.
        eager_limit: Messages up to this many bytes leave without a handshake; 0: none, not even
            empty ones; "unlimited": all.
        handshake: "notify": the receiver tells when it is ready (two latencies unless it told
            before); "request": the sender asks and is told (three latencies).
        send_buffer: Messages up to this many bytes are sent, for their sender, when they begin to
            leave: its host has taken them over (a socket's buffer). Larger ones when they have left.
        send_overhead: Seconds of the sending rank's own time a message.
        recv_overhead: Seconds of the receiving rank's own time a message.
        goodput: Payload's share of the bandwidth, in (0, 1].
        cross_traffic: Acknowledgements: share of a flow's rate on the way back.
        rate_limit: Bytes a second of one message at most (window over round trip); "none" (0).
        jitter: Sigma of the logarithm of a lognormal factor of mean 1 on latency.
        loss: Probability that a packet is lost, below 1.
        packet: Bytes.
        loopback_bandwidth: Bytes a second between ranks of one device; "free" (0).
        loopback_latency: Seconds between ranks of one device.
    """

    name: str = ""
    eager_limit: Quantity = Quantity(SIZE, "unlimited", unlimited=UNLIMITED)
    handshake: str = "notify"
    send_buffer: Quantity = Quantity(SIZE, 0, unlimited=UNLIMITED)
    send_overhead: Quantity = Quantity(TIME, 0.0, most=_MOST_SECONDS)
    recv_overhead: Quantity = Quantity(TIME, 0.0, most=_MOST_SECONDS)
    goodput: Quantity = Quantity(RATIO, 1.0, least=1e-6, most=1.0)
    cross_traffic: Quantity = Quantity(RATIO, 0.0, most=1.0)
    rate_limit: Quantity = Quantity(BANDWIDTH, 0.0, none=0.0)
    jitter: Quantity = Quantity(RATIO, 0.0, most=10.0)
    loss: Quantity = Quantity(RATIO, 0.0, most=0.99)
    packet: Quantity = Quantity(SIZE, 1500, positive=True)
    loopback_bandwidth: Quantity = Quantity(MEMORY_BANDWIDTH, 0.0, free=0.0)
    loopback_latency: Quantity = Quantity(TIME, 0.0, most=_MOST_SECONDS)

    def __post_init__(self) -> None:
        _text("name", self.name)
        _one_of("handshake", self.handshake, ("notify", "request"))

    def core(self) -> dict[str, Any]:
        """The fields as the C++ core takes them: picoseconds, handshake 0 or 1."""
        values: dict[str, Any] = dataclasses.asdict(self)
        del values["name"]
        for name in ("send_overhead", "recv_overhead", "loopback_latency"):
            values[name] = units.picoseconds(values[name])
        values["handshake"] = ("notify", "request").index(self.handshake)
        return values


def _text(name: str, value: object) -> None:
    if not isinstance(value, str) or len(value) > 200 or not value.isprintable():
        raise PlatformError(f"{name}: got {value!r}, expected one line of text, 200 characters")
