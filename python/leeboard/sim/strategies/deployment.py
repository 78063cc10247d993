"""What the programs share: their options, joining the other devices, the figures at the end."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import json
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from leeboard.sim.strategies.llama import SIZES, Cache, Config, config_of
from leeboard.sim.strategies.weights import build, tokens

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parser(program: str, text: str | None) -> argparse.ArgumentParser:
    """Options that every program has; `text`, a docstring, is the help."""
    made = argparse.ArgumentParser(
        prog=f"python -m leeboard.sim.strategies.{program}",
        description=inspect.cleandoc(text or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--model", choices=sorted(SIZES), default="tiny", help="sizes of the model")
    made.add_argument("--layers", type=int, help="another number of layers than the model has")
    made.add_argument("--batch", type=int, default=1, help="sequences at once (1)")
    made.add_argument("--prompt", type=int, default=16, help="tokens of each prompt (16)")
    made.add_argument("--tokens", type=int, default=8, help="tokens to generate for each (8)")
    made.add_argument("--seed", type=int, default=0, help="of weights, prompts and all else (0)")
    made.add_argument("--dtype", choices=sorted(DTYPES), default="float32", help="(float32)")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(cpu)")
    made.add_argument(
        "--check",
        action="store_true",
        help="compare with the undivided model, which rank 0 then runs too; exit 1 if they differ",
    )
    made.add_argument(
        "--no-sampling",
        action="store_true",
        help="never look at a token's value: for fake tensors, which have none",
    )
    return made


def integers(text: str) -> list[int]:
    """`3,1` as [3, 1]."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected numbers such as 3,1") from None


@dataclasses.dataclass(frozen=True)
class Place:
    """Where this process is, and what it was asked to run."""

    rank: int
    size: int
    device: torch.device
    dtype: torch.dtype
    config: Config
    options: argparse.Namespace

    def now(self) -> float:
        """Seconds; virtual ones on a simulated device. What was queued on a GPU is over."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def prompts(self) -> Tensor:
        """The same on every rank. [batch, prompt], int64"""
        options = self.options
        return tokens(self.config, options.batch, options.prompt, options.seed, self.device)


def check_options(options: argparse.Namespace) -> Config:
    """The model asked for.

    Raises:
        SystemExit: a count that is not positive, a size that does not exist, or --check of tokens
            that are not to be looked at.
    """
    for name in ("batch", "prompt", "tokens"):
        if getattr(options, name) < 1:
            raise SystemExit(f"--{name}: got {getattr(options, name)}; expected at least 1")
    if options.check and options.no_sampling:
        raise SystemExit("--check compares tokens, and --no-sampling never looks at them: drop one")
    try:
        return config_of(options.model, options.layers)
    except ValueError as error:
        raise SystemExit(f"--{error}") from None


@contextlib.contextmanager
def joined(options: argparse.Namespace) -> Iterator[Place]:
    """Joins the other ranks, and leaves them at the end.

    Raises:
        SystemExit: options that do not fit, or nobody said which rank this is.
    """
    config = check_options(options)
    if "RANK" not in os.environ and not dist.is_initialized():
        raise SystemExit(
            "which rank is this? Start the program with 'torchrun --nproc-per-node N -m ...' or "
            "'leeboard sim run --platform FILE -m ...'"
        )
    device = torch.device("cpu")
    if options.device == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    joins = not dist.is_initialized()
    if joins:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        with torch.no_grad():
            yield Place(
                dist.get_rank(),
                dist.get_world_size(),
                device,
                DTYPES[options.dtype],
                config,
                options,
            )
    finally:
        if joins:
            dist.destroy_process_group()


def greedy(place: Place, prompts: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """What the undivided model generates on this process alone: `count` tokens after each prompt.

    Returns:
        Tokens [batch, count] and the first token's logits [batch, vocab].
    """
    seed = place.options.seed
    model = build(place.config, seed=seed, device=place.device, dtype=place.dtype)
    cache = Cache(prompts.shape[1] + count)
    logits = model(prompts, cache)[:, -1]
    first, found = logits, [logits.argmax(-1)]
    for _ in range(count - 1):
        found.append(model(found[-1][:, None], cache)[:, -1].argmax(-1))
    return torch.stack(found, dim=1), first


# Logits of the undivided model may differ by the order of additions, over as many terms as the
# widest sum has: this share of the largest logit.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}


def compared(place: Place, found: Tensor, logits: Tensor | None) -> dict[str, Any]:
    """Tokens, and logits if given, against the undivided model. For rank 0.

    Raises:
        SystemExit: they differ.
    """
    tokens_expected, logits_expected = greedy(place, place.prompts(), place.options.tokens)
    error = 0.0
    if logits is not None:
        gap = (logits.float() - logits_expected.float()).abs().max()
        error = (gap / logits_expected.float().abs().max()).item()
    same = torch.equal(found, tokens_expected)
    if not same or error > TOLERANCE[place.dtype]:
        raise SystemExit(
            f"check failed: the undivided model gives {tokens_expected.tolist()}, this one "
            f"{found.tolist()}; logits are off by {error:.2g} of the largest"
        )
    return {"tokens_equal": same, "logits_error": error}


def timings(began: float, times: Sequence[float], rows: int) -> dict[str, float]:
    """Figures of `rows` sequences generated at once; `times`: when each token was there."""
    total = times[-1] - began
    steps = len(times) - 1
    return {
        "time_to_first_token": times[0] - began,
        "time_per_output_token": (times[-1] - times[0]) / steps if steps else 0.0,
        "total": total,
        "tokens_per_second": rows * len(times) / total if total > 0 else 0.0,
    }


def report(place: Place, strategy: str, figures: dict[str, Any]) -> dict[str, Any]:
    """Rank 0 prints the figures as a line of JSON. Seconds throughout."""
    options = place.options
    line = {
        "strategy": strategy,
        "ranks": place.size,
        "model": place.config.name,
        "layers": place.config.layers,
        "batch": options.batch,
        "prompt": options.prompt,
        "tokens": options.tokens,
        **figures,
    }
    if place.rank == 0:
        print(json.dumps(line), flush=True)
    return line
