"""Figures of links and protocols from measured messages between two machines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from leeboard.sim import units
from leeboard.sim.collectives import LATENCIES
from leeboard.sim.parts import Link, Protocol

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PointToPoint:
    """What `fit_point_to_point` found.

    Attributes:
        bandwidth: Bytes a second of the link, as given or, if it was not, as fitted.
        latency: Seconds, one way.
        goodput: Payload's share of the bandwidth.
        cross_traffic: Share of a flow's rate that its acknowledgements take on the way back.
        handshake: "eager", "notify" or "request".
        worst: The largest relative error of the fit on what it was fitted to.
    """

    bandwidth: float
    latency: float
    goodput: float
    cross_traffic: float
    handshake: str
    worst: float

    def protocol(self, name: str = "fitted") -> Protocol:
        """A protocol with these figures; its messages all shake hands, or none does."""
        eager = self.handshake == "eager"
        return Protocol(
            name,
            eager_limit="unlimited" if eager else 0,
            handshake="notify" if eager else self.handshake,
            goodput=self.goodput,
            cross_traffic=self.cross_traffic,
        )

    def link(self, hops: int = 2) -> Link:
        """One of the `hops` like links between the two machines (2: each has one to a switch)."""
        if hops < 1:
            raise ValueError(f"hops: got {hops}, expected at least 1")
        return Link(self.bandwidth, self.latency / hops)

    def seconds(self, size: float, *, both_ways: bool = False) -> float:
        """What a message of `size` bytes takes, or two that cross."""
        slower = 1.0 + self.cross_traffic if both_ways else 1.0
        rate = self.bandwidth * self.goodput
        return LATENCIES[self.handshake] * self.latency + size * slower / rate


def fit_point_to_point(
    sizes: Iterable[units.Value],
    seconds: Iterable[units.Value],
    *,
    bandwidth: units.Value | None = None,
    latency: units.Value | None = None,
    crossing: tuple[Iterable[units.Value], Iterable[units.Value]] | None = None,
    handshake: Literal["eager", "notify", "request"] = "notify",
) -> PointToPoint:
    """Fit latency, goodput and cross-traffic to the times of messages between two machines.

    The model is that of the simulator: n bytes take k latency + n / (bandwidth goodput), where k is
    1, 2 or 3 (eager, notify, request; send and receive begin together), and (1 + cross_traffic)
    times as long on the link where as much comes the other way. The fit minimises squared relative
    errors, so that small messages count as much as large ones.

    Args:
        sizes: Bytes of each message.
        seconds: From the common begin to the end of the receive, of each.
        bandwidth: Of the link; None: it is fitted, and goodput is 1.
        latency: One way; None: it is fitted, which takes two sizes that differ.
        crossing: (sizes, seconds) of two equal messages at a time, one each way; None: no
            cross-traffic.
        handshake: What the transport does: gloo "notify", MPI's long messages "request".

    Raises:
        ValueError: Names the argument: too few values, none positive, or times that no latency and
            bandwidth give (the link would have carried more than its bandwidth).
    """
    if handshake not in LATENCIES:
        raise ValueError(
            f"handshake: got {handshake!r}, expected one of {', '.join(map(repr, LATENCIES))}"
        )
    n, t = _columns("sizes", "seconds", sizes, seconds)
    k = LATENCIES[handshake]
    given = None if latency is None else units.parse("latency", latency, units.TIME)
    if given is None and len(set(n.tolist())) < 2:
        raise ValueError("sizes: got one size, expected two that differ, or a latency")
    fitted, beta = _line(n, t, k, given)
    if not beta > 0:
        raise ValueError("seconds: larger messages took no longer; expected times that grow")
    link, goodput = 1 / beta, 1.0
    if bandwidth is not None:
        link = units.parse("bandwidth", bandwidth, units.BANDWIDTH)
        goodput = 1 / (beta * link) if link > 0 else 0.0
        if not 0 < goodput <= 1 + 1e-6:
            raise ValueError(
                f"bandwidth: got {bandwidth!r}, but the messages went at "
                f"{units.show(1 / beta, units.BANDWIDTH, digits=4)}"
            )
        goodput = min(goodput, 1.0)
    cross = 0.0
    if crossing is not None:
        both, took = _columns("crossing, sizes", "crossing, seconds", *crossing)
        # As above: relative errors, over the one unknown that is left.
        share, rest = both * beta / took, 1 - (k * fitted + both * beta) / took
        cross = float(np.clip((share @ rest) / (share @ share), 0.0, 1.0))
    found = PointToPoint(link, fitted, goodput, cross, handshake, 0.0)
    errors = [abs(found.seconds(a) / b - 1) for a, b in zip(n, t, strict=True)]
    if crossing is not None:
        errors += [
            abs(found.seconds(a, both_ways=True) / b - 1) for a, b in zip(both, took, strict=True)
        ]
    return PointToPoint(link, fitted, goodput, cross, handshake, float(max(errors)))


def _line(n: Floats, t: Floats, k: int, latency: float | None) -> tuple[float, float]:
    """Latency and seconds a byte with the least squared relative errors; no latency below 0."""
    if latency is None:
        solution = np.linalg.lstsq(np.stack([k / t, n / t], axis=1), np.ones_like(t), rcond=None)
        found = float(solution[0][0])
        if found >= 0:
            return found, float(solution[0][1])
        latency = 0.0
    share, rest = n / t, 1 - k * latency / t
    return latency, float((share @ rest) / (share @ share)) if share.any() else 0.0


def _columns(
    first: str, second: str, sizes: Iterable[units.Value], seconds: Iterable[units.Value]
) -> tuple[Floats, Floats]:
    n = np.array([units.parse(first, size, units.SIZE) for size in sizes], np.float64)
    t = np.array([units.parse(second, value, units.TIME) for value in seconds], np.float64)
    if len(n) != len(t) or len(n) == 0:
        raise ValueError(f"{first}: got {len(n)} values for {len(t)} {second}, expected as many")
    if not (t > 0).all():
        raise ValueError(f"{second}: got {t.min():g}, expected more than 0")
    return n, t
