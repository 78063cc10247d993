"""What the norm benchmarks share: their grid, their aims, and what a row must move."""

from __future__ import annotations

import torch

from bench.cases import Aim, Case, Direction

HIDDEN = 4096
EPS = 1e-6
# One token, a batch or a draft tree (in cache), a long prompt (far beyond it).
ROWS = (1, 64, 4096)


def norm_cases(
    op: str, *, forward: tuple[int, int], backward: tuple[int, int], flops: int
) -> list[Case]:
    """The grid of a norm.

    Args:
        op: Its name.
        forward: (arrays read, arrays written) [N, H] by the forward.
        backward: The same for the backward.
        flops: Operations per element of the forward; the backward takes about twice as many.
    """
    plan: list[tuple[Direction, tuple[int, int], int]] = [
        ("forward", forward, flops),
        ("backward", backward, 2 * flops),
    ]
    cases = []
    for direction, (reads, writes), per_element in plan:
        for dtype in (torch.float32, torch.bfloat16):
            for rows in ROWS:
                array = rows * HIDDEN * dtype.itemsize
                cases.append(
                    Case(
                        op=op,
                        shape={"N": rows, "H": HIDDEN},
                        dtype=dtype,
                        direction=direction,
                        read=reads * array,
                        written=writes * array,
                        flops=rows * HIDDEN * per_element,
                        streams=(reads, writes),
                        aim=_aim(rows, dtype, direction),
                        quick=(rows == 4096 and dtype == torch.bfloat16)
                        or (rows == 1 and dtype == torch.float32 and direction == "forward"),
                    )
                )
    return cases


def _aim(rows: int, dtype: torch.dtype, direction: Direction) -> Aim | None:
    if rows == 4096:
        return Aim(share=0.9, compiled=True)
    if rows == 1 and dtype == torch.float32 and direction == "forward":
        return Aim(seconds=3e-6)
    return None


def norm_weight(case: Case, device: torch.device) -> torch.nn.Parameter:
    """A weight around one, as trained norms have."""
    weight = 1.0 + 0.1 * torch.randn(case.shape["H"], device=device)
    return torch.nn.Parameter(weight.to(case.dtype))
