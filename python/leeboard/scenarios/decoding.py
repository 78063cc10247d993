"""The question where to run drafter and target: its inputs, and one candidate in the simulator."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from leeboard.scenarios.acceptance import Acceptance
from leeboard.scenarios.rounds import EDGE, SERVER, Decoding, Placement, Reply, Round, draw, program
from leeboard.scenarios.sensitivity import Input
from leeboard.scenarios.site import Site
from leeboard.sim import run
from leeboard.sim.table import text_of


@dataclass(frozen=True)
class Candidate:
    """A placement and a depth, as the simulator finds them.

    Attributes:
        placement: "server", "edge", "split" or "split+overlap".
        depth: Drafts of a round; 0: the target alone.
        rate: Tokens a second of a reply to one user, until its last token is at the edge.
        tau: Tokens of a round in that reply.
        energy: Joules a token of the devices it uses (of a server that decodes a batch, its share);
            NaN where their power is not known.
        fails: Why it cannot be; "" if it can.
    """

    placement: Placement
    depth: int
    rate: float
    tau: float
    energy: float
    fails: str = ""

    @property
    def name(self) -> str:
        """In words."""
        if self.depth == 0:
            return f"{self.placement}, no drafter"
        return f"{self.placement}, depth {self.depth}"


@dataclass(frozen=True)
class Question:
    """All inputs; a changed copy is a what-if."""

    acceptance: Acceptance
    decoding: Decoding
    site: Site
    depths: tuple[int, ...]
    placements: tuple[Placement, ...]
    tokens: int = 1024
    seeds: tuple[int | None, ...] = (None,)
    seed: int = 0
    network: Literal["flow", "alpha-beta"] = "flow"

    def candidates(self) -> Iterator[tuple[Placement, int]]:
        """Placements and depths; without a drafter there is nothing to split."""
        for placement in self.placements:
            for depth in self.depths:
                if depth or not placement.startswith("split"):
                    yield placement, depth

    def try_(self, placement: Placement, depth: int) -> Candidate:
        """Simulate one of them; with several seeds the mean of their replies."""
        overlap = placement == "split+overlap"
        found = []
        for seed in self.seeds:
            reply = draw(self.acceptance, depth, self.tokens, overlap=overlap, seed=seed)
            wasted = self._wasted(depth) if overlap else lambda accepted: 0
            made = program(self.decoding, placement, depth, reply, wasted)
            found.append((reply, self._run(made, seed)))
        tokens = sum(reply.tokens for reply, _ in found)
        time = sum(result.makespan for _, result in found)
        energy = sum(self._energy(placement, result) for _, result in found)
        out = found[0][1].out_of_memory
        return Candidate(
            placement,
            depth,
            rate=tokens / time,
            tau=tokens / sum(reply.rounds for reply, _ in found),
            energy=energy / tokens,
            fails="; ".join(self._memory(entry) for entry in out),
        )

    def _run(self, made: Any, seed: int | None) -> Any:
        return run(
            made,
            self.site.platform,
            network=self.network,
            seed=self.seed if seed is None else seed,
            timeline=False,
            links=False,
        )

    def _wasted(self, depth: int) -> Callable[[int], int]:
        """Steps in vain before the drafter hears of a chain's end, from rounds in turns.

        It stops between two steps; the wait is linear in what the target sends.
        """
        waits = []
        for accepted in (0, depth):
            reply = Reply({(Round(accepted),): 1})
            alone = self._run(program(self.decoding, "split", depth, reply, lambda a: 0), None)
            waits.append(alone.makespan - float(alone.ranks["compute"][EDGE]))
            step = float(alone.ranks["compute"][EDGE]) / depth
        slope = (waits[1] - waits[0]) / depth

        def wasted(accepted: int) -> int:
            steps: int = math.ceil((waits[0] + slope * accepted) / step)
            return min(depth + 1, steps)

        return wasted

    def _energy(self, placement: Placement, result: Any) -> float:
        used = {"edge": ("edge",)}.get(placement, ("edge", "server"))
        if not all(self.site.draws(role) for role in used):
            return math.nan
        ranks = result.ranks["energy"]
        server = float(ranks[SERVER]) / self.decoding.batch if "server" in used else 0.0
        return float(ranks[EDGE]) + server

    def _memory(self, entry: Any) -> str:
        role = ("edge", "server")[entry.rank]
        needed = text_of(entry.in_use, "B")
        return f"memory: {needed} on the {role}, which has {text_of(entry.limit, 'B')}"

    def moved(self, name: str, factor: float) -> Question:
        """The same with one input times a factor."""
        decoding = self.decoding
        target, drafter = decoding.target, decoding.drafter
        if name == "batch":
            batch = max(1, round(decoding.batch * factor))
            return replace(self, decoding=replace(decoding, batch=batch))
        if name == "acceptance":
            return replace(self, acceptance=self.acceptance.scaled(factor))
        if name == "link bandwidth":
            return replace(self, site=self.site.scaled(bandwidth=factor))
        if name == "link latency":
            return replace(self, site=self.site.scaled(latency=factor))
        if name in ("edge speed", "server speed"):
            return replace(self, site=self.site.faster(name.split()[0], factor))
        if name == "target weights":
            target = replace(target, bytes_per_weight=target.bytes_per_weight * factor)
        elif name == "drafter weights":
            drafter = replace(drafter, bytes_per_weight=drafter.bytes_per_weight * factor)
        else:
            return replace(
                self, decoding=replace(decoding, context=max(1, round(decoding.context * factor)))
            )
        return replace(self, decoding=replace(decoding, target=target, drafter=drafter))

    def inputs(self) -> list[Input]:
        """What is moved to see how far the answer depends on it."""
        links = self.site.platform.graph.kinds
        shares = self.acceptance.by_depth
        weights = (self.decoding.target, self.decoding.drafter)

        def bandwidth(factor: float) -> str:
            return f"{text_of(8e-6 * min(k.bandwidth for k in links) * factor)} Mbit/s"

        def latency(factor: float) -> str:
            return text_of(max(k.latency for k in links) * factor, "s")

        def speed(factor: float) -> str:
            return f"{factor:.2f}x"

        found = [
            Input("acceptance", lambda f: f"{min(1.0, shares[0] * f):.2f} at depth 1"),
            Input("link bandwidth", bandwidth),
            Input("link latency", latency),
            Input("edge speed", speed),
            Input("server speed", speed),
            *(
                Input(
                    f"{type(m).__name__.lower()} weights",
                    lambda f, m=m: f"{text_of(m.bytes_per_weight * f)} B each",  # type: ignore[misc]
                )
                for m in weights
            ),
            Input("context", lambda f: f"{round(self.decoding.context * f):,} tokens"),
        ]
        if self.decoding.batch > 1:
            found.append(Input("batch", lambda f: f"{max(1, round(self.decoding.batch * f))}"))
        if not any(k.latency for k in links):
            found = [given for given in found if given.name != "link latency"]
        return found


def fastest(candidates: Sequence[Candidate]) -> Candidate | None:
    """The fastest; of equal ones the shallowest."""
    able = [c for c in candidates if not c.fails]
    return max(able, key=lambda c: (c.rate, -c.depth)) if able else None
