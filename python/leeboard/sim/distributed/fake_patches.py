"""Parts of torch that need values, made to work where a rank's tensors have none."""

from __future__ import annotations

import contextlib
import functools
import importlib
import types
from collections.abc import Callable
from typing import Any

from leeboard.sim.distributed.fake import FakeMode, active, really

# What works on small tensors of its own (rank numbers, sizes, pickled objects): on real ones.
_REALLY = {
    "torch.distributed.device_mesh": (
        "init_device_mesh",
        "DeviceMesh.__init__",
        "DeviceMesh.__getitem__",
        "DeviceMesh.from_group",
        "DeviceMesh._flatten",
        "DeviceMesh._unflatten",
        "DeviceMesh._concatenate",
    ),
    "torch.distributed.distributed_c10d": (
        "all_gather_object",
        "gather_object",
        "send_object_list",
        "recv_object_list",
        "broadcast_object_list",
        "scatter_object_list",
    ),
    # Votes on how shapes come about, with .item().
    "torch.distributed.pipelining.schedules": ("_PipelineSchedule._warmup_p2p",),
    # Runs every operator once more for its shape: nothing that a rank would compute.
    "torch.distributed.tensor._sharding_prop": (
        "ShardingPropagator._propagate_tensor_meta_non_cached",
    ),
}


def install(set_: Callable[[Any, str, Any], Any]) -> None:
    """Patch torch for the time of a run; `set_(holder, name, value)` notes what was there."""
    for module_name, names in _REALLY.items():
        module = importlib.import_module(module_name)
        for name in names:
            holder: Any = module
            *path, last = name.split(".")
            for part in path:
                holder = getattr(holder, part, None)
            found = vars(holder).get(last) if holder is not None else None
            if found is None:
                continue
            if path:
                set_(holder, last, _wrapped(found))
            else:
                _redirect(module, found, really, set_)
    functional = importlib.import_module("torch.distributed._functional_collectives")
    if hasattr(functional, "_are_we_tracing"):
        _redirect(functional, functional._are_we_tracing, _not_here, set_)
    _with_swaps(set_)
    _with_values_in_c(set_)


def _wrapped(found: Any) -> Any:
    if isinstance(found, (staticmethod, classmethod)):
        return type(found)(really(found.__func__))
    return really(found)


def _not_here(tracing: Callable[[], bool]) -> Callable[[], bool]:
    """Under fake tensors torch thinks that it is compiling, and waits for collectives at once."""
    return lambda: active() is None and tracing()


def _redirect(module: Any, function: Any, wrap: Callable[[Any], Any], set_: Any) -> None:
    """Wrap a function itself: others may have imported it by its name before the run."""
    inner = getattr(function, "__wrapped__", None)
    for cell in function.__closure__ or ():
        if inner is not None and cell.cell_contents is inner:
            set_(cell, "cell_contents", wrap(inner))
            return
    name = f"_leeboard_{function.__name__}"
    original = types.FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    original.__kwdefaults__ = function.__kwdefaults__
    set_(module, name, wrap(original))
    code = _forward.__code__.replace(co_names=(name,), co_filename=function.__code__.co_filename)
    set_(function, "__code__", code)


def _forward(*args: Any, **kwargs: Any) -> Any:
    return really(*args, **kwargs)  # The name is another in each function's code.


def _with_swaps(set_: Callable[[Any, str, Any], Any]) -> None:
    """Parameters that FakeTensorMode remembers cannot be swapped by `Module.to`: let it forget."""
    import torch

    swap = getattr(torch.utils, "swap_tensors", None)
    if swap is None:
        return

    @functools.wraps(swap)
    def forgotten(one: Any, other: Any) -> None:
        mode = active()
        if mode is not None:
            mode.forget()
        swap(one, other)

    set_(torch.utils, "swap_tensors", forgotten)


class _Reducer:
    """DDP's reducer; what it tells other ranks about its buckets has values."""

    def __init__(self, reducer: Any, mode: FakeMode) -> None:
        self._reducer, self._mode = reducer, mode

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reducer, name)

    def _rebuild_buckets(self) -> bool:
        with self._mode.real_integers():
            return bool(self._reducer._rebuild_buckets())


def _with_values_in_c(set_: Callable[[Any, str, Any], Any]) -> None:
    """DDP compares shapes, and agrees on the order of buckets, in C++."""
    from torch.nn.parallel import DistributedDataParallel

    constructor = DistributedDataParallel.__init__

    @functools.wraps(constructor)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        mode = active()
        with contextlib.nullcontext() if mode is None else mode.real_integers():
            constructor(self, *args, **kwargs)

    set_(DistributedDataParallel, "__init__", init)
    before = getattr(DistributedDataParallel, "_pre_forward", None)
    if before is None:
        return

    @functools.wraps(before)
    def pre_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        mode = active()
        if mode is None:
            return before(self, *args, **kwargs)
        reducer = self.reducer
        self.reducer = _Reducer(reducer, mode)
        try:
            return before(self, *args, **kwargs)
        finally:
            self.reducer = reducer

    set_(DistributedDataParallel, "_pre_forward", pre_forward)
