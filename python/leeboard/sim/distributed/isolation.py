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


class Spaces:
    """The module attributes that every rank of a run has for itself; it grows with imports.

    Attributes:
        keys: Names of the attributes.
        read: Gives their values.
        write: Sets them.
        holder: The rank that has the baton.
        clock: A recent simulated time in picoseconds, noted when `asked`: the thread that shows how
            far the run is may not ask the engine.
    """

    read: Callable[[], tuple[Any, ...]]
    write: Callable[[tuple[Any, ...]], None]

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.holder: Rank | None = None
        self.asked = False
        self.clock = 0
        self._holders: list[dict[str, Any]] = []
        self._makers: list[Callable[[], Any]] = []
        self._late = dict(_LATE)
        self._modules = 0
        for module, keys in _SHARED.items():
            holder = vars(sys.modules[module])
            for key in keys:
                if key in holder:
                    self._add(holder, key, _own)
        self._add(sys.modules, "__main__", _own)
        self.look()
        self._compile()

    def fresh(self, begin: int = 0) -> tuple[Any, ...]:
        """Values for a rank that has none yet, from attribute `begin` on."""
        return tuple(make() for make in self._makers[begin:])

    def look(self) -> None:
        """Add what has been imported since."""
        if len(sys.modules) == self._modules:
            return
        self._modules = len(sys.modules)
        before = len(self.keys)
        for name in [name for name in self._late if name in sys.modules]:
            holder = vars(sys.modules[name])
            for key, start in self._late.pop(name).items():
                if key in holder:
                    self._add(holder, key, start)
        if len(self.keys) > before:
            self._compile()

    def note(self) -> None:
        """Keep the clock of the rank that leaves."""
        rank = current()
        self.clock, self.asked = rank.core.clock(rank.number), False

    def _add(self, holder: dict[str, Any], key: str, start: Callable[[Any], Any]) -> None:
        self.keys.append(key)
        self._holders.append(holder)
        self._makers.append(functools.partial(start, holder[key]))

    def _compile(self) -> None:
        # Straight code: a loop over the attributes would be half of what a hand-off costs.
        names = {f"h{at}": holder for at, holder in enumerate(self._holders)}
        places = "".join(f"h{at}[{key!r}], " for at, key in enumerate(self.keys))
        exec(  # noqa: S102
            f"def read(): return ({places})\ndef write(values): ({places}) = values", names
        )
        self.read, self.write = names["read"], names["write"]  # type: ignore[assignment]


def _own(value: Any) -> Any:
    """A rank's own copy of a container that is changed in place."""
    if type(value) is list:
        return list(value)
    return OrderedDict(value) if type(value) is OrderedDict else value


_get_state, _set_state = torch.default_generator.get_state, torch.default_generator.set_state
_get_dtype = torch.get_default_dtype
_cuda_in_use: Callable[[], bool] = torch.cuda.is_initialized


class ProcessState:
    """What one rank's process holds besides its threads.

    Args:
        spaces: The module attributes, of all ranks of the run.
        environ: Environment variables that the rank has beside those of the process.
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
        encode = os.environ.encodekey
        self._spaces = spaces
        own_variables = {encode(key): encode(value) for key, value in environ.items()}
        self._environ = {**os.environ._data, **own_variables}  # type: ignore[attr-defined]
        self._generator = torch.Generator().manual_seed(seed).get_state()
        self._dtype = torch.get_default_dtype()
        self._cuda: list[torch.Tensor] | None = None
        self.random = random.Random(seed)
        started = {"_rand": np.random.RandomState(seed % 2**32), **own}
        if main is not None:
            started["__main__"] = main
        values = zip(spaces.keys, spaces.fresh(), strict=True)
        self._values = tuple(started.get(key, value) for key, value in values)

    def leave(self) -> None:
        """Keep the state as the rank leaves it."""
        spaces = self._spaces
        if spaces.asked:
            spaces.note()
        spaces.look()
        self._values = spaces.read()
        self._generator = _get_state()
        self._dtype = _get_dtype()
        if _cuda_in_use():
            self._cuda = torch.cuda.get_rng_state_all()

    def enter(self) -> None:
        """Put the state back as the rank left it."""
        os.environ._data = self._environ  # type: ignore[attr-defined]
        spaces, values = self._spaces, self._values
        spaces.holder = find()
        if len(values) < len(spaces.keys):
            values += spaces.fresh(len(values))
        spaces.write(values)
        _set_state(self._generator)
        if _get_dtype() is not self._dtype:
            torch.set_default_dtype(self._dtype)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)


class Isolation:
    """Keeps the process's own state for the time of a run, and puts it back."""

    def __init__(self) -> None:
        self.spaces = Spaces()
        self._patches = Patches()
        self._environ = os.environ._data  # type: ignore[attr-defined]
        self._values = self.spaces.read()
        self._generator = torch.default_generator.get_state()
        self._dtype = torch.get_default_dtype()
        self._threads = torch.get_num_threads()
        self._set: set[Any] = set()

    def __enter__(self) -> Self:
        _share(self._patches, random, lambda rank: _state(rank).random)
        _share(self._patches, mtrand, lambda rank: mtrand._rand)
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
        self.spaces.write(self._values + self.spaces.fresh(len(self._values)))
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
            self._set.add(os.environ.encodekey(os.fsdecode(name)))
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
