"""The commands `leeboard plan speculation` and `leeboard plan edge`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leeboard._cli.outputs import check_outputs
from leeboard.scenarios import (
    Drafter,
    NothingFitsError,
    NothingMeetsError,
    Plans,
    Target,
    plan_edge,
    plan_speculation,
    plans_of,
    plans_of_study,
)
from leeboard.scenarios.models import find
from leeboard.sim.units import SIZE, parse


def speculation(args: argparse.Namespace) -> int:
    """Plan, print, draw, write."""
    check_outputs(args, ("plot", "json"))
    models: dict[str, Any] = {"target": find(Target, args.target)}
    models["drafter"] = find(Drafter, args.drafter)
    for what, model in models.items():
        size = getattr(args, f"{what}_bytes")
        if size is not None:
            models[what] = dataclasses.replace(model, bytes_per_weight=size)
    _only_without_platform(
        args,
        {
            "bandwidth": "--bandwidth",
            "link_latency": "--latency",
            "protocol": "--protocol",
            "efficiency": "--efficiency",
        },
    )
    if args.replies is not None and args.draws != "seeded":
        raise ValueError(f"--replies {args.replies}: is for --draws seeded")
    try:
        found = plan_speculation(
            _acceptance(args),
            way=args.way,
            platform=args.platform,
            edge=args.edge,
            server=args.server,
            depth=args.depth,
            placements=_listed(args.placements),
            context=args.context,
            batch=args.batch,
            tokens=args.tokens,
            draws=args.draws,
            seed=args.seed,
            sensitivity=not args.no_sensitivity,
            share=args.share,
            progress=sys.stderr.isatty(),
            **models,
            **_given(
                args,
                bandwidth="bandwidth",
                link_latency="latency",
                protocol="protocol",
                efficiency="efficiency",
                replies="replies",
            ),
        )
    except NothingFitsError as error:
        return _nothing("speculation", error)
    _report(found, args)
    return 0


def edge(args: argparse.Namespace) -> int:
    """Plan, print, draw, write."""
    check_outputs(args, ("plot", "json"))
    without = ("bandwidth", "link_latency", "node_speed", "hub_speed", "node_power", "hub_power")
    _only_without_platform(args, {name: f"--{name.replace('_', '-')}" for name in without})
    if args.hub is not None and args.platform is None:
        raise ValueError(f"--hub {args.hub}: says which device of --platform it is; give one")
    sizes = {
        name: parse(f"--{name}", text, SIZE)
        for name in ("raw", "features")
        if (text := getattr(args, name)) is not None
    }
    powers: dict[str, Any] = {
        name: _pair(f"--{name.replace('_', '-')}", text)
        for name in ("node_power", "hub_power")
        if (text := getattr(args, name)) is not None
    }
    try:
        found = plan_edge(
            _plans(args).sized(**sizes),
            deadline=args.deadline,
            energy=args.energy,
            energy_of=args.energy_of,
            dropout=_dropout(args.dropout),
            rate=args.rate,
            arrivals=args.arrivals,
            quantile=args.quantile,
            windows=args.windows,
            platform=args.platform,
            devices=None if args.on is None else _pairs("--on", args.on),
            radio=args.radio,
            placements=_listed(args.placements),
            seed=args.seed,
            sensitivity=not args.no_sensitivity,
            share=args.share,
            progress=sys.stderr.isatty(),
            **powers,
            **_given(
                args,
                bandwidth="bandwidth",
                link_latency="latency",
                node_speed="node_speed",
                hub_speed="hub_speed",
                hub="hub",
            ),
        )
    except NothingMeetsError as error:
        return _nothing("edge", error)
    _report(found, args)
    return 0


def _nothing(name: str, error: NothingFitsError | NothingMeetsError) -> int:
    print(error.table.whole())
    print(f"leeboard plan {name}: {error}", file=sys.stderr)
    return 3


def _report(found: Any, args: argparse.Namespace) -> None:
    if args.json:
        found.to_json(args.json)
    if args.plot:
        found.plot(args.plot)
    print(found)
    if args.all:
        print(f"\n{found.table.whole()}")


def _acceptance(args: argparse.Namespace) -> Any:
    given = [text for text in (args.acceptance, args.shares) if text is not None]
    if len(given) != 1:
        raise ValueError(
            f"acceptance: got {'it twice' if given else 'none'}, expected shares by depth such as "
            "0.8,0.7,0.6, or a JSON file"
        )
    text: str = given[0]
    if Path(text).is_file() or text.endswith(".json"):
        return Path(text)
    try:
        return [float(word) for word in text.split(",") if word.strip()]
    except ValueError:
        raise ValueError(
            f"acceptance: got {text!r}, expected shares by depth such as 0.8,0.7,0.6, or a JSON "
            "file that is there"
        ) from None


def _plans(args: argparse.Namespace) -> Plans:
    if (args.plans is None) == (args.study is None):
        which = "neither" if args.plans is None else "both"
        raise ValueError(f"plans: got {which} of PLANS and --study, expected one of them")
    if args.plans is not None:
        if args.latency is not None:
            raise ValueError(
                "--latency: is a table for --study; the link's latency is --link-latency"
            )
        for name in ("ranker", "planning"):
            if (given := getattr(args, name)) is not None:
                raise ValueError(f"--{name} {given}: is for --study")
        return plans_of(args.plans)
    if args.latency is None:
        raise ValueError("--latency: missing; --study needs what `leeboard prune calibrate` wrote")
    return plans_of_study(
        args.study, args.latency, ranker=args.ranker, planning=args.planning or "global"
    )


def _dropout(text: str) -> Any:
    if "=" in text:
        return {name: _number("--dropout", p) for name, p in _pairs("--dropout", text).items()}
    return _number("--dropout", text)


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{option}: got {text!r}, expected a number") from None


def _pairs(option: str, text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in text.split(","):
        name, equals, value = word.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise ValueError(f"{option}: got {word!r}, expected NAME=VALUE, with commas between")
        found[name.strip()] = value.strip()
    return found


def _pair(option: str, text: str) -> tuple[str, str]:
    words = [word.strip() for word in text.split(",")]
    if len(words) != 2:
        raise ValueError(f"{option}: got {text!r}, expected IDLE,ACTIVE such as 1mW,150mW")
    return (words[0], words[1])


def _listed(text: str | None) -> Any:
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]


def _given(args: argparse.Namespace, **names: str) -> dict[str, Any]:
    """Options that were given, under the names of the function's arguments."""
    found = {parameter: getattr(args, option) for option, parameter in names.items()}
    return {name: value for name, value in found.items() if value is not None}


def _only_without_platform(args: argparse.Namespace, options: Mapping[str, str]) -> None:
    """`options`: names in the parsed arguments, and what they are called on the command line."""
    given = [flag for name, flag in options.items() if getattr(args, name) is not None]
    if args.platform is not None and given:
        raise ValueError(f"{given[0]}: --platform says it; give one of them")
