"""Where a training's numbers go: CSV files always, TensorBoard on request."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

from leeboard._files import replacing
from leeboard.draft.training.history import Column, History

STEPS, EVALUATIONS = "log.csv", "evaluations.csv"
_ORDER = ("loss", "lr", "grad_norm", "seconds", "accuracy", "overlap")


class Logs:
    """Files in a folder that grow by a line per step and per evaluation.

    A resumed training writes them anew up to its checkpoint: no step is told twice.

    Args:
        folder: Where `log.csv` and `evaluations.csv` go; made if missing.
        tensorboard: Whether `tensorboard/` is written too; see `check_tensorboard`.
    """

    def __init__(self, folder: Path, *, tensorboard: bool = False) -> None:
        if tensorboard:
            check_tensorboard()
        self._folder = folder
        self._tensorboard = tensorboard
        self._streams: dict[str, TextIO] = {}
        self._columns: dict[str, list[str]] = {}
        self._writer: Any = None

    def begin(self, history: History) -> None:
        """Start with what is known: nothing, or the history of a checkpoint."""
        self._folder.mkdir(parents=True, exist_ok=True)
        numbered = {"step": [float(i + 1) for i in range(len(history))], **history.steps}
        for name, table in ((STEPS, numbered), (EVALUATIONS, history.evaluations)):
            path = self._folder / name
            self._columns[name] = _ordered(table) if any(table.values()) else []
            with (
                replacing(path) as temporary,
                temporary.open("w", newline="", encoding="utf-8") as stream,
            ):
                if self._columns[name]:
                    _write(stream, self._columns[name], _rows(table, self._columns[name]))
            self._streams[name] = path.open("a", newline="", encoding="utf-8")
        if self._tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # What an interrupted run has told beyond its checkpoint is hidden.
            self._writer = SummaryWriter(
                str(self._folder / "tensorboard"), purge_step=len(history) + 1
            )

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Tell of a step, counted from 1."""
        self._tell(STEPS, "train", step, values)

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Tell of an evaluation after so many steps."""
        self._tell(EVALUATIONS, "heldout", step, values)

    def close(self) -> None:
        """Close the files."""
        for stream in self._streams.values():
            stream.close()
        self._streams.clear()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _tell(self, name: str, group: str, step: int, values: Mapping[str, float]) -> None:
        stream, row = self._streams[name], {"step": step, **values}
        header = []
        if not self._columns[name]:
            self._columns[name] = _ordered(row)
            header = self._columns[name]
        _write(stream, header, [[_text(row[column]) for column in self._columns[name]]])
        # A run that is killed has told all it did.
        stream.flush()
        if self._writer is not None:
            for column, value in values.items():
                if column != "step":
                    self._writer.add_scalar(f"{group}/{column}", value, step)


def check_tensorboard() -> None:
    """Raise ModuleNotFoundError unless TensorBoard's writer is there."""
    if find_spec("tensorboard") is None:
        raise ModuleNotFoundError(
            'tensorboard: the logs for it need the package: pip install "leeboard[tensorboard]"; '
            "log.csv is written without it",
            name="tensorboard",
        )


def _write(stream: TextIO, header: list[str], rows: Iterable[list[str]]) -> None:
    writer = csv.writer(stream, lineterminator="\n")
    if header:
        writer.writerow(header)
    writer.writerows(rows)


def _rows(table: Mapping[str, Column], columns: list[str]) -> Iterator[list[str]]:
    for values in zip(*(table[column] for column in columns), strict=True):
        yield [_text(value) for value in values]


def _text(value: float) -> str:
    """The shortest text that reads as the same number."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else repr(value)


def _ordered(names: Iterable[str]) -> list[str]:
    """The step, then sums before their parts, chain steps by their numbers."""

    def key(name: str) -> tuple[Any, ...]:
        match = re.fullmatch(r"(.*?)([^./@]+)(?:@(\d+))?", name)
        assert match is not None
        owner, what, number = match.groups()
        place = _ORDER.index(what) if what in _ORDER else len(_ORDER)
        return (name != "step", number is not None, place, what, int(number or 0), owner)

    return sorted(names, key=key)
