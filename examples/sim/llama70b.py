"""A Llama under tensor, pipeline and data parallelism: an ordinary torch.distributed script.

On real machines, at a size that fits them:

    torchrun --nproc-per-node 4 examples/sim/llama70b.py --model tiny --pp 2 --tp 2

On 1,024 simulated devices, from one rank a pipeline stage, in less than a minute:

    leeboard sim run --platform cluster.yaml --ranks 1024 --fold "dp=8 pp=16* tp=8" \\
        examples/sim/llama70b.py -- --model 70b --dp 8 --pp 16 --tp 8
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)


@dataclass(frozen=True)
class Sizes:
    """Of a Llama: layers, hidden size, heads, heads of keys and values, inner size, vocabulary."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    inner: int
    vocab: int


MODELS = {
    "70b": Sizes(80, 8192, 64, 8, 28672, 128256),
    "8b": Sizes(32, 4096, 32, 8, 14336, 128256),
    "tiny": Sizes(4, 64, 8, 4, 128, 256),
}


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.head = sizes.hidden // sizes.heads
        inner, grouped = sizes.heads * self.head, sizes.kv_heads * self.head
        self.query = nn.Linear(sizes.hidden, inner, bias=False)
        self.key = nn.Linear(sizes.hidden, grouped, bias=False)
        self.value = nn.Linear(sizes.hidden, grouped, bias=False)
        self.out = nn.Linear(inner, sizes.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, H] -> [B, T, H]."""
        batch, time, _ = x.shape
        # As many heads as this rank has of them.
        q, k, v = (
            project(x).view(batch, time, -1, self.head).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        q, k = rotate(q), rotate(k)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.out(y.transpose(1, 2).reshape(batch, time, -1))


def rotate(x: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021), [B, heads, T, D]."""
    time, half = x.shape[-2], x.shape[-1] // 2
    frequency = 500000.0 ** (-torch.arange(half, dtype=torch.float32) / half)
    angle = torch.outer(torch.arange(time, dtype=torch.float32), frequency)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.gate = nn.Linear(sizes.hidden, sizes.inner, bias=False)
        self.up = nn.Linear(sizes.hidden, sizes.inner, bias=False)
        self.down = nn.Linear(sizes.inner, sizes.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, H] -> [B, T, H]."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """A layer."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(sizes.hidden, eps=1e-5)
        self.attention = Attention(sizes)
        self.feed_forward_norm = nn.RMSNorm(sizes.hidden, eps=1e-5)
        self.feed_forward = FeedForward(sizes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, H] -> [B, T, H]."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.feed_forward_norm(x))


class Stage(nn.Module):
    """The layers of one pipeline stage, with the embedding before the first, the head after the last.

    Args:
        sizes: Of the model.
        stage: Which stage.
        stages: How many.
    """

    def __init__(self, sizes: Sizes, stage: int, stages: int) -> None:
        super().__init__()
        layers = range(sizes.layers * stage // stages, sizes.layers * (stage + 1) // stages)
        self.embedding = nn.Embedding(sizes.vocab, sizes.hidden) if stage == 0 else None
        self.blocks = nn.ModuleList(Block(sizes) for _ in layers)
        last = stage == stages - 1
        self.norm = nn.RMSNorm(sizes.hidden, eps=1e-5) if last else None
        self.head = nn.Linear(sizes.hidden, sizes.vocab, bias=False) if last else None

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, T] or [B, T, H] -> [B, T, H] or logits [B, T, V / tp]."""
        if self.embedding is not None:
            x = self.embedding(x)
        for block in self.blocks:
            x = block(x)
        if self.norm is not None and self.head is not None:
            x = self.head(self.norm(x))
        return x


def shard(stage: Stage, mesh: DeviceMesh) -> Stage:
    """Cut a stage's linear layers over the ranks of a mesh (Shoeybi et al. 2019)."""
    if mesh.size() == 1:
        return stage
    plan = {
        "attention.query": ColwiseParallel(),
        "attention.key": ColwiseParallel(),
        "attention.value": ColwiseParallel(),
        "attention.out": RowwiseParallel(),
        "feed_forward.gate": ColwiseParallel(),
        "feed_forward.up": ColwiseParallel(),
        "feed_forward.down": RowwiseParallel(),
    }
    for block in stage.blocks:
        parallelize_module(block, mesh, plan)
    if stage.head is not None:
        parallelize_module(stage.head, mesh, ColwiseParallel())
    return stage


