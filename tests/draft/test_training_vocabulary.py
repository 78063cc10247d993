"""The draft vocabulary: the most frequent learnt tokens, always the special ones, its coverage told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from chat_tokenizers import CHATML, chat_tokenizer
from leeboard.draft.training import (
    Documents,
    check_tokenizer,
    choose_vocabulary,
    pack_rows,
    special_ids,
    vocabulary_coverage,
)

# Learnt: 5 three times, 9 and 2 twice, 7 once; 1 is frequent, but not learnt.
DOCUMENTS = Documents.of(
    [
        ([1, 1, 1, 1, 5, 9, 2], [False] * 4 + [True] * 3),
        ([1, 5, 9, 7, 5, 2], [False] + [True] * 5),
    ]
)


def test_most_frequent_of_the_learnt() -> None:
    # Of equally frequent ones the lower id, also of those that never occur.
    for size, expected in (
        (1, [5]),
        (2, [2, 5]),
        (3, [2, 5, 9]),
        (4, [2, 5, 7, 9]),
        (6, [0, 1, 2, 5, 7, 9]),
    ):
        assert choose_vocabulary(DOCUMENTS, size, 12).tolist() == expected
    assert choose_vocabulary(DOCUMENTS, 12, 12).tolist() == list(range(12))
    assert choose_vocabulary(DOCUMENTS, 3, 12, always=[11, 0]).tolist() == [0, 5, 11]
    rows = pack_rows(DOCUMENTS, 9, 0)
    assert choose_vocabulary(rows, 3, 12).tolist() == [2, 5, 9]


def test_coverage() -> None:
    assert vocabulary_coverage(DOCUMENTS, torch.tensor([5, 9])) == 5 / 8
    assert vocabulary_coverage(pack_rows(DOCUMENTS, 9, 0), torch.tensor([5, 9])) == 5 / 8
    assert vocabulary_coverage(DOCUMENTS, torch.arange(12)) == 1.0
    unlearnt = Documents.of([([1, 2], [False, False])])
    assert vocabulary_coverage(unlearnt, torch.arange(12)) == 0.0


def test_special_ids() -> None:
    tokenizer = chat_tokenizer(CHATML)
    assert special_ids(tokenizer) == (0, 1, 2)
    target: Any = SimpleNamespace(
        config=SimpleNamespace(eos_token_id=7),
        generation_config=SimpleNamespace(eos_token_id=[2, 9]),
    )
    assert special_ids(tokenizer, target) == (0, 1, 2, 7, 9)


def test_errors() -> None:
    with pytest.raises(ValueError, match="size: got 13, expected at most vocab_size = 12"):
        choose_vocabulary(DOCUMENTS, 13, 12)
    with pytest.raises(ValueError, match="size: got 1, expected at least the 2 ids of always"):
        choose_vocabulary(DOCUMENTS, 1, 12, always=[1, 2])
    with pytest.raises(ValueError, match=r"always: got \[12\], expected ids from 0 to 11"):
        choose_vocabulary(DOCUMENTS, 3, 12, always=[12])
    with pytest.raises(ValueError, match=r"token ids from 2 to 9, .* is it the target's own"):
        choose_vocabulary(DOCUMENTS, 3, 9)
    tokenizer = chat_tokenizer(CHATML)
    size = tokenizer.vocab_size
    tokenizer.add_tokens(["<image>"])
    assert len(tokenizer) == size + 1
    check_tokenizer(tokenizer, size)
    with pytest.raises(ValueError, match=f"it has {size} tokens, expected at most {size - 1}"):
        check_tokenizer(tokenizer, size - 1)
