"""Live runs: ranks whose programs are written while they run, and threads that take turns."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from leeboard import _C, sim
from leeboard.sim.ops import COLLECTIVES, OpKind
from live_programs import ANY, NO_LIMIT, RandomLive, Turns, drive, on_ranks, options, trace_of

US = 10**6
ALL_REDUCE, BARRIER = COLLECTIVES.index("all_reduce"), COLLECTIVES.index("barrier")


def star(ranks: int, **more: Any) -> sim.Platform:
    return sim.Platform.star(
        ranks,
        bandwidth="1 GB/s",
        latency="5 us",
        protocol=more.pop("protocol", sim.Protocol(eager_limit=10_000)),
        **more,
    )


def live(
    ranks: int, platform: sim.Platform | None = None, network: str = "alpha-beta", **given: Any
) -> _C.SimLive:
    return _C.SimLive(ranks, (platform or star(ranks)).core(), options(network, **given))


def differences(live: dict[str, Any], replayed: dict[str, Any]) -> list[str]:
    """Names of what two outcomes do not share."""
    for outcome in (live, replayed):
        for blocked in outcome["blocked"]:
            blocked.pop("parked", None)

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
        return bool(np.array_equal(a, b)) if isinstance(a, np.ndarray) else bool(a == b)

    return [key for key in live if not same(live[key], replayed[key])]


PLATFORMS = {
    "eager": lambda n: star(n, protocol=sim.Protocol(eager_limit="unlimited")),
    "handshake": star,
    "jitter and loss": lambda n: star(
        n, protocol=sim.Protocol(eager_limit=10_000, jitter=0.3, loss=0.05)
    ),
    "faults": lambda n: star(n).with_faults(
        sim.Fault(device=0, at=1e-5, duration=1e-4, factor=0.5),
        sim.Fault(device=1, at=5e-5, duration=1e-4),
        sim.Fault(link="*", at=1e-4, duration=1e-3, factor=0.1),
    ),
    "a device that stops": lambda n: star(n).with_faults(sim.Fault(device=1, at=2e-4)),
    "one device for all": lambda n: star(2).with_placement([0] * n),
}


@pytest.mark.parametrize("network", ["flow", "alpha-beta"])
@pytest.mark.parametrize("kind", PLATFORMS)
def test_a_live_run_is_the_replay_of_what_it_recorded(kind: str, network: str) -> None:
    statuses = set()
    for seed in range(25):
        made = RandomLive(seed)
        platform = PLATFORMS[kind](made.ranks)
        core = live(made.ranks, platform, network)
        drive(core, made.bodies(core))
        outcome = core.outcome()
        trace = trace_of(core, names=("here",))
        replayed = _C.sim_run(trace.compiled(), platform.core(), options(network))
        assert not differences(outcome, replayed), seed
        statuses.add(outcome["status"])
        if outcome["status"] == "done" and not outcome["failed"]:
            assert outcome["unmatched"] == 0
    # A rank that has stopped is missed by the others.
    assert statuses == ({"deadlock"} if kind == "a device that stops" else {"done"})


def test_whose_turn_it_is_at_the_start_does_not_matter() -> None:
    hashes = set()
    for first in range(3):
        made = RandomLive(5)
        core = live(made.ranks)
        drive(core, made.bodies(core), first % made.ranks)
        hashes.add(core.outcome()["hash"])
    assert len(hashes) == 1


def test_clocks_and_what_messages_take() -> None:
    """Eager messages of 1000 bytes on 1 GB/s and 5 us: 6 us after they were sent."""
    core = live(2)
    clocks: dict[str, int] = {}

    def body(rank: int) -> Turns:
        if rank == 0:
            core.delay(0, 3 * US)
            core.isend(0, 1, 7, 1000)
            yield core.run(0)
            clocks["sent"] = core.clock(0)
            return
        slot = core.irecv(1, ANY, ANY, NO_LIMIT)
        yield core.look(1)
        clocks["looked"] = core.clock(1)
        assert not core.done(1, slot)
        core.delay(1, 8 * US)
        yield core.look(1)
        clocks["early"] = core.clock(1)
        assert not core.done(1, slot)
        core.sleep(1, 1 * US)
        yield core.look(1)
        assert core.done(1, slot)
        core.wait(1, slot)
        yield core.run(1)
        clocks["received"] = core.clock(1)
        assert core.met(1, slot) == (0, 1)
        assert core.done(1, slot)

    on_ranks(core, 2, body)
    assert clocks == {"sent": 3 * US, "looked": 0, "early": 8 * US, "received": 9 * US}
    outcome = core.outcome()
    assert outcome["status"] == "done"
    assert outcome["makespan"] == 9 * US
    assert outcome["ranks"]["compute"].tolist() == [3 * US, 8 * US]


def test_receives_from_anywhere_tell_whose_message_they_met() -> None:
    core = live(3)
    serials: dict[int, list[int]] = {1: [], 2: []}
    met = []

    def body(rank: int) -> Turns:
        if rank == 0:
            for _ in range(4):
                slot = core.irecv(0, ANY, ANY, NO_LIMIT)
                core.wait(0, slot)
                yield core.run(0)
                met.append(core.met(0, slot))
            return
        for size in (100_000, 10):
            core.delay(rank, (3 - rank) * US)
            serials[rank].append(core.serial(rank, core.isend(rank, 0, rank, size)))
        yield core.run(rank)

    on_ranks(core, 3, body)
    assert core.outcome()["status"] == "done"
    assert len({serial for _, serial in met}) == 4
    for rank, sent in serials.items():
        assert [serial for source, serial in met if source == rank] == sent


@pytest.mark.parametrize("size", [1_000, 100_000])
def test_what_waits_when_a_rank_first_receives_from_anywhere_comes_by_arrival(size: int) -> None:
    """With and without a handshake; what it received before was matched by name."""
    core = live(4)
    met = []

    def body(rank: int) -> Turns:
        if rank > 0:
            core.delay(rank, (10 - rank) * 50 * US)
            for tag in (5, 4):
                core.isend(rank, 0, tag, size)
            yield core.run(rank)
            return
        named = core.irecv(0, 1, 4, NO_LIMIT)
        core.delay(0, 3000 * US)
        slots = [core.irecv(0, ANY, ANY, NO_LIMIT) for _ in range(5)]
        for slot in (named, *slots):
            core.wait(0, slot)
        yield core.run(0)
        met.extend(core.met(0, slot) for slot in (named, *slots))

    on_ranks(core, 4, body)
    outcome = core.outcome()
    assert outcome["status"] == "done"
    # A rank's ops: a delay, then its two sends.
    sent = [(source, serial - (source << 32)) for source, serial in met]
    assert sent == [(1, 2), (3, 1), (3, 2), (2, 1), (2, 2), (1, 1)]


def test_slots_are_used_again_after_a_wait() -> None:
    core = live(2)
    slots = set()

    def body(rank: int) -> Turns:
        for i in range(100):
            slot = core.irecv(1, 0, i, 8) if rank else core.isend(0, 1, i, 8)
            slots.add((rank, slot))
            core.wait(rank, slot)
        yield core.run(rank)

    on_ranks(core, 2, body)
    assert slots == {(0, 0), (1, 0)}
    assert core.outcome()["messages"] == 100


def test_groups_are_made_while_the_run_goes_on() -> None:
    core = live(4)
    numbers = set()

    def body(rank: int) -> Turns:
        assert core.group("world", [0, 1, 2, 3], rank) == 0
        core.collective(rank, 0, BARRIER, 0, blocking=True)
        yield core.run(rank)
        if rank % 2:
            numbers.add(core.group("odd", [3, 1], rank))
            core.collective(rank, core.group("odd", [3, 1]), ALL_REDUCE, 4096, blocking=True)
            yield core.run(rank)
        numbers.add(core.group("another world", [0, 1, 2, 3], rank))

    on_ranks(core, 4, body)
    assert numbers == {1, 2}
    assert core.outcome()["status"] == "done"
    assert trace_of(core).group_members.tolist() == [0, 1, 2, 3, *([0, 1, 2, 3, 3, 1])]


def test_a_group_of_other_members_is_refused_with_who_said_what() -> None:
    core = live(4)
    core.group("tp", [0, 1], 0)
    with pytest.raises(ValueError, match=r"group tp rank 1 says.* 1, 2, but rank 0 says.* 0, 1"):
        core.group("tp", [1, 2], 1)
    for members in ([], [4], [1, 1]):
        with pytest.raises(ValueError, match="members"):
            core.group("bad", members)


def test_tables_of_uneven_exchanges_hold_what_all_ranks_told() -> None:
    core = live(3)
    sizes = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]

    def body(rank: int) -> Turns:
        core.all_to_all(rank, 0, sizes[rank], [row[rank] for row in sizes], blocking=True)
        yield core.run(rank)

    on_ranks(core, 3, body)
    outcome = core.outcome()
    assert outcome["status"] == "done"
    assert outcome["ranks"]["sent"].tolist() == [5, 10, 15]
    assert trace_of(core).sizes.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_uneven_exchanges_that_contradict_each_other() -> None:
    core = live(2)

    def body(rank: int) -> Turns:
        core.all_to_all(rank, 0, [0, 10] if rank == 0 else [3, 0], [0, 3] if rank == 0 else [9, 0])
        yield core.run(rank)

    on_ranks(core, 2, body)
    outcome = core.outcome()
    assert outcome["status"] == "mismatch"
    assert "rank 0 sends rank 1 10 bytes, but rank 1 expects 9" in outcome["message"]


def test_collectives_that_differ() -> None:
    core = live(3)

    def body(rank: int) -> Turns:
        which, size = (BARRIER, 0) if rank == 2 else (ALL_REDUCE, 64)
        core.collective(rank, 0, which, size, blocking=True)
        yield core.run(rank)

    on_ranks(core, 3, body)
    outcome = core.outcome()
    assert outcome["status"] == "mismatch"
    assert "rank 2 calls barrier" in outcome["message"]
    assert "all_reduce of 64 bytes was called by rank(s) 0, 1" in outcome["message"]


def test_a_message_larger_than_its_receive() -> None:
    core = live(2)

    def body(rank: int) -> Turns:
        core.wait(rank, core.irecv(1, 0, 0, 5) if rank else core.isend(0, 1, 0, 6))
        yield core.run(rank)

    on_ranks(core, 2, body)
    outcome = core.outcome()
    assert outcome["status"] == "error"
    assert "rank 1 expects 5 bytes of rank 0 (tag 0), which sends 6" in outcome["message"]


def test_a_deadlock_says_who_waits_for_what() -> None:
    core = live(3)

    def body(rank: int) -> Turns:
        core.delay(rank, US)
        if rank == 0:
            core.wait(0, core.irecv(0, 1, 5, NO_LIMIT))
            yield core.run(0)
        elif rank == 1:
            yield core.park(1)
        else:
            core.collective(2, 0, BARRIER, 0, blocking=True)
            yield core.run(2)

    on_ranks(core, 3, body)
    outcome = core.outcome()
    assert outcome["status"] == "deadlock"
    trace = trace_of(core)
    kinds = [OpKind(int(trace.ops[b["op"]]["kind"])) for b in outcome["blocked"]]
    assert kinds == [OpKind.RECV, OpKind.AWAIT, OpKind.COLLECTIVE]
    assert [b["parked"] for b in outcome["blocked"]] == [False, True, False]
    assert outcome["blocked"][2]["missing"] == [0, 1]
    assert {b["since"] for b in outcome["blocked"]} == {US}
    with pytest.raises(
        sim.DeadlockError, match=r"rank 1 .*signal of another rank \(it is parked\)"
    ):
        sim.replay(trace, star(3))


def test_a_device_that_stops_leaves_its_rank_behind() -> None:
    platform = star(2).with_faults(sim.Fault(device=1, at=1e-5))
    core = live(2, platform)
    reached = []

    def body(rank: int) -> Turns:
        for _ in range(3):
            core.delay(rank, 8 * US)
            yield core.run(rank)
        reached.append(rank)

    on_ranks(core, 2, body)
    outcome = core.outcome()
    assert outcome["failed"] == [(1, 10 * US)]
    assert reached == [0]


def test_numbers_of_other_precision_take_other_rates() -> None:
    platform = star(1).core()
    platform["device_flops"] = np.array([1e9])
    platform["device_flops_2"] = np.array([4e9])
    core = _C.SimLive(1, platform, options())
    for dtype in range(3):
        core.compute(0, 10**6, 0, dtype)
    drive(core, [iter(())])  # type: ignore[list-item]
    assert core.outcome()["ranks"]["compute"].tolist() == [2250 * US]


def test_what_cannot_be_meant_is_refused_and_changes_nothing() -> None:
    core = live(2)
    for match, call in {
        "peer: got 2": lambda: core.isend(0, 2, 0, 1),
        "tag: got -1": lambda: core.isend(0, 1, -1, 1),
        "peer: got -2": lambda: core.irecv(0, -2, 0, 1),
        "bytes": lambda: core.isend(0, 1, 0, 2**63),
        "106 days": lambda: core.delay(0, 2**64 - 1),
        "dtype": lambda: core.compute(0, 1, 1, 6),
        "rank: got 2": lambda: core.sleep(2, 1),
        "group": lambda: core.collective(0, 1, 0, 0),
        "which": lambda: core.collective(0, 0, 9, 0),
        "root": lambda: core.collective(0, 0, 3, 0, 2),
        "algorithm": lambda: core.collective(0, 0, 8, 0, -1, 5),
        "sizes, expected 2": lambda: core.all_to_all(0, 0, [1], [1]),
        "sends itself 1 bytes and expects 2": lambda: core.all_to_all(0, 0, [1, 0], [2, 0]),
        "hierarchical": lambda: core.all_to_all(0, 0, [1, 0], [1, 0], 6),
        "request 0, which is not outstanding": lambda: core.wait(0, 0),
        "not parked": lambda: core.unpark(1, 0),
    }.items():
        with pytest.raises(ValueError, match=match):
            call()
    assert len(core.program()["ops"]) == 0
    slot = core.isend(0, 1, 0, 100_000)
    core.wait(0, slot)
    with pytest.raises(ValueError, match="not outstanding"):
        core.wait(0, slot)
    with pytest.raises(ValueError, match="no receive"):
        core.met(0, slot)
    assert core.run(0) == 1
    with pytest.raises(RuntimeError, match="rank 0 runs out of turn: it is rank 1's"):
        core.run(0)


def test_ranks_and_platform_must_fit() -> None:
    with pytest.raises(ValueError, match="3 ranks, the platform has 2 devices"):
        live(3, star(2))


def test_an_interrupted_run_ends() -> None:
    core = live(2)

    def body(rank: int) -> Turns:
        for _ in range(10):
            core.delay(rank, US)
            yield core.run(rank)
        core.interrupt()
        core.delay(rank, US)
        assert core.run(rank) == -1
        yield -1

    on_ranks(core, 2, body)
    outcome = core.outcome()
    assert (outcome["status"], outcome["message"]) == ("error", "interrupted")


def test_a_run_that_is_ended_early_says_so() -> None:
    core = live(2)
    core.delay(0, 5 * US)
    assert core.run(0) == 0
    outcome = core.outcome()
    assert outcome["status"] == "error"
    assert outcome["message"] == "the run was ended before its ranks were"
    with pytest.raises(RuntimeError, match="asked for before"):
        core.outcome()


class Threads:
    """A thread for each rank; what bodies raise is kept."""

    def __init__(self, core: _C.SimLive, bodies: list[Turns]) -> None:
        self.core = core
        self.raised: list[BaseException | None] = [None] * len(bodies)
        self.running = 0
        self.most = 0
        self.threads = [
            threading.Thread(target=self.main, args=(rank, body))
            for rank, body in enumerate(bodies)
        ]

    def main(self, rank: int, body: Turns) -> None:
        try:
            self.core.enter(rank)
            for turn in body:
                if turn < 0:
                    raise RuntimeError("stuck")
                if turn != rank:
                    self.core.switch(rank, turn)
            self.core.leave(self.core.finish(rank))
        except BaseException as error:  # noqa: BLE001
            self.raised[rank] = error
            self.core.abort()

    def run(self) -> None:
        for thread in self.threads:
            thread.start()
        self.core.leave(0)
        for thread in self.threads:
            thread.join(60)
            assert not thread.is_alive()


@pytest.mark.parametrize("seed", range(4))
def test_threads_take_turns(seed: int) -> None:
    """One runs at a time, and the events are those of a run without threads."""
    made = RandomLive(seed, actions=200)
    alone = live(made.ranks)
    drive(alone, made.bodies(alone))
    made = RandomLive(seed, actions=200)
    core = live(made.ranks)
    holders: list[int] = []

    def watched(rank: int, body: Turns) -> Turns:
        for turn in body:
            holders.append(rank)
            assert len(holders) == 1, "two ranks at once"
            holders.pop()
            yield turn

    threads = Threads(core, [watched(*pair) for pair in enumerate(made.bodies(core))])
    threads.run()
    assert threads.raised == [None] * made.ranks
    assert core.outcome()["hash"] == alone.outcome()["hash"]


def test_an_error_of_one_rank_ends_all() -> None:
    core = live(5)
    swallowed = []

    def body(rank: int) -> Turns:
        core.delay(rank, US * rank)
        yield core.run(rank)
        if rank == 4:
            raise KeyError("broken")
        try:
            core.collective(rank, 0, BARRIER, 0, blocking=True)
            yield core.run(rank)
        except Exception as error:
            swallowed.append(error)
            raise

    threads = Threads(core, [body(rank) for rank in range(5)])
    threads.run()
    assert not swallowed
    assert isinstance(threads.raised[4], KeyError)
    for error in threads.raised[:4]:
        assert isinstance(error, _C.SimAborted)
    assert not issubclass(_C.SimAborted, Exception)
    for call in (core.run, core.look, core.park, core.finish, core.enter):
        with pytest.raises(_C.SimAborted):
            call(0)


def test_ranks_are_small() -> None:
    """A rank's ops lie in chunks of 2 KiB; a thousand ranks are made and run at once."""
    ranks = 1024
    core = live(ranks, star(ranks), records=0)

    def body(rank: int) -> Turns:
        core.collective(rank, 0, ALL_REDUCE, 1 << 20, blocking=True)
        yield core.run(rank)

    on_ranks(core, ranks, body)
    assert core.outcome()["status"] == "done"
    assert len(trace_of(core).ops) == ranks
