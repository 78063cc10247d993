"""What users of PyTorch have for attention under a pattern: the rivals of sparse_gqa.

A pattern is given to them as they want it: as flags, as a boolean mask, as a block mask, or as
the code of an Informer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from bench.cases import NotOfferedError, Prepared
from leeboard.ops.patterns import Band, Causal, Dense, Modality, Pattern, TopU

# FlexAttention gets the fastest of these for each case: which it is depends on length and dtype, by
# a factor of up to four. 128 is its default.
FLEX_BLOCKS = (16, 32, 64, 128)
Visible = Callable[[Tensor, Tensor], Tensor]


def visible(pattern: Pattern, device: torch.device) -> Visible:
    """Whether query i sees key j, written as a user would; i and j are broadcast."""
    if isinstance(pattern, Causal):
        return lambda i, j: i >= j
    if isinstance(pattern, Band) and not pattern.sinks:
        window = pattern.window
        if pattern.causal:
            return lambda i, j: (i >= j) & (i - j < window)
        return lambda i, j: (i - j).abs() < window
    if isinstance(pattern, Modality) and pattern.window is not None:
        near, lengths = pattern.window, [stop - start for start, stop in pattern.modalities]
        modality = torch.repeat_interleave(torch.tensor(lengths)).to(device)
        summary = torch.zeros(sum(lengths), dtype=torch.bool, device=device)
        for start, stop in pattern.modalities:
            summary[start : min(start + pattern.summary, stop)] = True
        return lambda i, j: (
            ((modality[i] == modality[j]) & ((i - j).abs() < near)) | summary[i] | summary[j]
        )
    raise ValueError(f"pattern: no rival's mask is written for {pattern}")


def _mask_and_flags(
    q: Tensor, pattern: Pattern, key_padding: Tensor | None = None
) -> dict[str, Any]:
    """What SDPA is told of a pattern; nothing of TopU, which it cannot do."""
    told: dict[str, Any] = {"enable_gqa": True, "is_causal": isinstance(pattern, Causal)}
    if key_padding is not None:
        told["attn_mask"] = ~key_padding[:, None, None, :]
    elif not isinstance(pattern, (Dense, Causal, TopU)):
        at = torch.arange(q.shape[2], device=q.device)
        told["attn_mask"] = visible(pattern, q.device)(at[:, None], at[None, :])
    return told


def attend(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, *, key_padding: Tensor | None = None
) -> Tensor:
    """The idiom: SDPA and the mask that it needs, or the eager ProbSparse attention."""
    if isinstance(pattern, TopU):
        return prob_sparse(q, k, v, pattern.factor, pattern.seed)
    return F.scaled_dot_product_attention(q, k, v, **_mask_and_flags(q, pattern, key_padding))


def sdpa(prepared: Prepared) -> Callable[..., Tensor]:
    """SDPA whose mask is ready; dense where the pattern is TopU."""
    q, _, _, pattern = prepared.inputs.args
    told = _mask_and_flags(q, pattern, prepared.inputs.kwargs.get("key_padding"))

    def run(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, **told)

    return run


def _block_mask(pattern: Pattern, q: Tensor, block: int) -> BlockMask:
    see = visible(pattern, q.device)
    length = q.shape[2]

    def mask_mod(_b: Tensor, _h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return see(i, j)

    return create_block_mask(
        mask_mod, None, None, length, length, device=q.device.type, BLOCK_SIZE=block
    )


def flex(prepared: Prepared) -> Callable[..., Tensor]:
    """FlexAttention with a block mask, compiled for the case and the number of threads."""
    q, k, v, pattern = prepared.inputs.args
    masks: list[BlockMask | None] = [None]
    if not isinstance(pattern, Dense):
        sizes = FLEX_BLOCKS if q.device.type == "cpu" else FLEX_BLOCKS[-1:]
        masks = [_block_mask(pattern, q, block) for block in sizes]
    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, fullgraph=True, dynamic=False)

    def run_of(mask: BlockMask | None) -> Callable[..., Tensor]:
        def run(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
            out: Tensor = compiled(q, k, v, block_mask=mask, enable_gqa=True)
            return out

        return run

    def seconds(run: Callable[..., Tensor]) -> float:
        times = []
        for _ in range(6):
            start = time.perf_counter()
            run(q, k, v)
            times.append(time.perf_counter() - start)
        # The first one compiles.
        return min(times[1:])

    runs = [run_of(mask) for mask in masks]
    try:
        return min(runs, key=seconds)
    except (torch._dynamo.exc.TorchDynamoException, NotImplementedError) as error:
        raise NotOfferedError(f"FlexAttention: {str(error).splitlines()[0]}") from error


def prob_sparse(q: Tensor, k: Tensor, v: Tensor, factor: int, seed: int) -> Tensor:
    """ProbSparse attention in eager PyTorch, as Informer's encoder has it.

    Every query samples keys of its own; the queries whose sampled scores are the most peaked attend
    to all keys, and the others get the mean of the values (Zhou et al., arXiv:2012.07436, Algorithm
    1). Heads that share keys and values have them repeated.

    Args:
        q: [B, Hq, L, D].
        k: [B, Hkv, L, D].
        v: [B, Hkv, L, D].
        factor: Sampled keys, and queries that attend, are `factor * ceil(ln L)` each.
        seed: Of the sample.
    """
    batch, heads, length, width = q.shape
    k, v = (t.repeat_interleave(heads // t.shape[1], 1) for t in (k, v))
    count = min(factor * math.ceil(math.log(length)), length)
    generator = torch.Generator(q.device).manual_seed(seed)
    sample = torch.randint(length, (length, count), generator=generator, device=q.device)
    scores = (q.unsqueeze(-2) @ k[:, :, sample].transpose(-2, -1)).squeeze(-2)
    peakedness = scores.amax(-1) - scores.sum(-1) / length
    top = peakedness.topk(count, sorted=False).indices[..., None].expand(-1, -1, -1, width)
    weights = torch.softmax(q.gather(2, top) @ k.transpose(-2, -1) * width**-0.5, -1)
    mean = v.mean(2, keepdim=True).expand(batch, heads, length, width)
    return mean.scatter(2, top, weights @ v)


def is_prob_sparse(out: Tensor, q: Tensor, k: Tensor, v: Tensor, count: int) -> bool:
    """Whether `count` rows of every head are attention to all keys, and the others the mean."""
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1).double() for t in (k, v))
    full = torch.softmax(q.double() @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, -1) @ v
    slack = 16 * torch.finfo(out.dtype).eps * v.abs().max()
    is_mean = ((out - v.mean(2, keepdim=True)).abs() < slack).all(-1)
    is_full = ((out - full).abs() < slack).all(-1)
    right = bool((is_mean | is_full).all())
    return right and bool((is_full.sum(-1) >= count).all() and ((~is_mean).sum(-1) <= count).all())
