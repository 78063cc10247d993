"""`leeboard prune demo`. Importing this module does not import torch."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

from leeboard._cli.draft import at_least

# Repeated from leeboard.prune.demo.settings, which comes with torch; a test compares them.
BACKBONES = ("shared", "cross", "late")
RANKINGS = ("table", "gate")
BUDGET = "25%"

_DESCRIPTION = """\
Train a small model on five synthetic sensors, then stream windows through it
while sensors drop out and the budget falls. For what is there and what may be
spent, a plan says which attention heads and which panels of channels run; the
model switches to it between two windows, nothing is trained or copied again.

Beside it runs the dense model, fed everything that is there, and a plan of the
same budget by a ranking that does not know which sensors are there. The
numbers are of synthetic data and of one seed: an illustration, not evidence.
`leeboard prune study` is where rankings are compared."""

_EPILOG = """\
examples:
  leeboard prune demo --quick            less than a minute on two idle cores
  leeboard prune demo --budget 10%       a leaner battery
  leeboard prune demo --budget "0.4 ms"  the battery as time for a window
  leeboard prune demo --backbone late    one encoder for each sensor
  leeboard prune demo --seed 1           other data, weights and stream

how to read the table:
  sensors    a letter for each one that is there (ACC GYR PPG EDA TEMP), else a dot
  budget     as a share: of the multiply-adds of the dense model with all sensors
  heads, panels   that run, of those that the sensors at hand use
  predicted  by the latency table that is measured first, and what was measured
  dense      measured in turns with it
  switch     to another plan, in microseconds; empty where none was needed
  right      of the last windows

what appears where (runs/prune-demo, or --out):
  prune-demo.png  sensors, accuracy, latency and plan over the stream
  results.json    every window, every plan, all settings
  model/          the trained model and its rankings; used again next time"""

_NEEDED = ("safetensors", "tqdm", "matplotlib")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `leeboard prune demo`, and what its `--help` explains."""
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    number = at_least(1)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a smaller model and a shorter stream: less than a minute",
    )
    parser.add_argument(
        "--backbone",
        choices=BACKBONES,
        default=BACKBONES[0],
        help="one encoder over all sensors' tokens; one for each, with cross-attention; one for "
        "each, with late fusion (default: %(default)s)",
    )
    parser.add_argument(
        "--budget",
        metavar="B",
        default=BUDGET,
        help='the lowest one of the stream: "30%%", "2 MMAC", "0.4 ms", "200 kB" '
        f"(default: {BUDGET.replace('%', '%%')})",
    )
    parser.add_argument(
        "--ranking",
        choices=RANKINGS,
        default=RANKINGS[0],
        help="importances by a table for each set of sensors, or by a gate network "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=at_least(0),
        metavar="N",
        default=0,
        help="of the data, the weights and the stream (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where to write (default: runs/prune-demo, with --quick runs/prune-demo-quick)",
    )
    parser.add_argument("--fresh", action="store_true", help="train again")
    parser.add_argument(
        "--threads",
        type=number,
        metavar="N",
        default=1,
        help="threads of torch; a window is small work (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the demo as the parsed options say.

    Returns:
        The exit status: 0, or 1 with a message on stderr, or 130 after an interrupt.
    """
    try:
        _require_extras()
        _demo(args)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        print(f"leeboard prune demo: {error}", file=sys.stderr)
        return 1
    return 0


def _settings(args: argparse.Namespace) -> Any:
    from leeboard.prune.demo.settings import Settings

    changes: dict[str, Any] = {
        "backbone": args.backbone,
        "budget": args.budget,
        "ranking": args.ranking,
        "seed": args.seed,
        "threads": args.threads,
    }
    return Settings.quick(**changes) if args.quick else Settings(**changes)


def _demo(args: argparse.Namespace) -> None:
    import torch

    from leeboard.prune.demo.pipeline import demo

    settings = _settings(args)
    out = args.out or Path("runs", "prune-demo-quick" if args.quick else "prune-demo")
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    started = time.monotonic()
    try:
        demo(settings, out, fresh=args.fresh)
    finally:
        torch.set_num_threads(before)
    print(f"\n{time.monotonic() - started:.0f} s. Written:")
    for name in ("prune-demo.png", "results.json"):
        print(f"  {out / name}")


def _require_extras() -> None:
    if any(importlib.util.find_spec(module) is None for module in _NEEDED):
        raise ImportError('it needs more packages: pip install "leeboard[prune]"')
