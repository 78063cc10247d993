"""Requests that arrive one by one, served by a pipeline in continuous batches.

A stage holds the keys and values of a few groups of rows. Each turn takes one group through all
stages: one new request reads its prompt, or every row of the group gets its next token (Yu et al.,
Orca, 2022). As many turns are under way as there are groups. The first rank decides, because only
it knows who has arrived; the others hear the decision with the work, and count along.
"""

from __future__ import annotations

import collections
import dataclasses
import random
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from leeboard.sim.strategies.llama import Cache
from leeboard.sim.strategies.pipeline import Pipeline
from leeboard.sim.strategies.tensor_parallel import pick
from leeboard.sim.strategies.weights import tokens

DECODE, STOP = -1, -2


@dataclasses.dataclass
class Request:
    """A prompt of `prompt` tokens, there `arrival` seconds after the start, for `wanted` tokens."""

    number: int
    arrival: float
    prompt: int
    wanted: int
    produced: int = 0
    answer: list[Tensor] = dataclasses.field(default_factory=list)
    times: list[float] = dataclasses.field(default_factory=list)


def poisson(
    count: int, rate: float, prompt: int, wanted: int, spread: float, seed: int
) -> list[Request]:
    """Requests by a Poisson process of `rate` a second; the same on every rank.

    Lengths are uniform within `spread`, a share, of `prompt` and `wanted`; at least 1.
    """
    draws = random.Random(seed)
    found, at = [], 0.0
    for number in range(count):
        at += draws.expovariate(rate)
        sizes = [
            max(1, round(size * draws.uniform(1 - spread, 1 + spread))) for size in (prompt, wanted)
        ]
        found.append(Request(number, at, sizes[0], sizes[1]))
    return found


