"""The weights of an EAGLE-3 drafter's decoder layer and head, as a chain of steps takes them."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor
from torch.utils import _pytree as pytree

from leeboard.reference._quantized import Weight

NORMS = ("input_norm", "hidden_norm", "post_norm", "norm")
MATRICES = ("q", "k", "v", "o", "gate", "up", "down", "head")


@dataclass(frozen=True)
class DrafterWeights:
    """What `draft_chain` computes with. H hidden, I intermediate, D head width, Vd draft vocabulary.

    Attributes:
        embedding: [V, H], the target's vocabulary.
        input_norm, hidden_norm, post_norm, norm: [H], gains of the RMSNorms of the embedding, of
            the fed-back state, after attention, and of the output.
        q, k, v: [Hq D, 2H], [Hkv D, 2H], [Hkv D, 2H]; embedding first in the 2H columns.
        o: [H, Hq D].
        gate, up, down: [I, H], [I, H], [H, I].
        head: [Vd, H].
        cos, sin: float32 [P, D/2], the rotary table; its width gives D.
        d2t: int64 [Vd], target id minus draft id; None where both are the same.
        eps: Epsilon of every norm.
        norm_output: Feed back the output norm's result (post-norm) instead of the residual stream.
        norm_before_residual: The residual stream starts from the normed state.
        window: Cached rows that a step sees, at most; None for all.
        sinks: Cached rows at the start that it always sees.
    """

    embedding: Tensor
    input_norm: Tensor
    hidden_norm: Tensor
    post_norm: Tensor
    norm: Tensor
    q: Weight
    k: Weight
    v: Weight
    o: Weight
    gate: Weight
    up: Weight
    down: Weight
    head: Weight
    cos: Tensor
    sin: Tensor
    d2t: Tensor | None = None
    eps: float = 1e-6
    norm_output: bool = True
    norm_before_residual: bool = False
    window: int | None = None
    sinks: int = 0

    @property
    def hidden_size(self) -> int:
        """H."""
        return self.embedding.shape[1]

    @property
    def head_dim(self) -> int:
        """D."""
        return 2 * self.cos.shape[1]


def feedback(normed: Tensor, residual: Tensor, norm_output: bool) -> Tensor:
    """The state that the next step of a chain takes, in training as in decoding.

    Args:
        normed: [..., H], the output norm of `residual`, which the head sees.
        residual: [..., H], the residual stream that the step left.
        norm_output: Post-norm feedback (arXiv:2605.09992) instead of EAGLE-3's.
    """
    return normed if norm_output else residual


def _flatten(weights: DrafterWeights) -> tuple[list[object], tuple[object, ...]]:
    values = [getattr(weights, field.name) for field in fields(weights)]
    return values[:_PARTS], tuple(values[_PARTS:])


# The fields that hold tensors come first, `d2t` last of them.
_PARTS = [field.name for field in fields(DrafterWeights)].index("d2t") + 1
pytree.register_pytree_node(
    DrafterWeights,
    _flatten,
    lambda parts, options: DrafterWeights(*parts, *options),
    serialized_type_name="leeboard.DrafterWeights",
)
