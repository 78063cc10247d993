"""Random weights that every device computes for its own share, without files or messages.

A weight is a hash of its place, (seed, parameter, row, column), so a share is filled without the
rest, and is equal on any device and any number of devices.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor import DTensor

from leeboard.sim.strategies.llama import Config, Llama, Share

# The dimension along which tensor parallelism cuts each kind of weight.
_CUT = {
    "embedding": 0,
    "query": 0,
    "key": 0,
    "value": 0,
    "output": 1,
    "gate": 0,
    "up": 0,
    "down": 1,
    "head": 0,
}
# Filled at once: keeps the work within a processor's cache.
_BLOCK = 1 << 20


def _mixed(x: Tensor) -> Tensor:
    """lowbias32, a hash of 32 bits onto 32 bits (Wellons, hash-prospector), in place."""
    x ^= (x >> 16) & 0xFFFF
    x *= 0x7FEB352D
    x ^= (x >> 15) & 0x1FFFF
    x *= 0x846CA68B - (1 << 32)
    x ^= (x >> 16) & 0xFFFF
    return x


def uniform(name: str, rows: range, columns: range, width: int, seed: int) -> Tensor:
    """Numbers in [-1, 1) for a block of the matrix called `name`, which has `width` columns.

    Returns:
        [len(rows), len(columns)], float32.
    """
    key = zlib.crc32(f"{seed}/{name}".encode())
    key = key - (1 << 32) if key >= 1 << 31 else key
    place = torch.arange(rows.start, rows.stop, dtype=torch.int32)[:, None] * width
    place = place + torch.arange(columns.start, columns.stop, dtype=torch.int32)
    # Twice: neighbours under two keys would else be shifted copies of each other.
    bits = _mixed(_mixed(place) ^ key)
    return bits.float() * 2.0**-31


def fill(name: str, weight: Tensor, cut: int, index: int, count: int, seed: int) -> None:
    """Writes share `index` of `count`, cut along dimension `cut`, of the matrix called `name`.

    Standard deviation 1 / sqrt(columns), so that activations keep their scale; an embedding's 1.
    """
    rows, columns = weight.shape
    first_row = index * rows if cut == 0 else 0
    first_column = index * columns if cut == 1 else 0
    width = columns * count if cut == 1 else columns
    scale = math.sqrt(3.0) if name == "embedding.weight" else math.sqrt(3.0 / width)
    step = max(1, _BLOCK // columns)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        block = uniform(
            name,
            range(first_row + start, first_row + stop),
            range(first_column, first_column + columns),
            width,
            seed,
        )
        weight[start:stop] = block.mul_(scale)


@torch.no_grad()
def fill_all(model: Llama, index: int, count: int, seed: int) -> None:
    """Sets every weight of a model that holds share `index` of `count`.

    Fake and meta tensors hold no numbers and stay as they are.
    """
    for name, parameter in model.named_parameters():
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter.data
        if local.is_meta or isinstance(local, FakeTensor):
            continue
        if local.dim() == 1:
            own = uniform(name, range(1), range(len(local)), len(local), seed)
            local.copy_(1 + 0.1 * own[0])
        else:
            # A tied head has no name of its own unless the embedding is on another stage.
            source = "embedding.weight" if name == "head.weight" and model.config.tied else name
            fill(source, local, _CUT[name.split(".")[-2]], index, count, seed)


def build(
    config: Config,
    *,
    seed: int = 0,
    layers: Sequence[int] | None = None,
    share: Share | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Llama:
    """A model, or a device's part of one, with its weights; for inference.

    Args:
        config: Sizes of the whole model.
        seed: Another seed, other weights.
        layers: Numbers of the layers that are here; all by default.
        share: What of each layer is here; all by default.
        device: Where; "meta" for shapes alone. Under FakeTensorMode the weights are fake.
        dtype: Of weights and activations.

    Raises:
        ValueError: the model does not divide over `share.count` devices.
    """
    with torch.device("meta"):
        model = Llama(config, layers, share)
    return settle(model, model.share.index, model.share.count, seed, device, dtype)


def settle(
    model: Llama,
    index: int,
    count: int,
    seed: int,
    device: torch.device | str,
    dtype: torch.dtype,
) -> Llama:
    """A model made on "meta", put on a device with share `index` of `count` of the weights."""
    # Not by to_empty(): it swaps tensors in place, which fake ones and DTensors of them refuse.
    for module in model.modules():
        for name, old in list(module.named_parameters(recurse=False)):
            new = torch.empty_like(old, device=device, dtype=dtype)
            setattr(module, name, nn.Parameter(new, requires_grad=False))
    model.tie()
    fill_all(model, index, count, seed)
    return model.eval()


def tokens(config: Config, rows: int, count: int, seed: int, device: torch.device | str) -> Tensor:
    """A prompt of random tokens for each row. [rows, count], int64"""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab, (rows, count), generator=generator).to(device)
