"""Models on several ranks, each part timed from a common beginning to the last rank's end.

The one argument is a JSON object as of `programs.network`; a case is [what, size].
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from leeboard.sim.strategies.llama import Cache, Config, config_of
from leeboard.sim.strategies.pipeline import stage_layers
from leeboard.sim.strategies.tensor_parallel import by_hand, pick
from leeboard.sim.strategies.weights import build, tokens
from leeboard.sim.validate.programs.network import open_windows
from leeboard.sim.validate.programs.timing import timed

Act = Callable[[], object]

LAYERS = 4
PROMPT = 32
# Rows of a prefill in a pipeline: a micro-batch each.
PARTS = 4
CPU = torch.device("cpu")


def config() -> Config:
    """Llama's architecture, 512 wide; every number of ranks up to 4 divides it."""
    return dataclasses.replace(
        config_of("small", LAYERS), heads=12, kv_heads=12, head_width=48, hidden=1536, vocab=4092
    )


def _prompts(rows: int, count: int) -> Tensor:
    return tokens(config(), rows, count, 0, CPU)


def compute(size: int) -> Act:
    """What one rank computes for so many tokens, with nobody to talk to: for calibration."""
    model = build(config())
    prompts = _prompts(1, size)

    def act() -> None:
        model(prompts, Cache(size))

    return act


def alone(size: int) -> Act:
    """The same on rank 0, while the others wait: for calibration."""
    act = compute(size)
    return act if dist.get_rank() == 0 else lambda: None


def _tensor_parallel() -> nn.Module:
    return by_hand(config(), None, seed=0, device=CPU, dtype=torch.float32)


def tp_prefill(size: int) -> Act:
    """Tensor parallel: a prompt of `size` tokens; two all_reduces a layer, an all_gather."""
    model, prompts = _tensor_parallel(), _prompts(1, size)
    return lambda: pick(model(prompts, Cache(size))[:, -1], None)


def tp_decode(size: int) -> Act:
    """Tensor parallel: `size` tokens, one after the other."""
    model = _tensor_parallel()
    prompts = _prompts(1, PROMPT)

    def act() -> None:
        cache = caches.pop()
        token = first
        for _ in range(size):
            token = pick(model(token[:, None], cache)[:, -1], None)

    caches = []
    first = prompts[:, 0]
    for _ in range(_turns):
        cache = Cache(PROMPT + size)
        first = pick(model(prompts, cache)[:, -1], None)
        caches.append(cache)
    return act


# How often each act is called: those that use something up make so many of it beforehand.
_turns = 1


class _Stage:
    """A rank's layers, and the way to the next rank."""

    def __init__(self) -> None:
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.config = config()
        self.model = build(self.config, layers=stage_layers(LAYERS, self.ranks, self.rank))
        self.first, self.last = self.rank == 0, self.rank == self.ranks - 1
        self.sent: list[dist.Work | None] = []

    def forward(self, prompts: Tensor, cache: Cache) -> Tensor | None:
        """One row on through this stage; the last one's logits."""
        x = prompts
        if not self.first:
            x = torch.empty(*prompts.shape, self.config.width)
            dist.recv(x, self.rank - 1)
        y: Tensor = self.model(x, cache)
        if self.last:
            return y[:, -1]
        self.sent.append(dist.isend(y, self.rank + 1))
        self.kept = y
        return None

    def settle(self) -> None:
        for work in self.sent:
            if work is not None:
                work.wait()
        self.sent.clear()


def pp_prefill(size: int) -> Act:
    """Pipeline: four prompts of `size` tokens, one behind the other."""
    stage = _Stage()
    rows = _prompts(PARTS, size)

    def act() -> None:
        kept = []
        for row in range(PARTS):
            stage.forward(rows[row : row + 1], Cache(size))
            kept.append(None if stage.last else stage.kept)
        stage.settle()

    return act


def pp_decode(size: int) -> Act:
    """Pipeline: `size` tokens, each of which the last rank sends back to the first."""
    stage = _Stage()
    prompts = _prompts(1, PROMPT)
    caches = []
    for _ in range(_turns):
        cache = Cache(PROMPT + size)
        stage.forward(prompts, cache)
        stage.settle()
        caches.append(cache)

    def act() -> None:
        cache = caches.pop()
        token = torch.zeros(1, 1, dtype=torch.int64)
        for _ in range(size):
            logits = stage.forward(token, cache)
            if logits is not None and not stage.first:
                dist.send(logits.argmax(-1, keepdim=True), 0)
            elif stage.first and not stage.last:
                token = torch.zeros(1, 1, dtype=torch.int64)
                dist.recv(token, stage.ranks - 1)
        stage.settle()

    return act


def ddp_step(size: int) -> Act:
    """Data parallel: forward, backward and a step of a model of about 2 MB, on `size` rows."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 512), nn.GELU(), nn.Linear(512, 256)
    )
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.01)
    rows = torch.randn(size, 256)

    def act() -> None:
        optimizer.zero_grad()
        parallel(rows).square().mean().backward()
        optimizer.step()

    return act


def ensemble(size: int) -> Act:
    """Edge ensemble: rank 0 sends `size` rows of 512 numbers to all, each asks its own model, and
    rank 0 collects their answers."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(rank)
    layers = [nn.Linear(512, 1024), nn.GELU(), nn.Linear(1024, 1024), nn.GELU()]
    model = nn.Sequential(*layers, nn.Linear(1024, 512))
    rows = torch.randn(size, 512)
    answers = [torch.empty(size, 512) for _ in range(ranks)] if rank == 0 else None

    def act() -> None:
        with torch.no_grad():
            dist.broadcast(rows, 0)
            dist.gather(model(rows), answers, 0)
            if answers is not None:
                torch.stack(answers).mean(0)

    return act


CASES: dict[str, Callable[[int], Act]] = {
    case.__name__: case
    for case in (
        compute, alone, tp_prefill, tp_decode, pp_prefill, pp_decode, ddp_step, ensemble
    )
}  # fmt: skip


def main() -> None:
    """Run the cases, in their order."""
    global _turns
    order = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    open_windows(order["open"])
    _turns = order["repeats"] + order["warm"]
    with torch.set_grad_enabled(True):
        for what, size in order["cases"]:
            timed(
                f"{what} {size}",
                CASES[what](size),
                repeats=order["repeats"],
                warm=order["warm"],
                notice=order["notice"],
                kind="model",
            )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
