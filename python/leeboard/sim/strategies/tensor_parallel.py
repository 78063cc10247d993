"""Tensor parallelism: every layer is cut over all devices (Shoeybi et al., Megatron-LM, 2019).

A device holds some heads and some columns of each feed-forward, and works on every token. Its
partial results are summed by two all_reduces in each layer, of [batch, positions, width]: memory
and work are divided by the number of devices, and the network is asked twice a layer.

Two ways to write it: by hand (--by hand, the model with a sum where a device's share ends), and
torch's own (--by dtensor, `parallelize_module` on the undivided model).

    torchrun --nproc-per-node 2 -m leeboard.sim.strategies.tensor_parallel --check
    leeboard sim run --platform edge-star.yaml -m leeboard.sim.strategies.tensor_parallel -- \\
        --model small --prompt 128 --tokens 16
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)

from leeboard.sim.strategies.deployment import Place, compared, joined, parser, report, timings
from leeboard.sim.strategies.llama import Cache, Config, Llama, Share
from leeboard.sim.strategies.weights import build, settle


def by_hand(
    config: Config,
    group: dist.ProcessGroup | None,
    *,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    layers: Sequence[int] | None = None,
) -> Llama:
    """This rank's share of a model, or of some of its layers, cut over the ranks of a group."""

    def add(partial: Tensor) -> Tensor:
        dist.all_reduce(partial, group=group)
        return partial

    count = dist.get_world_size(group)
    share = Share(dist.get_rank(group), count, add) if count > 1 else Share()
    return build(config, seed=seed, layers=layers, share=share, device=device, dtype=dtype)


def by_dtensor(
    config: Config,
    mesh: DeviceMesh,
    *,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    layers: Sequence[int] | None = None,
) -> Llama:
    """The same by `parallelize_module`: the undivided model, its weights made DTensors."""
    Share(mesh.get_local_rank(), mesh.size()).check(config)
    with torch.device("meta"):
        model = Llama(config, layers)
    plan: dict[str, ParallelStyle] = {}
    for number in model.layers:
        for name in ("attention.query", "attention.key", "attention.value"):
            plan[f"layers.{number}.{name}"] = ColwiseParallel()
        for name in ("feed_forward.gate", "feed_forward.up"):
            plan[f"layers.{number}.{name}"] = ColwiseParallel()
        for name in ("attention.output", "feed_forward.down"):
            plan[f"layers.{number}.{name}"] = RowwiseParallel()
    if model.first:
        plan["embedding"] = RowwiseParallel(input_layouts=Replicate())
    if model.last:
        plan["head"] = ColwiseParallel(output_layouts=Shard(-1))
    # On "meta" nothing is sent; afterwards each rank fills in its own share.
    parallelized: nn.Module = parallelize_module(model, mesh, plan)
    assert isinstance(parallelized, Llama)
    return settle(parallelized, mesh.get_local_rank(), mesh.size(), seed, device, dtype)


def pick(logits: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The greedy token, where each rank has the logits of its own share of the vocabulary.

    Each tells its best logit and where it is: 16 bytes a row, instead of all logits.

    Args:
        logits: [B, V / ranks]
        group: The ranks, in the order of their shares.

    Returns:
        [B], int64, the same on every rank.
    """
    best, index = logits.max(dim=-1)
    count = dist.get_world_size(group)
    if count == 1:
        return index
    # float64 holds every logit and every index exactly.
    index = index + dist.get_rank(group) * logits.shape[-1]
    own = torch.stack((best.double(), index.double()), dim=-1)
    everyone = own.new_empty((count, *own.shape))
    dist.all_gather(list(everyone.unbind()), own, group=group)
    winner = everyone[..., 0].argmax(dim=0, keepdim=True)
    return everyone[..., 1].gather(0, winner)[0].long()


def gathered(logits: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The logits of the whole vocabulary, on every rank. [B, V]"""
    parts = [torch.empty_like(logits) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, logits.contiguous(), group=group)
    return torch.cat(parts, dim=-1)


def generate(model: Llama, place: Place) -> dict[str, Any]:
    """Prefill, then a token at a time; every rank knows every token."""
    options = place.options
    tokens = place.prompts()
    cache = Cache(options.prompt + options.tokens)
    dist.barrier()
    began = place.now()
    first = logits = model(tokens, cache)[:, -1]
    found, times = [pick(logits, None)], [place.now()]
    for _ in range(options.tokens - 1):
        logits = model(found[-1][:, None], cache)[:, -1]
        found.append(pick(logits, None))
        times.append(place.now())
    figures: dict[str, Any] = timings(began, times, options.batch)
    if options.check:
        every = gathered(first, None)
        if place.rank == 0:
            figures |= compared(place, torch.stack(found, dim=1), every)
    if not options.no_sampling:
        figures["output"] = torch.stack(found, dim=1)[0].tolist()
    return figures


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs this rank; the figures are true on rank 0."""
    arguments = parser("tensor_parallel", __doc__)
    arguments.add_argument("--by", choices=("hand", "dtensor"), default="hand", help="(hand)")
    options = arguments.parse_args(argv)
    with joined(options) as place:
        given = {"seed": options.seed, "device": place.device, "dtype": place.dtype}
        if options.by == "hand":
            model = by_hand(place.config, None, **given)
        else:
            mesh = init_device_mesh(place.device.type, (place.size,))
            model = by_dtensor(place.config, mesh, **given)
        return report(place, f"tensor_parallel/{options.by}", generate(model, place))


if __name__ == "__main__":
    main()
