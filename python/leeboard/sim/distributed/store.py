"""Key-value stores of a simulated run: what rank 0 would serve on MASTER_PORT, in memory.

An operation costs no simulated time. Operations of different ranks take effect in the order of their
simulated times, and a rank that waits for a key goes on when another has set it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import Store

from leeboard.sim.distributed.rank import Rank, current
from leeboard.sim.distributed.session import session

_TIMEOUT = timedelta(minutes=30)
# The first of the ports that nobody asked for by number.
_FREE_PORT = 49152
# Torch before 2.8 has no queues.
_Empty: type[Exception] = getattr(dist, "QueueEmptyError", RuntimeError)


class Table:
    """What all ranks that opened one store share: values, queues, and who waits for which key."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.values: dict[str, bytes] = {}
        self.queues: dict[str, list[bytes]] = {}
        self.waiting: dict[str, list[int]] = {}

    def wake(self, rank: Rank, key: str) -> None:
        """The ranks that wait for `key` go on at the present of `rank`."""
        numbers = self.waiting.pop(key, ())
        if numbers:
            now = rank.core.clock(rank.number)
            for number in numbers:
                rank.core.unpark(number, now)


def table(stores: dict[str, Table], name: str) -> Table:
    """The store of that name, made where it is missing."""
    return stores.setdefault(name, Table(name))


class SimStore(Store):
    """A `torch.distributed.Store` that lives in the run. Timeouts do not pass: a key that nobody
    ever sets ends the run as a deadlock, which names it."""

    def __init__(self, shared: Table, timeout: timedelta | None = None) -> None:
        super().__init__()
        self._table = shared
        # A PrefixStore holds what it wraps in C++, where Python does not see it.
        session().kept.append(self)
        if timeout is not None:
            self.set_timeout(timeout)

    def set(self, key: str, value: str | bytes) -> None:
        """Give `key` a value."""
        rank = _present()
        self._table.values[key] = _bytes(value)
        self._table.wake(rank, key)

    def get(self, key: str) -> bytes:
        """The value of `key`, once it has one."""
        self._until(_present(), [key])
        return self._table.values[key]

    def add(self, key: str, amount: int) -> int:
        """Add to a counter, which starts at 0, and return it."""
        rank = _present()
        total = int(self._table.values.get(key, b"0")) + amount
        self._table.values[key] = b"%d" % total
        self._table.wake(rank, key)
        return total

    def append(self, key: str, value: str | bytes) -> None:
        """Put `value` behind what `key` holds."""
        rank = _present()
        self._table.values[key] = self._table.values.get(key, b"") + _bytes(value)
        self._table.wake(rank, key)

    def compare_set(self, key: str, expected: str | bytes, desired: str | bytes) -> bytes:
        """Set `key` if it holds `expected`, or has no value and `expected` is empty.

        Returns:
            What it holds afterwards; `expected` if it holds nothing.
        """
        rank = _present()
        old, wanted = self._table.values.get(key), _bytes(expected)
        if old == wanted or (old is None and not wanted):
            self._table.values[key] = _bytes(desired)
            self._table.wake(rank, key)
        return self._table.values.get(key, wanted)

    def check(self, keys: Sequence[str]) -> bool:
        """Whether all keys have values."""
        _present()
        return all(key in self._table.values for key in keys)

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Return when all keys have values."""
        self._until(_present(), keys)

    def delete_key(self, key: str) -> bool:
        """Forget a key; whether it had a value."""
        _present()
        return self._table.values.pop(key, None) is not None

    def num_keys(self) -> int:
        """How many keys have values."""
        _present()
        return len(self._table.values)

    def list_keys(self) -> list[str]:
        """All keys with values, sorted."""
        _present()
        return sorted(self._table.values)

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        """The values of several keys, once all have one."""
        self._until(_present(), keys)
        return [self._table.values[key] for key in keys]

    def multi_set(self, keys: Sequence[str], values: Sequence[str | bytes]) -> None:
        """Give several keys values."""
        rank = _present()
        for key, value in zip(keys, values, strict=True):
            self._table.values[key] = _bytes(value)
            self._table.wake(rank, key)

    def queue_push(self, key: str, value: str | bytes) -> None:
        """Put a value at the end of a queue."""
        rank = _present()
        self._table.queues.setdefault(key, []).append(_bytes(value))
        self._table.wake(rank, _QUEUE + key)

    def queue_pop(self, key: str, block: bool = True) -> bytes:
        """Take the first value of a queue.

        Raises:
            dist.QueueEmptyError: There is none, and `block` is False.
        """
        rank = _present()
        while not self._table.queues.get(key):
            if not block:
                raise _Empty(f"queue {key} is empty")
            self._park(rank, _QUEUE + key)
        return self._table.queues[key].pop(0)

    def queue_len(self, key: str) -> int:
        """How many values a queue holds."""
        _present()
        return len(self._table.queues.get(key, ()))

    def has_extended_api(self) -> bool:
        """Yes: append, multi_get and multi_set are here."""
        return True

    def clone(self) -> SimStore:
        """Another handle of the same store."""
        return SimStore(self._table)

    # The names under which a PrefixStore calls what it wraps.
    deleteKey = delete_key  # noqa: N815
    getNumKeys = num_keys  # noqa: N815

    def _until(self, rank: Rank, keys: Sequence[str]) -> None:
        for key in keys:
            while key not in self._table.values:
                self._park(rank, key)

    def _park(self, rank: Rank, key: str) -> None:
        self._table.waiting.setdefault(key, []).append(rank.number)
        name = key.removeprefix(_QUEUE)
        what = "a value in queue" if name != key else "key"
        waits = session(rank).waits
        waits[rank.number] = f"{what} {name!r} of the {self._table.name}"
        rank.give(rank.core.park(rank.number))
        del waits[rank.number]


_QUEUE = "queue\0"


class TCPStore(SimStore):
    """What `dist.TCPStore(...)` makes in a simulated run. Ranks that name one port share it."""

    def __init__(
        self,
        host_name: str,
        port: int = 0,
        world_size: int | None = None,
        is_master: bool = False,
        timeout: timedelta = _TIMEOUT,
        wait_for_workers: bool = True,
        **_: Any,
    ) -> None:
        rank = current()
        if port == 0:
            if not is_master:
                raise ValueError(
                    f"port: rank {rank.number} connects to port 0; expected the master's"
                )
            port = _FREE_PORT + len(session(rank).stores)
        super().__init__(table(session(rank).stores, f"TCPStore of port {port}"), timeout)
        self.host, self.port = host_name, port
        if wait_for_workers and world_size is not None and world_size > 0:
            key = "init/workers"
            if self.add(key, 1) >= world_size:
                self.set("init/all", b"1")
            self.wait(["init/all"])


class FileStore(SimStore):
    """What `dist.FileStore(...)` makes in a simulated run. Ranks that name one path share it; no
    file is written."""

    def __init__(self, file_name: str, world_size: int = -1) -> None:
        super().__init__(table(session().stores, f"FileStore {file_name}"))
        self.path = file_name


class HashStore(SimStore):
    """What `dist.HashStore()` makes in a simulated run: a store of the rank's own."""

    def __init__(self) -> None:
        super().__init__(Table(f"HashStore of rank {current().number}"))


def _present() -> Rank:
    """The calling rank, once simulated time has come to its clock, so that what it does to a store
    and what others do happen in order."""
    rank = current()
    rank.flush()
    rank.give(rank.core.look(rank.number))
    return rank


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)
