"""The measurements of one probe: texts of the target, and every drafter unrolled over them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leeboard._progress import progress_bar
from leeboard.draft.probe.attention import ColumnMass
from leeboard.draft.probe.chains import find_sink, measure_chains
from leeboard.draft.probe.context import begin_id, long_prompts
from leeboard.draft.probe.result import DrafterProbe, Measured, Sink
from leeboard.draft.probe.tally import Tally, joined, tally
from leeboard.draft.probe.texts import Texts, greedy_texts, looping
from leeboard.draft.probe.variants import with_config
from leeboard.draft.protocol import Drafter, Feed
from leeboard.draft.target import takes

WINDOWS = ("full", "window", "window + sink")

# More rows than these in front are no sink but a part of the prompt.
_MOST_SINKS = 4

_SWITCHES = (
    "norm_output",
    "fc_norm",
    "norm_before_fc",
    "norm_before_residual",
    "recycle",
    "convention",
    "heads",
    "concat_order",
    "target_state",
    "sliding_window",
    "attention_sinks",
)


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to draft on given texts."""

    drafter: Drafter
    feed: Feed | None = None
    sink: int | None = None


class Probing:
    """The measurements of one call, as they come in."""

    def __init__(
        self,
        target: Any,
        drafters: Mapping[str, Drafter],
        depth: int,
        new_tokens: int,
        batch: int,
        eos_token_id: Any,
        attention: bool,
        progress: bool,
    ) -> None:
        self.found: dict[str, dict[str, dict[Any, Any]]] = {
            name: {key: {} for key in ("conditions", "sinks", "noise", "forced", "context")}
            for name in drafters
        }
        self.told: dict[str, dict[str, int]] = {}
        self._target = target
        self._drafters = drafters
        self._depth = depth
        self._new_tokens = new_tokens
        self._batch = batch
        self._eos = eos_token_id
        self._attention = attention
        self._progress = progress
        self._loops: dict[str, NDArray[np.bool_]] = {}

    def texts(self, name: str, prompts: Sequence[Sequence[int]]) -> Texts:
        """The target's greedy texts, counted."""
        texts = greedy_texts(
            self._target,
            prompts,
            self._new_tokens,
            batch=self._batch,
            eos_token_id=self._eos,
            progress=self._progress,
            title=f"text: {name}",
        )
        loops = [looping(texts.continuation(b)) for b in range(len(prompts))]
        self._loops[name] = np.array(loops)
        self.told[name] = {
            "prompts": len(prompts),
            "prompt_tokens": int(texts.prompts.sum()),
            "new_tokens": int((texts.lengths - texts.prompts).sum()),
            "looping_continuations": sum(loops),
        }
        return texts

    def sinks(self, name: str, texts: Texts) -> dict[str, Sink]:
        """Per drafter the column that draws the most attention at step 0, over all texts."""
        columns = int(texts.first.min()) + 1
        masses = {own: ColumnMass(columns) for own in self._drafters}
        for part, hiddens in self._states(texts, f"sink: {name}", list(self._drafters.values())):
            for own, drafter in self._drafters.items():
                states = hiddens[id(drafter)]
                bounds = {"first": part.first, "lengths": part.lengths}
                find_sink(drafter, part.ids, states, **bounds, mass=masses[own])
        return {own: Sink(m.sink, m.share, m.uniform) for own, m in masses.items()}

    def measure(self, name: str, texts: Texts, ways: Mapping[Any, Way]) -> None:
        """Unroll every way over the texts and keep its tally under its key."""
        tallies: dict[Any, list[Tally]] = {key: [] for key in ways}
        used = [way.drafter for way in ways.values()]
        for part, hiddens in self._states(texts, f"chains: {name}", used):
            for key, way in ways.items():
                chains = measure_chains(
                    way.drafter,
                    part.ids,
                    hiddens[id(way.drafter)],
                    self._depth,
                    first=part.first,
                    lengths=part.lengths,
                    feed=way.feed,
                    attention=self._attention
                    and way.sink is not None
                    and not several_heads(way.drafter),
                    sink=way.sink,
                )
                tallies[key].append(tally(chains))
        for (own, kind, label), parts in tallies.items():
            self.found[own][kind][label] = Measured(joined(parts), self._loops[name])

    def contexts(
        self, matched: Texts, train_length: int, window: int, lengths: Sequence[int], limit: int
    ) -> list[str]:
        """Measure long contexts; notes on what is left out."""
        notes = [
            f"{name}: long texts without windows, its config has none"
            for name, drafter in self._drafters.items()
            if not hasattr(drafter.config, "sliding_window")
        ]
        for factor in lengths:
            length = factor * train_length
            if length > limit:
                notes.append(
                    f"context of {length} tokens: left out, target and drafters have positions for "
                    f"{limit}"
                )
                continue
            name = f"context of {length} tokens"
            bos = begin_id(self._target)
            texts = self.texts(name, long_prompts(matched, length - self._new_tokens, bos))
            ways = {}
            for own, drafter in self._drafters.items():
                ways[own, "context", ("full", length)] = Way(drafter)
                if not hasattr(drafter.config, "sliding_window"):
                    continue
                kept = min(self.found[own]["sinks"]["matched"].column + 1, _MOST_SINKS)
                views = ((None, 0), (window, 0), (window, kept))
                for variant, view in zip(WINDOWS, views, strict=True):
                    changes = {"sliding_window": view[0], "attention_sinks": view[1]}
                    changed = with_config(drafter, **changes)
                    ways[own, "context", (variant, length)] = Way(changed)
            self.measure(name, texts, ways)
        return notes

    def drafter(self, name: str) -> DrafterProbe:
        """What was found of one drafter."""
        found = dict(self.found[name])
        context: dict[str, dict[int, Measured]] = {}
        for (variant, length), measured in found.pop("context").items():
            context.setdefault(variant, {})[length] = measured
        config = self._drafters[name].config
        switches = {key: getattr(config, key) for key in _SWITCHES if hasattr(config, key)}
        return DrafterProbe(**found, context=context, switches=switches)

    def _states(self, texts: Texts, title: str, drafters: Sequence[Drafter]) -> Any:
        """(part of the texts, captured states by drafter id), a batch at a time."""
        only_last = {"logits_to_keep": 1} if takes(self._target, "logits_to_keep") else {}
        count = texts.ids.shape[0]
        with progress_bar(title, count, quiet=not self._progress) as bar:
            for start in range(0, count, self._batch):
                part = texts.part(start, min(start + self._batch, count))
                with contextlib.ExitStack() as stack:
                    caught = {id(d): stack.enter_context(d.capture(self._target)) for d in drafters}
                    self._target(input_ids=part.ids, use_cache=False, **only_last)
                    hiddens = {key: aux.hiddens for key, aux in caught.items()}
                yield part, hiddens
                bar.update(part.ids.shape[0])


def several_heads(drafter: Drafter) -> bool:
    """Whether its steps take turns between several MTP heads."""
    return int(getattr(drafter.config, "heads", 1)) > 1
