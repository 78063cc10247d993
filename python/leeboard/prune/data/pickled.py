"""Numbers out of a pickle, without running it.

`pickle` calls whatever a file names. This reader is another program for the same format: it knows
numbers, text, lists, tuples, dicts and how numpy writes arrays down, and nothing else. A name in
the file is compared with a short list and never imported; nothing that the file holds is called.
"""

from __future__ import annotations

import codecs
import io
import os
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

_CORES = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
# What a file may name, and what this reader does instead of calling it.
_NAMES = {
    **{(core, "_reconstruct"): "array" for core in _CORES},
    **{(core, "scalar"): "scalar" for core in _CORES},
    **{(numeric, "_frombuffer"): "from_buffer" for numeric in _NUMERIC},
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",
    ("builtins", "bytes"): "bytes",
    ("__builtin__", "bytes"): "bytes",
}
_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|[SU][0-9]{1,6}")


class RefusedPickleError(ValueError):
    """The file is damaged, or holds something else than numbers, text and containers of them."""


def read_pickle(path: str | os.PathLike[str]) -> Any:
    """What a pickle holds: dicts, lists, tuples, numbers, text, bytes, and numpy arrays of numbers.

    Pickles of Python 2 and 3, protocols 0 to 5. Bytes of Python 2 become text, as with
    `encoding="latin1"`. Nothing is imported or called that the file names.

    Raises:
        FileNotFoundError: If there is no such file.
        RefusedPickleError: For anything else in it, by name, or if it is damaged.
    """
    path = Path(path)
    with path.open("rb") as file:
        reader = _Reader(file, path.stat().st_size)
        try:
            return reader.run()
        except RefusedPickleError as error:
            raise RefusedPickleError(f"{path}: {error}") from None
        except (ValueError, TypeError, LookupError, ArithmeticError, struct.error) as error:
            raise RefusedPickleError(f"{path}: damaged pickle ({error})") from error


@dataclass(frozen=True)
class _Name:
    """Something that the file names; `role` is what stands for it here."""

    role: str


@dataclass
class _Pending:
    """An array or dtype that was begun; its state follows."""

    role: str
    code: str = ""
    keys: list[int] = field(default_factory=list)


_MARK = _Name("mark")


