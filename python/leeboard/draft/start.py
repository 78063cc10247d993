"""A drafter that starts from the target's own weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from leeboard.draft.model import Eagle3Drafter


@torch.no_grad()
def copy_from_target(drafter: Eagle3Drafter, target: Any) -> tuple[str, ...]:
    """See `Eagle3Drafter.copy_from_target`."""
    source = target.get_input_embeddings().weight
    embedding = drafter.embed_tokens.weight
    if source.shape != embedding.shape:
        raise ValueError(
            f"target: its embedding is {tuple(source.shape)}, expected {tuple(embedding.shape)}: "
            "vocab_size and hidden_size of the drafter's config"
        )
    embedding.copy_(source).requires_grad_(False)
    copied = ["embed_tokens.weight"]
    head = target.get_output_embeddings()
    if head is not None and head.weight.shape == source.shape:
        drafter.lm_head.weight.copy_(head.weight[drafter.t2d.to(head.weight.device)])
        copied.append("lm_head.weight")
    gain = _rms_gain(_final_norm(target), drafter.config.hidden_size)
    if gain is not None:
        drafter.norm.weight.copy_(gain)
        copied.append("norm.weight")
    return tuple(copied)


def _final_norm(target: Any) -> nn.Module | None:
    """The norm before the target's head, under the names that Hugging Face models use."""
    body = getattr(target, "base_model", target)
    for name in ("norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f"):
        norm = getattr(body, name, None)
        if isinstance(norm, nn.Module):
            return norm
    return None


def _rms_gain(norm: nn.Module | None, width: int) -> Tensor | None:
    """The gain of a module that acts as an RMSNorm, else None.

    An RMSNorm maps any vector of signs s to s * gain (epsilon aside), which a LayerNorm does not.
    """
    weight = getattr(norm, "weight", None)
    if norm is None or weight is None or weight.shape != (width,):
        return None
    signs = torch.ones(2, width, device=weight.device, dtype=weight.dtype)
    signs[1, : width // 4] = -1
    up, mixed = norm(signs)
    tolerance = 1e-4 if weight.dtype in (torch.float32, torch.float64) else 2e-2
    for gain in (weight, 1 + weight):
        expected = signs * gain
        if torch.allclose(up, expected[0], rtol=tolerance) and torch.allclose(
            mixed, expected[1], rtol=tolerance
        ):
            return cast(Tensor, gain.detach())
    return None
