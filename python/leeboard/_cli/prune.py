"""`leeboard prune`: the parsers of its subcommands. Importing this module does not import torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from leeboard._cli.messages import status_of

_CALIBRATE = """\
Measure what a model's attention and feed-forward blocks take on this machine, with some and with
all of their units and for each set of modalities that may be there, and write it as a latency
table. `leeboard.prune.plan` then takes budgets in milliseconds:

  table = leeboard.prune.LatencyTable.load("latency.json")
  plan(scores, present=["ACC", "EDA"], budget="2.5 ms", latency=table)

The model is one of leeboard's backbones, or what a Python function returns: the model, or the model
and the inputs of one sample (a dict by modality, or a tensor). The function's module is imported,
so trust it; the folder you are in is on its path. With inputs, what is not prunable is measured,
too, so that the milliseconds are those of the whole model. A table holds for the processor, the
number of threads and the instruction set that it was measured with."""

_CALIBRATE_EXAMPLES = """\
examples:
  leeboard prune calibrate                                # the shared encoder, five sensors
  leeboard prune calibrate --backbone late --attention gqa --d-model 64 --heads 8 --hidden 256
  leeboard prune calibrate --backbone cross --modality ACC:3:128:8 --modality EDA:1:32:4
  leeboard prune calibrate --model mypackage.nets:make --threads 1 --out edge.json
  leeboard prune calibrate --show latency.json            # print a table, of any device

exit status: 0; 2 if something is wrong, with a line that says what."""

# What a wrong option or file ends in; anything else is a defect and shows its traceback.
_WRONG = (ImportError, LookupError, OSError, TypeError, ValueError)

# Subcommand, line in the overview, module with add_arguments and run.
_COMMANDS = (
    ("calibrate", "measure the latency table of a model on this machine", ""),
    ("demo", "sensors drop out and the budget falls: watch plans switch", "prune_demo"),
    ("study", "compare rankings and trainings, pruned and with modalities missing", "prune_study"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `leeboard prune` and its subcommands."""
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, summary, module in _COMMANDS:
        sub = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command: Callable[[argparse.Namespace], int] = _calibrate
        if module:
            part = import_module(f"leeboard._cli.{module}")
            part.add_arguments(sub)
            command = part.run
        else:
            _add_calibrate(sub)
        sub.set_defaults(run_prune=command)


def run(args: argparse.Namespace) -> int:
    """Run the subcommand that was parsed."""
    command: Callable[[argparse.Namespace], int] = args.run_prune
    return command(args)


def _add_calibrate(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = _CALIBRATE, _CALIBRATE_EXAMPLES
    which = parser.add_argument_group("which model")
    which.add_argument(
        "--model",
        metavar="MODULE:FUNCTION",
        help="a function without arguments that returns the model, or (model, inputs)",
    )
    which.add_argument(
        "--backbone",
        choices=("shared", "cross", "late"),
        default="shared",
        help="one of leeboard's backbones (default: %(default)s)",
    )
    which.add_argument(
        "--modality",
        action="append",
        metavar="NAME:CHANNELS:LENGTH:PATCH",
        help="of a backbone: an input, its steps and the steps of a token; repeat it "
        "(default: the sensors of the synthetic data)",
    )
    for name, help_ in (
        ("d-model", "channels of a token"),
        ("heads", "query heads"),
        ("kv-heads", "key-value heads, with gqa and sparse attention"),
        ("layers", "encoder blocks"),
        ("hidden", "channels of a feed-forward block"),
    ):
        which.add_argument(f"--{name}", type=int, metavar="N", help=f"of a backbone: {help_}")
    which.add_argument(
        "--attention", choices=("dense", "gqa", "sparse"), help="of a backbone (default: dense)"
    )
    how = parser.add_argument_group("how to measure")
    how.add_argument(
        "--threads", type=int, metavar="N", help="of torch's pool (default: as torch chooses)"
    )
    how.add_argument(
        "--sizes",
        type=int,
        default=4,
        metavar="N",
        help="numbers of tokens to measure for each shape, at most (default: %(default)s)",
    )
    how.add_argument(
        "--rounds",
        type=int,
        default=5,
        metavar="N",
        help="how often all is gone through; the fastest call counts (default: %(default)s)",
    )
    how.add_argument(
        "--repeats",
        type=int,
        default=9,
        metavar="N",
        help="calls in a round; the fastest counts (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("latency.json"),
        metavar="FILE",
        help="the table (default: %(default)s)",
    )
    parser.add_argument(
        "--show", type=Path, metavar="FILE", help="measure nothing, print a table that is there"
    )


def _calibrate(args: argparse.Namespace) -> int:
    def command() -> int:
        from leeboard._cli import prune_calibrate

        return prune_calibrate.run(args)

    return status_of("prune calibrate", command, _WRONG)
