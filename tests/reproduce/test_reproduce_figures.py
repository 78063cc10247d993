"""Figures, intervals, claims and their verdicts, on made-up readings."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from leeboard.reproduce.claims import Answer, Part, answers, verdict
from leeboard.reproduce.preregistered import CLAIMS
from leeboard.reproduce.readings import FORCED, Reading, Readings, noisy
from leeboard.reproduce.settings import ARMS, MATCHED, PRESETS, Arm, Settings
from leeboard.reproduce.statistics import Bootstrap, Estimate, Interval, mean
from reproduce_runs import DRIFTS, HOLDS, SETTINGS, all_readings, readings_of

DRIFT = dict.fromkeys(ARMS, HOLDS) | {"pre": DRIFTS, "fc_norm": DRIFTS}


def test_a_ratio_is_of_sums_and_its_interval_is_that_of_resampled_prompts() -> None:
    random = np.random.default_rng(3)
    over, under = random.uniform(1, 3, 30), random.uniform(4, 9, 30)
    found = Bootstrap(4000).ratio(over, under)
    assert found.value == pytest.approx(over.sum() / under.sum())
    drawn = random.integers(30, size=(4000, 30))
    expected = np.percentile(over[drawn].sum(1) / under[drawn].sum(1), (2.5, 97.5))
    interval = found.interval()
    assert [interval.low, interval.high] == pytest.approx(expected, abs=0.006)


def test_differences_are_paired() -> None:
    bootstrap = Bootstrap(500)
    random = np.random.default_rng(0)
    base = random.uniform(0, 10, 40)
    ones = np.ones(40)
    # The second is the first and a little more on every prompt: no doubt in spite of the spread.
    low, high = bootstrap.ratio(base, ones), bootstrap.ratio(base + 0.1, ones)
    assert (high - low).interval() == Interval(
        pytest.approx(0.1), pytest.approx(0.1), pytest.approx(0.1)
    )
    assert (low / low).interval().value == 1.0
    pooled = mean([low, high])
    assert pooled.value == pytest.approx((low.value + high.value) / 2)
    assert len(pooled.replicates) == 500


def test_nothing_to_divide_by_gives_no_interval() -> None:
    found = Bootstrap(200).ratio(np.zeros(5), np.zeros(5)).interval()
    assert math.isnan(found.value)
    assert (found.low, found.high) == (None, None)
    assert Interval.from_dict(found.to_dict()).low is None
    # Half of the resamples hold the one prompt that counts in the denominator.
    seldom = Bootstrap(200).ratio([1.0, 0.0], [2.0, 0.0]).interval()
    assert (seldom.value, seldom.low) == (0.5, None)
    with pytest.raises(ValueError, match="one entry a prompt"):
        Bootstrap(200).ratio([1.0], [1.0, 2.0])


def test_figures_are_those_of_the_sums() -> None:
    arm = Arm("pre", 2, 0)
    found = readings_of(arm, DRIFTS)
    readings = Readings(SETTINGS, {arm: found}, Bootstrap(200))
    r = found[MATCHED]
    assert readings.accepted("pre", 2, 0).value == r.accepted.sum() / r.rounds.sum()
    expected = r.kept[:, 4:].sum() / r.reached[:, 4:].sum()
    assert readings.tail("pre", 2, 0).value == pytest.approx(expected)
    assert readings.accuracy("pre", 2, 0, 8).value == r.hits[:, 7].sum() / r.rows[:, 7].sum()
    assert readings.growth("pre", 2, None).value == pytest.approx(1.2**7)
    assert readings.slope("pre", 2, 0, "sink").value == pytest.approx(-0.01)
    assert readings.own_by_matched("pre", 2, 0, 3).value == pytest.approx(3.0)
    keep = r.loops == 0
    without = readings.accepted("pre", 2, 0, loops=False).value
    assert without == r.accepted[keep].sum() / r.rounds[keep].sum()
    # A reading of fewer prompts is compared with the same ones.
    few = dataclasses.replace(r, rounds=r.rounds[:6], accepted=r.accepted[:6] / 2)
    shorter = Readings(SETTINGS, {arm: {**found, noisy(0.5): few}}, Bootstrap(200))
    assert shorter.relative("pre", 2, 0, noisy(0.5)).value == pytest.approx(0.5)


def test_a_reading_survives_its_file() -> None:
    found = readings_of(Arm("pre", 2, 0), DRIFTS)[MATCHED]
    again = Reading.from_dict(found.to_dict())
    for name, value in vars(found).items():
        if name != "shares":
            np.testing.assert_allclose(getattr(again, name), value, rtol=1e-5)
    np.testing.assert_allclose(again.shares["sink"], found.shares["sink"], rtol=1e-5)


def part(low: float, high: float, seeds: list[tuple[float, float]], bound: float = 0.0) -> Part:
    spans = [Interval((a + b) / 2, a, b) for a, b in [(low, high), *seeds]]
    return Part("", bound, spans[0], tuple(spans[1:]))


def test_verdicts() -> None:
    above = part(0.1, 0.3, [(0.05, 0.4), (0.02, 0.5)])
    below = part(-0.3, -0.1, [(-0.5, 0.1), (-0.4, 0.2)])
    # Seeds disagree, or one of them is not sure.
    torn = part(0.1, 0.3, [(-0.1, 0.4), (0.2, 0.5)])
    spans = part(-0.1, 0.3, [(-0.2, 0.4), (-0.3, 0.5)])
    contradicted = part(-0.3, -0.1, [(-0.9, -0.5), (0.1, 0.2)])
    assert verdict([above], "all") == "holds at this scale"
    assert verdict([below], "all") == "does not hold"
    for unsure in (torn, spans, contradicted):
        assert verdict([unsure], "all") == "not decided"
    assert verdict([above, below], "all") == "does not hold"
    assert verdict([above, spans], "all") == "not decided"
    assert verdict([above, below], "one") == "holds at this scale"
    assert verdict([below, spans], "one") == "not decided"
    assert verdict([below, below], "one") == "does not hold"
    unknown = Part("", 0.0, Interval(math.nan, None, None), ())
    assert verdict([unknown], "all") == "not decided"
    assert verdict([part(0.1, 0.3, [(0.1, 0.3)], bound=0.2)], "all") == "not decided"


def verdicts_of(found: list[Answer], *, ttt: int = 2) -> dict[str, str]:
    return {
        answer.name.removesuffix(f", TTT {ttt}"): answer.verdict
        for answer in found
        if answer.name.endswith(f"TTT {ttt}") or "TTT" not in answer.name
    }


def test_claims_hold_where_their_effect_is() -> None:
    found = verdicts_of(answers(CLAIMS, all_readings(DRIFT)))
    assert len(found) == len(CLAIMS)
    for name in (
        "Growth",
        "Bounded by the residual",
        "Beyond the trained depth",
        "Beyond the trained depth, norm_output alone",
        "Beyond the trained depth, norm_before_residual alone",
        "Any bound will do",
        "Shorter chains in training",
        "Off the template",
        "Negative control",
    ):
        assert found[name] == "holds at this scale", name
    # Nothing is lost off the template or in long contexts by either kind, and fc_norm does nothing.
    for name in ("Template", "Long context", "Noise", "fc_norm alone", "fc_norm on top"):
        assert found[name] in ("not decided", "does not hold"), name


def test_attention_that_rises_does_not_drift() -> None:
    """It has to fall, and more than the other's: by slopes, over the whole chain."""

    def turned(slopes: dict[str, float]) -> Answer:
        found = {}
        for arm in SETTINGS.trainings():
            made = readings_of(arm, HOLDS)[MATCHED]
            share = 0.5 + slopes.get(arm.name, 0.0) * np.arange(SETTINGS.depth)
            shares = {**made.shares, "sink": made.rows * share, "prompt": made.rows * share}
            found[arm] = {MATCHED: dataclasses.replace(made, shares=shares)}
        drifts = [claim for claim in CLAIMS if claim.name == "Attention drifts"]
        return answers(drifts, Readings(SETTINGS, found, Bootstrap(200)))[0]

    for slopes, expected, by in (
        ({"pre": -0.02, "norm_output+fc_norm": -0.01}, "holds at this scale", 0.01),
        ({"pre": -0.02, "norm_output+fc_norm": 0.01}, "holds at this scale", 0.02),
        ({"pre": 0.01, "norm_output+fc_norm": 0.02}, "does not hold", -0.01),
        ({"pre": -0.01, "norm_output+fc_norm": -0.02}, "does not hold", -0.01),
    ):
        answer = turned(slopes)
        assert answer.verdict == expected
        assert answer.parts[0].pooled.value == pytest.approx(by * (SETTINGS.depth - 1))


