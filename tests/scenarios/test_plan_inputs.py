"""What `leeboard plan` reads: acceptance, models, tables of plans, studies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from leeboard.scenarios import (
    DRAFTERS,
    TARGETS,
    Acceptance,
    Plans,
    Target,
    acceptance_of,
    plans_of,
    plans_of_study,
)
from leeboard.scenarios.models import find

EXAMPLES = Path(__file__).parents[2] / "examples" / "plan"
TABLE: dict[str, Any] = {
    "format": "leeboard.plan.edge.plans",
    "version": 1,
    "source": "nobody",
    "sensors": {"a": {"bytes": 100, "features": 10}, "b": {"bytes": 200, "features": 20}},
    "plans": [
        {
            "name": "full",
            "sensors": ["b", "a"],
            "accuracy": 0.9,
            "milliseconds": 5,
            "encoders": {"a": 1, "b": 2},
            "bytes": 1000,
        },
        {"name": "full", "sensors": ["a"], "accuracy": 0.5, "milliseconds": 3},
    ],
}


def written(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    "content",
    [
        [0.5, 0.25],
        [0.5, 0.25, None, None],
        {"acceptance_by_depth": [0.5, 0.25], "tau": 1.6},
        {"ways": {"drafter": {"acceptance_by_depth": [0.5, 0.25, None]}}, "depth": 3},
        {
            "decode": {
                "runs": {
                    "post": {
                        "2": {"acceptance_by_depth": [0.9]},
                        "8": {"acceptance_by_depth": [0.5, 0.25]},
                    }
                }
            }
        },
    ],
)
def test_acceptance_of_every_file_that_holds_some(tmp_path: Path, content: Any) -> None:
    read = acceptance_of(written(tmp_path / "a.json", content))
    assert read.by_depth == (0.5, 0.25)
    assert read.source.startswith("a.json")
    assert acceptance_of(content).by_depth == (0.5, 0.25)


def test_acceptance_of_what_draft_eval_writes() -> None:
    """The figures come from the command's own function."""
    import torch

    from leeboard._cli.evaluate import _totals
    from leeboard.draft import SpeculateResult

    nothing = torch.zeros(1, 1, dtype=torch.int64)
    result = SpeculateResult(
        nothing, nothing[0], 16, [[0] * 5 + [1] * 4 + [2]], [10, 5, 0], [5, 1, 0], 11, 1.0
    )
    way = json.loads(json.dumps(_totals([result], 3)))
    read = acceptance_of({"ways": {"a": way, "b": way}}, "b")
    assert read == Acceptance((0.5, 0.2), "given, b")
    assert acceptance_of(result.to_dict()).by_depth == (0.5, 0.2)
    assert read.tau(2) == pytest.approx(result.tau)


def test_acceptance_beyond_what_was_measured() -> None:
    read = Acceptance((0.8, 0.3, 0.9))
    assert [read.at(d) for d in range(1, 6)] == [0.8, 0.3, 0.9, 0.3, 0.3]
    assert read.tau(0) == 1.0
    assert read.tau(2) == pytest.approx(1 + 0.8 + 0.24)
    assert read.scaled(1.2).by_depth == pytest.approx((0.96, 0.36, 1.0))


