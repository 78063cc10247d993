"""Trains one net as an arm of the study says, and every ranking that learns along with it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from leeboard.prune.aware import PruneAware
from leeboard.prune.data import SensorData
from leeboard.prune.dropout import ModalityDropout
from leeboard.prune.plan import Plan
from leeboard.prune.score_table import ScoreTable
from leeboard.prune.scorer import Ranking, Scorer
from leeboard.prune.scores import Scores
from leeboard.prune.sentry_gate import SentryGate
from leeboard.prune.study.settings import ARMS
from leeboard.prune.units import Units

Mask = frozenset[str]

_WEIGHT_DECAY = 0.01
_CLIP = 1.0
_WARMUP = 0.05
# Of the prune-aware pass: before this share of the steps there is none; the largest ratio.
START, R_MAX = 0.25, 0.6


@dataclass(frozen=True)
class Trained:
    """A trained net and what learned beside it.

    Attributes:
        model: In evaluation mode.
        units: Of the model.
        arm: Of ARMS.
        rankings: "table" and "gate"; with masks held out, also "table, held out" and
            "gate, held out".
        steps: Of the optimiser.
        passes: Forward and backward passes over a batch.
        loss: Mean task loss over the last tenth of the steps.
    """

    model: nn.Module
    units: Units
    arm: str
    rankings: Mapping[str, Scores]
    steps: int
    passes: int
    loss: float


def fit(
    model: nn.Module,
    units: Units,
    data: SensorData,
    arm: str,
    *,
    epochs: int,
    seed: int,
    batch: int = 100,
    rate: float = 2e-3,
    p_max: float = 0.4,
    schedule: Literal["cosine", "constant"] = "cosine",
    held_out: Sequence[Mask] = (),
) -> Trained:
    """Train in place; the weights of the last step are kept, no epoch is picked.

    All arms: AdamW, clipped gradients, a short warmup, and modalities that go missing sample by
    sample. A table and a gate learn from the task's own backward pass and never touch the weights.
    Equal arguments give equal weights.

    Args:
        model: Called as `model(inputs, present)`.
        units: Of the model.
        data: What it is trained on.
        arm: "A" ordinary; "A-matched" ordinary, with as many forward and backward passes as "B",
            as more steps; "B", "C", "R" with a prune-aware pass beside each step after the first
            quarter, under masks of the gate, of the saliency averaged over the dropout mixture, or
            of random numbers drawn anew.
        epochs: Of all arms but "A-matched".
        seed: Of the order of rows, of masks and of the gate.
        batch: Rows of a step.
        rate: Peak learning rate.
        p_max: Of `ModalityDropout`.
        schedule: Of the rate after the warmup.
        held_out: Masks that a second table and gate do not see. The net does.

    Raises:
        ValueError: For an unknown arm, or no row to train on.
    """
    if arm not in ARMS:
        raise ValueError(f"arm: got {arm!r}, expected one of {', '.join(ARMS)}")
    if not len(data) or epochs < 1:
        raise ValueError(
            f"data, epochs: got {len(data)} rows and {epochs} epochs, expected some of both"
        )
    ordinary = epochs * math.ceil(len(data) / batch)
    aware_passes = ordinary - math.ceil(START * ordinary)
    steps = ordinary + aware_passes if arm == "A-matched" else ordinary
    table, gate = ScoreTable(units), SentryGate(units, seed=seed)
    mixture = _Mixture(units)
    rankings: dict[str, Any] = {"table": table, "gate": gate}
    learners: list[Ranking] = [table, gate, mixture]
    if held_out:
        for name, ranking in (
            ("table, held out", ScoreTable(units)),
            ("gate, held out", SentryGate(units, seed=seed)),
        ):
            rankings[name] = ranking
            learners.append(_Without(ranking, units, held_out))
    scorer = Scorer(
        model,
        units,
        learners,
        dropout=ModalityDropout(units.modalities, p_max=p_max, total_steps=steps, seed=seed),
        aware=_aware(arm, model, units, gate, mixture, steps, seed),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=_WEIGHT_DECAY)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, _factor(steps, schedule))
    model.train()
    losses, passes = [], 0
    for inputs, target in itertools.islice(_batches(data, batch, seed), steps):
        with scorer(len(target)) as present:
            outputs = model(inputs, present)
            loss = cross_entropy(outputs, target)
            losses.append(float(loss.detach()))
            passes += 1
            if scorer.aware is not None and scorer.aware.active:
                loss = loss + scorer.aware_loss(inputs, target, outputs=outputs)
                passes += 1
            torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
    model.eval()
    last = losses[-max(1, steps // 10) :]
    return Trained(model, units, arm, rankings, steps, passes, sum(last) / len(last))


def _aware(
    arm: str,
    model: nn.Module,
    units: Units,
    gate: SentryGate,
    mixture: _Mixture,
    steps: int,
    seed: int,
) -> PruneAware | None:
    rankings: dict[str, Scores | Literal["random"]] = {"B": gate, "C": mixture, "R": "random"}
    if arm not in rankings:
        return None
    return PruneAware(
        model,
        units,
        rankings[arm],
        cross_entropy,
        total_steps=steps,
        r_max=R_MAX,
        start=START,
        seed=seed,
    )


def _factor(steps: int, schedule: str) -> Callable[[int], float]:
    """The rate at a step as a share of its peak."""
    warmup = max(1, round(_WARMUP * steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return factor


def _batches(data: SensorData, size: int, seed: int) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Epoch after epoch, each in an order of its own."""
    for epoch in itertools.count():
        yield from data.batches(size, seed=seed * 100_003 + epoch)


