"""What the chains of many prompts add up to, prompt by prompt so that prompts can be resampled."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leeboard.draft.probe.attention import FIGURES
from leeboard.draft.probe.chains import Chains

Array = NDArray[np.float64]

ROW_FIGURES = ("hit", "rms", *FIGURES)


@dataclasses.dataclass(frozen=True)
class RowSums:
    """Sums over rows, [P, K] each: prompt p, chain step j.

    Attributes:
        count: Rows.
        sums: Per figure of `ROW_FIGURES` its sum over them; figures that were not measured are
            missing.
        matched_count: Rows that have a distance-matched row, as the last ones of a text do not.
        own_there: Sum of `own` over those.
    """

    count: Array
    sums: dict[str, Array]
    matched_count: Array
    own_there: Array

    def mean(self, name: str) -> list[float | None]:
        """By depth; None without a row."""
        count = self.matched_count if name == "matched" else self.count
        return _shares(self.sums[name].sum(0), count.sum(0))


@dataclasses.dataclass(frozen=True)
class Tally:
    """Rounds and rows of P prompts with chains of K steps.

    Attributes:
        accepted: float64 [P], drafts accepted in all rounds of a prompt.
        rounds: float64 [P].
        cut: float64 [P], rounds that the text's end cut short: all that could be tested was
            accepted, and that was less than K.
        reached: float64 [P, K], rounds whose draft at a depth was put to the test.
        held: float64 [P, K], rounds in which it was accepted.
        every: Sums over all rows.
        surviving: Sums over those whose earlier drafts all matched.
    """

    accepted: Array
    rounds: Array
    cut: Array
    reached: Array
    held: Array
    every: RowSums
    surviving: RowSums

    @property
    def mean_accepted(self) -> float:
        """Drafts per round, over all prompts; nan without a round."""
        rounds = self.rounds.sum()
        return float(self.accepted.sum() / rounds) if rounds else float("nan")

    def chosen(self, prompts: NDArray[np.bool_]) -> Tally:
        """Those of the prompts that `prompts`, bool [P], marks."""
        return _map(lambda parts: parts[0][prompts], [self])

    def figures(self) -> dict[str, Any]:
        """JSON-ready: what a way has to tell."""
        reached, held = self.reached.sum(0), self.held.sum(0)
        mean = _number(self.mean_accepted)
        return {
            "prompts": len(self.rounds),
            "rounds": int(self.rounds.sum()),
            "rounds_cut_by_the_end": int(self.cut.sum()),
            "mean_accepted": mean,
            "tau": None if mean is None else mean + 1,
            "reached_by_depth": [int(n) for n in reached],
            "accepted_by_depth": [int(n) for n in held],
            "acceptance_by_depth": _shares(held, reached),
            "rows": {"all": _rows(self.every), "surviving": _rows(self.surviving)},
        }


def tally(chains: Chains) -> Tally:
    """Add up one batch of chains."""
    depth = chains.match.shape[0]
    rounds = chains.rounds()
    batch = len(rounds)
    reached, held, cut = np.zeros((batch, depth)), np.zeros((batch, depth)), np.zeros(batch)
    for b, found in enumerate(rounds):
        t, last = int(chains.first[b]), int(chains.last[b])
        for accepted in found:
            room = min(depth, last + 1 - t)
            reached[b, : min(accepted + 1, room)] += 1
            held[b, :accepted] += 1
            cut[b] += accepted == room < depth
            t += accepted + 1
    return Tally(
        accepted=np.array([sum(found) for found in rounds], dtype=np.float64),
        rounds=np.array([len(found) for found in rounds], dtype=np.float64),
        cut=cut,
        reached=reached,
        held=held,
        every=_row_sums(chains, chains.tested),
        surviving=_row_sums(chains, chains.surviving),
    )


def joined(tallies: Sequence[Tally]) -> Tally:
    """The prompts of all of them, one after another."""
    return _map(np.concatenate, tallies)


def _row_sums(chains: Chains, rows: Tensor) -> RowSums:
    def total(values: Tensor, chosen: Tensor) -> Array:
        kept = torch.where(chosen, values.double(), torch.zeros((), dtype=torch.float64))
        found: Array = kept.sum(-1).T.numpy()
        return found

    sums = {"hit": total(chains.match, rows), "rms": total(chains.rms, rows)}
    there = torch.zeros_like(rows)
    if chains.attention is not None:
        there = rows & chains.attention.matched.isfinite()
        for name in FIGURES:
            chosen = there if name == "matched" else rows
            sums[name] = total(getattr(chains.attention, name), chosen)
    own = chains.rms if chains.attention is None else chains.attention.own
    return RowSums(
        count=total(torch.ones_like(chains.rms), rows),
        sums=sums,
        matched_count=total(torch.ones_like(chains.rms), there),
        own_there=total(own, there),
    )


def _rows(rows: RowSums) -> dict[str, Any]:
    found: dict[str, Any] = {"count": [int(n) for n in rows.count.sum(0)]}
    found |= {name: rows.mean(name) for name in rows.sums}
    if "own" in rows.sums:
        # Step j has j own keys; step 0 has none.
        found["own_per_key"] = [
            None if own is None or j == 0 else own / j for j, own in enumerate(found["own"])
        ]
        found["own_over_matched"] = _shares(rows.own_there.sum(0), rows.sums["matched"].sum(0))
    return found


def _shares(sums: Array, counts: Array) -> list[float | None]:
    return [float(a / b) if b else None for a, b in zip(sums, counts, strict=True)]


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _map(join: Any, tallies: Sequence[Tally]) -> Tally:
    """A tally whose arrays are join([the same array of each])."""

    def rows(parts: Sequence[RowSums]) -> RowSums:
        return RowSums(
            count=join([part.count for part in parts]),
            sums={name: join([part.sums[name] for part in parts]) for name in parts[0].sums},
            matched_count=join([part.matched_count for part in parts]),
            own_there=join([part.own_there for part in parts]),
        )

    names = ("accepted", "rounds", "cut", "reached", "held")
    arrays = {name: join([getattr(part, name) for part in tallies]) for name in names}
    return Tally(
        **arrays,
        every=rows([part.every for part in tallies]),
        surviving=rows([part.surviving for part in tallies]),
    )