def test_a_null_is_a_null() -> None:
    same = verdicts_of(answers(CLAIMS, all_readings(dict.fromkeys(ARMS, HOLDS))))
    assert same["Beyond the trained depth"] == "not decided"
    assert same["Growth"] == "does not hold"
    turned = dict.fromkeys(ARMS, DRIFTS) | {"pre": HOLDS}
    assert (
        verdicts_of(answers(CLAIMS, all_readings(turned)))["Beyond the trained depth"]
        == "does not hold"
    )


def test_what_was_not_measured_is_no_verdict() -> None:
    arm = Arm("pre", 2, 0)
    found = readings_of(arm, DRIFTS)
    settings = dataclasses.replace(SETTINGS, arms=("pre",), seeds=1, ttt=(2,))
    only = answers(CLAIMS, Readings(settings, {arm: found}, Bootstrap(200)))
    by_name = verdicts_of(only)
    assert by_name.pop("Negative control") == "holds at this scale"
    assert set(by_name.values()) == {"not measured"}
    del found[FORCED]
    assert {a.verdict for a in answers(CLAIMS, Readings(settings, {arm: found}))} == {
        "not measured"
    }


def test_answers_survive_json() -> None:
    for answer in answers(CLAIMS, all_readings(DRIFT)):
        assert Answer.from_dict(answer.to_dict()) == answer


