"""Programs through the engine: files keep what they mean, random ones run, and twice alike."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from random_programs import RandomProgram
from trace_files import every_kind

from leeboard.sim import Platform, Program, Trace, replay, run

SEEDS = range(int(os.environ.get("LEEBOARD_FUZZ_ROUNDS", "60")))


def platform(seed: int, ranks: int) -> Platform:
    """A star of either protocol: messages that wait for their receiver, and some that do not."""
    protocol = ("ideal", "gloo-tcp", "mpi")[seed % 3]
    return Platform.star(ranks, bandwidth="10 Gbit/s", latency="5 us", protocol=protocol)
