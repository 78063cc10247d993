"""What some baselines add once a plan has chosen how many units stay: which ones, and by how much.

All of it follows from statistics of the dense model, so that it needs neither data nor the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from leeboard.prune.baselines.rules import by_unit
from leeboard.prune.plan import Plan
from leeboard.prune.planner import block_units
from leeboard.prune.static import StaticScores
from leeboard.prune.units import Sublayer, Units

LARGEST_SCALE = 10.0


def kept_in_blocks(sublayer: Sublayer, keep: tuple[int, ...]) -> int:
    """Units that the plan kept or shed together: those of a key-value head, or a panel of channels.

    Panels are the planner's own, or halves, quarters, ... of them where the plan is finer.
    """
    size = block_units(sublayer)
    if sublayer.kind == "attention":
        return size
    kept = set(keep)

    def split(start: int) -> bool:
        panel = range(start, min(start + size, sublayer.units))
        return 0 < sum(u in kept for u in panel) < len(panel)

    while size > 1 and any(map(split, range(0, sublayer.units, size))):
        size //= 2
    return size


def rearrange(sublayer: Sublayer, keep: tuple[int, ...], gradients: Tensor) -> tuple[int, ...]:
    """As many units as were kept, chosen with how units act together.

    Shedding a set S costs about ||sum over u in S of g_u||^2 (g_u the gradients of u's mask, one
    per batch): the block of the Fisher information that belongs to the sublayer, where the diagonal
    sees each unit alone. Greedy, as in Kwon et al. 2022: the units that stay are tried in order of
    their own g_u^2; each joins those that are shed, and of them the one leaves that makes
    the cost least.

    Args:
        sublayer: Whose units.
        keep: Kept units, ascending.
        gradients: [batches, units].
    """
    size = kept_in_blocks(sublayer, keep)
    # A last panel with fewer channels costs less, so it is not exchanged for a whole one.
    whole = sublayer.units // size
    blocks = gradients.double()[:, : whole * size].reshape(-1, whole, size).sum(dim=2)
    kept = {u // size for u in keep if u < whole * size}
    shed = [b for b in range(whole) if b not in kept]
    if not kept or not shed:
        return keep
    fisher = blocks.T @ blocks
    own = fisher.diagonal()
    together = fisher[shed].sum(dim=0)  # [blocks]: F 1_S
    for candidate in sorted(kept, key=lambda b: (float(own[b]), b)):
        shed.append(candidate)
        together = together + fisher[candidate]
        # 1'F1 without r is less by this much.
        saved = 2 * together[shed] - own[shed]
        leaver = shed.pop(int(saved.argmax()))
        together = together - fisher[leaver]
    gone = set(shed)
    chosen = [b * size + i for b in range(whole) if b not in gone for i in range(size)]
    return (*chosen, *(u for u in keep if u >= whole * size))


def output_gram(sublayer: Sublayer, gram: Tensor, weight: Tensor) -> Tensor:
    """float64 [units, units]: inner products of what any two units add to the reader's output.

    From gram = X^T X, summed over calibration tokens and output features.
    """
    both = gram.double() * (weight.double().T @ weight.double())
    s = sublayer
    return both.reshape(s.units, s.width, s.units, s.width).sum(dim=(1, 3))


def rescale(keep: tuple[int, ...], gram: Tensor, *, damp: float = 1.0) -> tuple[float, ...] | None:
    """Factors of the kept units with which they best make up for the others.

    With a_u what unit u adds to the reader's output on calibration data, the normal equations of
    sum over all a_u = sum over kept s_u a_u are solved for s - 1 with damping, the least squares of
    LSMR: min ||G_kk (s - 1) - G_kp 1||^2 + damp^2 ||s - 1||^2 (k kept, p shed). Kwon et al. 2022 do
    so layer by layer, with inputs of the model that is already pruned below, without the first
    attention layer, and stop at the first solution beyond 10; here inputs are the dense model's,
    and only that sublayer gets None (all factors 1), for its solution fits noise.

    Args:
        keep: Kept units, ascending.
        gram: Of `output_gram`.
        damp: Pulls factors to 1.
    """
    kept = list(keep)
    shed = [u for u in range(gram.shape[0]) if u not in set(keep)]
    if not kept or not shed:
        return None
    own = gram[kept][:, kept]
    missing = gram[kept][:, shed].sum(dim=1)
    damped = own @ own + damp**2 * torch.eye(len(kept), dtype=gram.dtype)
    change = torch.linalg.solve(damped, own @ missing)
    scales = 1 + change
    if not bool(torch.isfinite(scales).all()) or float(scales.abs().max()) > LARGEST_SCALE:
        return None
    return tuple(float(s) for s in scales)


class FisherScores(StaticScores):
    """Fisher information with Kwon's second steps: `rearrange` and, if a gram is given, `rescale`.

    Args:
        units: Of the model.
        name: Of the ranking.
        values: By name of the sublayer [units].
        gradients: By name [batches, units], of the units' masks.
        grams: By name [units, units], of `output_gram`; None leaves scales alone.
    """

    def __init__(
        self,
        units: Units,
        name: str,
        values: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        grams: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(units, name, values)
        object.__setattr__(self, "_gradients", dict(gradients))
        object.__setattr__(self, "_grams", None if grams is None else dict(grams))

    _gradients: dict[str, Tensor]
    _grams: dict[str, Tensor] | None

    def refine(self, plan: Plan) -> Plan:
        """The plan with as many units as before in each sublayer, rearranged and rescaled."""
        keep = {}
        for name, kept in plan.keep.items():
            keep[name] = rearrange(self.units[name], tuple(kept), self._gradients[name])
        scales = dict(plan.scales)
        for name, kept in keep.items() if self._grams is not None else ():
            assert self._grams is not None
            found = rescale(kept, self._grams[name])
            if found is not None:
                scales[name] = found
        return replace(plan, keep=keep, scales=scales)


class BiasScores(StaticScores):
    """A ranking whose plans add to the reader's bias what shed units gave on average.

    FLAP's compensation: bias += W[:, c] E[X_c], summed over the shed columns c. A block that is
    dropped whole is there as its bias alone, so the reader's own is in it.

    Args:
        units: Of the model.
        name: Of the ranking.
        values: By name of the sublayer [units].
        means: By name [columns].
        weights: By name the reader's weight [out_features, columns].
        own: By name the reader's own bias [out_features], where it has one.
    """

    def __init__(
        self,
        units: Units,
        name: str,
        values: Mapping[str, Tensor],
        means: Mapping[str, Tensor],
        weights: Mapping[str, Tensor],
        own: Mapping[str, Tensor],
    ) -> None:
        super().__init__(units, name, values, means)
        object.__setattr__(self, "_own", {name: bias.double() for name, bias in own.items()})
        adds = {
            s.name: by_unit(weights[s.name].double() * means[s.name].double(), s).sum(dim=-1)
            for s in units
        }
        object.__setattr__(self, "_adds", adds)

    _own: dict[str, Tensor]
    _adds: dict[str, Tensor]
    """[out_features, units]: what each unit adds to the reader's output on average."""

    def refine(self, plan: Plan) -> Plan:
        """The plan with a bias for every sublayer that runs and lacks units."""
        bias = dict(plan.bias)
        for name, kept in plan.keep.items():
            shed = sorted(set(range(self.units[name].units)) - set(kept))
            if shed:
                added = self._adds[name][:, shed].sum(dim=1)
                if not kept and name in self._own:
                    added = added + self._own[name]
                bias[name] = tuple(added.tolist())
        return replace(plan, bias=bias)
