"""Latency tables: measuring, looking up, files of another device, plans within milliseconds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import leeboard.ops
import leeboard.prune
from leeboard.prune import (
    Declaration,
    LatencyTable,
    Plan,
    ScoreTable,
    Sublayer,
    Tokens,
    Units,
    active_plan,
    apply,
    calibrate,
    costs,
    revert,
    units,
)
from leeboard.prune._device import this_device
from leeboard.prune._trial import spread, trial
from leeboard.prune.backbones import Backbone, BackboneConfig, build
from leeboard.prune.calibration import _rising, measured
from leeboard.prune.costs import macs
from leeboard.prune.latency import Curve, shape_of
from plan_models import Ranking, attention, encoder_units, feed_forward

FF = feed_forward("f")
# Milliseconds count what a sublayer that is dropped whole gives back.
plan = partial(leeboard.prune.plan, drop=True)


def curve(tokens: int, *milliseconds: float) -> Curve:
    """Of FF, with 0, 16 and 96 of its channels."""
    size = Tokens(tokens, tokens)
    return Curve(size, (0, 16, 96), (0.0, *milliseconds), macs(FF, 96, size))


def table_of(**rests: float) -> LatencyTable:
    curves = {shape_of(FF): (curve(4, 1.0, 5.0), curve(16, 3.0, 11.0))}
    return LatencyTable(this_device(), curves, rests)


def backbone(**changes: Any) -> tuple[Backbone, dict[str, torch.Tensor]]:
    streams = (("acc", 3, 12, 1), ("eda", 1, 8, 2))
    config = BackboneConfig(streams, 3, **{"d_model": 16, "heads": 4, "hidden": 48} | changes)  # type: ignore[arg-type]
    inputs = {s.name: torch.randn(1, s.length, s.channels) for s in config.modalities}
    return build("shared", config).eval(), inputs


@pytest.fixture(scope="module")
def measured_table() -> tuple[Backbone, dict[str, torch.Tensor], LatencyTable]:
    model, inputs = backbone(attention="sparse")
    table = calibrate(model, units(model), inputs=inputs, sizes=2, rounds=1, repeats=3)
    return model, inputs, table


def test_between_what_was_measured_it_is_linear() -> None:
    table = table_of()
    at = table.milliseconds
    assert [at(FF, n, Tokens(4, 4)) for n in (0, 16, 96)] == [0.0, 1.0, 5.0]
    assert at(FF, 56, Tokens(4, 4)) == 3.0
    assert at(FF, 8, Tokens(4, 4)) == 0.5
    assert at(FF, 96, Tokens(16, 16)) == 11.0
    # Halfway between 4 and 16 tokens in multiply-adds, and in units.
    assert at(FF, 56, Tokens(10, 10)) == pytest.approx(5.0)
    # Fewer tokens than were measured cost no less.
    assert at(FF, 96, Tokens(1, 1)) == 5.0


def test_what_a_table_does_not_know() -> None:
    table = table_of()
    with pytest.raises(LookupError, match=r"latency: the table lacks the shape of a \(sparse_gqa"):
        table.milliseconds(attention("a"), 2, Tokens(4, 4))
    with pytest.raises(LookupError, match="knows f for up to 16 queries and 16 keys; got 17"):
        table.milliseconds(FF, 16, Tokens(17, 17))
    with pytest.raises(ValueError, match="kept: got 97 units of f, expected 0 to 96"):
        table.milliseconds(FF, 97, Tokens(4, 4))
    assert table.milliseconds(attention("a"), 0, Tokens(4, 4)) == 0.0
    with pytest.raises(LookupError, match="leeboard prune calibrate"):
        plan(Ranking(encoder_units()), budget="9 ms", latency=table)


def test_the_rest_of_a_model() -> None:
    table = table_of(**{"acc+eda": 0.5, "eda": 0.25})
    assert table.rest(("eda",)) == 0.25
    # A set that was not measured is taken for the slowest one.
    assert table.rest(("acc",)) == 0.5
    assert table_of().rest(("acc",)) == 0.0


@pytest.mark.parametrize(
    "changes",
    [
        {"units": 4},
        {"width": 16},
        {"group": 2},
        {"in_features": 40},
        {"key_features": 40},
        {"out_features": 40},
        {"pairs": 0.5},
        {"element_bytes": 2},
        {"family": "torch_mha"},
    ],
)
def test_shapes_differ_in_all_that_matters(changes: dict[str, Any]) -> None:
    one = attention("a")
    assert shape_of(one) == shape_of(dataclasses.replace(one, name="b", reader="b.o"))
    assert shape_of(dataclasses.replace(one, **changes)) != shape_of(one)
    assert shape_of(feed_forward("f", gated=True)) != shape_of(FF)


def test_times_do_not_fall_with_more_units() -> None:
    assert _rising([1.0, 2.0, 3.0]) == [1.0, 2.0, 3.0]
    assert _rising([1.0, 4.0, 2.0, 6.0]) == [1.0, 3.0, 3.0, 6.0]
    assert _rising([3.0, 2.0, 1.0]) == [2.0, 2.0, 2.0]
    assert _rising([2.0, 5.0, 4.0, 3.0, 4.0]) == [2.0, 4.0, 4.0, 4.0, 4.0]


def test_files(tmp_path: Path) -> None:
    table, path = table_of(**{"acc+eda": 0.5}), tmp_path / "latency.json"
    table.save(path)
    again = LatencyTable.load(path)
    assert (again.device, again.curves, again.rests) == (table.device, table.curves, table.rests)
    assert [p.name for p in tmp_path.iterdir()] == ["latency.json"]
    text = str(again)
    assert table.device.processor in text
    assert "feed_forward 48>96x1>48" in text
    assert "What is not prunable takes 0.5000" in text


def test_a_table_of_another_device_is_refused(tmp_path: Path) -> None:
    table, path = table_of(), tmp_path / "latency.json"
    for change, name in (
        ({"processor": "Cortex-A53"}, "processor 'Cortex-A53', not"),
        ({"isa": "neon"}, "isa 'neon', not"),
        ({"threads": 99}, "threads 99, not"),
    ):
        other = dataclasses.replace(table, device=table.device._replace(**change))
        other.save(path)
        with pytest.raises(ValueError, match=f"latency.json: measured with {name}"):
            LatencyTable.load(path)
        assert LatencyTable.load(path, any_device=True).device == other.device
    dataclasses.replace(table, device=table.device._replace(torch="1.0", date="")).save(path)
    LatencyTable.load(path)


def test_the_device_is_the_one_in_use() -> None:
    torch.set_num_threads(1)
    with leeboard.ops.isa("base"):
        device = this_device()
    assert (device.isa, device.threads, device.torch) == ("base", 1, torch.__version__)
    assert device.processor


Change = Callable[[dict[str, Any]], object]


def the_curve(content: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = content["curves"][shape_of(FF)][0]
    return found


DAMAGES: dict[str, tuple[Change, str]] = {
    "unknown key": (lambda d: d.update(extra=1), "unknown key 'extra'"),
    "no curves": (lambda d: d.pop("curves"), "key 'curves' is missing"),
    "a plan": (lambda d: d.update(schema="leeboard.prune.plan"), "not a latency table"),
    "later version": (lambda d: d.update(version=2), "version: got 2"),
    "no device": (lambda d: d.update(device=None), "device: got null, expected an object"),
    "half a thread": (lambda d: d["device"].update(threads=0.5), "device.threads: got 0.5"),
    "negative rest": (lambda d: d["rests"].update(acc=-1), "rests.acc: got -1.0, expected at"),
    "falling": (lambda d: the_curve(d).update(milliseconds=[0, 5, 1]), "must not fall"),
    "too few": (lambda d: the_curve(d).update(milliseconds=[0, 5]), "curve: expected milliseconds"),
    "descending": (lambda d: the_curve(d).update(kept=[0, 96, 16]), "kept units must ascend"),
    "no zero": (lambda d: the_curve(d).update(kept=[1, 16, 96]), "curve: expected milliseconds"),
    "no tokens": (lambda d: the_curve(d).update(queries=0), "tokens and multiply-adds must be"),
    "text": (lambda d: the_curve(d).update(macs="1"), "macs: got text, expected a number"),
    "empty": (lambda d: d["curves"].update({shape_of(FF): []}), "multiply-adds ascend"),
    "twice": (lambda d: the_curve(d).update(macs=1e9), "expected curves whose multiply-adds"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_named(damage: str, tmp_path: Path) -> None:
    change, message = DAMAGES[damage]
    path = tmp_path / "latency.json"
    table_of(eda=0.5).save(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as caught:
        LatencyTable.load(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_calibrate_measures_every_shape_at_the_tokens_it_meets(
    measured_table: tuple[Backbone, dict[str, torch.Tensor], LatencyTable],
) -> None:
    model, _, table = measured_table
    found = units(model)
    assert set(table.curves) == {shape_of(s) for s in found}
    for s in found:
        curves = table.curves[shape_of(s)]
        # 4 tokens of eda alone, 12 + 4 with both.
        assert [c.tokens for c in curves] == [Tokens(4, 4), Tokens(16, 16)]
        expected = (0, 2, 4) if s.kind == "attention" else (0, 16, 32, 48)
        assert all(c.kept == expected for c in curves)
        assert all(c.milliseconds[1] > 0.0 for c in curves)
    assert set(table.rests) == {"acc", "eda", "acc+eda"}
    assert all(rest > 0.0 for rest in table.rests.values())
    assert table.device.difference(this_device()) == ""


def test_plans_within_milliseconds(
    measured_table: tuple[Backbone, dict[str, torch.Tensor], LatencyTable],
) -> None:
    model, inputs, table = measured_table
    found = units(model)
    ranking = Ranking(found)
    dense = costs(found, latency=table)
    assert dense.milliseconds is not None
    rest = table.rest(found.modalities)
    budget = rest + 0.6 * (dense.milliseconds - rest)
    made = plan(ranking, budget=f"{budget:.9f} ms", latency=table)
    assert made.milliseconds is not None
    assert rest < made.milliseconds <= budget
    assert made.dense_milliseconds == dense.milliseconds
    assert 0.0 < made.score < 1.0
    assert "ms" in str(made)
    assert Plan.from_json(made.to_json()) == made
    with pytest.raises(ValueError, match=r"no plan costs less than .* ms \(a single block, and"):
        plan(ranking, budget=f"{rest:.9f} ms", latency=table)
    assert plan(ranking, budget="1 s", latency=table).keep == Plan.dense(found).keep
    assert measured(model, found, made, inputs, repeats=1) > 0.0


def test_calibrate_leaves_everything_as_it_was() -> None:
    model, inputs = backbone()
    model.train()
    model.norm.eval()
    found = units(model)
    applied = Plan.dense(found, ["eda"])
    apply(model, applied)
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    steps: list[tuple[int, int]] = []
    table = calibrate(
        model,
        found,
        inputs=inputs,
        threads=1,
        sizes=1,
        rounds=1,
        repeats=1,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert table.device.threads == 1
    assert active_plan(model) is applied
    revert(model)
    assert model.training
    assert model.blocks.training  # type: ignore[union-attr]
    assert not model.norm.training
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    total = steps[-1][1]
    assert steps == [(n, total) for n in range(1, total + 1)]
    # Without inputs only the sublayers are measured.
    assert calibrate(model, found, sizes=1, rounds=1, repeats=1).rests == {}


@pytest.mark.parametrize("name", ["threads", "sizes", "rounds", "repeats"])
def test_arguments_that_do_not_fit(name: str) -> None:
    model, _ = backbone()
    with pytest.raises(ValueError, match=f"{name}: got 0, expected a positive integer"):
        calibrate(model, units(model), **{name: 0})
    bare = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="units: the model has no prunable sublayers"):
        calibrate(bare, units(bare))


class Block(torch.nn.Module):
    """Attention and a gated feed-forward block that have to be declared by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.out = torch.nn.Linear(16, 32), torch.nn.Linear(32, 16)
        self.k, self.v = torch.nn.Linear(16, 16), torch.nn.Linear(16, 16)
        self.up, self.gate, self.down = (
            torch.nn.Linear(*n) for n in ((16, 32), (16, 32), (32, 16))
        )


