"""The same programs in the simulator."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from leeboard.sim.platform import Platform
from leeboard.sim.validate.calibrate import Calibration, sizes_and_times
from leeboard.sim.validate.scenarios import PROGRAMS, Setting


def lines_of(text: str) -> list[dict[str, Any]]:
    """The JSON objects among the lines of a text."""
    found = []
    for line in text.splitlines():
        if line.startswith("{"):
            with contextlib.suppress(ValueError):
                value = json.loads(line)
                if isinstance(value, dict):
                    found.append(value)
    return found


def simulated(
    target: str,
    args: Sequence[str],
    platform: Platform,
    *,
    compute: str,
    scale: float = 1.0,
    call: float = 0.0,
) -> tuple[list[dict[str, Any]], float]:
    """What a program prints in the simulator, as JSON lines, and its simulated seconds."""
    from leeboard.sim.distributed.launch import launch

    text = io.StringIO()
    options: dict[str, Any] = {"scale": scale} if compute == "measured" else {}
    with contextlib.redirect_stdout(text):
        launched = launch(
            target,
            platform,
            args=list(args),
            compute=compute,
            collective_call=call,
            **options,
        )
    return lines_of(text.getvalue()), launched.result.makespan


def device_scale(setting: Setting, calibration: Calibration, measured: Sequence[Any]) -> float:
    """How long a rank of the rig takes for what takes the simulator's host a second.

    From the case "compute" alone: a model that computes on every rank, and sends nothing.
    """
    real = sizes_and_times(measured, "compute")
    if not real:
        return 1.0
    order = {**setting.order(), "cases": [["compute", size] for size in real]}
    platform = calibration.platform(setting.ranks, setting.links)
    here, _ = simulated(
        f"-m {PROGRAMS['model']}", [json.dumps(order)], platform, compute="measured"
    )
    times = sizes_and_times(here, "compute")
    return median(real[size] / times[size] for size in real)


def predict(
    setting: Setting, calibration: Calibration, measured: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], float]:
    """The setting's program on the platform of a calibration, and the device's scale.

    Of what was measured, only the case "compute" is looked at.
    """
    platform = calibration.platform(setting.ranks, setting.links)
    scale = device_scale(setting, calibration, measured) if setting.kind == "model" else 1.0
    compute = "measured" if setting.kind == "model" else "none"
    lines, _ = simulated(
        f"-m {PROGRAMS[setting.kind]}",
        [json.dumps(setting.order())],
        platform,
        compute=compute,
        scale=scale,
        call=calibration.collective_call,
    )
    return lines, scale
