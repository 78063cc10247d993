"""Tables and the text of values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from leeboard.sim.table import Table, text_of


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "s", "0 s"),
        (0.0, "B", "0 B"),
        (1.5e-3, "s", "1.5 ms"),
        (-2e-9, "s", "-2 ns"),
        (1e-13, "s", "0.1 ps"),
        (86400.0, "s", "86,400 s"),
        (1023, "B", "1,023 B"),
        (np.uint64(3 << 30), "B", "3 GiB"),
        (0.1234, "%", "12.3 %"),
        (12345, "", "12,345"),
        (1234.5, "J", "1234 J"),
        (None, "s", "-"),
        (float("nan"), "s", "-"),
        (True, "", "True"),
        ("x", "s", "x"),
    ],
)
def test_text(value: Any, unit: str, text: str) -> None:
    assert text_of(value, unit) == text


def test_columns_rows_and_parts() -> None:
    table = Table({"name": ["a", "b", "c"], "time": [1.0, 2.0, np.nan]}, {"time": "s"})
    assert len(table) == 3
    assert table.columns == ("name", "time")
    assert "time" in table
    assert table.row(-2) == {"name": "b", "time": 2.0}
    assert [row["name"] for row in table] == ["a", "b", "c"]
    assert table.take(table["time"] > 1).row(0)["name"] == "b"
    assert table.to_csv() == "name,time\na,1.0\nb,2.0\nc,nan\n"
    assert str(table).splitlines() == ["name  time", "a      1 s", "b      2 s", "c        -"]
    with pytest.raises(KeyError, match="column 'tim': expected one of name, time"):
        table["tim"]
    with pytest.raises(ValueError, match="got lengths"):
        Table({"a": [1], "b": [1, 2]})
    assert str(Table({})) == "(empty)"


def test_long_tables_print_their_ends() -> None:
    table = Table({"n": range(1000)})
    assert len(table.whole().splitlines()) == 1 + 1000
    lines = str(table).splitlines()
    assert len(lines) == 1 + 24 + 1
    assert lines[13] == "... 976 more rows ..."
    assert (lines[1].strip(), lines[-1].strip()) == ("0", "999")