def test_estimates_of_one_bootstrap_only_are_paired() -> None:
    found = Estimate(2.0, np.array([1.0, 3.0])) - 0.5
    assert found.value == 1.5
    assert found.replicates.tolist() == [0.5, 2.5]
    assert abs(Estimate(-1.0, np.array([-1.0]))).value == 1.0


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_are_whole(name: str) -> None:
    settings = PRESETS[name]
    assert settings.preset == name
    assert Settings.from_dict(settings.to_dict()) == settings
    assert settings.demo.positions == settings.target_row
    assert settings.anchor_steps % settings.check_every == 0
    assert settings.anchor_steps < settings.most_steps
    arms = settings.trainings()
    assert len(arms) == len(ARMS) * 2 * settings.seeds
    assert len({arm.slug for arm in arms}) == len(arms)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": ("pre", "post")}, "arms: got 'post'"),
        ({"ttt": ()}, "at least one"),
        ({"ttt": (0,)}, "ttt: got 0"),
        ({"seeds": 0}, "seeds: got 0"),
        ({"threshold": 1.5}, "threshold: got 1.5"),
        ({"tail": 99}, "tail: got 99"),
        ({"new_tokens": 1000}, "prompt_tokens \\+ new_tokens: got"),
        ({"target_row": 100}, "buckets: got 2 of 64"),
    ],
)
def test_wrong_settings_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SETTINGS, **change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown colour"):
        Settings.from_dict({"colour": 1})
