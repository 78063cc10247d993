"""torch.distributed for many ranks in one process: a world per thread, and any backend is `sim`.

Patches private names of `torch.distributed.distributed_c10d` for the time of a run: c10d keeps its
process groups in module globals. What is replaced is looked up by c10d itself, so that a public
function that another module has imported by name works, too.
"""

from __future__ import annotations

import copy
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlparse

import torch
import torch.distributed as dist
from torch.distributed import device_mesh, distributed_c10d

from leeboard.sim.distributed import group, store
from leeboard.sim.distributed.patches import Patches
from leeboard.sim.distributed.rank import Rank, find
from leeboard.sim.distributed.session import session
from leeboard.sim.errors import SimulationError

BACKEND = "sim"
_DEVICES = ["cpu", "cuda"]
_NEEDED = (
    "_World",
    "_world",
    "_get_default_timeout",
    "_new_process_group_helper",
    "_process_group_name",
    "_store_based_barrier",
    "default_pg_timeout",
    "rendezvous",
)
# Tables of `Backend` into which register_backend writes.
_TABLES = (
    "_plugins",
    "backend_list",
    "backend_capability",
    "backend_type_map",
    "default_device_backend_map",
)


class _GroupRanks(dict[Any, dict[int, int]]):
    """c10d's table of the ranks of each group. Equal entries of all ranks are one object: a thousand
    times a thousand numbers are a hundred megabytes."""

    def __init__(self, shared: dict[tuple[int, ...], dict[int, int]]) -> None:
        super().__init__()
        self._shared = shared

    def __setitem__(self, group: Any, ranks: dict[int, int]) -> None:
        if list(ranks.values()) == list(range(len(ranks))):
            ranks = self._shared.setdefault(tuple(ranks), ranks)
        super().__setitem__(group, ranks)


class _Worlds(threading.local):
    """c10d's `_World`, one a thread.

    Args:
        shared: Ranks of groups, of all threads.
    """

    def __init__(self, shared: dict[tuple[int, ...], dict[int, int]]) -> None:
        for name, member in vars(distributed_c10d._World).items():
            if isinstance(member, property) and name != "pg_config_info":
                setattr(self, name, _EMPTY.get(name, dict)())
        self.pg_group_ranks = _GroupRanks(shared)
        rank = find()
        if rank is not None:
            rank.world = vars(self)
        else:
            # A thread that a rank started knows the rank's groups; they refuse to serve it.
            parent = getattr(threading.current_thread(), _PARENT, None)
            vars(self).update({} if parent is None else parent.world)

    pg_config_info = distributed_c10d._World.pg_config_info


_PARENT = "_leeboard_rank"


def _started(original: Callable[..., None]) -> Callable[..., None]:
    """`threading.Thread.start`, for threads that know which rank they come from."""

    @functools.wraps(original)
    def start(thread: threading.Thread) -> None:
        rank = find() or getattr(threading.current_thread(), _PARENT, None)
        if rank is not None:
            setattr(thread, _PARENT, rank)
        original(thread)

    return start


_EMPTY: dict[str, Callable[[], Any]] = {
    "default_pg": lambda: None,
    "group_count": int,
    "comms": list,
}


def install(patches: Patches) -> None:
    """Make `torch.distributed` serve the ranks of a run.

    Args:
        patches: Takes note of what is replaced.

    Raises:
        SimulationError: This torch lacks a name that the ranks' worlds stand on.
    """
    missing = [name for name in _NEEDED if not hasattr(distributed_c10d, name)]
    isolate = getattr(torch._C._distributed_c10d, "_set_thread_isolation_mode", None)
    if missing or isolate is None:
        names = ", ".join([*missing, *(["_set_thread_isolation_mode"] if isolate is None else [])])
        raise SimulationError(
            f"torch {torch.__version__} lacks {names} of torch.distributed, which simulated ranks "
            "need; expected torch 2.6 to 2.13"
        )
    if dist.is_initialized():
        raise SimulationError(
            "this process is a member of a process group: start the simulation from a process "
            "that has called no init_process_group, or after destroy_process_group()"
        )
    isolate(True)
    patches.after(lambda: isolate(False))
    _register(patches)
    patches.set(distributed_c10d, "_world", _Worlds({}))
    patches.set(threading.Thread, "start", _started(threading.Thread.start))
    for name in ("_backend", "_default_pg_init_method"):
        patches.set(distributed_c10d, name, getattr(distributed_c10d, name, None))
    # Those that c10d calls by their names in its own module ...
    for name, replacement in (
        ("_new_process_group_helper", _with_sim(distributed_c10d._new_process_group_helper)),
        ("_store_based_barrier", lambda *_, **__: None),
        ("_get_default_timeout", lambda backend: distributed_c10d.default_pg_timeout),
    ):
        patches.set(distributed_c10d, name, replacement)
    # ... and those that scripts call.
    modules = (dist, distributed_c10d, sys.modules["torch.distributed.rendezvous"], device_mesh)
    replaced: dict[str, Any] = {
        "rendezvous": _rendezvous,
        "monitored_barrier": _monitored_barrier,
        "split_group": _split_group,
        "TCPStore": store.TCPStore,
        "FileStore": store.FileStore,
        "HashStore": store.HashStore,
    }
    for name, replacement in replaced.items():
        for module in modules:
            if name in vars(module):
                patches.set(module, name, replacement)
    for name in ("Gloo", "NCCL", "MPI", "UCC", "XCCL"):
        if hasattr(dist, f"ProcessGroup{name}"):
            patches.set(dist, f"ProcessGroup{name}", _refused(f"ProcessGroup{name}"))


