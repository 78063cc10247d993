"""The commands `leeboard sim run`, `show`, `trace` and `platforms`."""

from __future__ import annotations

import argparse
import json
import runpy
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from leeboard._cli import sim_torch, sim_validate
from leeboard._cli.outputs import check_outputs
from leeboard.sim import Platform, Program, Trace, presets
from leeboard.sim.chakra import Costs, load_chakra
from leeboard.sim.describe import fields
from leeboard.sim.errors import DeadlockError
from leeboard.sim.result import Result
from leeboard.sim.result_file import readable
from leeboard.sim.run import run as simulate
from leeboard.sim.simgrid import load_simgrid
from leeboard.sim.table import aligned, text_of
from leeboard.sim.topology import GENERATORS

_BLOCKED = 50


def run(args: argparse.Namespace) -> int:
    """Load, run, report."""
    files = [args.platform, *args.files] if args.platform else args.files
    _check_outputs(args)
    target = sim_torch.target_of(args, files)
    platform = Platform.load(files[0])
    timeline = False if args.no_timeline else True if args.perfetto or args.critical_path else None
    try:
        if target is not None:
            result = sim_torch.run(args, platform, target, timeline)
        else:
            sim_torch.refuse_options(args, files[1])
            trace = load(files[1], args.words)
            result = simulate(
                trace, platform, network=args.network, seed=args.seed, timeline=timeline
            )
    except DeadlockError as error:
        print(f"leeboard sim run: {deadlock(error)}", file=sys.stderr)
        return 3
    if args.out:
        result.to_json(args.out)
    _report(result, args)
    return 0


def show(args: argparse.Namespace) -> int:
    """Load a result, report."""
    _check_outputs(args)
    _report(Result.load(args.result), args)
    return 0


def trace(args: argparse.Namespace) -> int:
    """Load a trace; describe, dump or save it."""
    loaded = load(args.file, args.words, args.form, args.costs)
    if args.dump is not None:
        print(loaded.dump(args.dump, args.most))
    elif not args.save:
        print(loaded.describe())
    if args.save:
        loaded.save(args.save)
    return 0


def platforms(args: argparse.Namespace) -> int:
    """List presets, or one of them with the source of its figures."""
    chosen = [preset for preset in presets() if args.name in (None, preset.name)]
    if not chosen:
        raise ValueError(f"there is no device, link or protocol {args.name!r}")
    heading = ""
    for preset in chosen:
        kind = f"{type(preset.part).__name__.lower()}s"
        if kind != heading:
            print(kind)
            heading = kind
        shown = fields(preset.part, digits=4)
        figures = [f"{key} {value}" for key, value in shown.items() if key != "name"]
        print(f"  {preset.name:<20} {', '.join(figures)}".rstrip())
        if args.name is not None:
            print(f"    {'measured' if preset.measured else 'nominal'}: {preset.source}")
    if args.name is None:
        print(f"topologies\n  {', '.join(GENERATORS)}")
        print("`leeboard sim platforms NAME` tells where figures come from")
    return 0


def validate(args: argparse.Namespace) -> int:
    """Real gloo on links of known figures, against the prediction."""
    return sim_validate.run(args)


def load(file: str, words: Sequence[str], form: str = "auto", costs: Costs = "auto") -> Trace:
    """The trace of a file: a Python file that builds a program, or a trace of one of FORMATS."""
    path = Path(file)
    if form == "auto":
        form = _form(path)
    if form == "python":
        made = _built(path, words)
        return made.trace() if isinstance(made, Program) else made
    if words:
        raise ValueError(f"{path}: a trace takes no words, got {shlex.join(words)}")
    if form == "chakra":
        return load_chakra(path, costs=costs)
    return load_simgrid(path) if form == "simgrid" else Trace.load(path)


def _form(path: Path) -> str:
    if path.suffix == ".py":
        return "python"
    if path.name.endswith((".et", ".et.gz")):
        return "chakra"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with path.open("rb") as file:
        start = file.read(512)
    # A time-independent trace begins with a rank and an action, or names files that do.
    text = start.isascii() and start.decode("ascii").replace("\n", " ").isprintable()
    return "simgrid" if text and start else "leeboard"


def _built(path: Path, words: Sequence[str]) -> Program | Trace:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    sys.path.insert(0, str(path.resolve().parent))
    try:
        names = runpy.run_path(str(path), run_name="program")
        build = names.get("build")
        if callable(build):
            made = build(list(words))
            what = "build(args) returned"
        else:
            made, what = names.get("program"), "program is"
    except Exception as error:
        raise RuntimeError(f"{_place(error, path)}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    if made is None and "program" not in names and not callable(build):
        raise ValueError(
            f"{path}: defines neither build(args) nor program; "
            "`leeboard sim run --record FILE` makes a trace of a torch script"
        )
    if not isinstance(made, Program | Trace):
        raise TypeError(f"{path}: {what} {made!r}, expected a leeboard.sim.Program or Trace")
    if words and not callable(build):
        raise ValueError(f"{path}: defines no build(args) to take {shlex.join(words)}")
    return made


def _place(error: BaseException, path: Path) -> str:
    """The last line of the file that was running."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"{path}, line {error.lineno}"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]
    return f"{path}, line {lines[-1]}" if lines else str(path)


def deadlock(error: DeadlockError) -> str:
    """Who waits on what since when, as a table."""
    rows = []
    for entry in error.blocked[:_BLOCKED]:
        stream = f", stream {entry.stream}" if entry.stream else ""
        since = text_of(entry.since, "s")
        rows.append((f"rank {entry.rank}{stream}", entry.waits_for, since))
    lines = [f"deadlock: {len(error.blocked):,} wait for what will not happen"]
    lines.append(aligned(("who", "waits for", "since"), rows))
    if len(error.blocked) > _BLOCKED:
        lines.append(f"... and {len(error.blocked) - _BLOCKED:,} more")
    for rank, at in error.failed:
        lines.append(f"rank {rank}'s device had stopped at {text_of(at, 's')}")
    for name, at in error.down[:_BLOCKED]:
        lines.append(f"{name} had been down since {text_of(at, 's')}")
    lines += error.notes
    return "\n".join(lines)


def _check_outputs(args: argparse.Namespace) -> None:
    """What cannot be written is said before anything runs."""
    if getattr(args, "no_timeline", False) and (args.perfetto or args.critical_path):
        wanted = "--perfetto" if args.perfetto else "--critical-path"
        raise ValueError(f"{wanted} needs the timeline, which --no-timeline leaves out")
    check_outputs(args, ("out", "plot", "perfetto", "record"))


def _report(result: Result, args: argparse.Namespace) -> None:
    if args.perfetto:
        result.to_perfetto(args.perfetto)
    if args.plot:
        result.plot(args.plot)
    if args.json:
        print(json.dumps(readable(result), indent=2))
        return
    parts = [str(result)]
    if args.critical_path:
        parts.append(str(result.critical_path))
    parts += [str(table) for table in _tables(result, args)]
    print("\n\n".join(parts))


def _tables(result: Result, args: argparse.Namespace) -> list[object]:
    chosen = ((args.ranks, result.ranks), (args.links, result.links))
    return [table for wanted, table in chosen if wanted]
