"""Where to run drafter and target, and how deep to draft."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from leeboard.scenarios.acceptance import Acceptance, acceptance_of
from leeboard.scenarios.decoding import Candidate, Question, fastest
from leeboard.scenarios.models import Drafter, Target, find
from leeboard.scenarios.report import advancing, check_integer, check_share
from leeboard.scenarios.rounds import PLACEMENTS, Decoding, Placement
from leeboard.scenarios.sensitivity import Input, Outcome, Sensitivity, analyse
from leeboard.scenarios.site import EFFICIENCY, site
from leeboard.scenarios.speculation_plan import NothingFitsError, SpeculationPlan
from leeboard.sim import Platform

if TYPE_CHECKING:
    from leeboard.sim import Device

_DEEPEST = 32
# Times how much more than a bound says a candidate may gain.
_ROOM = 1.25


def plan_speculation(
    acceptance: Acceptance | str | Path | Sequence[float] | Mapping[str, Any],
    *,
    way: str | None = None,
    platform: Platform | str | Path | None = None,
    edge: str | Device = "edge",
    server: str | Device = "server",
    bandwidth: float | str = "100 Mbit/s",
    latency: float | str = "10 ms",
    protocol: str = "ideal",
    efficiency: float = EFFICIENCY,
    target: Target | str | Path | Mapping[str, Any] = "llama-3.1-8b",
    drafter: Drafter | str | Path | Mapping[str, Any] = "eagle3-llama-3.1-8b",
    depth: int | None = None,
    placements: Sequence[Placement] | None = None,
    context: int = 2048,
    batch: int = 1,
    tokens: int = 1024,
    draws: Literal["even", "seeded"] = "even",
    replies: int = 8,
    seed: int = 0,
    sensitivity: bool = True,
    share: float = 0.2,
    progress: bool = False,
) -> SpeculationPlan:
    """Find the depth and the placement with the most tokens a second.

    Every candidate is a program of the simulator: the rounds of a reply, whose outcomes are drawn
    from the acceptance, on the devices and the link.

    Args:
        acceptance: By depth, or a file of it (see `acceptance_of`).
        way: Which drafter of a file that holds several.
        platform: Of the simulator, or its file, with the two devices; None: two devices and a link.
        edge: The device with the user: of the platform by name; without one a preset's name.
        server: The other device.
        bandwidth: Of the link, each way; not used with a platform.
        latency: One way; not used with a platform.
        protocol: How messages travel; not used with a platform.
        efficiency: Share of their peaks that presets reach.
        target: A preset's name, a JSON file of sizes, or the sizes.
        drafter: The same.
        depth: Deepest draft to try; default: as deep as acceptance is given.
        placements: To try; default: all of "server", "edge", "split", "split+overlap".
        context: Rows in the caches.
        batch: Sequences that the server decodes at once; the rate is that of one of them.
        tokens: Of a reply. A short one feels the way of its last token to the user.
        draws: "even": outcomes of rounds in their expected shares; "seeded": drawn at random, the
            mean of `replies` replies.
        replies: With "seeded".
        seed: Of jitter and loss; with "seeded" also of the first reply's draws.
        sensitivity: Whether to move the inputs, too.
        share: By how much, up and down.
        progress: Whether to draw a progress bar.

    Raises:
        NothingFitsError: Nothing fits into the devices' memory; it says what is nearest.
        ValueError: An argument is wrong.
        FileNotFoundError: There is no such file.
    """
    read = acceptance_of(acceptance, way)
    for name, value, least, most in (
        ("depth", depth, 0, _DEEPEST),
        ("context", context, 1, 2**24),
        ("batch", batch, 1, 2**16),
        ("tokens", tokens, 1, 2**20),
        ("replies", replies, 1, 1000),
        ("seed", seed, 0, 2**32),
    ):
        if name == "depth" and value is None:
            continue
        check_integer(name, value, least, most)
    if draws not in ("even", "seeded"):
        raise ValueError(f"draws: got {draws!r}, expected 'even' or 'seeded'")
    chosen = tuple(PLACEMENTS) if placements is None else tuple(placements)
    for placement in chosen:
        if placement not in PLACEMENTS:
            raise ValueError(
                f"placements: got {placement!r}, expected some of {', '.join(PLACEMENTS)}"
            )
    if not chosen:
        raise ValueError(f"placements: got none, expected some of {', '.join(PLACEMENTS)}")
    check_share(share)
    deepest = min(len(read.by_depth), _DEEPEST) if depth is None else depth
    asked = Question(
        read,
        Decoding(find(Target, target), find(Drafter, drafter), context, batch),
        site(
            platform,
            {"edge": edge, "server": server},
            bandwidth=bandwidth,
            latency=latency,
            protocol=protocol,
            efficiency=efficiency,
        ),
        tuple(range(deepest + 1)),
        chosen,
        tokens,
        (None,) if draws == "even" else tuple(range(seed, seed + replies)),
        seed,
    )
    if not any(True for _ in asked.candidates()):
        raise ValueError("depth: got 0, but the placements given all need a drafter")
    inputs = asked.inputs() if sensitivity else []
    with advancing(1 + len(inputs), wanted=progress) as advance:
        candidates = tuple(asked.try_(*c) for c in asked.candidates())
        best = fastest(candidates)
        if best is None:
            raise NothingFitsError(_nothing(candidates), candidates)
        advance(1)
        found = None
        if sensitivity:
            found = _sensitivity(asked, candidates, best, inputs, share, advance)
    return SpeculationPlan(asked, candidates, best, found)


def _nothing(candidates: Sequence[Candidate]) -> str:
    # Without a drafter the least is needed.
    nearest = min(candidates, key=lambda c: c.depth)
    reasons = sorted({f"{c.placement}: {c.fails}" for c in candidates if c.depth <= 1})
    return (
        f"nothing fits: {'; '.join(reasons)}. Nearest is {nearest.name}: take fewer bytes a weight, a "
        "shorter context or a device with more memory"
    )


def _sensitivity(
    asked: Question,
    candidates: Sequence[Candidate],
    best: Candidate,
    inputs: list[Input],
    share: float,
    advance: Callable[[int], object],
) -> Sensitivity:
    rates = {(c.placement, c.depth): c.rate for c in candidates}
    order = sorted(rates, key=lambda c: c != (best.placement, best.depth))

    def evaluate(name: str, factor: float) -> Outcome:
        moved = asked.moved(name, factor)
        found: list[Candidate] = []
        rate = 0.0
        # Times that are not moved stay and the others grow by the factor, so no rate grows by more.
        # Acceptance moves otherwise; overlap wastes other numbers of steps, for which there is room.
        most = math.inf if name == "acceptance" else _ROOM * max(factor, 1.0 / factor)
        for candidate in order:
            if rates[candidate] * most < rate:
                continue
            found.append(moved.try_(*candidate))
            if not found[-1].fails:
                rate = max(rate, found[-1].rate)
        now = fastest(found)
        keeping = 0.0 if found[0].fails else found[0].rate
        if now is None:
            return Outcome("nothing fits", 0.0, keeping)
        return Outcome(now.name, now.rate, keeping)

    return analyse(evaluate, inputs, share=share, quantity="tokens a second", advance=advance)
