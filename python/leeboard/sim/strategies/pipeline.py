"""A model cut into stages: micro-batches travel from device to device, tokens come back.

Shapes of all messages are known beforehand and no token's value decides what happens next, so that
fake tensors do as well as real ones.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from leeboard.sim.strategies.deployment import Place
from leeboard.sim.strategies.llama import Cache, Llama
from leeboard.sim.strategies.tensor_parallel import gathered, pick

SCHEDULES = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}


def stage_layers(layers: int, stages: int, index: int, split: list[int] | None = None) -> range:
    """Numbers of the layers of a stage: equally many each, the first ones more, or as `split` says.

    Raises:
        SystemExit: more stages than layers, or a split of other lengths.
    """
    if split is None:
        split = [layers // stages + (number < layers % stages) for number in range(stages)]
    if len(split) != stages or sum(split) != layers or min(split) < 1:
        raise SystemExit(
            f"--split: got {split}: {sum(split)} layers in {len(split)} stages; expected "
            f"{layers} layers in {stages} stages, at least one in each"
        )
    start = sum(split[:index])
    return range(start, start + split[index])


def micro_batches(batch: int, stages: int, asked: int | None) -> int:
    """How many parts a batch is cut into: `asked`, or as many as keep all stages busy.

    Raises:
        SystemExit: the batch does not divide by `asked`.
    """
    if asked is None:
        return max(count for count in range(1, min(stages, batch) + 1) if batch % count == 0)
    if asked < 1 or batch % asked:
        raise SystemExit(f"--micro-batches: got {asked}; expected a divisor of --batch {batch}")
    return asked


class _Turns(nn.Module):
    """A stage for torch's schedules, which run its micro-batches in their order."""

    def __init__(self, model: Llama, caches: list[Cache]) -> None:
        super().__init__()
        self.model = model
        self._caches = iter(caches)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.model(x, next(self._caches))
        return result


@dataclasses.dataclass
class Generated:
    """What came of it. Tokens and times on the first stage, logits on the last."""

    began: float
    times: list[float]
    tokens: Tensor | None  # [batch, tokens]
    logits: Tensor | None  # [batch, V]: of the first token


