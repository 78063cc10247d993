"""Record once and replay a thousand times, against running the script a thousand times."""

from __future__ import annotations

import time
from typing import Any

from bench.part import Part, Row, number, say, wait_for_quiet
from bench.run import ROOT
from leeboard.sim import Platform, replay

RUNS = 1000
RANKS, LAYERS, WIDTH = 8, 8, 256
_LLAMA = str(ROOT / "examples" / "sim" / "llama70b.py")
_WORDS = ("--dp", "2", "--pp", "2", "--tp", "2")


def _step() -> None:
    """A forward pass of tensor-parallel layers, and a message to the next rank."""
    import torch
    import torch.distributed as dist

    dist.init_process_group()
    me = dist.get_rank()
    x = torch.ones(16, WIDTH)
    up, down = torch.ones(WIDTH, WIDTH // 2), torch.ones(WIDTH // 2, WIDTH)
    for _ in range(LAYERS):
        x = torch.relu(x @ up) @ down
        dist.all_reduce(x)
    work = dist.isend(x, (me + 1) % RANKS)
    dist.recv(torch.empty_like(x), (me - 1) % RANKS)
    work.wait()


def measure(quick: bool) -> list[Row]:
    """Replays on platforms of their own; some of those runs directly, whose events must be equal."""
    import torch

    from leeboard.sim.distributed.launch import launch

    torch.set_num_threads(1)
    count = 50 if quick else RUNS
    stars = [
        Platform.star(RANKS, bandwidth=1e9 * (1 + i % 40), latency=1e-6 * (1 + i // 40))
        for i in range(count)
    ]
    rows: list[Row] = []
    for name, target, options, direct in (
        ("step", _step, {"compute": "none"}, 100),
        ("step", _step, {"compute": "roofline"}, 100),
        ("llama70b.py, tiny", _LLAMA, {"compute": "roofline", "args": _WORDS, "fake": True}, 10),
    ):
        given: dict[str, Any] = {"timeline": False, "links": False, **options}
        launch(target, stars[0], **given)
        wait_for_quiet()
        start = time.perf_counter()
        trace = launch(target, stars[0], **given).trace
        recorded = time.perf_counter() - start
        start = time.perf_counter()
        replays = [replay(trace, star, timeline=False, links=False) for star in stars]
        replayed = time.perf_counter() - start
        some = range(0, count, count // (2 if quick else direct))
        start = time.perf_counter()
        runs = [launch(target, stars[i], **given).result for i in some]
        ran = (time.perf_counter() - start) / len(runs)
        for i, result in zip(some, runs, strict=True):
            assert result.event_hash == replays[i].event_hash, i
            assert result.makespan == replays[i].makespan, i
        rows.append(
            {
                "program": name,
                "compute": options["compute"],
                "runs": count,
                "events": replays[0].events,
                "direct": len(runs),
                "run": ran,
                "record": recorded,
                "replay": replayed / count,
            }
        )
        say(f"{name}: a run {ran * 1e3:.1f} ms, a replay {replayed / count * 1e3:.2f} ms")
    return rows


def _ratio(row: Row) -> float:
    return row["runs"] * row["run"] / (row["record"] + row["runs"] * row["replay"])


def cells(row: Row) -> list[str]:
    return [
        row["program"],
        row["compute"],
        f"{row['runs']:,}",
        f"{row['events']:,}",
        number(row["run"] * 1e3),
        number(row["record"] * 1e3),
        number(row["replay"] * 1e3),
        f"{number(_ratio(row))}x",
    ]


def summary(rows: list[Row]) -> list[str]:
    runs = " or ".join(str(count) for count in sorted({row["direct"] for row in rows}))
    return [f"A direct run is the mean of {runs}; each gave the events of its replay."]


PART = Part(
    name="record",
    title="Record and replay",
    reading=(
        f"A script of {RANKS} ranks and {LAYERS} tensor-parallel layers, and "
        "`examples/sim/llama70b.py` at its tiny size (prefill on fake tensors, 2 x 2 x 2 ranks), on "
        f"{RUNS:,} platforms: milliseconds of a direct run, of recording once, and of a replay; and how many times as "
        "long all direct runs take as recording once and replaying on every platform."
    ),
    head=("program", "compute", "platforms", "events", "run ms", "record ms", "replay ms", "ratio"),
    left=2,
    measure=measure,
    cells=cells,
    summary=summary,
)
