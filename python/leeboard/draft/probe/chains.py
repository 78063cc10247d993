"""Every chain that a drafter would draft on a given text, from one teacher-forced unroll."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from leeboard.draft.checks import positive_int
from leeboard.draft.probe.attention import FIGURES, AttentionMeter, ColumnMass, Rows
from leeboard.draft.protocol import Drafter, Feed

# Rows T times sequences that one unroll holds at most; it keeps keys and values of all its steps.
_CHUNK = 4096


@dataclasses.dataclass(frozen=True)
class Attention:
    """Attention of step j of row t, float32 [K, B, T]; means over heads, shares of 1.

    Attributes:
        sink: On the sink, the column `Chains.sink`.
        prompt: On the columns of the prompt's tokens, the sink included.
        own: On the chain's own tokens: the keys of its steps 1..j (0 at step 0, where there are
            none).
        matched: What the target-fed row at the same place (step 0 of row t + j) gives to the same
            j tokens: own / matched is 1 where drafted tokens draw as much attention as any others
            at their distance.
        recent: On keys less than 8 places away, own tokens included.
        entropy: Nats, mean over heads of each head's entropy.
        distance: Mean distance of what is attended to, in tokens.
    """

    sink: Tensor
    prompt: Tensor
    own: Tensor
    matched: Tensor
    recent: Tensor
    entropy: Tensor
    distance: Tensor


@dataclasses.dataclass(frozen=True)
class Chains:
    """What `measure_chains` found; entry [j, b, t] belongs to chain step j of row t of text b.

    Where `tested` is false, `match` is false and the floats are nan.

    Attributes:
        match: bool [K, B, T]: the drafted token is the text's.
        rms: float32 [K, B, T]: root mean square of the state that the step feeds back.
        tested: bool [K, B, T]: the row is one of the text's, and the text holds the token that the
            step predicts.
        first: int64 [B], the first row, as given.
        last: int64 [B], the last row with a token to predict; below `first` where there is none.
        attention: None unless it was measured.
        sink: The column with the largest mean attention at step 0; None without attention.
    """

    match: Tensor
    rms: Tensor
    tested: Tensor
    first: Tensor
    last: Tensor
    attention: Attention | None
    sink: int | None

    @property
    def surviving(self) -> Tensor:
        """bool [K, B, T]: tested, and all earlier drafts of the chain matched.

        Up to there the teacher's tokens are the drafter's own, so the row is one of real decoding.
        """
        before = torch.ones_like(self.match[:1])
        return self.tested & torch.cat((before, self.match[:-1].cumprod(0).bool()))

    def rounds(self) -> list[list[int]]:
        """`accepted_rounds` of these chains."""
        return accepted_rounds(self.match, self.first, self.last)


@torch.no_grad()
def measure_chains(
    drafter: Drafter,
    ids: Tensor,
    hiddens: Sequence[Tensor],
    depth: int,
    *,
    first: Tensor | Sequence[int],
    lengths: Tensor | Sequence[int] | None = None,
    positions: Tensor | None = None,
    feed: Feed | None = None,
    attention: bool = True,
    sink: int | None = None,
    chunk: int = _CHUNK,
) -> Chains:
    """Unroll the drafter over target-greedy text and see which chains hold.

    The unroll is teacher-forced, yet it tells real greedy decoding exactly: up to a chain's first
    mismatch the teacher's tokens are the drafter's own. Rounds follow by `accepted_rounds`, ends
    included: where fewer than `depth` tokens of a text are left, fewer are tested, as `speculate`
    tests no more than it may still produce. (Only where `speculate` shortens its chains because a
    text comes within `depth` of either model's last position do the two differ.)

    Args:
        drafter: Any drafter.
        ids: int64 [B, T], texts padded on the right.
        hiddens: The target's captured states of `ids`, each [B, T, Ht] (`drafter.capture`).
        depth: K, steps of every chain.
        first: [B], each text's first row to look at: the prompt's last position (tokens of the
            prompt less one), where decoding begins to draft.
        lengths: [B], tokens of each text; None for T.
        positions: [B, T], as for `unroll`, for rows of several documents. Rows of interest lie in
            the document that ends the text.
        feed: As for `unroll`: changes what steps from the second on are fed.
        attention: Measure where rows look, at the cost of the scores once more.
        sink: The sink's column; None finds it in these texts (`find_sink`).
        chunk: Most rows (texts times T) to unroll at once.

    Returns:
        `Chains`, on the CPU.

    Raises:
        ValueError: Shapes do not fit or a number is out of range.
    """
    positive_int("depth", depth)
    positive_int("chunk", chunk)
    begin, ends = _bounds(ids, first, lengths)
    if attention and sink is None:
        sink = find_sink(
            drafter, ids, hiddens, first=begin, lengths=ends, positions=positions, chunk=chunk
        ).sink
    shape = (depth, *ids.shape)
    match = torch.zeros(shape, dtype=torch.bool)
    tested = torch.zeros(shape, dtype=torch.bool)
    floats = torch.full((1 + (len(FIGURES) if attention else 0), *shape), float("nan"))
    for some, width in _chunks(ends, chunk):
        rows = _rows(begin[some], ends[some], None if positions is None else positions[some])
        text, states = ids[some, :width], [hidden[some, :width] for hidden in hiddens]
        places = None if positions is None else positions[some, :width]
        meter = None
        if attention:
            assert sink is not None
            meter = AttentionMeter(rows, begin[some] + 1, sink, depth)
        each = torch.arange(text.shape[0], device=ids.device)[:, None]
        inside = rows.inside.cpu()
        sequences = torch.arange(some.start, some.stop)[:, None].expand(inside.shape)[inside]
        where = sequences, rows.at.cpu()[inside]
        steps = drafter.iter_unroll(text, states, depth, positions=places, feed=feed, watch=meter)
        for j, (hidden, state) in enumerate(steps):
            wanted = rows.at + 2 + j
            there = (rows.inside & (wanted < ends[some, None])).cpu()
            drafted = drafter.greedy(hidden[each, rows.at])
            hit = (drafted == text[each, wanted.clamp(max=width - 1)]).cpu() & there
            rms = state[each, rows.at].float().square().mean(-1).sqrt().cpu()
            found = [rms, *(meter.values[j].cpu() if meter is not None else ())]
            match[j, where[0], where[1]] = hit[inside]
            tested[j, where[0], where[1]] = there[inside]
            for place, values in enumerate(found):
                values = values.masked_fill(~there, float("nan"))
                floats[place, j, where[0], where[1]] = values[inside]
    return Chains(
        match=match,
        rms=floats[0],
        tested=tested,
        first=begin.cpu(),
        last=ends.cpu() - 3,
        attention=Attention(*floats[1:]) if attention else None,
        sink=sink if attention else None,
    )


@torch.no_grad()
def find_sink(
    drafter: Drafter,
    ids: Tensor,
    hiddens: Sequence[Tensor],
    *,
    first: Tensor | Sequence[int],
    lengths: Tensor | Sequence[int] | None = None,
    positions: Tensor | None = None,
    chunk: int = _CHUNK,
    mass: ColumnMass | None = None,
) -> ColumnMass:
    """Which column draws the most attention while the target feeds the drafter (step 0).

    Looked for among the columns that every row sees: those of the shortest prompt.

    Args:
        drafter: This and the next arguments as for `measure_chains`.
        ids: [B, T].
        hiddens: Each [B, T, Ht].
        first: [B].
        lengths: [B], or None.
        positions: [B, T], or None.
        chunk: Most rows to unroll at once.
        mass: What other texts gave; these are added to it.
    """
    begin, ends = _bounds(ids, first, lengths)
    if mass is None:
        least = begin if positions is None else positions.gather(1, begin[:, None])
        mass = ColumnMass(int(least.min()) + 1)
    for some, width in _chunks(ends, chunk):
        rows = _rows(begin[some], ends[some], None if positions is None else positions[some])
        mass.rows = rows
        states = [hidden[some, :width] for hidden in hiddens]
        places = None if positions is None else positions[some, :width]
        # One step is all there is; the state that it yields is not needed.
        for _ in drafter.iter_unroll(ids[some, :width], states, 1, positions=places, watch=mass):
            pass
    return mass


def accepted_rounds(
    match: Tensor, first: Tensor | Sequence[int], last: Tensor | Sequence[int]
) -> list[list[int]]:
    """Drafts accepted per round of greedy decoding, per text.

    A round drafts from row t, accepts the a leading matches, and the next one drafts from row
    t + a + 1: the target adds one token of its own.

    Args:
        match: bool [K, B, T], false where a text ends (`Chains.match`).
        first: [B], where each text's first round drafts from.
        last: [B], the last row that a round may draft from.
    """
    leading = match.cumprod(0).sum(0).tolist()
    rounds = []
    for row, begin, end in zip(leading, _listed(first), _listed(last), strict=True):
        found, t = [], begin
        while t <= end:
            found.append(row[t])
            t += row[t] + 1
        rounds.append(found)
    return rounds


def _listed(values: Tensor | Sequence[int]) -> list[int]:
    return [int(value) for value in values]


def _bounds(ids: Tensor, first: Any, lengths: Any) -> tuple[Tensor, Tensor]:
    """(first, lengths), int64 [B], checked."""
    if ids.ndim != 2 or 0 in ids.shape:
        raise ValueError(f"ids: got shape {tuple(ids.shape)}, expected [B, T], both at least 1")
    batch, width = ids.shape
    begin = torch.as_tensor(first, dtype=torch.int64, device=ids.device)
    ends = torch.full_like(begin, width) if lengths is None else lengths
    ends = torch.as_tensor(ends, dtype=torch.int64, device=ids.device)
    for name, values, low, high in (("first", begin, 0, width - 1), ("lengths", ends, 1, width)):
        if values.shape != (batch,):
            raise ValueError(f"{name}: got shape {tuple(values.shape)}, expected ({batch},)")
        wrong = (values < low) | (values > high)
        if bool(wrong.any()):
            raise ValueError(
                f"{name}: got {int(values[wrong][0])}, expected {low} to {high} for {width} columns"
            )
    return begin, ends


def _chunks(ends: Tensor, chunk: int) -> list[tuple[slice, int]]:
    """(texts, columns) of every unroll: at most `chunk` rows together, at least one text."""
    lengths, found, start = ends.tolist(), [], 0
    while start < len(lengths):
        end, width = start + 1, lengths[start]
        while end < len(lengths) and max(width, lengths[end]) * (end + 1 - start) <= chunk:
            width = max(width, lengths[end])
            end += 1
        found.append((slice(start, end), width))
        start = end
    return found


def _rows(begin: Tensor, ends: Tensor, positions: Tensor | None) -> Rows:
    last = ends - 3
    count = max(int((last - begin).max()) + 1, 1)
    at = begin[:, None] + torch.arange(count, device=begin.device)
    inside = at <= last[:, None]
    at = torch.minimum(at, ends[:, None] - 1)
    starts = torch.zeros_like(at) if positions is None else at - positions.gather(1, at)
    return Rows(at, inside, starts)
