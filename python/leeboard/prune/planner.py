"""`plan`: what to keep of a model, for the modalities that are present and a budget."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from decimal import ROUND_CEILING, Context
from typing import Any

import torch
from torch import nn

from leeboard.prune import _knapsack
from leeboard.prune._compensate import Readers, biases, readers
from leeboard.prune.budget import Budget, BudgetKind
from leeboard.prune.costs import Latency, costs, macs, weight_bytes
from leeboard.prune.plan import Plan
from leeboard.prune.scores import Scores
from leeboard.prune.units import Sublayer, Tokens, Units

_CACHED = 256


def plan(
    scores: Scores,
    *,
    present: Sequence[str] | frozenset[str] | None = None,
    budget: Budget | str | float,
    latency: Latency | None = None,
    compensate: bool = False,
    panel: int | None = None,
    per_layer: bool = False,
    drop: bool = False,
    model: nn.Module | None = None,
) -> Plan:
    """The units of the largest total importance that fit the budget.

    Units are kept in blocks: the query heads of a key-value head, and panels of neighbouring
    channels, as the kernels skip them. A block is worth the sum of its units' scores. Each sublayer
    keeps its best blocks, at least one, or (with `drop`) is dropped whole. How many is a knapsack over all
    sublayers that run with these modalities (`leeboard.prune._knapsack` says how close the answer
    is to the best one). The same input gives the same plan everywhere: ties go to the earlier
    sublayer and the lower index.

    A plan is kept and returned again for the same scores, modalities and budget, in microseconds,
    where the scores count their updates in an attribute `version`.

    Args:
        scores: A ranking, e.g. a `ScoreTable`.
        present: Modalities that are there; all by default.
        budget: As `Budget.parse` takes it: "50%", 0.5, "3 MMAC", "2.5 ms", "200 kB".
        latency: Predicts milliseconds, for such a budget or to report them.
        compensate: Whether the missing units' mean contribution, as the ranking knows it for these
            modalities, is added to each reader's bias. Needs `model`.
        panel: Channels in a panel of a feed-forward block; by default 16, or 32 for weights of two
            bytes. 1 ranks single channels, which costs what panels save.
        per_layer: Whether each sublayer keeps the same share of its blocks, in place of the
            knapsack: the ordinary rule, to compare with.
        drop: Whether a sublayer may be dropped whole. First-order scores think too little of the
            last blocks of a sublayer (see the page on plans).
        model: Holds the readers' weights, for `compensate`.

    Returns:
        The plan, as refined by `scores.refine`.

    Raises:
        ValueError: For a budget that no plan can meet (the message has the smallest possible), a
            modality that the model does not have, a budget of milliseconds without a table, scores
            that do not fit the units or are not finite, or a ranking without means.
        LookupError: If the latency table lacks a sublayer's shape.
    """
    model = model if compensate else None
    hashable = present is None or isinstance(present, tuple | frozenset | str)
    chosen = present if hashable else tuple(present or ())
    key: Any = (
        chosen,
        type(budget),
        budget,
        id(latency),
        id(model),
        compensate,
        panel,
        per_layer,
        drop,
    )
    store = _store(scores)
    if store is not None:
        found = store.plans.get(key)
        if found is not None and found.fresh(latency, model):
            return found.plan
    made = _Request(
        scores,
        scores.units.check_present(present),
        Budget.parse(budget),
        latency,
        panel,
        per_layer,
        drop,
    )
    used = readers(scores.units, model) if compensate else None
    entry = _Entry(_planned(made, used), latency, model, used)
    if store is not None:
        if len(store.plans) >= _CACHED:
            # Dictionaries keep their order: the oldest one goes.
            store.plans.pop(next(iter(store.plans)), None)
        store.plans[key] = entry
    return entry.plan


@dataclass(frozen=True)
class _Request:
    scores: Scores
    present: tuple[str, ...]
    budget: Budget
    latency: Latency | None
    panel: int | None
    per_layer: bool
    drop: bool


@dataclass(frozen=True)
class _Entry:
    """A plan, and what it was made from besides the scores."""

    plan: Plan
    latency: Latency | None
    model: nn.Module | None
    readers: Readers | None

    def fresh(self, latency: Latency | None, model: nn.Module | None) -> bool:
        # The entry holds both, so that no other object has their ids.
        return (
            self.latency is latency
            and self.model is model
            and (self.readers is None or self.readers.unchanged())
        )


@dataclass
class _Store:
    """The plans of one ranking, as it was at one version."""

    version: Any
    plans: dict[Any, _Entry]


_stores: dict[int, tuple[weakref.ref[Any], _Store]] = {}


def _store(scores: Scores) -> _Store | None:
    version = getattr(scores, "version", None)
    if version is None:
        return None
    held = _stores.get(id(scores))
    if held is not None and held[0]() is scores:
        if held[1].version != version:
            held = _stores[id(scores)] = held[0], _Store(version, {})
        return held[1]
    # By identity: a ranking may be a value that does not hash.
    place = id(scores)
    try:
        gone = weakref.ref(scores, lambda _: _stores.pop(place, None))
    except TypeError:
        return None
    store = _Store(version, {})
    _stores[place] = gone, store
    return store


@dataclass(frozen=True)
class _Layer:
    """A sublayer that runs, with its blocks from the best to the worst."""

    sublayer: Sublayer
    tokens: Tokens
    size: int
    order: list[int]
    choices: _knapsack.Choices

    def kept(self, blocks: int) -> tuple[int, ...]:
        s, n = self.sublayer, self.size
        chosen = sorted(self.order[:blocks])
        return tuple(u for b in chosen for u in range(b * n, min((b + 1) * n, s.units)))


def _planned(request: _Request, used: Readers | None) -> Plan:
    scores, units = request.scores, request.scores.units
    if request.panel is not None and (type(request.panel) is not int or request.panel < 1):
        raise ValueError(f"panel: got {request.panel!r}, expected a positive integer")
    if request.budget.kind == "milliseconds" and request.latency is None:
        raise ValueError(
            f"latency: a budget of {request.budget} needs a table of this device; "
            "make one with `leeboard prune calibrate`"
        )
    values = _checked(scores.scores(request.present), units, request.present)
    price = _price(request.budget.kind, request.latency)
    layers = [
        _layer(units[name], tokens, values[name], price, request.panel)
        for name, tokens in units.tokens(request.present).items()
    ]
    keep = _keep(request, layers)
    total = sum(float(values[x.sublayer.name].sum()) for x in layers)
    made = Plan(
        units.fingerprint,
        request.present,
        str(request.budget),
        keep,
        score=_share(keep, values, total),
        ranking=scores.name,
    )
    made = _priced(made, units, request.latency)
    if used is not None:
        made = replace(made, bias=biases(made, units, used, scores.means(request.present)))
    return _refined(made, request, used, values, total)


def _keep(request: _Request, layers: list[_Layer]) -> dict[str, tuple[int, ...]]:
    choices = [layer.choices for layer in layers]
    kind, amount = request.budget.kind, request.budget.amount
    if kind == "share":
        amount *= sum(c.costs[-1] for c in choices)
    rest = 0.0
    if kind == "milliseconds" and request.latency is not None:
        rest = request.latency.rest(request.present)
    fewest = 1 if request.per_layer or not request.drop else 0
    if sum(c.costs[-1] for c in choices) + rest <= amount * (1.0 + _knapsack.SLACK):
        counts = [len(c.values) - 1 for c in choices]
    else:
        least = _knapsack.smallest(choices, fewest=fewest) if layers else 0.0
        if least + rest > amount * (1.0 + _knapsack.SLACK):
            _refuse(request, least + rest, sum(c.costs[-1] for c in choices), bool(fewest))
        if request.per_layer:
            counts = _knapsack.uniform(choices, amount - rest)
        else:
            counts = _knapsack.solve(choices, amount - rest, fewest=fewest)
    return {layer.sublayer.name: layer.kept(n) for layer, n in zip(layers, counts, strict=True)}


def _refuse(request: _Request, least: float, dense: float, each: bool) -> None:
    kind = request.budget.kind
    amount = least / dense if kind == "share" else least
    # Rounded up, so that it can be met; but not for the last bits of a sum.
    rounded = Context(prec=6, rounding=ROUND_CEILING).create_decimal_from_float(
        amount * (1 - 1e-12)
    )
    text = str(Budget(float(rounded), kind))
    smallest = "a block of each sublayer" if each else "a single block"
    raise ValueError(
        f"budget: got {request.budget}, but with {', '.join(request.present)} present no plan costs "
        f"less than {text} ({smallest}{', and what is not prunable' if kind == 'milliseconds' else ''})"
    )


def _price(kind: BudgetKind, latency: Latency | None) -> Callable[[Sublayer, int, Tokens], float]:
    if kind == "bytes":
        return lambda sublayer, kept, tokens: weight_bytes(sublayer, kept)
    if kind == "milliseconds" and latency is not None:
        return latency.milliseconds
    return macs


def _layer(
    sublayer: Sublayer,
    tokens: Tokens,
    values: torch.Tensor,
    price: Callable[[Sublayer, int, Tokens], float],
    panel: int | None,
) -> _Layer:
    size = block_units(sublayer, panel)
    count = -(-sublayer.units // size)
    padded = torch.zeros(count * size, dtype=torch.float64)
    padded[: sublayer.units] = values
    worth = padded.view(count, size).sum(1).tolist()
    order = sorted(range(count), key=lambda block: (-worth[block], block))
    sums, costs_ = [0.0], [0.0]
    for n, block in enumerate(order, 1):
        sums.append(sums[-1] + worth[block])
        # A last panel that is not full counts as one that is, until all are kept.
        costs_.append(max(costs_[-1], price(sublayer, min(n * size, sublayer.units), tokens)))
    return _Layer(sublayer, tokens, size, order, _knapsack.Choices(sums, costs_))


def block_units(sublayer: Sublayer, panel: int | None = None) -> int:
    """Units that a plan keeps or sheds together: of a key-value head, or of a panel of channels."""
    if sublayer.kind == "attention":
        return sublayer.group
    if panel is None:
        panel = 32 if sublayer.element_bytes == 2 else 16
    return max(sublayer.group, min(panel, sublayer.units))


def _checked(
    scores: dict[str, torch.Tensor], units: Units, present: tuple[str, ...]
) -> dict[str, torch.Tensor]:
    found = {}
    for name in units.tokens(present):
        if name not in scores:
            raise ValueError(f"scores: none for {name}, which runs with {', '.join(present)}")
        values = scores[name].detach().to("cpu", torch.float64)
        if values.shape != (units[name].units,):
            raise ValueError(
                f"scores: got shape {list(values.shape)} for {name}, expected [{units[name].units}]"
            )
        if not bool(torch.isfinite(values).all()) or bool((values < 0.0).any()):
            raise ValueError(f"scores: those of {name} are not all finite and at least 0")
        found[name] = values
    return found


def _share(keep: Any, values: dict[str, torch.Tensor], total: float) -> float:
    if total <= 0.0:
        return 1.0
    kept = sum(float(values[name][list(units)].sum()) for name, units in keep.items())
    return min(1.0, kept / total)


def _priced(made: Plan, units: Units, latency: Latency | None) -> Plan:
    found = costs(units, made.keep, made.present, latency)
    return replace(made, **{f.name: getattr(found, f.name) for f in fields(found)})


def _refined(
    made: Plan,
    request: _Request,
    used: Readers | None,
    values: dict[str, torch.Tensor],
    total: float,
) -> Plan:
    """What the ranking adds; where it chose other units, their costs and biases follow."""
    units = request.scores.units
    refined = request.scores.refine(made)
    if refined is made or refined.keep == made.keep:
        return refined
    refined.check(units)
    refined = _priced(
        replace(refined, score=_share(refined.keep, values, total)), units, request.latency
    )
    if used is not None:
        means = request.scores.means(request.present)
        refined = replace(refined, bias=biases(refined, units, used, means))
    return refined