def _register(patches: Patches) -> None:
    backend = dist.Backend
    for name in _TABLES:
        patches.set(backend, name, copy.copy(getattr(backend, name)))
    patches.set(backend, BACKEND.upper(), BACKEND)
    backend.register_backend(BACKEND, group.create, extended_api=True, devices=_DEVICES)


def _with_sim(helper: Callable[..., Any]) -> Callable[..., Any]:
    """c10d's maker of process groups, with `sim` for whatever backend was asked for."""

    def make(
        size: int, number: int, ranks: list[int], backend: Any, *args: Any, **kwargs: Any
    ) -> Any:
        rank = find()
        if rank is None:
            return helper(size, number, ranks, backend, *args, **kwargs)
        if size < 0:
            # For MPI, which knows better.
            size, number = rank.size, rank.number
        session(rank).joined.add(rank.number)
        if distributed_c10d._world.default_pg is None:
            rank.worlds += 1
        kwargs.update(backend_options=None, device_id=None)
        return helper(size, number, ranks, dist.Backend(BACKEND), *args, **kwargs)

    return make


def _rendezvous(
    url: str, rank: int = -1, world_size: int = -1, timeout: timedelta | None = None, **_: Any
) -> Iterator[tuple[store.SimStore, int, int]]:
    """The run's own store, whatever the address; number and size as the run has them."""
    if not isinstance(url, str):
        raise TypeError(f"init_method: got {url!r}, expected text such as env://")
    caller = session_rank()
    if sys._getframe(1).f_globals.get("__name__", "").startswith("torch.distributed.rpc"):
        raise RuntimeError(
            "torch.distributed.rpc is not simulated; expected init_process_group and its collectives "
            "and messages"
        )
    parts = urlparse(url)
    if parts.scheme not in ("env", "tcp", "file"):
        raise ValueError(f"init_method: got {url!r}, expected env://, tcp://host:port or file://")
    query = parse_qs(parts.query)
    environ = os.environ if parts.scheme == "env" else {}
    for given, name, expected, what in (
        (rank, "rank", caller.number, "this is rank"),
        (world_size, "world_size", caller.size, "the number of simulated ranks is"),
    ):
        stated = given
        if stated == -1:
            stated = int(query.get(name, [environ.get(name.upper(), -1)])[0])
        if stated == -1 and parts.scheme != "env":
            raise ValueError(
                f"init_process_group(init_method={url!r}): {name} is missing; use env://, or pass "
                f"{name}=int(os.environ[{name.upper()!r}])"
            )
        if stated not in (-1, expected):
            raise ValueError(
                f"init_process_group: {name} is {stated}, but {what} {expected}: take it from "
                f"os.environ[{name.upper()!r}]"
                + (f", or run with --nproc-per-node {stated}" if name == "world_size" else "")
            )
    table = store.table(session(caller).stores, "store of init_process_group")
    yield store.SimStore(table, timeout), caller.number, caller.size
    raise RuntimeError("a simulated run cannot meet again on the same store")


def session_rank() -> Rank:
    """The calling rank.

    Raises:
        RuntimeError: The thread is one that a rank has started, or no rank's at all.
    """
    rank = find()
    if rank is None:
        raise RuntimeError(
            "torch.distributed is used from a thread that is no simulated rank's: a rank may "
            "communicate from the thread that runs the script only"
        )
    return rank


def _monitored_barrier(
    group: Any = None, timeout: Any = None, wait_all_ranks: bool = False
) -> None:
    """A barrier; a rank that never comes ends the run as a deadlock, which says who is missing."""
    dist.barrier(group=group)


def _split_group(
    parent_pg: Any = None,
    split_ranks: list[list[int]] | None = None,
    timeout: timedelta | None = None,
    pg_options: Any = None,
    group_desc: str | None = None,
    **_: Any,
) -> Any:
    """`torch.distributed.split_group`, which torch has for NCCL alone.

    Args:
        parent_pg: The group to split; None: all ranks.
        split_ranks: Of each new group the ranks, counted in the parent.
        timeout: Not used.
        pg_options: Not used.
        group_desc: What the group is for.

    Returns:
        The group of the calling rank; None if it is in none.
    """
    if not split_ranks:
        raise ValueError(f"split_ranks: got {split_ranks!r}, expected lists of ranks")
    default = distributed_c10d._get_default_group()
    parent = parent_pg or default
    ranks = dist.get_process_group_ranks(parent)
    mine = [sorted(split) for split in split_ranks if parent.rank() in split]
    if not mine:
        return None
    members = [ranks[number] for number in mine[0]]
    name = distributed_c10d._process_group_name(mine[0], use_hashed_name=True)
    group, _store = distributed_c10d._new_process_group_helper(
        len(members),
        members.index(default.rank()),
        members,
        dist.Backend(BACKEND),
        distributed_c10d._get_default_store(),
        name,
        timeout=timeout or distributed_c10d.default_pg_timeout,
        group_desc=group_desc,
    )
    distributed_c10d._world.pg_group_ranks[group] = {
        rank: number for number, rank in enumerate(members)
    }
    return group


def _refused(name: str) -> Any:
    original = getattr(dist, name)

    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError(
            f"{name}(...) makes a real process group, which simulated ranks cannot use; expected "
            "dist.init_process_group() or dist.new_group(), whatever the backend"
        )

    return type(name, (original,), {"__new__": refuse, "__doc__": original.__doc__})
