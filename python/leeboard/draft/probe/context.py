"""Prompts of an exact length: earlier prompts and answers in front, the oldest tokens dropped."""

from __future__ import annotations

from collections.abc import Sequence

from leeboard.draft.probe.texts import Texts


def long_prompts(texts: Texts, length: int) -> list[list[int]]:
    """Every prompt with the texts before it as its history, `length` tokens each.

    Texts go round: before the first stands the last. The first token of the prompt (the
    begin-of-sequence token, where there is one) stays in front and is taken from the start of every
    text in the history; then the oldest tokens are dropped until the length fits. A prompt that is
    too long alone is cut alike.

    Args:
        texts: Prompts with their continuations.
        length: Tokens of every prompt, at least 2.

    Raises:
        ValueError: `length` is below 2.
    """
    if length < 2:
        raise ValueError(f"length: got {length}, expected at least 2 tokens")
    count = texts.ids.shape[0]
    whole = [texts.ids[b, : int(texts.lengths[b])].tolist() for b in range(count)]
    prompts = [texts.ids[b, : int(texts.prompts[b])].tolist() for b in range(count)]
    return [_with_history(prompts[b], _before(whole, b), length) for b in range(count)]


def _before(whole: Sequence[list[int]], b: int) -> list[list[int]]:
    """Texts in the order in which they precede text b, the nearest first."""
    return [whole[(b - 1 - i) % len(whole)] for i in range(len(whole))]


def _with_history(prompt: list[int], before: Sequence[list[int]], length: int) -> list[int]:
    head, body = prompt[:1], prompt[1:]
    parts, missing, i = [body], length - 1 - len(body), 0
    while missing > 0:
        text = before[i % len(before)]
        part = text[1:] if text[:1] == head and len(text) > 1 else text
        parts.append(part)
        missing -= len(part)
        i += 1
    joined = [token for part in reversed(parts) for token in part]
    return [*head, *joined[len(joined) - (length - 1) :]]
