"""The feed-forward block of a transformer, on `leeboard.ops.panel_ffn`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leeboard.ops import FeedForwardWeights, panel_ffn

# As `panel_ffn` names them.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "identity": lambda x: x,
}


class FeedForward(nn.Module):
    """x + down(act(up(norm(x)))), or with a gate, in one op that can leave out panels of channels.

    Args:
        embed_dim: Channels d of inputs and outputs.
        hidden_dim: Channels F of the hidden layer.
        activation: "gelu", "gelu_tanh", "relu", "silu" or "identity".
        gated: Whether act(gate(x)) multiplies up(x), as in SwiGLU.
        norm: "layer_norm", "rms_norm" or None: what x goes through first.
        residual: Whether x is added to the result.
        bias: Whether the projections have biases.
        eps: Of the norm.
        device: Of the parameters.
        dtype: Of the parameters.

    Attributes:
        active_panels: int32 [n], the panels to compute, -1 for none; or None for all.
        panel: Channels in a panel.
    """

    def __init__(
        self,
        embed_dim: int,
        hidden_dim: int,
        *,
        activation: str = "gelu",
        gated: bool = False,
        norm: Literal["layer_norm", "rms_norm"] | None = "layer_norm",
        residual: bool = True,
        bias: bool = True,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.activation, self.residual, self.eps = activation, residual, eps
        self.norm_type = norm
        self.norm: nn.Module | None = None
        if norm == "layer_norm":
            self.norm = nn.LayerNorm(embed_dim, eps=eps, **options)
        elif norm == "rms_norm":
            self.norm = nn.RMSNorm(embed_dim, eps=eps, **options)
        self.up = nn.Linear(embed_dim, hidden_dim, bias=bias, **options)
        self.gate = nn.Linear(embed_dim, hidden_dim, bias=bias, **options) if gated else None
        self.down = nn.Linear(hidden_dim, embed_dim, bias=bias, **options)
        self.active_panels: Tensor | None = None
        self.panel = 16

    def weights(self) -> FeedForwardWeights:
        """The parameters as `panel_ffn` takes them; nothing is copied."""
        norm: Any = self.norm
        return FeedForwardWeights(
            up=self.up.weight,
            down=self.down.weight,
            up_bias=self.up.bias,
            down_bias=self.down.bias,
            gate=None if self.gate is None else self.gate.weight,
            gate_bias=None if self.gate is None else self.gate.bias,
            activation=self.activation,
            norm=self.norm_type,
            norm_weight=None if norm is None else norm.weight,
            norm_bias=getattr(norm, "bias", None),
            eps=self.eps,
            panel=self.panel,
        )

    def forward(
        self, x: Tensor, *, gates: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """x [..., d] to [..., d]; `gates` [F] or [B, F] multiply the hidden channels."""
        return panel_ffn(
            x,
            self.weights(),
            self.active_panels,
            bias=bias,
            gates=gates,
            residual=x if self.residual else None,
        )

    def by_layers(
        self, x: Tensor, *, gates: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """As `forward`, in plain torch: norm and projections are called as modules.

        So their hooks run: the input of `down` is that of the hidden channels, after the gates.
        """
        normed = x if self.norm is None else self.norm(x)
        act = ACTIVATIONS[self.activation]
        hidden = self.up(normed)
        hidden = act(hidden) if self.gate is None else act(self.gate(normed)) * hidden
        if gates is not None:
            spread = gates
            if gates.dim() == 2:
                spread = gates.reshape(len(gates), *[1] * (x.dim() - 2), gates.shape[1])
            hidden = hidden * spread
        if self.active_panels is not None:
            size = hidden.shape[-1]
            runs = torch.zeros(-(-size // self.panel) + 1, dtype=torch.bool, device=x.device)
            runs[self.active_panels.long()] = True
            runs = runs[:-1].repeat_interleave(self.panel)[:size]
            hidden = torch.where(runs, hidden, 0)
        out: Tensor = self.down(hidden)
        if bias is not None:
            own = self.down._parameters["bias"]
            out = out + (bias if own is None else bias - own)
        return x + out if self.residual else out
