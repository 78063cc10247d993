"""Rounds of speculative decoding: how they end, and what two devices do in them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from leeboard.sim import Program

if TYPE_CHECKING:
    from leeboard.scenarios.acceptance import Acceptance
    from leeboard.scenarios.models import Drafter, Target

Placement = Literal["server", "edge", "split", "split+overlap"]
PLACEMENTS: dict[Placement, str] = {
    "server": "target (and drafter) on the server, tokens streamed to the edge",
    "edge": "target (and drafter) on the edge device",
    "split": "drafter on the edge device, target on the server, in turns",
    "split+overlap": "the same, but the drafter drafts on while the target verifies",
}
EDGE, SERVER = 0, 1
# Of a token id on the wire.
_TOKEN = 4
_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
_STREAM = 1


@dataclass(frozen=True)
class Round:
    """How a round ended.

    Attributes:
        accepted: Drafts that the target accepted.
        goes_on: All were, and the drafter had guessed the target's own token as well, so that what
            it drafted meanwhile is the next round's draft. Never without overlap.
    """

    accepted: int
    goes_on: bool = False


# Rounds after each other; the last one does not go on. All rounds but the first use a draft that
# was made while the target verified.
Episode = tuple[Round, ...]


@dataclass(frozen=True)
class Reply:
    """The rounds of one reply: how often each episode occurs, and the tokens that came out."""

    episodes: dict[Episode, int]

    @property
    def rounds(self) -> int:
        """Rounds in all."""
        return sum(len(episode) * n for episode, n in self.episodes.items())

    @property
    def tokens(self) -> int:
        """Tokens in all: the accepted ones and one of the target's own for each round."""
        return sum(n * sum(r.accepted + 1 for r in e) for e, n in self.episodes.items())


def draw(
    acceptance: Acceptance, depth: int, tokens: int, *, overlap: bool, seed: int | None = None
) -> Reply:
    """Draw rounds until they make a reply of at least so many tokens.

    A draft at depth d is accepted with the probability of that depth, if those before it were. With
    overlap a chain that is accepted whole is continued from the drafter's own states, so its next
    drafts are of depths beyond depth + 1.

    Args:
        acceptance: By depth.
        depth: Drafts of a round; 0: the target alone.
        tokens: Of the reply.
        overlap: Whether the drafter drafts on meanwhile.
        seed: Of the draws. None: the outcomes come in their expected shares, spread evenly (the
            multiples of the golden ratio instead of random numbers).
    """
    random = None if seed is None else np.random.default_rng(seed)
    drawn: dict[int, int] = {}
    episodes: Counter[Episode] = Counter()
    made = 0
    open_: list[Round] = []
    while made < tokens:
        # How far the chain has run from the target's states.
        streak = len(open_)
        if random is None:
            count = drawn.get(streak, 0)
            drawn[streak] = count + 1
            u = math.modf(0.5 + count * _GOLDEN)[0]
        else:
            u = float(random.random())
        ended = _ended(acceptance, depth, streak * (depth + 1), u, overlap)
        open_.append(ended)
        made += ended.accepted + 1
        if not ended.goes_on or made >= tokens:
            open_[-1] = Round(ended.accepted)
            episodes[tuple(open_)] += 1
            open_ = []
    return Reply(dict(episodes))


def _ended(acceptance: Acceptance, depth: int, start: int, u: float, overlap: bool) -> Round:
    alive, accepted = 1.0, 0
    for d in range(1, depth + 1):
        alive *= acceptance.at(start + d)
        if u >= alive:
            return Round(accepted)
        accepted += 1
    goes_on = overlap and depth > 0 and u < alive * acceptance.at(start + depth + 1)
    return Round(accepted, goes_on)


@dataclass(frozen=True)
class Decoding:
    """What is decoded.

    Attributes:
        target: The target's sizes.
        drafter: The drafter's.
        context: Rows in the caches; the same in all rounds.
        batch: Sequences that the server decodes at once, each for an edge device of its own.
        header: Bytes of a message beside its content.
    """

    target: Target
    drafter: Drafter
    context: int = 2048
    batch: int = 1
    header: int = 64

    def up(self, depth: int) -> int:
        """Bytes of a draft."""
        return self.header + _TOKEN * depth

    def down(self, accepted: int, *, states: bool) -> int:
        """Bytes of what the target says: the tokens, and their states where the drafter is away."""
        rows = accepted + 1
        return round(self.header + _TOKEN * rows + (self.drafter.message(rows) if states else 0.0))


