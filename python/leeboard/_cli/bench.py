"""`leeboard draft bench`: a chain step in every weight format, beside PyTorch's."""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import leeboard
from leeboard import reference
from leeboard._cli.heads import HEADS
from leeboard._cli.plain_drafter import PlainStep
from leeboard._cli.tables import progress_bar, table
from leeboard.draft import DrafterConfig, Eagle3Drafter, load_drafter, quantize
from leeboard.ops import DrafterWeights, draft_chain

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_ROUNDS, _QUICK_ROUNDS = 20, 3
_WARM_UPS = 2
# A step rounds about ten times, by half an epsilon at most each: a token that is this many epsilons
# of the logits' spread below the best one is another token, not another rounding.
_ROUNDINGS = 10.0


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to draft: called with nothing, it returns the tokens [B, steps]."""

    name: str
    weights: DrafterWeights
    dtype: torch.dtype
    nbytes: int
    call: Callable[[], Tensor]


@torch.no_grad()
def bench(args: argparse.Namespace) -> None:
    """Measure as the parsed options say, and print the table.

    Raises:
        ValueError: The head is unknown or too short for context and steps, or a way's tokens are
            not the reference's.
    """
    with _threads(args.threads):
        figures = _measure(args)
    print(_report(figures))
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    rows = args.context + args.steps
    base = next((name for name in args.formats if name in _DTYPES), "bfloat16")
    drafter = _head(args.config, _DTYPES[base])
    config = drafter.config
    limit = config.max_position_embeddings
    if rows > limit:
        raise ValueError(
            f"--context: {args.context} + {args.steps} steps, expected at most {limit}"
        )
    print(
        f"{args.config}: hidden {config.hidden_size}, feed-forward {config.intermediate_size}, "
        f"{config.num_attention_heads}/{config.num_key_value_heads} heads of {config.head_dim}, "
        f"draft vocabulary {config.draft_vocab_size}; context {args.context}, {args.steps} steps, "
        f"batch {args.batch}, {torch.get_num_threads()} threads"
    )
    generator = torch.Generator().manual_seed(1)
    shape = (args.batch, config.num_key_value_heads, rows, config.head_dim)
    given = (
        torch.randn(args.batch, config.hidden_size, generator=generator),
        torch.randint(config.vocab_size, (args.batch,), generator=generator),
        torch.randn(shape, generator=generator),
        torch.randn(shape, generator=generator),
    )
    ways = [_fused(drafter, name, given, args) for name in args.formats]
    ways.append(_plain(drafter, base, given, args, compiled=False))
    problems = {}
    if not args.no_compile:
        try:
            way = _plain(drafter, base, given, args, compiled=True)
            way.call()
            ways.append(way)
        except (ImportError, OSError, RuntimeError) as error:
            # A peer that this machine cannot build is no reason to keep the other figures back.
            problems["compile"] = f"{type(error).__name__}: {error}".splitlines()[0]
    for way in ways:
        _check(way, given, args)
    repeats = _QUICK_ROUNDS if args.quick else _ROUNDS
    seconds = _timed(ways, repeats)
    bandwidth = _read_bandwidth(max(way.nbytes for way in ways), repeats)
    eager = statistics.median(seconds[f"eager {base}"])
    return {
        "config": args.config,
        "fields": config.to_dict(),
        "context": args.context,
        "steps": args.steps,
        "batch": args.batch,
        "threads": torch.get_num_threads(),
        "versions": {"leeboard": leeboard.__version__, "torch": torch.__version__},
        "read_bandwidth": bandwidth,
        "problems": problems,
        "ways": [
            {
                "name": way.name,
                "seconds_per_step": statistics.median(seconds[way.name]) / args.steps,
                "seconds_per_chain": seconds[way.name],
                "weight_bytes": way.nbytes,
                "bytes_per_second": way.nbytes * args.steps / statistics.median(seconds[way.name]),
                "share_of_read_bandwidth": way.nbytes
                * args.steps
                / statistics.median(seconds[way.name])
                / bandwidth,
                "speedup_over_eager": eager / statistics.median(seconds[way.name]),
            }
            for way in ways
        ],
    }


def _head(name: str, dtype: torch.dtype) -> Eagle3Drafter:
    """A checkpoint's drafter, or one with random weights of a scale that keeps states level."""
    if name not in HEADS:
        if Path(name).is_dir():
            drafter = load_drafter(name, dtype=dtype)
            if isinstance(drafter, Eagle3Drafter):
                return drafter
            raise ValueError(f"--config: {name} holds MTP heads, expected an EAGLE-3 drafter")
        raise ValueError(f"--config: got {name!r}, expected a folder or one of {', '.join(HEADS)}")
    with torch.device("meta"):
        drafter = Eagle3Drafter(DrafterConfig(**HEADS[name])).to(dtype)
    # Only a chain is run: the projection of the target's states keeps no memory.
    drafter.fc = torch.nn.Identity()
    drafter = drafter.to_empty(device="cpu").requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in drafter.parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0)
        else:
            bound = (3.0 / parameter.shape[1]) ** 0.5
            parameter.uniform_(-bound, bound, generator=generator)
    drafter.set_draft_vocabulary(torch.arange(drafter.config.draft_vocab_size))
    return drafter


