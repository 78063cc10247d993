"""`leeboard sim validate`: its options, and what it does. Imports nothing heavy at module level."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from leeboard._cli.outputs import check_outputs

_ABOUT = """\
Run programs on real gloo, each rank in a network namespace of its own around an emulated switch;
fit the links' figures to messages between two ranks; run the same programs in the simulator; and
compare. Without a script, the built-in scenarios.

A script is any torch.distributed program as torchrun would start it. What rank 0 prints as lines
of JSON with "scenario" and "seconds" is compared; if it prints none, the time of the whole script
is. It is executed, so trust it."""

_EXAMPLES = """\
examples:
  leeboard sim validate --check                     # can the rig be made here, and how?
  leeboard sim validate --quick                     # two ranks, messages and collectives
  leeboard sim validate                             # everything; goes on where it was stopped
  leeboard sim validate --publish docs              # and write docs/validation-sim.md
  leeboard sim validate --ranks 2 --bandwidth '100 Mbit/s' --delay '2 ms' train.py -- --steps 5"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = _ABOUT
    parser.epilog = _EXAMPLES
    parser.usage = "leeboard sim validate [options] [SCRIPT] [-- WORD ...]"
    parser.add_argument("script", nargs="?", type=Path, metavar="SCRIPT", help=argparse.SUPPRESS)
    what = parser.add_argument_group("what is run")
    what.add_argument("--quick", action="store_true", help="a small built-in set")
    what.add_argument("--ranks", type=int, metavar="N", help="of a script (default: 2)")
    what.add_argument(
        "--bandwidth", metavar="RATE", help="of each rank's link, for a script (100 Mbit/s)"
    )
    what.add_argument("--delay", metavar="TIME", help="one way, for a script (1 ms)")
    what.add_argument(
        "--oversubscribe",
        action="store_true",
        help="allow more ranks that compute than there are cores; the calibration then has them "
        "share cores, too",
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--rig",
        choices=("auto", "relay", "traffic-control"),
        default="auto",
        help="the links: the kernel's traffic control where it has netem, or leeboard's relay "
        "(default: what there is)",
    )
    how.add_argument("--check", action="store_true", help="only try whether the rig can be made")
    how.add_argument(
        "--folder",
        type=Path,
        default=Path("runs/validate"),
        metavar="DIR",
        help="keeps what was measured; what is there is not measured again (default: %(default)s)",
    )
    out = parser.add_argument_group("what to do with the result")
    out.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    out.add_argument("--plot", type=Path, metavar="FILE", help="draw predicted against measured")
    out.add_argument(
        "--publish",
        type=Path,
        metavar="DIR",
        help="write validation-sim.md and images/validation-sim.png into a folder of docs",
    )


def run(args: argparse.Namespace) -> int:
    """Validate; report. Exit status 0 whatever the errors are: they are the result."""
    from leeboard._progress import progress_bar
    from leeboard.sim.validate.scenarios import built_in
    from leeboard.sim.validate.study import Study, all_rows, refuse_crowding

    means: Any = None if args.rig == "auto" else args.rig
    _refuse(args)
    if args.check:
        return _check(means)
    if args.script is not None:
        return _script(args, means)
    plan = built_in(quick=args.quick, oversubscribe=args.oversubscribe)
    refuse_crowding(plan.settings, args.oversubscribe)
    load = os.getloadavg()[0]
    if load > 0.5:
        print(
            f"leeboard sim validate: the load of this host is {load:.1f}; what is measured beside "
            "other work says more of that than of the network",
            file=sys.stderr,
        )
    with progress_bar("validate", len(plan.settings)) as bar:
        study = Study(plan, args.folder, means=means, tell=bar.set_postfix_str)
        results = study.run(bar.update)
    _report(args, results, all_rows(results))
    return 0


def _refuse(args: argparse.Namespace) -> None:
    """Options that do not go together, and outputs that cannot be written."""
    given = [f"--{name}" for name in ("ranks", "bandwidth", "delay") if getattr(args, name)]
    if args.script is None and (given or args.words):
        raise ValueError(f"{', '.join(given) or 'words after --'}: only with a script")
    if args.script is not None and (args.quick or args.publish):
        raise ValueError("--quick, --publish: only without a script")
    if args.script is not None and not args.script.is_file():
        raise FileNotFoundError(f"{args.script}: no such file")
    check_outputs(args, ("json", "plot"))
    if args.publish is not None and not (args.publish / "images").is_dir():
        raise FileNotFoundError(f"{args.publish}: expected a folder with a folder images in it")


def _check(means: Any) -> int:
    from leeboard.sim.validate.rig import Links, Rig

    rig = Rig(2, Links.of("100 Mbit/s", "1 ms"), means)
    for key, value in rig.check().items():
        print(f"{key}: {value}")
    return 0


def _script(args: argparse.Namespace, means: Any) -> int:
    from leeboard.sim.validate.script import validate_script

    result, rows = validate_script(
        args.script,
        args.words,
        ranks=args.ranks or 2,
        bandwidth=args.bandwidth or "100 Mbit/s",
        delay=args.delay or "1 ms",
        means=means,
        oversubscribe=args.oversubscribe,
        tell=lambda line: print(line, file=sys.stderr),
    )
    _report(args, [result], rows)
    return 0


def _report(args: argparse.Namespace, results: list[dict[str, Any]], rows: list[Any]) -> None:
    from leeboard._files import replacing, write_json
    from leeboard.sim.validate import report

    print(report.terminal(rows))
    if args.json is not None:
        write_json(args.json, report.as_json(results, rows))
    if args.plot is not None:
        report.plot(rows, args.plot)
    if args.publish is not None:
        report.plot(rows, args.publish / "images" / "validation-sim.png")
        text = report.page(results, "images/validation-sim.png")
        with replacing(args.publish / "validation-sim.md") as temporary:
            temporary.write_text(text, encoding="utf-8")