def fill(stage: Stage, seed: int) -> None:
    """Weights to begin with."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in stage.parameters():
            local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
            if local.dim() == 1:
                local.fill_(1.0)
            else:
                local.normal_(std=0.02)


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="tiny")
    parser.add_argument("--layers", type=int, help="instead of the model's")
    for axis in ("dp", "pp", "tp"):
        parser.add_argument(f"--{axis}", type=int, default=1)
    parser.add_argument("--microbatches", type=int, default=4)
    parser.add_argument("--batch", type=int, default=1, help="sequences of a microbatch")
    parser.add_argument("--tokens", type=int, default=128, help="of a sequence")
    parser.add_argument("--train", action="store_true", help="a training step")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    return parser.parse_args()


def main() -> None:
    """Build this rank's stage and run one step."""
    given = options()
    sizes = MODELS[given.model]
    if given.layers is not None:
        sizes = Sizes(given.layers, *list(vars(sizes).values())[1:])
    dist.init_process_group("gloo")
    mesh = init_device_mesh(
        "cpu", (given.dp, given.pp, given.tp), mesh_dim_names=("dp", "pp", "tp")
    )
    index = mesh["pp"].get_local_rank()
    torch.set_default_dtype(getattr(torch, given.dtype))
    # A rank makes its own share of the weights; none are sent.
    with torch.device("meta"):
        module = shard(Stage(sizes, index, given.pp), mesh["tp"])
    fill(module.to_empty(device="cpu"), seed=index * given.tp + mesh["tp"].get_local_rank())
    # Replicas differ in what they are given, not in the weights.
    torch.manual_seed(1000 + mesh["dp"].get_local_rank())
    batch = given.microbatches * given.batch
    tokens = torch.randint(sizes.vocab, (batch, given.tokens))
    first, last = index == 0, index == given.pp - 1
    # What goes in and comes out: the stages need not find out by a run of their own.
    hidden = torch.empty(given.batch, given.tokens, sizes.hidden)
    logits = torch.empty(given.batch, given.tokens, sizes.vocab // given.tp)
    if given.train:
        hidden, logits = hidden.requires_grad_(), logits.requires_grad_()
    stage = PipelineStage(
        module,
        index,
        given.pp,
        torch.device("cpu"),
        input_args=tokens[: given.batch] if first else hidden,
        output_args=logits if last else hidden,
        group=mesh["pp"].get_group(),
    )
    if given.train:
        step(given, stage, tokens, first, last)
        reduce_gradients(module, mesh["dp"])
    else:
        with torch.no_grad():
            schedule = ScheduleGPipe(stage, given.microbatches)
            schedule.eval(*([tokens] if first else []))
    dist.barrier()
    if dist.get_rank() == 0:
        parameters = sum(p.numel() for p in module.parameters())
        print(f"{given.model} on {dist.get_world_size()} ranks: stage 0 has {parameters} weights")
    dist.destroy_process_group()


def step(
    given: argparse.Namespace, stage: PipelineStage, tokens: Tensor, first: bool, last: bool
) -> None:
    """Forward and backward of all microbatches."""

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return logits.float().logsumexp(-1).mean() + 0.0 * target.float().mean()

    schedule = Schedule1F1B(stage, given.microbatches, loss_fn=loss)
    schedule.step(*([tokens] if first else []), **({"target": tokens} if last else {}))


def reduce_gradients(module: nn.Module, mesh: DeviceMesh) -> None:
    """Mean of the replicas' gradients."""
    if mesh.size() == 1:
        return
    for parameter in module.parameters():
        grad = parameter.grad
        if grad is not None:
            local = grad.to_local() if hasattr(grad, "to_local") else grad
            dist.all_reduce(local, group=mesh.get_group())
            local /= mesh.size()


if __name__ == "__main__":
    main()