@pytest.mark.parametrize(
    ("content", "way", "message"),
    [
        ("{", None, "not JSON"),
        ({"x": 1}, None, "has neither 'acceptance_by_depth' nor 'ways'"),
        ({"ways": {"a": {}, "b": {}}}, None, r"holds 2 drafters \('a', 'b'\); say which"),
        ({"ways": {"a": {}}}, "c", "way: got 'c', expected one of 'a'"),
        ({"ways": {"a": {}}}, None, "'a' has no 'acceptance_by_depth'"),
        ({"ways": {}}, None, "holds 0 drafters"),
        ([0.5], "a", "holds one drafter only"),
        ({"acceptance_by_depth": "high"}, None, "expected a list of shares"),
        ({"acceptance_by_depth": [None]}, None, "acceptance: got none"),
        ([0.5, None, 0.5], None, "got None at depth 2"),
        ([True], None, "got True at depth 1"),
    ],
)
def test_wrong_acceptance(tmp_path: Path, content: Any, way: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        acceptance_of(written(tmp_path / "a.json", content), way)
    with pytest.raises(FileNotFoundError, match="no such file"):
        acceptance_of(tmp_path / "b.json")


def test_sizes_of_the_presets() -> None:
    """The published numbers of parameters, and the accounting of an EAGLE-3 head's step."""
    counts = {
        "llama-3.1-8b": 8_030_261_248,
        "llama-3.1-70b": 70_553_706_496,
        "llama-3.2-1b": 1_235_814_400,
    }
    for name, count in counts.items():
        assert TARGETS[name].parameters == count
    head = DRAFTERS["eagle3-llama-3.1-8b"]
    assert (head.step, head.entry) == (374_341_632, 50_331_648)
    assert head.message(3) == 3 * 2 * 4096
    assert head.stored(alone=True) == 2 * (374_341_632 + 128256 * 4096)


def test_models_of_files(tmp_path: Path) -> None:
    sizes = {"name": "toy", "parameters": 1e6, "layers": 2, "hidden": 64, "bytes_per_weight": 1}
    assert find(Target, written(tmp_path / "m.json", sizes)) == Target(**sizes)
    for change, message in (
        ({"layers": 0}, "target: layers: got 0, expected a number above 0"),
        ({"kv_width": -1}, "target: kv_width: got -1, expected a number from 0 on"),
        ({"embedding": 2e6}, "target: embedding: got 2e"),
    ):
        with pytest.raises(ValueError, match=message):
            find(Target, sizes | change)


def test_tables_of_plans(tmp_path: Path) -> None:
    read = plans_of(written(tmp_path / "p.json", TABLE))
    assert read.source == "p.json: nobody"
    assert [r.set_name for r in read.rows] == ["a+b", "a"]
    assert read.rows[0].fusion == pytest.approx(2e-3)
    assert read.rows[1].encoders is None
    assert read.sized(raw=7.0).sensors["b"].raw == 7.0
    lines = "name,sensors,accuracy,milliseconds,fusion\nx,a+b,0.9,5,1\ny,b,0.5,2,\n"
    table = plans_of(written(tmp_path / "p.csv", lines))
    assert table.rows[0].encoders == pytest.approx({"a": 2e-3, "b": 2e-3})
    assert table.rows[1].encoders is None


def change(**changes: Any) -> dict[str, Any]:
    return {**TABLE, "plans": [{**TABLE["plans"][0], **changes}]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "format None, version None, expected 'leeboard.plan.edge.plans'"),
        ({**TABLE, "version": 2}, "version 2"),
        ({**TABLE, "plans": []}, "plans: got none"),
        ({**TABLE, "plans": 3}, "'plans' is missing, or no list"),
        ({**TABLE, "plans": TABLE["plans"][:1] * 2}, "full of a.b is there twice"),
        ({"cells": [], "masks": []}, "give it as --study"),
        (change(sensors=["c"]), "unknown sensor 'c'; expected some of a, b"),
        (change(sensors=["a", "a"]), "expected each once"),
        (change(sensors=[]), "got no sensors"),
        (change(accuracy=90), "accuracy: got 90, expected a number from 0 to 1"),
        (change(accuracy="high"), r"plans\[0\].accuracy: got 'high', expected a number"),
        (change(milliseconds=-1), "milliseconds: got -1"),
        (change(encoders={"a": 1}), "expected a time from 0 on for each of its sensors"),
        (change(encoders={"a": 4, "b": 4}), "its encoders take 8 ms, more than the whole"),
        (change(latency=1), "unknown key 'latency'"),
    ],
)
def test_wrong_tables(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plans_of(written(tmp_path / "p.json", content))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("name,sensors,accuracy\n", "'milliseconds' is missing; expected name, sensors"),
        ("name,sensors,accuracy,milliseconds,joules\n", "unknown column 'joules'"),
        ("name,sensors,accuracy,milliseconds\n", "plans: got none"),
        ("name,sensors,accuracy,milliseconds\nx,a,much,3\n", "line 2: accuracy: got 'much'"),
        ("name,sensors,accuracy,milliseconds,fusion\nx,a,0.5,3,4\n", "line 2: fusion: got more"),
        ("name,sensors,accuracy,milliseconds\nx,,0.5,3\n", "x: got no sensors"),
    ],
)
def test_wrong_csv(tmp_path: Path, lines: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plans_of(written(tmp_path / "p.csv", lines))


@pytest.fixture(scope="module")
def studied() -> Plans:
    return plans_of_study(
        EXAMPLES / "study-late.json", EXAMPLES / "latency-late.json", planning="per layer"
    )


def test_plans_of_a_study(studied: Plans) -> None:
    record = json.loads((EXAMPLES / "study-late.json").read_text())
    table = json.loads((EXAMPLES / "latency-late.json").read_text())
    found = {(r.name, r.sensors): r for r in studied.rows}
    assert tuple(studied.sensors) == tuple(record["modalities"])
    everything = tuple(record["modalities"])
    masks = [tuple(m for m in everything if m in mask["present"]) for mask in record["masks"]]
    for entry in record["unpruned"]:
        assert found["100%", masks[entry["mask"]]].accuracy == entry["test"]
    for cell in record["cells"]:
        if cell["planning"] == "per layer":
            row = found[f"{100 * (1 - cell['level']):g}%", masks[cell["mask"]]]
            assert row.accuracy == cell["test"]
    # Unpruned: all units of every sublayer and the rest, in milliseconds.
    for present in (everything, ("ACC", "EDA"), ("TEMP",)):
        encoder = attention = 0.0
        for shape, curves in table["curves"].items():
            tokens = {c["queries"]: c["milliseconds"][-1] for c in curves}
            bottleneck = 4 + len(present)
            if "pairs" not in shape:
                encoder += tokens.get(8, 0.0) * len(present)
            if "pairs" in shape or "feed_forward" in shape:
                attention += tokens[bottleneck]
        total = encoder + attention + table["rests"]["+".join(present)]
        row = found["100%", present]
        assert 1e3 * row.seconds == pytest.approx(total, rel=1e-9)
        assert row.encoders is not None
        assert 0 < row.fusion < row.seconds
        quarter = found["25%", present]
        assert quarter.seconds < row.seconds


def test_wrong_studies(tmp_path: Path) -> None:
    latency = EXAMPLES / "latency-late.json"
    study = EXAMPLES / "study-late.json"
    with pytest.raises(ValueError, match="no record of `leeboard prune study`"):
        plans_of_study(latency, latency)
    with pytest.raises(ValueError, match="ranker: got 'best', expected one of table"):
        plans_of_study(study, latency, ranker="best")
    with pytest.raises(ValueError, match="planning: got 'by feel'"):
        plans_of_study(study, latency, planning="by feel")
    record = json.loads(study.read_text())
    other = {**record, "unit": {**record["unit"], "arm": "A"}}
    with pytest.raises(ValueError, match="expected seeds of one"):
        plans_of_study([study, written(tmp_path / "u.json", other)], latency)
    with pytest.raises(FileNotFoundError, match="no such file"):
        plans_of_study(tmp_path / "none.json", latency)
