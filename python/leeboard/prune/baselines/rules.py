"""The rules by which the baselines rank units. Each names its source.

W is the reader's weight [out_features, columns], X its input over the calibration data, and a unit
u a group of neighbouring columns c. Rules from gradients compare units of all sublayers as they
are. The others mean something within a sublayer only, and their sources prune each sublayer alike
or standardise; see `per_sublayer` and `flap`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from leeboard.prune.baselines.statistics import Statistics
from leeboard.prune.units import Sublayer, Units

Weights = Mapping[str, Tensor]
Values = dict[str, Tensor]


def by_unit(columns: Tensor, sublayer: Sublayer) -> Tensor:
    """[..., columns] as [..., units, width]; the width is the model's own, whatever its heads."""
    return columns.reshape(*columns.shape[:-1], sublayer.units, sublayer.width)


def weights_of_a_unit(sublayer: Sublayer) -> float:
    """How many weights a unit has, its share of a key-value head's among them."""
    s = sublayer
    if s.kind == "feed_forward":
        return float(s.in_features * (2 if s.gated else 1) + s.out_features)
    return s.width * (s.in_features + s.out_features + 2 * s.key_features / s.group)


def unit_weights(units: Units) -> dict[str, float]:
    """Weights of a unit of each sublayer, relative to the smallest unit.

    In a Llama with full attention a head counts 4 head_dim / 3 channels: the 512/3 that FLAP has
    for a head_dim of 128.
    """
    counts = {s.name: weights_of_a_unit(s) for s in units}
    smallest = min(counts.values(), default=1.0)
    return {name: count / smallest for name, count in counts.items()}


def per_sublayer(values: Values, units: Units) -> Values:
    """Make a rule that ranks within a sublayer comparable between them.

    Divides by the mean over the sublayer, as DepGraph does (Fang et al., CVPR 2023), and multiplies
    by the weights of a unit, so that a weight is worth the same in each sublayer on average.
    The order within a sublayer is the rule's.
    """
    scale = unit_weights(units)
    result = {}
    for name, value in values.items():
        mean = float(value.mean())
        result[name] = value * (scale[name] / mean if mean > 0 else 0.0)
    return result


def random(units: Units, seed: int) -> Values:
    """Uniform in [0, 1) per weight of a unit: the floor that a ranking has to beat."""
    generator = torch.Generator().manual_seed(seed)
    scale = unit_weights(units)
    return {
        s.name: torch.rand(s.units, generator=generator, dtype=torch.float64) * scale[s.name]
        for s in units
    }


def magnitude(units: Units, weights: Weights) -> Values:
    """sum over c in u of ||W[:, c]||_2; magnitude-sp, a baseline in FLAP (An et al., AAAI 2024)."""
    found = {s.name: by_unit(weights[s.name].double().norm(dim=0), s).sum(dim=-1) for s in units}
    return per_sublayer(found, units)


def taylor(units: Units, statistics: Statistics) -> Values:
    """E over samples of |sum over tokens, c in u of a dL/da|.

    Michel et al. 2019 for heads, Molchanov et al. 2017 for channels; absolute values are taken per
    sample, for sums over a batch cancel.
    """
    return {s.name: statistics.saliency[s.name] for s in units}


def snip(units: Units, statistics: Statistics, weights: Weights) -> Values:
    """sum over i, c in u of |W_ic dL/dW_ic|, L the mean loss: SNIP (Lee et al., ICLR 2019), grouped
    as in LLM-Pruner's first-order rule (Ma et al., NeurIPS 2023)."""
    return {
        s.name: by_unit(
            (weights[s.name].double() * statistics.weight_gradients[s.name]).abs().sum(dim=0), s
        ).sum(dim=-1)
        for s in units
    }


def fisher(units: Units, statistics: Statistics) -> Values:
    """sum over batches of (dL/dm_u)^2, the diagonal of the masks' empirical Fisher information.

    Kwon et al., "A fast post-training pruning framework for transformers", NeurIPS 2022.
    """
    return {s.name: statistics.gradients[s.name].square().sum(dim=0) for s in units}


def wanda_sp(units: Units, statistics: Statistics, weights: Weights) -> Values:
    """sum over c in u of mean over i of |W_ic| ||X_c||_2.

    Wanda (Sun et al., ICLR 2024) per structure, a baseline in FLAP. The norm is divided by the
    root of the number of tokens, which changes no order.
    """
    found = {}
    for s in units:
        norm = statistics.inputs[s.name].mean_square.sqrt()
        columns = weights[s.name].double().abs().mean(dim=0) * norm
        found[s.name] = by_unit(columns, s).sum(dim=-1)
    return per_sublayer(found, units)


def flap(units: Units, statistics: Statistics, weights: Weights) -> Values:
    """Weighted fluctuation of the readers' inputs: FLAP's WIFV with its global AL-AM structure.

    m_c = Var(X_c) sum over i of W_ic^2, squared for attention; standardised over the sublayer's
    columns, then averaged over the columns of a head. FLAP keeps the units above one threshold, a
    head counting as many channels as its weights make. Here the standardised score above the lowest
    one, times the weights of a unit: a knapsack by weights then keeps the same units, since what a
    constant adds to each weight's worth is the budget. An et al., "Fluctuation-based adaptive
    structured pruning for large language models", AAAI 2024.

    Two faults of the published code are not repeated: its running mean is overwritten before the
    variance uses the old one, and its first batch adds nothing.
    """
    scores = {}
    for s in units:
        metric = statistics.inputs[s.name].variance * weights[s.name].double().square().sum(dim=0)
        if s.kind == "attention":
            metric = metric.square()
        centred = metric - metric.mean()
        # Columns that all fluctuate alike, e.g. not at all, say nothing: they stay at 0.
        deviation = float(metric.std()) if metric.numel() > 1 else 0.0
        standard = centred / deviation if deviation > 0 else torch.zeros_like(centred)
        scores[s.name] = by_unit(standard, s).mean(dim=-1)
    lowest = min((float(score.min()) for score in scores.values()), default=0.0)
    scale = unit_weights(units)
    return {name: (score - lowest).clamp(min=0) * scale[name] for name, score in scores.items()}
