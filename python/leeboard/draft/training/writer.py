"""Writing a state cache: sizes, room, shards, and going on after an interruption."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leeboard._progress import progress_bar
from leeboard.draft.batch import Batch
from leeboard.draft.training import shards
from leeboard.draft.training.identity import check_same
from leeboard.draft.training.states import OnlineStates

# Bytes of a token beside its states: ids, positions and best int32, loss_mask bool, logsumexp
# float32.
_TOKEN_BYTES = 4 + 4 + 4 + 1 + 4


def storage_dtype(source: OnlineStates, dtype: torch.dtype | None) -> torch.dtype:
    """The dtype of the states on disk: the one asked for, or the target's own.

    Raises:
        ValueError: It is not one of `shards.DTYPES`.
    """
    chosen = source.dtype if dtype is None else dtype
    if chosen not in shards.DTYPES.values():
        raise ValueError(f"dtype: got {chosen}, expected one of {', '.join(shards.DTYPES)}")
    return chosen


class StateWriter:
    """Writes what a source yields.

    Args:
        source: The states; its batches are on the CPU.
        storage: Their dtype on disk.
        batch_rows: Rows that the target runs on at a time.
        progress: Whether the size and a progress bar are shown.

    Attributes:
        row_bytes: Bytes of a row on disk.
    """

    def __init__(
        self,
        source: OnlineStates,
        storage: torch.dtype,
        *,
        batch_rows: int = 8,
        progress: bool = False,
    ) -> None:
        self._source = source
        self._storage = storage
        self._batch_rows = batch_rows
        self._progress = progress
        token = source.kinds.numbers * storage.itemsize + _TOKEN_BYTES
        self.row_bytes = source.rows.ids.shape[1] * token

    def write(self, folder: Path, identity: Mapping[str, Any], shard_bytes: int) -> None:
        """Write the shards that are missing, then the manifest.

        Raises:
            ValueError: The folder holds shards of something else, or a state cannot be stored.
            DiskFullError: There is too little room.
        """
        count = len(self._source)
        done, per_shard = _finished(folder, identity)
        if per_shard is None:
            per_shard = max(1, min(count, shard_bytes // self.row_bytes))
        rows = [range(i, min(i + per_shard, count)) for i in range(0, count, per_shard)]
        missing = [number for number in range(len(rows)) if number not in done]
        left = sum(len(rows[number]) for number in missing)
        if left * self.row_bytes > shards.free_bytes(folder):
            raise self._full(folder, left, len(done), len(rows))
        if self._progress:
            print(
                f"states of {count} rows: {shards.readable(count * self.row_bytes)} in "
                f"{len(rows)} file(s) in {folder}, {len(done)} of them there; "
                f"{shards.readable(shards.free_bytes(folder))} free",
                file=sys.stderr,
            )
        quiet = not self._progress
        with progress_bar("states", count, initial=count - left, quiet=quiet) as bar:
            for number in missing:
                tensors = self._observe(rows[number], bar)
                metadata = {"identity": identity, "number": number, "rows_per_shard": per_shard}
                with self._telling(folder, rows):
                    shards.write_shard(
                        shards.shard_path(folder, number),
                        tensors,
                        {name: json.dumps(value) for name, value in metadata.items()},
                    )
        sizes = [shards.shard_path(folder, number).stat().st_size for number in range(len(rows))]
        with self._telling(folder, rows):
            shards.write_manifest(
                folder,
                {
                    "identity": identity,
                    "states": len(self._source.kinds.widths),
                    "doubles": self._source.kinds.doubles,
                    "rows_per_shard": per_shard,
                    "sizes": sizes,
                },
            )

    @contextmanager
    def _telling(self, folder: Path, rows: Sequence[range]) -> Iterator[None]:
        """Say what was needed where the disk is full."""
        try:
            yield
        except OSError as error:
            if not shards.disk_is_full(error):
                raise
            whole = [i for i in range(len(rows)) if shards.shard_path(folder, i).exists()]
            left = sum(len(rows[i]) for i in range(len(rows)) if i not in whole)
            raise self._full(folder, left, len(whole), len(rows)) from error

    def _observe(self, rows: Sequence[int], bar: Any) -> dict[str, Tensor]:
        parts = []
        for begin in range(0, len(rows), self._batch_rows):
            some = rows[begin : begin + self._batch_rows]
            parts.append(self._stored(self._source.batch(some), some))
            bar.update(len(some))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _stored(self, batch: Batch, rows: Sequence[int]) -> dict[str, Tensor]:
        states = {}
        for i, hidden in enumerate(batch.hiddens):
            if i not in self._source.kinds.doubles:
                states[f"hiddens.{i}"] = hidden
            elif not torch.equal(hidden, batch.final):
                raise RuntimeError(f"hiddens.{i} is not the head's input, as it was for a token")
        states["final"] = batch.final
        stored = {}
        for name, state in states.items():
            stored[name] = state.to(self._storage)
            if not bool(stored[name].isfinite().all()):
                raise self._not_finite(name, state, rows)
        return {
            **stored,
            "ids": batch.ids.int(),
            "loss_mask": batch.loss_mask,
            "positions": batch.positions.int(),
            "best": batch.best.int(),
            "logsumexp": batch.logsumexp,
        }

    def _not_finite(self, name: str, state: Tensor, rows: Sequence[int]) -> ValueError:
        wrong = ~state.to(self._storage).isfinite().flatten(1).all(1)
        row = rows[int(wrong.nonzero()[0, 0])]
        if bool(state.isfinite().all()):
            return ValueError(
                f"dtype: got {self._storage}, which holds numbers up to "
                f"{torch.finfo(self._storage).max:.0f}, but {name} of row {row} reaches "
                f"{float(state.abs().max()):.0f}: use bfloat16"
            )
        return ValueError(
            f"target: {name} of row {row} is not finite: run the target in bfloat16 or float32"
        )

    def _full(self, folder: Path, left: int, done: int, files: int) -> shards.DiskFullError:
        count = len(self._source)
        return shards.DiskFullError(
            errno.ENOSPC,
            f"{folder}: the disk is too full for the states of {count} rows. They take "
            f"{shards.readable(count * self.row_bytes)}, of which "
            f"{shards.readable(left * self.row_bytes)} are still to be written, and "
            f"{shards.readable(shards.free_bytes(folder))} are free. {done} of {files} file(s) are "
            "whole and will be reused: make room and go on, or take fewer rows or a smaller dtype",
        )


def _finished(folder: Path, identity: Mapping[str, Any]) -> tuple[set[int], int | None]:
    """Numbers of the whole shards that are there, and how many rows each holds.

    Raises:
        ValueError: They are of something else.
    """
    done: set[int] = set()
    per_shard = None
    for path in sorted(folder.glob("states-*.safetensors")):
        found = shards.shard_metadata(path)
        # A damaged one is written again.
        if found is None or not {"identity", "number", "rows_per_shard"} <= found.keys():
            continue
        check_same(folder, found["identity"], identity)
        if path == shards.shard_path(folder, found["number"]):
            done.add(found["number"])
            per_shard = found["rows_per_shard"]
    return done, per_shard
