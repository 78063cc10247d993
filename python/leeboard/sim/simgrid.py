"""Import of SimGrid's time-independent traces (SMPI, text), as SimGrid 3.32 writes and replays them.

docs/sim/importing.md says what becomes of each action, and what is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leeboard.sim.handles import Handle
from leeboard.sim.members import Rank
from leeboard.sim.ops import ProgramError
from leeboard.sim.program import Program
from leeboard.sim.simgrid_collectives import READERS, Collective, collectives
from leeboard.sim.simgrid_files import Action, read
from leeboard.sim.trace import Trace
from leeboard.sim.units import UnitError

# MPI_ANY_SOURCE and MPI_ANY_TAG of SimGrid.
_ANY_SOURCE, _ANY_TAG = -333, -444
# They say nothing about time; the default datatype of init is in the actions already.
_IGNORED = {"init", "finalize", "comm_size", "comm_split", "comm_dup", "location"}


def load_simgrid(path: str | Path) -> Trace:
    """Read a time-independent trace: one file of all ranks, or a file that names one per rank.

    Raises:
        TraceError: An action that is unknown or has wrong arguments (the file and line are named),
            or ranks that do not call the same collectives.
        OSError: A file cannot be opened.
    """
    ranks = read(Path(path))
    program = Program(len(ranks))
    common = collectives(ranks)
    for rank, actions in enumerate(ranks):
        _Importer(program[rank], common).add(actions)
    return program.trace()


@dataclass(eq=False)
class _Request:
    """A message under way: who from, who to, and when it was asked about last."""

    source: int
    target: int
    tag: int
    handle: Handle | None = None
    waited: bool = False
    last_test: int | None = None


@dataclass
class _Importer:
    """Turns the actions of one rank into ops."""

    rank: Rank
    common: Sequence[Collective]
    steps: list[Callable[[], object] | None] = field(default_factory=list)
    requests: list[_Request] = field(default_factory=list)
    calls: int = 0

    @property
    def number(self) -> int:
        return self.rank._members()[0]

    def add(self, actions: Sequence[Action]) -> None:
        """Read all actions, then write them: a test that ended a request is known only then."""
        where: list[Action] = []
        for action in actions:
            self._read(action)
            where += [action] * (len(self.steps) - len(where))
        for request in self.requests:
            if not request.waited and request.last_test is not None:
                self.steps[request.last_test] = self._wait(request)
        for action, step in zip(where, self.steps, strict=True):
            if step is not None:
                try:
                    step()
                except (ProgramError, UnitError) as error:
                    raise action.error(str(error)) from None
        if any(not request.waited for request in self.requests):
            self.rank.wait_all()

    def _read(self, action: Action) -> None:
        if action.name in _IGNORED:
            return
        if action.name in READERS:
            self._collective()
        elif action.name in _READ:
            _READ[action.name](self, action)
        else:
            raise action.error(f"unknown action {action.name!r:.40}")

    def _compute(self, action: Action) -> None:
        action.expect(1, 1, "compute FLOPS")
        flops = round(action.number(0))
        if flops > 0:
            self.steps.append(lambda: self.rank.compute(flops=flops))

    def _sleep(self, action: Action) -> None:
        action.expect(1, 1, "sleep SECONDS")
        seconds = action.number(0)
        self.steps.append(lambda: self.rank.compute(seconds=seconds))

    def _send(self, action: Action) -> None:
        to, tag, size = self._message(action)
        self.steps.append(lambda: self.rank.send(to, size, tag))

    def _isend(self, action: Action) -> None:
        to, tag, size = self._message(action)
        self._begin(_Request(self.number, to, tag), lambda: self.rank.isend(to, size, tag))

    def _recv(self, action: Action) -> None:
        source, tag, size = self._message(action)
        options = self._expected(source, tag, size)
        self.steps.append(lambda: self.rank.recv(**options))

    def _irecv(self, action: Action) -> None:
        source, tag, size = self._message(action)
        options = self._expected(source, tag, size)
        self._begin(_Request(source, self.number, tag), lambda: self.rank.irecv(**options))

    def _sendrecv(self, action: Action) -> None:
        action.expect(4, 6, "sendRecv SEND-SIZE TO RECV-SIZE FROM [TYPE [TYPE]]")
        sent = action.size(0, action.type_size(4))
        received = action.size(2, action.type_size(5))
        to, source = action.integer(1), action.integer(3)
        options = self._expected(source, 0, received)

        def exchange() -> None:
            handle = self.rank.isend(to, sent)
            self.rank.recv(**options)
            self.rank.wait(handle)

        self.steps.append(exchange)

    def _pending(self, action: Action) -> _Request | None:
        action.expect(3, 3, f"{action.name} SOURCE TARGET TAG")
        source, target, tag = (action.integer(i) for i in range(3))
        pending = [request for request in self.requests if not request.waited]
        for request in pending:
            if (request.source, request.target, request.tag) == (source, target, tag):
                return request
        for request in pending:
            if (
                request.target == target
                and request.source in (source, _ANY_SOURCE)
                and request.tag in (tag, _ANY_TAG)
            ):
                return request
        # A test has found it done before, as the trace has it.
        return None

    def _wait_for(self, action: Action) -> None:
        request = self._pending(action)
        if request is not None:
            self.steps.append(self._wait(request))

    def _test(self, action: Action) -> None:
        request = self._pending(action)
        if request is not None:
            request.last_test = len(self.steps)
            self.steps.append(None)

    def _waitall(self, action: Action) -> None:
        for request in self.requests:
            request.waited = True
        self.steps.append(self.rank.wait_all)

    def _begin(self, request: _Request, start: Callable[[], Handle]) -> None:
        def step() -> None:
            request.handle = start()

        self.requests.append(request)
        self.steps.append(step)

    def _wait(self, request: _Request) -> Callable[[], object]:
        request.waited = True

        def step() -> None:
            assert request.handle is not None
            self.rank.wait(request.handle)

        return step

    def _message(self, action: Action) -> tuple[int, int, int]:
        """Partner, tag and bytes."""
        action.expect(3, 4, f"{action.name} RANK TAG SIZE [TYPE]")
        return action.integer(0), action.integer(1), action.size(2, action.type_size(3))

    def _expected(self, source: int, tag: int, size: int) -> dict[str, Any]:
        return {
            "source": None if source == _ANY_SOURCE else source,
            "tag": None if tag == _ANY_TAG else tag,
            # SimGrid takes 0 and less as: whatever comes.
            "bytes": size if size > 0 else None,
        }

    def _collective(self) -> None:
        call = self.common[self.calls]
        self.calls += 1
        flops = call.flops[self.number]

        def step() -> None:
            call.add(self.rank)
            if round(flops) > 0:
                self.rank.compute(flops=flops)

        self.steps.append(step)


_READ: dict[str, Callable[[_Importer, Action], None]] = {
    "compute": _Importer._compute,
    "sleep": _Importer._sleep,
    "send": _Importer._send,
    "isend": _Importer._isend,
    "recv": _Importer._recv,
    "irecv": _Importer._irecv,
    "sendrecv": _Importer._sendrecv,
    "wait": _Importer._wait_for,
    "test": _Importer._test,
    "waitall": _Importer._waitall,
}
