"""Measures what a model's sublayers take on this device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from leeboard.prune._device import this_device
from leeboard.prune._trial import Trial, spread, timed, trial
from leeboard.prune.costs import macs
from leeboard.prune.latency import Curve, LatencyTable, shape_of
from leeboard.prune.plan import Plan
from leeboard.prune.planner import block_units
from leeboard.prune.runtime import active_plan, apply, revert
from leeboard.prune.units import Sublayer, Tokens, Units

# Above so many modalities not every set of them is measured.
_ALL_SETS = 6

Inputs = Tensor | Mapping[str, Tensor]
Point = tuple[str, Tokens, int]


def calibrate(
    model: nn.Module,
    units: Units,
    *,
    inputs: Inputs | None = None,
    threads: int | None = None,
    sizes: int = 4,
    rounds: int = 5,
    repeats: int = 9,
    progress: Callable[[int, int], object] | None = None,
) -> LatencyTable:
    """The time that each shape of sublayer takes here, by kept units and tokens.

    Each shape runs by itself, as it does in the model after `apply`, with one block of its units,
    with an eighth of them, two eighths, ... and with all, on the numbers of tokens that it meets
    with some modalities present. A time is the median of `repeats` calls, the least of `rounds` rounds,
    which go through everything in turn so that a disturbance does not hit one point alone; times
    that fall with more units are averaged (pool adjacent violators).

    Args:
        model: Where it is; not running meanwhile. It is the same afterwards, with the same plan.
        units: Of the model.
        inputs: Of one sample, by modality or whatever `model(inputs)` takes; what the model takes
            with every sublayer dropped is then measured too, and is part of a plan's milliseconds.
        threads: Of torch's pool while measuring; as it is set by default.
        sizes: Numbers of tokens to measure for each shape, at most; spread, with the most and the
            fewest.
        rounds: How often all is gone through.
        repeats: Calls in a round.
        progress: Is called with the points done and all points.

    Raises:
        ValueError: For an argument that is not positive, or a model without prunable units.
    """
    for name, value in (
        ("threads", 1 if threads is None else threads),
        ("sizes", sizes),
        ("rounds", rounds),
        ("repeats", repeats),
    ):
        if type(value) is not int or value < 1:
            raise ValueError(f"{name}: got {value!r}, expected a positive integer")
    if not len(units):
        raise ValueError("units: the model has no prunable sublayers; units(model) says why")
    sets = _sets(units)
    shapes, points = _points(units, sets, sizes)
    device = next(model.parameters()).device
    whole: Any = inputs
    wholes = [] if whole is None else sets
    # What is left of the model when every sublayer is dropped.
    nothing = {
        present: Plan(units.fingerprint, present, "0%", dict.fromkeys(units.tokens(present), ()))
        for present in wholes
    }
    total = rounds * (len(points) + len(wholes))
    plans = {
        (shape, kept): Plan(
            units.fingerprint,
            next(p for p in sets if shapes[shape].name in units.tokens(p)),
            "measured",
            {shapes[shape].name: spread(shapes[shape], kept)},
        )
        for shape, _, kept in points
    }
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    times: dict[Any, float] = {}

    def note(what: Any, run: Trial) -> None:
        took = timed(run, repeats, device)
        times[what] = min(took, times.get(what, float("inf")))
        step()

    with _quiet(model, threads), _same_plan(model, units), torch.random.fork_rng(devices=[]):
        for _ in range(rounds):
            for shape, tokens, kept in points:
                apply(model, plans[shape, kept], units=units)
                note((shape, tokens, kept), trial(model, shapes[shape], tokens))
            for present in wholes:
                apply(model, nothing[present], units=units)
                note(present, partial(model, _given(whole, units, present)))
        here = this_device(device)
    rests = {"+".join(present): times[present] for present in wholes}
    return LatencyTable(here, _curves(shapes, points, times), rests)


def measured(
    model: nn.Module,
    units: Units,
    plan: Plan,
    inputs: Inputs,
    *,
    threads: int | None = None,
    repeats: int = 9,
) -> float:
    """Median milliseconds of the whole model under a plan, to compare with what is predicted.

    The plan that the model runs is the same afterwards.

    Args:
        model: Where it is.
        units: Of the model.
        plan: For it.
        inputs: Of one sample; of a mapping by modality those that are present are given.
        threads: Of torch's pool while measuring; as it is set by default.
        repeats: Calls, once it is warm.
    """
    run = partial(model, _given(inputs, units, plan.present))
    with _quiet(model, threads), _same_plan(model, units):
        apply(model, plan, units=units)
        return timed(run, repeats, next(model.parameters()).device)


def _given(inputs: Inputs, units: Units, present: tuple[str, ...]) -> Inputs:
    if isinstance(inputs, Mapping) and set(inputs) == set(units.modalities):
        return {name: inputs[name] for name in present}
    return inputs


@contextmanager
def _same_plan(model: nn.Module, units: Units) -> Iterator[None]:
    """The model runs the same plan afterwards as before, or none."""
    before = active_plan(model)
    try:
        yield
    finally:
        revert(model)
        if before is not None:
            apply(model, before, units=units)


def _sets(units: Units) -> list[tuple[str, ...]]:
    """Sets of present modalities to measure, all present first."""
    if not units.passing:
        return [units.modalities]
    names = units.modalities
    if len(names) <= _ALL_SETS:
        found = [units.check_present(chosen) for chosen in units.passing]
    else:
        found = [(name,) for name in names]
        found += [tuple(n for n in names if n != name) for name in names]
        found.append(names)
    return sorted(set(found), key=lambda chosen: (-len(chosen), [names.index(n) for n in chosen]))


def _points(
    units: Units, sets: Sequence[tuple[str, ...]], sizes: int
) -> tuple[dict[str, Sublayer], list[Point]]:
    """A sublayer for each shape, and what to measure."""
    shapes: dict[str, Sublayer] = {}
    met: dict[str, dict[float, Tokens]] = {}
    for present in sets:
        for name, tokens in units.tokens(present).items():
            s = units[name]
            shape = shape_of(s)
            shapes.setdefault(shape, s)
            met.setdefault(shape, {}).setdefault(macs(s, s.units, tokens), tokens)
    points = []
    for shape, s in shapes.items():
        ordered = [met[shape][size] for size in sorted(met[shape])]
        last, n = len(ordered) - 1, min(sizes, len(ordered))
        chosen = {round(i * last / (n - 1)) for i in range(n)} if n > 1 else {last}
        points += [(shape, ordered[i], kept) for i in sorted(chosen) for kept in _kept(s)]
    return shapes, points


def _kept(sublayer: Sublayer) -> list[int]:
    size = block_units(sublayer)
    blocks = -(-sublayer.units // size)
    numbers = sorted({1, *(-(-i * blocks // 8) for i in range(1, 9))})
    return [min(n * size, sublayer.units) for n in numbers]


def _curves(
    shapes: Mapping[str, Sublayer], points: Sequence[Point], times: Mapping[Any, float]
) -> dict[str, tuple[Curve, ...]]:
    found: dict[str, dict[Tokens, list[tuple[int, float]]]] = {}
    for point in points:
        shape, tokens, kept = point
        found.setdefault(shape, {}).setdefault(tokens, []).append((kept, times[point]))
    return {
        shape: tuple(
            Curve(
                tokens,
                (0, *(kept for kept, _ in measured)),
                (0.0, *_rising([time for _, time in measured])),
                macs(shapes[shape], shapes[shape].units, tokens),
            )
            for tokens, measured in curves.items()
        )
        for shape, curves in found.items()
    }


def _rising(values: Sequence[float]) -> list[float]:
    """The nearest values that do not fall, in squares: neighbours that do are averaged."""
    pools: list[tuple[float, int]] = []
    for value in values:
        pool = value, 1
        while pools and pools[-1][0] > pool[0]:
            mean, n = pools.pop()
            pool = (mean * n + pool[0] * pool[1]) / (n + pool[1]), n + pool[1]
        pools.append(pool)
    return [mean for mean, n in pools for _ in range(n)]


@contextmanager
def _quiet(model: nn.Module, threads: int | None) -> Iterator[None]:
    """Evaluation mode and the number of threads, for a while."""
    modes = [(module, module.training) for module in model.modules()]
    before = torch.get_num_threads()
    model.eval()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        yield
    finally:
        for module, training in modes:
            module.training = training
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
