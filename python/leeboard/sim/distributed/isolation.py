"""State that belongs to a process, for ranks that share one: it changes hands with the baton.

What torch keeps per thread (grad mode, autocast, dispatch modes, the default device) needs nothing.
`ProcessState` swaps the rest, by reference where it can: environment variables, `sys.argv`, streams,
`__main__`, warning filters, hooks on all modules, torch's default generator and dtype. The functions
of `random` and `numpy.random` are led to generators of the rank's own.
"""

from __future__ import annotations

import functools
import os
import random
import signal
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.modules.module
import torch.utils._python_dispatch
from numpy.random import mtrand

from leeboard.sim.distributed.patches import Patches
from leeboard.sim.distributed.rank import Rank, current, find

if TYPE_CHECKING:
    from typing_extensions import Self

_CONTEXT_PARALLEL = "torch.distributed.tensor.experimental._context_parallel._attention"


def _starting(module: Any, prefix: str) -> tuple[str, ...]:
    return tuple(name for name in vars(module) if name.startswith(prefix))


# Module attributes that two ranks must not share: of modules that are there from the start, ...
_SHARED: dict[str, tuple[str, ...]] = {
    "sys": ("argv", "path", "stdout", "stderr", "excepthook"),
    "warnings": ("filters", "showwarning", "_showwarnmsg_impl"),
    "numpy.random.mtrand": ("_rand",),
    "torch.nn.modules.module": _starting(torch.nn.modules.module, "_global_"),
    # `context_parallel` replaces it while it is entered.
    "torch.nn.functional": ("scaled_dot_product_attention",),
    "torch.utils._python_dispatch": _starting(torch.utils._python_dispatch, "_is_in_"),
}
# ... and of modules that the script may import: what they hold after their import.
_LATE: dict[str, dict[str, Callable[[Any], Any]]] = {
    "torch.distributed.tensor._random": {"_rng_tracker": lambda value: None},
    _CONTEXT_PARALLEL: {
        "_replaced_functions": lambda value: {},
        "_cp_options": lambda value: type(value)(),
        "_dispatch_mode": lambda value: type(value)["MONKEY_PATCH"],
    },
}


class _Space:
    """Attributes of one module, read and written together."""

    __slots__ = ("fresh", "keys", "read", "space")

    def __init__(
        self,
        space: dict[str, Any],
        keys: tuple[str, ...],
        fresh: Callable[[], tuple[Any, ...]],
    ) -> None:
        self.space = space
        self.keys = keys
        get = itemgetter(*keys)
        self.read: Callable[[dict[str, Any]], tuple[Any, ...]] = (
            get if len(keys) > 1 else lambda values: (get(values),)
        )
        self.fresh = fresh


class Spaces:
    """The module attributes that every rank of a run has for itself; it grows with imports."""

    def __init__(self) -> None:
        self.all = [
            self._of(vars(sys.modules[module]), keys) for module, keys in _SHARED.items() if keys
        ]
        self.all.append(self._of(sys.modules, ("__main__",)))
        self._waiting = dict(_LATE)
        self._modules = 0
        # For the line that tells how far the run is: the thread that shows it may not ask the engine.
        self.asked = False
        self.clock = 0
        self.look()

    def note(self) -> None:
        """Keep the clock of the rank that leaves."""
        rank = current()
        self.clock, self.asked = rank.core.clock(rank.number), False

    def look(self) -> None:
        """Add what has been imported since."""
        if len(sys.modules) == self._modules:
            return
        self._modules = len(sys.modules)
        for name in [name for name in self._waiting if name in sys.modules]:
            space, makers = vars(sys.modules[name]), self._waiting.pop(name)
            keys = tuple(key for key in makers if key in space)
            if keys:
                makes = [functools.partial(makers[key], space[key]) for key in keys]
                self.all.append(
                    _Space(space, keys, lambda makes=makes: tuple(make() for make in makes))
                )

    @staticmethod
    def _of(space: dict[str, Any], keys: tuple[str, ...]) -> _Space:
        start = tuple(space[key] for key in keys)
        return _Space(space, keys, lambda: tuple(_own(value) for value in start))


def _own(value: Any) -> Any:
    """A rank's own copy of a container that is changed in place."""
    if type(value) is list:
        return list(value)
    return OrderedDict(value) if type(value) is OrderedDict else value


