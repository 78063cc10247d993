"""Memory of a model and one inference, each in a process of its own."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bench.memory import status
from bench.part import Part, Row, in_fresh_process, megabytes, say

# Large enough to stand out from the process: 6 layers of 256 channels, 1,280 tokens.
SIZES: dict[str, Any] = {"d_model": 256, "heads": 8, "kv_heads": 2, "hidden": 1024, "layers": 6}
STEPS, PATCH = 512, 2
KINDS = {
    "dense": "torch, dense, zeros for two missing sensors",
    "fused": "leeboard, dense, the same",
    "applied": "leeboard, sparse attention, 50% plan applied, two sensors dropped",
    "compact": "the same plan cut into a smaller torch model",
}


def _one(name: str, kind: str) -> Row:
    import gc

    import torch

    from bench.prune.dropout import THERE
    from bench.prune.models import GONE, SENSORS, backbone, dense, half
    from leeboard import prune
    from leeboard.prune.backbones import Stream

    torch.set_num_threads(1)
    sparse = kind in ("applied", "compact")

    def ready(steps: int, **sizes: Any) -> tuple[Any, dict[str, Any]]:
        streams = tuple(Stream(s, 3, length=steps, patch=PATCH) for s in SENSORS)
        model: Any = backbone(
            name, modalities=streams, attention="sparse" if sparse else "dense", **sizes
        )
        inputs = {s: torch.randn(1, steps, 3) for s in SENSORS}
        if sparse:
            plan = half(model, THERE)
            inputs = {s: inputs[s] for s in THERE}
            if kind == "compact":
                model = prune.compact(model, plan)
            else:
                prune.apply(model, plan)
        else:
            inputs |= {s: torch.zeros_like(inputs[s]) for s in GONE}
            if kind == "dense":
                model = dense(model)
        return model, inputs

    with torch.no_grad():
        # Libraries load and threads start at a small size.
        warm, inputs = ready(8)
        warm(inputs)
        del warm
        gc.collect()
        before = status("VmRSS")
        model, inputs = ready(STEPS, **SIZES)
        gc.collect()
        weights = sum(p.nbytes for p in {p.data_ptr(): p for p in model.parameters()}.values())
        held = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        model(inputs)
        peak = status("VmHWM")
    return {
        "backbone": name,
        "kind": kind,
        "weights": weights,
        "held": held - before,
        "run": peak - held,
        "total": weights + peak - held,
    }


def _measure(quick: bool) -> list[Row]:
    rows = []
    for name in ("shared",) if quick else ("shared", "cross", "late"):
        for kind in KINDS:
            rows.append(in_fresh_process("bench.prune.memory", name, kind))
            rows[-1]["dense"] = rows[-1 - list(KINDS).index(kind)]["total"]
            say(f"memory {name} {kind}")
    return rows


def _cells(row: Row) -> list[str]:
    change = row["total"] / row["dense"] - 1
    sizes = [megabytes(row[key]) for key in ("weights", "run", "total")]
    return [row["backbone"], KINDS[row["kind"]], *sizes, f"{change:+.0%}"]


PART = Part(
    name="memory",
    title="Memory, batch 1",
    reading="""\
MB of the weights, and how much the resident memory of a process grows at most during one inference
above the model and its inputs; 256 channels, 1024 hidden, 6 layers, 1,280 tokens of five sensors. A
plan that is applied keeps all weights, so that it can be switched; a compact model does not. The
published figure to beat is -28.2%, of another model and without saying of what.""",
    head=["backbone", "model", "weights", "inference", "sum", "change"],
    left=2,
    measure=_measure,
    cells=_cells,
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.prune.memory")
    parser.add_argument("--one", nargs=2, required=True)
    print(json.dumps(_one(*parser.parse_args().one)))


if __name__ == "__main__":
    main()
