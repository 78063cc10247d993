"""Tables: named columns of one length, for ranks, links and sweeps."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leeboard.sim.files import write_atomically

_SCALES = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"), (1e-12, "ps")),
    "B": tuple(
        (1024.0**i, unit) for i, unit in [*enumerate(("B", "KiB", "MiB", "GiB", "TiB"))][::-1]
    ),
}
_SHOWN = 24


def text_of(value: Any, unit: str = "") -> str:
    """A value for people: 3 or 4 digits and a unit; "-" for nothing (None, NaN).

    Args:
        value: A number or anything else that prints.
        unit: "s" and "B" are scaled ("1.5 ms"); "%": the value is a share of 1; or another word.
    """
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)):
        return "-"
    if isinstance(value, bool | np.bool_ | str) or not isinstance(
        value, int | float | np.integer | np.floating
    ):
        return str(value)
    number = value.item() if isinstance(value, np.generic) else value
    if unit == "%":
        return f"{100 * number:.1f} %"
    if unit in _SCALES and number:
        scales = _SCALES[unit]
        scale, unit = next((s for s in scales if abs(number) >= s[0]), scales[-1])
        number = number / scale if scale != 1.0 else number
    whole = isinstance(number, int) or 1e4 <= abs(number) < 1e15
    text = f"{number:,.0f}" if whole else f"{number:.4g}"
    return f"{text} {unit}".rstrip()


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under a header, flush left where a cell begins with a letter, else flush right."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    words = [any(cell[:1].isalpha() for cell in column[1:]) for column in columns]
    lines = []
    for row in (header, *rows):
        cells = [
            cell.ljust(width) if word else cell.rjust(width)
            for cell, width, word in zip(row, widths, words, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


class Table:
    """Columns of one length.

    `table["finish"]` is a column, `table.row(3)` a dict, iteration goes by rows, `print(table)`
    shows it, long ones in part.

    Args:
        columns: Name to sequence or array of shape [N].
        units: Of columns, for printing: "s", "B", "W", "J", "%" (a share of 1).
    """

    def __init__(
        self, columns: Mapping[str, Sequence[Any] | np.ndarray], units: Mapping[str, str] = {}
    ) -> None:
        self._columns = {name: np.asarray(column) for name, column in columns.items()}
        self.units = dict(units)
        lengths = {name: len(column) for name, column in self._columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns: got lengths {lengths}, expected one length")
        self._length = next(iter(lengths.values()), 0)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names, in order."""
        return tuple(self._columns)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            return self._columns[name]
        except KeyError:
            known = ", ".join(self._columns)
            raise KeyError(f"column {name!r}: expected one of {known}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def row(self, index: int) -> dict[str, Any]:
        """Row `index` (negative: from the end) as plain Python values."""
        return {name: _plain(column[index]) for name, column in self._columns.items()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self.row(i) for i in range(self._length))

    def take(self, rows: np.ndarray) -> Table:
        """The table of some rows: indices or a mask."""
        return Table({name: column[rows] for name, column in self._columns.items()}, self.units)

    def to_csv(self, path: str | Path | None = None) -> str:
        """Write comma-separated values in plain SI units (or only return them)."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(self._columns)
        for row in self:
            writer.writerow("" if value is None else value for value in row.values())
        if path is not None:
            write_atomically(path, buffer.getvalue().encode())
        return buffer.getvalue()

    def to_pandas(self) -> Any:
        """The same as a pandas.DataFrame.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ModuleNotFoundError:
            message = "to_pandas needs pandas: pip install pandas"
            raise ModuleNotFoundError(message, name="pandas") from None
        return pd.DataFrame(self._columns)

    def __str__(self) -> str:
        return self._text(_SHOWN if self._length > _SHOWN + 1 else None)

    def whole(self) -> str:
        """All rows as text, where printing leaves out those in the middle of a long table."""
        return self._text(None)

    def _text(self, cut: int | None) -> str:
        """As text, with all rows or the first and last `cut` / 2."""
        if not self._columns:
            return "(empty)"
        shown = [*range(self._length)]
        if cut is not None:
            shown = [*range(cut // 2), *range(self._length - cut // 2, self._length)]
        rows = [
            [text_of(_plain(c[i]), self.units.get(n, "")) for n, c in self._columns.items()]
            for i in shown
        ]
        lines = aligned(list(self._columns), rows).split("\n")
        if cut is not None:
            lines.insert(1 + cut // 2, f"... {self._length - cut} more rows ...")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Table of {self._length} rows: {', '.join(self._columns)}>"


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
