"""The benchmarks' report: rivals, aims, and sections that are published apart."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = """\
# Measured speed

## At a glance

| op    | case | aim |
| ----- | ---- | --: |
| early | N1   | met |
| late  | N2   | met |

| op   | case | best |
| ---- | ---- | ---: |
| late | N3   |   2x |

## How to read the tables

Slowly.

## early

old

## late

older

<!-- system sim:begin -->

## Simulator

<!-- system sim:end -->
"""
MS = 1e-3


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    from bench import report

    return report


def entry(case: str, variant: str, seconds: float, **info: Any) -> dict[str, Any]:
    aim = {"seconds": None, "share": None, "compiled": False, "ratios": {}, "overhead": None}
    return {
        "stats": {"median": seconds, "data": [seconds] * 7, "rounds": 7},
        "extra_info": {
            "op": "sparse_gqa",
            "case": f"{case}-float32-forward",
            "sizes": case,
            "dtype": "float32",
            "direction": "forward",
            "threads": 1,
            "variant": variant,
            "level": "L2",
            "limits": [0.5 * MS, 0.7 * MS],
            "others": 0.0,
            "faults_per_call": 0.0,
            "flop_share": 0.25,
            "quick": case == "band-L8",
            "aim": aim | info.pop("aim", {}),
        }
        | info,
    }


def read(report: ModuleType, tmp_path: Path, entries: list[dict[str, Any]]) -> Any:
    machine = {"processor": "P", "cores": "2", "torch": "T"}
    run = {"machine_info": machine, "benchmarks": entries, "datetime": "2000-01-01T"}
    (tmp_path / "run.json").write_text(json.dumps(run))
    return report.read_timings(tmp_path / "run.json")


def test_aims_name_the_rival_and_the_overhead(report: ModuleType, tmp_path: Path) -> None:
    aim = {"ratios": {"best": 3.0, "sdpa": 3.0}, "overhead": 1.3}
    times = {"leeboard": 1.0, "leeboard-dense": 3.0, "sdpa": 4.0, "flex": 2.5}
    _, timings, _ = read(
        report, tmp_path, [entry("band-L8", name, t * MS, aim=aim) for name, t in times.items()]
    )
    (point,) = report.points_of(timings)
    assert report.rivals(point) == pytest.approx({"sdpa": 4.0, "flex": 2.5})
    assert report.over_flops(point) == pytest.approx(4 / 3)
    assert report.failures(point) == ["under 3x best", "over flops above 1.3"]
    lines = report._op_tables([point], [])
    head, row = ([cell.strip() for cell in lines[i].split("|")[1:-1]] for i in (2, 4))
    shown = dict(zip(head, row, strict=True))
    assert shown["case"] == "band L8"
    assert (shown["sdpa"], shown["flex"], shown["best"]) == ("4.00x", "2.50x", "2.50x flex")
    assert shown["over flops"] == "1.33"
    assert shown["share"] == "60%"
    assert "out=" not in shown


def test_many_cases_are_few_at_a_glance(report: ModuleType, tmp_path: Path) -> None:
    cases = [f"band-L{length}" for length in range(8, 9 + report.GLANCE)]
    _, timings, _ = read(report, tmp_path, [entry(case, "leeboard", MS) for case in cases])
    assert len(report._glance(report.points_of(timings))) == 2 + 1 + 1
    few = [t for t in timings if t.case != "band-L9-float32-forward"]
    assert len(report._glance(report.points_of(few))) == 2 + report.GLANCE + 1


def test_a_section_is_replaced_and_nothing_else(report: ModuleType) -> None:
    from bench.sections import with_section

    once = with_section(RESULTS, "late", "## late\n\nnew\n")
    assert once.count("late") == 1
    assert "older" not in once
    assert "| early | N1   | met |" in once
    assert "old\n\n## late\n\nnew\n\n<!-- system sim:begin -->\n\n## Simulator" in once
    # Its table had no other rows.
    assert "best" not in once
    assert with_section(once, "late", "## late\n\nnew\n") == once
    between = with_section(RESULTS, "inner", "## inner\n\nnew\n")
    assert between.replace("## inner\n\nnew\n\n", "") == RESULTS
    assert between.index("## early") < between.index("## inner") < between.index("## late")


def test_part_of_an_op_is_not_published(
    report: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read(report, tmp_path, [entry("band-L8", "leeboard", MS)])
    target = tmp_path / "RESULTS.md"
    target.write_text(RESULTS)
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(report, "TARGET", target)
    monkeypatch.setattr("sys.argv", ["report", "--publish", "--part"])
    with pytest.raises(SystemExit, match=r"nothing published: .* sparse_gqa dense-L512"):
        report.main()
    assert target.read_text() == RESULTS


def test_an_op_is_published_with_its_own_machine(
    report: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read(report, tmp_path, [entry("band-L8", name, MS) for name in ("leeboard", "sdpa")])
    target, readme = tmp_path / "RESULTS.md", tmp_path / "README.md"
    target.write_text(RESULTS)
    readme.write_text("a\n<!-- sparse_gqa:begin -->\nold\n<!-- sparse_gqa:end -->\nb\n")
    monkeypatch.setattr(report, "unmeasured", lambda *_, **__: [])
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(report, "TARGET", target)
    monkeypatch.setattr(report, "README", readme)
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["report", "--publish", "--part"])
    report.main()
    text = target.read_text()
    assert "## late\n\nolder\n\n## sparse_gqa\n" in text
    assert "`python bench/run.py -k sparse_gqa --publish` on 2000-01-01" in text
    assert "Against sdpa: 1.0x" in text
    assert "| band L8 | float32 |" in text
    shown = readme.read_text()
    assert shown.startswith("a\n<!-- sparse_gqa:begin -->\n\nP, 2 cores, torch T, 2000-01-01:")
    assert "old" not in shown
