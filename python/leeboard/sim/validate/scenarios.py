"""What is measured: links, ranks, cases."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from leeboard.sim.validate.rig import Links

Case = tuple[str, int]
Kind = Literal["network", "model"]
PROGRAMS = {
    "network": "leeboard.sim.validate.programs.network",
    "model": "leeboard.sim.validate.programs.model",
}
# Whose times the figures are fitted to; they are shown, and are no predictions.
CALIBRATION = ("message", "crossing", "compute", "alone")
# What the host takes without a link; there is nothing to predict.
HOST = ("call", "post")
_KB, _MB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Setting:
    """One run of a program on real links.

    Attributes:
        bandwidth: Of each link, such as "100 Mbit/s".
        delay: One way.
        ranks: How many.
        kind: Which program.
        cases: What it does.
        repeats: How often each case is timed; the median counts.
        opening: Bytes between all ranks before anything is timed.
    """

    bandwidth: str
    delay: str
    ranks: int
    kind: Kind
    cases: tuple[Case, ...]
    repeats: int = 5
    opening: int = _MB

    @property
    def links(self) -> Links:
        """The rig's links."""
        return Links.of(self.bandwidth, self.delay)

    @property
    def key(self) -> str:
        """A file's name."""
        words = (self.kind, f"{self.ranks}ranks", self.bandwidth, self.delay)
        return "-".join(words).replace(" ", "").replace("/", "p")

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.ranks} ranks, {self.bandwidth}, {self.delay}"

    def order(self) -> dict[str, Any]:
        """The program's argument."""
        return {
            "cases": [list(case) for case in self.cases],
            "repeats": self.repeats,
            "warm": 2,
            "notice": 5 * self.links.delay,
            "open": self.opening,
        }


@dataclass(frozen=True)
class Plan:
    """Settings, in their order: those of the same links share the calibration of the first."""

    settings: tuple[Setting, ...] = field(default_factory=tuple)


CALLS: tuple[Case, ...] = (("call", 64), ("post", 64))


def calibration_cases(large: int) -> tuple[Case, ...]:
    """Messages of which the links' figures are fitted."""
    sizes = sorted({4, _KB, 4 * _KB, 16 * _KB, 64 * _KB, large // 4, large // 2, large})
    messages = tuple(("message", size) for size in sizes)
    return (*messages, ("crossing", large // 4), ("crossing", large), *CALLS)


def network_cases(ranks: int, large: int, *, few: bool = False) -> tuple[Case, ...]:
    """Of one number of ranks. `large`: bytes of the largest messages."""
    medium = 64 * _KB
    sizes = (64, large) if few else (64, medium, large)
    cases: list[Case] = [("ping_pong", size) for size in sizes]
    cases.append(("two_in_a_row", large))
    if ranks > 2:
        cases += [(what, size) for what in ("both_ways", "incast", "fan_out") for size in sizes[1:]]
    for what in (
        "all_reduce", "all_gather", "reduce_scatter", "broadcast", "reduce", "gather", "scatter",
        "all_to_all",
    ):  # fmt: skip
        cases += [(what, size) for size in sizes]
    return (*cases, ("barrier", 0))


def model_cases() -> tuple[Case, ...]:
    """Of the models."""
    return (
        ("compute", 64),
        ("alone", 64),
        ("tp_prefill", 64),
        ("tp_decode", 8),
        ("pp_prefill", 64),
        ("pp_decode", 8),
        ("ddp_step", 64),
        ("ensemble", 128),
    )


def built_in(*, quick: bool = False, oversubscribe: bool = False) -> Plan:
    """The set that `leeboard sim validate` runs without a script."""
    if quick:
        large = 256 * _KB
        cases = calibration_cases(large) + network_cases(2, large, few=True)
        return Plan((Setting("100 Mbit/s", "2 ms", 2, "network", cases, 3, large),))
    settings = []
    for bandwidth, delay, large, counts, models in (
        ("100 Mbit/s", "1 ms", _MB, (2, 3, 4), True),
        ("20 Mbit/s", "5 ms", 256 * _KB, (2, 4), True),
        ("500 Mbit/s", "5 ms", 4 * _MB, (2,), True),
        ("100 Mbit/s", "0.5 ms", _MB, (2,), False),
        ("100 Mbit/s", "20 ms", _MB, (2, 3), False),
    ):
        for ranks in counts:
            cases = network_cases(ranks, large, few=delay == "20 ms")
            if ranks == counts[0]:
                cases = calibration_cases(large) + cases
            settings.append(Setting(bandwidth, delay, ranks, "network", cases, opening=large))
        if models:
            settings.append(Setting(bandwidth, delay, 2, "model", model_cases(), opening=large))
            if oversubscribe:
                settings.append(Setting(bandwidth, delay, 4, "model", model_cases(), opening=large))
    return Plan(tuple(settings))
