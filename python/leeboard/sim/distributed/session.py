"""What the parts of a launched run share beyond `Run`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from leeboard.sim.distributed.rank import Rank, Run, current

if TYPE_CHECKING:
    from leeboard.sim.distributed.store import Table


class Session(Run):
    """A run that `launch` started.

    Attributes:
        stores: Key-value stores by name.
        kept: Stores that live as long as the run.
        waits: Of ranks that wait for something the engine knows nothing of: for what.
        ended: Of ranks whose program is over: how.
        joined: Ranks that have called init_process_group.
    """

    def __init__(self, core: Any, exchange: Any, size: int) -> None:
        super().__init__(core, exchange, size)
        self.stores: dict[str, Table] = {}
        self.kept: list[object] = []
        self.waits: dict[int, str] = {}
        self.ended: dict[int, str] = {}
        self.joined: set[int] = set()


def session(rank: Rank | None = None) -> Session:
    """The run of a rank; None: of the calling one."""
    return cast("Session", (current() if rank is None else rank).run)
