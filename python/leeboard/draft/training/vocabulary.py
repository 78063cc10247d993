"""The draft vocabulary: which of the target's tokens a drafter can say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from leeboard.draft.checks import positive_int
from leeboard.draft.training.rows import Documents, Rows


def choose_vocabulary(
    documents: Documents | Rows, size: int, vocab_size: int, always: Iterable[int] = ()
) -> Tensor:
    """The most frequent of the tokens that are to be learnt; of equally frequent, the lower ids.

    Args:
        documents: What is learnt from.
        size: Vd, tokens to choose.
        vocab_size: V, the target's vocabulary.
        always: Ids that are chosen whatever their frequency, such as `special_ids`.

    Returns:
        int64 [Vd], ascending, as `set_draft_vocabulary` takes it.

    Raises:
        ValueError: `size` is not within 1 and `vocab_size` or below the number of `always`, or an
            id is not of the vocabulary.
    """
    positive_int("size", size)
    kept = sorted(set(always))
    if size > vocab_size:
        raise ValueError(f"size: got {size}, expected at most vocab_size = {vocab_size}")
    if len(kept) > size:
        raise ValueError(f"size: got {size}, expected at least the {len(kept)} ids of always")
    if kept and not (kept[0] >= 0 and kept[-1] < vocab_size):
        raise ValueError(f"always: got {kept}, expected ids from 0 to {vocab_size - 1}")
    counts = _counts(documents, vocab_size)
    # More frequent than anything.
    counts[kept] = torch.iinfo(counts.dtype).max
    order = torch.sort(counts, descending=True, stable=True).indices
    return order[:size].sort().values


def vocabulary_coverage(documents: Documents | Rows, token_ids: Tensor) -> float:
    """Share of the tokens to learn that a draft vocabulary holds; 0 where there are none."""
    learnt = documents.ids[documents.loss_mask]
    if not len(learnt):
        return 0.0
    return float(torch.isin(learnt, token_ids.to(learnt.dtype)).float().mean())


def special_ids(tokenizer: Any, target: Any = None) -> tuple[int, ...]:
    """What ends or structures a text, ascending: the tokenizer's special tokens, and what the
    target's configs call end of sequence."""
    found = {int(i) for i in tokenizer.all_special_ids}
    for config in (getattr(target, "config", None), getattr(target, "generation_config", None)):
        ends = getattr(config, "eos_token_id", None)
        if isinstance(ends, int):
            found.add(ends)
        elif isinstance(ends, (list, tuple)):
            found.update(ends)
    return tuple(sorted(found))


def check_tokenizer(tokenizer: Any, vocab_size: int) -> None:
    """Raise ValueError if the tokenizer's own tokens are more than the target's vocabulary has.

    A target may have more rows than its tokenizer has tokens; many are padded. A token added beyond
    them, as Gemma 3's for images, is no matter unless a text has it, which is found when it is used.
    """
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"tokenizer: it has {tokenizer.vocab_size} tokens, expected at most {vocab_size}, the "
            "target's vocabulary: is it the target's own?"
        )


def _counts(documents: Documents | Rows, vocab_size: int) -> Tensor:
    learnt = documents.ids[documents.loss_mask].long()
    if len(learnt) and not (int(learnt.min()) >= 0 and int(learnt.max()) < vocab_size):
        raise ValueError(
            f"documents: token ids from {int(learnt.min())} to {int(learnt.max())}, expected ids "
            f"of the target's vocabulary, below {vocab_size}: is it the target's own tokenizer?"
        )
    return torch.bincount(learnt, minlength=vocab_size)