class Pipeline:
    """One stage.

    Args:
        place: Where this process is.
        model: The layers of this stage.
        group: The stages in their order.
        shares: The devices that share this stage's layers by tensor parallelism, if any do.
        parts: Micro-batches.
    """

    def __init__(
        self,
        place: Place,
        model: Llama,
        group: dist.ProcessGroup | None,
        shares: dist.ProcessGroup | None,
        parts: int,
    ) -> None:
        self.place = place
        self.model = model
        self.group = group
        self.shares = shares
        self.parts = parts
        self.stage = dist.get_rank(group)
        self.stages = dist.get_world_size(group)
        self.rows = place.options.batch // parts
        self._sent: collections.deque[tuple[dist.Work, Tensor]] = collections.deque()

    def rank_of(self, stage: int) -> int:
        """The rank in the world of a stage."""
        if self.group is None:
            return stage
        return dist.get_global_rank(self.group, stage)

    def send(self, tensor: Tensor, stage: int) -> None:
        """Gives a tensor to a stage and goes on: a stage that waited for the next one to take it
        could wait for itself, around the circle."""
        tensor = tensor.contiguous()
        work = dist.isend(tensor, self.rank_of(stage), group=self.group)
        assert work is not None
        self._sent.append((work, tensor))
        if len(self._sent) > 4 * self.parts:
            self._sent.popleft()[0].wait()

    def receive(self, shape: tuple[int, ...], dtype: torch.dtype, stage: int) -> Tensor:
        """Waits for a tensor of a stage."""
        tensor = torch.empty(shape, dtype=dtype, device=self.place.device)
        dist.recv(tensor, self.rank_of(stage), group=self.group)
        return tensor

    def settle(self) -> None:
        """Waits until everything that was sent has gone."""
        while self._sent:
            self._sent.popleft()[0].wait()

    def forward(self, tokens: Tensor | None, count: int, cache: Cache) -> Tensor | None:
        """One micro-batch through this stage: `tokens` [rows, count] on the first.

        Returns:
            The last stage's logits, [rows, V].
        """
        x = tokens
        if x is None:
            shape = (self.rows, count, self.place.config.width)
            x = self.receive(shape, self.place.dtype, self.stage - 1)
        y: Tensor = self.model(x, cache)
        if self.model.last:
            return y[:, -1]
        self.send(y, self.stage + 1)
        return None

    def returned(self, logits: Tensor | None) -> Tensor | None:
        """The last stage picks tokens, [rows], and tells the first."""
        if logits is None:
            return None
        tokens = pick(logits, self.shares) if self.shares else logits.argmax(-1)
        if self.stages > 1:
            self.send(tokens, 0)
        return tokens

    def scheduled(self, prompts: Tensor, caches: list[Cache], name: str) -> list[Tensor | None]:
        """Prefill by one of torch's schedules: logits of each micro-batch on the last stage."""
        count = prompts.shape[1]
        with torch.device("meta"):
            tokens = torch.empty(self.rows, count, dtype=torch.int64)
            hidden = torch.empty(self.rows, count, self.place.config.width, dtype=self.place.dtype)
            vocab = self.place.config.vocab // self.model.share.count
            logits = torch.empty(self.rows, 1, vocab, dtype=self.place.dtype)
        stage = PipelineStage(
            _Turns(self.model, caches),
            self.stage,
            self.stages,
            self.place.device,
            input_args=(tokens if self.model.first else hidden,),
            output_args=(logits if self.model.last else hidden,),
            group=self.group,
        )
        schedule = SCHEDULES[name](stage, n_microbatches=self.parts)
        merged = schedule.step(prompts) if self.model.first else schedule.step()
        if not self.model.last:
            return [None] * self.parts
        return [part[:, -1] for part in merged.chunk(self.parts)]

    def prefill(
        self, prompts: Tensor, caches: list[Cache], schedule: str | None
    ) -> Iterable[Tensor | None]:
        """Logits of each micro-batch after its prompt, on the last stage."""
        if schedule is not None:
            return self.scheduled(prompts, caches, schedule)
        chunks = prompts.chunk(self.parts) if self.model.first else [None] * self.parts
        count = prompts.shape[1]
        return (
            self.forward(chunk, count, cache) for chunk, cache in zip(chunks, caches, strict=True)
        )

    def generate(
        self, prompts: Tensor, schedule: str | None, ready: Callable[[], None]
    ) -> Generated:
        """Prefill and decode. Each micro-batch goes on when its own token is back.

        Args:
            prompts: [batch, prompt], the same on every stage.
            schedule: One of SCHEDULES for the prefill; None: sends and receives, as decoding does.
            ready: Called once before the time is taken: a barrier of all that take part.
        """
        options = self.place.options
        caches = [Cache(options.prompt + options.tokens) for _ in range(self.parts)]
        found: list[list[Tensor]] = [[] for _ in range(self.parts)]
        times: list[float] = []
        first: list[Tensor] = []

        def back(part: int) -> Tensor | None:
            """The tokens of a micro-batch that was sent off before, on the first stage."""
            if not self.model.first:
                return None
            if self.stages > 1:
                tokens = self.receive((self.rows,), torch.int64, self.stages - 1)
                found[part].append(tokens)
            if part == self.parts - 1:
                times.append(self.place.now())
            return found[part][-1][:, None]

        def keep(part: int, logits: Tensor | None) -> None:
            """Sends the tokens on; the one stage of a pipeline of one keeps them."""
            tokens = self.returned(logits)
            if tokens is not None and self.stages == 1:
                found[part].append(tokens)

        ready()
        began = self.place.now()
        for part, logits in enumerate(self.prefill(prompts, caches, schedule)):
            keep(part, logits)
            if logits is not None:
                first.append(logits)
        for _ in range(1, options.tokens):
            for part, cache in enumerate(caches):
                keep(part, self.forward(back(part), 1, cache))
        for part in range(self.parts):
            back(part)
        self.settle()
        tokens = None
        if self.model.first:
            tokens = torch.cat([torch.stack(part, dim=1) for part in found])
        return Generated(began, times, tokens, torch.cat(first) if first else None)

    def first_logits(self, generated: Generated) -> Tensor | None:
        """What --check compares, brought to the first stage, first share: [batch, vocab]."""
        logits = generated.logits
        if logits is not None and self.shares is not None:
            logits = gathered(logits, self.shares)
        if self.stages == 1:
            return logits
        shape = (self.place.options.batch, self.place.config.vocab)
        if self.model.last and logits is not None:
            self.send(logits, 0)
            self.settle()
        if self.model.first:
            return self.receive(shape, self.place.dtype, self.stages - 1)
        return None
