"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from leeboard._files import replacing, write_json, write_tensors

safetensors_torch = pytest.importorskip("safetensors.torch")


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_permissions_are_those_of_any_new_file(umask: int, tmp_path: Path) -> None:
    write_tensors(tmp_path / "a", {"x": torch.zeros(2)})
    write_json(tmp_path / "b", {})
    for name in ("a", "b"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~umask


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    square = torch.arange(12.0).view(3, 4)
    tensors = {
        "strided": square.t(),
        "part": square[1:, 1:3],
        "tied": square,
        "number": torch.tensor(2.5),
        "none": torch.empty(0, 7),
        "negative": torch.view_as_complex(square.view(3, 2, 2)).conj().imag,
        **{
            str(dtype): torch.tensor([0, 1, 1], dtype=dtype)
            for dtype in (
                *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
                *(torch.float16, torch.bfloat16, torch.float64),
            )
        },
    }
    write_tensors(tmp_path / "a", tensors, {"format": "pt", "é": "ß\n"})
    read = safetensors_torch.load_file(tmp_path / "a")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor), name
    with safetensors_torch.safe_open(tmp_path / "a", framework="pt") as opened:
        assert opened.metadata() == {"format": "pt", "é": "ß\n"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_other_dtypes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(TypeError, match=r"z: got torch\.complex64, expected one of float64"):
        write_tensors(tmp_path / "a", {"z": torch.zeros(1, dtype=torch.complex64)})
    assert (tmp_path / "a").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_fails_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")

    def fail() -> None:
        with replacing(tmp_path / "a") as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        write_tensors(tmp_path / "missing" / "a", {})
