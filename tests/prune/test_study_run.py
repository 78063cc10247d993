"""Running a study: resuming, changed settings, workers that fail or die, the command."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from leeboard._cli import prune_study
from leeboard._pool import Finished, run_all
from leeboard.prune import compact, revert
from leeboard.prune.backbones import BackboneConfig, build
from leeboard.prune.discover import units as find_units
from leeboard.prune.study import (
    PRESETS,
    Case,
    ChangedStudyError,
    RunFolder,
    Study,
    measure,
    presets,
    run_study,
)
from leeboard.prune.study.fit import fit
from leeboard.prune.taps import Taps

TINY = Case(
    "digits-4",
    "shared",
    arms=("A", "B"),
    seeds=2,
    rankers=(
        "random",
        "taylor/mix",
        "flap+bias/mix",
        "table",
        "gate",
        "gate+bias",
        "table, held out",
        "gate, held out",
    ),
    levels=(0.3,),
    per_layer=("gate",),
    per_layer_levels=(0.3,),
    epochs=2,
    batch=40,
    train_rows=80,
    validation_rows=40,
    test_rows=60,
    masks=1,
    model={"d_model": 16, "heads": 2, "layers": 1, "hidden": 32},
)


def study(**changes: Any) -> Study:
    return Study("quick", (dataclasses.replace(TINY, **changes),))


def results(folder: Path) -> list[dict[str, Any]]:
    """Records without what a clock says."""
    records = RunFolder(folder).records()
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


def test_an_interrupted_study_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after one of two units, then continued: the same as in one go, to the bit."""
    assert run_study(study(seeds=1), tmp_path / "whole", workers=0, quiet=True) == []
    done = []

    def interrupted(*args: Any, **kwargs: Any) -> dict[str, Any]:
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(measured(*args, **kwargs))
        return done[-1]

    measured = measure.measure
    with monkeypatch.context() as patch:
        patch.setattr(measure, "measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_study(study(seeds=1), tmp_path / "halves", workers=0, quiet=True)
    assert len(results(tmp_path / "halves")) == 1
    # Half-written files are none of its business.
    (tmp_path / "halves" / "units" / ".123.x.json").write_text("{")
    assert run_study(study(seeds=1), tmp_path / "halves", workers=0, quiet=True) == []
    found = results(tmp_path / "halves")
    assert len(found) == 2
    assert found == results(tmp_path / "whole")
    assert [s["units"] for s in RunFolder(tmp_path / "halves").sessions()] == [1, 1]
    # Nothing is left to do.
    assert run_study(study(seeds=1), tmp_path / "halves", workers=0, quiet=True) == []
    assert len(RunFolder(tmp_path / "halves").sessions()) == 2


def test_records_hold_what_was_asked(tmp_path: Path) -> None:
    run_study(study(seeds=1), tmp_path, workers=0, quiet=True, keep_weights=True)
    first, second = RunFolder(tmp_path).records()
    assert [first["unit"]["arm"], second["unit"]["arm"]] == ["A", "B"]
    # 4 modalities: a mask for each k, all but the first one held out.
    assert [m["k"] for m in first["masks"]] == [0, 1, 2, 3]
    assert first["masks"] == second["masks"]
    assert len(first["cells"]) == 6 * 4 + 2 * 3 + 4
    for cell in (*first["cells"], *second["cells"]):
        assert 0 <= cell["test"] <= 1
        assert 0 < cell["share"] <= 0.7 + 1e-3
    # 2 epochs of 2 steps; a pruned pass beside 3 of them.
    assert (first["training"]["steps"], first["training"]["passes"]) == (4, 4)
    assert (second["training"]["steps"], second["training"]["passes"]) == (4, 7)
    weights = sorted(path.name for path in (tmp_path / "weights").iterdir())
    assert weights == ["digits-4.shared.A.0.safetensors", "digits-4.shared.B.0.safetensors"]


def test_changed_settings_are_noticed(tmp_path: Path) -> None:
    tiny = study(arms=("A",), seeds=1)
    run_study(tiny, tmp_path, workers=0, quiet=True)
    with pytest.raises(ChangedStudyError, match=r"epochs: was 2, is 3\); give another"):
        run_study(study(arms=("A",), seeds=1, epochs=3), tmp_path, workers=0, quiet=True)
    # More seeds are no change.
    more = study(arms=("A",), seeds=2)
    assert [unit.seed for unit in RunFolder(tmp_path).open(more)] == [1]


def test_broken_files_are_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    unit = study().units()[0]
    folder.open(study())
    folder.unit_path(unit).write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"digits-4\.shared\.A\.0\.json: cannot be read"):
        folder.open(study())
    folder.unit_path(unit).write_text('{"format": 99}', encoding="utf-8")
    with pytest.raises(ChangedStudyError, match="format 99, expected 1"):
        folder.open(study())


def test_a_failing_unit_stops_no_other(tmp_path: Path) -> None:
    cases = (*study(arms=("A",), seeds=1).cases, Case("no-such-data", "shared", ("A",), seeds=1))
    (failure,) = run_study(Study("quick", cases), tmp_path, workers=0, quiet=True)
    assert failure.unit == "no-such-data.shared.A.0"
    assert "data: got 'no-such-data', expected one of digits-4" in failure.error
    assert len(RunFolder(tmp_path).records()) == 1


