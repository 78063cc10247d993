"""`probe`: all measurements of some drafters on some prompts."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from leeboard._progress import progress_bar
from leeboard.draft.checks import positive_int
from leeboard.draft.probe.attention import ColumnMass
from leeboard.draft.probe.chains import find_sink, measure_chains
from leeboard.draft.probe.conditions import CONDITIONS, PromptSet, check_conditions, prompt_set
from leeboard.draft.probe.context import begin_id, long_prompts
from leeboard.draft.probe.result import DrafterProbe, Measured, ProbeResult, Sink
from leeboard.draft.probe.tally import Tally, joined, tally
from leeboard.draft.probe.texts import Texts, greedy_texts, looping
from leeboard.draft.probe.variants import check_forcible, forced, noise, with_config
from leeboard.draft.protocol import Drafter, Feed
from leeboard.draft.target import takes

NOISE = (0.1, 0.5, 1.0)
LENGTHS = (1, 2, 3, 4)
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
class _Way:
    """One way to draft on given texts."""

    drafter: Drafter
    feed: Feed | None = None
    sink: int | None = None


@torch.no_grad()
def probe(
    target: Any,
    drafter: Drafter | Mapping[str, Drafter],
    prompts: PromptSet | Sequence[Any],
    *,
    tokenizer: Any = None,
    depth: int = 16,
    new_tokens: int = 96,
    conditions: Sequence[str] = CONDITIONS,
    noise_levels: Sequence[float] = NOISE,
    force: Mapping[str, Any] | None = None,
    train_length: int | None = None,
    window: int | None = None,
    lengths: Sequence[int] = LENGTHS,
    attention: bool = True,
    batch: int = 16,
    eos_token_id: int | Iterable[int] | None = None,
    resamples: int = 10000,
    seed: int = 0,
    progress: bool = False,
) -> ProbeResult:
    """Measure how drafters hold course, depth by depth, and under what they break.

    The target writes its greedy continuation of every prompt once per condition; the drafters are
    then unrolled over these texts, teacher-forced, which tells real greedy decoding exactly (see
    `measure_chains`). Figures are given over all rows and over the surviving ones, whose earlier
    drafts all matched: only those happen in decoding, but deep ones are the easy ones.

    Args:
        target: A Hugging Face causal LM in eval mode.
        drafter: A drafter for it, or several by name: all see the same texts.
        prompts: As for `prompt_set`, or what that returned.
        tokenizer: Needed for chats and strings.
        depth: K, steps of the chains; also beyond what the drafter was trained on.
        new_tokens: Tokens of every continuation, fewer where it ends itself.
        conditions: Of `CONDITIONS`; the matched template is always measured.
        noise_levels: Gaussian noise on the fed-back state, as multiples of its RMS.
        force: Switches of the config to override, such as {"norm_output": True}: a negative
            control, not a way to run a drafter.
        train_length: Tokens of a row in the drafter's training; measures contexts of that length
            times `lengths`. None leaves them out.
        window: The window of these measurements, in tokens; None for half of `train_length`.
        lengths: Multiples of `train_length`.
        attention: Measure where rows look; costs about as much as the rest.
        batch: Prompts at a time.
        eos_token_id: As for `speculate`.
        resamples: Of the bootstrap over prompts behind every interval.
        seed: Of the bootstrap and of the noise.
        progress: Show progress bars (needs tqdm).

    Raises:
        TypeError: `drafter` is none.
        ValueError: A drafter does not fit the target, a prompt is too long or has an id outside the
            vocabulary, or an argument is out of range.
    """
    drafters = {"drafter": drafter} if isinstance(drafter, torch.nn.Module) else dict(drafter)
    for name, value in (("depth", depth), ("new_tokens", new_tokens), ("resamples", resamples)):
        positive_int(name, value)
    _check_models(target, drafters)
    overrides = dict(force or {})
    changed = _forced(drafters, overrides)
    _check_numbers(noise_levels, train_length, window, lengths, new_tokens)
    check_conditions(conditions)
    if not isinstance(prompts, PromptSet):
        prompts = prompt_set(prompts, tokenizer, conditions)
    limit = _limit(target, drafters)
    for name, ids in prompts.ids.items():
        _check_room(name, ids, new_tokens, limit)
    several = [name for name, d in drafters.items() if attention and _several(d)]
    probed = _Probing(target, drafters, depth, new_tokens, batch, eos_token_id, attention, progress)
    notes = list(prompts.notes)
    if overrides:
        kept = [name for name in drafters if name not in changed]
        notes += [f"{name}: nothing forced, it is as given already" for name in kept]
    notes += [
        f"{name}: attention left out, it has several heads, each with keys of its own"
        for name in several
    ]
    matched: Texts | None = None
    for name, ids in prompts.ids.items():
        if name != "matched" and name not in conditions:
            continue
        texts = probed.texts(name, ids)
        matched = texts if name == "matched" else matched
        sinks = probed.sinks(name, texts)
        for own, sink in sinks.items():
            probed.found[own]["sinks"][name] = sink
        ways: dict[Any, _Way] = {
            (own, "conditions", name): _Way(d, sink=sinks[own].column)
            for own, d in drafters.items()
        }
        if name == "matched":
            for alpha in noise_levels:
                for own, d in drafters.items():
                    ways[own, "noise", alpha] = _Way(d, noise(alpha, seed))
            told = ", ".join(f"{key}={_told(value)}" for key, value in overrides.items())
            for own, d in changed.items():
                ways[own, "forced", told] = _Way(d)
        probed.measure(name, texts, ways)
    if train_length is not None:
        assert matched is not None
        window = window or max(train_length // 2, 1)
        notes += probed.contexts(matched, train_length, window, lengths, limit)
    return ProbeResult(
        settings={
            "depth": depth,
            "new_tokens": new_tokens,
            "conditions": list(prompts.ids),
            "noise": list(noise_levels),
            "force": overrides,
            "train_length": train_length,
            "window": window if train_length is not None else None,
            "lengths": list(lengths) if train_length is not None else [],
            "attention": attention,
            "resamples": resamples,
            "seed": seed,
        },
        drafters={name: probed.drafter(name) for name in drafters},
        texts=probed.told,
        notes=tuple(notes),
    )


class _Probing:
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

    def measure(self, name: str, texts: Texts, ways: Mapping[Any, _Way]) -> None:
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
                    and not _several(way.drafter),
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
                ways[own, "context", ("full", length)] = _Way(drafter)
                if not hasattr(drafter.config, "sliding_window"):
                    continue
                kept = min(self.found[own]["sinks"]["matched"].column + 1, _MOST_SINKS)
                views = ((None, 0), (window, 0), (window, kept))
                for variant, view in zip(WINDOWS, views, strict=True):
                    changes = {"sliding_window": view[0], "attention_sinks": view[1]}
                    changed = with_config(drafter, **changes)
                    ways[own, "context", (variant, length)] = _Way(changed)
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


def _check_models(target: Any, drafters: Mapping[str, Any]) -> None:
    from leeboard.draft.speculate import _check_fit, _check_models

    if not drafters:
        raise ValueError("drafter: got none, expected at least one")
    for drafter in drafters.values():
        _check_models(target, drafter)
        _check_fit(target, drafter)


def _several(drafter: Drafter) -> bool:
    """Whether its steps take turns between several MTP heads."""
    return int(getattr(drafter.config, "heads", 1)) > 1


def _forced(drafters: Mapping[str, Drafter], overrides: Mapping[str, Any]) -> dict[str, Drafter]:
    """Those of the drafters that forcing changes, changed.

    Raises:
        ValueError: A switch cannot be forced, or none is changed.
    """
    if not overrides:
        return {}
    check_forcible(overrides)

    def differs(drafter: Drafter) -> bool:
        config: Any = drafter.config
        return any(getattr(config, key, None) != value for key, value in overrides.items())

    found = {name: forced(d, overrides) for name, d in drafters.items() if differs(d)}
    if not found:
        raise ValueError(f"force: got {overrides}, which is how the drafters are already")
    return found


def _limit(target: Any, drafters: Mapping[str, Any]) -> int:
    """Longest text that target and drafters have positions for."""
    from leeboard.draft.speculate import _text_config

    theirs = getattr(_text_config(target), "max_position_embeddings", None)
    limits: list[int] = [drafter.config.max_position_embeddings for drafter in drafters.values()]
    return min([*limits, theirs] if theirs is not None else limits)


def _check_room(name: str, ids: Sequence[Sequence[int]], new_tokens: int, limit: int) -> None:
    longest = max(map(len, ids))
    if longest + new_tokens > limit:
        number = next(i for i, prompt in enumerate(ids, start=1) if len(prompt) == longest)
        raise ValueError(
            f"prompt {number} ({name}): {longest} tokens + {new_tokens} new ones, expected at most "
            f"{limit}, the positions of target and drafters; drop it, or ask for fewer new tokens"
        )


def _check_numbers(
    levels: Sequence[float],
    train_length: int | None,
    window: int | None,
    lengths: Sequence[int],
    new_tokens: int,
) -> None:
    for alpha in levels:
        if not 0.0 < alpha < float("inf"):
            raise ValueError(f"noise_levels: got {alpha}, expected positive finite numbers")
    if not lengths:
        raise ValueError("lengths: got none, expected at least one multiple of train_length")
    for factor in lengths:
        positive_int("lengths", factor)
    if window is not None:
        positive_int("window", window)
        if train_length is None:
            raise ValueError("window: given without train_length, expected both or none")
    if train_length is not None:
        positive_int("train_length", train_length)
        least = new_tokens + 2
        if train_length * min(lengths) < least:
            raise ValueError(
                f"train_length: {train_length} tokens leave no room for {new_tokens} new ones, "
                f"expected at least {least}"
            )


def _told(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
