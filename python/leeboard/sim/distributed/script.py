"""What ranks run: a script or a module as `__main__`, or a function; as torchrun starts it."""

from __future__ import annotations

import importlib.util
import io
import os
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_MODULE = "-m"


@dataclass(frozen=True)
class Script:
    """A program that is compiled once and run by every rank.

    Attributes:
        name: For people: the file, "-m module", or the function.
        argv: Its `sys.argv`.
        folder: What is put first on `sys.path`; empty: nothing.
        call: What a rank calls, with its `__main__` module.
        plain: Whether it is a function of the caller's.
        attributes: Of its `__main__`.
    """

    name: str
    argv: tuple[str, ...]
    call: Callable[[types.ModuleType | None], Any]
    folder: str = ""
    plain: bool = False
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def main(self) -> types.ModuleType | None:
        """A new `__main__` for one rank; None for a function, which has its module already."""
        if self.plain:
            return None
        module = types.ModuleType("__main__")
        vars(module).update(self.attributes)
        return module

    @contextmanager
    def modules(self) -> Iterator[None]:
        """Forget afterwards what was imported from the script's own folder: another script may have
        modules of the same names, and this one's may be edited before it runs again."""
        before = set(sys.modules)
        try:
            yield
        finally:
            if self.folder:
                for name in set(sys.modules) - before:
                    if _from(self.folder, sys.modules[name]):
                        del sys.modules[name]


def _from(folder: str, module: Any) -> bool:
    """Whether a module comes from a folder, and from no nearer entry of `sys.path`."""
    file = getattr(module, "__file__", None)
    if not file:
        return False
    places = [
        place
        for place in (folder, *sys.path)
        if place and file.startswith(place.rstrip(os.sep) + os.sep)
    ]
    return bool(places) and max(places, key=len) == folder


def resolve(target: str | Path | Callable[..., Any], args: Sequence[Any]) -> Script:
    """Find and compile what is to be run.

    Args:
        target: A file, "-m module" as on python's command line, or a function.
        args: Words for the script, which it finds in `sys.argv`; arguments of the function.

    Raises:
        FileNotFoundError: There is no such file.
        ModuleNotFoundError: There is no such module.
        SyntaxError: It is no Python.
        TypeError: `target` is none of these, or words are not text.
    """
    if callable(target):
        given = tuple(args)
        name = getattr(target, "__qualname__", repr(target))
        return Script(name, tuple(sys.argv), lambda main: target(*given), plain=True)
    if not isinstance(target, str | Path):
        raise TypeError(
            f"target: got {target!r}, expected the path of a script, '-m module' or a function"
        )
    wrong = [word for word in args if not isinstance(word, str)]
    if wrong:
        raise TypeError(f"args: got {wrong[0]!r}, expected text: a script finds it in sys.argv")
    if isinstance(target, str) and target.split()[:1] == [_MODULE]:
        return _module(target.removeprefix(_MODULE).strip(), tuple(args))
    return _file(Path(target), tuple(args))


def _file(path: Path, args: tuple[str, ...]) -> Script:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    code = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    attributes = {"__file__": str(path), "__builtins__": __builtins__, "__cached__": None}
    folder = str(path.resolve().parent)
    return Script(str(path), (str(path), *args), _runner(code), folder, attributes=attributes)


def _module(name: str, args: tuple[str, ...]) -> Script:
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        spec = importlib.util.find_spec(name) if name else None
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
    finally:
        sys.path.remove(here)
    code = spec.loader.get_code(spec.name) if spec is not None and spec.loader else None  # type: ignore[attr-defined]
    if spec is None or code is None:
        raise ModuleNotFoundError(f"-m {name}: no such module, or a package without __main__")
    attributes = {
        "__file__": spec.origin,
        "__builtins__": __builtins__,
        "__package__": spec.parent,
        "__loader__": spec.loader,
        "__spec__": spec,
    }
    argv = (str(spec.origin), *args)
    return Script(f"-m {name}", argv, _runner(code), here, attributes=attributes)


def _runner(code: types.CodeType) -> Callable[[types.ModuleType | None], None]:
    def call(main: types.ModuleType | None) -> None:
        assert main is not None
        exec(code, vars(main))  # noqa: S102

    return call


def environment(rank: int, ranks: int, per_node: int) -> dict[str, str]:
    """The environment variables that torchrun gives a worker, beside those of the process.

    Args:
        rank: The worker.
        ranks: How many there are.
        per_node: Workers of a node.
    """
    node, local = divmod(rank, per_node)
    here = min(per_node, ranks - node * per_node)
    values = {
        "RANK": rank,
        "LOCAL_RANK": local,
        "GROUP_RANK": node,
        "ROLE_RANK": rank,
        "ROLE_NAME": "default",
        "WORLD_SIZE": ranks,
        "LOCAL_WORLD_SIZE": here,
        "GROUP_WORLD_SIZE": -(-ranks // per_node),
        "ROLE_WORLD_SIZE": ranks,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": 29500,
        "TORCHELASTIC_RESTART_COUNT": 0,
        "TORCHELASTIC_MAX_RESTARTS": 0,
        "TORCHELASTIC_RUN_ID": "leeboard",
        "TORCHELASTIC_USE_AGENT_STORE": True,
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": 1,
        "OMP_NUM_THREADS": 1,
    }
    return {name: str(value) for name, value in values.items()}


class Prefixed(io.TextIOBase):
    """A stream that puts "[rank 3] " before every line, and writes whole lines.

    Args:
        stream: Where lines go.
        rank: Whose they are.
    """

    def __init__(self, stream: Any, rank: int) -> None:
        self._stream = stream
        self._prefix = f"[rank {rank}] "
        self._line = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the stream beneath."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def writable(self) -> bool:
        """Yes."""
        return True

    def isatty(self) -> bool:
        """Whether the stream beneath is a terminal."""
        return bool(self._stream.isatty())

    def write(self, text: str) -> int:
        """Write the lines that `text` completes."""
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._stream.write(f"{self._prefix}{line}\n")
        return len(text)

    def flush(self) -> None:
        """Pass on what is written."""
        self._stream.flush()

    def finish(self) -> None:
        """Write the last line although it has no end."""
        if self._line:
            self.write("\n")
        self._stream.flush()
