"""One training step of a drafter: unroll, loss, backward, clip, AdamW."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.draft.plain import PlainDrafter, plain_loss
from bench.environment import CPUS
from bench.part import Part, Row, say, wait_for_quiet
from leeboard.draft import Batch, DrafterConfig, Eagle3Drafter, chain_loss


@dataclass(frozen=True)
class Case:
    """Sizes of a step; by default those of `leeboard demo`, where half of the tokens are learnt."""

    name: str
    steps: int
    share: float = 0.5
    hidden: int = 96
    inner: int = 256
    heads: int = 3
    vocab: int = 1024
    rows: int = 8
    length: int = 128


_LARGE: dict[str, Any] = {
    "hidden": 512,
    "inner": 1408,
    "heads": 8,
    "vocab": 32000,
    "rows": 1,
    "length": 512,
}
CASES = (
    Case("demo", 2),
    Case("demo", 4),
    Case("demo", 2, share=1.0),
    Case("larger", 4, **_LARGE),
)
DECAY = 0.8
# Of the largest gradient of a parameter; both sides sum float32 in their own order.
TOLERANCE = 1e-3


def made(case: Case) -> tuple[Eagle3Drafter, PlainDrafter, Batch, Tensor]:
    """Both drafters with the same weights, a batch, and the teacher's head."""
    torch.manual_seed(0)
    config = DrafterConfig(
        vocab_size=case.vocab,
        draft_vocab_size=case.vocab,
        hidden_size=case.hidden,
        intermediate_size=case.inner,
        num_attention_heads=case.heads,
        num_key_value_heads=case.heads,
        head_dim=case.hidden // case.heads,
        target_hidden_size=case.hidden,
        aux_layer_ids=(2, 5, 7),
        aux_layer_convention="input",
        max_position_embeddings=2 * case.length,
    )
    ours = Eagle3Drafter(config)
    ours.embed_tokens.weight.requires_grad_(False)
    plain = PlainDrafter(config, case.length)
    plain.load_state_dict(ours.state_dict())
    plain.embed_tokens.weight.requires_grad_(False)
    shape = (case.rows, case.length)
    head = torch.randn(case.vocab, case.hidden) * 3 * case.hidden**-0.5
    final = torch.randn(*shape, case.hidden)
    logits = final @ head.T
    # Turns of 32 tokens, as far as they go.
    places = torch.arange(case.length).expand(shape)
    mask = (places // 32 % 2 == 1) | (case.share == 1.0)
    batch = Batch(
        ids=torch.randint(case.vocab, shape),
        loss_mask=mask,
        positions=places,
        hiddens=tuple(torch.randn(*shape, case.hidden) for _ in range(3)),
        final=final,
        best=logits.argmax(-1),
        logsumexp=logits.logsumexp(-1),
    )
    return ours, plain, batch, head


def trainer(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """A step of training as a call."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True
    )

    def step() -> None:
        loss().backward()
        nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()
        optimizer.zero_grad()

    return step


def losses(
    case: Case, ours: Eagle3Drafter, plain: PlainDrafter, batch: Batch, head: Tensor
) -> dict[str, Callable[[], Tensor]]:
    """The rivals' losses as calls."""
    weights = [DECAY**j for j in range(case.steps)]
    compiled = torch.compile(plain_loss, dynamic=False)
    return {
        "leeboard": lambda: chain_loss(ours, batch, head, step_weights=weights).loss,
        "eager": lambda: plain_loss(plain, batch, head, weights)[0],
        "compile": lambda: compiled(plain, batch, head, weights)[0],
    }


def check(calls: dict[str, Callable[[], Tensor]], models: dict[str, nn.Module]) -> None:
    """AssertionError unless all have the same gradients."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, call in calls.items():
        call().backward()
        found[name] = {
            key: parameter.grad.clone()
            for key, parameter in models[name].named_parameters()
            if parameter.grad is not None
        }
        models[name].zero_grad()
    for key, right in found["eager"].items():
        for name in calls:
            error = ((found[name][key] - right).abs().max() / right.abs().max()).item()
            assert error <= TOLERANCE, f"{name}: the gradient of {key} is off by {error:.1e}"


def timed(calls: dict[str, Callable[[], None]], seconds: float) -> dict[str, float]:
    """Seconds of a step of each: the median of turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["eager"]) < 5:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def _measure(quick: bool) -> list[Row]:
    rows = []
    torch.set_num_threads(CPUS)
    for case in CASES:
        if quick and case is not CASES[0]:
            continue
        torch.compiler.reset()
        ours, plain, batch, head = made(case)
        calls = losses(case, ours, plain, batch, head)
        if quick:
            del calls["compile"]
        models = {name: ours if name == "leeboard" else plain for name in calls}
        check(calls, models)
        steps = {name: trainer(models[name], call) for name, call in calls.items()}
        wait_for_quiet()
        found = timed(steps, 1.0 if quick else 6.0)
        rows.append(
            {
                "case": case.name,
                "steps": case.steps,
                "share": case.share,
                "tokens": case.rows * case.length,
                "threads": CPUS,
                **found,
            }
        )
        say(f"training step, {case.name}, TTT {case.steps}, {case.share:.0%}")
    return rows


def _cells(row: Row) -> list[str]:
    def ratio(name: str) -> str:
        return f"{row[name] / row['leeboard']:.2f}x" if name in row else "-"

    def milliseconds(name: str) -> str:
        return f"{row[name] * 1e3:,.1f}" if name in row else "-"

    return [
        row["case"],
        str(row["steps"]),
        f"{row['share']:.0%}",
        str(row["threads"]),
        *(milliseconds(name) for name in ("eager", "compile", "leeboard")),
        ratio("eager"),
        ratio("compile"),
    ]


def _summary(rows: list[Row]) -> list[str]:
    half = [row for row in rows if row["case"] == "demo" and row["share"] < 1.0]
    least = min(row["eager"] / row["leeboard"] for row in half)
    met = "met" if least >= 1.5 else "missed"
    return [f"Aim, at least 1.5x eager for the demo's drafter: {met} ({least:.2f}x at the least)."]


PART = Part(
    name="train_step",
    title="One training step",
    reading="""\
Milliseconds of a step on a batch whose target states are there: unroll of `TTT` chain steps, loss,
backward, gradient clip, fused AdamW, float32. `demo` is the drafter of `leeboard demo` (width 96, 8
rows of 128 tokens, 1024 entries), `larger` one of width 512 on 512 tokens with 32000 entries; `learnt`
is the share of tokens that bear a loss (half of them in the demo). `eager` is plain PyTorch as
training scripts write it (`bench/draft/plain.py`): the logits of all rows, one causal product and a
row-wise dot product per later step. `compile` is that loss under `torch.compile`. Gradients are
compared before anything is timed. Prediction, from the multiplications alone: the demo's eager step
has 1.8 G of them at TTT 2, ours 1.3 G with two thirds of the tokens learnt and 1.1 G with half of
them (rows without a loss stop after their keys and values, the embedding's half of q, k and v is made
once, not once a step); the rest has to come from fewer passes over logits and scores.""",
    head=[
        "drafter",
        "TTT",
        "learnt",
        "threads",
        "eager",
        "compile",
        "leeboard",
        "vs eager",
        "vs compile",
    ],
    left=1,
    measure=_measure,
    cells=_cells,
    summary=_summary,
)
