"""Parts of torch that need values, made to work where a rank's tensors have none."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

from leeboard.sim.distributed.fake import active, really

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
        "init_process_group",
        "new_group",
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
    import torch.distributed as dist

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
            wrapped = _wrapped(found)
            set_(holder, last, wrapped)
            if not path and getattr(dist, last, None) is found:
                set_(dist, last, wrapped)
    _without_first_broadcast(set_)


def _wrapped(found: Any) -> Any:
    if isinstance(found, (staticmethod, classmethod)):
        return type(found)(really(found.__func__))
    return really(found)


def _without_first_broadcast(set_: Callable[[Any, str, Any], Any]) -> None:
    """DDP compares shapes of parameters in C++, by their values; here they are what they are."""
    from torch.nn.parallel import DistributedDataParallel

    constructor = DistributedDataParallel.__init__

    @functools.wraps(constructor)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        if active():
            kwargs["init_sync"] = False
        constructor(self, *args, **kwargs)

    set_(DistributedDataParallel, "__init__", init)
