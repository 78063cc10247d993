"""The page of collectives: its tables hold, and its code runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from leeboard import sim
from leeboard.sim.collectives import closed_form, supported
from leeboard.sim.ops import ALGORITHMS, COLLECTIVES

TEXT = (Path(__file__).parents[2] / "docs" / "sim" / "collectives.md").read_text()


def rows(first: str) -> list[list[str]]:
    """Cells of the table that begins with the line `first`."""
    lines = TEXT[TEXT.index(first) :].split("\n\n")[0].splitlines()
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_of_algorithms_is_what_there_is() -> None:
    header, _, *body = rows("| | all_reduce | all_gather")
    assert header[1:] == list(COLLECTIVES)
    assert [row[0] for row in body] == list(ALGORITHMS[1:])
    for i, collective in enumerate(COLLECTIVES):
        assert tuple(row[0] for row in body if row[i + 1] == "yes") == supported(collective)


def test_the_named_tables_are_shown() -> None:
    _, _, *body = rows("| | gloo | nccl |")
    shown = {name: row[1:] for row in body for name in row[0].split(", ")}
    assert list(shown) == list(COLLECTIVES)
    for i, table in enumerate(("gloo", "nccl")):
        star = sim.Platform.star(2, bandwidth=1e9, latency=0, collectives=table)
        for collective, algorithm in star.core()["selector"][:, [0, 5]]:
            assert ALGORITHMS[int(algorithm)] in shown[COLLECTIVES[int(collective)]][i]


@pytest.mark.parametrize(("ranks", "depth"), [(8, 3), (16, 4)])
def test_the_costs_are_those_of_the_closed_forms(ranks: int, depth: int) -> None:
    names = {
        "ring": "ring",
        "recursive doubling": "recursive_doubling",
        "recursive halving": "recursive_doubling",
        "dissemination": "recursive_doubling",
        "tree": "binomial_tree",
        "direct": "direct",
        "pairwise": "pairwise",
        "ring or pairwise": "pairwise",
        "ring of S pieces": "ring",
    }
    _, _, *body = rows("| | latencies | times nβ")
    assert len(body) == 14
    size, pieces = 4 << 19, 4
    for what, *cells in body:
        collective, kind = what.split(", ")
        values = []
        for cell in cells:
            # 2 (P - 1) / P is Python once the product is written out.
            product = re.sub(r"(\d) ([(d])", r"\1 * \2", cell) or "0"
            values.append(eval(product, {"P": ranks, "d": depth, "S": pieces}))
        for i, unit in enumerate(((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))):
            alpha, beta, gamma = unit
            found = closed_form(
                collective, names[kind], ranks, size, alpha, beta / size, gamma=gamma / size
            )
            assert found == pytest.approx(values[i]), (what, i)


def test_the_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(compile(code, "collectives.md", "exec"), names)  # noqa: S102
    assert float(capsys.readouterr().out) > 0
    assert names["fit"].goodput == pytest.approx(0.9549, abs=1e-4)