def program(
    decoding: Decoding, placement: Placement, depth: int, reply: Reply, wasted: Callable[[int], int]
) -> Program:
    """What edge (rank 0) and server (rank 1) do for a reply.

    Rounds without overlap follow each other, so their order is of no matter, and equal episodes are
    a loop.

    Args:
        decoding: What is decoded.
        placement: Where.
        depth: Drafts of a round.
        reply: How its rounds end.
        wasted: With overlap, steps that the drafter makes in vain before it hears that so many
            drafts were accepted and its chain does not go on.
    """
    made = Program(2)
    _memory(made, decoding, placement, depth)
    steps = _Steps(made, decoding, depth)
    for episode, times in reply.episodes.items():
        with made.loop(times):
            if placement == "server":
                steps.on_server(episode[0])
            elif placement == "edge":
                steps.on_edge(episode[0])
            else:
                steps.split(episode, wasted if placement == "split+overlap" else None)
    return made


def _memory(made: Program, decoding: Decoding, placement: Placement, depth: int) -> None:
    target, drafter = decoding.target, decoding.drafter
    batch = 1 if placement == "edge" else decoding.batch
    weights = target.stored + batch * target.cache(decoding.context)
    head = drafter.stored(alone=placement.startswith("split")) if depth else 0.0
    rows = drafter.cache(decoding.context) if depth else 0.0
    if placement == "edge":
        made[EDGE].alloc(round(weights + head + rows))
    elif placement == "server":
        made[SERVER].alloc(round(weights + head + batch * rows))
    else:
        made[EDGE].alloc(round(head + rows))
        made[SERVER].alloc(round(weights + drafter.entry * drafter.bytes_per_weight))


class _Steps:
    def __init__(self, made: Program, decoding: Decoding, depth: int) -> None:
        self.made, self.what, self.depth = made, decoding, depth

    def on_server(self, ended: Round) -> None:
        """The next round does not wait for the stream of tokens."""
        server = self.made[SERVER]
        if self.depth:
            self._states(SERVER, ended, self.what.batch)
            self._chain(SERVER, self.depth, self.what.batch)
        self._verify(SERVER, self.what.batch)
        server.send(EDGE, self.what.down(ended.accepted, states=False), stream=_STREAM)
        self.made[EDGE].recv(SERVER)

    def on_edge(self, ended: Round) -> None:
        if self.depth:
            self._states(EDGE, ended, 1)
            self._chain(EDGE, self.depth, 1)
        self._verify(EDGE, 1)

    def split(self, episode: Episode, wasted: Callable[[int], int] | None) -> None:
        edge, server = self.made[EDGE], self.made[SERVER]
        self._chain(EDGE, self.depth, 1)
        for ended in episode:
            edge.send(SERVER, self.what.up(self.depth))
            if wasted is not None:
                # The guess of the target's own token, and the next round's draft behind it.
                more = self.depth + 1 if ended.goes_on else wasted(ended.accepted)
                self._chain(EDGE, more, 1)
            server.recv(EDGE)
            self._verify(SERVER, self.what.batch)
            self._states(SERVER, ended, self.what.batch)
            server.send(EDGE, self.what.down(ended.accepted, states=True))
            edge.recv(SERVER)

    def _chain(self, rank: int, steps: int, batch: int) -> None:
        # The first step takes in the rows of all tokens that the last round accepted; it reads the
        # same weights.
        for _ in range(steps):
            self.made[rank].compute(**self.what.drafter.work(1, self.what.context, batch))

    def _states(self, rank: int, ended: Round, batch: int) -> None:
        if self.what.drafter.entry:
            self.made[rank].compute(**self.what.drafter.entry_work(ended.accepted + 1, batch))

    def _verify(self, rank: int, batch: int) -> None:
        rows = self.depth + 1
        self.made[rank].compute(**self.what.target.work(rows, self.what.context, batch))
