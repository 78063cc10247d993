"""Documents of token ids, and the rows of equal length that training runs on."""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from leeboard.draft.checks import positive_int


def told_lines(skipped: Sequence[tuple[int, str]]) -> str:
    """How many lines were skipped, and the first of them, in words."""
    some = [f"line {line} ({why})" for line, why in skipped[:5]]
    more = f" and {len(skipped) - 5} more" if len(skipped) > 5 else ""
    return f"{len(skipped)} skipped: {', '.join(some)}{more}"


@dataclasses.dataclass(frozen=True)
class Documents:
    """Token ids of many documents, one after another.

    Attributes:
        ids: int32 [N], the tokens.
        loss_mask: bool [N], true where a token is to be learnt (the assistant's).
        starts: int64 [D + 1], where each document begins; the last entry is N.
        truncated: Documents that were cut to the limit on their length.
        dropped: Documents that were left out: longer than the limit, or with nothing to learn in
            what the limit left of them.
        skipped: (line, what is wrong with it) of chats that no document could be made of.
        sources: Of each document the number of the chat that it was made of, where it is known.
    """

    ids: Tensor
    loss_mask: Tensor
    starts: Tensor
    truncated: int = 0
    dropped: int = 0
    skipped: tuple[tuple[int, str], ...] = ()
    sources: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        pairs: Iterable[tuple[ArrayLike, ArrayLike]],
        *,
        truncated: int = 0,
        dropped: int = 0,
        skipped: tuple[tuple[int, str], ...] = (),
        sources: tuple[int, ...] = (),
    ) -> Documents:
        """Documents from (ids, loss mask) of each.

        Raises:
            ValueError: A document is empty, or its mask is not as long as its ids.
        """
        ids, masks, starts = [], [], [0]
        for i, (given, marks) in enumerate(pairs):
            tokens, mask = np.asarray(given, dtype=np.int32), np.asarray(marks, dtype=np.bool_)
            if tokens.size == 0 or tokens.shape != (mask.size,):
                raise ValueError(
                    f"pairs[{i}]: got {tokens.size} ids and {mask.size} mask entries, expected "
                    "equally many, at least one"
                )
            ids.append(tokens)
            masks.append(mask)
            starts.append(starts[-1] + len(tokens))
        return cls(
            torch.from_numpy(np.concatenate([np.empty(0, np.int32), *ids])),
            torch.from_numpy(np.concatenate([np.empty(0, np.bool_), *masks])),
            torch.tensor(starts),
            truncated,
            dropped,
            skipped,
            sources,
        )

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> Tensor:
        """int64 [D], tokens of each."""
        return self.starts.diff()

    def take(self, numbers: Iterable[int]) -> Documents:
        """The documents of these numbers; nothing is told of what was cut, dropped or skipped."""
        chosen = list(numbers)
        spans = [slice(int(self.starts[i]), int(self.starts[i + 1])) for i in chosen]
        return Documents.of(
            ((self.ids[span], self.loss_mask[span]) for span in spans),
            sources=tuple(self.sources[i] for i in chosen) if self.sources else (),
        )

    def told(self) -> str:
        """The numbers of documents and tokens, and what the limit did, in words."""
        text = (
            f"{len(self)} documents, {len(self.ids)} tokens, {int(self.loss_mask.sum())} of them "
            "to learn"
        )
        if self.truncated:
            text += f"; {self.truncated} cut to the limit"
        if self.dropped:
            text += f"; {self.dropped} left out (too long, or nothing to learn within the limit)"
        if self.skipped:
            text += f"; {told_lines(self.skipped)}"
        return text


