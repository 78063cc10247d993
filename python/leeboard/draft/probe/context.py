"""Prompts of an exact length: earlier prompts and answers in front, the oldest tokens dropped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from leeboard.draft.probe.texts import Texts


def begin_id(target: Any) -> int | None:
    """The begin-of-sequence token by the target's config; None where it has none."""
    from leeboard.draft.speculate import _text_config

    found = getattr(_text_config(target), "bos_token_id", None)
    return found if isinstance(found, int) else None


def long_prompts(texts: Texts, length: int, bos: int | None = None) -> list[list[int]]:
    """Every prompt with the texts before it as its history, `length` tokens each.

    Texts go round: before the first stands the last. Where all prompts begin with `bos`, it
    stays in front and is taken from the start of every text in the history; any other first token
    belongs to the template. Then the oldest tokens are dropped until the length fits. A prompt that is
    too long alone is cut alike.

    Args:
        texts: Prompts with their continuations.
        length: Tokens of every prompt, at least 2.
        bos: The begin-of-sequence token (`begin_id`), None for none.

    Raises:
        ValueError: `length` is below 2.
    """
    if length < 2:
        raise ValueError(f"length: got {length}, expected at least 2 tokens")
    count = texts.ids.shape[0]
    whole = [texts.ids[b, : int(texts.lengths[b])].tolist() for b in range(count)]
    prompts = [texts.ids[b, : int(texts.prompts[b])].tolist() for b in range(count)]
    head = [bos] if bos is not None and all(prompt[0] == bos for prompt in prompts) else []
    return [_with_history(head, prompts[b], _before(whole, b), length) for b in range(count)]


def _before(whole: Sequence[list[int]], b: int) -> list[list[int]]:
    """Texts in the order in which they precede text b, the nearest first."""
    return [whole[(b - 1 - i) % len(whole)] for i in range(len(whole))]


def _with_history(
    head: list[int], prompt: list[int], before: Sequence[list[int]], length: int
) -> list[int]:
    room = length - len(head)
    body = prompt[len(head) :]
    parts, missing, i = [body], room - len(body), 0
    while missing > 0:
        part = before[i % len(before)][len(head) :]
        parts.append(part)
        missing -= len(part)
        i += 1
    joined = [token for part in reversed(parts) for token in part]
    return [*head, *joined[len(joined) - room :]]
