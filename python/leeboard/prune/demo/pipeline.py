"""The demo from start to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from leeboard._progress import progress_bar
from leeboard.prune.calibration import calibrate
from leeboard.prune.demo.plot import plot
from leeboard.prune.demo.report import (
    HEAD,
    LiveTable,
    by_phase,
    results,
    summary,
    switches,
    write,
)
from leeboard.prune.demo.scenario import PHASES
from leeboard.prune.demo.settings import Settings
from leeboard.prune.demo.stream import Stream, Window, check_budgets
from leeboard.prune.demo.train import Trained, prepared, trained
from leeboard.prune.latency import LatencyTable


def demo(settings: Settings, out: Path, *, fresh: bool = False) -> dict[str, Any]:
    """Train or load the model, measure it, stream, print, write `results.json` and the picture.

    Returns:
        What `results.json` holds.

    Raises:
        ValueError: For a budget that is none, that no plan can meet, or that all of the model
            meets.
    """
    *_, units = prepared(settings)
    check_budgets(units, settings.budget)
    made = trained(settings, out / "model", fresh=fresh)
    print(_opening(settings, made))
    latency = _measured(settings, made)
    stream = Stream(
        settings, made.model, made.units, made.ranking, made.static, made.held_out, latency
    )
    print("\n" + "\n".join(HEAD))
    table = LiveTable(settings, made.units)
    windows: list[Window] = []
    for window in stream.run():
        windows.append(window)
        for line in table.add(window):
            print(line, flush=True)
    phases = by_phase(windows)
    for phase, row in zip(PHASES, phases, strict=True):
        row["right"] = stream.accuracy(tuple(row["present"]), phase.power)
    about = {
        "held_out_windows": len(made.held_out),
        "device": str(latency.device),
        "torch": torch.__version__,
        "switches": switches(windows),
    }
    found = results(settings, windows, phases, about)
    out.mkdir(parents=True, exist_ok=True)
    write(found, out / "results.json")
    plot(found, windows, made.units, out / "prune-demo.png")
    print("\n" + summary(found))
    return found


def _opening(settings: Settings, made: Trained) -> str:
    weights = sum(p.numel() for p in made.model.parameters())
    blocks = len(made.units)
    return (
        f"{'loaded' if made.cached else 'trained'}: backbone {settings.backbone!r}, {weights:,} "
        f"weights, {blocks} prunable blocks; {len(made.held_out)} held-out windows of people that "
        "training has not seen. Synthetic sensors."
    )


def _measured(settings: Settings, made: Trained) -> LatencyTable:
    """Milliseconds of every block of this model on this machine."""
    sample = {name: x[:1] for name, x in made.held_out.inputs.items()}
    with progress_bar("measuring", 100) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return calibrate(
            made.model,
            made.units,
            inputs=sample,
            threads=settings.threads,
            sizes=3,
            rounds=2,
            repeats=5,
            progress=progress,
        )
