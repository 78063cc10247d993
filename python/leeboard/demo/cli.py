"""The command `leeboard demo`. Importing it costs nothing; torch comes with the first stage."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
from pathlib import Path

from leeboard._cli.draft import at_least
from leeboard.demo.settings import STAGES, Settings

_DESCRIPTION = """\
Train a small language model on the source of Python's own standard library,
train two speculative drafters for it, decode held-out prompts with and
without them, and draw what happens to each drafter as its chain grows: the
pre-norm one (EAGLE-3 as first published) feeds its raw state back and
drifts, the post-norm one (the default here) does not.

Nothing is downloaded. About six minutes on two cores, then seconds: every
stage is cached, and an interrupted run goes on where it stopped."""

_EPILOG = """\
examples:
  leeboard demo                     the whole story
  leeboard demo --quick             one minute; shows the steps, not the effect
  leeboard demo --ttt 4             train on longer chains; the target is reused
  leeboard demo --redo decode       measure the speed again, train nothing

what appears where (runs/demo, or --out):
  drift.png       acceptance and state size by chain step, tokens per pass
  results.json    every figure of the table, every prompt, all settings
  stages/         the tokenizer, models and decoded figures, one folder each"""

_EXTRAS = {
    "hf": ("transformers", "tokenizers", "safetensors", "tqdm"),
    "viz": ("matplotlib",),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `leeboard demo`, and what its `--help` explains around them."""
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    full = Settings()
    number = at_least(1)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a tiny version of a minute or less; its numbers mean little",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where to write (default: runs/demo, with --quick runs/demo-quick)",
    )
    parser.add_argument("--fresh", action="store_true", help="forget all cached stages first")
    parser.add_argument(
        "--redo", choices=STAGES, metavar="STAGE", help="repeat from a stage on: %(choices)s"
    )
    parser.add_argument(
        "--ttt",
        type=number,
        metavar="N",
        default=full.ttt,
        help="chain steps in the drafters' training (default: %(default)s)",
    )
    parser.add_argument(
        "--depth",
        type=number,
        metavar="N",
        default=full.depth,
        help="chain steps per round in decoding (default: %(default)s)",
    )
    parser.add_argument(
        "--prompts",
        type=number,
        metavar="N",
        help=f"held-out prompts to decode (default: {full.prompts}, with --quick "
        f"{Settings.quick().prompts})",
    )
    parser.add_argument(
        "--seed",
        type=at_least(0),
        metavar="N",
        default=full.seed,
        help="of the split, the weights and the order of the data (default: %(default)s)",
    )
    parser.add_argument(
        "--threads",
        type=number,
        metavar="N",
        help="threads for training (default: all cores, at most 8)",
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
        print("\ninterrupted: the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except (ImportError, RuntimeError, ValueError) as error:
        print(f"leeboard demo: {error}", file=sys.stderr)
        return 1
    return 0


def _demo(args: argparse.Namespace) -> None:
    from leeboard._files import write_json
    from leeboard.demo.pipeline import Demo
    from leeboard.demo.report import plot, sample, table
    from leeboard.demo.stages import locked

    changes = {"seed": args.seed, "ttt": args.ttt, "depth": args.depth}
    if args.prompts is not None:
        changes["prompts"] = args.prompts
    settings = Settings.quick(**changes) if args.quick else Settings(**changes)
    out = args.out or Path("runs", "demo-quick" if args.quick else "demo")
    threads = args.threads or min(8, len(os.sched_getaffinity(0)))

    # Read when torch loads GNU OpenMP. By default a thread spins for milliseconds while it waits for
    # another, so that one busy neighbour on the machine makes training several times slower.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    with locked(out):
        if args.fresh:
            shutil.rmtree(out / "stages", ignore_errors=True)
        results = Demo(settings, out, threads=threads, redo=args.redo).run()
        write_json(out / "results.json", results)
        plot(results, out / "drift.png")
    print()
    print(sample(results["decode"]["sample"], color=sys.stdout.isatty()))
    print()
    if args.quick:
        print("--quick trains for seconds: these numbers mean little.\n")
    print(table(results))
    print(f"\n{results['seconds']:.0f} s. Written:")
    for name in ("drift.png", "results.json"):
        print(f"  {out / name}")


def _require_extras() -> None:
    missing = [
        extra
        for extra, modules in _EXTRAS.items()
        if any(importlib.util.find_spec(module) is None for module in modules)
    ]
    if missing:
        raise ImportError(f'it needs more packages: pip install "leeboard[{",".join(missing)}]"')
