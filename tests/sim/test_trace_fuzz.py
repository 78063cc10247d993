"""Damaged traces, at random: nothing but TraceError comes out, and what is accepted works.

HYPOTHESIS_PROFILE does not reach here; LEEBOARD_FUZZ_ROUNDS=100000 looks longer.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leeboard.sim.trace import Trace, TraceError
from trace_files import Arrays, every_kind, rewrite

ROUNDS = int(os.environ.get("LEEBOARD_FUZZ_ROUNDS", "400"))
INTERESTING = (0, 1, 2, 3, 5, 15, 16, 127, 255, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**63, 2**64 - 1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "trace.npz"
    every_kind().save(path)
    return path


def use(path: Path) -> bool:
    """Whether a file is accepted; then it must print and add up."""
    try:
        trace = Trace.load(path)
    except TraceError:
        return False
    trace.describe()
    for rank in range(trace.ranks):
        trace.dump(rank)
    return True


def test_changed_bytes(saved: Path, tmp_path: Path) -> None:
    draw, content, path = random.Random(1), saved.read_bytes(), tmp_path / "f.npz"
    for _ in range(ROUNDS):
        damaged = bytearray(content)
        for _ in range(draw.choice((1, 1, 2, 8))):
            at = draw.randrange(len(damaged))
            action = draw.randrange(4)
            if action == 0:
                damaged[at] = draw.randrange(256)
            elif action == 1:
                del damaged[at : at + draw.randrange(1, 40)]
            elif action == 2:
                damaged[at:at] = draw.randbytes(draw.randrange(1, 9))
            else:
                value = draw.choice(INTERESTING).to_bytes(8, "little")
                damaged[at : at + 4] = value[:4]
        path.write_bytes(damaged)
        use(path)


def test_changed_values_under_a_right_checksum(saved: Path, tmp_path: Path) -> None:
    draw, path = random.Random(2), tmp_path / "f.npz"

    def change(header: dict[str, Any], arrays: Arrays) -> None:
        for _ in range(draw.choice((1, 1, 2, 4))):
            name = draw.choice(("ops", "ops", "ops", *arrays))
            array = arrays[name]
            if array.dtype.names:
                array = array[draw.choice(array.dtype.names)]
            if not len(array):
                continue
            info = np.iinfo(array.dtype)
            value = draw.choice(INTERESTING) % (int(info.max) + 1)
            at = draw.randrange(len(array))
            array[at] = -1 if info.min < 0 and draw.random() < 0.3 else value
        if draw.random() < 0.2:
            key = draw.choice(list(header))
            header[key] = draw.choice((None, -1, [], {}, "x", 2**70, [[]], 1.5))

    accepted = 0
    for _ in range(ROUNDS):
        rewrite(saved, path, change)
        accepted += use(path)
    assert 0 < accepted < ROUNDS
