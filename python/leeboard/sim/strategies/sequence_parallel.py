"""Position-wise parallelism: each device computes its own positions of a prompt (Voltage, 2023).

All devices hold all weights, and each takes a run of positions through every layer. Attention needs
the earlier positions of the others: before it they exchange keys and values (--gather kv), or after
each layer the hidden states, of which every device then computes keys and values itself (--gather
hidden, as published). That is one exchange a layer where tensor parallelism has two sums, and each
moves about half as much as a sum does; grouped-query models have small keys and values, which makes
it less again. --send needed leaves out what causal attention never reads: only devices with later
positions are sent to.

--shares 2,1,1 gives the first device twice as many positions: for devices that are not equally
fast. The last device holds the last positions and all keys and values, and decodes alone: there
is one position at a time, which cannot be divided. Compare time_to_first_token.

    torchrun --nproc-per-node 2 -m leeboard.sim.strategies.sequence_parallel --check
    leeboard sim run --platform edge-star.yaml -m leeboard.sim.strategies.sequence_parallel -- \\
        --model small --prompt 128 --tokens 2 --gather kv --send needed
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from leeboard.sim.strategies.deployment import (
    Place,
    compared,
    integers,
    joined,
    parser,
    report,
    timings,
)
from leeboard.sim.strategies.llama import Cache, Layer, Llama, attend, rotate, rotations
from leeboard.sim.strategies.weights import build


def positions_of(count: int, ranks: int, shares: Sequence[int] | None) -> list[range]:
    """Which of `count` positions each rank takes, one after another, in proportion to `shares`.

    Raises:
        SystemExit: not one positive share for each rank, or a rank would get no position.
    """
    shares = [1] * ranks if shares is None else shares
    if len(shares) != ranks or min(shares) < 1:
        raise SystemExit(f"--shares: got {list(shares)}; expected {ranks} numbers, 1 or more each")
    total = sum(shares)
    ends = [count * sum(shares[:number]) // total for number in range(ranks + 1)]
    found = [range(start, stop) for start, stop in itertools.pairwise(ends)]
    if min(map(len, found)) < 1:
        raise SystemExit(f"--prompt {count}: a rank of {ranks} would get no position")
    return found


class Exchange:
    """Brings the positions of all ranks together.

    Args:
        runs: The positions of each rank.
        needed: Send to ranks with later positions only.
    """

    def __init__(self, runs: list[range], needed: bool) -> None:
        self.runs = runs
        self.needed = needed
        self.me = dist.get_rank()
        self.own = runs[self.me]

    def __call__(self, own: Tensor) -> Tensor:
        """Own positions, [T, ...], to those up to and with them, [own.stop, ...]."""
        whole = own.new_empty((self.runs[-1].stop, *own.shape[1:]))
        parts = [whole[run.start : run.stop] for run in self.runs]
        own = own.contiguous()
        if not self.needed and len({len(run) for run in self.runs}) == 1:
            dist.all_gather(parts, own)
            return whole[: self.own.stop]
        # An all_gather sends equal parts; these are not, or do not go to everyone.
        parts[self.me].copy_(own)
        transfers = []
        for rank, part in enumerate(parts):
            if rank > self.me or (rank < self.me and not self.needed):
                transfers.append(dist.P2POp(dist.isend, own, rank))
            if rank < self.me or (rank > self.me and not self.needed):
                transfers.append(dist.P2POp(dist.irecv, part, rank))
        for work in dist.batch_isend_irecv(transfers) if transfers else ():
            work.wait()
        return whole[: self.own.stop]


class SharedCache(Cache):
    """A cache that takes a prompt's keys and values from all ranks, each its own positions."""

    def __init__(self, capacity: int, exchange: Exchange) -> None:
        super().__init__(capacity)
        self.exchange = exchange
        self.shared = True

    def positions(self, count: int, device: torch.device) -> Tensor:
        """Of the next tokens of this rank."""
        if not self.shared:
            return super().positions(count, device)
        own = self.exchange.own
        return torch.arange(own.start, own.stop, device=device)

    def extend(
        self, layer: int, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Exchanges them in one message to each rank while the prompt is read."""
        if self.shared:
            both = torch.cat((keys, values), dim=-1).permute(2, 0, 1, 3)
            keys, values = self.exchange(both).permute(1, 2, 0, 3).chunk(2, dim=-1)
        return super().extend(layer, keys, values)

    def advance(self, count: int) -> None:
        """The prompt is read; from here on the cache grows as any other."""
        if self.shared:
            count = self.exchange.own.stop
            self.shared = False
        super().advance(count)


def prefill_by_hidden(model: Llama, tokens: Tensor, cache: Cache, exchange: Exchange) -> Tensor:
    """Reads a prompt, exchanging hidden states after each layer but the last.

    Returns:
        Hidden states of the own positions. [B, T, W]
    """
    assert model.embedding is not None
    own, end = exchange.own, exchange.own.stop
    turn = rotations(cache.positions(end, tokens.device), model.config)
    here = (turn[0][own.start :], turn[1][own.start :])
    x: Tensor = model.embedding(tokens[:, :end])
    last = len(model.layers) - 1
    for number, layer in enumerate(model.layers.values()):
        assert isinstance(layer, Layer)
        mine = x[:, own.start :]
        seen = layer.attention_norm(x)
        attention = layer.attention
        queries = rotate(attention.heads(attention.query(seen[:, own.start :])), here)
        keys = rotate(attention.heads(attention.key(seen)), turn)
        values = attention.heads(attention.value(seen))
        cache.extend(number, keys, values)
        mine = mine + attention.output(attend(queries, keys, values))
        mine = mine + layer.feed_forward(layer.feed_forward_norm(mine))
        x = exchange(mine.transpose(0, 1)).transpose(0, 1) if number < last else mine
    cache.advance(end)
    return x


def generate(model: Llama, place: Place, exchange: Exchange) -> dict[str, Any]:
    """All read the prompt, the last rank decodes, rank 0 hears of each token."""
    options = place.options
    prompts = place.prompts()
    own, last = exchange.own, place.size - 1
    capacity = options.prompt + options.tokens
    dist.barrier()
    began = place.now()
    cache: Cache
    if options.gather == "kv":
        cache = SharedCache(capacity, exchange)
        keep = int(place.rank == last)
        logits = model(prompts[:, own.start : own.stop], cache, keep)
    else:
        cache = Cache(capacity)
        hidden = prefill_by_hidden(model, prompts, cache, exchange)
        if place.rank == last:
            assert model.norm is not None
            assert model.head is not None
            logits = model.head(model.norm(hidden[:, -1:]))
    found: list[Tensor] = []
    times: list[float] = []
    first: Tensor | None = logits[:, -1] if place.rank == last else None
    sent: list[tuple[dist.Work | None, Tensor]] = []
    for step in range(options.tokens):
        if place.rank == last:
            if step:
                logits = model(found[-1][:, None], cache)
            found.append(logits[:, -1].argmax(-1))
            if last:
                sent.append((dist.isend(found[-1], 0), found[-1]))
        elif place.rank == 0:
            found.append(prompts.new_empty(options.batch))
            dist.recv(found[-1], last)
        times.append(place.now())
    for work, _ in sent:
        if work is not None:
            work.wait()
    figures: dict[str, Any] = timings(began, times, options.batch)
    if options.check:
        if last and place.rank == last:
            assert first is not None
            dist.send(first.contiguous(), 0)
        if place.rank == 0:
            if last:
                shape = (options.batch, place.config.vocab)
                first = torch.empty(shape, dtype=place.dtype, device=place.device)
                dist.recv(first, last)
            figures |= compared(place, torch.stack(found, dim=1), first)
    if place.rank == 0 and not options.no_sampling:
        figures["output"] = torch.stack(found, dim=1)[0].tolist()
    return figures


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs this rank; the figures are true on rank 0."""
    arguments = parser("sequence_parallel", __doc__)
    arguments.add_argument("--gather", choices=("kv", "hidden"), default="kv", help="(kv)")
    arguments.add_argument(
        "--send", choices=("all", "needed"), default="all", help="to which devices (all)"
    )
    arguments.add_argument(
        "--shares", type=integers, metavar="N,N,...", help="of the positions (equal)"
    )
    options = arguments.parse_args(argv)
    with joined(options) as place:
        runs = positions_of(options.prompt, place.size, options.shares)
        model = build(place.config, seed=options.seed, device=place.device, dtype=place.dtype)
        figures = generate(model, place, Exchange(runs, options.send == "needed"))
        name = f"sequence_parallel/{options.gather}"
        return report(place, name, {"positions": [len(run) for run in runs], **figures})


if __name__ == "__main__":
    main()
