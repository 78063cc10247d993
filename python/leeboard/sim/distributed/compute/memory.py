"""What the tensors of a rank take: storages from the op that makes them until they are gone."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from leeboard.sim.distributed.compute.costs import tensors

_lock = threading.Lock()
_watchers = 0
_resize: Any = None
# Of each storage that is watched, by its address: who, and its bytes.
_watched: dict[int, tuple[Storages, int]] = {}


class Storages:
    """Tells `changed` by how many bytes the storages in use grow or shrink.

    A storage counts from the op that returned it; one that FSDP or the program resizes counts as it
    is then. No allocator's rounding or cache is in it.

    Args:
        changed: Takes bytes: more than 0 for a storage that is new, less for one that is gone.
    """

    def __init__(self, changed: Callable[[int], None]) -> None:
        self.changed = changed
        self._alive: dict[int, weakref.ref[Any]] = {}

    def made(self, out: Any) -> None:
        """An op returned `out`: what is new in it counts from now on."""
        for tensor in tensors(out):
            if tensor.layout is not torch.strided:
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            size = storage.nbytes()
            if key in _watched:
                _resized(key, size)
                continue
            _watched[key] = self, size

            def gone(_: Any, key: int = key) -> None:
                self._alive.pop(key, None)
                _, last = _watched.pop(key)
                if last:
                    self.changed(-last)

            self._alive[key] = weakref.ref(storage, gone)
            if size:
                self.changed(size)

    def close(self) -> None:
        """The program is over: what is still there is watched no longer."""
        for key in self._alive:
            _watched.pop(key, None)
        self._alive.clear()


@contextmanager
def resizes_seen() -> Iterator[None]:
    """Storages tell when they are resized, until the last one that wants to know is out."""
    global _watchers, _resize
    kind: Any = torch.UntypedStorage
    with _lock:
        _watchers += 1
        if _watchers == 1:
            _resize = kind.resize_
            kind.resize_ = _telling
    try:
        yield
    finally:
        with _lock:
            _watchers -= 1
            if _watchers == 0:
                kind.resize_ = _resize


def _telling(storage: Any, size: int) -> Any:
    result = _resize(storage, size)
    if storage._cdata in _watched:
        _resized(storage._cdata, size)
    return result


def _resized(key: int, size: int) -> None:
    owner, before = _watched[key]
    if size != before:
        _watched[key] = owner, size
        owner.changed(size - before)
