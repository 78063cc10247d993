"""`leeboard sim profile`. Importing this module imports neither numpy nor torch."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from leeboard._cli.outputs import check_outputs

SUMMARY = "time a program's operators on this device, for `run --compute profiled`"

_PROFILE = """\
Time on this device every operator that a program calls, with the shapes and dtypes it calls it with,
and write a table for `leeboard sim run --compute profiled --profile FILE`.

SCRIPT is a torch.distributed script, which is executed, so trust it: by itself in a world of one
(under torchrun in its world, and what rank 0 calls is timed), or, with --platform, on the simulated
ranks of a platform, whose operators are all timed here. Instead of a script, `operators` and
`transformer` are built in: operators of common programs over a range of sizes."""

_EXAMPLES = """\
examples:
  leeboard sim profile serve.py --out jetson.json --device jetson-orin-nano
  leeboard sim profile --platform edge.yaml serve.py --out jetson.json -- --layers 12
  leeboard sim profile operators --out host.json
  leeboard sim profile train.py --out host.json --add       # to what is in host.json already
  leeboard sim profile --show host.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `leeboard sim profile`."""
    parser.usage = "leeboard sim profile [options] SCRIPT --out FILE [-- WORD ...]"
    parser.description = _PROFILE
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "target", nargs="?", metavar="SCRIPT", help="a script, `operators` or `transformer`"
    )
    parser.add_argument(
        "-m", dest="module", metavar="MODULE", help="run a module, as `python -m` does"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write the table (JSON)")
    parser.add_argument(
        "--add", action="store_true", help="keep what FILE has, and replace what is timed anew"
    )
    parser.add_argument(
        "--device",
        metavar="NAME",
        help="what to call this device: the kind of devices in platforms that it stands for "
        "(default: the processor's name)",
    )
    parser.add_argument(
        "--platform", metavar="FILE", help="run the script on the simulated ranks of this platform"
    )
    parser.add_argument(
        "--ranks", type=int, metavar="N", help="with --platform: how many (default: all)"
    )
    parser.add_argument(
        "--fold",
        metavar="MESH",
        help='with --platform: which ranks are alike, such as "dp=8 tp=8"; tensors are fake then',
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=0.1,
        metavar="S",
        help="to spend on each operator, about (default: %(default)s)",
    )
    parser.add_argument("--show", type=Path, metavar="FILE", help="print a table and do nothing")


def run(args: argparse.Namespace) -> int:
    """Run, time, write, print; or print."""
    from leeboard.sim.distributed.compute import Profile

    if args.show is not None:
        print(Profile.load(args.show))
        return 0
    target = f"-m {args.module}" if args.module else args.target
    if target is None or (args.module and args.target):
        raise ValueError("expected a script, a name of what is built in, or -m MODULE")
    if args.out is None:
        raise ValueError("--out: where to write the table is not given")
    check_outputs(args, ("out",))
    for name in ("ranks", "fold"):
        if getattr(args, name) is not None and args.platform is None:
            raise ValueError(f"--{name} {getattr(args, name)}: is for --platform")
    if not 0 < args.seconds <= 60:
        raise ValueError(f"--seconds: got {args.seconds:g}, expected more than 0, at most 60")
    old = Profile.load(args.out) if args.add and args.out.exists() else None
    return _write(args, target, old)


def _write(args: argparse.Namespace, target: str, old: object) -> int:
    from leeboard._progress import progress_bar
    from leeboard.sim import Platform
    from leeboard.sim.distributed.compute import Profile
    from leeboard.sim.distributed.compute.programs import calls_of
    from leeboard.sim.distributed.compute.timing import profiled

    platform = Platform.load(args.platform) if args.platform else None
    examples = calls_of(target, args.words, platform=platform, ranks=args.ranks, fold=args.fold)
    if os.environ.get("RANK", "0") != "0":
        # Under torchrun: another worker times what it called.
        return 0
    if not examples:
        raise ValueError(f"{target}: no operator was called")
    with progress_bar("timing", len(examples)) as bar:
        profile, failed = profiled(examples, device=args.device, seconds=args.seconds, progress=bar)
    if isinstance(old, Profile):
        old.merge(profile)
        profile = old
    for name, why in failed.items():
        print(f"leeboard sim profile: {name} could not be timed: {why}", file=sys.stderr)
    profile.save(args.out)
    print(profile)
    print(f"{args.out} is written")
    return 0
