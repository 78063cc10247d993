"""Tensor and pipeline parallelism together, on a mesh of devices.

Ranks form a mesh of --dp replicas by --pp stages by --tp shares, the last counting fastest: stages
hold different layers, the shares of a stage cut each of its layers, replicas serve other requests.
Shares talk twice a layer and belong on the fastest links; stages talk once each micro-batch.

    torchrun --nproc-per-node 4 -m leeboard.sim.strategies.tensor_pipeline --pp 2 --tp 2 --check
    leeboard sim run --platform cluster.yaml -m leeboard.sim.strategies.tensor_pipeline -- \\
        --model 70b --dp 8 --pp 16 --tp 8 --batch 16 --prompt 512 --no-sampling
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from leeboard.sim.strategies.deployment import (
    Place,
    compared,
    joined,
    parser,
    report,
    timings,
)
from leeboard.sim.strategies.llama import Llama
from leeboard.sim.strategies.pipeline import Pipeline, micro_batches, stage_layers
from leeboard.sim.strategies.pipeline_parallel import add_options, schedule_of
from leeboard.sim.strategies.tensor_parallel import by_dtensor, by_hand
from leeboard.sim.strategies.weights import tokens


def mesh_of(place: Place, options: argparse.Namespace) -> DeviceMesh:
    """The mesh ("dp", "pp", "tp").

    Raises:
        SystemExit: the number of ranks is not dp times pp times tp.
    """
    shape = (options.dp, options.pp, options.tp)
    if min(shape) < 1 or options.dp * options.pp * options.tp != place.size:
        raise SystemExit(
            f"--dp {options.dp} x --pp {options.pp} x --tp {options.tp} are "
            f"{options.dp * options.pp * options.tp} ranks; there are {place.size}"
        )
    return init_device_mesh(place.device.type, shape, mesh_dim_names=("dp", "pp", "tp"))


def stage_of(place: Place, mesh: DeviceMesh) -> Llama:
    """This rank's share of its stage."""
    options = place.options
    index = mesh["pp"].get_local_rank()
    layers = stage_layers(place.config.layers, options.pp, index, options.split)
    given = {
        "seed": options.seed,
        "device": place.device,
        "dtype": place.dtype,
        "layers": layers,
    }
    if options.by == "dtensor":
        return by_dtensor(place.config, mesh["tp"], **given)
    return by_hand(place.config, mesh["tp"].get_group(), **given)


def fixed_batch(place: Place, mesh: DeviceMesh) -> dict[str, Any]:
    """One batch in each replica, all of it there from the start."""
    options = place.options
    parts = micro_batches(options.batch, options.pp, options.micro_batches)
    shares = mesh["tp"].get_group() if options.tp > 1 else None
    pipeline = Pipeline(place, stage_of(place, mesh), mesh["pp"].get_group(), shares, parts)
    replica = mesh["dp"].get_local_rank()
    prompts = tokens(
        place.config, options.batch, options.prompt, options.seed + replica, place.device
    )
    done = pipeline.generate(prompts, schedule_of(options), dist.barrier)
    figures: dict[str, Any] = {"mesh": [options.dp, options.pp, options.tp], "micro_batches": parts}
    logits = pipeline.first_logits(done) if options.check else None
    if done.tokens is not None:
        figures |= timings(done.began, done.times, options.batch * options.dp)
        if options.check and place.rank == 0:
            figures |= compared(place, done.tokens, logits)
        if not options.no_sampling:
            figures["output"] = done.tokens[0].tolist()
    return figures


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs this rank; the figures are true on rank 0."""
    arguments = parser("tensor_pipeline", __doc__)
    arguments.add_argument("--dp", type=int, default=1, help="replicas (1)")
    arguments.add_argument("--pp", type=int, default=1, help="stages (1)")
    arguments.add_argument("--tp", type=int, default=1, help="shares of each stage (1)")
    arguments.add_argument("--by", choices=("hand", "dtensor"), default="hand", help="(hand)")
    add_options(arguments)
    options = arguments.parse_args(argv)
    with joined(options) as place:
        mesh = mesh_of(place, options)
        return report(place, "tensor_pipeline", fixed_batch(place, mesh))


if __name__ == "__main__":
    main()
