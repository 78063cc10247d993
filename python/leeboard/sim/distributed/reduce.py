"""Reductions over ranks, with the rounding of gloo's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ReduceOp

_Kind: Any = ReduceOp.RedOpType

# Numbers of the kinds, as they travel in signatures.
SUM, AVG, PRODUCT = int(_Kind.SUM), int(_Kind.AVG), int(_Kind.PRODUCT)
PREMUL_SUM = int(_Kind.PREMUL_SUM)
NAMES = {int(kind): name for name, kind in _Kind.__members__.items()}

_BITWISE = {int(_Kind.BAND), int(_Kind.BOR), int(_Kind.BXOR)}
_STEP: dict[int, Callable[[Tensor, Tensor], Tensor]] = {
    SUM: torch.add,
    AVG: torch.add,
    PRODUCT: torch.mul,
    int(_Kind.MIN): torch.minimum,
    int(_Kind.MAX): torch.maximum,
    int(_Kind.BAND): torch.bitwise_and,
    int(_Kind.BOR): torch.bitwise_or,
    int(_Kind.BXOR): torch.bitwise_xor,
}
_SUM_IN_PLACE = {SUM, AVG}

# gloo's defaults (gloo/allreduce.h).
_LONGEST_SEGMENT = 1 << 20
_SEGMENTS_EACH = 2
# Elements from which copying all tensors costs more than many small additions.
_LARGE = 1 << 16
# Ranks up to which sums are taken in the order of gloo's.
_FEW = 16


def refused(kind: int, dtype: torch.dtype) -> str:
    """Why a tensor of this dtype cannot be reduced so, or nothing."""
    if kind not in _STEP:
        return f"{NAMES.get(kind, kind)} is not supported"
    whole = not (dtype.is_floating_point or dtype.is_complex)
    if kind in _BITWISE and not whole:
        return f"{NAMES[kind]} takes integer tensors, not {dtype}"
    if dtype.is_complex and kind not in (SUM, AVG, PRODUCT):
        return f"{NAMES[kind]} has no meaning for {dtype}"
    return ""


def reduced(tensors: Sequence[Tensor], kind: int, to_root: bool = False) -> Tensor:
    """The reduction of equally long tensors, in the shape of the first; a new tensor.

    Up to 16 ranks give gloo's numbers bit for bit, and so do integers, minima and maxima of any
    number: sums and products are taken in the order of gloo's ring, in which chunk c of P goes from
    rank c - 1 downwards and ends at rank c. Where chunks end differs when only the root gets the
    result (`to_root`). More ranks are summed up in whatever order is fastest.
    """
    first = tensors[0]
    ranks = len(tensors)
    if ranks == 1 or first.numel() == 0:
        result = first.clone()
    elif ranks == 2:
        result = _STEP[kind](first, tensors[1].view_as(first))
    else:
        shape = first.shape
        same = all(other.shape == shape for other in tensors)
        rows = tensors if same else [other.reshape(shape) for other in tensors]
        if kind not in (SUM, AVG, PRODUCT) or not first.dtype.is_floating_point:
            result = _in_turn(rows, kind)
        elif ranks <= _FEW:
            result = _in_ring_order(rows, kind, to_root)
        elif kind != PRODUCT and first.numel() < _LARGE:
            result = torch.stack(rows).sum(0, dtype=first.dtype)  # type: ignore[arg-type]
        else:
            result = _in_turn(rows, kind)
    if kind == AVG:
        if result.dtype.is_floating_point or result.dtype.is_complex:
            return result.div_(ranks)
        return torch.div(result, ranks, rounding_mode="trunc").to(result.dtype)
    return result


def _in_turn(rows: Sequence[Tensor], kind: int) -> Tensor:
    step = _STEP[kind]
    result = step(rows[0], rows[1])
    if kind in _SUM_IN_PLACE:
        for row in rows[2:]:
            result.add_(row)
    else:
        for row in rows[2:]:
            step(result, row, out=result)  # type: ignore[call-arg]
    return result


@lru_cache(maxsize=256)
def _chunk(elements: int, size: int, ranks: int, to_root: bool) -> int:
    """Elements of a rank's chunk in gloo's ring (gloo/allreduce.cc, gloo/reduce.cc)."""
    total, fewest = elements * size, _SEGMENTS_EACH * ranks
    if to_root:
        segment = min(_parts(total, fewest), _LONGEST_SEGMENT // size * size)
        segment = _parts(segment, size) * size
        each = _parts(max(_parts(total, segment), fewest), ranks)
        return each * (segment // size)
    each = _parts(max(_parts(total, _LONGEST_SEGMENT), fewest), ranks)
    return each * _parts(_parts(total, each * ranks), size)


def _parts(whole: int, part: int) -> int:
    """How many parts make up the whole, the last of them perhaps a shorter one."""
    return -(-whole // part)


def _in_ring_order(rows: Sequence[Tensor], kind: int, to_root: bool) -> Tensor:
    first, ranks = rows[0], len(rows)
    elements = first.numel()
    chunk = _chunk(elements, first.element_size(), ranks, to_root)
    if elements <= chunk:
        return _in_turn(rows[::-1], kind)
    chunks = _parts(elements, chunk)
    if elements >= _LARGE:
        flat = [torch.split(row.reshape(-1), chunk) for row in rows]
        parts = [
            _in_turn([flat[(number - 1 - turn) % ranks][number] for turn in range(ranks)], kind)
            for number in range(chunks)
        ]
        return torch.cat(parts).view(first.shape)
    # All ranks' tensors twice over: where each chunk's j-th last term lies, chunk after chunk, is
    # then a matter of strides. What lies behind a last, shorter chunk is added up and left out.
    twice = torch.cat((*rows, *rows))
    turns = twice.as_strided((ranks, chunks, chunk), (elements, elements + chunk, 1)).unbind(0)
    whole = _in_turn(turns[::-1], kind)
    if chunks * chunk != elements:
        whole = whole.view(-1)[:elements]
    return whole.view(first.shape)
