"""Figures of a platform from measured messages between two ranks, and of its devices from one
model that computes alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations
from pathlib import Path
from typing import Any

from leeboard.sim.collectives import LATENCIES
from leeboard.sim.parts import Protocol
from leeboard.sim.platform import Platform
from leeboard.sim.validate.rig import FRAMING, Links

# Of a full packet: what TCP carries (1500 bytes, less the headers of IP and TCP and its timestamps)
# of what the link does.
HEADERS = (1500 - 20 - 20 - 12) / (1500 + FRAMING)
# Times that say a rate so far from what the headers leave say something: a window, mostly.
_SCATTER = 0.07
# net.core.wmem_max where it cannot be read: Linux' own.
_WMEM = 212_992


@dataclass(frozen=True)
class Calibration:
    """What was found of the links of a setting, from messages between two ranks alone.

    Attributes:
        latency: Seconds, one way; with what sender and receiver do for a message.
        goodput: Payload's share of the bandwidth.
        cross_traffic: What acknowledgements take of the other way.
        rate_limit: Bytes a second of one connection, where a window holds it back; 0: it does not.
        send_buffer: Bytes that a socket takes over at once.
        worst: The largest relative error of the fit on what it was fitted to.
        collective_call: Seconds by which calling a collective takes longer than posting a message.
    """

    latency: float
    goodput: float
    cross_traffic: float
    rate_limit: float
    send_buffer: int
    worst: float
    collective_call: float = 0.0

    def platform(self, ranks: int, links: Links) -> Platform:
        """The rig's star with these figures."""
        protocol = Protocol(
            "calibrated gloo",
            eager_limit=0,
            handshake="notify",
            goodput=self.goodput,
            cross_traffic=self.cross_traffic,
            rate_limit=self.rate_limit,
            send_buffer=self.send_buffer,
        )
        return Platform.star(
            ranks,
            bandwidth=links.bandwidth / 8,
            latency=self.latency,
            protocol=protocol,
            collectives="gloo",
        )

    def save(self) -> dict[str, Any]:
        """As JSON has it."""
        return dataclasses.asdict(self)


def send_buffer() -> int:
    """Bytes that the kernel lets gloo's sockets take over: gloo asks for a whole message."""
    try:
        return int(Path("/proc/sys/net/core/wmem_max").read_text())
    except (OSError, ValueError):
        return _WMEM


def calibrate(
    links: Links,
    messages: Mapping[int, float],
    crossing: Mapping[int, float],
    *,
    call: float = 0.0,
    buffer: int | None = None,
) -> Calibration:
    """Fit latency, goodput, cross-traffic and, if a window shows, its rate.

    n bytes take 2 latencies + n / rate. The rate is reckoned: it is what the headers of full packets
    leave of the link's, which the rig keeps. Only where the times say another one, by more than a
    scatter of them explains, is it theirs. All is fitted by the least sum of absolute relative errors,
    so that a size that was disturbed moves nothing.

    Args:
        links: The rig's.
        messages: Bytes to seconds of one message.
        crossing: The same of two that cross.
        call: Seconds by which a collective in a group of one rank takes longer than posting a message.
        buffer: Bytes that a socket takes over; None: this host's.

    Raises:
        ValueError: Less than two sizes, or larger messages took no longer.
    """
    if len(messages) < 2:
        raise ValueError(f"messages: got {len(messages)} sizes, expected 2 or more")
    rate = links.bandwidth / 8
    limit, goodput = 0.0, HEADERS
    begin, slope = _line(messages)
    seen = 1 / (slope * rate)
    if seen < HEADERS * (1 - _SCATTER):
        limit = seen * rate
    elif seen > HEADERS * (1 + _SCATTER):
        goodput = min(seen, 1.0)
    else:
        slope = 1 / (HEADERS * rate)
        begin = _begin(messages, slope)
    # The largest message says most of what acknowledgements take: a little of the time of its bytes.
    shares = [(seconds - begin) / (size * slope) - 1 for size, seconds in crossing.items()]
    cross = min(max(shares[-1], 0.0), 1.0) if shares else 0.0
    worst = max(abs((begin + n * slope) / t - 1) for n, t in messages.items())
    return Calibration(
        latency=begin / LATENCIES["notify"],
        goodput=goodput,
        cross_traffic=cross,
        rate_limit=limit,
        send_buffer=send_buffer() if buffer is None else buffer,
        worst=worst,
        collective_call=call,
    )


def _begin(messages: Mapping[int, float], slope: float) -> float:
    """Seconds of no bytes, where those of a byte are known: a median, weighted by 1 / time."""
    rests = sorted((max(t - n * slope, 0.0), 1 / t) for n, t in messages.items())
    half = sum(weight for _, weight in rests) / 2
    passed = accumulate(weight for _, weight in rests)
    return next(rest for (rest, _), sum_ in zip(rests, passed, strict=True) if sum_ >= half)


def _line(messages: Mapping[int, float]) -> tuple[float, float]:
    """Seconds of no bytes, and seconds a byte: of the lines through two of the points, one of which
    is the best of all lines."""
    found = []
    for (a, s), (b, t) in combinations(messages.items(), 2):
        slope = (t - s) / (b - a)
        begin = s - a * slope
        if slope > 0 and begin >= 0:
            missed = sum(abs((begin + n * slope) / m - 1) for n, m in messages.items())
            found.append((missed, begin, slope))
    if not found:
        raise ValueError("messages: larger ones took no longer; expected times that grow")
    _, begin, slope = min(found)
    return begin, slope


def calibrated(links: Links, lines: Sequence[Mapping[str, Any]]) -> Calibration:
    """`calibrate` on the lines that `programs.network` prints."""
    # A rank that slept is slow at first. What it takes to post a message is in the latency.
    calls, posts = (sizes_and_times(lines, what) for what in ("call", "post"))
    more = [max(calls[size] - posts[size], 0.0) for size in calls if size in posts]
    return calibrate(
        links,
        sizes_and_times(lines, "message"),
        sizes_and_times(lines, "crossing"),
        call=min(more, default=0.0),
    )


def sizes_and_times(lines: Sequence[Mapping[str, Any]], what: str) -> dict[int, float]:
    """Bytes to median seconds of the cases called `what`, of a program's lines."""
    found = {}
    for line in lines:
        name, _, size = str(line.get("scenario", "")).partition(" ")
        if name == what:
            found[int(size)] = float(line["seconds"])
    return found