def built(name: str) -> tuple[torch.nn.Module, Units]:
    if name == "declared":
        model: torch.nn.Module = torch.nn.ModuleDict({"a": Block(), "f": Block()})
        declare = (
            Declaration("a", "attention", ("q", "k", "v"), "out", 8),
            Declaration("f", "feed_forward", ("up", "gate"), "down"),
        )
        return model, units(model, tokens=6, declare=declare)
    if name == "mha":
        model = torch.nn.ModuleDict({"a": torch.nn.MultiheadAttention(16, 2)})
    elif name == "encoder":
        model = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    elif name == "decoder":
        model = torch.nn.TransformerDecoderLayer(16, 2, 32, batch_first=True)
    else:
        model = backbone(attention="sparse")[0] if name == "sparse" else cross()
    return model, units(model, tokens=None if name in ("sparse", "cross") else 6)


def cross() -> Backbone:
    streams = (("acc", 3, 12, 1), ("eda", 1, 8, 2))
    return build("cross", BackboneConfig(streams, 3, d_model=16, heads=4, hidden=48))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["declared", "mha", "encoder", "decoder", "sparse", "cross"])
def test_trials_run_a_sublayer_under_the_plan(name: str) -> None:
    model, found = built(name)
    for s in found:
        tokens = found.tokens()[s.name]
        outputs = []
        for kept in (s.group, s.units):
            chosen = Plan(found.fingerprint, found.modalities, "", {s.name: spread(s, kept)})
            apply(model.eval(), chosen, units=found)
            torch.manual_seed(0)
            made: Any = trial(model, s, tokens)()
            outputs.append(made[0] if isinstance(made, tuple) else made)
            assert outputs[-1].shape[-1] == s.out_features
            assert outputs[-1].numel() == tokens.queries * s.out_features
        assert not torch.allclose(*outputs)
        revert(model)


def test_spread_units_are_whole_blocks() -> None:
    assert spread(attention("a", group=2), 4) == (0, 1, 2, 3)
    assert spread(attention("a", units=8, group=2), 4) == (0, 1, 4, 5)
    assert spread(feed_forward("f", units=40), 16) == tuple(range(16))
    assert spread(feed_forward("f", units=40), 40) == tuple(range(40))
    assert spread(feed_forward("f"), 32) == (*range(16), *range(48, 64))


def test_scores_of_a_model_plan_in_milliseconds(
    measured_table: tuple[Backbone, dict[str, torch.Tensor], LatencyTable],
) -> None:
    model, _, table = measured_table
    found = units(model)
    scores = ScoreTable(found)
    scores.update({s.name: torch.rand(3, s.units) for s in found})
    cheap: Sublayer = min(found, key=lambda s: s.units)
    made = plan(scores, present=["acc"], budget="100 ms", latency=table)
    assert len(made.keep[cheap.name]) == cheap.units
