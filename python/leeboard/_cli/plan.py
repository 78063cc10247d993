"""`leeboard plan`: the parsers of its subcommands. Importing this module imports no numpy."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leeboard._cli.messages import status_of

_SPECULATION = """\
Where should drafter and target run, and how many tokens should be drafted a round?

ACCEPTANCE is how often the target accepts a draft, by its depth in the chain: shares such as
0.8,0.7,0.6, or a JSON file (of `leeboard draft eval --json`, of a probe, of `leeboard demo`, or a
list). Each depth and each placement becomes a program that is run in the simulator:

  server          target (and drafter) on the server, tokens streamed to the edge
  edge            target (and drafter) on the edge device
  split           drafter on the edge device, target on the server, in turns
  split+overlap   the same, but the drafter drafts on while the target verifies

Devices are presets (`leeboard sim platforms`; `edge` is jetson-agx-orin, `server` is h100-sxm) or
those of a platform file. The answer comes with what moves it: every input up and down, and at which
value another decision is better."""

_SPECULATION_EXAMPLES = """\
examples:
  leeboard plan speculation 0.8,0.75,0.7,0.65,0.6
  leeboard plan speculation examples/plan/acceptance.json --way post-norm --plot plan.png
  leeboard plan speculation examples/plan/acceptance.json --way pre-norm \\
      --platform examples/plan/phone-and-server.yaml --edge phone --server gpu
  leeboard plan speculation 0.8,0.7,0.6 --edge rtx-4090 --target-bytes 0.53 --latency 40ms \\
      --placements edge,split --json plan.json

exit status: 0; 2 if something is wrong, with a line that says what; 3 if nothing fits."""

_EDGE = """\
Which pruning plan should run where, for whatever sensors are there?

PLANS is a table of plans (docs/plan.md: JSON, or CSV with name, sensors, accuracy, milliseconds);
in its place --study and --latency take what `leeboard prune study` and `leeboard prune calibrate`
wrote. Windows arrive at all sensors, queue, and are answered at the hub. Every plan is run in the
simulator in each placement:

  node    the whole model on one sensor node; the other windows are sent to it
  hub     the whole model on the hub; all windows are sent to it
  split   each sensor's encoder on its node, the fusion on the hub

The placement is fixed, the plan follows the sensors that are there. Best is the placement with the
highest expected accuracy over all sets of sensors; a set for which no plan meets deadline, energy
and memory counts as 0. Milliseconds of plans are those of a device of speed 1."""

_EDGE_EXAMPLES = """\
examples:
  leeboard plan edge examples/plan/plans.csv --deadline 150ms --dropout 0.1
  leeboard plan edge examples/plan/plans.csv --deadline 150ms --energy 30mJ --node-power 1mW,150mW \\
      --hub-power 10mW,2W --raw 4kB --features 200B --plot plan.png
  leeboard plan edge --study examples/plan/study-late.json --latency examples/plan/latency-late.json \\
      --planning "per layer" --platform examples/plan/wearables.yaml --hub phone \\
      --on ACC=wrist,GYR=chest,PPG=wrist,EDA=wrist,TEMP=chest \\
      --deadline 60ms --energy 15mJ --rate 4 --dropout ACC=0.02,GYR=0.05,EDA=0.2

exit status: 0; 2 if something is wrong, with a line that says what; 3 if nothing meets the demands:
then the table says what each plan lacks."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `leeboard plan` and its subcommands."""
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, summary, fill in (
        ("speculation", "where drafter and target run, and how deep to draft", _add_speculation),
        ("edge", "which pruning plan runs where, for the sensors that are there", _add_edge),
    ):
        sub = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        fill(sub)
        _add_common(sub)
        sub.set_defaults(run_plan=name)


def run(args: argparse.Namespace) -> int:
    """Run the subcommand that was parsed."""
    name: str = args.run_plan

    def command() -> int:
        from leeboard._cli import plan_commands

        chosen: Callable[[argparse.Namespace], int] = getattr(plan_commands, name)
        return chosen(args)

    return status_of(f"plan {name}", command)


def _add_common(parser: argparse.ArgumentParser) -> None:
    outputs = parser.add_argument_group("the answer")
    outputs.add_argument(
        "--share",
        type=float,
        default=0.2,
        metavar="S",
        help="move every input by this share, up and down (default: %(default)s)",
    )
    outputs.add_argument(
        "--no-sensitivity", action="store_true", help="do not move inputs: a second instead of ten"
    )
    outputs.add_argument("--all", action="store_true", help="print a row for every candidate")
    outputs.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw it (.png, .svg, .pdf); needs matplotlib"
    )
    outputs.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    outputs.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")


def _add_link(parser: Any, bandwidth: str, latency: str, *, option: str) -> None:
    parser.add_argument(
        "--platform",
        type=Path,
        metavar="FILE",
        help="a platform of the simulator, taken as it is (docs/sim/platforms.md)",
    )
    parser.add_argument(
        "--bandwidth",
        metavar="B",
        help=f"of the link, each way, without --platform (default: {bandwidth})",
    )
    parser.add_argument(
        option,
        dest="link_latency",
        metavar="T",
        help=f"of the link, one way, without --platform (default: {latency})",
    )


