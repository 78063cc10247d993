"""Programs through the engine: files keep what they mean, random ones run, and twice alike."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from leeboard.sim import Platform, Program, Trace, replay, run
from random_programs import RandomProgram
from trace_files import every_kind

SEEDS = range(int(os.environ.get("LEEBOARD_FUZZ_ROUNDS", "60")))


def platform(seed: int, ranks: int) -> Platform:
    """A star of either protocol: messages that wait for their receiver, and some that do not."""
    protocol = ("ideal", "gloo", "mpi")[seed % 3]
    return Platform.star(ranks, bandwidth="10 Gbit/s", latency="5 us", protocol=protocol)


@pytest.mark.parametrize("network", ["flow", "alpha-beta"])
def test_a_saved_program_runs_as_the_program(network: str, tmp_path: Path) -> None:
    trace = every_kind()
    trace.save(tmp_path / "t.npz")
    loaded = Trace.load(tmp_path / "t.npz")
    first = run(trace, platform(0, 4), network=network)  # type: ignore[arg-type]
    second = replay(loaded, platform(0, 4), network=network)  # type: ignore[arg-type]
    assert first.event_hash == second.event_hash
    assert first.makespan == second.makespan > 0.2


def test_what_all_are_told_is_what_each_is_told() -> None:
    """Shared ranges, calls and copied loops run as lists of each rank's own."""
    shared, own = Program(4), Program(4)
    for program, targets in ((shared, [shared]), (own, list(own))):
        for target in targets:
            with target.loop(5):
                target.compute(seconds="10 us")
                target.all_reduce("1 MiB")
        program[2].compute(seconds="1 ms")
        for target in targets:
            target.barrier()
    assert len(shared.trace().ops) < len(own.trace().ops)
    for network in ("flow", "alpha-beta"):
        one, other = (run(p, platform(0, 4), network=network) for p in (shared, own))  # type: ignore[arg-type]
        assert one.event_hash == other.event_hash


def test_a_stream_waits_for_what_another_computes() -> None:
    """A message leaves when its part has been computed, while the next part is computed."""
    program = Program(2)
    for _ in range(3):
        part = program[0].compute(seconds="2 ms", stream=1, async_op=True)
        assert part is not None
        program[0].wait(part, stream=2)
        program[0].send(1, bytes="1 MB", stream=2)
    program[0].synchronize()
    with program[1].loop(3):
        program[1].recv(0)
    result = run(program, platform(0, 2), network="alpha-beta")
    assert result.makespan == pytest.approx(3 * 2e-3 + 1e6 / 1.25e9 + 5e-6, rel=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_programs_run_and_run_alike(seed: int, tmp_path: Path) -> None:
    program = RandomProgram(seed).program
    trace = program.trace()
    trace.save(tmp_path / "t.npz")
    for network in ("flow", "alpha-beta"):
        results = [
            run(given, platform(seed, program.ranks), network=network, seed=seed)  # type: ignore[arg-type]
            for given in (trace, RandomProgram(seed).program, Trace.load(tmp_path / "t.npz"))
        ]
        assert len({result.event_hash for result in results}) == 1
        assert len({result.makespan for result in results}) == 1
        assert not results[0].failures
        assert (results[0].queues[0].done < 2**63).all()
        total = trace.stats()
        assert results[0].messages >= total.messages
