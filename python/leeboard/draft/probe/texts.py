"""Greedy continuations of many prompts, and those that turn in circles."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from leeboard._progress import progress_bar
from leeboard.draft.checks import positive_int
from leeboard.draft.speculate import _stop_ids
from leeboard.draft.target import TargetRun

# A text loops where a period of at most so many tokens holds for so many.
LOOP_PERIOD, LOOP_STRETCH = 16, 32


@dataclasses.dataclass(frozen=True)
class Texts:
    """Prompts with their continuations; text b is ids[b, : lengths[b]].

    Attributes:
        ids: int64 [B, T], filled up with 0 on the right.
        prompts: int64 [B], tokens of each prompt.
        lengths: int64 [B], tokens of each prompt and its continuation.
    """

    ids: Tensor
    prompts: Tensor
    lengths: Tensor

    @property
    def first(self) -> Tensor:
        """int64 [B]: the row that the first round drafts from.

        It pairs the state of the prompt's last token with the first new token, which the target
        gives with the prompt.
        """
        return self.prompts - 1

    def continuation(self, b: int) -> list[int]:
        """The new tokens of text b."""
        new: list[int] = self.ids[b, int(self.prompts[b]) : int(self.lengths[b])].tolist()
        return new

    def part(self, start: int, end: int) -> Texts:
        """Texts start to end - 1, as wide as the longest of them."""
        lengths = self.lengths[start:end]
        width = int(lengths.max())
        return Texts(self.ids[start:end, :width], self.prompts[start:end], lengths)


@torch.no_grad()
def greedy_texts(
    target: Any,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    *,
    batch: int = 16,
    eos_token_id: int | Iterable[int] | None = None,
    progress: bool = False,
    title: str = "greedy text",
) -> Texts:
    """The target's own greedy continuation of every prompt, with a KV cache, a batch at a time.

    Prompts of similar length share a batch, padded on the left as `speculate` pads them.

    Args:
        target: A Hugging Face causal LM in eval mode.
        prompts: Token ids, at least one each.
        new_tokens: Tokens to produce per prompt, fewer where one of `eos_token_id` comes first (it
            stays in the text).
        batch: Prompts at a time.
        eos_token_id: As for `speculate`: None takes the target's, an empty list never stops.
        progress: Show a progress bar (needs tqdm).
        title: Its name.

    Raises:
        ValueError: There is no prompt, one is empty or has an id outside the vocabulary, or a
            number is below 1.
    """
    positive_int("new_tokens", new_tokens)
    positive_int("batch", batch)
    _check_prompts(target, prompts)
    stops = _stop_ids(target, eos_token_id)
    new: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda b: len(prompts[b]))
    with progress_bar(title, len(prompts), quiet=not progress) as bar:
        for start in range(0, len(order), batch):
            members = order[start : start + batch]
            _continue(target, prompts, members, new_tokens, stops, new)
            bar.update(len(members))
    rows = [[*prompt, *more] for prompt, more in zip(prompts, new, strict=True)]
    width = max(map(len, rows))
    return Texts(
        torch.tensor([row + [0] * (width - len(row)) for row in rows], device=target.device),
        torch.tensor([len(prompt) for prompt in prompts], device=target.device),
        torch.tensor([len(row) for row in rows], device=target.device),
    )


def looping(new: Sequence[int], *, period: int = LOOP_PERIOD, stretch: int = LOOP_STRETCH) -> bool:
    """Whether a continuation turns in circles: somewhere a short period holds for a long stretch.

    A loop is trivial to draft and inflates deep acceptance.

    Args:
        new: The new tokens.
        period: Longest period that counts, in tokens.
        stretch: Tokens that must repeat with it, one after another: at least two periods.
    """
    for p in range(1, min(period, stretch // 2) + 1):
        # The stretch begins with a period that repeats nothing yet.
        run = p
        for i in range(p, len(new)):
            run = run + 1 if new[i] == new[i - p] else p
            if run >= stretch:
                return True
    return False


def _check_prompts(target: Any, prompts: Sequence[Sequence[int]]) -> None:
    if not prompts:
        raise ValueError("prompts: got none, expected at least one")
    vocab = target.get_input_embeddings().weight.shape[0]
    for b, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompts[{b}]: it has no tokens, expected at least one")
        if min(prompt) < 0 or max(prompt) >= vocab:
            wrong = next(i for i in prompt if not 0 <= i < vocab)
            raise ValueError(f"prompts[{b}]: got id {wrong}, expected 0 to {vocab - 1}")


def _continue(
    target: Any,
    prompts: Sequence[Sequence[int]],
    members: Sequence[int],
    new_tokens: int,
    stops: frozenset[int],
    new: list[list[int]],
) -> None:
    """Append to new[b] for the members b of one batch."""
    width = max(len(prompts[b]) for b in members)
    starts = [width - len(prompts[b]) for b in members]
    padded = [[0] * s + list(prompts[b]) for s, b in zip(starts, members, strict=True)]
    run = TargetRun(target)
    logits = run.prompt(torch.tensor(padded, device=target.device), starts)
    going = list(members)
    added = 0
    while True:
        following = logits.argmax(-1)
        for b, token in zip(going, following.tolist(), strict=True):
            new[b].append(token)
        open_ = [
            i for i, b in enumerate(going) if len(new[b]) < new_tokens and new[b][-1] not in stops
        ]
        if not open_:
            return
        if len(open_) < len(going):
            run.keep([added] * len(going), added, open_)
            following = following[torch.tensor(open_, device=following.device)]
            going = [going[i] for i in open_]
        logits = run.extend(following[:, None])[:, -1]
        added = 1
