"""Pipeline parallelism: each device holds some layers, one after another (Huang et al., GPipe, 2019).

Hidden states, [rows, positions, width], go from device to device once each; the last device sends
the tokens back to the first. A batch is cut into micro-batches, so that a device works on one while
others work on the next. One sequence alone passes through all devices in turn: no faster than on
one, but no device has to hold the model.

Prefill follows a schedule of torch.distributed.pipelining (--schedule gpipe or 1f1b), or plain
sends and receives (none), as decoding always does. --split gives the layers of each device, for
devices that are not equally fast.

    torchrun --nproc-per-node 2 -m leeboard.sim.strategies.pipeline_parallel --batch 4 --check
    leeboard sim run --platform edge-star.yaml -m leeboard.sim.strategies.pipeline_parallel -- \\
        --model small --batch 4 --prompt 128 --tokens 16
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from leeboard.sim.strategies.deployment import compared, integers, joined, parser, report, timings
from leeboard.sim.strategies.pipeline import SCHEDULES, Pipeline, micro_batches, stage_layers
from leeboard.sim.strategies.weights import build


def add_options(arguments: argparse.ArgumentParser) -> None:
    """What a pipeline can be told."""
    arguments.add_argument(
        "--schedule",
        choices=(*SCHEDULES, "none"),
        help="of the prefill (gpipe; with --no-sampling none, since torch's look at a value)",
    )
    arguments.add_argument("--micro-batches", type=int, help="parts of the batch (all stages busy)")
    arguments.add_argument(
        "--split", type=integers, metavar="N,N,...", help="layers of each stage (equally many)"
    )


def schedule_of(options: argparse.Namespace) -> str | None:
    """The schedule of the prefill; None: sends and receives.

    Raises:
        SystemExit: one of torch's for tensors without values: it looks at one to warm up.
    """
    if options.no_sampling and options.schedule in SCHEDULES:
        raise SystemExit(f"--schedule {options.schedule} looks at values: with --no-sampling, none")
    name = options.schedule or ("none" if options.no_sampling else "gpipe")
    return None if name == "none" else str(name)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs this rank; the figures are true on rank 0."""
    arguments = parser("pipeline_parallel", __doc__)
    add_options(arguments)
    options = arguments.parse_args(argv)
    with joined(options) as place:
        layers = stage_layers(place.config.layers, place.size, place.rank, options.split)
        model = build(
            place.config,
            seed=options.seed,
            layers=layers,
            device=place.device,
            dtype=place.dtype,
        )
        parts = micro_batches(options.batch, place.size, options.micro_batches)
        pipeline = Pipeline(place, model, None, None, parts)
        done = pipeline.generate(place.prompts(), schedule_of(options), dist.barrier)
        figures: dict[str, Any] = {"micro_batches": parts}
        logits = pipeline.first_logits(done) if options.check else None
        if done.tokens is not None:
            figures |= timings(done.began, done.times, options.batch)
            if options.check:
                figures |= compared(place, done.tokens, logits)
            if not options.no_sampling:
                figures["output"] = done.tokens[0].tolist()
        return report(place, "pipeline_parallel", figures)


if __name__ == "__main__":
    main()
