"""`leeboard draft reproduce`: its options, and what it does. Imports nothing heavy at module level."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leeboard._cli.messages import status_of

if TYPE_CHECKING:
    from leeboard.reproduce.crew import Failure

_STAGES = ("corpus", "tokens", "target", "states", "texts", "threshold", "arms")

_ABOUT = """\
Find out which claims about drift hold at a scale that runs anywhere.

A small target learns the functions of Python's standard library; drafters of
five kinds (pre-norm, norm_output, norm_output + fc_norm, norm_before_residual,
fc_norm) are trained for it on chains of 2 and of 4, with several seeds, each
until its acceptance at depth 1 equals the others'. Then they are counted on
held-out prompts: acceptance and state size along chains of 16, attention, four
templates, contexts of 1 to 4 times the training length, noise, and a negative
control. Every claim was written down before, with its criterion; the verdicts
follow from paired bootstrap intervals over prompts. Whatever does not hold is
reported as such.

Every stage and every training is cached, so that Ctrl-C loses little: the same
command goes on where it stopped."""

_EXAMPLES = """\
examples:
  leeboard draft reproduce                        half an hour on two cores
  leeboard draft reproduce --preset quick         minutes: does everything run?
  leeboard draft reproduce --preset gpu --device cuda
  leeboard draft reproduce --write-docs docs      and write the page, too
  leeboard draft reproduce --report-only --write-docs docs
  leeboard draft reproduce --arms pre,norm_output --ttt 2 --seeds 3
  leeboard draft reproduce --target meta-llama/Llama-3.2-1B-Instruct \\
      --data chats.jsonl --preset gpu --device cuda

what appears where (runs/reproduce, or --out):
  results.json    every figure with its interval, the verdicts, all settings
  stages/         the target, its states and texts, and every drafter

exit status: 0; 1 if trainings failed (the others are reported); 2 if something
is wrong, with a line that says what."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description, parser.epilog = _ABOUT, _EXAMPLES
    what = parser.add_argument_group("what is run")
    what.add_argument(
        "--preset",
        choices=("default", "quick", "gpu"),
        default="default",
        help="sizes: half an hour, minutes, hours on a GPU (default: %(default)s)",
    )
    what.add_argument("--arms", metavar="LIST", help="some of the five, separated by commas")
    what.add_argument("--ttt", metavar="LIST", help="chain steps in training (default: 2,4)")
    what.add_argument("--seeds", type=int, metavar="N", help="trainings of each arm")
    what.add_argument("--prompts", type=int, metavar="N", help="held-out prompts to count on")
    what.add_argument(
        "--target",
        metavar="DIR|NAME",
        help="a Hugging Face causal LM in place of the small target; needs --data",
    )
    what.add_argument(
        "--data", type=Path, metavar="FILE", help='its chats: .jsonl with "messages" in every line'
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where results and stages are kept (default: runs/reproduce, and behind it the preset "
        "and the target's name where they are others)",
    )
    how.add_argument("--device", default="cpu", metavar="NAME", help="default: %(default)s")
    how.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes for the arms, a thread each; 0 trains in this one (default: one for each "
        "core, at most 8; 0 on a GPU)",
    )
    how.add_argument("--threads", type=int, metavar="N", help="outside the arms (default: cores)")
    how.add_argument("--fresh", action="store_true", help="forget all cached stages first")
    how.add_argument(
        "--redo", choices=_STAGES, metavar="STAGE", help="repeat from a stage on: %(choices)s"
    )
    how.add_argument(
        "--report-only", action="store_true", help="run nothing, take the results that are there"
    )
    how.add_argument(
        "--write-docs",
        type=Path,
        metavar="DIR",
        help="write reproduction-drift.md there, and its pictures to images/ in it",
    )


def run(args: argparse.Namespace) -> int:
    """Run what is missing; print the verdicts."""
    try:
        return status_of("draft reproduce", lambda: _run(args))
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on where it stopped", file=sys.stderr)
        return 130


def _default_out(preset: str, target: str | None) -> Path:
    """Another one for every preset and target, so that no results are lost."""
    parts = ["reproduce"]
    if preset != "default":
        parts.append(preset)
    if target is not None:
        parts.append(Path(target).name)
    return Path("runs", "-".join(parts))


def _run(args: argparse.Namespace) -> int:
    _check(args)
    out = args.out or _default_out(args.preset, args.target)
    # Read when torch loads GNU OpenMP. By default a thread spins for milliseconds while it waits for
    # another, so that one busy neighbour on the machine makes training several times slower.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    from leeboard.reproduce.report import table, write_docs

    failures: list[Failure] = []
    if args.report_only:
        results = _read_results(out / "results.json")
    else:
        results, failures = _reproduced(args, out)
    for failure in failures:
        print(f"\n{failure.arm.title} failed:\n{failure.error}", file=sys.stderr)
    print()
    if results["settings"]["preset"] == "quick":
        print("The quick preset trains for seconds: these verdicts mean nothing.\n")
    print(table(results))
    if not args.report_only:
        print(f"\n{results['seconds'] / 60:.1f} min; {out / 'results.json'} is written")
    if args.write_docs is not None:
        print(f"{write_docs(results, args.write_docs)} is written")
    return 1 if failures else 0


def _read_results(path: Path) -> dict[str, Any]:
    from leeboard._files import read_json
    from leeboard.reproduce.results import FORMAT

    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; `leeboard draft reproduce` writes it")
    try:
        found = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path}: damaged: {error}") from error
    given = found.get("format") if isinstance(found, dict) else None
    needed = ("settings", "claims", "figures", "trainings", "matching")
    if given != FORMAT or any(name not in found for name in needed):
        raise ValueError(
            f"{path}: got format {given!r}, expected {FORMAT} with {', '.join(needed)}, as this "
            "version writes it"
        )
    results: dict[str, Any] = found
    return results


