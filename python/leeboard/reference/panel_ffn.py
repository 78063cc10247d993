"""A feed-forward block over a list of panels of its hidden channels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from leeboard.reference.panel_linear import panel_indices

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "identity": lambda x: x,
}


@dataclass(frozen=True)
class FeedForwardWeights:
    """The weights of a feed-forward block, in the layout of `torch.nn.Linear`.

    Attributes:
        up: [F, d].
        down: [d_out, F].
        up_bias: [F], or None.
        down_bias: [d_out], or None.
        gate: [F, d] of a gated block (the activation is the gate's), or None.
        gate_bias: [F], or None.
        activation: "gelu" (by erf), "gelu_tanh", "relu", "silu" or "identity".
        norm: What x goes through first: "layer_norm", "rms_norm" or None.
        norm_weight: [d], or None for ones.
        norm_bias: [d], of a layer norm, or None.
        eps: Of the norm.
        panel: Channels in a panel.
    """

    up: Tensor
    down: Tensor
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None
    gate: Tensor | None = None
    gate_bias: Tensor | None = None
    activation: str = "gelu"
    norm: str | None = None
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None
    eps: float = 1e-5
    panel: int = 16


_TENSORS = ("up", "down", "up_bias", "down_bias", "gate", "gate_bias", "norm_weight", "norm_bias")
_OPTIONS = ("activation", "norm", "eps", "panel")


def _rebuilt(tensors: Iterable[Any], options: tuple[Any, ...]) -> FeedForwardWeights:
    given = dict(zip(_TENSORS, tensors, strict=True))
    return FeedForwardWeights(**given, **dict(zip(_OPTIONS, options, strict=True)))


pytree.register_pytree_node(
    FeedForwardWeights,
    lambda w: ([getattr(w, n) for n in _TENSORS], tuple(getattr(w, n) for n in _OPTIONS)),
    _rebuilt,
    serialized_type_name="leeboard.FeedForwardWeights",
)


def panel_ffn(
    x: Tensor,
    weights: FeedForwardWeights,
    panels: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    gates: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """out = residual + b_down + sum over listed channels j of W_down[:, j] g_j h_j.

    h = act(W_up n + b_up), or act(W_gate n + b_gate) * (W_up n + b_up) with a gate, of n = norm(x).
    Panel p of `panels` (int32 or int64 [n], None for every one, -1 for none) is the channels
    [p * panel, (p + 1) * panel). `bias` [d_out] takes the place of b_down. `gates` g are [F], or
    [B, F] for x [B, ..., d]: a soft mask, or one finer than a panel.

    Everything is computed in float32 (float64 for float64 inputs) and rounded once, to x's dtype.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    listed, valid = panel_indices(panels, weights.up.shape[0], weights.panel, x.device)
    listed = listed[valid]

    def project(weight: Tensor, offset: Tensor | None) -> Tensor:
        return F.linear(
            normed, weight.to(wide)[listed], None if offset is None else offset.to(wide)[listed]
        )

    normed = _normed(x.to(wide), weights)
    hidden = project(weights.up, weights.up_bias)
    act = ACTIVATIONS[weights.activation]
    if weights.gate is None:
        hidden = act(hidden)
    else:
        hidden = act(project(weights.gate, weights.gate_bias)) * hidden
    if gates is not None:
        g = gates.to(wide)[..., listed]
        hidden = hidden * (g if g.dim() == 1 else g.view(len(g), *[1] * (x.dim() - 2), g.shape[1]))
    offset = weights.down_bias if bias is None else bias
    out = F.linear(
        hidden, weights.down.to(wide)[:, listed], None if offset is None else offset.to(wide)
    )
    if residual is not None:
        out = out + residual.to(wide)
    return out.to(x.dtype)


def _normed(x: Tensor, weights: FeedForwardWeights) -> Tensor:
    scale = None if weights.norm_weight is None else weights.norm_weight.to(x.dtype)
    shift = None if weights.norm_bias is None else weights.norm_bias.to(x.dtype)
    if weights.norm == "layer_norm":
        return F.layer_norm(x, x.shape[-1:], scale, shift, weights.eps)
    if weights.norm == "rms_norm":
        return F.rms_norm(x, x.shape[-1:], scale, weights.eps)
    return x
