"""Arguments of collectives: what they must be, before anything happens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from leeboard.sim.distributed import where
from leeboard.sim.distributed.exchange import shown


def fault(call: str, what: str) -> ValueError:
    """An error of the program's call, with its line."""
    line = where.here()
    return ValueError(f"{call}{f' at {line}' if line else ''}: {what}")


def tensors(call: str, name: str, given: Any) -> list[Tensor]:
    """A list of tensors that torch passed on; a single one is taken for a list of one."""
    if isinstance(given, Tensor):
        return [given]
    result = list(given)
    for tensor in result:
        if not isinstance(tensor, Tensor):
            raise fault(call, f"{name}: got {type(tensor).__name__}, expected a tensor")
    return result


def single(call: str, name: str, given: Any) -> Tensor:
    """The only tensor of a list."""
    if type(given) is list and len(given) == 1 and isinstance(given[0], Tensor):
        return given[0]
    found = tensors(call, name, given)
    if len(found) != 1:
        raise fault(call, f"{name}: got {len(found)} tensors, expected 1")
    return found[0]


def one_list(call: str, name: str, given: Any) -> list[Tensor]:
    """The tensors of the only list of a list of lists, or of one list."""
    lists = given if given and not isinstance(given[0], Tensor) else [given]
    if len(lists) != 1:
        raise fault(call, f"{name}: got {len(lists)} lists of tensors, expected 1")
    return [tensor.data for tensor in lists[0]]


def one_each(call: str, name: str, given: Sequence[Tensor], size: int) -> None:
    """A list must have a tensor for each rank of the group."""
    if len(given) != size:
        raise fault(
            call,
            f"{name}: got {len(given)} tensors, expected {size}, one for each rank of the group",
        )


def alike(call: str, name: str, given: Sequence[Tensor], like: Tensor, what: str) -> None:
    """All of a list must have the dtype and the number of elements of `like`."""
    dtype, elements = like.dtype, like.numel()
    for number, tensor in enumerate(given):
        if tensor.dtype != dtype or tensor.numel() != elements:
            raise fault(
                call,
                f"{name}[{number}] is {shown(tensor)}, and {what} is {shown(like)}: they must have "
                "the same dtype and as many elements",
            )


def times(call: str, large: Tensor, small: Tensor, size: int, names: tuple[str, str]) -> None:
    """`large` must hold `size` tensors like `small`."""
    if large.dtype != small.dtype or large.numel() != small.numel() * size:
        raise fault(
            call,
            f"{names[0]} is {shown(large)}, and {names[1]} is {shown(small)}: {names[0]} must have "
            f"the same dtype and {size} times as many elements",
        )


def splits(call: str, name: str, given: Sequence[int], tensor: Tensor, size: int) -> list[int]:
    """Rows of `tensor` for each rank; equal parts where none are given."""
    rows = tensor.shape[0] if tensor.dim() else 0
    if not given:
        if rows % size:
            raise fault(
                call, f"{name} tensor has {rows} rows, which {size} ranks cannot share equally"
            )
        return [rows // size] * size
    result = [int(part) for part in given]
    if len(result) != size:
        raise fault(call, f"{name}_split_sizes: got {len(result)}, expected {size}")
    if min(result) < 0 or sum(result) != rows:
        raise fault(
            call, f"{name}_split_sizes: got {result}, expected {rows} in all, the tensor's rows"
        )
    return result


def movable(call: str, given: Sequence[Tensor]) -> list[Tensor]:
    """Tensors with dense memory: there are no values to move elsewhere.

    What functional collectives return is waited for, as the rank that has it only can.
    """
    result = []
    for tensor in given:
        if tensor.is_meta:
            raise fault(
                call,
                f"{shown(tensor)} is on the meta device and has no values: move it to the CPU, or "
                "run the program under fake tensors",
            )
        if tensor.layout is not torch.strided:
            raise fault(call, f"a tensor of layout {tensor.layout}: only dense ones are supported")
        wait = None if type(tensor) is Tensor else getattr(tensor, "trigger_wait", None)
        result.append(tensor if wait is None else wait())
    return result
