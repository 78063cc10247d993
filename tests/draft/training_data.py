"""Documents and rows for the tests of training data."""

from __future__ import annotations

import torch

from leeboard.draft.training import Documents, Rows, pack_rows


def random_documents(count: int = 9, shortest: int = 3, longest: int = 11) -> Documents:
    """Of a vocabulary of 61; the second half of each is to be learnt."""
    generator = torch.Generator().manual_seed(7)
    pairs = []
    for _ in range(count):
        n = int(torch.randint(shortest, longest + 1, (1,), generator=generator))
        ids = torch.randint(61, (n,), generator=generator).tolist()
        pairs.append((ids, [i >= n // 2 for i in range(n)]))
    return Documents.of(pairs)


def random_rows(length: int = 16, *, packed: bool = True, count: int = 9) -> Rows:
    """`random_documents` in rows of this length."""
    return pack_rows(random_documents(count), length, seed=0, packed=packed)
