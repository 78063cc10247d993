"""`leeboard draft convert`: a drafter's checkpoint from one layout to another."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leeboard.draft import Eagle3Drafter

_DTYPES = ("float32", "bfloat16", "float16")
# Fields that say how the drafter is run, not what it was trained to be.
_SETTABLE = ("max_position_embeddings", "sliding_window", "attention_sinks")
_NORMS = ("norm_output", "fc_norm", "norm_before_fc", "norm_before_residual")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    parser.add_argument("source", metavar="SRC", type=Path, help="folder of the checkpoint")
    parser.add_argument("destination", metavar="DST", type=Path, help="folder to write, new")
    parser.add_argument(
        "--layout",
        choices=("eagle", "speculators"),
        required=True,
        help="eagle: EAGLE, SpecForge, SGLang, vLLM; speculators: vllm-project/speculators",
    )
    parser.add_argument(
        "--target",
        metavar="PATH",
        type=Path,
        help="folder or safetensors file of the target, for an embedding that SRC leaves out",
    )
    parser.add_argument("--dtype", choices=_DTYPES, help="of the weights (default: as in SRC)")
    parser.add_argument(
        "--aux-layer-convention",
        choices=("input", "output"),
        help="what SRC's layer ids mean, where it does not follow its layout",
    )
    parser.add_argument(
        "--set",
        metavar="FIELD=VALUE",
        action="append",
        default=[],
        help=f"change how the drafter is run: {', '.join(_SETTABLE)} (VALUE in JSON)",
    )


def run(args: argparse.Namespace) -> int:
    """Convert as the parsed options say.

    Returns:
        The exit status: 0, or 1 with a message on stderr and nothing written.
    """
    try:
        _convert(args)
    except (ImportError, OSError, TypeError, ValueError) as error:
        print(f"leeboard draft convert: {error}", file=sys.stderr)
        return 1
    return 0


def _convert(args: argparse.Namespace) -> None:
    changes = _changes(args.set)
    if args.destination.exists() and (
        not args.destination.is_dir() or any(args.destination.iterdir())
    ):
        raise ValueError(f"DST: {args.destination} exists, expected a new or empty folder")

    import torch

    from leeboard.draft import Eagle3Drafter, load_drafter

    drafter = load_drafter(
        args.source,
        target=args.target,
        aux_layer_convention=args.aux_layer_convention,
        dtype=None if args.dtype is None else getattr(torch, args.dtype),
    )
    if isinstance(drafter, Eagle3Drafter):
        _write(drafter, changes, args)
        return
    raise ValueError(
        f"SRC: {args.source} holds MTP heads, expected an EAGLE-3 drafter: heads have one layout, "
        "their original's"
    )


def _write(drafter: Eagle3Drafter, changes: Mapping[str, Any], args: argparse.Namespace) -> None:
    from leeboard.draft.checkpoint import save_drafter

    drafter.config = config = dataclasses.replace(drafter.config, **changes)
    save_drafter(drafter, args.destination, layout=args.layout)
    kind = "post-norm" if config.norm_output else "pre-norm"
    print(
        f"{args.destination}: {kind} drafter, {drafter.dtype}, states "
        f"{list(config.aux_layer_ids)} ({config.aux_layer_convention}s of layers)"
    )


def _changes(settings: list[str]) -> dict[str, Any]:
    """The fields of `--set`."""
    changes: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set: got {setting!r}, expected FIELD=VALUE")
        if name in _NORMS:
            raise ValueError(
                f"--set: {name} cannot be changed: the checkpoint was trained with one value, and "
                "run with the other it drafts worse; train a drafter with the value you want"
            )
        if name not in _SETTABLE:
            raise ValueError(
                f"--set: {name} cannot be changed: the weights depend on it; expected one of "
                f"{', '.join(_SETTABLE)}"
            )
        try:
            changes[name] = json.loads(text)
        except ValueError as error:
            raise ValueError(f"--set: {name}: got {text!r}, expected JSON") from error
    return changes
