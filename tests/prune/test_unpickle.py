"""Pickles are read without being run."""

from __future__ import annotations

import os
import pickle
import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leeboard.prune.data.pickled import RefusedPickleError, read_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "file.pkl"
    path.write_bytes(content)
    return path


def same(a: Any, b: Any) -> None:
    assert type(a) is type(b), (a, b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    else:
        assert a == b


ARRAY = np.arange(6, dtype=np.float64).reshape(2, 3)
DATA = {
    "subject": "S2",
    "signal": {"wrist": {"ACC": ARRAY, "BVP": ARRAY[:, :1].astype(np.float32)}, "again": ARRAY},
    "label": np.array([0, 1, 2, 7], np.int32),
    "columns": np.asfortranarray(ARRAY),
    "big": ARRAY.astype(">f8"),
    "flags": np.array([True, False]),
    "names": np.array(["a", "bc"]),
    "empty": np.zeros((0, 3)),
    "plain": [1, -2, 1 << 70, 0.5, True, False, None, "über", b"\x00\xff", (), (1,), (1, 2, 3, 4)],
    3: [[], {}, 255, 256, 70000, -1, "", b""],
}


def test_deep_nests_do_not_end_the_process(tmp_path: Path) -> None:
    """Python hashes tuples by recursion in C: such a key would overflow the stack."""
    deep = b"\x80\x02}" + b")" + b"\x85" * 300_000 + b"K\x01s."
    with pytest.raises(RefusedPickleError, match="key of nested tuples"):
        read_pickle(written(tmp_path, deep))
    name = b"\x80\x04" + b")" + b"\x85" * 300_000 + b"\x8c\x01a\x93."
    with pytest.raises(RefusedPickleError, match="a name that is no text"):
        read_pickle(written(tmp_path, name))
    dtype = b"\x80\x02cnumpy\ndtype\n" + b")" + b"\x85" * 300_000 + b"\x85R."
    with pytest.raises(RefusedPickleError, match="dtype a tuple"):
        read_pickle(written(tmp_path, dtype))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_equals_pickle(protocol: int, tmp_path: Path) -> None:
    content = pickle.dumps(DATA, protocol)
    same(read_pickle(written(tmp_path, content)), pickle.loads(content))
    same(read_pickle(written(tmp_path, pickletools.optimize(content))), pickle.loads(content))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numpy_scalars_become_numbers(protocol: int, tmp_path: Path) -> None:
    values = [np.float64(0.5), np.int32(7), np.bool_(True)]
    got = read_pickle(written(tmp_path, pickle.dumps(values, protocol)))
    same(got, [0.5, 7, True])


def text_of_python_2(raw: bytes, protocol: int) -> bytes:
    """How Python 2 writes a str."""
    if protocol == 0:
        return b"S" + repr(raw)[1:].encode() + b"\n"
    return b"T" + struct.pack("<i", len(raw)) + raw


def array_of_python_2(x: np.ndarray[Any, Any], protocol: int) -> bytes:
    """How Python 2 and its numpy write an array down."""
    shape = b"(" + b"".join(b"I%d\n" % n for n in x.shape) + b"t"

    def text(raw: bytes) -> bytes:
        return text_of_python_2(raw, protocol)

    begun = b"cnumpy.core.multiarray\n_reconstruct\np1\n(cnumpy\nndarray\np2\n(I0\ntp3\n"
    begun += text(b"b") + b"p4\ntp5\nRp6\n"
    dtype = b"cnumpy\ndtype\np7\n(" + text(x.dtype.str[1:].encode()) + b"p8\nI0\nI1\ntp9\nRp10\n"
    dtype += b"(I3\n" + text(b"<") + b"NNNI-1\nI-1\nI0\ntp11\nb"
    return begun + b"(I1\n" + shape + dtype + b"I00\n" + text(x.tobytes()) + b"tp12\nb"


@pytest.mark.parametrize("protocol", [0, 1])
def test_pickles_of_python_2(protocol: int, tmp_path: Path) -> None:
    """As text with escapes (the published WESAD files are three times their arrays), or binary."""
    x = np.random.default_rng(0).normal(size=(50, 3))
    content = b"(dp0\n" + text_of_python_2(b"signal", protocol) + array_of_python_2(x, protocol)
    content += b"s" + text_of_python_2(b"it's \xfc", protocol) + b"L5L\ns."
    expected = {"signal": x, "it's ü": 5}
    same(pickle.loads(content, encoding="latin1"), expected)
    same(read_pickle(written(tmp_path, content)), expected)


def protocol_0(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n(S'touch ran'\ntR.".encode()


def stack_global(module: str, name: str) -> bytes:
    texts = b"".join(b"\x8c" + bytes([len(t)]) + t.encode() for t in (module, name))
    return b"\x80\x04" + texts + b"\x93\x8c\x09touch ran\x85R."


HARMFUL = [
    ("os", "system"),
    ("posix", "system"),
    ("subprocess", "Popen"),
    ("builtins", "eval"),
    ("builtins", "getattr"),
    ("__builtin__", "eval"),
    ("pickle", "loads"),
    ("importlib", "import_module"),
    ("operator", "attrgetter"),
    # numpy's own that run code, read files or are no way to write an array down.
    ("numpy", "load"),
    ("numpy", "fromfile"),
    ("numpy", "memmap"),
    ("numpy", "frompyfunc"),
    ("numpy.testing._private.utils", "runstring"),
    ("numpy.testing", "measure"),
    ("numpy.core.multiarray", "frombuffer"),
    ("numpy._core._internal", "_ctypes"),
    ("numpy.ctypeslib", "load_library"),
    # Dotted names lead on to other modules.
    ("numpy", "core.multiarray._reconstruct"),
    ("numpy", "ctypeslib.os.system"),
    ("numpy.core.multiarray", "_reconstruct.__globals__"),
    ("_codecs", "lookup"),
    ("_codecs", "register"),
]


@pytest.mark.parametrize("write", [protocol_0, stack_global])
@pytest.mark.parametrize("name", HARMFUL, ids=".".join)
def test_names_are_refused_and_not_imported(
    name: tuple[str, str],
    write: Callable[[str, str], bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    imported: list[str] = []
    monkeypatch.setattr("builtins.__import__", watched(__import__, imported))
    with pytest.raises(RefusedPickleError) as caught:
        read_pickle(written(tmp_path, write(*name)))
    monkeypatch.undo()
    assert f"names {'.'.join(name)}," in str(caught.value)
    assert "nothing was run" in str(caught.value)
    assert str(tmp_path / "file.pkl") in str(caught.value)
    assert not imported
    assert not (tmp_path / "ran").exists()


def watched(original: Any, imported: list[str]) -> Any:
    def spy(name: str, *args: Any, **kwargs: Any) -> Any:
        imported.append(name)
        return original(name, *args, **kwargs)

    return spy


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_call_among_data_is_never_made(protocol: int, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    data = {"signal": ARRAY, "label": Calls(os.system, f"touch {ran}")}
    content = pickle.dumps(data, protocol)
    path = written(tmp_path, content)
    with pytest.raises(RefusedPickleError, match=r"names (posix|nt)\.system"):
        read_pickle(path)
    assert not ran.exists()
    # The attack is one: pickle itself would have run it.
    pickle.loads(content)
    assert ran.exists()


class Sneaky(np.ndarray):  # type: ignore[type-arg]
    """A subclass of numpy's array."""


CASES = {
    "objects": (pickle.dumps(np.array([ARRAY, None], object), 2), "no Python objects"),
    "objects in protocol 5": (pickle.dumps(np.array([1, None], object), 5), "no Python objects"),
    "records": (pickle.dumps(np.zeros(2, [("a", "f8")]), 2), "dtype 'V8'"),
    "times": (pickle.dumps(np.zeros(2, "M8[s]"), 2), "dtype 'M8'"),
    "subclass": (pickle.dumps(ARRAY.view(Sneaky), 2), "names .*Sneaky"),
    "instance": (b"(S'touch ran'\nios\nsystem\n.", "an instance of a class"),
    "object": (b"(S'os'\no.", "an instance of a class"),
    "new object": (b"\x80\x02cnumpy\nndarray\n)\x81.", "an instance of a class"),
    "outside": (b"Pname\n.", "a reference to something outside"),
    "extension": (b"\x80\x02\x82\x01.", "an extension's class"),
    "set": (pickle.dumps({1}, 4), "a set"),
    "complex": (pickle.dumps(1j, 2), "names (builtins|__builtin__).complex"),
    "other codec": (b"c_codecs\nencode\n(VaGVsbG8=\nVbase64\ntR.", "unknown encoding"),
    "array of a subclass": (
        b"cnumpy.core.multiarray\n_reconstruct\n(S'memmap'\n(I0\ntS'b'\ntR.",
        "a subclass of numpy's array",
    ),
    "state of a dict": (b"}(S'__class__'\nS'x'\ntb.", "sets the state of something"),
    "call of text": (b"S'os.system'\n(S'touch ran'\ntR.", "calls something that is no name"),
    "call of bytes": (b"cbuiltins\nbytes\n(I999999999\ntR.", "calls bytes; refused"),
    "call of a class": (b"cnumpy\nndarray\n(I9\ntR.", "calls ndarray; refused"),
    "a name alone": (b"cnumpy\nndarray\n.", "holds no data"),
    "an unknown opcode": (b"\xf0.", "an unknown operation"),
    "nothing": (b"", "ends too early"),
    "an empty stack": (b".", "damaged"),
    "huge text": (b"T\xff\xff\xff\x7f.", "ends too early"),
    "huge bytes": (b"\x8e" + b"\xff" * 8 + b".", "ends too early"),
    "negative length": (b"T\xff\xff\xff\xff.", "ends too early"),
    "huge array": (
        (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n"
            b"(I99999999999\ntcnumpy\ndtype\n(S'f8'\ntR(I3\nS'<'\nNNNtbI00\nS'abcdefgh'\ntb."
        ),
        "damaged pickle .*reshape",
    ),
    "unknown memo": (b"h\x05.", "damaged"),
}


@pytest.mark.parametrize("case", CASES)
def test_other_things_are_refused(case: str, tmp_path: Path) -> None:
    content, message = CASES[case]
    with pytest.raises(RefusedPickleError, match=message):
        read_pickle(written(tmp_path, content))


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_damaged_files_are_refused_or_read(protocol: int, tmp_path: Path) -> None:
    """Truncated anywhere: refused. A changed byte: refused, or other data."""
    content = pickle.dumps({"a": ARRAY, "b": [1, "x", 0.5]}, protocol)
    for end in range(0, len(content), 3):
        with pytest.raises(RefusedPickleError):
            read_pickle(written(tmp_path, content[:end]))
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        changed = bytearray(content)
        changed[rng.integers(len(content))] = rng.integers(256)
        try:
            read_pickle(written(tmp_path, bytes(changed)))
        except RefusedPickleError:
            refused += 1
    assert 30 < refused < 200


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_pickle(tmp_path / "none.pkl")
