from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from demo_trees import MODULE

from leeboard.demo.corpus import Function, functions_of
from leeboard.demo.tokens import (
    ASST,
    BOS,
    EOT,
    Documents,
    encode,
    load_documents,
    load_tokenizer,
    pack,
    prompt_ids,
    save_documents,
    train_tokenizer,
)

pytest.importorskip("tokenizers")


@pytest.fixture
def functions() -> list[Function]:
    return list(functions_of(MODULE, "module.py"))


def documents_of(*lengths: int) -> Documents:
    """Documents of the given lengths, each `BOS, 10, 11, …, EOT`; answers begin at index 2."""
    parts = [np.array([BOS, *range(10, 8 + n), EOT], dtype=np.uint16) for n in lengths]
    starts = np.concatenate(([0], np.cumsum(lengths)))
    return Documents(np.concatenate(parts), starts, starts[:-1] + 2)


def test_turns_and_template(functions: list[Function], tmp_path: Path) -> None:
    tokenizer = train_tokenizer(functions, 300)
    documents = encode(tokenizer, functions)
    for i, function in enumerate(functions):
        start, answer, end = documents.starts[i], documents.answers[i], documents.starts[i + 1]
        assert documents.ids[start:answer].tolist() == prompt_ids(tokenizer, function.user)
        assert documents.ids[answer - 1] == ASST
        assert documents.ids[end - 1] == EOT
        assert tokenizer.decode(documents.ids[answer : end - 1].tolist()) == function.body
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path / "tokenizer.json").to_str() == tokenizer.to_str()

    save_documents(tmp_path / "documents.npz", documents)
    loaded = load_documents(tmp_path / "documents.npz")
    np.testing.assert_array_equal(loaded.ids, documents.ids)
    np.testing.assert_array_equal(loaded.answers, documents.answers)


def test_rows_are_full_and_begin_documents() -> None:
    documents = documents_of(5, 7, 9, 30)
    ids, mask = pack(documents, rows=12, length=16, seed=0)
    assert ids.shape == mask.shape == (12, 16)
    assert (ids[:, 0] == BOS).all()
    # The user's turn of every document is its BOS and one token.
    for row, marks in zip(ids, mask, strict=True):
        begins = np.flatnonzero(row == BOS)
        unspoken = {int(b) + k for b in begins for k in (0, 1) if b + k < 16}
        assert set(np.flatnonzero(~marks)) == unspoken
    again, _ = pack(documents, rows=12, length=16, seed=0)
    np.testing.assert_array_equal(again, ids)
    assert not np.array_equal(pack(documents, rows=12, length=16, seed=1)[0], ids)


def test_a_document_cut_by_a_row_begins_the_next() -> None:
    ids, _ = pack(documents_of(5, 5), rows=2, length=8, seed=0)
    assert ids[0].tolist() == [BOS, 10, 11, 12, EOT, BOS, 10, 11]
    assert ids[1, :5].tolist() == [BOS, 10, 11, 12, EOT]


def test_every_document_is_used() -> None:
    documents = documents_of(*range(4, 40))
    ids, _ = pack(documents, rows=40, length=40, seed=3)
    # A document's length shows in its last token but one.
    seen = {int(row[i - 1]) for row in ids for i in np.flatnonzero(row == EOT)}
    assert seen == {7 + n for n in range(4, 40)}
