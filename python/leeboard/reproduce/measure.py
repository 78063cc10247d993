"""Counting a drafter on the held-out texts: every reading of one training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leeboard._files import replacing
from leeboard.draft.probe import Chains, Texts, looping, measure_chains
from leeboard.draft.probe.variants import forced, noise, with_config
from leeboard.draft.protocol import Drafter, Feed
from leeboard.reproduce.readings import FORCED, WINDOWS, Reading, context, noisy
from leeboard.reproduce.settings import CONDITIONS, MATCHED, Settings

# Means over heads of a row's attention that are kept.
_ATTENTION = ("sink", "prompt", "own", "recent", "entropy")


@dataclasses.dataclass(frozen=True)
class Held:
    """All texts that drafters are counted on.

    Attributes:
        conditions: Per condition, the same prompts in each; not all where some change nothing.
        contexts: Per bucket of context length.
        checks: Other prompts, for the checks in training, in the matched condition.
    """

    conditions: Mapping[str, Texts]
    contexts: tuple[Texts, ...]
    checks: Texts

    def save(self, folder: Path) -> None:
        """Write every set of texts as npz."""
        for name, texts in self.conditions.items():
            save_texts(texts, _condition_path(folder, name))
        for number, texts in enumerate(self.contexts):
            save_texts(texts, folder / f"context-{number}.npz")
        save_texts(self.checks, folder / "checks.npz")

    @classmethod
    def load(cls, folder: Path, settings: Settings) -> Held:
        """Read what `save` wrote."""
        conditions = {
            name: load_texts(_condition_path(folder, name))
            for name in CONDITIONS
            if _condition_path(folder, name).exists()
        }
        contexts = [load_texts(folder / f"context-{n}.npz") for n in range(settings.buckets)]
        return cls(conditions, tuple(contexts), load_texts(folder / "checks.npz"))


def _condition_path(folder: Path, name: str) -> Path:
    return folder / f"condition-{list(CONDITIONS).index(name)}.npz"


def save_texts(texts: Texts, path: Path) -> None:
    """Write texts as npz."""
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **{name: value.cpu().numpy() for name, value in vars(texts).items()})


def load_texts(path: Path) -> Texts:
    """Read what `save_texts` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        return Texts(**{name: torch.from_numpy(arrays[name]) for name in arrays.files})


def measure(
    settings: Settings,
    target: Any,
    drafter: Drafter,
    held: Held,
    seed: int = 0,
    tell: Callable[[float], None] = lambda share: None,
) -> dict[str, Reading]:
    """Every reading of a drafter, by name.

    Args:
        settings: Depths, windows, noise.
        target: The target, on the drafter's device.
        drafter: An EAGLE-3 drafter.
        held: The texts.
        seed: Of the noise.
        tell: Called with the share of the work that is done.
    """
    config: Any = drafter.config
    unbounded = not (config.norm_output or config.norm_before_residual)
    count = len(held.conditions) + len(settings.noise) + unbounded + settings.buckets * len(WINDOWS)
    made: dict[str, Reading] = {}

    def take(name: str, by: Drafter, texts: Texts, states: list[Tensor], **options: Any) -> None:
        made[name] = read(by, texts, states, **{"depth": settings.depth, **options})
        tell(len(made) / count)

    for name, texts in held.conditions.items():
        states = target_states(target, drafter, texts)
        take(name, drafter, texts, states, attention=name == MATCHED)
        if name != MATCHED:
            continue
        if unbounded:
            take(FORCED, forced(drafter, {"norm_output": True}), texts, states)
        some = texts.part(0, min(settings.noise_prompts, len(texts.lengths)))
        for alpha in settings.noise:
            take(noisy(alpha), drafter, some, states, feed=noise(alpha, seed))
    window = {"sliding_window": settings.window}
    versions = {
        "full": drafter,
        "window": with_config(drafter, **window),
        "window + sinks": with_config(drafter, **window, attention_sinks=settings.sinks),
    }
    for bucket, texts in enumerate(held.contexts):
        states = target_states(target, drafter, texts)
        for name, version in versions.items():
            take(context(bucket, name), version, texts, states, depth=settings.context_depth)
    return made


def read(
    drafter: Drafter,
    texts: Texts,
    states: list[Tensor],
    *,
    depth: int,
    feed: Feed | None = None,
    attention: bool = False,
) -> Reading:
    """Count one drafter on one set of texts, all rows of the continuations as starts of chains.

    Args:
        drafter: The drafter.
        texts: N texts.
        states: The target's states of (at least) these texts.
        depth: Chain steps.
        feed: Changes what steps are fed.
        attention: Whether to measure that, too.
    """
    device = states[0].device
    ids = texts.ids.to(device)
    chains = measure_chains(
        drafter,
        ids,
        [state[: ids.shape[0], : ids.shape[1]] for state in states],
        depth,
        first=texts.first,
        lengths=texts.lengths,
        feed=feed,
        attention=attention,
    )
    rounds = chains.rounds()
    tested, alive = chains.tested, chains.surviving
    return Reading(
        loops=np.array([looping(texts.continuation(b)) for b in range(len(ids))], dtype=float),
        rounds=np.array([len(found) for found in rounds], dtype=float),
        accepted=np.array([sum(found) for found in rounds], dtype=float),
        reached=_sums(alive, alive),
        kept=_sums(chains.match, alive),
        rows=_sums(tested, tested),
        hits=_sums(chains.match, tested),
        rms=_sums(chains.rms, tested),
        reached_rms=_sums(chains.rms, alive),
        shares=_shares(chains),
    )


def _shares(chains: Chains) -> dict[str, Any]:
    """Sums of what was measured of the attention; the control of own tokens with its rows."""
    attention = chains.attention
    if attention is None:
        return {}
    made = {of: _sums(getattr(attention, of), chains.tested) for of in _ATTENTION}
    paired = chains.tested & attention.matched.isfinite()
    made["own_paired"] = _sums(attention.own, paired)
    made["matched"] = _sums(attention.matched, paired)
    return made


def _sums(values: Tensor, where: Tensor) -> Any:
    """float64 [B, K]: sums of values [K, B, T] over the rows where they count."""
    return torch.where(where, values.double(), 0.0).sum(-1).T.cpu().numpy()


@torch.no_grad()
def target_states(target: Any, drafter: Drafter, texts: Texts, chunk: int = 16) -> list[Tensor]:
    """The states that the drafter fuses, [N, T, Ht] each, of whole texts."""
    parts = []
    with drafter.capture(target) as aux:
        for ids in torch.split(texts.ids.to(target.device), chunk):
            target(input_ids=ids, use_cache=False)
            parts.append(aux.hiddens)
    return [torch.cat(states) for states in zip(*parts, strict=True)]
