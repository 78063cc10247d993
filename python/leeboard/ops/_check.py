"""Argument checks. Every message names the argument, what was given and what was expected."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FLOAT_DTYPES = (*KERNEL_DTYPES, torch.float64)
ROUNDINGS = ("after_weight", "before_weight")


def _text(shape: Sequence[int]) -> str:
    return "[" + ", ".join(str(n) for n in shape) + "]"


def tensor(name: str, value: object) -> None:
    """A torch.Tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")


def layout(name: str, value: Tensor) -> None:
    """A plain strided tensor."""
    if value.layout != torch.strided or value.is_nested:
        kind = "nested" if value.is_nested else value.layout
        raise ValueError(f"{name}: layout {kind} is not supported; expected torch.strided")


def rows(name: str, value: object) -> int:
    """A floating-point tensor [..., H] with H > 0; returns H."""
    size = activations(name, value)
    assert isinstance(value, Tensor)
    if size == 0:
        raise ValueError(
            f"{name}: shape {_text(value.shape)} has a hidden dimension of 0; expected at least 1"
        )
    return size


def activations(name: str, value: object) -> int:
    """A floating-point tensor [..., H]; returns H."""
    tensor(name, value)
    assert isinstance(value, Tensor)
    if value.dtype not in FLOAT_DTYPES:
        raise ValueError(
            f"{name}: dtype {value.dtype} is not supported; "
            "expected float32, bfloat16, float16 or float64"
        )
    layout(name, value)
    if value.dim() == 0:
        raise ValueError(f"{name}: a 0-dimensional tensor was given; expected [..., H]")
    return value.shape[-1]


def shape(name: str, value: Tensor, expected: Sequence[int], meaning: str) -> None:
    """Exactly `expected`; `meaning` says where the sizes come from."""
    if tuple(value.shape) != tuple(expected):
        raise ValueError(
            f"{name}: shape {_text(value.shape)} was given; expected {_text(expected)} ({meaning})"
        )


def companion(
    name: str, value: object, like_name: str, like: Tensor, dtypes: Sequence[torch.dtype] = ()
) -> None:
    """A strided tensor on the device of `like`, of its dtype or one of `dtypes`."""
    tensor(name, value)
    assert isinstance(value, Tensor)
    if value.device != like.device:
        raise ValueError(
            f"{name}: device {value.device} was given; "
            f"expected {like.device}, the device of {like_name}"
        )
    if value.dtype != like.dtype and value.dtype not in dtypes:
        raise ValueError(
            f"{name}: dtype {value.dtype} was given; "
            f"expected {' or '.join(str(d) for d in (like.dtype, *dtypes))} "
            f"to go with {like_name} of dtype {like.dtype}"
        )
    layout(name, value)


def gain(name: str, value: Tensor | None, x: Tensor) -> None:
    """A norm's weight: None, or [H] of x's dtype (float32 also goes with half precision)."""
    if value is None:
        return
    companion(name, value, "x", x, (torch.float32,) if x.dtype.itemsize == 2 else ())
    shape(name, value, x.shape[-1:], "the last dimension of x")


def epsilon(eps: object) -> float:
    """A number >= 0, as a float."""
    if isinstance(eps, bool) or not isinstance(eps, Real):
        raise TypeError(f"eps: expected a number, got {type(eps).__name__}")
    number = float(eps)
    if not number >= 0:
        raise ValueError(f"eps: {eps} was given; expected a number >= 0")
    return number


