"""The `leeboard` command. Nothing heavy is imported before a subcommand runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from leeboard._version import __version__

Command = Callable[[argparse.Namespace], int]


def _doctor(args: argparse.Namespace) -> int:
    from leeboard._doctor import doctor

    report = doctor()
    if args.json:
        import json

        print(json.dumps(report.to_dict(), indent=2))
        return 0
    print(report)
    if args.explain:
        print()
        print(report.explain())
    return 0


def _add_doctor(parser: argparse.ArgumentParser) -> Command:
    parser.add_argument(
        "--explain", action="store_true", help="go op by op: which backends run, and why not"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    return _doctor


def _add_demo(parser: argparse.ArgumentParser) -> Command:
    from leeboard.demo import cli

    cli.add_arguments(parser)
    run: Command = cli.run
    return run


def _add_draft(parser: argparse.ArgumentParser) -> Command:
    from leeboard._cli import draft

    draft.add_arguments(parser)
    run: Command = draft.run
    return run


def _add_plan(parser: argparse.ArgumentParser) -> Command:
    from leeboard._cli import plan

    plan.add_arguments(parser)
    run: Command = plan.run
    return run


def _add_prune(parser: argparse.ArgumentParser) -> Command:
    from leeboard._cli import prune

    prune.add_arguments(parser)
    run: Command = prune.run
    return run


def _add_sim(parser: argparse.ArgumentParser) -> Command:
    from leeboard._cli import sim

    sim.add_arguments(parser)
    run: Command = sim.run
    return run


# name, line in the overview, and what fills the subparser in.
_COMMANDS: tuple[tuple[str, str, Callable[[argparse.ArgumentParser], Command]], ...] = (
    (
        "demo",
        "train two small drafters on the Python standard library and watch one of them drift",
        _add_demo,
    ),
    (
        "doctor",
        "tell what this machine offers: instruction sets, threads, Triton, GPUs",
        _add_doctor,
    ),
    (
        "draft",
        "drafters: measure their steps and what a target accepts, convert checkpoints",
        _add_draft,
    ),
    (
        "plan",
        "what to run where: drafters and targets, pruned models and sensors",
        _add_plan,
    ),
    (
        "prune",
        "shed what a moment does not need: measure this machine, compare rankings, watch a demo",
        _add_prune,
    ),
    (
        "sim",
        "rehearse a distributed deployment in simulated time",
        _add_sim,
    ),
)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line, without importing torch."""
    parser = argparse.ArgumentParser(
        prog="leeboard",
        description="Cheaper inference that holds its course: drafters, pruning, simulation.",
        epilog="`leeboard COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"leeboard {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, summary, fill in _COMMANDS:
        sub = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=fill(sub))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `leeboard`; returns the exit status."""
    args = build_parser().parse_args(argv)
    run: Command = args.run
    try:
        return run(args)
    except KeyboardInterrupt:
        print("leeboard: interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        # A missing extra; its message says how to install it.
        print(f"leeboard: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
