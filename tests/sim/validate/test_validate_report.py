"""What is said of measured and predicted times."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from leeboard.sim.validate import report, study
from leeboard.sim.validate.calibrate import Calibration
from leeboard.sim.validate.scenarios import (
    CALIBRATION,
    Plan,
    Setting,
    built_in,
    calibration_cases,
    network_cases,
)
from leeboard.sim.validate.study import Row, Study, all_rows, refuse_crowding, rows_of

SETTING = Setting("100 Mbit/s", "1 ms", 2, "network", (("message", 4), ("barrier", 0)), 3)


def line(scenario: str, *seconds: float) -> dict[str, Any]:
    return {"scenario": scenario, "seconds": sorted(seconds)[len(seconds) // 2], "all": [*seconds]}


def result(measured: list[dict[str, Any]], predicted: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "setting": asdict(SETTING),
        "measured": measured,
        "predicted": predicted,
        "calibration": Calibration(1.1e-3, 0.95, 0.03, 0.0, 1 << 20, 0.01).save(),
        "scale": 1.0,
        "rig": {"means": "relay", "rights": "user", "tcp": {"tcp_rmem": "1\t2\t3"}},
        "relay": {"ports": [{"dropped_up": 1, "dropped_down": 2}], "late_mean": 5e-6},
    }


def results() -> list[dict[str, Any]]:
    measured = [line("message 4", 0.01), line("barrier 0", 0.01, 0.02, 0.03), line("gather 8", 1.0)]
    predicted = [line("message 4", 0.02), line("barrier 0", 0.018), line("gather 8", 1.01)]
    return [result(measured, predicted)]


def test_rows_pair_what_has_one_name() -> None:
    rows = all_rows(results())
    assert [row.scenario for row in rows] == ["message 4", "barrier 0", "gather 8"]
    assert [row.fitted for row in rows] == [True, False, False]
    assert rows[1].error == pytest.approx(-0.1)
    assert (rows[1].low, rows[1].measured, rows[1].high) == (0.01, 0.02, 0.03)


def test_other_scenarios_are_refused() -> None:
    with pytest.raises(ValueError, match="measured a, b, but predicted a"):
        rows_of("t", "script", [line("a", 1.0), line("b", 1.0)], [line("a", 1.0)])


def test_the_summary_counts_predictions_alone() -> None:
    summary = report.summarise(all_rows(results()))
    assert summary.count == 2
    assert summary.mean_accuracy == pytest.approx(1 - (0.1 + 0.01) / 2)
    assert summary.least_accuracy == pytest.approx(0.9)
    assert summary.worst == "barrier 0 (2 ranks, 100 Mbit/s, 1 ms)"
    assert summary.network_error == pytest.approx(0.055)
    assert summary.below == 1
    with pytest.raises(ValueError, match="all of them were fitted"):
        report.summarise(all_rows(results())[:1])


def test_models_are_no_part_of_the_network_error() -> None:
    rows = [Row("s", "tp 1", "model", 1.0, 2.0, 1.0, 1.0, False)]
    summary = report.summarise(rows)
    assert summary.network_error is None
    assert len(report.sentences(summary)) == 2


def test_the_page_has_every_row_good_or_bad() -> None:
    text = report.page(results(), "images/a.png")
    assert "| message 4 (fitted) | 10.0 | 10.0 to 10.0 | 20.0 | +100.0% |" in text
    assert "| barrier 0 | 20.0 | 10.0 to 30.0 | 18.0 | -10.0% |" in text
    assert "| gather 8 | 1,000 |" in text
    assert "aim missed" in text
    assert "The relay dropped 3 packets" in text
    assert "| 2 ranks, 100 Mbit/s, 1 ms | barrier 0 | -10.0% | within the repeats |" in text
    assert "![predicted against measured](images/a.png)" in text
    assert "tcp_rmem 1 2 3" in text


def test_everything_is_json() -> None:
    found = json.loads(json.dumps(report.as_json(results(), all_rows(results()))))
    assert found["rows"][1]["error"] == pytest.approx(-0.1)
    assert found["summary"]["count"] == 2
    assert found["settings"][0]["rig"]["means"] == "relay"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0123456, "12.3"), (0.001234, "1.23"), (0.1234, "123"), (1.5, "1,500"), (0.0001, "0.10")],
)
def test_times_have_three_digits(seconds: float, text: str) -> None:
    assert report.milliseconds(seconds) == text


def test_a_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report.plot(all_rows(results()), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_a_study_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, predicted = [], []
    first = Setting("100 Mbit/s", "1 ms", 2, "network", calibration_cases(1 << 20))
    second = Setting("100 Mbit/s", "1 ms", 3, "network", (("barrier", 0),))
    times = {"message": lambda n: 2e-3 + n / 12e6, "crossing": lambda n: 2e-3 + n / 11.5e6}

    def measure(self: Study, setting: Setting) -> dict[str, Any]:
        measured.append(setting)
        lines = [line(f"{a} {n}", times.get(a, lambda n: 1.0)(n)) for a, n in setting.cases]
        return {"measured": lines, "rig": {}, "relay": {}, "seconds": 1.0}

    def predict(
        setting: Setting, found: Calibration, lines: list[dict[str, Any]]
    ) -> tuple[list[dict[str, Any]], float]:
        predicted.append((setting, found))
        return lines, 1.0

    monkeypatch.setattr(Study, "measure", measure)
    monkeypatch.setattr(study, "predict", predict)
    plan = Plan((first, second))
    Study(plan, tmp_path).run()
    assert measured == [first, second]
    # The second one's figures are the first one's.
    assert predicted[0][1] == predicted[1][1]
    assert predicted[0][1].latency == pytest.approx(1e-3, rel=1e-3)
    kept = Study(plan, tmp_path).run()
    assert len(measured) == len(predicted) == 2
    assert [len(entry["measured"]) for entry in kept] == [len(first.cases), 1]
    # Another number of repeats is another measurement.
    other = Setting("100 Mbit/s", "1 ms", 3, "network", (("barrier", 0),), repeats=9)
    Study(Plan((first, other)), tmp_path).run()
    assert measured == [first, second, other]


def test_ranks_that_compute_need_a_core_each() -> None:
    crowd = Setting("100 Mbit/s", "1 ms", 200, "model", (("tp_prefill", 8),))
    with pytest.raises(ValueError, match=r"200 ranks that compute on \d+ cores"):
        refuse_crowding([crowd], oversubscribe=False)
    refuse_crowding([crowd], oversubscribe=True)
    refuse_crowding([Setting("1 Mbit/s", "1 ms", 200, "network", ())], oversubscribe=False)


@pytest.mark.parametrize("quick", [True, False])
def test_the_built_in_set_calibrates_each_pair_of_figures_first(quick: bool) -> None:
    seen = set()
    settings = built_in(quick=quick).settings
    for setting in settings:
        if setting.links not in seen:
            assert any(what == "message" for what, _ in setting.cases), setting.title
        seen.add(setting.links)
    assert len({setting.key for setting in settings}) == len(settings)
    assert quick or {setting.ranks for setting in settings} == {2, 3, 4}


def test_nothing_predicted_is_fitted_to() -> None:
    assert not {what for what, _ in network_cases(4, 1 << 20)} & set(CALIBRATION)
