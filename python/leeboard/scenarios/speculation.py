"""Where to run drafter and target, and how deep to draft."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from leeboard._progress import progress_bar
from leeboard.scenarios.acceptance import Acceptance, acceptance_of
from leeboard.scenarios.models import Drafter, Target, find
from leeboard.scenarios.rounds import (
    EDGE,
    PLACEMENTS,
    SERVER,
    Decoding,
    Placement,
    Reply,
    Round,
    program,
)
from leeboard.scenarios.rounds import draw as draw_rounds
from leeboard.scenarios.sensitivity import (
    Input,
    Outcome,
    Sensitivity,
    analyse,
    check_share,
    write_report,
)
from leeboard.scenarios.site import EFFICIENCY, Site, site
from leeboard.sim import Platform, run
from leeboard.sim.table import Table, aligned, text_of

if TYPE_CHECKING:
    from leeboard.sim import Device

FORMAT = "leeboard.plan.speculation"
_DEEPEST = 32
_ROOM = 1.25
_UNITS = {"seconds": "s", "energy": "J"}


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
            reply = draw_rounds(self.acceptance, depth, self.tokens, overlap=overlap, seed=seed)
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
            seed=seed or 0,
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
            return min(depth + 1, math.ceil((waits[0] + slope * accepted) / step))

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


@dataclass(frozen=True)
class SpeculationPlan:
    """The answer of `plan_speculation`; `print(plan)` shows it.

    Attributes:
        question: All inputs.
        candidates: Every placement and depth.
        best: The fastest that can be.
        sensitivity: How far that depends on the inputs; None if it was not asked.
    """

    question: Question
    candidates: tuple[Candidate, ...]
    best: Candidate
    sensitivity: Sensitivity | None = None

    @cached_property
    def table(self) -> Table:
        """A row a candidate: placement, depth, rate (tokens a second), seconds (a token), tau,
        energy (joules a token), best, note (why it fails, or how much slower it is)."""
        return _table(self.candidates, [self._note(c) for c in self.candidates])

    def _note(self, candidate: Candidate) -> str:
        if candidate.fails:
            return candidate.fails
        if candidate is self.best:
            return "best"
        return f"{100 * (1 - candidate.rate / self.best.rate):.1f} % slower"

    def plot(self, path: str | Path | None = None) -> Any:
        """Draw tokens a second by depth, and what moves them.

        Args:
            path: Where to (.png, .svg, .pdf); None: nowhere.

        Returns:
            The matplotlib Figure.
        """
        from leeboard.scenarios.pictures import speculation

        return speculation(self, path)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        q = self.question
        return {
            "acceptance_by_depth": list(q.acceptance.by_depth),
            "acceptance_source": q.acceptance.source,
            "target": dataclasses.asdict(q.decoding.target),
            "drafter": dataclasses.asdict(q.decoding.drafter),
            "context": q.decoding.context,
            "batch": q.decoding.batch,
            "tokens": q.tokens,
            "draws": "even" if q.seeds == (None,) else {"seeds": list(q.seeds)},
            "devices": dict(q.site.roles),
            "platform": q.site.platform.describe(),
            "candidates": [dataclasses.asdict(c) for c in self.candidates],
            "best": dataclasses.asdict(self.best),
            "sensitivity": None if self.sensitivity is None else self.sensitivity.to_dict(),
        }

    def to_json(self, path: str | Path) -> None:
        """Write everything to a JSON file, whole or not at all."""
        write_report(path, FORMAT, self.to_dict())

    def __str__(self) -> str:
        q = self.question
        kinds = [f"{role} {q.site.device(role).name or 'of no name'}" for role in q.site.roles]
        parts = [
            f"{q.decoding.target.name} with {q.decoding.drafter.name}; {', '.join(kinds)}; "
            f"context {q.decoding.context:,}, replies of {q.tokens:,} tokens"
            + (f", batch {q.decoding.batch} on the server" if q.decoding.batch > 1 else ""),
            f"acceptance ({q.acceptance.source}): "
            + " ".join(f"{share:.0%}" for share in q.acceptance.by_depth),
            "",
            "tokens a second by depth (* best; ! does not fit)",
            self._matrix(),
            "",
            self._summary(),
            "",
            self._verdict(),
        ]
        if self.sensitivity is not None:
            parts += ["", str(self.sensitivity)]
        return "\n".join(parts)

    def _matrix(self) -> str:
        depths = self.question.depths
        found = {(c.placement, c.depth): c for c in self.candidates}
        rows = []
        for placement in self.question.placements:
            cells = [placement]
            for depth in depths:
                c = found.get((placement, depth))
                mark = "" if c is None else "!" if c.fails else "*" if c is self.best else " "
                cells.append("" if c is None else f"{_rate(c.rate)}{mark}")
            rows.append(cells)
        return aligned(["placement", *(f"{d} " for d in depths)], rows)

    def _summary(self) -> str:
        header = ("best of", "depth", "tokens/s", "a token", "tau", "J/token", "note")
        rows = []
        for placement in self.question.placements:
            own = [c for c in self.candidates if c.placement == placement]
            if own:
                c = max(own, key=lambda c: (not c.fails, c.rate))
                cells = [placement, str(c.depth), _rate(c.rate), text_of(1 / c.rate, "s")]
                rows.append([*cells, f"{c.tau:.2f}", text_of(c.energy), self._note(c)])
        return aligned(header, rows)

    def _verdict(self) -> str:
        best = self.best
        alone = [c for c in self.candidates if c.depth == 0 and not c.fails]
        words = f"Best: {best.name} ({PLACEMENTS[best.placement]}): {_rate(best.rate)} tokens/s"
        if best.depth and alone:
            base = max(alone, key=lambda c: c.rate)
            words += f", {best.rate / base.rate:.2f}x the best without a drafter ({base.placement})"
        return words + "."


class NothingFitsError(ValueError):
    """No candidate fits into the devices' memory.

    Attributes:
        candidates: All of them, and why they fail.
    """

    def __init__(self, message: str, candidates: tuple[Candidate, ...]) -> None:
        super().__init__(message)
        self.candidates = candidates

    @property
    def table(self) -> Table:
        """As `SpeculationPlan.table`."""
        return _table(self.candidates, [c.fails for c in self.candidates])


def _table(rows: Sequence[Candidate], notes: Sequence[str]) -> Table:
    return Table(
        {
            "placement": [c.placement for c in rows],
            "depth": [c.depth for c in rows],
            "rate": [c.rate for c in rows],
            "seconds": [1.0 / c.rate for c in rows],
            "tau": [c.tau for c in rows],
            "energy": [c.energy for c in rows],
            "best": [note == "best" for note in notes],
            "note": list(notes),
        },
        _UNITS,
    )


def _rate(rate: float) -> str:
    return f"{rate:.4g}" if rate < 1e4 else f"{rate:,.0f}"


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
        seed: With "seeded": of the first reply.
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
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"{name}: got {value!r}, expected an integer from {least} to {most}")
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
    )
    if not any(True for _ in asked.candidates()):
        raise ValueError("depth: got 0, but the placements given all need a drafter")
    inputs = asked.inputs() if sensitivity else []
    with progress_bar("planning", 1 + len(inputs), quiet=not progress) as bar:
        candidates = tuple(asked.try_(*c) for c in asked.candidates())
        best = _best(candidates)
        if best is None:
            raise NothingFitsError(_nothing(candidates), candidates)
        bar.update(1)
        found = None
        if sensitivity:
            found = _sensitivity(asked, candidates, best, inputs, share, bar.update)
    return SpeculationPlan(asked, candidates, best, found)


def _best(candidates: Sequence[Candidate]) -> Candidate | None:
    """The fastest; of equal ones the shallowest."""
    able = [c for c in candidates if not c.fails]
    return max(able, key=lambda c: (c.rate, -c.depth)) if able else None


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
        fastest = 0.0
        # Times that are not moved stay and the others grow by the factor, so no rate grows by more.
        # Acceptance moves otherwise; overlap wastes other numbers of steps, for which there is room.
        most = math.inf if name == "acceptance" else _ROOM * max(factor, 1.0 / factor)
        for candidate in order:
            if rates[candidate] * most < fastest:
                continue
            found.append(moved.try_(*candidate))
            if not found[-1].fails:
                fastest = max(fastest, found[-1].rate)
        now = _best(found)
        keeping = 0.0 if found[0].fails else found[0].rate
        if now is None:
            return Outcome("nothing fits", 0.0, keeping)
        return Outcome(now.name, now.rate, keeping)

    return analyse(evaluate, inputs, share=share, quantity="tokens a second", advance=advance)