def _fused(
    drafter: Eagle3Drafter, name: str, given: Sequence[Tensor], args: argparse.Namespace
) -> Way:
    """leeboard's chain with weights of a format."""
    rows = args.context + args.steps
    if name in _DTYPES:
        same = drafter.dtype == _DTYPES[name]
        chosen = drafter if same else _cast(drafter, _DTYPES[name])
    else:
        chosen = quantize(drafter, name)  # type: ignore[arg-type]
    weights = chosen.weights(rows)
    dtype = chosen.dtype
    state, token, keys, values = (
        given[0].to(dtype),
        given[1],
        given[2].to(dtype),
        given[3].to(dtype),
    )
    lengths = torch.full((args.batch,), args.context)

    def call() -> Tensor:
        return draft_chain(weights, state, token, keys, values, lengths, args.steps).tokens

    return Way(f"leeboard {name}", weights, dtype, chosen.step_nbytes(), call)


def _cast(drafter: Eagle3Drafter, dtype: torch.dtype) -> Eagle3Drafter:
    with torch.device("meta"):
        other = Eagle3Drafter(drafter.config)
    other.fc = torch.nn.Identity()
    state = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in drafter.state_dict().items()
        if not name.startswith("fc.")
    }
    other.load_state_dict(state, assign=True)
    return other.requires_grad_(False).eval()


def _plain(
    drafter: Eagle3Drafter,
    name: str,
    given: Sequence[Tensor],
    args: argparse.Namespace,
    *,
    compiled: bool,
) -> Way:
    """PyTorch's own chain, step by step."""
    weights = drafter.weights(args.context + args.steps)
    dtype = drafter.dtype
    keys, values = given[2].to(dtype, copy=True), given[3].to(dtype, copy=True)
    plain = PlainStep(weights, keys, values, args.context, open_ended=not compiled)
    step = torch.compile(plain.__call__, dynamic=False, fullgraph=True) if compiled else plain
    start = given[0].to(dtype)[:, None]
    inputs = [plain.inputs(j) for j in range(args.steps)]

    def call() -> Tensor:
        state, token, drafted = start, given[1], []
        for row, mask in inputs:
            token, state = step(state, token, row, mask)
            drafted.append(token)
        return torch.stack(drafted, dim=1)

    kind = "compile" if compiled else "eager"
    return Way(f"{kind} {name}", weights, dtype, drafter.step_nbytes(), call)


