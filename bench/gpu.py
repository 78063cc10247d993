"""The same cases on a GPU: Triton kernels against PyTorch, eager and compiled.

    python -m bench.gpu          rewrites bench/RESULTS-gpu.md; without a GPU it says so and stops

Times are medians of `triton.testing.do_bench`, which clears the GPU's cache before each call; the
limit is a device-to-device copy that moves as many bytes.
"""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench import chain
from bench.cases import Case, NotOfferedError, Prepared, Subject, Variant, subjects, variants
from bench.report import spaced, table
from bench.run import ROOT
from bench.sections import write
from bench.timings import microseconds
from leeboard import ops
from leeboard.ops._state import Backend

TARGET = ROOT / "bench" / "RESULTS-gpu.md"
# Seconds of one call, given the call.
Timer = Callable[[Callable[[], Any]], float]

READING = """\
Times are microseconds, medians, with a cold cache; rivals are how many times as long they take.
`limit` is a copy that moves the bytes that the
case must move; `share` is limit / time. Short calls show the cost of launching, not of the kernel.
Every result was checked against the reference in float64 first."""


@dataclass(frozen=True)
class Row:
    """One case."""

    case: Case
    seconds: dict[Variant, float]
    limit: float

    def cells(self, peers: Sequence[Variant]) -> list[str]:
        own = self.seconds["leeboard"]
        ratios = [f"{self.seconds[v] / own:.2f}x" if v in self.seconds else "" for v in peers]
        return [
            spaced(self.case.sizes),
            self.case.dtype_name,
            self.case.direction,
            microseconds(own),
            *ratios,
            microseconds(self.limit),
            f"{self.limit / own:.0%}",
        ]


def _copy_seconds(moved: int, device: str, timer: Timer) -> float:
    source = torch.ones(moved // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return timer(lambda: target.copy_(source))


def measure(subject: Subject, case: Case, device: str, backend: Backend, timer: Timer) -> Row:
    """Checks and times every variant of a case."""
    prepared = Prepared(subject, case, device)
    seconds: dict[Variant, float] = {}
    rivals = [v for v in variants(subject, case) if not v.startswith("leeboard")]
    for variant in ("leeboard", *rivals):
        with torch.set_grad_enabled(case.direction != "forward"), ops.backend(backend):
            try:
                call = prepared.call(variant)
                result = call()
            except NotOfferedError as answer:
                print(f"{case.op} {case.id}: {answer}", flush=True)
                continue
            prepared.check(variant, result)
            seconds[variant] = timer(call)
    return Row(case, seconds, _copy_seconds(case.moved, device, timer))


def _rivals(rows: Sequence[Row]) -> list[Variant]:
    """Those that any row has, in order."""
    return list(dict.fromkeys(v for row in rows for v in row.seconds if v != "leeboard"))


def compose(rows: list[Row], machine: dict[str, str], steps: list[chain.Row]) -> str:
    """The report."""
    lines = [
        "# Measured speed on a GPU",
        "",
        f"Written by `python -m bench.gpu` on {datetime.date.today().isoformat()}.",
        "",
        *table(["machine", ""], [[k, v] for k, v in machine.items()], left=2),
        "",
        READING,
        "",
    ]
    for op in dict.fromkeys(row.case.op for row in rows):
        mine = [row for row in rows if row.case.op == op]
        peers = _rivals(mine)
        head = ["case", "dtype", "direction", "leeboard", *peers, "limit", "share"]
        lines += [f"## {op}", "", *table(head, [row.cells(peers) for row in mine], left=3), ""]
    lines += ["## Steps of a chain", "", chain.READING, ""]
    lines += [*table(chain.HEAD, [row.cells() for row in steps], left=2), ""]
    for peer in _rivals(rows):
        having = [r.seconds for r in rows if peer in r.seconds]
        ratio = statistics.geometric_mean(s[peer] / s["leeboard"] for s in having)
        lines.append(f"Against {peer}: {ratio:.2f}x as fast in the geometric mean.")
    return "\n".join(lines) + "\n"


def _machine() -> dict[str, str]:
    import triton

    properties = torch.cuda.get_device_properties(0)
    return {
        "GPU": f"{properties.name}, {properties.total_memory >> 30} GB",
        "runtime": f"CUDA {torch.version.cuda}" if torch.version.cuda else f"{torch.version.hip}",
        "torch": torch.__version__,
        "triton": triton.__version__,
    }


def main() -> None:
    if not torch.cuda.is_available():
        print("bench.gpu: no CUDA or ROCm device here; nothing was measured.")
        return
    from triton.testing import do_bench

    def timer(call: Callable[[], Any]) -> float:
        return float(do_bench(call, return_mode="median")) * 1e-3

    rows = []
    for op, subject in subjects().items():
        for case in subject.cases if subject.gpu is None else subject.gpu:
            rows.append(measure(subject, case, "cuda", "triton", timer))
            print(op, *rows[-1].cells(_rivals(rows[-1:])), flush=True)
    steps = chain.measure(
        chain.Sizes(),
        torch.bfloat16,
        "cuda",
        timer,
        lambda moved: _copy_seconds(moved, "cuda", timer),
    )
    for row in steps:
        print("draft_chain", *row.cells(), flush=True)
    write(TARGET, compose(rows, _machine(), steps))
    print(TARGET.relative_to(ROOT))


if __name__ == "__main__":
    main()
