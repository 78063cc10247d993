"""`leeboard sim`: the parsers of its subcommands. Importing this module imports no numpy."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leeboard._cli import sim_profile, sim_torch, sim_validate
from leeboard._cli.messages import status_of

_RUN = """\
Run a script, a program or a recorded trace on a platform, in simulated time.

PLATFORM is a YAML file (docs/sim/platforms.md). PROGRAM is a trace (of any format that
`leeboard sim trace` reads) or a Python file, which is executed, so trust it. A Python file is an
ordinary torch.distributed script, which runs on every rank as torchrun would start it, unless it
defines one of these at top level; then `__name__` is "program"

  def build(args): ...    a function that takes the words after `--` (a list of str) and returns a
                          leeboard.sim.Program or Trace; it is preferred
  program = Program(8)    a variable that holds one; then no words may follow `--`"""

_RUN_EXAMPLES = """\
examples:
  leeboard sim run star.yaml pingpong.py
  leeboard sim run --platform star.yaml train.py --out result.json -- --layers 12
  leeboard sim run --platform edge.yaml -m leeboard.sim.strategies.tensor_parallel
  leeboard sim run star.yaml train.trace --network alpha-beta --plot run.png --perfetto run.json.gz

exit status: 0; 2 if something is wrong (a rank raised, too), with a line that says what; 3 if the
program deadlocks, with who waits for what since when."""

_SHOW_EXAMPLES = """\
examples:
  leeboard sim show result.json
  leeboard sim show result.json --critical-path --ranks
  leeboard sim show result.json --perfetto run.json.gz    # then open it at https://ui.perfetto.dev"""

_TRACE_EXAMPLES = """\
examples:
  leeboard sim trace train.trace                     # what is in it
  leeboard sim trace train.trace --dump 3            # what rank 3 does, an op a line
  leeboard sim trace program.py --save train.trace   # compile once, run often
  leeboard sim trace run.0.et --save run.trace       # Chakra: run.0.et, run.1.et, ...
  leeboard sim trace lu.trace --from simgrid --save lu.npz"""


class _Parser(argparse.ArgumentParser):
    """Keeps the words after `--` for the program, as they are."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse; `words` holds what follows `--`."""
        given = list(sys.argv[1:] if args is None else args)
        words: list[str] = []
        if "--" in given:
            at = given.index("--")
            given, words = given[:at], given[at + 1 :]
        namespace = argparse.Namespace() if namespace is None else namespace
        namespace.words = words
        return super().parse_known_args(given, namespace)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `leeboard sim` and its subcommands."""
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=_Parser
    )
    for name, summary, fill in (
        ("run", "run a program or a trace on a platform", _add_run),
        ("show", "show a result: summary, critical path, tables, pictures", _add_show),
        ("profile", sim_profile.SUMMARY, sim_profile.add_arguments),
        ("trace", "show what a program or a trace does, or save it as a trace", _add_trace),
        (
            "platforms",
            "list the devices, links, protocols and topologies there are",
            _add_platforms,
        ),
        (
            "validate",
            "compare predictions with real gloo on links of known figures",
            sim_validate.add_options,
        ),
    ):
        sub = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        fill(sub)
        sub.set_defaults(run_sim=name)


def run(args: argparse.Namespace) -> int:
    """Run the subcommand that was parsed."""
    name: str = args.run_sim

    def command() -> int:
        from leeboard._cli import sim_commands

        modules = {"profile": sim_profile}
        chosen: Callable[[argparse.Namespace], int]
        chosen = modules[name].run if name in modules else getattr(sim_commands, name)
        return chosen(args)

    return status_of(f"sim {name}", command)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.usage = "leeboard sim run [options] PLATFORM PROGRAM [-- WORD ...]"
    parser.description = _RUN
    parser.epilog = _RUN_EXAMPLES
    parser.add_argument("files", nargs="*", metavar="PLATFORM PROGRAM", help=argparse.SUPPRESS)
    parser.add_argument(
        "--platform", metavar="FILE", help="the platform, if it is not the first of two files"
    )
    _add_run_options(parser)
    sim_torch.add_options(parser)
    outputs = parser.add_argument_group("what to do with the result")
    outputs.add_argument(
        "--out", type=Path, metavar="FILE", help="save it, for `leeboard sim show`"
    )
    _add_pictures(outputs)
    outputs.add_argument("--json", action="store_true", help="print it as JSON, not for people")


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--network",
        choices=("flow", "alpha-beta"),
        default="flow",
        help="flow: links are shared max-min fairly; alpha-beta: faster, only the ends of a route "
        "contend (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of everything random (default: 0)"
    )
    parser.add_argument(
        "--no-timeline",
        action="store_true",
        help="keep no timeline: faster, and no critical path, no Perfetto trace",
    )


def _add_pictures(parser: Any) -> None:
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw it (.png, .svg, .pdf); needs matplotlib"
    )
    parser.add_argument(
        "--perfetto",
        type=Path,
        metavar="FILE",
        help="write its timeline for https://ui.perfetto.dev (.json, .json.gz)",
    )
    parser.add_argument(
        "--critical-path", action="store_true", help="print what the makespan is made of"
    )
    parser.add_argument("--ranks", action="store_true", help="print a row for each rank")
    parser.add_argument("--links", action="store_true", help="print a row for each link")


def _add_show(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _SHOW_EXAMPLES
    parser.add_argument("result", type=Path, metavar="RESULT", help="a file of `run --out`")
    _add_pictures(parser)
    parser.add_argument("--json", action="store_true", help="print it as JSON, not for people")


def _add_trace(parser: argparse.ArgumentParser) -> None:
    parser.usage = "leeboard sim trace [options] FILE [-- WORD ...]"
    parser.epilog = _TRACE_EXAMPLES
    parser.add_argument(
        "file",
        metavar="FILE",
        help="a trace, a Chakra execution trace (of rank 0: the others lie beside it), a SimGrid "
        "time-independent trace, or a Python file as `leeboard sim run` takes it",
    )
    parser.add_argument(
        "--from",
        dest="form",
        choices=("auto", "leeboard", "chakra", "simgrid", "python"),
        default="auto",
        help="the format (default: by name and content)",
    )
    parser.add_argument(
        "--costs",
        choices=("auto", "work", "recorded"),
        default="auto",
        help="Chakra: computing costs what its amount of work says, or the time that was recorded "
        "(default: work where there is some)",
    )
    parser.add_argument("--dump", type=int, metavar="RANK", help="print what a rank does")
    parser.add_argument(
        "--most",
        type=int,
        default=1000,
        metavar="N",
        help="lines of --dump (default: %(default)s)",
    )
    parser.add_argument("--save", type=Path, metavar="FILE", help="write it as a trace")


def _add_platforms(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="show the devices, links, protocols of this name"
    )