def _check_device(name: str) -> None:
    """Raise ValueError unless torch can compute there, before a target is trained."""
    import torch

    try:
        torch.zeros(1, device=name)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"--device: got {name!r}, which cannot be used: {reason}") from error


def _reproduced(args: argparse.Namespace, out: Path) -> tuple[dict[str, Any], list[Failure]]:
    import dataclasses

    from leeboard.demo.stages import locked
    from leeboard.reproduce.given import Given
    from leeboard.reproduce.pipeline import Reproduction
    from leeboard.reproduce.settings import PRESETS

    changes: dict[str, object] = {}
    if args.arms is not None:
        changes["arms"] = tuple(name.strip() for name in args.arms.split(",") if name.strip())
    if args.ttt is not None:
        changes["ttt"] = _integers("--ttt", args.ttt)
    for name in ("seeds", "prompts"):
        if getattr(args, name) is not None:
            changes[name] = getattr(args, name)
    settings = dataclasses.replace(PRESETS[args.preset], **changes)  # type: ignore[arg-type]
    given = None if args.target is None else Given(args.target, args.data)
    _check_device(args.device)
    cores = min(8, len(os.sched_getaffinity(0)))
    workers = args.workers
    if workers is None:
        workers = cores if args.device == "cpu" else 0
    with locked(out):
        if args.fresh:
            shutil.rmtree(out / "stages", ignore_errors=True)
        return Reproduction(
            settings,
            out,
            threads=args.threads or cores,
            workers=workers,
            device=args.device,
            redo=args.redo,
            given=given,
        ).run()


def _check(args: argparse.Namespace) -> None:
    """Raise where options make no sense, before anything is touched."""
    from importlib.util import find_spec

    for name in ("seeds", "prompts", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name}: got {value}, expected 1 or more")
    if args.workers is not None and args.workers < 0:
        raise ValueError(f"--workers: got {args.workers}, expected 0 or more")
    if (args.target is None) != (args.data is None):
        raise ValueError("--target, --data: got one of them, expected both or neither")
    if args.data is not None and not args.data.is_file():
        raise FileNotFoundError(f"--data {args.data}: no such file")
    if args.write_docs is not None and not args.write_docs.is_dir():
        raise FileNotFoundError(f"--write-docs {args.write_docs}: no such folder")
    asked = ("arms", "ttt", "seeds", "prompts", "target", "redo")
    given = [f"--{name}" for name in asked if getattr(args, name) is not None]
    given += ["--fresh"] if args.fresh else []
    if args.report_only and given:
        raise ValueError(f"--report-only: runs nothing, expected no {given[0]} with it")
    needed: dict[str, tuple[str, ...]] = {
        "hf": ("transformers", "tokenizers", "safetensors", "tqdm")
    }
    if args.report_only:
        needed = {}
    if args.write_docs is not None:
        needed["viz"] = ("matplotlib",)
    missing = [
        extra for extra, names in needed.items() if any(find_spec(name) is None for name in names)
    ]
    if missing:
        raise ImportError(f'it needs more packages: pip install "leeboard[{",".join(missing)}]"')


def _integers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{option}: got {text!r}, expected integers with commas") from None
