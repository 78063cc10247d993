"""What the target computes on training rows, in passes of the target as they are asked for."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from leeboard.draft.batch import Batch
from leeboard.draft.protocol import Drafter
from leeboard.draft.target import takes
from leeboard.draft.training.passes import evaluating, run_target, target_device
from leeboard.draft.training.rows import Rows
from leeboard.draft.training.teacher import Teacher, probe_ids, teacher_of

Isolation = Literal["rows", "positions", "documents"]


class StateSource(Protocol):
    """Batches for a drafter to learn from: `OnlineStates` or `CachedStates`."""

    def __len__(self) -> int:
        """Rows."""

    def batch(self, indices: Sequence[int]) -> Batch:
        """These rows with what the target computed on them."""


@dataclasses.dataclass(frozen=True)
class StateKinds:
    """What a target's states are.

    Attributes:
        widths: Of the states that the drafter fuses.
        final: Width of `Batch.final`.
        doubles: Which of them are `Batch.final` itself, as for MTP heads.
    """

    widths: tuple[int, ...]
    final: int
    doubles: tuple[int, ...]

    @property
    def numbers(self) -> int:
        """Numbers of a token, each once."""
        once = (width for i, width in enumerate(self.widths) if i not in self.doubles)
        return sum(once) + self.final


class OnlineStates:
    """Runs the target on the rows of every batch.

    Documents that share a row do not see each other. A probe finds out how this target can be kept
    from it, `isolation`:
    "rows": nothing to learn stands behind another document, a row is run as it is;
    "positions": `position_ids` that begin again do it (transformers, with eager or sdpa attention);
    "documents": nothing of the kind works, so that each document is run on its own.

    Args:
        target: A Hugging Face causal LM; it is left in the mode that it is in.
        drafter: Says which states it reads.
        rows: What to run it on.
        device: Where batches go; None for where the target's head is.

    Raises:
        ValueError: The target's vocabulary or width is not the drafter's, a row holds a token that
            the target does not have or is longer than the target takes, or the target's head is
            none that `teacher_of` understands.
    """

    def __init__(
        self,
        target: Any,
        drafter: Drafter,
        rows: Rows,
        *,
        device: torch.device | str | None = None,
    ) -> None:
        self.rows = rows
        self.teacher: Teacher = teacher_of(target)
        self._target = target
        self._drafter = drafter
        self._device = device
        self._check()
        self.isolation: Isolation = "rows"
        if rows.packed:
            self.isolation = "positions" if self._positions_isolate() else "documents"
            if self.isolation == "documents":
                warnings.warn(
                    f"{type(target).__name__} does not keep documents apart that share a row: each "
                    "is run on its own, which takes more passes (or lay one document a row, "
                    "packed=False)",
                    stacklevel=2,
                )

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def dtype(self) -> torch.dtype:
        """Of the states."""
        return self.teacher.weight.dtype

    @functools.cached_property
    def kinds(self) -> StateKinds:
        """What the states are, from a pass over one token."""
        with evaluating(self._target):
            hiddens, inputs = self._run(probe_ids(self._target, 1, 1), None)
        final = self.teacher.final(inputs)
        return StateKinds(
            tuple(hidden.shape[-1] for hidden in hiddens),
            final.shape[-1],
            # The same memory, not only the same numbers.
            tuple(
                i
                for i, hidden in enumerate(hiddens)
                if hidden.data_ptr() == final.data_ptr() and hidden.shape == final.shape
            ),
        )

    def batch(self, indices: Sequence[int]) -> Batch:
        """Run the target on these rows.

        Returns:
            A `Batch` in the target's dtype.
        """
        rows = self.rows.take(indices)
        at = target_device(self._target)
        ids, positions = rows.ids.to(at), rows.positions.to(at)
        with evaluating(self._target):
            if self.isolation == "documents":
                hiddens, inputs = self._run_documents(ids, positions)
            else:
                hiddens, inputs = self._run(ids, None if self.isolation == "rows" else positions)
            best, sums = self.teacher.summary(inputs)
            final = self.teacher.final(inputs)
        where = final.device if self._device is None else torch.device(self._device)
        return Batch(
            ids=ids,
            loss_mask=rows.loss_mask,
            positions=positions,
            hiddens=hiddens,
            final=final,
            best=best,
            logsumexp=sums,
        ).to(where)

    def _run(self, ids: Tensor, positions: Tensor | None) -> tuple[tuple[Tensor, ...], Tensor]:
        with self._drafter.capture(self._target) as aux:
            _, inputs = run_target(self._target, ids, positions)
            hiddens = aux.hiddens
        return tuple(hidden.to(inputs.device) for hidden in hiddens), inputs

    def _run_documents(self, ids: Tensor, positions: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """As `_run`; documents of like length go together, right-padded, as many as fill a batch."""
        spans = _spans(positions)
        spans.sort(key=lambda span: span[2] - span[1])
        out: list[Tensor] = []
        while spans:
            longest = spans[-1][2] - spans[-1][1]
            some = spans[-max(1, ids.numel() // longest) :]
            del spans[-len(some) :]
            padded = ids.new_zeros(len(some), longest)
            for d, (b, begin, end) in enumerate(some):
                padded[d, : end - begin] = ids[b, begin:end]
            hiddens, inputs = self._run(padded, None)
            states = (*hiddens, inputs)
            if not out:
                out = [state.new_zeros(*ids.shape, state.shape[-1]) for state in states]
            for d, (b, begin, end) in enumerate(some):
                for whole, state in zip(out, states, strict=True):
                    whole[b, begin:end] = state[d, : end - begin]
        return tuple(out[:-1]), out[-1]

    def _positions_isolate(self) -> bool:
        """Whether two documents have the states in one order in a row that they have in the other."""
        if not takes(self._target, "position_ids"):
            return False
        ids = probe_ids(self._target, 1, 12)
        one, other = ids[:, :5], ids[:, 5:]
        ids = torch.cat((torch.cat((one, other), 1), torch.cat((other, one), 1)))
        restarting = [torch.arange(n, device=ids.device) for n in (5, 7, 7, 5)]
        positions = torch.cat(restarting).view(2, 12)
        with evaluating(self._target):
            hiddens, inputs = self._run(ids, positions)
        return all(
            _agree(state[0, :5], state[1, 7:]) and _agree(state[0, 5:], state[1, :7])
            for state in (*hiddens, inputs)
        )

    def _check(self) -> None:
        config, vocabulary = self._drafter.config, self.teacher.vocab_size
        if config.vocab_size != vocabulary:
            raise ValueError(
                f"drafter: its vocab_size is {config.vocab_size}, expected {vocabulary}, the rows "
                "of the target's head"
            )
        width = self.teacher.weight.shape[1]
        if config.target_hidden_size != width:
            raise ValueError(
                f"drafter: its target_hidden_size is {config.target_hidden_size}, expected {width}, "
                "the width of the target's states"
            )
        if not len(self.rows):
            raise ValueError("rows: got none, expected at least one")
        least, most = int(self.rows.ids.min()), int(self.rows.ids.max())
        if least < 0 or most >= vocabulary:
            raise ValueError(
                f"rows: they hold token ids from {least} to {most}, expected ids of the target's "
                f"vocabulary, below {vocabulary}: is it the target's own tokenizer?"
            )
        longest = int(self.rows.positions.max()) + 1
        limit = _limit(self._target)
        if limit is not None and longest > limit:
            raise ValueError(
                f"rows: they have positions up to {longest - 1}, expected at most {limit - 1}, "
                "what the target was made for"
            )


def observe(
    target: Any,
    drafter: Drafter,
    ids: Tensor,
    loss_mask: Tensor,
    positions: Tensor | None = None,
) -> Batch:
    """What a drafter learns from on a few rows: `OnlineStates` of all of them, in one batch.

    Args:
        target: A Hugging Face causal LM.
        drafter: Says which states to keep.
        ids: int64 [B, T].
        loss_mask: [B, T], true (or nonzero) where a token is to be learnt.
        positions: int64 [B, T], as in `Batch`; None where every row is one document.

    Raises:
        ValueError: As `OnlineStates`.
    """
    if positions is None:
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    rows = Rows(ids, loss_mask.bool(), positions)
    return OnlineStates(target, drafter, rows).batch(range(len(rows)))


def _spans(positions: Tensor) -> list[tuple[int, int, int]]:
    """(row, begin, end) of every document."""
    spans = []
    for b, row in enumerate((positions == 0).cpu()):
        begins = row.nonzero()[:, 0].tolist()
        ends = [*begins[1:], len(row)]
        spans += [(b, begin, end) for begin, end in zip(begins, ends, strict=True)]
    return spans


def _agree(got: Tensor, expected: Tensor) -> bool:
    """Whether states [n, H] are the same but for rounding, which is far from what a leak does."""
    eps = torch.finfo(got.dtype).eps
    error = (got.float() - expected.float()).norm(dim=-1)
    return bool((error <= eps**0.5 * expected.float().norm(dim=-1)).all())


def _limit(target: Any) -> int | None:
    """Longest sequence that the target was made for, where its config says."""
    config = target.config
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions"):
        value = getattr(config, name, None)
        if type(value) is int and value > 0:
            return value
    return None
