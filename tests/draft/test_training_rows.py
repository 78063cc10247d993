"""Rows: every document once and whole, padding that is never learnt, an order that follows from the seed."""

from __future__ import annotations

import dataclasses
import itertools
import random

import pytest
import torch

from leeboard.draft.training import Documents, Rows, pack_rows, shuffled
from training_data import random_documents, random_rows


def pieces(rows: Rows) -> list[tuple[list[int], list[bool]]]:
    """What lies between the zeros of the positions."""
    found = []
    for ids, mask, positions in zip(rows.ids, rows.loss_mask, rows.positions, strict=True):
        begins = (positions == 0).nonzero()[:, 0].tolist()
        for begin, end in zip(begins, [*begins[1:], len(ids)], strict=True):
            assert positions[begin:end].tolist() == list(range(end - begin))
            found.append((ids[begin:end].tolist(), mask[begin:end].tolist()))
    return found


def contents(documents: Documents) -> list[tuple[list[int], list[bool]]]:
    bounds = documents.starts.tolist()
    return [
        (documents.ids[a:b].tolist(), documents.loss_mask[a:b].tolist())
        for a, b in itertools.pairwise(bounds)
    ]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("length", [11, 16, 40])
def test_every_document_once_and_whole(length: int, packed: bool) -> None:
    documents = random_documents(40)
    rows = pack_rows(documents, length, seed=3, packed=packed)
    assert rows.ids.shape[1] == length
    # Every document has something to learn, the padding has not.
    found = [piece for piece in pieces(rows) if any(piece[1])]
    padding = [piece for piece in pieces(rows) if not any(piece[1])]
    assert sorted(found) == sorted(contents(documents))
    assert all(not any(ids) for ids, _ in padding)
    assert packed or len(rows) == len(documents)
    assert rows.packed == packed


def test_packing_wastes_little() -> None:
    numbers = random.Random(0)
    documents = Documents.of(
        ([1] * n, [True] * n) for n in (numbers.randint(10, 400) for _ in range(2000))
    )
    rows = pack_rows(documents, 512, seed=0)
    assert len(documents.ids) / rows.ids.numel() > 0.98


def test_order_follows_from_the_seed() -> None:
    documents = random_documents(40)
    one, again, other = (pack_rows(documents, 16, seed) for seed in (1, 1, 2))
    assert torch.equal(one.ids, again.ids)
    assert torch.equal(one.positions, again.positions)
    assert one.fingerprint() == again.fingerprint() != other.fingerprint()
    assert sorted(p for p in pieces(one) if any(p[1])) == sorted(
        p for p in pieces(other) if any(p[1])
    )
    orders = [shuffled(9, 5, epoch).tolist() for epoch in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert all(sorted(order) == list(range(9)) for order in orders)


def test_fingerprint_sees_each_part() -> None:
    rows = random_rows()
    marks = rows.loss_mask.clone()
    marks[0, 3] = ~marks[0, 3]
    assert dataclasses.replace(rows, loss_mask=marks).fingerprint() != rows.fingerprint()
    flat = torch.arange(16).expand_as(rows.ids).clone()
    assert dataclasses.replace(rows, positions=flat).fingerprint() != rows.fingerprint()
    assert rows.take([1, 0]).fingerprint() == rows.take(torch.tensor([1, 0])).fingerprint()


def test_told() -> None:
    documents = Documents.of([([1, 2, 3], [False, True, True])], truncated=2, dropped=1)
    assert documents.told() == (
        "1 documents, 3 tokens, 2 of them to learn; 2 cut to the limit; 1 left out (too long, or "
        "nothing to learn within the limit)"
    )
    assert documents.lengths.tolist() == [3]


def test_errors() -> None:
    documents = random_documents()
    with pytest.raises(ValueError, match=r"length: got 4, but document \d has \d+ tokens"):
        pack_rows(documents, 4, 0)
    with pytest.raises(ValueError, match="length: got 0"):
        pack_rows(documents, 0, 0)
    with pytest.raises(ValueError, match="documents: got none"):
        pack_rows(Documents.of([]), 4, 0)
    with pytest.raises(ValueError, match=r"pairs\[1\]: got 2 ids and 1 mask"):
        Documents.of([([1], [True]), ([1, 2], [True])])
    rows = random_rows()
    with pytest.raises(ValueError, match=r"positions: got shape \(1, 16\), expected"):
        dataclasses.replace(rows, positions=rows.positions[:1])
    with pytest.raises(ValueError, match=r"ids: got torch\.int32, expected torch\.int64"):
        dataclasses.replace(rows, ids=rows.ids.int())
    with pytest.raises(ValueError, match="positions: expected 0 at the beginning"):
        dataclasses.replace(rows, positions=rows.positions + 1)
    with pytest.raises(ValueError, match="positions: expected each to be one more"):
        dataclasses.replace(rows, positions=2 * rows.positions)
