"""`leeboard prune demo`, as small as it gets."""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from leeboard._cli import prune_demo
from leeboard.prune import Plan
from leeboard.prune.demo import settings as known
from leeboard.prune.demo.pipeline import demo
from leeboard.prune.demo.scenario import PHASES, glyphs, moments
from leeboard.prune.demo.settings import Settings
from leeboard.prune.demo.stream import Budgets, check_budgets
from leeboard.prune.demo.train import prepared, trained

SENSORS = ("ACC", "GYR", "PPG", "EDA", "TEMP")
TINY = Settings(
    subjects=5,
    windows=16,
    tokens=2,
    d_model=16,
    heads=4,
    hidden=64,
    layers=1,
    epochs=4,
    batch=16,
    phase=16,
    repeats=1,
    rolling=6,
    budget="30%",
)


def parsed(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    prune_demo.add_arguments(parser)
    return parser.parse_args(options)


def test_the_command_needs_no_torch_to_explain_itself() -> None:
    code = (
        "import argparse, sys; from leeboard._cli import prune_demo\n"
        "parser = argparse.ArgumentParser(); prune_demo.add_arguments(parser)\n"
        "assert '--budget' in parser.format_help() and '25%' in parser.format_help()\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_defaults_are_those_of_the_settings() -> None:
    assert prune_demo.BACKBONES == known.BACKBONES
    assert prune_demo.RANKINGS == known.RANKINGS
    assert prune_demo.settings_of(parsed()) == Settings()
    assert prune_demo.settings_of(parsed("--quick", "--seed", "3")) == Settings.quick(seed=3)


def test_the_script_is_readable_and_seeded() -> None:
    script = moments(SENSORS, 30, 50, seed=0)
    assert script == moments(SENSORS, 30, 50, seed=0)
    assert script != moments(SENSORS, 30, 50, seed=1)
    assert [m.window for m in script] == list(range(30 * len(PHASES)))
    for moment in script:
        phase = PHASES[moment.phase]
        gone = set(SENSORS) - set(moment.present)
        assert set(phase.missing) <= gone <= {*phase.missing, phase.loose}
    loose = [m for m in script if PHASES[m.phase].loose]
    there = ["GYR" in m.present for m in loose]
    assert there[0]
    assert sum(a != b for a, b in itertools.pairwise(there)) >= 3
    # No window comes again before all were read.
    assert len({m.row for m in script[:50]}) == 50
    assert glyphs(SENSORS, ("ACC", "EDA")) == "A··E·"


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("much", "budget: got 'much'"),
        ("0.01%", "no plan costs less than"),
        ("2 MAC", "no plan costs less than"),
        ("9 GMAC", r"--budget: got 9 GMAC, but all of the model needs no more than"),
    ],
)
def test_budgets_that_cannot_be_are_refused_before_the_training(
    budget: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    *_, units = prepared(TINY)
    with pytest.raises(ValueError, match=message):
        check_budgets(units, budget)
    assert prune_demo.run(parsed("--quick", "--budget", budget, "--out", str(tmp_path))) == 1
    said = capsys.readouterr()
    assert said.err.startswith("leeboard prune demo: ")
    assert not said.out
    assert list(tmp_path.iterdir()) == []


def test_budgets_are_absolute() -> None:
    *_, units = prepared(TINY)
    dense = Plan.dense(units).dense_macs
    budgets = Budgets("20%", units, None)
    assert [budgets.of(power).amount / dense for power in (0, 0.5, 1)] == pytest.approx(
        [0.2, 0.6, 1]
    )
    assert budgets.text(0.5) == "60%"
    bytes_ = Budgets("4 kB", units, None)
    assert bytes_.of(0).amount == pytest.approx(4000)
    assert bytes_.text(0) == "4 kB"
    assert bytes_.of(1).amount == pytest.approx(Plan.dense(units).dense_bytes)


def without_times(found: dict[str, Any]) -> dict[str, Any]:
    timed = {"ms", "dense_ms", "predicted_ms", "plan_us", "switch_us"}
    windows = [{k: v for k, v in w.items() if k not in timed} for w in found["windows"]]
    keep = [plan["keep"] for plan in found["plans"]]
    right = [phase["right"] for phase in found["phases"]]
    return {"windows": windows, "keep": keep, "right": right}


def test_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = demo(TINY, tmp_path / "a")
    said = capsys.readouterr().out
    assert "trained: backbone 'shared'" in said
    assert "Synthetic sensors." in said
    assert "an illustration, not evidence" in " ".join(said.split())
    assert max(map(len, said.splitlines()[1:])) <= 86
    for phase in PHASES:
        assert f"-- {phase.title}" in said
    assert (tmp_path / "a" / "prune-demo.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "a" / "results.json").read_text()) == found

    *_, units = prepared(TINY)
    budgets, plans = Budgets(TINY.budget, units, None), []
    for plan in found["plans"]:
        plans.append(Plan.from_json(json.dumps(plan)))
        plans[-1].check(units)
    assert len(found["windows"]) == len(PHASES) * TINY.phase
    for window in found["windows"]:
        plan = plans[window["plan"]]
        assert list(plan.present) == window["present"]
        assert plan.macs <= budgets.of(PHASES[window["phase"]].power).amount
        assert window["ms"] > 0
        assert window["dense_ms"] > 0
    full = [w for w in found["windows"] if PHASES[w["phase"]].power == 1]
    assert all(plans[w["plan"]].macs == plans[w["plan"]].dense_macs for w in full)
    assert all(w["right"] == w["dense_right"] for w in full)
    assert found["switches"]["again"]["count"] >= 2
    first, low = (found["phases"][i]["right"] for i in (0, 4))
    assert first["plan"] == first["dense"]
    assert set(low) == {"dense", "plan", "static"}

    again = demo(TINY, tmp_path / "a")
    assert "loaded: backbone" in capsys.readouterr().out
    assert without_times(again) == without_times(found)
    fresh, cached = (trained(TINY, tmp_path / "a", fresh=fresh) for fresh in (True, False))
    assert cached.cached
    for name, weight in fresh.model.state_dict().items():
        assert torch.equal(weight, cached.model.state_dict()[name])


def test_other_settings_train_again_and_damage_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = replace(TINY, epochs=1, phase=3, ranking="gate", budget="1 us")
    # Milliseconds are known once the model is measured.
    with pytest.raises(ValueError, match=r"budget: got .*, but .* no plan costs less than"):
        demo(tiny, tmp_path)
    assert "trained: backbone 'shared'" in capsys.readouterr().out
    folder = tmp_path / "model"
    assert trained(replace(tiny, ranking="table", budget="20 kB"), folder).cached
    late = replace(tiny, backbone="late")
    assert not trained(late, folder).cached
    assert trained(late, folder).cached
    (folder / "table.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="--fresh trains again"):
        trained(late, folder)