class _Mixture:
    """One static ranking: the mean saliency over the dropout mixture, as it goes; `Scores`."""

    def __init__(self, units: Units) -> None:
        # All samples count as if nothing were missing: one row for the whole mixture.
        self._table = ScoreTable(units, name="taylor/mix")

    @property
    def units(self) -> Units:
        return self._table.units

    @property
    def name(self) -> str:
        return self._table.name

    def update(
        self,
        saliency: Mapping[str, Tensor],
        present: Tensor | None = None,
        means: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._table.update(saliency)

    def scores(self, present: Sequence[str] | None = None) -> dict[str, Tensor]:
        return self._table.scores()

    def means(self, present: Sequence[str] | None = None) -> dict[str, Tensor] | None:
        return None

    def refine(self, plan: Plan) -> Plan:
        return plan

    def state_dict(self) -> dict[str, Any]:
        return self._table.state_dict()

    def load_state_dict(self, state: Any) -> None:
        self._table.load_state_dict(state)


class _Without:
    """Teaches a ranking with the samples whose masks are not held out."""

    def __init__(self, ranking: Any, units: Units, held_out: Sequence[Mask]) -> None:
        rows = [[m in mask for m in units.modalities] for mask in held_out]
        self._ranking, self._held_out = ranking, torch.tensor(rows, dtype=torch.bool)

    def update(
        self,
        saliency: Mapping[str, Tensor],
        present: Tensor | None = None,
        means: Mapping[str, Tensor] | None = None,
    ) -> None:
        if present is None:
            present = torch.ones(
                len(next(iter(saliency.values()))), self._held_out.shape[1], dtype=torch.bool
            )
        seen = ~(present[:, None] == self._held_out[None]).all(2).any(1)
        if not bool(seen.any()):
            return
        chosen = {name: values[seen] for name, values in saliency.items()}
        inputs = None if means is None else {name: values[seen] for name, values in means.items()}
        self._ranking.update(chosen, present[seen], inputs)

    def state_dict(self) -> Any:
        return self._ranking.state_dict()

    def load_state_dict(self, state: Any) -> None:
        self._ranking.load_state_dict(state)
