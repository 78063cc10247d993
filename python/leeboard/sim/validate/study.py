"""A validation from end to end: measure, calibrate, predict; a file for each setting."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from leeboard._files import read_json, write_json
from leeboard.sim.validate.calibrate import Calibration, calibrated, sizes_and_times
from leeboard.sim.validate.predict import predict
from leeboard.sim.validate.rig import Links, Means, Rig
from leeboard.sim.validate.scenarios import (
    CALIBRATION,
    HOST,
    PROGRAMS,
    Plan,
    Setting,
    calibration_cases,
)

FORMAT = 2
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One scenario: what was measured, and what was predicted.

    Attributes:
        setting: Links and ranks, for people.
        scenario: Case and size.
        kind: "network", "model" or "script".
        measured: Seconds, the median.
        predicted: Seconds.
        low: The least of what was measured.
        high: The most.
        fitted: Whether it was used for calibration, and so is no prediction.
    """

    setting: str
    scenario: str
    kind: str
    measured: float
    predicted: float
    low: float
    high: float
    fitted: bool

    @property
    def error(self) -> float:
        """Relative, with its sign."""
        return self.predicted / self.measured - 1


def rows_of(
    title: str, kind: str, measured: Sequence[dict[str, Any]], predicted: Sequence[dict[str, Any]]
) -> list[Row]:
    """Pairs of lines of the same scenario.

    Raises:
        ValueError: The two ran different scenarios.
    """
    names, theirs = ([str(line["scenario"]) for line in lines] for lines in (measured, predicted))
    if names != theirs:
        raise ValueError(
            f"{title}: measured {', '.join(names) or 'nothing'}, but predicted "
            f"{', '.join(theirs) or 'nothing'}"
        )
    return [
        Row(
            title,
            str(line["scenario"]),
            kind,
            float(line["seconds"]),
            float(other["seconds"]),
            min(line.get("all", [line["seconds"]])),
            max(line.get("all", [line["seconds"]])),
            str(line["scenario"]).split()[0] in CALIBRATION,
        )
        for line, other in zip(measured, predicted, strict=True)
        if str(line["scenario"]).split()[0] not in HOST
    ]


def refuse_crowding(settings: Iterable[Setting], oversubscribe: bool) -> None:
    """Refuse ranks that compute and would share a core.

    Raises:
        ValueError: It says which, and what to do.
    """
    cores = len(os.sched_getaffinity(0))
    for setting in settings:
        if setting.kind == "model" and setting.ranks > cores and not oversubscribe:
            raise ValueError(
                f"{setting.title}: {setting.ranks} ranks that compute on {cores} cores would slow "
                "each other down; take fewer, or --oversubscribe: then the calibration is crowded, "
                "too"
            )


class Study:
    """Runs a plan; what has been measured is not measured again.

    Args:
        plan: What to do.
        folder: Where results are kept, a file a setting.
        means: How the rig is made; None: what there is.
        tell: Called with a line on what begins.
    """

    def __init__(
        self, plan: Plan, folder: Path, *, means: Means | None = None, tell: Tell = lambda _: None
    ) -> None:
        self.plan, self.folder, self.means, self.tell = plan, folder, means, tell
        self._calibrations: dict[Links, Calibration] = {}

    def run(self, advance: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
        """Results of all settings, as they are kept."""
        self.folder.mkdir(parents=True, exist_ok=True)
        found = []
        for setting in self.plan.settings:
            found.append(self.setting(setting))
            advance()
        return found

    def setting(self, setting: Setting) -> dict[str, Any]:
        """One setting's result: from its file, or measured, calibrated and predicted now."""
        path = self.folder / f"{setting.key}.json"
        mark = _mark(setting)
        kept = read_json(path) if path.is_file() else {}
        if kept.get("mark") != mark:
            kept = {"mark": mark, "setting": asdict(setting), **self.measure(setting)}
            write_json(path, kept)
        if "predicted" not in kept:
            self.tell(f"predicting {setting.title}")
            found = self.calibration(setting, kept["measured"])
            begun = time.perf_counter()
            predicted, scale = predict(setting, found, kept["measured"])
            kept |= {
                "calibration": found.save(),
                "scale": scale,
                "predicted": predicted,
                "prediction_seconds": time.perf_counter() - begun,
            }
            write_json(path, kept)
        self._calibrations[setting.links] = Calibration(**kept["calibration"])
        return kept

    def measure(self, setting: Setting) -> dict[str, Any]:
        """Run it on real links."""
        self.tell(f"measuring {setting.title}")
        rig = Rig(setting.ranks, setting.links, self.means)
        command = [sys.executable, "-m", PROGRAMS[setting.kind], json.dumps(setting.order())]
        load = os.getloadavg()[0]
        begun = time.perf_counter()
        outcome = rig.run(command, seconds=900.0)
        return {
            "load": load,
            "measured": outcome.lines(),
            "rig": outcome.rig,
            "relay": outcome.relay,
            "seconds": time.perf_counter() - begun,
        }

    def calibration(self, setting: Setting, measured: Sequence[dict[str, Any]]) -> Calibration:
        """Of the setting's links: from its own messages, or from those of one before it."""
        links = setting.links
        if sizes_and_times(measured, "message"):
            return calibrated(links, measured)
        if links not in self._calibrations:
            alone = Setting(
                setting.bandwidth,
                setting.delay,
                2,
                "network",
                calibration_cases(setting.opening),
                opening=setting.opening,
            )
            lines = self.measure(alone)["measured"]
            self._calibrations[links] = calibrated(links, lines)
        return self._calibrations[links]


def _mark(setting: Setting) -> str:
    """Changes when what is measured does."""
    text = json.dumps([FORMAT, asdict(setting)], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def all_rows(results: Sequence[dict[str, Any]]) -> list[Row]:
    """The rows of all settings' results."""
    rows = []
    for result in results:
        given = result["setting"]
        title = f"{given['ranks']} ranks, {given['bandwidth']}, {given['delay']}"
        rows += rows_of(title, given["kind"], result["measured"], result["predicted"])
    return rows
