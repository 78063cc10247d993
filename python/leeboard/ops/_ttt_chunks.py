"""What runs `ttt_loss` on kernels: chunks of logits, products by torch, rows by a kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

# Logits that are held at a time. Fewer would let the products wait for the head's rows, which they
# read once a chunk; more would leave the cache.
CHUNK_BYTES = 4 << 20
# But so many rows, teacher's and drafter's together, as long as they are not too large; at most as
# many as one short sum has.
ENOUGH_ROWS = 512
ENOUGH_BYTES = 128 << 20
MOST_ROWS = 4096
# A head in a 16-bit type is widened by parts of so many bytes.
PART_BYTES = 64 << 20


@dataclass(frozen=True)
class Options:
    """What is computed: the loss, and of which arguments the gradients."""

    loss: str
    eta: float
    softcap: float | None
    grad_hidden: bool
    grad_weight: bool


class RowKernels(Protocol):
    """The two kernels of a backend; float32 logits are worked on in place."""

    def teacher(
        self,
        logits: Tensor,
        logsumexp: Tensor | None,
        total: Tensor,
        coverage: Tensor,
        best: Tensor,
        softcap: float,
    ) -> None:
        """Takes a row's largest logit away; fills the sum of the exponentials, the mass of the draft
        vocabulary and the best token."""

    def rows(
        self,
        logits: Tensor,
        teacher: Tensor,
        place: Tensor,
        total: Tensor,
        coverage: Tensor,
        best: Tensor,
        weight: Tensor,
        row_loss: Tensor,
        hit: Tensor,
        overlap: Tensor,
        loss: str,
        eta: float,
        gradient: bool,
    ) -> None:
        """Fills the rows' results; logits become the gradient, if one is wanted."""


