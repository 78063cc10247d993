"""Tensor and pipeline parallelism together, on a mesh of devices.

Ranks form a mesh of --dp replicas by --pp stages by --tp shares, the last counting fastest: stages
hold different layers, the shares of a stage cut each of its layers, replicas serve other requests.
Shares talk twice a layer and belong on the fastest links; stages talk once each micro-batch.

One batch is generated, all of it there from the start; or with --rate requests arrive by a Poisson
process, are dealt to the replicas in turn, and are served in continuous batches: --prompt, --tokens
and --spread say how long they are, --slots how many are served at once by each of --micro-batches
groups. Then the figures are percentiles over requests.

    torchrun --nproc-per-node 4 -m leeboard.sim.strategies.tensor_pipeline --pp 2 --tp 2 --check
    torchrun --nproc-per-node 4 -m leeboard.sim.strategies.tensor_pipeline --pp 2 --tp 2 \\
        --rate 20 --requests 50 --spread 0.5
    leeboard sim run --platform cluster.yaml -m leeboard.sim.strategies.tensor_pipeline -- \\
        --model 70b --dp 8 --pp 16 --tp 8 --batch 16 --prompt 512 --no-sampling
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from leeboard.sim.strategies.deployment import (
    Place,
    compared,
    greedy,
    joined,
    parser,
    report,
    timings,
)
from leeboard.sim.strategies.llama import Llama
from leeboard.sim.strategies.pipeline import Pipeline, micro_batches, stage_layers
from leeboard.sim.strategies.pipeline_parallel import add_options, schedule_of
from leeboard.sim.strategies.serving import Serving, figures_of, poisson
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


def arrivals(place: Place, mesh: DeviceMesh) -> dict[str, Any]:
    """Requests that arrive while others are served."""
    options = place.options
    parts = options.micro_batches or options.pp
    shares = mesh["tp"].get_group() if options.tp > 1 else None
    pipeline = Pipeline(place, stage_of(place, mesh), mesh["pp"].get_group(), shares, parts)
    requests = poisson(
        options.requests,
        options.rate,
        options.prompt,
        options.tokens,
        options.spread,
        options.seed,
    )
    own = requests[mesh["dp"].get_local_rank() :: options.dp]
    serving = Serving(pipeline, own, options.slots)
    serving.run()
    every: list[Any] | None = [None] * place.size if place.rank == 0 else None
    dist.gather_object(serving.served() if serving.leads else [], every)
    if every is None:
        return {}
    figures: dict[str, Any] = {
        "mesh": [options.dp, options.pp, options.tp],
        "rate": options.rate,
        **figures_of([each for served in every for each in served]),
    }
    if options.check:
        for request in own:
            expected, _ = greedy(place, serving.prompt_of(request), request.wanted)
            if not torch.equal(torch.stack(request.answer), expected[0]):
                raise SystemExit(
                    f"check failed: request {request.number}: the undivided model gives "
                    f"{expected[0].tolist()}, this one {torch.stack(request.answer).tolist()}"
                )
        figures["tokens_equal"] = True
    return figures


def check_arrivals(options: argparse.Namespace) -> None:
    """Raises SystemExit if requests cannot arrive as told."""
    if options.rate is None:
        return
    if options.no_sampling:
        raise SystemExit("--rate: who is served next is told by messages; drop --no-sampling")
    if not options.rate > 0:
        raise SystemExit(f"--rate: got {options.rate}; expected requests a second, more than 0")
    if not 0 <= options.spread < 1:
        raise SystemExit(f"--spread: got {options.spread}; expected a share, 0 or more, below 1")
    for name in ("requests", "slots"):
        if getattr(options, name) < 1:
            raise SystemExit(f"--{name}: got {getattr(options, name)}; expected at least 1")
    if options.requests < options.dp:
        raise SystemExit(f"--requests {options.requests}: fewer than --dp {options.dp} replicas")
    if options.micro_batches is not None and options.micro_batches < 1:
        raise SystemExit(f"--micro-batches: got {options.micro_batches}; expected at least 1")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs this rank; the figures are true on rank 0."""
    arguments = parser("tensor_pipeline", __doc__)
    arguments.add_argument("--dp", type=int, default=1, help="replicas (1)")
    arguments.add_argument("--pp", type=int, default=1, help="stages (1)")
    arguments.add_argument("--tp", type=int, default=1, help="shares of each stage (1)")
    arguments.add_argument("--by", choices=("hand", "dtensor"), default="hand", help="(hand)")
    add_options(arguments)
    arguments.add_argument("--rate", type=float, help="requests that arrive a second (one batch)")
    arguments.add_argument("--requests", type=int, default=32, help="with --rate: how many (32)")
    arguments.add_argument("--slots", type=int, default=4, help="with --rate: rows of a group (4)")
    arguments.add_argument(
        "--spread", type=float, default=0.0, help="with --rate: of lengths, a share (0)"
    )
    options = arguments.parse_args(argv)
    check_arrivals(options)
    with joined(options) as place:
        mesh = mesh_of(place, options)
        if options.rate is not None:
            return report(place, "tensor_pipeline/arrivals", arrivals(place, mesh))
        return report(place, "tensor_pipeline", fixed_batch(place, mesh))


if __name__ == "__main__":
    main()
