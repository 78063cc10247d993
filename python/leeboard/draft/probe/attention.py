"""Where the rows of an unroll look: shares of their attention, step by step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from leeboard.draft.protocol import Attended

# Keys this near are recent, the row's own included.
RECENT = 8

FIGURES = ("sink", "prompt", "own", "matched", "recent", "entropy", "distance")

# Scores of one block, in floats: some tens of megabytes, whatever the length.
_BLOCK = 1 << 23


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of a batch that are looked at: those of sequence b are first[b], first[b] + 1, ...

    Attributes:
        at: int64 [B, R].
        inside: bool [B, R], false where a sequence has no such row.
        starts: int64 [B, R]: where each row's document begins.
    """

    at: Tensor
    inside: Tensor
    starts: Tensor


class AttentionMeter:
    """Takes every step of an unroll (`watch=meter`) and measures its rows' attention.

    All figures are means over heads. Nothing [heads, T, T] is ever held: rows go block by block.

    Args:
        rows: Which rows.
        prompts: int64 [B]: how many columns belong to the prompt, that is stand on the state of
            one of its tokens.
        sink: The column, counted from the document's begin, whose mass is "sink".
        depth: Steps of the unroll.

    Attributes:
        values: Per step a tensor float32 [len(FIGURES), B, R].
    """

    def __init__(self, rows: Rows, prompts: Tensor, sink: int, depth: int) -> None:
        self.values: list[Tensor] = []
        self._rows = rows
        self._prompts = prompts
        self._sink = sink
        self._depth = depth
        # Step 0: mass of each row on the context at distances 0 to depth - 1, [B, R, depth].
        self._near: Tensor | None = None

    def __call__(self, seen: Attended) -> None:
        if len(seen.keys) != seen.step + 1:
            raise ValueError(
                "attention: the drafter has several heads, each with keys of its own, expected "
                "attention=False"
            )
        parts = [self._block(seen, *block) for block in weights_of(seen, self._rows)]
        figures = torch.cat([part[0] for part in parts], dim=2)
        if seen.step == 0:
            self._near = torch.cat([part[1] for part in parts], dim=1)
        figures[FIGURES.index("matched")] = self._matched(seen.step)
        self.values.append(figures)

    def _block(
        self, seen: Attended, block: slice, context: Tensor, own: Tensor, entropy: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(figures [F, B, r], mass by distance [B, r, depth] at step 0) of mean weights."""
        at, starts = self._rows.at[:, block, None], self._rows.starts[:, block, None]
        columns = torch.arange(context.shape[-1], device=context.device)
        here = at + seen.step
        far = (here - columns).clamp(min=0)
        # Own keys of steps 1..j stand at distances j - 1 to 0.
        own_far = torch.arange(seen.step - 1, -1, -1, device=own.device)
        sink = context.gather(-1, (starts + self._sink).clamp(max=context.shape[-1] - 1))[..., 0]
        figures = {
            "sink": sink,
            "prompt": (context * (columns < self._prompts[:, None, None])).sum(-1),
            "own": own.sum(-1),
            "matched": torch.zeros_like(sink),
            "recent": (context * (far < RECENT)).sum(-1) + own[..., -RECENT:].sum(-1),
            "entropy": entropy,
            "distance": (context * far).sum(-1) + (own * own_far).sum(-1),
        }
        near = context.new_zeros(0)
        if seen.step == 0:
            # Behind the row itself lies nothing: its column is the last that it sees.
            wanted = at - torch.arange(self._depth, device=at.device)
            near = context.gather(-1, wanted.clamp(min=0)).masked_fill(wanted < starts, 0.0)
        return torch.stack([figures[name] for name in FIGURES]), near

    def _matched(self, step: int) -> Tensor:
        """[B, R]: what the target-fed row at the same place gives to the same `step` tokens.

        Step j of row t reads from place t + j; its own keys stand at t + 1 .. t + j. Step 0 of row
        t + j reads from there too, and finds the same tokens there, fed by the target. nan where
        there is no such row.
        """
        near, at = self._near, self._rows.at
        assert near is not None
        rows = at.shape[1]
        mass = near[..., :step].sum(-1)
        found = mass.new_full(at.shape, float("nan"))
        if step < rows:
            found[:, : rows - step] = mass[:, step:]
            there = self._rows.inside[:, step:]
            found[:, : rows - step].masked_fill_(~there, float("nan"))
        return found


class ColumnMass:
    """Sums the attention that columns get (`watch=mass` of an unroll of one step).

    Args:
        columns: How many, from the document's begin on; rows that do not see them all mislead.

    Attributes:
        total: float64 [columns], summed over rows, mean over heads.
        count: Rows so far.
        visible: Columns that they saw, summed over rows.
    """

    def __init__(self, columns: int) -> None:
        self.total = torch.zeros(columns, dtype=torch.float64)
        self.count = 0
        self.visible = 0
        self.rows: Rows | None = None

    def __call__(self, seen: Attended) -> None:
        assert self.rows is not None
        rows = self.rows
        for block, context, _, _ in weights_of(seen, rows):
            inside = rows.inside[:, block]
            first = rows.starts[:, block, None] + torch.arange(
                len(self.total), device=inside.device
            )
            mass = context.gather(-1, first.clamp(max=context.shape[-1] - 1))[inside]
            self.total += mass.double().sum(0).cpu()
            self.count += int(inside.sum())
            seen_by = (rows.at - rows.starts + 1)[:, block][inside]
            self.visible += int(seen_by.sum())

    @property
    def sink(self) -> int:
        """The column with the largest mass."""
        return int(self.total.argmax())

    @property
    def share(self) -> float:
        """Its mean mass."""
        return float(self.total.max()) / max(self.count, 1)

    @property
    def uniform(self) -> float:
        """What it would get if every row spread its attention evenly (over the mean context)."""
        return self.count / max(self.visible, 1)


def weights_of(seen: Attended, rows: Rows) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Attention weights of the rows, a block of rows at a time.

    Yields:
        (block, context [B, r, T], own [B, r, j], entropy [B, r]): which of the R rows; weights on
        the step-0 keys and on the row's own keys of steps 1..j, float32, means over heads; entropy
        in nats, mean over heads.
    """
    batch, heads, _, width = seen.q.shape
    kv_heads = seen.keys[0].shape[1]
    groups = heads // kv_heads
    total = int(rows.at.max()) + 1
    size = max(1, _BLOCK // max(batch * heads * (total + seen.step), 1))
    each = torch.arange(batch, device=seen.q.device)[:, None]
    context_keys = seen.keys[0][:, :, None, :total].float()
    columns = torch.arange(total, device=seen.q.device)
    for start in range(0, rows.at.shape[1], size):
        block = slice(start, start + size)
        at, starts = rows.at[:, block], rows.starts[:, block]
        # [B, Hkv, G, r, D]
        q = seen.q.transpose(1, 2)[each, at].transpose(1, 2).float() * seen.scale
        q = q.reshape(batch, kv_heads, groups, -1, width)
        scores = q @ context_keys.transpose(-1, -2)
        place = at[..., None]
        visible = (columns <= place) & (columns >= starts[..., None])
        if seen.window is not None:
            near = place + seen.step - columns < seen.window
            visible &= near | (columns - starts[..., None] < seen.sinks)
        scores = scores.masked_fill(~visible[:, None, None], float("-inf"))
        own = [
            (q * keys.transpose(1, 2)[each, at].transpose(1, 2).float()[:, :, None]).sum(-1)
            for keys in seen.keys[1:]
        ]
        if own:
            scores = torch.cat((scores, torch.stack(own, dim=-1)), dim=-1)
        weights = scores.softmax(-1)
        entropy = torch.special.entr(weights).sum(-1).mean(dim=(1, 2))
        mean = weights.mean(dim=(1, 2))
        yield block, mean[..., :total], mean[..., total:], entropy
