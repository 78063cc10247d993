"""Running a Hugging Face target on its KV cache, several sequences at a time."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def new_cache() -> Any:
    """An empty KV cache for any Hugging Face causal LM.

    Raises:
        ImportError: transformers is not installed.
    """
    try:
        from transformers import DynamicCache
    except ImportError as error:
        raise ImportError('speculate needs transformers: pip install "leeboard[hf]"') from error
    # Without a config every layer keeps its whole past; a layer that drops what lies outside its
    # window could not be cut back after a rejected draft.
    return DynamicCache()


def takes(target: Any, name: str) -> bool:
    """Whether the target's forward pass has an argument of this name."""
    return name in inspect.signature(target.forward).parameters


def cache_arguments(target: Any, cache: Any) -> dict[str, Any]:
    """Keyword arguments of a forward pass that reads and extends `cache`.

    Newer versions of transformers call the argument `cache` and warn about the old name.
    """
    name = "cache" if takes(target, "cache") else "past_key_values"
    return {name: cache, "use_cache": True}


class TargetRun:
    """A target with the KV cache of sequences that grow by different counts.

    Every sequence's rows end at the cache's last column, without holes; columns before its first
    row are masked. So distances in the cache are distances in the sequence, which windows of the
    target's attention need. Where sequences keep different counts, all layers' keys and values
    are moved (`keep`): one read and one write of the cache, about the traffic of one pass of the
    target's attention over it. A single sequence is only cut back.

    Attributes:
        lengths: Rows in the cache, per sequence.
        forwards: Passes so far.
    """

    def __init__(self, target: Any) -> None:
        if getattr(target, "_is_stateful", False):
            raise ValueError(
                f"target: {type(target).__name__} has layers that keep a state instead of their "
                "past, which cannot be cut back after a rejected draft; expected a model with "
                "attention layers only"
            )
        self.lengths: list[int] = []
        self.forwards = 0
        self._target = target
        self._cache = new_cache()
        self._arguments = cache_arguments(target, self._cache)
        self._positions = takes(target, "position_ids")
        self._only_last = {"logits_to_keep": 1} if takes(target, "logits_to_keep") else {}
        self._columns = 0

    def prompt(self, ids: Tensor, starts: Sequence[int]) -> Tensor:
        """Logits [B, V] after the prompts ids [B, T]; sequence b begins at column starts[b].

        Raises:
            ValueError: The target does not use the cache that it is given.
        """
        columns = ids.shape[1]
        self.lengths = [columns - start for start in starts]
        output = self._run(ids, columns, **self._only_last)
        if self._cache.get_seq_length() != columns:
            raise ValueError(
                "target: it does not keep its past in the KV cache that it is given, expected a "
                "model with attention layers only"
            )
        return output[:, -1]

    def extend(self, tokens: Tensor) -> Tensor:
        """Logits [B, n, V] after each of the tokens [B, n], which every sequence goes on with."""
        n = tokens.shape[1]
        self.lengths = [length + n for length in self.lengths]
        return self._run(tokens, self._columns + n)

    def keep(self, counts: Sequence[int], added: int, survivors: Sequence[int]) -> None:
        """Keep the first counts[b] of the rows that the last pass added, and these sequences.

        Args:
            counts: Per sequence, at most `added`.
            added: Tokens of the last pass.
            survivors: The sequences that go on, ascending.
        """
        lengths = [length - added + n for length, n in zip(self.lengths, counts, strict=True)]
        kept = {counts[b] for b in survivors}
        if len(survivors) == len(lengths) and len(kept) == 1:
            cut = added - kept.pop()
            if cut:
                # Every version of transformers reads a negative length as rows to remove.
                self._cache.crop(-cut)
            self._columns -= cut
        elif survivors:
            columns = max(lengths[b] for b in survivors)
            ends = [self._columns - added + counts[b] for b in survivors]
            self._move(survivors, ends, columns)
            self._columns = columns
        self.lengths = [lengths[b] for b in survivors]

    def _move(self, sequences: Sequence[int], ends: Sequence[int], columns: int) -> None:
        """Let the cache hold the `columns` columns up to ends[i] of sequences[i]."""
        every = list(sequences) == list(range(len(self.lengths)))
        for layer in self._cache.layers:
            device = layer.keys.device
            end = torch.tensor(list(ends), device=device)[:, None]
            # Before a sequence's first row anything may stand, as long as it is finite.
            source = (torch.arange(columns, device=device) + end - columns).clamp(min=0)
            chosen = torch.tensor(list(sequences), device=device)
            for name in ("keys", "values"):
                store = getattr(layer, name)
                if not every:
                    store = store.index_select(0, chosen)
                index = source[:, None, :, None].expand(-1, store.shape[1], -1, store.shape[3])
                setattr(layer, name, store.gather(2, index))

    def _run(self, tokens: Tensor, columns: int, **more: Any) -> Tensor:
        self._columns = columns
        if min(self.lengths) < columns:
            device = tokens.device
            gaps = columns - torch.tensor(self.lengths, device=device)[:, None]
            more["attention_mask"] = (torch.arange(columns, device=device) >= gaps).long()
            if self._positions:
                new = torch.arange(columns - tokens.shape[1], columns, device=device)
                more["position_ids"] = (new - gaps).clamp(min=0)
        self.forwards += 1
        logits: Tensor = self._target(input_ids=tokens, **self._arguments, **more).logits
        return logits
