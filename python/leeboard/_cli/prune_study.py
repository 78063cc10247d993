"""`leeboard prune study`: run, resume and report the pruning study."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

_DESCRIPTION = """\
Find out what makes a pruned net accurate when modalities are missing.

Small multimodal nets are trained in several ways (ordinary; ordinary with the compute of the
others; under the gate's, a static or a random ranking's masks). Each is then pruned by every
ranking, at several budgets, with every number of modalities missing, and counted on test rows that
chose nothing. The page that is written compares them in pairs with intervals, and says plainly
whether P1 (the system), P2 (conditioning on modalities alone) and P3 (masks that the gate never
saw) pass.

Every finished training is one file in the run folder, so the study can be stopped with Ctrl-C and
started again at any time; what is there is not run again."""

_EXAMPLES = """\
examples:
  leeboard prune study                       # the default grid, at most 30 minutes on 2 cores
  leeboard prune study --preset quick --run-dir runs/quick --out quick.md    # does it run?
  leeboard prune study --preset full --workers 8 --run-dir runs/full         # hours
  leeboard prune study --report-only         # the page again, from what is finished

exit status: 0; 1 if trainings failed (the rest is finished and reported); 2 if something is wrong,
with a line that says what."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `leeboard prune study`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description, parser.epilog = _DESCRIPTION, _EXAMPLES
    parser.add_argument(
        "--preset",
        choices=("default", "quick", "full"),
        default="default",
        help="size of the grid: minutes, a minute or two, hours (default: %(default)s)",
    )
    parser.add_argument(
        "--run-dir",
        type=Path,
        default=Path("runs", "prune-study"),
        metavar="DIR",
        help="where finished trainings are kept (default: %(default)s)",
    )
    parser.add_argument(
        "--seeds", type=int, metavar="N", help="trainings of each arm, in place of the preset's"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=2,
        metavar="N",
        help="processes, a thread each; 0 runs in this one (default: %(default)s)",
    )
    parser.add_argument(
        "--keep-weights",
        action="store_true",
        help="store trained weights in the run folder, too (safetensors)",
    )
    parser.add_argument(
        "--report-only", action="store_true", help="train nothing, write the page of the run folder"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("docs", "study-prune.md"),
        metavar="FILE",
        help="the page; pictures go to `images` beside it (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Run what is missing, write the page, print the verdicts."""
    try:
        return _run(args)
    except (OSError, ValueError) as error:
        print(f"leeboard prune study: {error}", file=sys.stderr)
        return 2


def _run(args: argparse.Namespace) -> int:
    if args.seeds is not None and args.seeds < 1:
        raise ValueError(f"--seeds: got {args.seeds}, expected 1 or more")
    if args.workers < 0:
        raise ValueError(f"--workers: got {args.workers}, expected 0 or more")
    from leeboard.prune.study import PRESETS, run_study
    from leeboard.prune.study.report import write_report

    failures = []
    if not args.report_only:
        study = PRESETS[args.preset]
        if args.seeds is not None:
            study = study.with_seeds(args.seeds)
        failures = run_study(
            study,
            args.run_dir,
            workers=args.workers,
            keep_weights=args.keep_weights,
            command=_command(args),
        )
    for failure in failures:
        print(f"\n{failure.unit} failed:\n{failure.error}", file=sys.stderr)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for verdict in write_report(args.run_dir, args.out):
        print(f"{verdict.name}  {verdict.case}: {verdict.answer}")
    print(f"{args.out} is written")
    return 1 if failures else 0


def _command(args: argparse.Namespace) -> str:
    """The command without folders, which are this machine's."""
    words = ["leeboard", "prune", "study"]
    if args.preset != "default":
        words += ["--preset", args.preset]
    if args.seeds is not None:
        words += ["--seeds", str(args.seeds)]
    if args.workers != 2:
        words += ["--workers", str(args.workers)]
    return shlex.join(words)
