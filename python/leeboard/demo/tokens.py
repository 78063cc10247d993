"""From the corpus to token ids: a byte-level BPE of its own, a chat template, training rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leeboard._files import replacing
from leeboard.demo.corpus import Function

SPECIAL_TOKENS = ("<bos>", "<user>", "<asst>", "<eot>")
BOS, USER, ASST, EOT = range(4)


@dataclasses.dataclass(frozen=True)
class Documents:
    """Token ids of many functions, one after another.

    Attributes:
        ids: uint16 [N], `<bos><user>…<asst>…<eot>` of every function.
        starts: int64 [D + 1], where each begins; the last entry is N.
        answers: int64 [D], where each one's assistant turn begins (after `<asst>`).
    """

    ids: NDArray[np.uint16]
    starts: NDArray[np.int64]
    answers: NDArray[np.int64]


def train_tokenizer(functions: Iterable[Function], vocab_size: int) -> Any:
    """A byte-level BPE tokenizer (`tokenizers.Tokenizer`) of the functions' text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((f.user + f.body for f in functions), trainer)
    return tokenizer


def load_tokenizer(path: Path) -> Any:
    """Read a tokenizer that `Tokenizer.save` wrote."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))


def prompt_ids(tokenizer: Any, user: str) -> list[int]:
    """`<bos><user>…<asst>`: what the model is given before it answers."""
    return [BOS, USER, *tokenizer.encode(user).ids, ASST]


def encode(tokenizer: Any, functions: Sequence[Function]) -> Documents:
    """All functions with the template around their turns."""
    users = tokenizer.encode_batch([f.user for f in functions])
    bodies = tokenizer.encode_batch([f.body for f in functions])
    parts, lengths, answers = [], [], []
    for user, body in zip(users, bodies, strict=True):
        document = [BOS, USER, *user.ids, ASST, *body.ids, EOT]
        parts.append(np.array(document, dtype=np.uint16))
        lengths.append(len(document))
        answers.append(len(user.ids) + 3)
    starts = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    return Documents(np.concatenate(parts), starts, starts[:-1] + np.array(answers))


def save_documents(path: Path, documents: Documents) -> None:
    """Write documents as npz."""
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **dataclasses.asdict(documents))


def load_documents(path: Path) -> Documents:
    """Read what `save_documents` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        return Documents(arrays["ids"], arrays["starts"], arrays["answers"])


def pack(
    documents: Documents, rows: int, length: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Fill rows with documents in a shuffled order, without padding.

    Every row begins at the beginning of a document, as a prompt does in decoding. A document that
    is cut by the end of a row begins the next row again, unless it began this one too: then the
    rest of it is skipped.

    Args:
        documents: What to pack.
        rows: R, how many rows; the documents are gone through as often as needed.
        length: T, tokens of a row.
        seed: Seeds the order, which differs from one pass to the next.

    Returns:
        (ids int64 [R, T], mask bool [R, T]): the mask marks assistant turns with their `<eot>`.
    """
    rng = np.random.default_rng(seed)
    spoken = _answer_mask(documents)
    ids = np.empty((rows, length), dtype=np.int64)
    mask = np.empty((rows, length), dtype=np.bool_)
    order: list[int] = []
    for row in range(rows):
        filled = 0
        while filled < length:
            if not order:
                order = rng.permutation(len(documents.answers)).tolist()
            start, end = documents.starts[order[-1] : order[-1] + 2]
            take = min(int(end - start), length - filled)
            ids[row, filled : filled + take] = documents.ids[start : start + take]
            mask[row, filled : filled + take] = spoken[start : start + take]
            if take == end - start or filled == 0:
                order.pop()
            filled += take
    return ids, mask


def _answer_mask(documents: Documents) -> NDArray[np.bool_]:
    edges = np.zeros(len(documents.ids) + 1, dtype=np.int8)
    edges[documents.answers] += 1
    edges[documents.starts[1:]] -= 1
    return np.cumsum(edges[:-1]).astype(np.bool_)
