"""Which backend and instruction-set level the ops use, and when a call may skip the dispatcher.

The private names of torch that the direct path needs live here and nowhere else. Where one of
them is missing, every call goes through the dispatcher: slower, never wrong.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

from leeboard import _C

Backend = Literal["reference", "cpu", "triton"]
BACKENDS: tuple[Backend, ...] = ("reference", "cpu", "triton")
ISA_LEVELS: dict[str, int] = {name: level for level, name in _C.isa_levels()}


@dataclass(frozen=True)
class State:
    """What is forced. `backend` None chooses by device; `level` -1 is the processor's best."""

    backend: Backend | None = None
    level: int = -1


def _check_backend(name: str, source: str) -> Backend:
    for known in BACKENDS:
        if name == known:
            return known
    raise ValueError(f"{source}: {name!r} is not a backend; expected one of {', '.join(BACKENDS)}")


def _check_isa(name: str, source: str) -> int:
    if name not in ISA_LEVELS:
        raise ValueError(
            f"{source}: {name!r} is not a level that this machine runs; "
            f"expected one of {', '.join(ISA_LEVELS)}"
        )
    return ISA_LEVELS[name]


def _from_environment() -> State:
    backend = os.environ.get("LEEBOARD_BACKEND")
    isa_name = os.environ.get("LEEBOARD_ISA")
    return State(
        backend=_check_backend(backend, "LEEBOARD_BACKEND") if backend else None,
        level=_check_isa(isa_name, "LEEBOARD_ISA") if isa_name else -1,
    )


_state: ContextVar[State] = ContextVar("leeboard_state", default=_from_environment())  # noqa: B039 (frozen)


def state() -> State:
    """What is forced in this context."""
    return _state.get()


@contextmanager
def use(forced: State) -> Iterator[None]:
    """Forces a whole state inside the block."""
    token = _state.set(forced)
    try:
        yield
    finally:
        _state.reset(token)


@contextmanager
def backend(name: Backend) -> Iterator[None]:
    """Forces one backend for every op called inside the block.

    A forced backend never falls back: an op that cannot run there raises and says why. The choice
    belongs to the current thread and async task (a context variable). Functions compiled by
    `torch.compile` look at it when they run, not when they are traced: enter the block outside
    them.

    Args:
        name: "reference" (plain PyTorch), "cpu" (compiled kernels) or "triton".

    Raises:
        ValueError: If `name` is not a backend.
    """
    with use(replace(_state.get(), backend=_check_backend(name, "backend"))):
        yield


@contextmanager
def isa(name: str) -> Iterator[None]:
    """Lowers the instruction-set level of the CPU kernels inside the block.

    Args:
        name: One of the levels that `leeboard doctor` lists: "base", "avx2", "avx512" or
            "avx512_bf16".

    Raises:
        ValueError: If this machine does not run that level.
    """
    with use(replace(_state.get(), level=_check_isa(name, "isa"))):
        yield


def _find_probes() -> tuple[Callable[[], object], ...] | None:
    """Calls that return something true while torch wants to see every op."""
    try:
        probes = (
            torch._C._len_torch_dispatch_stack,
            torch._C._functorch.peek_interpreter_stack,
            torch._C._get_tracing_state,
        )
    except AttributeError:
        return None
    return probes


_probes = _find_probes()
_is_compiling = torch.compiler.is_compiling
# Constant outside Dynamo, and cheaper than is_compiling: other tracers install a dispatch mode.
_is_dynamo_compiling = torch.compiler.is_dynamo_compiling
_is_grad_enabled = torch.is_grad_enabled
_get_state = _state.get
if _probes is not None:
    _dispatch_modes, _functorch_level, _tracing = _probes


def has_direct_path() -> bool:
    """Whether plain eager calls can skip the dispatcher with this version of torch."""
    return _probes is not None


def transform_problem() -> str | None:
    """The transform in force that only plain PyTorch goes through, or None.

    torch.library ops know reverse-mode autograd and vmap; torch.func.grad, jvp and forward-mode AD
    differentiate through the reference.
    """
    if _is_compiling():
        return None
    if forward_ad._current_level >= 0:
        return "forward-mode AD"
    if _probes is not None and _functorch_level() is not None:
        for level in torch._C._functorch.get_interpreter_stack() or ():
            if level.key().name != "Vmap":
                return f"torch.func ({level.key().name})"
    return None


def values_visible(*tensors: Tensor | None) -> bool:
    """Whether the values of tensors may be looked at: none is traced, fake, or without memory."""
    if _is_compiling() or _probes is None or _dispatch_modes() or _tracing() is not None:
        return False
    if _functorch_level() is not None or forward_ad._current_level >= 0:
        return False
    return not any(
        t.is_meta
        or isinstance(t, FakeTensor)
        or torch._is_functional_tensor(t)
        or t._is_zerotensor()
        or (t.numel() > 0 and t.untyped_storage().nbytes() == 0)
        for t in tensors
        if t is not None
    )


def direct_level(
    x: object,
    a: object = None,
    b: object = None,
    c: object = None,
    d: object = None,
    *more: object,
) -> int | None:
    """The level for a direct call of a CPU kernel, or None when the dispatcher must see the call.

    None under compilation, tracing, dispatch modes, functorch transforms, forward-mode AD, for
    what is no tensor, and where a gradient is wanted. The kernels check the rest themselves, exact
    types included. Unrolled over the first tensors: a loop would cost a tenth of a short call.
    """
    if (
        _is_dynamo_compiling()
        or _probes is None
        or _dispatch_modes()
        or _functorch_level() is not None
        or _tracing() is not None
        or forward_ad._current_level >= 0
    ):
        return None
    grad = _is_grad_enabled()
    if not isinstance(x, Tensor) or not x.is_cpu or x.is_neg() or (grad and x.requires_grad):
        return None
    if a is not None and (not isinstance(a, Tensor) or a.is_neg() or (grad and a.requires_grad)):
        return None
    if b is not None and (not isinstance(b, Tensor) or b.is_neg() or (grad and b.requires_grad)):
        return None
    if c is not None and (not isinstance(c, Tensor) or c.is_neg() or (grad and c.requires_grad)):
        return None
    if d is not None and (not isinstance(d, Tensor) or d.is_neg() or (grad and d.requires_grad)):
        return None
    for t in more:
        if not isinstance(t, Tensor) or t.is_neg() or (grad and t.requires_grad):
            return None
    forced = _get_state()
    return forced.level if forced.backend is None or forced.backend == "cpu" else None
