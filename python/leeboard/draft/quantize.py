"""Drafters that decode with weights in a few bits."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from leeboard.draft.config import DrafterConfig
from leeboard.draft.model import Eagle3Drafter
from leeboard.draft.protocol import Feed, Watch
from leeboard.nn import QuantizedLinear

Format = Literal["int8", "int4", "fp8"]

_MATRICES = (
    "fc",
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "lm_head",
)


class QuantizedDrafter(Eagle3Drafter):
    """What `quantize` returns: a drafter for decoding, always in eval mode.

    Attributes:
        format: Of the matrices that are quantised.
        skipped: Names of those that are not.
    """

    format: Format
    skipped: tuple[str, ...]

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__(config)
        super().train(False)

    def train(self, mode: bool = True) -> QuantizedDrafter:
        """Refuses: rounded weights have no gradients.

        Raises:
            RuntimeError: `mode` is true.
        """
        if mode:
            raise _no_training()
        super().train(False)
        return self

    def iter_unroll(
        self,
        input_ids: Tensor,
        hiddens: Sequence[Tensor],
        steps: int,
        *,
        positions: Tensor | None = None,
        feed: Feed | None = None,
        watch: Watch | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """As `Eagle3Drafter.iter_unroll`, within `torch.no_grad()` only.

        Raises:
            RuntimeError: Grad mode is on.
        """
        if torch.is_grad_enabled():
            raise _no_training()
        return super().iter_unroll(
            input_ids, hiddens, steps, positions=positions, feed=feed, watch=watch
        )

    def __repr__(self) -> str:
        kept = f", {', '.join(self.skipped)} as before" if self.skipped else ""
        return f"QuantizedDrafter({self.format}{kept}, {self.nbytes() / 1e6:.1f} MB)"


def quantize(
    drafter: Eagle3Drafter,
    format: Format,  # noqa: A002
    *,
    skip: Collection[str] = (),
) -> QuantizedDrafter:
    """A drafter that drafts with weights in a few bits; what a target accepts stays lossless.

    The matrices fc, q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj and lm_head are
    rounded to the nearest (`leeboard.ops.quantize_weight`): int8 and fp8 with a scale per row, int4
    with a scale per row and 128 columns. Norms are copied; the embedding, of which a step reads one
    row, is shared with `drafter` if frozen, else copied. `drafter` stays as it is.

    Args:
        drafter: The drafter; not quantised yet.
        format: "int8", "int4" or "fp8".
        skip: Names of matrices to leave as they are (shared with `drafter`).

    Returns:
        The quantised drafter, for decoding. `nbytes()` tells its size, `step_nbytes()` what a step
        of the chain reads.

    Raises:
        TypeError: `drafter` is no Eagle3Drafter, or quantised already.
        ValueError: The format or a name is unknown, or a weight is not finite.
    """
    if not isinstance(drafter, Eagle3Drafter):
        raise TypeError(f"drafter: got {type(drafter).__name__}, expected an Eagle3Drafter")
    if isinstance(drafter, QuantizedDrafter):
        raise TypeError(f"drafter: it is quantised to {drafter.format} already")
    if format not in get_args(Format):
        raise ValueError(f"format: got {format!r}, expected one of {get_args(Format)}")
    names = (skip,) if isinstance(skip, str) else tuple(skip)
    if unknown := sorted(set(names) - set(_MATRICES)):
        raise ValueError(f"skip: got {unknown}, expected names among {_MATRICES}")

    with torch.device("meta"):
        result = QuantizedDrafter(drafter.config)
    result.format = format
    result.skipped = tuple(name for name in _MATRICES if name in names)
    state = dict(drafter.state_dict())
    for path, module in drafter.named_modules():
        owner, _, name = path.rpartition(".")
        if name not in _MATRICES or not isinstance(module, nn.Linear):
            continue
        if name not in names:
            try:
                layer = QuantizedLinear.from_linear(module, format)
            except ValueError as error:
                raise ValueError(f"drafter: {path}: {error}") from error
            setattr(result.get_submodule(owner), name, layer)
            del state[f"{path}.weight"]
    shared = {f"{path}.weight" for path, m in drafter.named_modules() if isinstance(m, nn.Linear)}
    if not drafter.embed_tokens.weight.requires_grad:
        shared.add("embed_tokens.weight")
    state = {name: tensor if name in shared else tensor.clone() for name, tensor in state.items()}
    result.load_state_dict(
        state | {k: v for k, v in result.state_dict().items() if k not in state}, assign=True
    )
    return result.requires_grad_(False)


def _no_training() -> RuntimeError:
    return RuntimeError(
        "a quantised drafter does not train: train the original and quantise it again"
    )