def work(task: dict[str, Any]) -> None:
    """What the workers of the next test do."""
    if task["how"] == "die":
        os._exit(3)
    if task["how"] == "raise":
        raise ValueError("on purpose")
    if task["how"] == "sleep":
        time.sleep(600)
    Path(task["path"]).write_text(str(os.getpid()))


def test_workers(tmp_path: Path) -> None:
    """One task ends its process, one raises, all others are done."""
    hows = ["die", "write", "raise", "write", "write"]
    tasks = [{"how": how, "path": str(tmp_path / str(i))} for i, how in enumerate(hows)]
    found = dict(end for end in run_all(work, tasks, 1) if end is not None)
    assert found[0] == "the worker process ended with status 3"
    assert found[2] is not None
    assert found[2].endswith("ValueError: on purpose\n")
    assert [found[i] for i in (1, 3, 4)] == [None] * 3
    written = {int((tmp_path / str(i)).read_text()) for i in (1, 3, 4)}
    # One took the place of the one that died, and did the rest.
    assert len(written) == 1
    assert os.getpid() not in written


def test_leaving_early_ends_the_workers(tmp_path: Path) -> None:
    tasks = [{"how": "write", "path": str(tmp_path / "first")}, {"how": "sleep"}]
    ends = run_all(work, tasks, 1)
    assert next(end for end in ends if end is not None) == Finished(0, None)
    # The next task is under way.
    assert next(ends) is None
    started = time.monotonic()
    ends.close()
    assert time.monotonic() - started < 60
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "first").read_text()), 0)


def test_masks_plans_and_smaller_nets_agree() -> None:
    """Gates of ones and zeros, the applied plan that is counted, and the compacted net."""
    case = dataclasses.replace(
        TINY, rankers=("taylor/mix", "gate", "gate, held out", "table, held out")
    )
    data = measure.load(case, 0).split(seed=0)
    config = BackboneConfig.for_inputs(data.train.inputs, 10, **case.model)
    model = build("shared", config)
    units = find_units(model)
    masks = measure.choose_masks(units.modalities, 1, 0)
    trained = fit(model, units, data.train.take(range(80)), "B", epochs=1, seed=0)
    rankings = measure.rank(trained, ("taylor/mix", "gate"), data.train, 0)
    made = [p for *_, p in measure.plans(case, rankings, model, masks)]
    assert len(made) == 2 * 4 + 4
    counter = measure.Counter(model, data.validation.take(range(5)), data.test.take(range(40)))
    compared = 0
    for plan in made:
        applied = counter.outputs(plan, plan.present)
        revert(model)
        inputs = {
            m: torch.cat([data.validation.inputs[m][:5], data.test.inputs[m][:40]])
            for m in plan.present
        }
        small = compact(model, plan)
        gates = {s.name: torch.zeros(s.units) for s in units}
        for name, kept in plan.keep.items():
            gates[name][list(kept)] = 1.0
        with torch.no_grad(), Taps(model, units, gates=gates):
            masked = model(inputs)
        torch.testing.assert_close(small(inputs).detach(), applied, rtol=1e-4, atol=1e-5)
        # A block that is dropped whole takes its output bias along, which gates leave there.
        if all(plan.keep.values()):
            torch.testing.assert_close(applied, masked, rtol=1e-4, atol=1e-5)
            compared += 1
    assert compared > 0


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    prune_study.add_arguments(parser)
    return parser.parse_args(words)


def test_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From nothing to the page; then the page alone."""
    monkeypatch.setitem(presets.PRESETS, "quick", study(arms=("A", "B", "C"), seeds=1))
    words = ["--run-dir", str(tmp_path / "run"), "--out", str(tmp_path / "page.md")]
    args = parsed("--preset", "quick", "--workers", "0", *words)
    assert prune_study.run(args) == 0
    printed = capsys.readouterr().out
    assert "P1  digits-4, shared: undecided" in printed
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "`leeboard prune study --preset quick --workers 0`" in page
    assert str(tmp_path) not in page
    (tmp_path / "page.md").unlink()
    assert prune_study.run(parsed("--report-only", *words)) == 0
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "0"], "--seeds: got 0, expected 1 or more"),
        (["--workers", "-1"], "--workers: got -1, expected 0 or more"),
        (["--report-only"], "study.json: not found"),
    ],
)
def test_bad_commands(
    tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--run-dir", str(tmp_path / "none"), "--out", str(tmp_path / "page.md")]
    assert prune_study.run(parsed(*words, *where)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_survive_json(preset: str) -> None:
    made = PRESETS[preset]
    again = Study.from_dict(json.loads(json.dumps(made.to_dict())))
    assert again.to_dict() == made.to_dict()
    units = made.units()
    assert len({unit.name for unit in units}) == len(units)
    assert [again.settings_of(u) for u in units] == [made.settings_of(u) for u in units]


def test_bad_cases() -> None:
    with pytest.raises(ValueError, match="rankers: got 'wanda', expected some of random"):
        Case("digits-4", "shared", rankers=("wanda",))
    with pytest.raises(ValueError, match=r"levels: got 1\.5, expected shares"):
        Case("digits-4", "shared", levels=(1.5,))
    with pytest.raises(ValueError, match="study: cannot be read"):
        Study.from_dict({"preset": "x"})
