"""What a rank, a group of ranks or all ranks of a program can be told to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from leeboard.sim.collective_builder import CollectiveBuilder
from leeboard.sim.handles import Handle
from leeboard.sim.ops import (
    ALL_SLOTS,
    ANY,
    ENDLESS,
    NO_SLOT,
    PRECISIONS,
    UNKNOWN,
    Draw,
    OpKind,
    ProgramError,
)
from leeboard.sim.units import FLOP, TIME, Value, parse, picoseconds
from leeboard.sim.workload import Distribution, Exponential, Lognormal, Uniform

if TYPE_CHECKING:
    from leeboard.sim.members import Queue

_LARGEST_TAG = 2**31 - 1
_MOST_ROUNDS = 2**62


class Builder(CollectiveBuilder):
    """The operations of a program; see `Program`.

    Computing, messages, collectives and `wait` may be queued on a stream of the rank with
    `stream=k`, k from 1 to 254: they then run beside the rank's own thread (stream 0), in the order
    of that stream.
    """

    def compute(
        self,
        *,
        flops: Value | None = None,
        bytes: Value | None = None,  # noqa: A002
        seconds: Value | Distribution | None = None,
        precision: str = "any",
        stream: int = 0,
        async_op: bool = False,
    ) -> Handle | None:
        """Compute: work that the device turns into time, or a time.

        Args:
            flops: Floating-point operations ("2 GFLOP").
            bytes: Memory traffic; with `flops`, the slower of both counts (roofline).
            seconds: On a device of speed 1; a number, text ("3 ms") or a distribution.
            precision: Of the flops: "float64", "float32", "float16" (bfloat16 too), "float8" or
                "int8", for which a device may have a peak of its own; "any": its `flops`.
            stream: See the class.
            async_op: Return a handle, which other streams may wait for; needs a stream.

        Raises:
            ValueError: Neither or both of work and time are given, or one is out of range.
        """
        if (seconds is None) == (flops is None and bytes is None):
            raise ProgramError(
                f"{self._at('compute')}: got {'neither' if seconds is None else 'both'}, expected "
                "either flops and bytes (or one of them) or seconds"
            )
        lane = self._stream("compute", stream)
        kind = self._precision(precision)
        op = self._time(seconds) if seconds is not None else self._work(flops, bytes) | kind
        if not async_op:
            self._add(stream=lane, **op)
            return None
        if lane == 0:
            raise ProgramError(
                f"{self._at('compute', 'async_op')}: got True, expected a stream with it: the "
                "rank's own thread computes before it goes on"
            )
        return self._under_way(
            "compute", lane, lambda slot: self._add(stream=lane, slot=slot, **op)
        )

    def _work(self, flops: Value | None, bytes: Value | None) -> dict[str, int]:  # noqa: A002
        work = 0
        if flops is not None:
            work = round(parse(self._at("compute", "flops"), flops, FLOP))
            if work > UNKNOWN:
                raise ProgramError(
                    f"{self._at('compute', 'flops')}: got {flops!r}, expected less than 2^64"
                )
        traffic = 0 if bytes is None else self._size("compute", bytes)
        return {"kind": OpKind.COMPUTE, "a": work, "b": traffic}

    def _precision(self, precision: str) -> dict[str, int]:
        if precision not in PRECISIONS:
            raise ProgramError(
                f"{self._at('compute', 'precision')}: got {precision!r}, expected "
                f"{', '.join(PRECISIONS)}"
            )
        return {"flags": PRECISIONS.index(precision)} if precision != "any" else {}

    def _time(self, seconds: Value | Distribution) -> dict[str, int]:
        if isinstance(seconds, Exponential):
            mean = picoseconds(float(seconds.mean))
            return {"kind": OpKind.RANDOM, "flags": Draw.EXPONENTIAL, "a": mean}
        if isinstance(seconds, Lognormal):
            mean, sigma = picoseconds(float(seconds.mean)), round(seconds.sigma * 1e6)
            return {"kind": OpKind.RANDOM, "flags": Draw.LOGNORMAL, "a": mean, "b": sigma}
        if isinstance(seconds, Uniform):
            low, high = picoseconds(float(seconds.low)), picoseconds(float(seconds.high))
            half = (high - low) // 2
            return {"kind": OpKind.RANDOM, "flags": Draw.UNIFORM, "a": low + half, "b": half}
        length = picoseconds(parse(self._at("compute", "seconds"), seconds, TIME))
        return {"kind": OpKind.DELAY, "a": length}

    def sleep(self, seconds: Value) -> None:
        """Do nothing for a time, which leaves the device to others and knows no device's speed."""
        length = picoseconds(parse(self._at("sleep", "seconds"), seconds, TIME))
        self._add(OpKind.SLEEP, a=length)

    def signal(self, to: int, delay: Value = 0) -> None:
        """Tell another rank, by no network, that it may go on, `delay` seconds from now.

        For what deployments arrange beside their network model: a key-value store, a launcher.
        """
        target = self._rank("signal", "to", to)
        length = picoseconds(parse(self._at("signal", "delay"), delay, TIME))
        self._add(OpKind.SIGNAL, peer=target, a=length)

    def await_signal(self) -> None:
        """Go on when another rank has told this one to; every `signal` serves one of these."""
        self._add(OpKind.AWAIT)

    def send(self, to: int, bytes: Value, tag: int = 0, *, stream: int = 0) -> None:  # noqa: A002
        """Send a message and go on when it has left (a small one: at once).

        Args:
            to: The receiving rank; it may be the sender.
            bytes: Its size.
            tag: 0 to 2^31 - 1.
            stream: See the class.
        """
        self._send("send", to, bytes, tag, stream, NO_SLOT)

    def isend(self, to: int, bytes: Value, tag: int = 0, *, stream: int = 0) -> Handle:  # noqa: A002
        """Like `send`, but go on at once; returns a handle to wait for."""
        return self._under_way(
            "isend", stream, lambda slot: self._send("isend", to, bytes, tag, stream, slot)
        )

    def recv(
        self,
        source: int | None = None,
        tag: int | None = 0,
        bytes: Value | None = None,  # noqa: A002
        *,
        stream: int = 0,
    ) -> None:
        """Receive a message and go on when it is there.

        Args:
            source: Of which rank; None: of any.
            tag: Which; None: any. From its first receive from anywhere, or with any tag, on, a
                rank matches by arrival, and large messages ask it first.
            bytes: The most that it may hold; None: any size.
            stream: See the class.
        """
        self._recv("recv", source, tag, bytes, stream, NO_SLOT)

    def irecv(
        self,
        source: int | None = None,
        tag: int | None = 0,
        bytes: Value | None = None,  # noqa: A002
        *,
        stream: int = 0,
    ) -> Handle:
        """Like `recv`, but go on at once; returns a handle to wait for."""
        return self._under_way(
            "irecv", stream, lambda slot: self._recv("irecv", source, tag, bytes, stream, slot)
        )

    def wait(self, *handles: Handle, stream: int = 0) -> None:
        """Go on when all these are over.

        Args:
            handles: Each may be waited for once by the rank's own thread.
            stream: k > 0: that stream waits instead, as often as it likes; the rank's own thread
                goes on, and the handle remains to be waited for.
        """
        lane = self._stream("wait", stream)
        for handle in handles:
            if not isinstance(handle, Handle):
                raise ProgramError(f"{self._at('wait')}: got {handle!r}, expected a handle")
            self._program._wait(self, handle, lane)

    def wait_all(self) -> None:
        """Go on when all operations under way of the rank are over."""
        self._add(OpKind.WAIT, slot=ALL_SLOTS)
        self._program._settle(self._ranks, waited=True, stream=None)

    def synchronize(self, stream: int | None = None) -> None:
        """Wait until a stream, or every one (None), has done all that it was given."""
        lane = ANY if stream is None else self._stream("synchronize", stream)
        if lane == 0:
            raise ProgramError(
                f"{self._at('synchronize', 'stream')}: got 0, the rank's own thread; expected 1 to "
                "254, or None"
            )
        self._add(OpKind.SYNC, peer=lane)
        self._program._settle(self._ranks, waited=False, stream=stream)

    @contextmanager
    def loop(self, times: int) -> Iterator[None]:
        """Repeat what is added inside the `with` block, `times` times (0: not at all)."""
        rounds = self._integer("loop", "times", times, 0, _MOST_ROUNDS)
        loop = self._program._open_loop(self, rounds, None, self._at(f"loop({times})"))
        yield
        self._program._close_loop(self, loop)

    @contextmanager
    def serve(self, queue: Queue) -> Iterator[None]:
        """Take a request, do what is added inside the `with` block, and again until none is left.

        The block answers with `done(queue)`, or sends a message to a rank that goes on with it.
        """
        number = self._queue("serve", queue)
        loop = self._program._open_loop(self, ENDLESS, number, self._at(f"serve({queue.name!r})"))
        yield
        self._program._close_loop(self, loop)

    def take(self, queue: Queue) -> None:
        """Wait for a request and work on it from now on; an error if none is ever left."""
        self._add(OpKind.TAKE, tag=self._queue("take", queue), b=UNKNOWN)

    def done(self, queue: Queue) -> None:
        """Answer the request that the rank works on.

        A rank works on the request that it took, or that came with the last message it received:
        messages carry the request that their sender works on; those of collectives do not.
        """
        number = self._queue("done", queue)
        self._add(OpKind.DONE, tag=number)
        self._program._answered.add(number)

    def mark(self, name: str) -> None:
        """Note a name in the timeline."""
        given: object = name
        if not isinstance(given, str) or not 1 <= len(given) <= 1000:
            raise ProgramError(
                f"{self._at('mark', 'name')}: got {name!r}, expected text of 1 to 1000 characters"
            )
        self._add(OpKind.MARK, a=self._program._name(name))

    def alloc(self, bytes: Value) -> None:  # noqa: A002
        """Take device memory; more than there is is reported in the result."""
        self._add(OpKind.ALLOC, a=self._size("alloc", bytes))

    def free(self, bytes: Value) -> None:  # noqa: A002
        """Give device memory back."""
        self._add(OpKind.FREE, a=self._size("free", bytes))

    def _send(self, call: str, to: int, bytes: Value, tag: int, stream: int, slot: int) -> None:  # noqa: A002
        self._add(
            OpKind.SEND,
            self._stream(call, stream),
            peer=self._rank(call, "to", to),
            tag=self._integer(call, "tag", tag, 0, _LARGEST_TAG),
            slot=slot,
            a=self._size(call, bytes),
        )

    def _recv(
        self,
        call: str,
        source: int | None,
        tag: int | None,
        bytes: Value | None,  # noqa: A002
        stream: int,
        slot: int,
    ) -> None:
        self._add(
            OpKind.RECV,
            self._stream(call, stream),
            peer=ANY if source is None else self._rank(call, "source", source),
            tag=ANY if tag is None else self._integer(call, "tag", tag, 0, _LARGEST_TAG),
            slot=slot,
            a=UNKNOWN if bytes is None else self._size(call, bytes),
        )

    def _queue(self, call: str, queue: Queue) -> int:
        if queue not in self._program._queues:
            raise ProgramError(
                f"{self._at(call, 'queue')}: got {queue!r}, expected what this program's "
                "arrivals() returned"
            )
        return queue.number
