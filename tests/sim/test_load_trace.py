"""One function reads all formats of traces."""

from __future__ import annotations

from pathlib import Path

import pytest

from leeboard.sim import TraceError, load_trace
from trace_files import every_kind


def test_our_own(tmp_path: Path) -> None:
    trace = every_kind()
    for name in ("t.npz", "t.trace", "t"):
        trace.save(tmp_path / name)
        assert load_trace(tmp_path / name) == trace


def test_simgrid(tmp_path: Path) -> None:
    (tmp_path / "actions.txt").write_text("0 init\n0 compute 5\n")
    (tmp_path / "list").write_text("actions.txt\n")
    assert load_trace(tmp_path / "actions.txt").stats().flops == 5
    assert load_trace(str(tmp_path / "list")).stats().flops == 5


def test_chakra(tmp_path: Path) -> None:
    pytest.importorskip("google.protobuf")
    import chakra_files as chakra

    prefix = chakra.write(tmp_path, [chakra.compute(1, num_ops=5)], [chakra.compute(1, num_ops=5)])
    assert load_trace(prefix).stats().flops == 10
    assert load_trace(f"{prefix}.0.et").stats().flops == 10
    (tmp_path / "other").write_bytes(chakra.content([chakra.compute(1, num_ops=5)]))
    assert load_trace(tmp_path / "other").stats().flops == 5


def test_nothing_of_these(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff" * 40)
    (tmp_path / "y").write_bytes(b"PK\x03\x04 cut")
    (tmp_path / "z").write_text("Dear reader,\n")
    for name, message in (("x", "no Chakra"), ("y", "no trace, or cut off"), ("z", "expected an")):
        with pytest.raises(TraceError, match=message):
            load_trace(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        load_trace(tmp_path / "none")
