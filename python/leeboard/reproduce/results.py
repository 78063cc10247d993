"""From the trainings' files to `results.json`: every figure with its interval, and the verdicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from leeboard._files import read_json
from leeboard.demo.stages import Stage
from leeboard.reproduce.claims import answers
from leeboard.reproduce.preregistered import CLAIMS
from leeboard.reproduce.readings import (
    FORCED,
    SHARES,
    WINDOWS,
    Reading,
    Readings,
    context,
    noisy,
)
from leeboard.reproduce.settings import CONDITIONS, MATCHED, Arm, Settings
from leeboard.reproduce.statistics import Estimate

FORMAT = 1


def gather(
    settings: Settings, arms: Mapping[Arm, Stage], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that the page needs, JSON-ready.

    Args:
        settings: Of the run.
        arms: The finished trainings.
        facts: What else is known of the run.

    Raises:
        ValueError: No training is finished.
    """
    if not arms:
        raise ValueError("arms: no training is finished")
    trainings = [_training(stage) for stage in arms.values()]
    readings = Readings(
        settings,
        {
            arm: {
                name: Reading.from_dict(found)
                for name, found in read_json(stage.path / "readings.json").items()
            }
            for arm, stage in arms.items()
        },
    )
    return {
        "format": FORMAT,
        "settings": settings.to_dict(),
        **facts,
        "trainings": trainings,
        "matching": matching(settings, trainings, readings),
        "figures": figures(settings, readings),
        "claims": [answer.to_dict() for answer in answers(CLAIMS, readings)],
    }


def matching(
    settings: Settings, trainings: list[dict[str, Any]], readings: Readings
) -> dict[str, Any]:
    """Whether the arms came to the same depth-1 acceptance, on the checks and on the prompts."""
    checks = [training["depth_one"] for training in trainings]
    prompts = [
        readings.acceptance(t["arm"]["name"], t["arm"]["ttt"], t["arm"]["seed"], 1).value
        for t in trainings
    ]
    return {
        "checks": {"low": min(checks), "high": max(checks)},
        "prompts": {"low": min(prompts), "high": max(prompts)},
        "reached": sum(t["reached"] for t in trainings),
        "agrees": max(checks) - min(checks) <= settings.margin,
    }


def figures(settings: Settings, readings: Readings) -> list[dict[str, Any]]:
    """Per arm and TTT depth every figure, pooled and per seed, as intervals."""
    return [
        {"arm": name, "ttt": ttt, **_figures(settings, readings, name, ttt)}
        for ttt in settings.ttt
        for name in settings.arms
        if readings.has(name, ttt)
    ]


def _figures(settings: Settings, r: Readings, name: str, ttt: int) -> dict[str, Any]:
    def every(figure: Callable[..., Estimate], *more: Any, **options: Any) -> dict[str, Any]:
        """The figure of all seeds, and of each."""
        pooled, *seeds = (
            figure(name, ttt, seed, *more, **options).interval().to_dict()
            for seed in (None, *r.seeds())
        )
        return {**pooled, "seeds": seeds}

    def steps(figure: Callable[..., Estimate], *more: Any, **options: Any) -> list[dict[str, Any]]:
        """The figure of all seeds at each chain step."""
        return [
            figure(name, ttt, None, *more, step, **options).interval().to_dict()
            for step in range(1, settings.depth + 1)
        ]

    every_reading = [
        *CONDITIONS,
        FORCED,
        *(noisy(alpha) for alpha in settings.noise),
        *(context(bucket, w) for bucket in range(settings.buckets) for w in WINDOWS),
    ]
    taken = [reading for reading in every_reading if r.has(name, ttt, reading)]
    compared = [x for x in taken if x != MATCHED and not x.startswith("context")]
    conditions = [x for x in CONDITIONS if x in taken]
    return {
        "accepted": {x: every(r.accepted, x) for x in taken},
        "accepted_without_loops": {x: every(r.accepted, x, loops=False) for x in conditions},
        "relative": {x: every(r.relative, x) for x in compared},
        "depth_one": every(r.acceptance, 1),
        "tail": every(r.tail),
        "tail_without_loops": every(r.tail, loops=False),
        "tail_mean": every(r.tail_mean),
        "tail_raw": every(r.tail, "raw") if "raw" in taken else None,
        "growth": every(r.growth),
        "reached": [r.reached(name, ttt, k) for k in range(1, settings.depth + 1)],
        "acceptance": steps(r.acceptance),
        "accuracy": steps(r.accuracy),
        "rms": steps(r.rms),
        "surviving_rms": steps(r.rms, surviving=True),
        "shares": {of: steps(r.share, of) for of in SHARES},
        "own_by_matched": steps(r.own_by_matched),
        "slopes": {of: every(r.slope, of) for of in SHARES},
    }


def _training(stage: Stage) -> dict[str, Any]:
    """How a training went, without the loss of every step."""
    found: dict[str, Any] = read_json(stage.path / "training.json")
    return {name: value for name, value in found.items() if name != "loss"}