def _add_speculation(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = _SPECULATION, _SPECULATION_EXAMPLES
    parser.add_argument(
        "acceptance", nargs="?", metavar="ACCEPTANCE", help="shares by depth, or a JSON file"
    )
    parser.add_argument(
        "--acceptance", dest="shares", metavar="LIST", help="the same: shares by depth, with commas"
    )
    parser.add_argument("--way", metavar="NAME", help="which drafter of a file that holds several")
    models = parser.add_argument_group("models")
    models.add_argument(
        "--target",
        default="llama-3.1-8b",
        metavar="NAME|FILE",
        help="llama-3.1-8b, llama-3.1-70b, llama-3.2-1b, qwen3-8b, or a JSON file of sizes "
        "(default: %(default)s)",
    )
    models.add_argument(
        "--drafter",
        default="eagle3-llama-3.1-8b",
        metavar="NAME|FILE",
        help="eagle3-llama-3.1-8b, eagle3-qwen3-8b, or a JSON file of sizes (default: %(default)s)",
    )
    for what in ("target", "drafter"):
        models.add_argument(
            f"--{what}-bytes",
            type=float,
            metavar="B",
            help=f"bytes a weight of the {what}: 2 bfloat16, 1 int8, 0.53 int4 (default: 2)",
        )
    devices = parser.add_argument_group("devices and link")
    devices.add_argument(
        "--edge", default="edge", metavar="NAME", help="a preset, or a device of --platform"
    )
    devices.add_argument("--server", default="server", metavar="NAME", help="the same")
    devices.add_argument(
        "--efficiency",
        type=float,
        metavar="S",
        help="share of their peaks that presets reach, without --platform (default: 0.75)",
    )
    _add_link(devices, "100 Mbit/s", "10 ms", option="--latency")
    devices.add_argument(
        "--protocol",
        metavar="NAME",
        help="ideal, gloo, mpi, nccl; without --platform (default: ideal)",
    )
    load = parser.add_argument_group("what is decoded")
    load.add_argument(
        "--depth", type=int, metavar="N", help="deepest draft (default: as deep as ACCEPTANCE)"
    )
    load.add_argument(
        "--placements",
        metavar="LIST",
        help="to try, with commas (default: server,edge,split,split+overlap)",
    )
    load.add_argument(
        "--context", type=int, default=2048, metavar="N", help="rows in caches (default: 2048)"
    )
    load.add_argument(
        "--batch",
        type=int,
        default=1,
        metavar="N",
        help="sequences that the server decodes at once; figures are of one (default: 1)",
    )
    load.add_argument(
        "--tokens", type=int, default=1024, metavar="N", help="of a reply (default: 1024)"
    )
    load.add_argument(
        "--draws",
        choices=("even", "seeded"),
        default="even",
        help="how rounds end: in their expected shares, or at random (default: even)",
    )
    load.add_argument("--replies", type=int, metavar="N", help="to average if seeded (default: 8)")


def _add_edge(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = _EDGE, _EDGE_EXAMPLES
    parser.add_argument(
        "plans", nargs="?", type=Path, metavar="PLANS", help="table of plans, JSON or CSV"
    )
    study = parser.add_argument_group("plans of a study")
    study.add_argument(
        "--study",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="units/*.json of a run folder: seeds of one data set, backbone and training",
    )
    study.add_argument(
        "--latency", type=Path, metavar="FILE", help="of `leeboard prune calibrate`, same sizes"
    )
    study.add_argument("--ranker", metavar="NAME", help="default: the best one on validation rows")
    study.add_argument("--planning", choices=("global", "per layer"), help="default: global")
    demands = parser.add_argument_group("demands")
    demands.add_argument(
        "--deadline", required=True, metavar="T", help="from arrival to answer, such as 50ms"
    )
    demands.add_argument(
        "--quantile",
        type=float,
        default=0.99,
        metavar="Q",
        help="share of windows that meet it (default: %(default)s)",
    )
    demands.add_argument("--energy", metavar="E", help="a window at most, such as 20mJ")
    demands.add_argument(
        "--energy-of",
        choices=("all", "nodes"),
        default="all",
        help="whose energy counts (default: %(default)s)",
    )
    load = parser.add_argument_group("what happens")
    load.add_argument(
        "--dropout",
        default="0",
        metavar="P",
        help="probability that a sensor is gone, or of some: ACC=0.1,EDA=0.2 (default: 0)",
    )
    load.add_argument(
        "--rate", type=float, default=1.0, metavar="N", help="windows a second (default: 1)"
    )
    load.add_argument(
        "--arrivals",
        choices=("poisson", "periodic"),
        default="poisson",
        help="default: %(default)s",
    )
    load.add_argument(
        "--windows", type=int, default=1000, metavar="N", help="to simulate (default: 1000)"
    )
    load.add_argument(
        "--raw", metavar="SIZE", help="of a window of every sensor, in place of the table's"
    )
    load.add_argument("--features", metavar="SIZE", help="of what an encoder makes of it")
    devices = parser.add_argument_group("devices and links")
    _add_link(devices, "1 Mbit/s", "5 ms", option="--link-latency")
    devices.add_argument(
        "--on",
        metavar="LIST",
        help="which device each sensor is on: ACC=wrist,EDA=wrist (default: of its own name)",
    )
    devices.add_argument(
        "--hub", metavar="NAME", help="which of --platform's devices it is (default: hub)"
    )
    devices.add_argument(
        "--node-speed",
        type=float,
        metavar="X",
        help="times the device of the plans' times, without --platform (default: 0.05)",
    )
    devices.add_argument("--hub-speed", type=float, metavar="X", help="the same (default: 1)")
    devices.add_argument(
        "--node-power", metavar="IDLE,ACTIVE", help="such as 1mW,150mW, without --platform"
    )
    devices.add_argument("--hub-power", metavar="IDLE,ACTIVE", help="the same")
    devices.add_argument(
        "--radio", type=float, default=0.0, metavar="J", help="joules for a sent byte (default: 0)"
    )
    devices.add_argument(
        "--placements", metavar="LIST", help="to try, with commas (default: node,hub,split)"
    )
