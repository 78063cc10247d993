"""DTensor learns shapes by running ops on fake tensors; those are no work of the program's."""

from __future__ import annotations

import functools
import threading
from typing import Any

# A method of ShardingPropagator, the same since torch 2.2. No public name tells these ops apart:
# under FakeTensorMode they run in the program's own mode.
_METHOD = "_propagate_tensor_meta_non_cached"


class _Hidden(threading.local):
    depth = 0


hidden = _Hidden()
_lock = threading.Lock()
_watchers = 0
_original: Any = None


def watch() -> None:
    """One more mode watches."""
    global _watchers
    with _lock:
        _watchers += 1


def install() -> None:
    """Hide the propagation's ops, until nobody watches any more. Called when a DTensor is met."""
    global _original
    if _original is not None:
        return
    import sys

    module = sys.modules.get("torch.distributed.tensor._sharding_prop")
    propagator = getattr(module, "ShardingPropagator", None)
    with _lock:
        original = getattr(propagator, _METHOD, None)
        if propagator is None or original is None or _original is not None:
            return

        @functools.wraps(original)
        def hiding(self: Any, *args: Any, **kwargs: Any) -> Any:
            hidden.depth += 1
            try:
                return original(self, *args, **kwargs)
            finally:
                hidden.depth -= 1

        setattr(propagator, _METHOD, hiding)
        _original = (propagator, original)


def unwatch() -> None:
    """One mode less; the last leaves everything as it was."""
    global _watchers, _original
    with _lock:
        _watchers -= 1
        if _watchers == 0 and _original is not None:
            propagator, original = _original
            setattr(propagator, _METHOD, original)
            _original = None
