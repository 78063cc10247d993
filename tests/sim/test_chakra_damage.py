"""Damaged Chakra execution traces: nothing but TraceError comes out."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

pytest.importorskip("google.protobuf")

import chakra_files as chakra
from chakra_files import collective, compute, recv, send
from leeboard.sim.chakra import load_chakra
from leeboard.sim.trace import TraceError


def test_every_cut_is_seen_or_ends_between_nodes(tmp_path: Path) -> None:
    nodes = [compute(k, micros=k + 1) for k in range(5)]
    whole, path = chakra.content(nodes), tmp_path / "t.0.et"
    ends = {len(chakra.content(nodes[:k])) for k in range(6)}
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        if length in ends:
            load_chakra(path)
        else:
            with pytest.raises(TraceError, match=r"t\.0\.et: (cut off|no Chakra trace)"):
                load_chakra(path)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff" * 20,
        b"\xff\xff\xff\x7f" + b"x" * 100,
        b"hello world, this is text" * 9,
        b"\x1f\x8bxx",
    ],
)
def test_other_files_are_no_traces(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.0.et").write_bytes(content)
    with pytest.raises(TraceError, match=r"t\.0\.et: (no Chakra trace|cut off|damaged)"):
        load_chakra(tmp_path / "t")


def test_only_trace_errors_come_out_of_damaged_files(tmp_path: Path) -> None:
    draw = random.Random(3)
    nodes = [
        chakra.groups(1, '[{"pg_name": "1", "ranks": [0]}]'),
        compute(2, [1], num_ops=5, tensor_size=7),
        collective(3, chakra.BROADCAST, 8, [2], pg_name="1", root_rank=0),
        send(4, 0, 8, [3]),
        recv(5, 0, 8, [2]),
    ]
    whole, path = chakra.content(nodes), tmp_path / "t.0.et"
    read = 0
    for _ in range(800):
        damaged = bytearray(whole)
        for _ in range(draw.choice((1, 1, 3))):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            load_chakra(path).dump(0)
            read += 1
        except TraceError:
            pass
    assert 0 < read < 800
