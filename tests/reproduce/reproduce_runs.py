"""Made-up readings and results of a reproduction, whose figures are known."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from leeboard._files import write_json
from leeboard.demo.stages import Stage
from leeboard.reproduce.readings import FORCED, SHARES, WINDOWS, Reading, Readings, context, noisy
from leeboard.reproduce.results import gather
from leeboard.reproduce.settings import CONDITIONS, PRESETS, Arm, Settings
from leeboard.reproduce.statistics import Bootstrap

PROMPTS, ROWS = 24, 400

SETTINGS = dataclasses.replace(
    PRESETS["quick"], seeds=2, depth=8, tail=5, buckets=2, noise=(0.5,), prompts=PROMPTS
)

# What an arm's chains are like: (acceptance at a step from 1, RMS at a step from 1).
Course = tuple[Callable[[int], float], Callable[[int], float]]
HOLDS: Course = (lambda k: 0.8, lambda k: 1.0)
DRIFTS: Course = (lambda k: 0.8 if k <= 2 else 0.4, lambda k: 3.0 * 1.2**k)


def reading(random: np.random.Generator, course: Course, depth: int, scale: float = 1.0) -> Reading:
    """A reading of PROMPTS texts; `scale` multiplies the acceptance of steps from 2 on."""
    acceptance, rms = course
    shape = (PROMPTS, depth)
    rows = np.full(shape, float(ROWS))
    reached, kept, hits = (np.zeros(shape) for _ in range(3))
    alive = np.full(PROMPTS, ROWS)
    for k in range(depth):
        p = acceptance(k + 1) * (scale if k else 1.0)
        reached[:, k] = alive
        alive = random.binomial(alive, p)
        kept[:, k] = alive
        hits[:, k] = random.binomial(ROWS, p, PROMPTS)
    sizes = np.array([rms(k + 1) for k in range(depth)])
    rounds = np.full(PROMPTS, 100.0)
    shares = {of: rows * (0.2 - 0.01 * np.arange(depth)) for of in SHARES}
    return Reading(
        loops=(np.arange(PROMPTS) % 4 == 0).astype(float),
        rounds=rounds,
        accepted=np.rint(kept.sum(1) / ROWS * rounds),
        reached=reached,
        kept=kept,
        rows=rows,
        hits=hits,
        rms=rows * sizes,
        reached_rms=reached * sizes,
        shares={**shares, "own_paired": rows * 0.3, "matched": rows * 0.1},
    )


def readings_of(arm: Arm, course: Course, settings: Settings = SETTINGS) -> dict[str, Reading]:
    """Every reading of one training."""
    random = np.random.default_rng((len(arm.name), arm.ttt, arm.seed))
    names = [
        *CONDITIONS,
        *(noisy(alpha) for alpha in settings.noise),
        *(context(bucket, window) for bucket in range(settings.buckets) for window in WINDOWS),
    ]
    made = {name: reading(random, course, settings.depth) for name in names}
    if arm.name in ("pre", "fc_norm"):
        made[FORCED] = reading(random, course, settings.depth, scale=0.2)
    return made


def all_readings(courses: Mapping[str, Course], settings: Settings = SETTINGS) -> Readings:
    """Of every training of the settings."""
    made = {arm: readings_of(arm, courses[arm.name], settings) for arm in settings.trainings()}
    return Readings(settings, made, Bootstrap(400))


def results(
    folder: Path, courses: Mapping[str, Course], settings: Settings = SETTINGS
) -> dict[str, Any]:
    """What a run with such arms would write, from files as a run leaves them."""
    stages = {}
    for arm in settings.trainings():
        path = folder / arm.slug
        path.mkdir(parents=True)
        found = readings_of(arm, courses[arm.name], settings)
        write_json(path / "readings.json", {name: r.to_dict() for name, r in found.items()})
        write_json(
            path / "training.json",
            {
                "arm": dataclasses.asdict(arm),
                "steps": 40,
                "tokens": 40 * settings.batch * settings.row,
                "reached": True,
                "depth_one": 0.7 + 0.01 * arm.seed,
                "loss": [1.0],
                "seconds": {"train": 60.0, "measure": 30.0},
            },
        )
        stages[arm] = Stage(f"arm-{arm.slug}", "key", path, 90.0, reused=False)
    part = {"functions": 10, "files": 2}
    return gather(
        settings,
        stages,
        {
            "threshold": 0.66,
            "versions": {"torch": "2"},
            "workers": 2,
            "threads": 2,
            "device": "cpu",
            "seconds": 600.0,
            "stages": {"target": {"seconds": 200.0, "reused": False}},
            "corpus": {"python": "3", "train": part, "heldout": part},
            "target": {"parameters": 1_300_000, "heldout_loss": 2.5},
            "texts": {
                "loops": dict.fromkeys(CONDITIONS, 0.25),
                "prompt_loss": dict.fromkeys(CONDITIONS, 2.0),
                "contexts": [{"tokens": 50.0, "loops": 0.1}] * settings.buckets,
            },
        },
    )
