"""The one decoder layer of an EAGLE-3 drafter: its modules, under the names of EAGLE checkpoints."""

from __future__ import annotations

from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leeboard.draft.config import DrafterConfig
from leeboard.draft.rope import inverse_frequencies, rotation
from leeboard.nn import RMSNorm
from leeboard.ops import QuantizedWeight

# EAGLE-3 heads follow the Llama family, whose norms round before the weight.
ROUNDING: Final = "before_weight"


class Attention(nn.Module):
    """Projections of grouped-query attention over [embedding; state], width 2H in and H out."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        # No buffer: `.to(bfloat16)` would round it.
        self._inverse, self._rope_factor = inverse_frequencies(config)
        width, d = 2 * config.hidden_size, config.head_dim
        self.q_proj = nn.Linear(width, self.num_heads * d, bias=False)
        self.k_proj = nn.Linear(width, self.num_kv_heads * d, bias=False)
        self.v_proj = nn.Linear(width, self.num_kv_heads * d, bias=False)
        self.o_proj = nn.Linear(self.num_heads * d, config.hidden_size, bias=False)

    def turns(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine for `rotate`, float32 [..., 1, D], of positions [...]."""
        inverse = self._inverse.to(positions.device)
        cos, sin = rotation(positions, inverse, self._rope_factor)
        return torch.cat((cos, cos), -1).unsqueeze(-2), torch.cat((-sin, sin), -1).unsqueeze(-2)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # After a move; computed anew, since a meta tensor has no values to copy.
        device = self.q_proj.weight.device
        if self._inverse.device != device:
            self._inverse = inverse_frequencies(self.config)[0].to(device)
        return self


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., H] of x [..., H]."""
        return cast(Tensor, self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)))


class DecoderLayer(nn.Module):
    """Norms, attention and feed-forward network."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        h, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(h, eps, rounding=ROUNDING)
        self.hidden_norm = RMSNorm(h, eps, rounding=ROUNDING)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(h, eps, rounding=ROUNDING)
        self.mlp = FeedForward(config)


class _Rotate(torch.autograd.Function):
    """Rotary embedding; backwards it turns the other way, which needs nothing of the forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        turned = (grad * cos).addcmul_(grad.roll(grad.shape[-1] // 2, -1), sin, value=-1.0)
        return turned, None, None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [..., heads, D], channel i paired with i + D/2 (Llama's layout).

    cos and sin [..., 1, D] are `Attention.turns`: the sine is negative in the lower half.
    """
    return cast(
        Tensor,
        _Rotate.apply(x, cos.to(x.dtype), sin.to(x.dtype)),  # type: ignore[no-untyped-call]
    )


def plain_weight(linear: nn.Module) -> Tensor | QuantizedWeight:
    """The matrix of a linear layer, plain or quantised, without its gradient."""
    weight = linear.weight
    return weight.detach() if isinstance(weight, Tensor) else cast(QuantizedWeight, weight)


def dense_weight(linear: nn.Module, dtype: torch.dtype) -> Tensor:
    """The matrix of a linear layer with its gradient, or what its quantised form stands for."""
    weight = linear.weight
    return weight if isinstance(weight, Tensor) else cast(QuantizedWeight, weight).dequantize(dtype)
