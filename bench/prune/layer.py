"""One encoder layer, batch 1: what fusing saves, and what pruning half of it saves."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.part import Part, Row, say, wait_for_quiet
from bench.prune.models import TOLERANCE, as_torch_layer, half
from bench.prune.timing import compiled, medians, require_equal, thread_counts
from leeboard import prune
from leeboard.ops.patterns import Dense
from leeboard.prune.backbones import BackboneConfig, Stream
from leeboard.prune.backbones._base import EncoderBlock

WIDTHS = (64, 128, 256)
LENGTHS = (16, 128)


class _Layer(nn.Module):
    """A block as a model, which a plan can be applied to."""

    def __init__(self, block: nn.Module, length: int) -> None:
        super().__init__()
        self.block = block
        self.length = length
        self.modalities = ("input",)

    def leeboard_tokens(self, present: frozenset[str]) -> dict[str, prune.Tokens]:
        return {"block": prune.Tokens(self.length, self.length)}

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        out: Tensor = self.block(inputs["input"])
        return out


def _measure(quick: bool) -> list[Row]:
    rows = []
    for width in WIDTHS:
        for length in LENGTHS:
            if quick and (width, length) not in ((64, 128), (256, 16)):
                continue
            config = BackboneConfig(
                (Stream("input", 3, length),), 2, d_model=width, heads=8, hidden=4 * width
            )
            torch.manual_seed(0)
            block = EncoderBlock(config, Dense()).eval()
            model = _Layer(block, length)
            x = torch.randn(1, length, width)
            given = {"input": x}
            layer = as_torch_layer(block)
            plan = half(model)
            small = prune.compact(model, plan)
            calls = {
                "eager": lambda layer=layer, x=x: layer(x),
                "leeboard": lambda block=block, x=x: block(x),
                "compact": lambda small=small, given=given: small(given),
            }
            seconds = 0.1 if quick else 0.4
            found = {}
            with torch.no_grad():
                for threads in thread_counts():
                    torch.set_num_threads(threads)
                    fast, small_fast = compiled(layer), torch.compile(small)
                    calls["compile"] = lambda layer=fast, x=x: layer(x)
                    calls["compact-compile"] = lambda s=small_fast, given=given: s(given)
                    outputs = {name: call() for name, call in calls.items()}
                    require_equal(outputs, ["eager", "compile", "leeboard"], TOLERANCE)
                    # The block is one: its dense times are taken before the plan is applied.
                    wait_for_quiet()
                    found[threads] = medians(calls, threads, seconds)
                    prune.apply(model, plan)
                    outputs["pruned"] = model(given)
                    require_equal(outputs, ["pruned", "compact", "compact-compile"], TOLERANCE)
                    own = {"pruned": lambda model=model, given=given: model(given)}
                    found[threads] |= medians(own, threads, seconds)
                    prune.revert(model)
            share = plan.macs / plan.dense_macs
            rows += [
                {"d": width, "L": length, "threads": threads, "macs": share, **times}
                for threads, times in found.items()
            ]
            say(f"layer d{width} L{length}")
    return rows


def _cells(row: Row) -> list[str]:
    def ratio(a: str, b: str) -> str:
        return f"{row[a] / row[b]:.2f}x"

    best = min(("compact", "compact-compile"), key=row.__getitem__)
    return [
        f"{row['d']}",
        f"{row['L']}",
        f"{row['threads']}",
        f"{row['eager'] * 1e6:,.0f}",
        f"{row['compile'] * 1e6:,.0f}",
        f"{row['leeboard'] * 1e6:,.0f}",
        f"{row['pruned'] * 1e6:,.0f}",
        ratio("eager", "leeboard"),
        ratio("compile", "leeboard"),
        ratio("leeboard", "pruned"),
        f"{1 / row['macs']:.2f}x",
        ratio("eager", "pruned"),
        f"{ratio(best, 'pruned')} {best}",
    ]


PART = Part(
    name="layer",
    title="One encoder layer, batch 1",
    reading="""\
Microseconds of a pre-norm encoder layer with d channels, 8 heads and 4 d hidden channels over L
tokens, float32. `eager` is `torch.nn.TransformerEncoderLayer` in its inference fast path, `compile`
the same under `torch.compile`; `dense` is leeboard's block with everything, `50%` with half of its
multiply-adds under a plan. **Fusion** is what leeboard's dense block gains over each, **pruning** what
the plan gains over leeboard's dense block, beside the most that its arithmetic allows. `compact` is
the same plan cut into smaller dense torch layers, eager or compiled, whichever is faster.""",
    head=[
        "d",
        "L",
        "threads",
        "eager",
        "compile",
        "dense",
        "50%",
        "fusion: eager",
        "fusion: compile",
        "pruning",
        "at most",
        "both: eager",
        "compact",
    ],
    left=0,
    measure=_measure,
    cells=_cells,
)