def _check(way: Way, given: Sequence[Tensor], args: argparse.Namespace) -> None:
    """Raise ValueError unless every token is (nearly) the reference's choice after those before."""
    tokens = way.call()
    w, dtype = way.weights, way.dtype
    token, state = given[1], given[0].to(dtype).float()[:, None]
    keys, values = (cache.to(dtype).float() for cache in given[2:])
    lengths = torch.full((args.batch,), args.context)
    for j in range(args.steps):
        joined, _ = reference.drafter_glue(
            state,
            token[:, None],
            w.embedding,
            w.norm,
            w.hidden_norm,
            w.input_norm,
            w.eps,
            norm_output=False,
        )
        q, k, v = (
            reference.qlinear(joined, m).view(args.batch, 1, -1, w.head_dim).transpose(1, 2)
            for m in (w.q, w.k, w.v)
        )
        attended = reference.decode_attention_(
            q, k, v, keys, values, lengths, cos=w.cos, sin=w.sin, window=w.window, sinks=w.sinks
        )
        residual = joined[..., w.hidden_size :] if w.norm_before_residual else state
        r = reference.qlinear(attended.transpose(1, 2).flatten(2), w.o, residual=residual)
        x = reference.swiglu_linear(
            r, w.gate, w.up, w.down, norm_weight=w.post_norm, eps=w.eps, residual=r
        )
        hidden = reference.rms_norm(x, w.norm.float(), w.eps)
        logits = reference.qlinear(hidden[:, 0], w.head)
        token, state = tokens[:, j], hidden if w.norm_output else x
        lengths = lengths + 1
        draft = token
        if w.d2t is not None:
            ids = torch.arange(logits.shape[1]) + w.d2t
            draft = torch.searchsorted(ids, token.contiguous()).clamp(max=logits.shape[1] - 1)
            if not torch.equal(ids[draft], token):
                raise ValueError(f"{way.name}: step {j + 1} drafts a token that the head has not")
        behind = logits.max(-1).values - logits.gather(1, draft[:, None])[:, 0]
        allowed = _ROUNDINGS * torch.finfo(dtype).eps * (j + 1) * logits.std(-1)
        if bool((behind > allowed).any()):
            raise ValueError(
                f"{way.name}: at step {j + 1} its token is {float(behind.max()):.3g} below the "
                f"reference's best logit, expected at most {float(allowed.min()):.3g}; its time is "
                "not reported"
            )


def _timed(ways: Sequence[Way], repeats: int) -> dict[str, list[float]]:
    """Seconds of every call; the ways take turns, so that a slow moment falls on all of them."""
    seconds: dict[str, list[float]] = {way.name: [] for way in ways}
    with progress_bar("chains", repeats + _WARM_UPS) as advance:
        for turn in range(-_WARM_UPS, repeats):
            for way in ways:
                began = time.perf_counter()
                way.call()
                if turn >= 0:
                    seconds[way.name].append(time.perf_counter() - began)
            advance(1)
    return seconds


def _read_bandwidth(nbytes: int, repeats: int) -> float:
    """Bytes per second of reading as much as the weights, by the fastest of three reductions."""
    # Filled, since untouched pages would all be one page of zeros.
    buffer = torch.full((max(nbytes, 1 << 20) // 4,), 0.5)
    ways: tuple[Callable[[], Any], ...] = (
        buffer.sum,
        buffer.amax,
        lambda: torch.dot(buffer, buffer),
    )
    medians = []
    for read in ways:
        taken = []
        for turn in range(-_WARM_UPS, repeats):
            began = time.perf_counter()
            read()
            if turn >= 0:
                taken.append(time.perf_counter() - began)
        medians.append(statistics.median(taken))
    return buffer.nbytes / min(medians)


def _report(figures: dict[str, Any]) -> str:
    rows = [
        (
            way["name"],
            f"{way['seconds_per_step'] * 1e3:.2f}",
            f"{way['weight_bytes'] / 1e6:.1f}",
            f"{way['bytes_per_second'] / 1e9:.1f}",
            f"{way['share_of_read_bandwidth']:.0%}",
            f"{way['speedup_over_eager']:.2f}x",
        )
        for way in figures["ways"]
    ]
    names = ("", "ms per step", "MB of weights", "GB/s", "of read limit", "over eager")
    bandwidth = f"{figures['read_bandwidth'] / 1e9:.1f} GB/s"
    lines = [
        table(names, rows),
        "",
        f"Medians. Read limit: {bandwidth}, reductions over as many bytes with all threads",
        "(weights that fit the processor's cache may beat it).",
    ]
    lines += [f"Not measured: {name} ({why})" for name, why in figures["problems"].items()]
    return "\n".join(lines)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
