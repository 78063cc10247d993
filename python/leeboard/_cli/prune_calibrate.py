"""The command `leeboard prune calibrate`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from leeboard.prune import LatencyTable, Plan, calibrate, units
from leeboard.prune.backbones import BackboneConfig, build
from leeboard.prune.calibration import measured
from leeboard.prune.data.synthetic import SENSORS

_SIZES = ("d_model", "heads", "kv_heads", "layers", "hidden", "attention")
# Steps of a token that give each synthetic sensor eight tokens at most.
_TOKENS = 8


def run(args: argparse.Namespace) -> int:
    """Measure, write, print; or print."""
    if args.show is not None:
        print(LatencyTable.load(args.show, any_device=True))
        return 0
    if not args.out.parent.is_dir():
        raise FileNotFoundError(f"--out: there is no folder {args.out.parent}")
    model, inputs = _model(args)
    found = units(model)
    with _progress() as progress:
        table = calibrate(
            model,
            found,
            inputs=inputs,
            threads=args.threads,
            sizes=args.sizes,
            rounds=args.rounds,
            repeats=args.repeats,
            progress=progress,
        )
    table.save(args.out)
    print(table)
    print()
    if inputs is None:
        print("No inputs were given, so what is not prunable is not counted.")
    else:
        dense = Plan.dense(found, latency=table)
        took = measured(model, found, dense, inputs, threads=args.threads)
        print(f"The whole model takes {took:.4f}; the table says {dense.milliseconds:.4f}")
    print(f"{args.out} is written: {len(found)} sublayers of {len(table.curves)} shapes")
    return 0


def _model(args: argparse.Namespace) -> tuple[nn.Module, Any]:
    sizes = {name: getattr(args, name) for name in _SIZES if getattr(args, name) is not None}
    if args.model is None:
        streams = _streams(args.modality)
        config = BackboneConfig(streams, 2, **sizes)
        inputs = {s.name: torch.randn(1, s.length, s.channels) for s in config.modalities}
        return build(args.backbone, config), inputs
    if sizes or args.modality:
        option = next(iter(sizes), "modality").replace("_", "-")
        raise ValueError(f"--{option}: it is of a backbone, and --model gives another model")
    return _made(args.model)


def _streams(given: list[str] | None) -> tuple[Any, ...]:
    if given is None:
        return tuple(
            (name, channels, steps, max(1, steps // _TOKENS))
            for name, (steps, channels) in SENSORS.items()
        )
    found = []
    for text in given:
        name, *numbers = text.split(":")
        if not 1 <= len(numbers) <= 3 or not all(n.isascii() and n.isdigit() for n in numbers):
            raise ValueError(f"--modality: got {text!r}, expected NAME:CHANNELS:LENGTH:PATCH")
        found.append((name, *map(int, numbers)))
    return tuple(found)


def _made(given: str) -> tuple[nn.Module, Any]:
    module, _, function = given.partition(":")
    if not module or not function:
        raise ValueError(f"--model: got {given!r}, expected MODULE:FUNCTION")
    sys.path.insert(0, "")
    try:
        make = getattr(import_module(module), function, None)
    finally:
        sys.path.remove("")
    if not callable(make):
        raise ValueError(f"--model: {module} has no function {function!r}")  # noqa: TRY004
    made = make()
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"--model: {given} returned {type(made).__name__}, expected a torch.nn.Module, or one "
            "and its inputs"
        )
    if inputs is not None and not isinstance(inputs, Tensor | Mapping):
        raise TypeError(
            f"--model: {given} returned {type(inputs).__name__} as inputs, expected a tensor or a "
            "dict of tensors"
        )
    return model, inputs


@contextmanager
def _progress() -> Iterator[Callable[[int, int], object] | None]:
    """Draws on a terminal, if tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield None
        return
    with tqdm(desc="measuring", leave=False, disable=not sys.stderr.isatty()) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
