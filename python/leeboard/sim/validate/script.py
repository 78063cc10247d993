"""A user's own script: on real links, and in the simulator."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from leeboard.sim.validate.predict import device_scale, simulated
from leeboard.sim.validate.rig import Means, Rig
from leeboard.sim.validate.scenarios import Plan, Setting, calibration_cases
from leeboard.sim.validate.study import Row, Study, refuse_crowding, rows_of

_WHOLE = "whole script"
# Seconds of sending that the largest message of a calibration takes.
_LARGE = 0.08


def validate_script(
    script: Path,
    words: Sequence[str] = (),
    *,
    ranks: int = 2,
    bandwidth: str = "100 Mbit/s",
    delay: str = "1 ms",
    means: Means | None = None,
    oversubscribe: bool = False,
    seconds: float = 600.0,
    tell: Callable[[str], None] = lambda _: None,
) -> tuple[dict[str, Any], list[Row]]:
    """Run a script on real gloo and in the simulator, and compare.

    Args:
        script: A torch.distributed program, as torchrun would start it.
        words: Its arguments.
        ranks: How many.
        bandwidth: Of each rank's link, each way.
        delay: Host to host, one way.
        means: How the rig is made; None: what there is.
        oversubscribe: Allow more ranks than cores.
        seconds: After which the real run is stopped.
        tell: Called with a line on what begins.

    Returns:
        (all that was found, the rows): a row for each line of JSON with "scenario" and "seconds"
        that rank 0 prints; or one row of the whole script, from its first line to its last without
        the time in init_process_group.

    Raises:
        ValueError: More ranks than cores, or the two runs print different scenarios.
        RigError: A rank failed.
        NoNamespacesError: The rig may not be made here.
    """
    model = Setting(bandwidth, delay, ranks, "model", (("compute", 64),))
    refuse_crowding([model], oversubscribe)
    large = min(max(int(model.links.bandwidth / 8 * _LARGE) >> 2 << 2, 1 << 16), 8 << 20)
    messages = Setting(bandwidth, delay, 2, "network", calibration_cases(large), opening=large)
    study = Study(Plan(()), Path(), means=means)
    tell("calibrating the links")
    lines = study.measure(messages)["measured"]
    calibration = study.calibration(messages, lines)
    tell("calibrating the devices")
    scale = device_scale(model, calibration, study.measure(model)["measured"])
    tell(f"running {script} on {ranks} ranks")
    command = [sys.executable, "-m", "leeboard.sim.validate.programs.script", str(script), *words]
    outcome = Rig(ranks, model.links, means).run(command, seconds=seconds)
    tell(f"simulating {script}")
    platform = calibration.platform(ranks, model.links)
    predicted, makespan = simulated(
        str(script),
        list(words),
        platform,
        compute="measured",
        scale=scale,
        call=calibration.collective_call,
    )
    own = _scenarios(outcome.lines())
    theirs = _scenarios(predicted)
    measured = [line for line in own if line["scenario"] != _WHOLE]
    if not measured:
        measured, theirs = own, [{"scenario": _WHOLE, "seconds": makespan}]
    title = f"{ranks} ranks, {bandwidth}, {delay}"
    result = {
        "setting": {**asdict(model), "kind": "script", "cases": []},
        "script": [str(script), *words],
        "measured": measured,
        "predicted": theirs,
        "calibration": calibration.save(),
        "scale": scale,
        "rig": outcome.rig,
        "relay": outcome.relay,
    }
    return result, rows_of(title, "script", measured, theirs)


def _scenarios(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        line
        for line in lines
        if isinstance(line.get("scenario"), str) and isinstance(line.get("seconds"), int | float)
    ]
