"""`probe`: all measurements of some drafters on some prompts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from leeboard.draft.checks import positive_int
from leeboard.draft.probe.conditions import CONDITIONS, PromptSet, check_conditions, prompt_set
from leeboard.draft.probe.measuring import Probing, Way, several_heads
from leeboard.draft.probe.result import ProbeResult
from leeboard.draft.probe.texts import Texts
from leeboard.draft.probe.variants import check_forcible, forced, noise
from leeboard.draft.protocol import Drafter

NOISE = (0.1, 0.5, 1.0)
LENGTHS = (1, 2, 3, 4)


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
    several = [name for name, d in drafters.items() if attention and several_heads(d)]
    probed = Probing(target, drafters, depth, new_tokens, batch, eos_token_id, attention, progress)
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
        ways: dict[Any, Way] = {
            (own, "conditions", name): Way(d, sink=sinks[own].column) for own, d in drafters.items()
        }
        if name == "matched":
            for alpha in noise_levels:
                for own, d in drafters.items():
                    ways[own, "noise", alpha] = Way(d, noise(alpha, seed))
            told = ", ".join(f"{key}={_told(value)}" for key, value in overrides.items())
            for own, d in changed.items():
                ways[own, "forced", told] = Way(d)
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


def _check_models(target: Any, drafters: Mapping[str, Any]) -> None:
    from leeboard.draft.speculate import _check_fit, _check_models

    if not drafters:
        raise ValueError("drafter: got none, expected at least one")
    for drafter in drafters.values():
        _check_models(target, drafter)
        _check_fit(target, drafter)


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