@dataclasses.dataclass(frozen=True)
class Rows:
    """Training rows: R rows of T tokens.

    Attributes:
        ids: int64 [R, T]; 0 in the padding.
        loss_mask: bool [R, T], true where x_p is a token to learn; false in the padding.
        positions: int64 [R, T], each token's place in its document: a 0 begins the next document,
            and the padding, which counts as one.
    """

    ids: Tensor
    loss_mask: Tensor
    positions: Tensor

    def __post_init__(self) -> None:
        if self.ids.ndim != 2:
            raise ValueError(f"ids: got shape {tuple(self.ids.shape)}, expected [R, T]")
        for name in ("loss_mask", "positions"):
            got = getattr(self, name).shape
            if got != self.ids.shape:
                raise ValueError(
                    f"{name}: got shape {tuple(got)}, expected {tuple(self.ids.shape)}"
                )
        for name, dtype in (
            ("ids", torch.int64),
            ("loss_mask", torch.bool),
            ("positions", torch.int64),
        ):
            if getattr(self, name).dtype != dtype:
                raise ValueError(f"{name}: got {getattr(self, name).dtype}, expected {dtype}")
        if self.positions.numel() and bool((self.positions[:, 0] != 0).any()):
            raise ValueError("positions: expected 0 at the beginning of every row")
        steps = self.positions.diff(dim=1)
        if bool(((steps != 1) & (self.positions[:, 1:] != 0)).any()):
            raise ValueError("positions: expected each to be one more than the last, or 0")

    def __len__(self) -> int:
        return self.ids.shape[0]

    def take(self, indices: Sequence[int] | Tensor) -> Rows:
        """The rows of these numbers."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return Rows(self.ids[chosen], self.loss_mask[chosen], self.positions[chosen])

    @property
    def packed(self) -> bool:
        """Whether something that is to be learnt stands behind another document in its row."""
        later = (self.positions == 0).cumsum(1) > 1
        return bool((later & self.loss_mask).any())

    def fingerprint(self) -> str:
        """A hash of everything in the rows."""
        digest = hashlib.sha256(repr(tuple(self.ids.shape)).encode())
        for tensor in (self.ids, self.loss_mask, self.positions):
            # A hash takes the array's own memory.
            digest.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
        return digest.hexdigest()[:16]


def pack_rows(documents: Documents, length: int, seed: int, *, packed: bool = True) -> Rows:
    """Lay documents in rows, every document once and whole.

    Packed, each document goes where it leaves least room, longest first, and what is left of a row
    is padding. Which documents share a row, their order in it and the order of the rows follow from
    the seed; give another for each epoch.

    Args:
        documents: What to lay out.
        length: T, tokens of a row.
        seed: Of the order.
        packed: False for one document a row.

    Raises:
        ValueError: `length` is not positive, there are no documents, or one is longer.
    """
    positive_int("length", length)
    if not len(documents):
        raise ValueError("documents: got none, expected at least one")
    sizes = documents.lengths.numpy()
    if sizes.max() > length:
        i = int(sizes.argmax())
        raise ValueError(
            f"length: got {length}, but document {i} has {sizes[i]} tokens, expected at least as "
            "many: encode with max_length = length"
        )
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(sizes))
    rows = _best_fit(order, sizes, length) if packed else [[int(d)] for d in order]
    generator.shuffle(rows)
    return _lay(documents, rows, length, generator)


def shuffled(count: int, seed: int, epoch: int) -> Tensor:
    """int64 [count], the order of an epoch through fixed rows; another one for every epoch."""
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(count))


def _best_fit(order: np.ndarray, sizes: np.ndarray, length: int) -> list[list[int]]:
    """Documents of each row: longest first, each into the fullest row that has room."""
    longest_first = order[np.argsort(-sizes[order], kind="stable")]
    rows: list[list[int]] = []
    # Rows by the room that they have left, and the sizes of room that there are, ascending.
    by_room: dict[int, list[int]] = {}
    rooms: list[int] = []
    for document in longest_first.tolist():
        size = int(sizes[document])
        place = bisect.bisect_left(rooms, size)
        if place == len(rooms):
            row, room = len(rows), length
            rows.append([])
        else:
            room = rooms[place]
            row = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[place]
        rows[row].append(document)
        left = room - size
        if left:
            if left not in by_room:
                by_room[left] = []
                bisect.insort(rooms, left)
            by_room[left].append(row)
    return rows


def _lay(
    documents: Documents, rows: list[list[int]], length: int, generator: np.random.Generator
) -> Rows:
    tokens, learnt = documents.ids.numpy(), documents.loss_mask.numpy()
    starts = documents.starts.numpy()
    shape = (len(rows), length)
    ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    mask = np.zeros(shape, np.bool_)
    places = np.arange(length)
    for r, row in enumerate(rows):
        generator.shuffle(row)
        filled = 0
        for document in row:
            begin, end = starts[document], starts[document + 1]
            here = slice(filled, filled + int(end - begin))
            ids[r, here], mask[r, here] = tokens[begin:end], learnt[begin:end]
            positions[r, here] = places[: end - begin]
            filled = here.stop
        positions[r, filled:] = places[: length - filled]
    return Rows(torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(positions))
