"""`leeboard draft`: the parsers of its subcommands. Importing this module does not import torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from leeboard._cli import convert, probe, reproduce, train
from leeboard._cli.heads import HEADS

FORMATS = ("float32", "bfloat16", "float16", "int8", "int4", "fp8")
QUANTISED = ("int8", "int4", "fp8")

_BENCH = """\
Measure one step of a drafter's chain on the CPU: a head of the given size with
random weights (or a checkpoint's), decoded by leeboard in each weight format,
by plain PyTorch and by torch.compile, in turns. Every way's tokens are checked
against the reference, teacher-forced, before its time is believed."""

_EVAL = """\
Decode prompts with a drafter and report what the target accepts and how fast,
before and after quantising the drafter."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `leeboard draft` and its subcommands."""
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, summary, fill, run in (
        ("bench", "measure a chain step of a drafter on this machine", _add_bench, _bench),
        ("convert", "write a checkpoint in another layout", convert.add_arguments, convert.run),
        ("eval", "measure what a target accepts of a drafter's tokens", _add_eval, _eval),
        ("probe", "show how a drafter drifts, depth by depth", probe.add_arguments, probe.run),
        (
            "reproduce",
            "find out which claims about drift hold at small scale",
            reproduce.add_arguments,
            reproduce.run,
        ),
        ("train", "train a drafter on chats of your own", train.add_arguments, train.run),
    ):
        sub = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        fill(sub)
        sub.set_defaults(run_draft=run)


def run(args: argparse.Namespace) -> int:
    """Run the subcommand that was parsed."""
    command: Callable[[argparse.Namespace], int] = args.run_draft
    return command(args)


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.description = _BENCH
    number = at_least(1)
    parser.add_argument(
        "--config",
        default="llama3-8b-eagle3",
        metavar="NAME|DIR",
        help=f"{', '.join(HEADS)}, or the folder of a checkpoint (default: %(default)s)",
    )
    parser.add_argument(
        "--context",
        type=number,
        default=1024,
        metavar="N",
        help="cached rows before the chain (default: %(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=number,
        default=6,
        metavar="N",
        help="steps of the chain (default: %(default)s)",
    )
    parser.add_argument(
        "--batch", type=number, default=1, metavar="N", help="sequences (default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=number, metavar="N", help="torch's threads (default: as it is set)"
    )
    parser.add_argument(
        "--formats",
        type=_names(FORMATS),
        default=("bfloat16", "int8", "int4"),
        metavar="LIST",
        help=f"weights of leeboard's drafter, of {', '.join(FORMATS)} (default: bfloat16,int8,int4)",
    )
    parser.add_argument(
        "--no-compile", action="store_true", help="leave out torch.compile, which takes a minute"
    )
    parser.add_argument("--quick", action="store_true", help="few repetitions")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")


def _add_eval(parser: argparse.ArgumentParser) -> None:
    parser.description = _EVAL
    number = at_least(1)
    parser.add_argument(
        "--target", type=Path, metavar="DIR", help="folder of a Hugging Face causal LM"
    )
    parser.add_argument("--drafter", type=Path, metavar="DIR", help="folder of its drafter")
    parser.add_argument(
        "--demo",
        type=Path,
        metavar="DIR",
        help="take target, drafters and prompts of a run of `leeboard demo` (default: runs/demo, "
        "where neither --target nor --drafter is given)",
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help='.jsonl with "prompt", "text" or "messages" in every line, or a text file with a '
        "prompt in every line",
    )
    parser.add_argument(
        "--max-prompts", type=number, default=32, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--max-new-tokens", type=number, metavar="N", help="default: 96, or as in the demo's run"
    )
    parser.add_argument(
        "--depth",
        type=number,
        default=6,
        metavar="N",
        help="tokens to draft per round (default: %(default)s)",
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="default: 0, greedy"
    )
    parser.add_argument(
        "--batch",
        type=number,
        default=1,
        metavar="N",
        help="prompts to decode together (default: %(default)s)",
    )
    parser.add_argument(
        "--quantize",
        type=_names(QUANTISED),
        default=(),
        metavar="LIST",
        help=f"formats to compare with the drafter as it is, of {', '.join(QUANTISED)}",
    )
    parser.add_argument(
        "--dtype", choices=FORMATS[:3], help="of target and drafter (default: the checkpoint's)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the samples")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")


def _bench(args: argparse.Namespace) -> int:
    from leeboard._cli.bench import bench

    return _reported("bench", lambda: bench(args))


def _eval(args: argparse.Namespace) -> int:
    from leeboard._cli.evaluate import evaluate

    return _reported("eval", lambda: evaluate(args))


def _reported(name: str, command: Callable[[], None]) -> int:
    """The exit status: 0, or 1 with a message on stderr."""
    try:
        command()
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        print(f"leeboard draft {name}: {error}", file=sys.stderr)
        return 1
    return 0


def at_least(low: int) -> Callable[[str], int]:
    """An argparse type: an integer from `low` up."""

    def integer(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected an integer from {low} up")
        return value

    return integer


def _names(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    """An argparse type: names out of `known`, separated by commas."""

    def names(text: str) -> tuple[str, ...]:
        given = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
        if not given or set(given) - set(known):
            raise argparse.ArgumentTypeError(f"got {text!r}, expected some of {','.join(known)}")
        return given

    return names
