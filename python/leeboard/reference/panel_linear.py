"""A linear layer over a list of panels: groups of neighbouring rows or columns of its weight."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def panel_linear(
    x: Tensor,
    weight: Tensor,
    panels: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    panel: int = 16,
    over: Literal["outputs", "inputs"] = "outputs",
    residual: Tensor | None = None,
) -> Tensor:
    """out = residual + x W^T + b, with W [N, K] taken over the panels that are listed.

    With `over="outputs"` panel p is the rows [p * panel, (p + 1) * panel) of W and b: x [..., K]
    becomes [..., n * panel], the listed rows side by side. With `over="inputs"` it is those columns
    of W: x [..., n * panel] holds their inputs side by side, and the result is [..., N]. `panels`
    is int32 or int64 [n]; None is every panel. Panel -1 stands for none: zeros come out of it, and
    what goes into it is ignored. Rows and columns beyond the end of W count as zero.

    Everything is computed in float32 (float64 for float64 inputs) and rounded once, to x's dtype.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    size = weight.shape[0 if over == "outputs" else 1]
    listed, valid = panel_indices(panels, size, panel, x.device)
    if over == "outputs":
        rows = weight.to(wide)[listed] * valid[:, None]
        offset = None if bias is None else bias.to(wide)[listed] * valid
        out = F.linear(x.to(wide), rows, offset)
    else:
        columns = weight.to(wide)[:, listed]
        out = F.linear(
            torch.where(valid, x.to(wide), 0), columns, None if bias is None else bias.to(wide)
        )
    if residual is not None:
        out = out + residual.to(wide)
    return out.to(x.dtype)


def panel_indices(
    panels: Tensor | None, size: int, panel: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Rows or columns [n * panel] of the listed panels, and which of them there are (bool)."""
    if panels is None:
        panels = torch.arange(-(-size // panel), device=device)
    first = panels.to(device=device, dtype=torch.int64)[:, None] * panel
    listed = (first + torch.arange(panel, device=device)).flatten()
    valid = (listed >= 0) & (listed < size)
    return torch.where(valid, listed, 0), valid