class Slots(Cache):
    """Keys and values of rows of different lengths: rows 0 to N - 1 are in use.

    Args:
        rows: Most rows.
        capacity: Most positions of a row.
    """

    def __init__(self, rows: int, capacity: int) -> None:
        super().__init__(capacity)
        self.rows = rows
        self.lengths: list[int] = []
        self.reads = False

    def start(self) -> None:
        """What comes next is the prompt of a new row."""
        self.reads = True
        self.lengths.append(0)

    def positions(self, count: int, device: torch.device) -> Tensor:
        """Of a prompt [T], or of the next token of each row [N, 1]."""
        if self.reads:
            return torch.arange(count, device=device)
        return torch.tensor(self.lengths, device=device)[:, None]

    def extend(
        self, layer: int, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Of the new row, which sees itself only, or of the next token of each row."""
        if layer not in self._layers:
            shape = (self.rows, keys.shape[1], self.capacity, keys.shape[3])
            # Zeros: what lies beyond the end of a row is masked, and must be finite.
            self._layers[layer] = keys.new_zeros(shape), values.new_zeros(shape)
        kept_keys, kept_values = self._layers[layer]
        used = len(self.lengths)
        if self.reads:
            kept_keys[used - 1, :, : keys.shape[2]] = keys[0]
            kept_values[used - 1, :, : keys.shape[2]] = values[0]
            return keys, values, None
        rows = torch.arange(used, device=keys.device)
        ends = torch.tensor(self.lengths, device=keys.device)
        kept_keys[rows, :, ends] = keys[:, :, 0]
        kept_values[rows, :, ends] = values[:, :, 0]
        longest = max(self.lengths) + 1
        mask = torch.arange(longest, device=keys.device) <= ends[:, None]
        return kept_keys[:used, :, :longest], kept_values[:used, :, :longest], mask[:, None, None]

    def advance(self, count: int) -> None:
        """After the last layer."""
        if self.reads:
            self.lengths[-1] = count
            self.reads = False
        else:
            self.lengths = [length + 1 for length in self.lengths]

    def drop(self, row: int) -> None:
        """A row is over; the last one takes its place."""
        last = len(self.lengths) - 1
        if row != last:
            end = self.lengths[last]
            for kept in self._layers.values():
                for part in kept:
                    part[row, :, :end] = part[last, :, :end]
            self.lengths[row] = end
        self.lengths.pop()


class Serving:
    """One rank of a pipeline that serves.

    Args:
        pipeline: Its stage; `parts` is the number of groups.
        requests: All of them, in the order of their arrival.
        rows: Most rows of a group.
    """

    def __init__(self, pipeline: Pipeline, requests: Sequence[Request], rows: int) -> None:
        self.pipeline = pipeline
        self.place = pipeline.place
        self.requests = {request.number: request for request in requests}
        self.waiting = collections.deque(requests)
        self.rows = rows
        capacity = max((each.prompt + each.wanted for each in requests), default=1)
        self.caches = [Slots(rows, capacity) for _ in range(pipeline.parts)]
        self.groups: list[list[Request]] = [[] for _ in range(pipeline.parts)]
        # On the first stage: groups whose tokens are not back, in the order in which they come.
        self.away: collections.deque[tuple[int, list[Request]]] = collections.deque()
        self.turns = 0
        self.began = 0.0

    @property
    def leads(self) -> bool:
        """Whether this rank decides."""
        shares = self.pipeline.shares
        return self.pipeline.stage == 0 and (shares is None or dist.get_rank(shares) == 0)

    def prompt_of(self, request: Request) -> Tensor:
        """Its tokens. [1, prompt]"""
        seed = self.place.options.seed + 1 + request.number
        return tokens(self.place.config, 1, request.prompt, seed, self.place.device)

    def choose(self) -> tuple[int, int] | None:
        """The next turn: a group, and the request that joins it or DECODE. None: nothing to do.

        New requests come first, into the emptiest group.
        """
        away = {group for group, _ in self.away}
        here = [number for number in range(len(self.groups)) if number not in away]
        if not here:
            return None
        emptiest = min(here, key=lambda number: len(self.groups[number]))
        arrived = self.waiting and self.waiting[0].arrival <= self.place.now() - self.began
        if arrived and len(self.groups[emptiest]) < self.rows:
            return emptiest, self.waiting.popleft().number
        count = len(self.groups)
        for number in sorted(here, key=lambda number: (number - self.turns) % count):
            if self.groups[number]:
                return number, DECODE
        return None

    def shared(self, turn: tuple[int, int] | None) -> tuple[int, int]:
        """The leader's decision, on every rank."""
        pipeline = self.pipeline
        plan = torch.zeros(2, dtype=torch.int64, device=self.place.device)
        if turn is not None:
            plan = torch.tensor(turn, device=self.place.device)
        if pipeline.stage:
            plan = pipeline.receive((2,), torch.int64, pipeline.stage - 1)
        elif pipeline.shares is not None:
            dist.broadcast(plan, dist.get_global_rank(pipeline.shares, 0), group=pipeline.shares)
        if pipeline.stage + 1 < pipeline.stages:
            pipeline.send(plan, pipeline.stage + 1)
        group, what = plan.tolist()
        return group, what

    def back(self) -> None:
        """Waits for the tokens of the turn that has been away longest."""
        _, rows = self.away.popleft()
        pipeline = self.pipeline
        self.told(rows, pipeline.receive((len(rows),), torch.int64, pipeline.stages - 1))

    def told(self, rows: list[Request], found: Tensor) -> None:
        """Each row has a token more."""
        now = self.place.now()
        for request, token in zip(rows, found.unbind(), strict=True):
            request.answer.append(token)
            request.times.append(now)

    def take(self, group: int, what: int) -> None:
        """This stage's part of a turn."""
        pipeline, cache, rows = self.pipeline, self.caches[group], self.groups[group]
        while any(number == group for number, _ in self.away):
            self.back()
        count = 1
        if what != DECODE:
            rows.append(self.requests[what])
            count = rows[-1].prompt
            cache.start()
        served = list(rows) if what == DECODE else rows[-1:]
        if not pipeline.model.first:
            shape = (len(served), count, self.place.config.width)
            x = pipeline.receive(shape, self.place.dtype, pipeline.stage - 1)
        elif what == DECODE:
            x = torch.stack([request.answer[-1] for request in served])[:, None]
        else:
            x = self.prompt_of(served[0])
        y: Tensor = pipeline.model(x, cache)
        found = None
        if pipeline.model.last:
            logits = y[:, -1]
            found = pick(logits, pipeline.shares) if pipeline.shares else logits.argmax(-1)
            if pipeline.stages > 1:
                pipeline.send(found, 0)
        else:
            pipeline.send(y, pipeline.stage + 1)
        if pipeline.model.first:
            if found is not None:
                self.told(served, found)
            else:
                self.away.append((group, served))
        self.turns += 1
        for request in served:
            request.produced += 1
        for row in reversed(range(len(rows))):
            if rows[row].produced == rows[row].wanted:
                cache.drop(row)
                rows[row] = rows[-1]
                rows.pop()

    def run(self) -> None:
        """Until every request has its answer."""
        dist.barrier()
        self.began = self.place.now()
        while True:
            turn = None
            if self.leads:
                turn = self.choose()
                if turn is None and self.away:
                    self.back()
                    continue
                if turn is None and self.waiting:
                    due = self.began + self.waiting[0].arrival
                    # At least a microsecond: a rounded clock may stand just before the arrival.
                    time.sleep(max(1e-6, due - self.place.now()))
                    continue
                turn = turn or (0, STOP)
            group, what = self.shared(turn)
            if what == STOP:
                break
            self.take(group, what)
        while self.away:
            self.back()
        self.pipeline.settle()

    def served(self) -> list[tuple[float, float, float, int]]:
        """Of each request: arrival, first token, last token, tokens. On the first stage."""
        return [
            (each.arrival, each.times[0] - self.began, each.times[-1] - self.began, each.wanted)
            for each in self.requests.values()
        ]


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """P50, P90 and P99."""
    found = np.percentile(np.asarray(values), (50, 90, 99))
    return dict(zip(("p50", "p90", "p99"), found.tolist(), strict=True))


def figures_of(served: Sequence[tuple[float, float, float, int]]) -> dict[str, Any]:
    """Seconds from the arrival to the first and the last token, and between tokens."""
    spans = [(last - first) / (count - 1) for _, first, last, count in served if count > 1]
    end = max(last for _, _, last, _ in served)
    return {
        "requests": len(served),
        "time_to_first_token": percentiles([first - at for at, first, _, _ in served]),
        "time_per_output_token": percentiles(spans or [0.0]),
        "end_to_end": percentiles([last - at for at, _, last, _ in served]),
        "total": end,
        "tokens_per_second": sum(count for *_, count in served) / end,
        "requests_per_second": len(served) / end,
    }
