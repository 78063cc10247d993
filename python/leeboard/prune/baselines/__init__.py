"""Static rankings to compare with: the rules of the literature behind one interface.

Each can be calibrated on complete data or on the dropout mixture; which of the two matters as much
as the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from leeboard.prune.baselines import rules
from leeboard.prune.baselines.refining import BiasScores, FisherScores, output_gram
from leeboard.prune.baselines.statistics import (
    Batch,
    LossFn,
    Masks,
    Need,
    Statistics,
    collect,
    reader_weight,
)
from leeboard.prune.static import StaticScores
from leeboard.prune.units import Units

__all__ = ["BASELINES", "Baseline", "calibrate", "calibrate_all"]


@dataclass(frozen=True)
class Measured:
    """What a baseline makes its scores of."""

    units: Units
    weights: dict[str, Tensor]
    biases: dict[str, Tensor]
    statistics: Statistics
    seed: int


@dataclass(frozen=True)
class Baseline:
    """A static ranking.

    Attributes:
        name: Its key in `BASELINES`.
        title: What it ranks by, in a line.
        source: Where the rule is from.
        needs: What it measures on calibration data; empty for one that needs no data.
        build: Makes the scores; takes the measurements and the scores' name.
        per_layer: Whether its source prunes every sublayer alike: `plan(..., per_layer=True)` is
            then the published rule, and the knapsack over all sublayers compares what the rule
            does not.
    """

    name: str
    title: str
    source: str
    needs: frozenset[Need]
    build: Callable[[Measured, str], StaticScores]
    per_layer: bool = False


def _random(m: Measured, name: str) -> StaticScores:
    return StaticScores(m.units, name, rules.random(m.units, m.seed))


def _magnitude(m: Measured, name: str) -> StaticScores:
    return StaticScores(m.units, name, rules.magnitude(m.units, m.weights))


def _taylor(m: Measured, name: str) -> StaticScores:
    return StaticScores(m.units, name, rules.taylor(m.units, m.statistics))


def _snip(m: Measured, name: str) -> StaticScores:
    return StaticScores(m.units, name, rules.snip(m.units, m.statistics, m.weights))


def _fisher(m: Measured, name: str) -> StaticScores:
    return StaticScores(m.units, name, rules.fisher(m.units, m.statistics))


def _rearranged(m: Measured, name: str) -> StaticScores:
    return FisherScores(m.units, name, rules.fisher(m.units, m.statistics), m.statistics.gradients)


def _kwon(m: Measured, name: str) -> StaticScores:
    grams = {s.name: output_gram(s, m.statistics.gram[s.name], m.weights[s.name]) for s in m.units}
    values = rules.fisher(m.units, m.statistics)
    return FisherScores(m.units, name, values, m.statistics.gradients, grams)


def _wanda_sp(m: Measured, name: str) -> StaticScores:
    values = rules.wanda_sp(m.units, m.statistics, m.weights)
    return StaticScores(m.units, name, values, _means(m))


def _flap(m: Measured, name: str) -> StaticScores:
    values = rules.flap(m.units, m.statistics, m.weights)
    return StaticScores(m.units, name, values, _means(m))


def _flap_bias(m: Measured, name: str) -> StaticScores:
    values = rules.flap(m.units, m.statistics, m.weights)
    return BiasScores(m.units, name, values, _means(m), m.weights, m.biases)


def _means(m: Measured) -> dict[str, Tensor]:
    return {name: moments.mean for name, moments in m.statistics.inputs.items()}


def _table(*rows: Baseline) -> dict[str, Baseline]:
    return {row.name: row for row in rows}


BASELINES: dict[str, Baseline] = _table(
    Baseline("random", "uniform random numbers", "a floor", frozenset(), _random),
    Baseline(
        "magnitude",
        "norms of the reader's columns",
        "magnitude-sp in An et al. 2024",
        frozenset(),
        _magnitude,
        per_layer=True,
    ),
    Baseline(
        "taylor",
        "per-sample |activation x gradient|",
        "Michel et al. 2019, Molchanov et al. 2017",
        frozenset({"gradients"}),
        _taylor,
    ),
    Baseline(
        "snip",
        "|weight x gradient|",
        "Lee et al. 2019, Ma et al. 2023",
        frozenset({"weight_gradients"}),
        _snip,
    ),
    Baseline(
        "fisher",
        "squared gradients of masks",
        "Kwon et al. 2022, selection only",
        frozenset({"gradients"}),
        _fisher,
    ),
    Baseline(
        "fisher+rearrange",
        "the same, units rearranged by the block Fisher",
        "Kwon et al. 2022, without rescaling",
        frozenset({"gradients"}),
        _rearranged,
    ),
    Baseline(
        "kwon",
        "the same, rearranged and rescaled",
        "Kwon et al. 2022",
        frozenset({"gradients", "gram"}),
        _kwon,
    ),
    Baseline(
        "wanda_sp",
        "|weight| x norm of the input",
        "Sun et al. 2024, Wanda-sp in An et al. 2024",
        frozenset({"inputs"}),
        _wanda_sp,
        per_layer=True,
    ),
    Baseline(
        "flap",
        "fluctuation of the input x squared weights",
        "An et al. 2024, without compensation",
        frozenset({"inputs"}),
        _flap,
    ),
    Baseline(
        "flap+bias",
        "the same, with bias compensation",
        "An et al. 2024",
        frozenset({"inputs"}),
        _flap_bias,
    ),
)


def calibrate(
    name: str,
    model: nn.Module,
    units: Units,
    batches: Iterable[Batch],
    loss_fn: LossFn,
    *,
    masks: Masks = "full",
    seed: int = 0,
) -> StaticScores:
    """The scores of one baseline; `calibrate_all` says what the arguments are.

    Raises:
        ValueError: For an unknown name, and as `calibrate_all` does.
    """
    found = calibrate_all([name], model, units, batches, loss_fn, masks=masks, seed=seed)
    return found[name]


def calibrate_all(
    names: Sequence[str],
    model: nn.Module,
    units: Units,
    batches: Iterable[Batch],
    loss_fn: LossFn,
    *,
    masks: Masks = "full",
    seed: int = 0,
) -> dict[str, StaticScores]:
    """The scores of several baselines, measured in one pass over the batches.

    The model runs in evaluation mode and is left as it was. The same arguments give the same
    scores.

    Args:
        names: Keys of `BASELINES`.
        model: Called as `model(inputs)`.
        units: Of the model.
        batches: Of (inputs, target), read once; not read if no name needs data.
        loss_fn: From outputs and target to the mean loss over the batch.
        masks: "full" for complete data; "mix" for the dropout mixture, in which each modality of
            each sample is missing with probability 1/2 and at least one is left.
        seed: Of the random ranking and of the mixture.

    Returns:
        By name. Scores are called "taylor/full", "taylor/mix", ..., or as the baseline where it
        needs no data.

    Raises:
        ValueError: For an unknown name, no batch, a loss that is not finite, "mix" with a model of
            one input, or "snip" with frozen weights.
    """
    unknown = [name for name in names if name not in BASELINES]
    if unknown:
        raise ValueError(f"name: got {unknown[0]!r}, expected one of {', '.join(BASELINES)}")
    needs = frozenset().union(*(BASELINES[name].needs for name in names))
    statistics = Statistics()
    if needs:
        statistics = collect(model, units, batches, loss_fn, needs, masks=masks, seed=seed)
    weights = {s.name: reader_weight(model, s).detach().cpu() for s in units}
    own = {s.name: getattr(model.get_submodule(s.reader), "bias", None) for s in units}
    biases = {name: bias.detach().cpu() for name, bias in own.items() if bias is not None}
    measured = Measured(units, weights, biases, statistics, seed)
    return {
        name: BASELINES[name].build(measured, f"{name}/{masks}" if BASELINES[name].needs else name)
        for name in names
    }