def number(name: str, value: object) -> None:
    """A real number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")


def integer(name: str, value: object, least: int) -> None:
    """An integer >= least."""
    if isinstance(value, bool) or not isinstance(value, int | torch.SymInt):
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name}: {value} was given; expected at least {least}")


def norm_options(eps: object, weight_offset: object, contract: object) -> tuple[float, float]:
    """The options that every norm takes; returns eps and weight_offset as floats."""
    number = epsilon(eps)
    if isinstance(weight_offset, bool) or not isinstance(weight_offset, Real):
        raise TypeError(f"weight_offset: expected a number, got {type(weight_offset).__name__}")
    rounding(contract)
    return number, float(weight_offset)


def rounding(value: object) -> None:
    """One of the rounding contracts."""
    if value not in ROUNDINGS:
        raise ValueError(f"rounding: {value!r} was given; expected one of {', '.join(ROUNDINGS)}")


def output(name: str, value: object, like_name: str, like: Tensor, size: Sequence[int]) -> None:
    """An `out=` tensor that can be written."""
    companion(name, value, like_name, like)
    assert isinstance(value, Tensor)
    shape(name, value, size, "the shape of the result")
    memory(name, value)


def memory(name: str, value: Tensor) -> None:
    """A tensor whose elements have memory: its storage may have been emptied."""
    if value.numel() == 0 or value.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if value.untyped_storage().nbytes() == 0:
        raise ValueError(f"{name}: its storage is empty; expected memory to write to")


def no_grad(op: str, reason: str, **tensors: Tensor | None) -> None:
    """Raises when a gradient would be lost."""
    if not torch.is_grad_enabled():
        return
    for name, value in tensors.items():
        if value is not None and value.requires_grad:
            raise RuntimeError(
                f"{name}: requires grad, but {op} {reason}; "
                "call it under torch.no_grad() or pass a detached tensor"
            )


def pair(name: str, value: object) -> None:
    """A tuple of two tensors."""
    if not isinstance(value, tuple | list):
        raise TypeError(f"{name}: expected a pair of tensors, got {type(value).__name__}")
    if len(value) != 2:
        raise ValueError(f"{name}: {len(value)} tensors given; expected a pair")
    for i, item in enumerate(value):
        tensor(f"{name}[{i}]", item)


def several(name: str, value: object, count: int) -> None:
    """A tuple of `count` tensors."""
    if not isinstance(value, tuple | list):
        raise TypeError(f"{name}: expected {count} tensors, got {type(value).__name__}")
    if len(value) != count:
        raise ValueError(f"{name}: {len(value)} tensors given; expected {count}")
    for i, item in enumerate(value):
        tensor(f"{name}[{i}]", item)


def apart(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Two outputs that do not share memory."""
    if value.numel() == 0 or torch.compiler.is_compiling():
        return
    first, second = _span(value), _span(other)
    if first[0] < second[1] and second[0] < first[1]:
        raise ValueError(
            f"{name}: its address range overlaps that of {other_name}; expected a tensor of its own"
        )


def shares_elements(t: Tensor) -> bool:
    """Whether two elements of a strided tensor may share memory: some step is shorter than a run."""
    run = 1
    for step, size in sorted(zip(t.stride(), t.shape, strict=True)):
        if size > 1:
            if step < run:
                return True
            run = step * (size - 1) + run
    return False


def distinct(name: str, value: Tensor) -> None:
    """A tensor that can be written: no two elements share memory, and they lie there as they are."""
    if torch.compiler.is_compiling():
        return
    if value.is_neg():
        raise ValueError(f"{name}: a negative view was given; expected a tensor to write to")
    if value.numel() and shares_elements(value):
        raise ValueError(
            f"{name}: shape {_text(value.shape)} with strides {_text(value.stride())} was given, "
            "whose elements share memory; expected elements of their own"
        )


def _span(t: Tensor) -> tuple[int, int]:
    """The addresses from the first byte to one past the last."""
    last = sum((size - 1) * step for size, step in zip(t.shape, t.stride(), strict=True))
    return t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size()


def tensors(name: str, value: object, most: int) -> list[Tensor]:
    """A sequence of 1 to `most` tensors."""
    if isinstance(value, Tensor) or not isinstance(value, Sequence):
        raise TypeError(f"{name}: expected a sequence of tensors, got {type(value).__name__}")
    if not 1 <= len(value) <= most:
        raise ValueError(f"{name}: {len(value)} tensors given; expected 1 to {most}")
    for i, item in enumerate(value):
        tensor(f"{name}[{i}]", item)
    return list(value)


def integers(name: str, value: object, like_name: str, like: Tensor) -> None:
    """An int64 tensor on the device of `like`."""
    tensor(name, value)
    assert isinstance(value, Tensor)
    if value.dtype != torch.int64:
        raise ValueError(f"{name}: dtype {value.dtype} was given; expected torch.int64")
    companion(name, value, like_name, like, (torch.int64,))


def values(name: str, value: object, x: Tensor) -> None:
    """A tensor of the accumulation dtype of x."""
    tensor(name, value)
    assert isinstance(value, Tensor)
    wide = torch.promote_types(x.dtype, torch.float32)
    if value.dtype != wide:
        raise ValueError(f"{name}: dtype {value.dtype} was given; expected {wide}")
    companion(name, value, "x", x, (wide,))


def token_ids(name: str, value: Tensor, vocabulary: int) -> None:
    """Every element is an id of the vocabulary."""
    outside = (value < 0) | (value >= vocabulary)
    refuse_first(name, value, outside, f"0 to {vocabulary - 1}")


def refuse_first(name: str, value: Tensor, wrong: Tensor, expected: str) -> None:
    """Raises for the first element that is marked in `wrong`."""
    if bool(wrong.any()):
        place = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"{name}: {value[tuple(place)].item()} was given at {place}; expected {expected}"
        )
