"""What forward and backward of sparse attention share: segments, plans, samples, layouts."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leeboard.ops import patterns
from leeboard.ops._attention_plan import AttentionPlan, plan_for

Lengths = list[tuple[int, int]]


@dataclass(frozen=True)
class Segments:
    """Which rows belong together.

    Attributes:
        cu_q: First row of each segment and the end, or None where the batches are the segments.
        cu_k: The same for the keys.
        lengths: (queries, keys) of each segment.
    """

    cu_q: list[int] | None
    cu_k: list[int] | None
    lengths: Lengths

    @staticmethod
    def of(
        q: Tensor, k: Tensor, cu_seqlens: Tensor | None, cu_seqlens_k: Tensor | None
    ) -> Segments:
        """Reads the bounds; on other devices than the CPU that waits for the queue.

        Raises:
            ValueError: If they are no bounds of segments; the message names the argument.
        """
        if cu_seqlens is None:
            return Segments(None, None, [(q.shape[2], k.shape[2])] * q.shape[0])
        cu_q = bounds("cu_seqlens", cu_seqlens, q.shape[2], "q")
        if cu_seqlens_k is None:
            cu_k = bounds("cu_seqlens", cu_seqlens, k.shape[2], "k")
        else:
            cu_k = bounds("cu_seqlens_k", cu_seqlens_k, k.shape[2], "k")
        rows, keys = ([end - begin for begin, end in itertools.pairwise(cu)] for cu in (cu_q, cu_k))
        return Segments(cu_q, cu_k, list(zip(rows, keys, strict=True)))

    def tensors(self) -> tuple[Tensor | None, Tensor | None]:
        """The bounds as the CPU kernels take them."""
        if self.cu_q is None:
            return None, None
        return torch.tensor(self.cu_q), torch.tensor(self.cu_k)

    def check(self, pattern: patterns.Pattern) -> None:
        """Nothing where the pattern fits every segment.

        Raises:
            ValueError: Naming the first that it does not fit.
        """
        if self.cu_q is None:
            for lengths in self.lengths[:1]:
                pattern.check(*lengths)
            return
        for s, lengths in enumerate(self.lengths):
            with _about(f"segment {s} of cu_seqlens"):
                pattern.check(*lengths)

    def plans(self, code: str) -> list[AttentionPlan]:
        """One for each segment, or a single one for all batches."""
        alike = self.lengths if self.cu_q is not None else self.lengths[:1]
        return [plan_for(code, *lengths) for lengths in alike]

    def visible(self, key_padding: Tensor | None) -> list[int]:
        """How many keys of each segment are not padding."""
        if key_padding is None:
            return [keys for _, keys in self.lengths]
        if self.cu_k is None:
            return (~key_padding).sum(-1).tolist()
        before = torch.zeros(key_padding.shape[1] + 1, dtype=torch.int64)
        before[1:] = (~key_padding[0]).cumsum(0)
        return before[self.cu_k].diff().tolist()


def require_memory(**tensors: Tensor | None) -> None:
    """For tensors whose values are read here.

    Raises:
        RuntimeError: If a storage was emptied; the message names the argument.
    """
    for name, t in tensors.items():
        if t is not None and t.numel() and t.untyped_storage().nbytes() == 0:
            raise RuntimeError(f"{name}: its storage is empty; expected memory to read from")


@contextmanager
def _about(what: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{error} ({what})") from None


def bounds(name: str, cu: Tensor, total: int, of: str) -> list[int]:
    """The values of a `cu_seqlens`.

    Raises:
        ValueError: If they do not ascend from 0 to `total`, the rows `of` a tensor.
    """
    numbers: list[int] = cu.tolist()
    if numbers[0] != 0:
        raise ValueError(f"{name}: starts at {numbers[0]}; expected 0")
    for s, (begin, end) in enumerate(itertools.pairwise(numbers)):
        if end < begin:
            raise ValueError(
                f"{name}: {end} was given after {begin}, at {s + 1}; expected ascending numbers"
            )
    if numbers[-1] != total:
        raise ValueError(f"{name}: ends at {numbers[-1]}; expected {total}, the rows of {of}")
    return numbers


def top_u_sample(
    pattern: patterns.TopU, segments: Segments, key_padding: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The sampled key rows of each segment, int64 [S, U] padded with -1, and how many queries each
    chooses, int64 [S]: none where no key is in sight. Both on the CPU.
    """
    if key_padding is None and segments.cu_q is None:
        queries, keys = segments.lengths[0]
        return plain_sample(pattern.code, len(segments.lengths), queries, keys)
    seen = segments.visible(key_padding)
    counts = [
        pattern.queries(queries) if n else 0
        for (queries, _), n in zip(segments.lengths, seen, strict=True)
    ]
    places = [torch.tensor(pattern.sampled(n)) for n in seen]
    if key_padding is not None:
        shown = ~key_padding.cpu()
        for s in range(len(places)):
            if segments.cu_k is None:
                row = shown[s]
            else:
                row = shown[0, segments.cu_k[s] : segments.cu_k[s + 1]]
            places[s] = row.nonzero()[:, 0][places[s]]
    sample = torch.nn.utils.rnn.pad_sequence(places, batch_first=True, padding_value=-1)
    return sample, torch.tensor(counts)


@functools.lru_cache(256)
def plain_sample(code: str, batches: int, queries: int, keys: int) -> tuple[Tensor, Tensor]:
    """`top_u_sample` where every batch is whole; shared, not to be written."""
    pattern = patterns.decode(code)
    assert isinstance(pattern, patterns.TopU)
    sample = torch.tensor(pattern.sampled(keys)).expand(batches, -1).contiguous()
    return sample, torch.full((batches,), pattern.queries(queries) if keys else 0)


def rows(t: Tensor) -> Tensor:
    """A plain tensor with contiguous channels; copies only where it must."""
    t = t.as_subclass(Tensor).resolve_neg()
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def dense(t: Tensor | None) -> Tensor | None:
    """A plain contiguous tensor, or None."""
    return None if t is None else t.as_subclass(Tensor).resolve_neg().contiguous()


def as_heads(active_heads: Sequence[int] | None) -> tuple[int, ...] | None:
    """The list as the kernels take it."""
    return None if active_heads is None else tuple(active_heads)


def wide(t: Tensor) -> torch.dtype:
    """What sums are kept in."""
    return torch.promote_types(t.dtype, torch.float32)


def kernel_options(scale: float | None, softcap: float | None, channels: int) -> tuple[float, Any]:
    """Scale and cap as the kernels take them."""
    return channels**-0.5 if scale is None else scale, 0.0 if softcap is None else softcap
