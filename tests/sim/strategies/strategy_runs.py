"""Running a strategy on simulated ranks, and what one device alone would write."""

from __future__ import annotations

import importlib
from typing import Any

from leeboard.sim import Platform, launch
from leeboard.sim.distributed.launch import Launched
from leeboard.sim.strategies.llama import Cache, config_of
from leeboard.sim.strategies.weights import build, tokens


def simulate(name: str, ranks: int, words: str = "", platform: Platform | None = None) -> Launched:
    """`name` with the options `words` on a star; computing takes no time."""
    main = importlib.import_module(f"leeboard.sim.strategies.{name}").main
    if platform is None:
        platform = Platform.star(ranks, bandwidth="1 Gbit/s", latency="100 us")
    return launch(main, platform, ranks=ranks, args=(words.split(),), compute="none")


def figures(launched: Launched) -> dict[str, Any]:
    """What rank 0 reports."""
    found: dict[str, Any] = launched.values[0]
    return found


def alone(count: int, prompt: int = 16, model: str = "tiny", seed: int = 0) -> list[int]:
    """The tokens of the undivided model after the first prompt."""
    config = config_of(model)
    llama, cache = build(config, seed=seed), Cache(prompt + count)
    text = [llama(tokens(config, 1, prompt, seed, "cpu"), cache)[:, -1].argmax(-1)]
    while len(text) < count:
        text.append(llama(text[-1][:, None], cache)[:, -1].argmax(-1))
    return [int(token) for token in text]
