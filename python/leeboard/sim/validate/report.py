"""What a validation found: JSON, a table for terminals, a page in markdown, a plot."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from statistics import fmean
from typing import Any

from leeboard._files import replacing
from leeboard.sim.table import aligned
from leeboard.sim.validate.study import Row, all_rows

# What a prediction should reach.
MEAN_ACCURACY, LEAST_ACCURACY, NETWORK_ERROR = 0.986, 0.95, 0.025


@dataclass(frozen=True)
class Summary:
    """Of rows that are predictions.

    Attributes:
        count: How many there are.
        mean_accuracy: Mean of 1 - |error|.
        least_accuracy: Of the worst one.
        worst: Which that is.
        network_error: Mean |error| of those without computing; None: there are none.
        below: How many are under 95 %.
    """

    count: int
    mean_accuracy: float
    least_accuracy: float
    worst: str
    network_error: float | None
    below: int


def summarise(rows: Sequence[Row]) -> Summary:
    """Raises ValueError if no row is a prediction."""
    predictions = [row for row in rows if not row.fitted]
    if not predictions:
        raise ValueError("rows: all of them were fitted to, expected predictions")
    errors = [abs(row.error) for row in predictions]
    worst = predictions[errors.index(max(errors))]
    network = [abs(row.error) for row in predictions if row.kind == "network"]
    return Summary(
        count=len(predictions),
        mean_accuracy=1 - fmean(errors),
        least_accuracy=1 - max(errors),
        worst=f"{worst.scenario} ({worst.setting})",
        network_error=fmean(network) if network else None,
        below=sum(error > 1 - LEAST_ACCURACY for error in errors),
    )


def host() -> dict[str, str]:
    """The machine, in words."""
    model = platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "processor": model,
        "cores": str(len(os.sched_getaffinity(0))),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "leeboard": metadata.version("leeboard"),
    }


def as_json(results: Sequence[dict[str, Any]], rows: Sequence[Row]) -> dict[str, Any]:
    """Everything, for programs."""
    return {
        "host": host(),
        "summary": asdict(summarise(rows)),
        "rows": [{**asdict(row), "error": row.error} for row in rows],
        "settings": [
            {key: value for key, value in result.items() if key not in ("measured", "predicted")}
            for result in results
        ],
    }


def milliseconds(seconds: float) -> str:
    """Four digits."""
    value = seconds * 1e3
    return f"{value:.{max(0, 3 - len(str(int(value))))}f}" if value < 1000 else f"{value:,.0f}"


def cells(row: Row) -> tuple[str, ...]:
    """Scenario, measured, its range, predicted, error."""
    return (
        row.scenario + (" (fitted)" if row.fitted else ""),
        milliseconds(row.measured),
        f"{milliseconds(row.low)} to {milliseconds(row.high)}",
        milliseconds(row.predicted),
        f"{row.error:+.1%}",
    )


_HEADINGS = ("scenario", "measured, ms", "least to most", "predicted, ms", "error")


def terminal(rows: Sequence[Row]) -> str:
    """A table a setting, and the summary."""
    parts = []
    for setting in dict.fromkeys(row.setting for row in rows):
        body = [cells(row) for row in rows if row.setting == setting]
        parts.append(f"{setting}\n{aligned(_HEADINGS, body)}")
    return "\n\n".join([*parts, "\n".join(sentences(summarise(rows)))])


def sentences(summary: Summary) -> list[str]:
    """The summary against its aims."""
    said = [
        (
            f"{summary.count} predictions. Mean accuracy {summary.mean_accuracy:.2%} "
            f"({_met(summary.mean_accuracy >= MEAN_ACCURACY)}: at least {MEAN_ACCURACY:.1%})."
        ),
        (
            f"Least accuracy {summary.least_accuracy:.1%}, of {summary.worst} "
            f"({_met(summary.least_accuracy >= LEAST_ACCURACY)}: at least {LEAST_ACCURACY:.0%}; "
            f"{summary.below} of {summary.count} are below)."
        ),
    ]
    if summary.network_error is not None:
        said.append(
            f"Mean error of what does not compute: {summary.network_error:.2%} "
            f"({_met(summary.network_error <= NETWORK_ERROR)}: at most {NETWORK_ERROR:.1%})."
        )
    return said


def _met(is_met: bool) -> str:
    return "aim met" if is_met else "aim missed"


def page(results: Sequence[dict[str, Any]], picture: str | None = None) -> str:
    """The published page, in markdown."""
    rows = all_rows(results)
    here = host()
    rig = results[0]["rig"]
    lines = [
        "# Validation of the simulator",
        "",
        (
            "Written by `leeboard sim validate --publish`. Each scenario ran on real gloo processes, "
            "one in a network namespace of its own, around an emulated switch; and the same program "
            "ran in the simulator. How it is done: [sim/validate.md](sim/validate.md)."
        ),
        "",
        *(f"- {sentence}" for sentence in sentences(summarise(rows))),
        "",
        f"{here['date']}; {here['processor']}, {here['cores']} cores; {here['system']}; PyTorch "
        f"{here['torch']}, leeboard {here['leeboard']}. Rig: {rig['means']}, as {rig['rights']}"
        + (", real-time priority" if rig.get("real_time") else "")
        + f"; TCP: {_tcp(rig)}.",
        "",
    ]
    if picture is not None:
        lines += [f"![predicted against measured]({picture})", ""]
    lines += _by_case(rows)
    for result in results:
        lines += _setting(result)
    lines += _misses(rows)
    return "\n".join(lines) + "\n"


def _tcp(rig: dict[str, Any]) -> str:
    return ", ".join(f"{key} {' '.join(value.split())}" for key, value in rig["tcp"].items())


def _by_case(rows: Sequence[Row]) -> list[str]:
    """Mean and worst of each case, over all settings and sizes."""
    lines = ["## By case", "", "| case | predictions | mean error | worst |", "|---|---|---|---|"]
    predictions = [row for row in rows if not row.fitted]
    for case in dict.fromkeys(row.scenario.split()[0] for row in predictions):
        errors = [row.error for row in predictions if row.scenario.split()[0] == case]
        worst = max(errors, key=abs)
        lines.append(f"| {case} | {len(errors)} | {fmean(map(abs, errors)):.1%} | {worst:+.1%} |")
    return [*lines, ""]


def _setting(result: dict[str, Any]) -> list[str]:
    rows = all_rows([result])
    found = result["calibration"]
    text = (
        f"Fitted: latency {found['latency'] * 1e3:.3f} ms, goodput {found['goodput']:.4f}, "
        f"cross-traffic {found['cross_traffic']:.4f}, "
        f"a collective's call {found['collective_call'] * 1e6:.0f} µs"
    )
    if found["rate_limit"]:
        text += f", at most {found['rate_limit'] * 8e-6:.1f} Mbit/s a connection"
    if result["setting"]["kind"] == "model":
        text += f"; a rank takes {result['scale']:.3f} times what the simulator's own host takes"
    ports = result["relay"].get("ports", [])
    dropped = sum(port["dropped_up"] + port["dropped_down"] for port in ports)
    if "load" in result:
        text += f". Load of the host before: {result['load']:.1f}"
    if ports:
        text += f". The relay dropped {dropped:,} packets"
        text += f", and was {result['relay']['late_mean'] * 1e6:.0f} µs late on average"
    return [
        f"## {rows[0].setting}: {rows[0].kind}",
        "",
        text + ".",
        "",
        f"| {' | '.join(_HEADINGS)} |",
        f"|{'---|' * len(_HEADINGS)}",
        *(f"| {' | '.join(cells(row))} |" for row in rows),
        "",
    ]


def _misses(rows: Sequence[Row]) -> list[str]:
    """What is below the aim, and how far its own repeats are apart."""
    missed = [row for row in rows if not row.fitted and abs(row.error) > 1 - LEAST_ACCURACY]
    if not missed:
        return []
    lines = [
        f"## Below {LEAST_ACCURACY:.0%}",
        "",
        (
            "Causes are discussed in [sim/validate.md](sim/validate.md#what-is-not-met). A repeat that "
            "comes close says that the median is the host's noise."
        ),
        "",
        "| setting | scenario | error | of the closest repeat |",
        "|---|---|---|---|",
    ]
    for row in missed:
        if row.low <= row.predicted <= row.high:
            closest = "within the repeats"
        else:
            nearest = min((row.low, row.high), key=lambda value: abs(row.predicted / value - 1))
            closest = f"{row.predicted / nearest - 1:+.1%}"
        lines.append(f"| {row.setting} | {row.scenario} | {row.error:+.1%} | {closest} |")
    return [*lines, ""]


def plot(rows: Sequence[Row], path: Path) -> None:
    """Predicted against measured, on logarithmic axes; and the errors below.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a plot needs matplotlib: pip install 'leeboard[sim]'") from error
    figure = Figure(figsize=(7, 6.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for kind, colour in (("network", "#1b6ca8"), ("model", "#c8553d"), ("script", "#3a7d44")):
        some = [row for row in rows if row.kind == kind and not row.fitted]
        if not some:
            continue
        measured = [row.measured * 1e3 for row in some]
        above.plot(measured, [row.predicted * 1e3 for row in some], "o", ms=4, color=colour,
                   alpha=0.6, label=kind)  # fmt: skip
        below.plot(measured, [row.error * 100 for row in some], "o", ms=3, color=colour, alpha=0.6)
    ends = [min(row.measured for row in rows) * 1e3, max(row.measured for row in rows) * 1e3]
    above.plot(ends, ends, "-", lw=1, color="#888888")
    above.set(xscale="log", yscale="log", ylabel="predicted, ms")
    above.legend(frameon=False)
    below.axhspan(-5, 5, color="#eeeeee", zorder=0)
    below.axhline(0, lw=1, color="#888888")
    below.set(xlabel="measured, ms", ylabel="error, %")
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip(".") or "png", dpi=130)