class Head:
    """Rows [V, H] of a head, and its products in float32."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight if 1 in (weight.stride(0), weight.stride(1)) else weight.contiguous()
        rows, width = weight.shape
        self._part = rows
        if weight.dtype != torch.float32:
            self._part = min(rows, max(1, PART_BYTES // (4 * width)))
            if self._part == rows:
                self.weight = self.weight.float()

    def _parts(self) -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, self.weight.shape[0], self._part):
            part = slice(start, start + self._part)
            yield part, self.weight[part].float()

    def logits(self, x: Tensor, out: Tensor) -> Tensor:
        """x weight^T, in `out` [len(x), V] or beside it."""
        x = x.float()
        for part, weight in self._parts():
            torch.mm(x, weight.T, out=out[:, part])
        return out

    def back(self, slope: Tensor) -> Tensor:
        """slope weight: the gradient of what the logits were made of."""
        total = slope.new_zeros(slope.shape[0], self.weight.shape[1])
        for part, weight in self._parts():
            total.addmm_(slope[:, part], weight, beta=0 if part.start == 0 else 1)
        return total

    def add_gradient(self, total: Tensor, slope: Tensor, x: Tensor) -> None:
        """total += slope^T x."""
        total.addmm_(slope.T, x.float())


class HalfHead(Head):
    """The same on a GPU, where products of 16-bit factors leave float32 sums."""

    product: Callable[[Tensor, Tensor], Tensor] = staticmethod(
        lambda a, b: torch.mm(a, b, out_dtype=torch.float32)
    )

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def logits(self, x: Tensor, out: Tensor) -> Tensor:
        return self.product(x, self.weight.T)

    def back(self, slope: Tensor) -> Tensor:
        return self.product(slope.to(self.weight.dtype), self.weight)

    def add_gradient(self, total: Tensor, slope: Tensor, x: Tensor) -> None:
        total.add_(self.product(slope.to(x.dtype).T, x))


def head_of(x: Tensor, weight: Tensor) -> Head:
    """The products of x with a head."""
    half = x.dtype == weight.dtype and x.dtype.itemsize == 2
    # torch has such products since 2.8.
    if half and x.is_cuda and "dtype" in torch.ops.aten.mm.overloads():  # type: ignore[no-untyped-call]
        return HalfHead(weight)
    return Head(weight)


@dataclass(frozen=True)
class Live:
    """The rows that count.

    Attributes:
        teachers: int64 [R], rows of the teacher that some step needs, ascending.
        flat: int64 [P], s * N + n of the drafter's rows, those of a teacher's row side by side.
        place: int64 [P], which of `teachers` each is compared with.
        ends: For each of `teachers`, how many of `flat` belong to it and to those before.
    """

    teachers: Tensor
    flat: Tensor
    place: Tensor
    ends: list[int]


def live_rows(row_weight: Tensor) -> Live:
    """The rows of [S, N] whose weight is not 0."""
    by_teacher = (row_weight != 0).T
    used = by_teacher.any(1)
    teachers = used.nonzero()[:, 0]
    n, s = by_teacher.nonzero().unbind(1)
    place = (used.cumsum(0) - 1)[n]
    ends = by_teacher.sum(1)[teachers].cumsum(0)
    return Live(teachers, s * row_weight.shape[1] + n, place, ends.tolist())


def chunk_rows(steps: int, vocabulary: int) -> int:
    """Rows of the teacher in a chunk; each may have a row of the drafter for every step."""
    row_bytes = 4 * vocabulary
    enough = min(ENOUGH_ROWS, ENOUGH_BYTES // row_bytes)
    rows = min(max(CHUNK_BYTES // row_bytes, enough), MOST_ROWS)
    return max(1, rows // (1 + steps))


def spans(live: Live, size: int) -> list[tuple[slice, slice]]:
    """Chunks: `size` of the teacher's rows, and the drafter's rows that go with them."""
    chunks, done = [], 0
    for start in range(0, len(live.ends), size):
        stop = min(start + size, len(live.ends))
        chunks.append((slice(start, stop), slice(done, live.ends[stop - 1])))
        done = live.ends[stop - 1]
    return chunks


def compute(
    kernels: RowKernels,
    options: Options,
    hidden: Tensor,
    weight: Tensor,
    teacher: Tensor,
    teacher_weight: Tensor,
    row_weight: Tensor,
    logsumexp: Tensor | None,
) -> tuple[Tensor, ...]:
    """loss, row_loss, hit, overlap and the gradients in hidden and weight, empty if not wanted.

    Everything but `hit` is float32. Tensors are plain: no subclass, no negative bit.
    """
    steps, count, width = hidden.shape
    vocabulary = weight.shape[0]
    new = hidden.new_empty
    loss = new((), dtype=torch.float32).zero_()
    row_loss, hit, overlap = (
        new(steps * count, dtype=dtype).zero_()
        for dtype in (torch.float32, torch.bool, torch.float32)
    )
    grad_hidden = new((steps * count if options.grad_hidden else 0, width), dtype=torch.float32)
    grad_weight = new((vocabulary if options.grad_weight else 0, width), dtype=torch.float32)
    grads = grad_hidden.zero_(), grad_weight.zero_()
    live = live_rows(row_weight)
    if live.ends:
        factor = row_weight.reshape(-1)[live.flat]
        rows = hidden.reshape(steps * count, width)
        terms = _live_terms(
            kernels, rows, weight, teacher, teacher_weight, factor, logsumexp, live, options, *grads
        )
        for whole, made in zip((row_loss, hit, overlap), terms, strict=True):
            whole.index_copy_(0, live.flat, made)
        # Short sums, so that no thread count changes their order.
        parts = [part.sum() for part in torch.split(factor * terms[0], MOST_ROWS)]
        loss = torch.stack(parts).sum()
    shaped = (t.view(steps, count) for t in (row_loss, hit, overlap))
    of_hidden = grad_hidden.view(hidden.shape) if options.grad_hidden else grad_hidden.view(-1)
    return loss, *shaped, of_hidden, grad_weight if options.grad_weight else grad_weight.view(-1)


def _live_terms(
    kernels: RowKernels,
    rows: Tensor,
    weight: Tensor,
    teacher: Tensor,
    teacher_weight: Tensor,
    factor: Tensor,
    logsumexp: Tensor | None,
    live: Live,
    options: Options,
    grad_hidden: Tensor,
    grad_weight: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """row_loss, hit and overlap of the rows that count; adds to the gradients."""
    vocabulary = weight.shape[0]
    steps = rows.shape[0] // teacher.shape[0]
    size = min(chunk_rows(steps, vocabulary), len(live.ends))
    chunks = spans(live, size)
    most = max(pairs.stop - pairs.start for _, pairs in chunks)
    new = rows.new_empty
    logits, target_logits = (new(n, vocabulary, dtype=torch.float32) for n in (most, size))
    row_loss, overlap = new(2, factor.numel(), dtype=torch.float32)
    hit = new(factor.numel(), dtype=torch.bool)
    total, coverage = new(2, size, dtype=torch.float32)
    best = new(size, dtype=torch.int64)
    head, target = head_of(rows, weight), head_of(teacher, teacher_weight)
    # The gradient of a row is 16-bit in some products: the largest should not be small.
    unit = factor.abs().amax() if isinstance(head, HalfHead) else None
    scaled = factor if unit is None else factor / unit
    for chosen, pairs in chunks:
        r, flat = chosen.stop - chosen.start, live.flat[pairs]
        index = live.teachers[chosen]
        z = target.logits(teacher.index_select(0, index), target_logits[:r])
        whole = None if logsumexp is None else logsumexp.index_select(0, index)
        kernels.teacher(z, whole, total[:r], coverage[:r], best[:r], options.softcap or 0.0)
        h = rows.index_select(0, flat)
        x = head.logits(h, logits[: flat.numel()])
        kernels.rows(
            x,
            z,
            live.place[pairs] - chosen.start,
            total[:r],
            coverage[:r],
            best[:r],
            scaled[pairs],
            row_loss[pairs],
            hit[pairs],
            overlap[pairs],
            options.loss,
            options.eta,
            options.grad_hidden or options.grad_weight,
        )
        if options.grad_hidden:
            grad_hidden.index_copy_(0, flat, head.back(x))
        if options.grad_weight:
            head.add_gradient(grad_weight, x, h)
    if unit is not None:
        grad_hidden.mul_(unit)
        grad_weight.mul_(unit)
    return row_loss, hit, overlap
