"""The target's states on disk: computed once, read by memory map."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leeboard.draft.batch import Batch
from leeboard.draft.checks import positive_int
from leeboard.draft.protocol import Drafter
from leeboard.draft.training import shards
from leeboard.draft.training.identity import check_same, identity_of_states, identity_of_target
from leeboard.draft.training.rows import Rows
from leeboard.draft.training.states import OnlineStates
from leeboard.draft.training.writer import StateWriter, storage_dtype

# Open memory maps; a cache may have thousands of shards.
_OPEN = 32


def cache_bytes(
    target: Any, drafter: Drafter, rows: Rows, *, dtype: torch.dtype | None = None
) -> int:
    """Bytes on disk that `cache_states` will take, to a thousandth.

    A token costs (states + 1) Ht numbers of `dtype`, and 17 bytes; a state that is the head's input
    itself is kept once.

    Args:
        target: The target; it is run on one token to see the states' widths.
        drafter: Says which states it reads.
        rows: What to run the target on.
        dtype: As `cache_states` takes it.

    Raises:
        ValueError: As `OnlineStates` and `cache_states` raise.
    """
    source = OnlineStates(target, drafter, rows)
    return StateWriter(source, storage_dtype(source, dtype)).row_bytes * len(rows)


def cache_states(
    target: Any,
    drafter: Drafter,
    rows: Rows,
    folder: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = 256 << 20,
    batch_rows: int = 8,
    progress: bool = True,
) -> CachedStates:
    """Run the target on all rows once and keep on disk what a drafter learns from.

    The size is told, and compared with the room on the disk, before the target runs. Shards are
    written whole or not at all, a manifest at the end. Called again after an interruption, it goes
    on behind the shards that are there; called again after the end, it only reads.

    Args:
        target: A Hugging Face causal LM.
        drafter: Says which states it reads.
        rows: What to run it on.
        folder: Where to; made if missing.
        dtype: float32, bfloat16 or float16, of the states on disk; None for the target's own.
        shard_bytes: About the size of a file; twice as much memory is needed.
        batch_rows: Rows that the target runs on at a time.
        progress: Whether the size and a progress bar are shown, on stderr.

    Raises:
        ValueError: The folder holds states of something else (the message says what differs), the
            states are not finite or do not fit into float16, an argument is out of range, or as
            `OnlineStates` raises.
        DiskFullError: The disk has too little room, before or while it is written to.
        RuntimeError: Another process writes to the folder.
    """
    positive_int("shard_bytes", shard_bytes)
    positive_int("batch_rows", batch_rows)
    source = OnlineStates(target, drafter, rows, device="cpu")
    storage = storage_dtype(source, dtype)
    identity = {
        "target": identity_of_target(target),
        "states": identity_of_states(drafter),
        "dtype": str(storage).removeprefix("torch."),
        "rows": _identity_of_rows(rows),
    }
    where = Path(folder)
    where.mkdir(parents=True, exist_ok=True)
    with shards.only_writer(where):
        if not (where / shards.MANIFEST).exists():
            writer = StateWriter(source, storage, batch_rows=batch_rows, progress=progress)
            writer.write(where, identity, shard_bytes)
        finished = CachedStates(where)
        check_same(where, finished.identity, identity)
    return finished


class CachedStates:
    """Batches from a folder that `cache_states` wrote.

    A batch reads its own rows only, through memory maps that all processes share; the object may be
    pickled to workers.

    Args:
        folder: The cache.
        target: To check that the states are its own; None to trust the folder.
        drafter: To check that they are what it reads; None as above.
        rows: To check that they are of these; None as above.
        device: Where batches go.

    Attributes:
        identity: What the states belong to, as in the manifest.

    Raises:
        FileNotFoundError: The folder holds no cache, no finished one, or a file is missing.
        ValueError: The states are of something else (the message says what differs), or a file is
            damaged.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        target: Any = None,
        drafter: Drafter | None = None,
        rows: Rows | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.folder = Path(folder)
        manifest = shards.read_manifest(self.folder)
        self.identity: dict[str, Any] = manifest["identity"]
        self._per_shard: int = manifest["rows_per_shard"]
        self._sizes: list[int] = manifest["sizes"]
        self._states: int = manifest["states"]
        self._doubles: list[int] = manifest["doubles"]
        self._device = torch.device(device)
        self._open: dict[int, Any] = {}
        here = dict(self.identity)
        if target is not None:
            here["target"] = identity_of_target(target)
        if drafter is not None:
            here["states"] = identity_of_states(drafter)
        if rows is not None:
            here["rows"] = _identity_of_rows(rows)
        check_same(self.folder, self.identity, here)
        for number, size in enumerate(self._sizes):
            path = shards.shard_path(self.folder, number)
            if not path.is_file():
                raise FileNotFoundError(f"{path}: a shard of the cache is missing")
            if path.stat().st_size != size:
                raise ValueError(
                    f"{path}: got {path.stat().st_size} bytes, expected {size}: the shard is "
                    f"damaged; delete it and {shards.MANIFEST}, then cache the states again"
                )

    def __len__(self) -> int:
        return int(self.identity["rows"]["count"])

    @property
    def nbytes(self) -> int:
        """Bytes of all shards."""
        return sum(self._sizes)

    @functools.cached_property
    def rows(self) -> Rows:
        """The rows that the states are of."""
        parts = {
            name: torch.cat(
                [self._shard(number).get_tensor(name) for number in range(len(self._sizes))]
            )
            for name in ("ids", "loss_mask", "positions")
        }
        return Rows(parts["ids"].long(), parts["loss_mask"], parts["positions"].long())

    def batch(self, indices: Sequence[int]) -> Batch:
        """These rows with what the target computed on them, in the dtype of the cache.

        Raises:
            IndexError: There is no such row.
        """
        chosen = [int(i) for i in indices]
        if wrong := [i for i in chosen if not 0 <= i < len(self)]:
            raise IndexError(f"indices: got {wrong}, expected row numbers below {len(self)}")
        final = self._read("final", chosen)
        return Batch(
            ids=self._read("ids", chosen).long(),
            loss_mask=self._read("loss_mask", chosen),
            positions=self._read("positions", chosen).long(),
            hiddens=tuple(
                final if i in self._doubles else self._read(f"hiddens.{i}", chosen)
                for i in range(self._states)
            ),
            final=final,
            best=self._read("best", chosen).long(),
            logsumexp=self._read("logsumexp", chosen),
        ).to(self._device)

    def _read(self, name: str, indices: Sequence[int]) -> Tensor:
        rows = []
        for i in indices:
            number, place = divmod(i, self._per_shard)
            rows.append(self._shard(number).get_slice(name)[place : place + 1])
        # The copy is what leaves the map.
        return torch.cat(rows)

    def _shard(self, number: int) -> Any:
        from safetensors import safe_open

        handle = self._open.pop(number, None)
        if handle is None:
            handle = safe_open(shards.shard_path(self.folder, number), framework="pt")
        # The least recently used comes first.
        self._open[number] = handle
        if len(self._open) > _OPEN:
            del self._open[next(iter(self._open))]
        return handle

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}


def _identity_of_rows(rows: Rows) -> dict[str, Any]:
    return {"count": len(rows), "length": rows.ids.shape[1], "hash": rows.fingerprint()}
