"""What the ops over panels share: the list, its checks, and what it means for a backward."""

from __future__ import annotations

import torch
from torch import Tensor

from leeboard.ops import _check
from leeboard.ops._state import values_visible
from leeboard.reference.panel_linear import panel_indices


def check_panels(panels: object, panel: object, x: Tensor, size: int) -> int:
    """A list of panels of `size` rows or columns; returns how many it makes, side by side.

    Args:
        panels: int32 or int64 [n] on the device of x, or None for every panel.
        panel: Rows or columns of a panel, >= 1.
        x: The activations.
        size: Rows or columns that there are.

    Raises:
        TypeError, ValueError: For another list; where its values can be seen without waiting for a
            device, also for a panel that there is not, or is there twice.
    """
    _check.integer("panel", panel, 1)
    assert isinstance(panel, int)
    count = -(-size // panel)
    if panels is None:
        return count * panel
    _check.tensor("panels", panels)
    assert isinstance(panels, Tensor)
    if panels.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"panels: dtype {panels.dtype} was given; expected torch.int32 or torch.int64"
        )
    _check.companion("panels", panels, "x", x, (torch.int32, torch.int64))
    if panels.dim() != 1:
        raise ValueError(f"panels: shape {list(panels.shape)} was given; expected [n]")
    if panels.device.type == "cpu" and values_visible(panels):
        _check_values(panels, count)
    return panels.shape[0] * panel


def _check_values(panels: Tensor, count: int) -> None:
    seen: set[int] = set()
    for i, p in enumerate(panels.tolist()):
        if p == -1:
            continue
        if not 0 <= p < count:
            raise ValueError(f"panels: {p} was given at [{i}]; expected -1 to {count - 1}")
        if p in seen:
            raise ValueError(
                f"panels: {p} was given a second time at [{i}]; expected each panel once"
            )
        seen.add(p)


def places(
    panels: Tensor | None, size: int, panel: int, device: torch.device
) -> tuple[Tensor, ...]:
    """(positions among the listed rows or columns, what each is in the weight), of those there are.

    Both int64 [active].
    """
    listed, valid = panel_indices(panels, size, panel, device)
    at = valid.nonzero().squeeze(1)
    return at, listed[at]


def for_triton(panels: Tensor | None) -> Tensor | None:
    """The list as the Triton kernels take it."""
    return None if panels is None else panels.as_subclass(Tensor).to(torch.int32).contiguous()
