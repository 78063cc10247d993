"""Which panels are kept, in the benchmarks over panels."""

from __future__ import annotations

import torch
from torch import Tensor


def width_of(dtype: torch.dtype) -> int:
    """Channels of a panel: 64 bytes of them."""
    return 64 // dtype.itemsize


def kept(size: int, percent: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A share of the panels of `size` channels, spread over all of them, as a plan would leave it."""
    count = size // width_of(dtype)
    some = torch.randperm(count)[: count * percent // 100]
    return some.sort().values.to(device, torch.int32)


def channels_of(panels: Tensor, panel: int) -> Tensor:
    """The channels of panels, int64 [n * panel]."""
    return (panels[:, None] * panel + torch.arange(panel, device=panels.device)).flatten()