class ProcessState:
    """What one rank's process holds besides its threads.

    Args:
        spaces: The module attributes, of all ranks of the run.
        environ: The rank's environment variables.
        seed: Of torch's default generator, `random` and `numpy.random`.
        own: Attributes of `sys` that the rank starts with: argv, path, stdout, stderr.
        main: Its `__main__` module; None: the process's.
    """

    def __init__(
        self,
        spaces: Spaces,
        environ: Mapping[str, str],
        seed: int,
        own: Mapping[str, Any],
        main: Any = None,
    ) -> None:
        encode = os.environ.encodekey  # type: ignore[attr-defined]
        self._spaces = spaces
        self._environ = {encode(key): encode(value) for key, value in environ.items()}
        self._generator = torch.Generator().manual_seed(seed).get_state()
        self._dtype = torch.get_default_dtype()
        self._cuda: list[torch.Tensor] | None = None
        self.random = random.Random(seed)
        started = {"_rand": np.random.RandomState(seed % 2**32), **own}
        if main is not None:
            started["__main__"] = main
        self._values = [
            tuple(
                started.get(key, value)
                for key, value in zip(space.keys, space.fresh(), strict=True)
            )
            for space in spaces.all
        ]

    def leave(self) -> None:
        """Keep the state as the rank leaves it."""
        spaces = self._spaces
        if spaces.asked:
            spaces.note()
        spaces.look()
        self._values = [space.read(space.space) for space in spaces.all]
        self._generator = torch.default_generator.get_state()
        self._dtype = torch.get_default_dtype()
        if torch.cuda.is_initialized():
            self._cuda = torch.cuda.get_rng_state_all()

    def enter(self) -> None:
        """Put the state back as the rank left it."""
        os.environ._data = self._environ  # type: ignore[attr-defined]
        spaces, values = self._spaces.all, self._values
        while len(values) < len(spaces):
            values.append(spaces[len(values)].fresh())
        for space, kept in zip(spaces, values, strict=True):
            space.space.update(zip(space.keys, kept, strict=True))
        torch.default_generator.set_state(self._generator)
        if torch.get_default_dtype() is not self._dtype:
            torch.set_default_dtype(self._dtype)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)


class Isolation:
    """Keeps the process's own state for the time of a run, and puts it back."""

    def __init__(self) -> None:
        self.spaces = Spaces()
        self._patches = Patches()
        self._environ = os.environ._data  # type: ignore[attr-defined]
        self._values = [space.read(space.space) for space in self.spaces.all]
        self._generator = torch.default_generator.get_state()
        self._dtype = torch.get_default_dtype()
        self._threads = torch.get_num_threads()
        self._set: set[Any] = set()

    def __enter__(self) -> Self:
        _share(self._patches, random, lambda rank: _state(rank).random)
        _share(self._patches, mtrand, lambda rank: mtrand._rand)  # type: ignore[attr-defined]
        for name in vars(mtrand):
            if name in vars(np.random) and vars(np.random)[name] is not vars(mtrand)[name]:
                self._patches.set(np.random, name, vars(mtrand)[name])
        for change in ("putenv", "unsetenv"):
            self._patches.set(os, change, self._noted(getattr(os, change)))
        self._patches.set(signal, "signal", _handled(signal.signal))
        torch.set_num_threads(1)
        self._patches.set(torch, "set_num_threads", _ranks_have_one_thread)
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.undo()
        spaces = self.spaces.all
        for space, kept in zip(spaces, self._values, strict=False):
            space.space.update(zip(space.keys, kept, strict=True))
        for space in spaces[len(self._values) :]:
            space.space.update(zip(space.keys, space.fresh(), strict=True))
        torch.default_generator.set_state(self._generator)
        torch.set_default_dtype(self._dtype)
        torch.set_num_threads(self._threads)
        os.environ._data = self._environ  # type: ignore[attr-defined]
        # What ranks set was put into the C library's environment, too.
        for name in self._set:
            if name in self._environ:
                os.putenv(name, self._environ[name])
            else:
                os.unsetenv(name)

    def _noted(self, change: Callable[..., None]) -> Callable[..., None]:
        def noted(name: Any, *value: Any) -> None:
            self._set.add(os.environ.encodekey(os.fsdecode(name)))  # type: ignore[attr-defined]
            change(name, *value)

        return noted


def _ranks_have_one_thread(count: int) -> None:
    """What `torch.set_num_threads` does in a run: nothing. A rank computes on one core."""


def _handled(original: Callable[..., Any]) -> Callable[..., Any]:
    handlers: dict[tuple[int, int], Any] = {}

    @functools.wraps(original)
    def handle(signum: int, handler: Any) -> Any:
        rank = find()
        if rank is None:
            return original(signum, handler)
        # No signal is for one rank: handlers are kept, and never called.
        before = handlers.get((rank.number, signum), signal.SIG_DFL)
        handlers[rank.number, signum] = handler
        return before

    return handle


def _state(rank: Rank) -> ProcessState:
    state = rank.state
    assert isinstance(state, ProcessState)
    return state


def _share(patches: Patches, module: Any, generator: Callable[[Rank], Any]) -> None:
    """Lead the functions of a module that draw from one hidden generator to the caller's own."""
    hidden = module._inst if module is random else module._rand
    for name, function in list(vars(module).items()):
        if getattr(function, "__self__", None) is hidden:
            patches.set(module, name, _led(function, name, generator))


def _led(function: Callable[..., Any], name: str, generator: Callable[[Rank], Any]) -> Any:
    @functools.wraps(function)
    def draw(*args: Any, **kwargs: Any) -> Any:
        rank = find()
        if rank is None:
            return function(*args, **kwargs)
        return getattr(generator(rank), function.__name__)(*args, **kwargs)

    return draw
