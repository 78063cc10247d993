"""`leeboard sim run` of ordinary torch.distributed scripts. Importing it imports no torch."""

from __future__ import annotations

import argparse
import ast
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leeboard.sim import Platform, Result

_MAKES_PROGRAM = ("build", "program")
# Options that a program or a trace has no use for, by their names in the parsed arguments.
OPTIONS = {
    "per_node": "--nproc-per-node",
    "nodes": "--nnodes",
    "compute": "--compute",
    "profile": "--profile",
    "scale": "--scale",
    "memory": "--memory",
    "record": "--record",
    "fold": "--fold",
    "fake": "--fake",
    "witness": "--witness",
    "prefix": "--prefix",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare what is for scripts alone."""
    group = parser.add_argument_group("for a torch.distributed script (docs/sim/torch.md)")
    group.add_argument(
        "-m",
        dest="module",
        metavar="MODULE",
        help="run a module instead of a file, as `python -m` does",
    )
    group.add_argument(
        "--nproc-per-node",
        dest="per_node",
        type=int,
        metavar="N",
        help="ranks of a node, as torchrun has it (default: as many as the platform has devices)",
    )
    group.add_argument(
        "--nnodes",
        dest="nodes",
        type=int,
        metavar="N",
        help="nodes, which tell LOCAL_RANK from RANK (default: 1)",
    )
    group.add_argument(
        "--compute",
        choices=("measured", "profiled", "roofline", "none"),
        help="what computing costs: the time it takes here, scaled; by --profile; by flops and "
        "bytes; nothing (default: measured; roofline with fake tensors)",
    )
    group.add_argument(
        "--profile",
        type=Path,
        action="append",
        metavar="FILE",
        help="of `leeboard sim profile`, for profiled; several: each for the devices it names",
    )
    group.add_argument(
        "--scale",
        type=float,
        metavar="X",
        help="how long a device takes for what takes this host a second, for measured (default: 1 if "
        "the platform says nothing of its speed, else from a calibration)",
    )
    group.add_argument(
        "--memory",
        action="store_true",
        help="follow what tensors take; with profiled and roofline",
    )
    group.add_argument(
        "--record", type=Path, metavar="FILE", help="save what the ranks did, as a trace to replay"
    )
    group.add_argument(
        "--fold",
        metavar="MESH",
        help='which ranks are alike, such as "dp=8 pp=4* tp=8" (docs/sim/folding.md)',
    )
    group.add_argument(
        "--fake",
        action=argparse.BooleanOptionalAction,
        help="tensors with shapes and no values: nothing is computed (default: with --fold, unless "
        "compute is measured)",
    )
    group.add_argument(
        "--witness",
        choices=("one", "all", "none"),
        help="with --fold: ranks that run to check that they do as those that stand for them "
        "(default: one of each class)",
    )
    group.add_argument(
        "--prefix", action="store_true", help='begin each line that rank 3 prints with "[rank 3] "'
    )


def is_script(path: Path) -> bool:
    """Whether a Python file is an ordinary script: it defines neither `build` nor `program`.

    Raises:
        FileNotFoundError: There is no such file.
        SyntaxError: It is no Python.
    """
    if path.suffix != ".py":
        return False
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except SyntaxError as error:
        raise ValueError(f"{path}, line {error.lineno}: SyntaxError: {error.msg}") from error
    return not any(name in _MAKES_PROGRAM for node in tree.body for name in _defined(node))


def _defined(node: ast.stmt) -> list[str]:
    """Names that a statement at top level gives a value, also within if, try and with."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    names = [
        found.id
        for found in ast.walk(node)
        if isinstance(found, ast.Name) and isinstance(found.ctx, ast.Store)
    ]
    inner = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    return names + [name for child in inner for name in _defined(child)]


def refuse_options(args: argparse.Namespace, what: str) -> None:
    """Options for scripts were given with something that is none.

    Raises:
        ValueError: Which.
    """
    given = [flag for name, flag in OPTIONS.items() if getattr(args, name) not in (None, False)]
    if given:
        raise ValueError(
            f"{what} is a program or a trace, and {', '.join(given)} for torch.distributed scripts: "
            "a script defines neither build nor program at top level"
        )


def run(args: argparse.Namespace, platform: Platform, target: str, timeline: Any) -> Result:
    """Run a script on the ranks of a platform, and record it where that is asked for."""
    from leeboard.sim.distributed.launch import launch

    if args.profile is not None and args.compute != "profiled":
        raise ValueError(f"--profile {args.profile[0]}: is for --compute profiled")
    if args.scale is not None and args.compute not in (None, "measured"):
        raise ValueError(f"--scale {args.scale}: is for --compute measured")
    ranks, per_node = _numbers(args.per_node, args.nodes, platform.ranks)
    launched = launch(
        target,
        platform,
        ranks=ranks,
        args=args.words,
        compute=args.compute,
        network=args.network,
        seed=args.seed,
        timeline=timeline,
        profile=args.profile,
        scale="auto" if args.scale is None else args.scale,
        memory=args.memory,
        fold=args.fold,
        fake=args.fake,
        witness=args.witness or "one",
        per_node=per_node,
        prefix=args.prefix,
        progress=True,
    )
    if args.record:
        launched.trace.save(args.record)
    if not args.json:
        print(launched.compute, end="\n\n")
    return launched.result


def target_of(args: argparse.Namespace, files: list[str]) -> str | None:
    """The script or "-m module" to run; None: the second file is a program or a trace.

    Raises:
        ValueError: There are too few files or too many.
    """
    expected = 1 if args.module else 2
    if len(files) != expected:
        raise ValueError(
            f"got {len(files)} files ({shlex.join(files)}), expected a platform"
            + (f" and -m {args.module}" if args.module else " and a program")
            + "; words for the program follow --"
        )
    if args.module:
        return f"-m {args.module}"
    return files[1] if is_script(Path(files[1])) else None


def _numbers(per_node: int | None, nodes: int | None, room: int) -> tuple[int, int]:
    """Ranks, and ranks of a node."""
    for name, value in (("--nproc-per-node", per_node), ("--nnodes", nodes)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: got {value}, expected at least 1")
    nodes = nodes or 1
    if per_node is None:
        if room % nodes:
            raise ValueError(
                f"--nnodes {nodes}: the platform has room for {room} ranks, which is no multiple; "
                "say --nproc-per-node"
            )
        per_node = room // nodes
    return per_node * nodes, per_node
