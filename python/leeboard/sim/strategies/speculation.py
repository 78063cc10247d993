"""The two models of speculative decoding and the rounds they play, without the link between them."""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from leeboard.sim.strategies.deployment import Place
from leeboard.sim.strategies.llama import Cache, Config
from leeboard.sim.strategies.weights import build


class Chances:
    """Which proposals are kept, drawn for (position, depth): the same on both ranks.

    Args:
        by_depth: Probability that the proposal at depth 1, 2, ... is kept, given that those before
            it were; the last one also for deeper ones.
        seed: Of the draws.
    """

    def __init__(self, by_depth: Sequence[float], seed: int) -> None:
        self.by_depth = by_depth
        self.seed = seed

    def kept(self, position: int, depth: int) -> bool:
        """Whether the proposal for token `position` of the answer, at `depth` of a chain, is."""
        chance = self.by_depth[min(depth, len(self.by_depth)) - 1]
        return random.Random(f"{self.seed}/{position}/{depth}").random() < chance


class Drafter:
    """A small model that goes on from the text so far, and can be set back.

    Args:
        place: Where it runs.
        config: Its sizes.
        chances: If given, what it proposes is `truth`, or not, by these.
        truth: Tokens of the answer as the target writes it; None where values are not looked at.
    """

    def __init__(
        self, place: Place, config: Config, chances: Chances | None, truth: Tensor | None
    ) -> None:
        options = place.options
        self.model = build(config, seed=options.seed, device=place.device, dtype=place.dtype)
        self.cache = Cache(options.prompt + options.tokens + 2 * options.depth + 2)
        self.prompt = options.prompt
        self.chances = chances
        self.truth = truth
        # Proposed and not sent yet; how deep the chain is; what the model has not read.
        self.ahead: list[Tensor] = []
        self.depth = 0
        self.unread = place.prompts()[:, :0]

    def read(self, prompt: Tensor) -> None:
        """The prompt, before there is a token to go on from."""
        self.model(prompt, self.cache, 0)

    def reset(self, kept: int, unread: Tensor) -> None:
        """The text is `kept` tokens of the answer, of which the last ones, [1, N], are unread."""
        self.cache.length = self.prompt + kept - unread.shape[1]
        self.unread, self.ahead, self.depth = unread, [], 0

    def propose(self) -> None:
        """One more token, [1], into `ahead`."""
        token = self.model(self.unread, self.cache)[:, -1].argmax(-1)
        self.depth += 1
        position = self.cache.length - self.prompt
        if self.chances is not None and self.truth is not None:
            token = self.truth[position : position + 1]
            if not self.chances.kept(position, self.depth):
                token = (token + 1) % self.model.config.vocab
        self.unread = token[None]
        self.ahead.append(token)


class Target:
    """The model whose text it is.

    Args:
        place: Where it runs.
    """

    def __init__(self, place: Place) -> None:
        options = place.options
        self.model = build(place.config, seed=options.seed, device=place.device, dtype=place.dtype)
        self.cache = Cache(options.prompt + options.tokens + options.depth + 1)

    def read(self, prompt: Tensor) -> Tensor:
        """The first token of the answer. [1]"""
        token: Tensor = self.model(prompt, self.cache)[:, -1].argmax(-1)
        return token

    def verify(self, last: Tensor, drafts: Tensor) -> Tensor:
        """What it writes after `last` [1], and after each of `drafts` [K] if those before were
        kept. [K + 1]"""
        given = torch.cat((last, drafts))[None]
        written: Tensor = self.model(given, self.cache, given.shape[1])[0].argmax(-1)
        return written

    def keep(self, drafts: int, kept: int) -> None:
        """Forgets the proposals that were not kept."""
        self.cache.length -= drafts - kept


class Rounds:
    """How far the answer is, on either rank: which rounds there are and how they end.

    Where values are not looked at, both ranks draw the end of a round alike.
    """

    def __init__(self, options: argparse.Namespace, chances: Chances | None) -> None:
        self.options = options
        self.chances = chances
        self.written = 1
        self.chain = 0
        self.kept: list[int] = []
        self.drafted: list[int] = []
        self.hits = 0

    @property
    def over(self) -> bool:
        """Whether the answer is complete."""
        return bool(self.written >= self.options.tokens)

    @property
    def most(self) -> int:
        """Proposals of a round at most."""
        return 0 if self.options.drafter == "none" else int(self.options.depth)

    @property
    def depth(self) -> int:
        """Proposals of the next round: the last ones are no more than are wanted."""
        return int(min(self.most, self.options.tokens - self.written - 1))

    @property
    def left(self) -> int:
        """Rounds that there will be at least."""
        wanted = int(self.options.tokens) - self.written
        return -(-wanted // (self.most + 1))

    def drawn(self) -> int:
        """Proposals of this round that are kept, where that is not seen."""
        assert self.chances is not None
        for number in range(self.depth):
            if not self.chances.kept(self.written + number, self.chain + number + 1):
                return number
        return self.depth

    def guessed(self, kept: int) -> bool:
        """Whether the target's own token is the drafter's next, where that is not seen."""
        assert self.chances is not None
        depth = self.depth
        return kept == depth and self.chances.kept(self.written + depth, self.chain + depth + 1)

    def end(self, kept: int, hit: bool) -> None:
        """This round: proposals kept, and whether the chain drafted ahead goes on."""
        depth = self.depth
        self.chain = self.chain + depth + 1 if hit else 0
        self.kept.append(kept)
        self.drafted.append(depth)
        self.hits += hit
        self.written += kept + 1

    def figures(self) -> dict[str, Any]:
        """Rounds, proposals kept in each on average, and by depth: kept of those reached."""
        rounds = len(self.kept)
        shares = []
        for depth in range(1, max(self.drafted, default=0) + 1):
            reached = [
                kept
                for kept, drafted in zip(self.kept, self.drafted, strict=True)
                if kept >= depth - 1 and drafted >= depth
            ]
            shares.append(sum(kept >= depth for kept in reached) / len(reached) if reached else 0)
        return {
            "rounds": rounds,
            "kept_per_round": sum(self.kept) / rounds if rounds else 0.0,
            "acceptance_by_depth": shares,
            "drafted_ahead": self.hits,
        }


def longest(drafts: Tensor, written: Tensor) -> int:
    """How many of the proposals [K] are what the target wrote [K + 1]. Looks at values."""
    same = (drafts == written[:-1]).long()
    return int(same.cumprod(0).sum())