class _Reader:
    """A pickle machine: a stack, a memo, and one method for each operation that it knows."""

    def __init__(self, file: io.BufferedReader, size: int) -> None:
        self.file, self.size = file, size
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        while True:
            code = self.take(1)
            if code == b".":
                result = self.stack.pop()
                if isinstance(result, (_Name, _Pending)):
                    raise RefusedPickleError("holds no data")
                return result
            step = _STEPS.get(code)
            if step is None:
                known = _REFUSED.get(code, "an unknown operation")
                raise RefusedPickleError(
                    f"holds {known} (opcode {code!r}); only numbers, text, containers and numpy "
                    "arrays are read, and nothing was run"
                )
            step(self)

    def take(self, count: int) -> bytes:
        """The next bytes; a length beyond the file's end takes no memory."""
        if not 0 <= count <= self.size - self.file.tell():
            raise RefusedPickleError("damaged pickle (it ends too early)")
        return self.file.read(count)

    def line(self) -> bytes:
        line = self.file.readline()
        if not line.endswith(b"\n"):
            raise RefusedPickleError("damaged pickle (it ends too early)")
        return line[:-1].removesuffix(b"\r")

    def number(self, layout: str) -> Any:
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))[0]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def marked(self) -> list[Any]:
        """What lies above the last mark; both are taken off."""
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise ValueError("no mark")
        values = self.stack[place + 1 :]
        del self.stack[place:]
        return values

    def top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise ValueError(f"expected a {kind.__name__} on the stack")
        return self.stack[-1]

    def keep(self, key: int) -> None:
        value = self.stack[-1]
        self.memo[key] = value
        if isinstance(value, _Pending):
            value.keys.append(key)

    def name(self, module: str, name: str) -> None:
        role = _NAMES.get((module, name))
        if role is None:
            raise RefusedPickleError(
                f"names {module}.{name}, which is none of numpy's ways to write an array down; "
                "nothing was run"
            )
        self.push(_Name(role))

    def call(self) -> None:
        """What stands for a call: an array, a dtype, a number or bytes."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not _Name or type(arguments) is not tuple:
            raise RefusedPickleError("calls something that is no name; nothing was run")
        self.push(_called(function.role, arguments))

    def build(self) -> None:
        """The state of an array or a dtype."""
        state, begun = self.stack.pop(), self.stack.pop()
        if type(begun) is not _Pending or type(state) is not tuple:
            raise RefusedPickleError("sets the state of something that is no array; refused")
        if begun.role == "dtype":
            built: Any = _Pending("dtype", _dtype_code(begun.code, state), begun.keys)
        else:
            *_, shape, dtype, by_column, raw = state
            built = _array(raw, dtype, shape, "F" if by_column is True else "C")
            if not built.dtype.isnative:
                # As numpy does where it sets the state of an array.
                built = built.astype(built.dtype.newbyteorder("="))
        for key in begun.keys:
            self.memo[key] = built
        self.push(built)

    def update(self, items: list[Any]) -> None:
        target = self.top(dict)
        if len(items) % 2:
            raise ValueError("a key without a value")
        for key in items[::2]:
            # Python hashes nested tuples by recursion in C, without a limit.
            if any(type(part) is tuple for part in (key if type(key) is tuple else ())):
                raise ValueError("a key of nested tuples")
        target.update(zip(items[::2], items[1::2], strict=True))


def _called(role: str, arguments: tuple[Any, ...]) -> Any:
    if role == "array":
        if arguments[:1] != (_Name("ndarray"),):
            raise RefusedPickleError("holds a subclass of numpy's array; refused")
        return _Pending("array")
    if role == "dtype":
        return _Pending("dtype", _checked_dtype(arguments[0]))
    if role == "encode":
        text, encoding = arguments
        if type(text) is not str or encoding not in ("latin1", "latin-1"):
            raise ValueError("text in an unknown encoding")
        return text.encode("latin1")
    if role == "bytes" and not arguments:
        return b""
    if role == "scalar":
        dtype, raw = arguments
        return _array(raw, dtype, (), "C")[()].item()
    if role == "from_buffer":
        raw, dtype, shape, order = arguments
        return _array(raw, dtype, shape, "F" if order == "F" else "C")
    raise RefusedPickleError(f"calls {role}; refused")


def _checked_dtype(code: object) -> str:
    if type(code) is not str or not _DTYPE.fullmatch(code):
        given = repr(code[:40]) if type(code) is str else f"a {type(code).__name__}"
        raise RefusedPickleError(
            f"holds an array of dtype {given}; only numbers and text are read, no Python objects"
        )
    return code


def _dtype_code(code: str, state: tuple[Any, ...]) -> str:
    """The code with its byte order. State: version, order, subarray, names, fields, ..."""
    order, *structure = state[1:5]
    if order not in ("<", ">", "|", "=") or any(part is not None for part in structure):
        raise RefusedPickleError("holds an array of records; refused")
    return f"{order}{code}"


def _array(raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray[Any, Any]:
    import numpy as np

    if type(dtype) is not _Pending or dtype.role != "dtype":
        raise ValueError("an array without a dtype")
    if type(shape) is not tuple or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("an array without a shape")
    if type(raw) is str:
        raw = raw.encode("latin1")
    if type(raw) not in (bytes, bytearray):
        raise RefusedPickleError("holds an array of Python objects; refused")
    return np.frombuffer(raw, np.dtype(dtype.code)).reshape(shape, order=order)


def _integer(reader: _Reader) -> None:
    line = reader.line()
    # Protocol 0 writes booleans so.
    reader.push(line == b"01" if line in (b"00", b"01") else int(line))


def _quoted(reader: _Reader) -> None:
    line = reader.line()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise ValueError("text without quotes")
    reader.push(codecs.escape_decode(line[1:-1])[0].decode("latin1"))


def _long(width: str) -> Callable[[_Reader], None]:
    return lambda r: r.push(int.from_bytes(r.take(r.number(width)), "little", signed=True))


def _text(width: str, encoding: str) -> Callable[[_Reader], None]:
    return lambda r: r.push(r.take(r.number(width)).decode(encoding, "surrogatepass"))


def _binary(width: str) -> Callable[[_Reader], None]:
    return lambda r: r.push(r.take(r.number(width)))


def _number(width: str) -> Callable[[_Reader], None]:
    return lambda r: r.push(r.number(width))


def _constant(value: Any) -> Callable[[_Reader], None]:
    return lambda r: r.push(value)


def _tuple(count: int) -> Callable[[_Reader], None]:
    def step(reader: _Reader) -> None:
        if count > len(reader.stack):
            raise ValueError("too few values")
        cut = len(reader.stack) - count
        values = tuple(reader.stack[cut:])
        del reader.stack[cut:]
        reader.push(values)

    return step


def _dict(reader: _Reader) -> None:
    items = reader.marked()
    reader.push({})
    reader.update(items)


def _set_item(reader: _Reader) -> None:
    value, key = reader.stack.pop(), reader.stack.pop()
    reader.update([key, value])


def _extend(reader: _Reader, values: list[Any]) -> None:
    reader.top(list).extend(values)


def _stack_global(reader: _Reader) -> None:
    name, module = reader.stack.pop(), reader.stack.pop()
    if type(name) is not str or type(module) is not str:
        raise ValueError("a name that is no text")
    reader.name(module, name)


def _get(key: Callable[[_Reader], int]) -> Callable[[_Reader], None]:
    return lambda r: r.push(r.memo[key(r)])


def _put(key: Callable[[_Reader], int]) -> Callable[[_Reader], None]:
    return lambda r: r.keep(key(r))


def _key(width: str) -> Callable[[_Reader], int]:
    return lambda r: int(r.number(width)) if width else int(r.line())


_STEPS: dict[bytes, Callable[[_Reader], Any]] = {
    b"\x80": lambda r: r.take(1),
    b"\x95": lambda r: r.take(8),
    b"(": _constant(_MARK),
    b"0": lambda r: r.stack.pop(),
    b"1": lambda r: r.marked(),
    b"2": lambda r: r.push(r.stack[-1]),
    b"N": _constant(None),
    b"\x88": _constant(True),
    b"\x89": _constant(False),
    b"I": _integer,
    b"L": lambda r: r.push(int(r.line().removesuffix(b"L"))),
    b"F": lambda r: r.push(float(r.line())),
    b"J": _number("i"),
    b"K": _number("B"),
    b"M": _number("H"),
    b"\x8a": _long("B"),
    b"\x8b": _long("i"),
    b"G": lambda r: r.push(struct.unpack(">d", r.take(8))[0]),
    b"S": _quoted,
    b"T": _text("i", "latin1"),
    b"U": _text("B", "latin1"),
    b"V": lambda r: r.push(r.line().decode("raw-unicode-escape")),
    b"X": _text("I", "utf-8"),
    b"\x8c": _text("B", "utf-8"),
    b"\x8d": _text("Q", "utf-8"),
    b"B": _binary("I"),
    b"C": _binary("B"),
    b"\x8e": _binary("Q"),
    b"\x96": _binary("Q"),
    b")": _constant(()),
    b"t": lambda r: r.push(tuple(r.marked())),
    b"\x85": _tuple(1),
    b"\x86": _tuple(2),
    b"\x87": _tuple(3),
    b"]": lambda r: r.push([]),
    b"l": lambda r: r.push(r.marked()),
    b"a": lambda r: _extend(r, [r.stack.pop()]),
    b"e": lambda r: _extend(r, r.marked()),
    b"}": lambda r: r.push({}),
    b"d": _dict,
    b"s": _set_item,
    b"u": lambda r: r.update(r.marked()),
    b"p": _put(_key("")),
    b"q": _put(_key("B")),
    b"r": _put(_key("I")),
    b"\x94": lambda r: r.keep(len(r.memo)),
    b"g": _get(_key("")),
    b"h": _get(_key("B")),
    b"j": _get(_key("I")),
    b"c": lambda r: r.name(r.line().decode("utf-8"), r.line().decode("utf-8")),
    b"\x93": _stack_global,
    b"R": lambda r: r.call(),
    b"b": lambda r: r.build(),
}
_REFUSED = {
    b"i": "an instance of a class",
    b"o": "an instance of a class",
    b"\x81": "an instance of a class",
    b"\x92": "an instance of a class",
    b"P": "a reference to something outside",
    b"Q": "a reference to something outside",
    b"\x82": "an extension's class",
    b"\x83": "an extension's class",
    b"\x84": "an extension's class",
    b"\x97": "a buffer outside of the file",
    b"\x98": "a buffer outside of the file",
    b"\x8f": "a set",
    b"\x90": "a set",
    b"\x91": "a set",
}
