"""Plans as values, as files and as text; files that are no plans."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leeboard.prune import Plan, Units, plan
from plan_models import Encoder, Ranking, attention, encoder_units, feed_forward, units_of

UNITS = units_of([attention("a"), feed_forward("f", units=32)])
PLAN = Plan(
    fingerprint=UNITS.fingerprint,
    present=("acc",),
    budget="50%",
    keep={"a": (0, 2, 5), "f": ()},
    scales={"a": (1.0, 0.5, 2.0)},
    bias={"f": (0.25,) * 48},
    score=0.75,
    ranking="by hand",
).priced(UNITS)


def test_a_plan_is_a_value() -> None:
    other = dataclasses.replace(PLAN, keep={"f": [], "a": [0, 2, 5]})  # type: ignore[dict-item]
    assert other == PLAN
    assert hash(other) == hash(PLAN)
    assert {PLAN: 1}[other] == 1
    for again in (pickle.loads(pickle.dumps(PLAN)), copy.deepcopy(PLAN)):
        assert again == PLAN
        assert hash(again) == hash(PLAN)
        assert again.keep == {"a": (0, 2, 5), "f": ()}
    assert dataclasses.replace(PLAN, budget="40%") != PLAN
    assert dataclasses.replace(PLAN, bias={}) != PLAN
    assert PLAN != "a plan"
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLAN.budget = "1%"  # type: ignore[misc]
    with pytest.raises(TypeError):
        PLAN.keep["a"] = (1,)  # type: ignore[index]
    with pytest.raises(TypeError):
        del PLAN.keep["a"]  # type: ignore[attr-defined]


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("something else")
    PLAN.save(path)
    assert Plan.load(path) == PLAN
    assert Plan.load(str(path)) == PLAN
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    # A sublayer a line, for people and for diffs.
    assert '\n    "a": [0, 2, 5],\n' in path.read_text()
    full = plan(Ranking(encoder_units()), budget="40%", compensate=True, model=Encoder())
    full.save(path)
    assert Plan.load(path) == full


def test_a_file_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plan.json"
    PLAN.save(path)

    def full(self: Path, target: Path) -> None:
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="no space"):
            dataclasses.replace(PLAN, budget="1%").save(path)
    assert Plan.load(path) == PLAN
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        PLAN.save(tmp_path / "nowhere" / "plan.json")
    with pytest.raises(FileNotFoundError):
        Plan.load(tmp_path / "nowhere.json")


Change = Callable[[dict[str, Any]], object]

DAMAGES: dict[str, tuple[Change, str]] = {
    "unknown key": (lambda d: d.update(extra=1), "the plan: unknown key 'extra', expected finger"),
    "missing key": (lambda d: d.pop("keep"), "the plan: key 'keep' is missing"),
    "other schema": (lambda d: d.update(schema="x"), 'with "schema": "leeboard.prune.plan"'),
    "later version": (lambda d: d.update(version=2), "version: got 2, this release reads 1"),
    "true version": (lambda d: d.update(version=True), "version: got True"),
    "number as text": (lambda d: d.update(macs="12"), "macs: got text, expected a number"),
    "true number": (lambda d: d.update(macs=True), "macs: got True, expected a number"),
    "huge number": (lambda d: d.update(macs=10**400), "macs: the number is too large"),
    "negative": (lambda d: d.update(bytes=-1), "bytes: got -1.0, expected a finite number of at"),
    "too much kept": (lambda d: d.update(score=1.5), "score: got 1.5, expected a share"),
    "no modality": (lambda d: d.update(present=[]), "present: got .*, expected modalities"),
    "a modality twice": (lambda d: d.update(present=["acc", "acc"]), "each once"),
    "modality is a number": (lambda d: d.update(present=[1]), "present: got 1, expected text"),
    "text for a list": (lambda d: d.update(present="acc"), "present: got text, expected a list"),
    "list for an object": (lambda d: d.update(keep=[]), "keep: got a list, expected an object"),
    "null": (lambda d: d["keep"].update(a=None), "keep.a: got null, expected a list"),
    "half a unit": (lambda d: d["keep"].update(a=[0.5]), "keep.a: got 0.5, expected a whole"),
    "true unit": (lambda d: d["keep"].update(a=[True]), "keep.a: got True, expected a whole"),
    "unit twice": (lambda d: d["keep"].update(a=[0, 2, 2]), "keep: units of a must ascend, none"),
    "descending": (lambda d: d["keep"].update(a=[2, 0, 5]), "keep: units of a must ascend"),
    "negative unit": (lambda d: d["keep"].update(a=[-1, 0, 5]), "keep: units of a must ascend"),
    "scales too few": (lambda d: d["scales"].update(a=[1.0]), "scales: got 1 for a, expected 3"),
    "scales of nobody": (lambda d: d["scales"].update(x=[1.0]), "scales: got 1 for x, expected 0"),
    "bias of nobody": (lambda d: d["bias"].update(x=[1.0]), "bias: got 'x', which the plan does"),
    "part of nobody": (
        lambda d: d["parts"].update(x=d["parts"]["a"]),
        "parts: got 'x', which the plan does",
    ),
    "part without units": (
        lambda d: d["parts"]["a"].pop("units"),
        "parts.a: key 'units' is missing",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_named(damage: str, tmp_path: Path) -> None:
    change, message = DAMAGES[damage]
    content = json.loads(PLAN.to_json())
    change(content)
    path = tmp_path / "damaged.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as caught:
        Plan.load(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{",
        PLAN.to_json()[:-20],
        PLAN.to_json().replace("0.75", "NaN"),
        PLAN.to_json().replace("0.75", "1e999"),
        PLAN.to_json().replace('"ranking"', '"budget"'),
        "[" * 100_000,
        '{"schema": "leeboard.prune.plan"}',
    ],
)
def test_what_is_no_plan(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not a plan|version|too large"):
        Plan.from_json(text)
    path = tmp_path / "plan.json"
    path.write_bytes(text.encode() + b"\xff")
    with pytest.raises(ValueError, match=r"plan\.json: "):
        Plan.load(path)


@given(st.data())
def test_any_damage_is_a_value_error(data: st.DataObject) -> None:
    text = PLAN.to_json()
    at = data.draw(st.integers(0, len(text) - 1))
    until = data.draw(st.integers(at, min(at + 8, len(text))))
    damaged = text[:at] + data.draw(st.text('0-1.,:"{}[]ae\n', max_size=4)) + text[until:]
    try:
        found = Plan.from_json(damaged)
    except (TypeError, ValueError):
        return
    assert Plan.from_json(found.to_json()) == found


def test_a_plan_for_another_model() -> None:
    PLAN.check(UNITS)
    other = units_of(UNITS.sublayers, fingerprint="fedcba9876543210")
    with pytest.raises(ValueError, match=r"made for another model .fingerprint 0123456789ab, this"):
        PLAN.check(other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"present": ("ecg",)}, "present: got 'ecg'"),
        ({"present": ("eda", "acc")}, "expected the model's order"),
        ({"keep": {"a": (0,)}}, "says nothing of 'f', which runs with acc present"),
        ({"keep": {"a": (0,), "f": (), "x": ()}}, "keeps units of 'x', which does not run"),
        ({"keep": {"a": (0, 6), "f": ()}}, "it keeps unit 6 of a, expected 0 to 5"),
        ({"bias": {"f": (0.0,)}}, "its bias of f has 1 numbers, expected 48"),
    ],
)
def test_a_plan_that_does_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PLAN, scales={}, **({"bias": {}} | changes), parts={}).check(UNITS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": {"a": "01"}}, "keep: expected names with a sequence of numbers"),
        ({"keep": {"a": (0.5,)}}, "keep: expected names with a sequence of numbers"),
        ({"keep": ["a"]}, "keep: expected names with a sequence of numbers"),
        ({"scales": {"a": (float("nan"), 1.0, 1.0)}}, "scales: expected .* got nan"),
    ],
)
def test_a_plan_made_wrong_by_hand(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        dataclasses.replace(PLAN, **changes)


def test_dense() -> None:
    units: Units = UNITS
    dense = Plan.dense(units, ["acc"])
    assert dense.keep == {"a": tuple(range(6)), "f": tuple(range(32))}
    assert dense.macs == dense.dense_macs > 0.0
    assert dense.bytes == dense.dense_bytes > 0.0
    dense.check(units)
    some = units_of(units.sublayers, only={"f": "eda"})
    assert list(Plan.dense(some, ["acc"]).keep) == ["a"]
    with pytest.raises(ValueError, match="present: got 'ecg'"):
        Plan.dense(units, ["ecg"])


def test_text() -> None:
    assert str(PLAN) == (
        "Plan for acc within 50%, ranked by by hand\n"
        "  compute     62.21 kMAC of 161.3 kMAC (38.6 %)\n"
        "  weights     18.43 kB of 49.15 kB (37.5 %)\n"
        "  importance  75.0 % kept\n"
        "\n"
        "sublayer  kept  units      MAC  share\n"
        "a            3      6  62.21 k   50 %  rescaled\n"
        "f            0     32        0    0 %  dropped, bias"
    )


def test_text_of_a_plan_that_knows_little() -> None:
    bare = Plan("f", ("acc",), "50%", {"a": (0, 1)})
    assert "sublayer  kept  units  MAC  share" in str(bare)
    assert str(bare).endswith("a            2      -    -      -")
