"""What is particular to the CPU kernel of sparse attention: its cuts into strips, panels, windows
and blocks at every level, thread counts, layouts, and what it refuses.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from harness import Sample, assert_matches, assert_same, run
from leeboard import _C
from leeboard.ops._attention_plan import plan_for
from leeboard.ops.patterns import Band, Blocks, Causal, Dense, Modality, Pattern, TopU
from sparse_inputs import heads_of, peaked, sinks_of

NAME = "sparse_gqa"
FLOAT = torch.float32
LEVEL = -1


def check(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, **options: Any) -> None:
    sample = Sample((q, k, v, pattern), {"return_lse": True, **options})
    assert_matches(NAME, sample, run(NAME, sample))


# Rows on both sides of a strip and a block, keys on both sides of a panel and a window.
@pytest.mark.parametrize("rows", [(1, 1), (5, 16), (13, 127), (97, 129), (30, 300)], ids=str)
@pytest.mark.parametrize("heads", [(1, 1), (7, 1), (6, 2), (3, 3)], ids=str)
def test_every_cut(rows: tuple[int, int], heads: tuple[int, int], isa: str) -> None:
    q, k, v = heads_of(FLOAT, 1, heads, rows, 24)
    for pattern in (Dense(), Band(17, sinks=3)):
        check(q, k, v, pattern)


@pytest.mark.parametrize("dtype", [FLOAT, torch.bfloat16, torch.float16], ids=str)
def test_panels_seen_in_part(dtype: torch.dtype, isa: str) -> None:
    """Gaps within a panel, panels between two that are seen, and padding in any of them."""
    q, k, v = heads_of(dtype, 2, (6, 2), (150, 150), 33)
    padding = torch.rand(2, 150) < 0.3
    padding[1, 40:120] = True
    for pattern in (
        Causal(),
        Band(40, sinks=5, causal=False),
        Modality.of_lengths((3, 70, 40, 37), 9, 2),
        Blocks([[0], [0, 3], [1, 2], [3]], 40),
    ):
        check(q, k, v, pattern, key_padding=padding)
        check(q, k, v, pattern, softcap=2.0, sink_logits=sinks_of(dtype, 6), active_heads=[0, 4])


@pytest.mark.parametrize("scale", [-0.3, 0.0, 4.0])
def test_scales(scale: float, isa: str) -> None:
    q, k, v = heads_of(FLOAT, 1, (4, 2), (20, 40), 16)
    check(q, k, v, Band(12), scale=scale)
    check(q, k, v, Band(12), scale=scale, softcap=1.5)


def test_top_u_over_many_blocks(isa: str) -> None:
    """More chosen rows than a block holds, sampled keys of several panels."""
    pattern = TopU(40, 2)
    q, k, v = heads_of(FLOAT, 1, (6, 2), (210, 230), 20)
    check(peaked(q, pattern), k, v, pattern)


@pytest.mark.parametrize("pattern", [Causal(), TopU(3, 1)], ids=str)
def test_same_bits_for_any_thread_count(pattern: Pattern) -> None:
    q, k, v = heads_of(torch.bfloat16, 2, (6, 2), (333, 333), 64)
    sample = Sample((q, k, v, pattern), {"return_lse": True})
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(run(NAME, sample))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert_same(result, results[0])


@pytest.mark.parametrize("dtype", [FLOAT, torch.bfloat16], ids=str)
def test_rows_far_apart(dtype: torch.dtype, isa: str) -> None:
    """[B, L, H, D] read as [B, H, L, D], and channels within wider rows."""
    q, k, v = heads_of(dtype, 2, (4, 2), (50, 50), 32)
    expected = run(NAME, Sample((q, k, v, Band(9)), {}))
    turned = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)]
    assert_same(run(NAME, Sample((*turned, Band(9)), {})), expected)
    wide = [torch.cat([t, t], -1)[..., :32] for t in (q, k, v)]
    assert_same(run(NAME, Sample((*wide, Band(9)), {})), expected)


def forward(**change: Any) -> tuple[bool, Tensor, Tensor]:
    """Whether the kernel took a call that fits but for `change`, and its outputs."""
    q, k, v = heads_of(FLOAT, 1, (4, 2), (6, 6), 8)
    values: dict[str, Any] = {
        "q": q,
        "k": k,
        "v": v,
        "out": torch.full((1, 4, 6, 8), 7.0),
        "lse": torch.full((1, 4, 6), 7.0),
        "plans": [plan_for(Dense().code, 6, 6).native],
        "cu_q": None,
        "cu_k": None,
        "heads": None,
        "padding": None,
        "sink_logits": None,
        "scale": 1.0,
        "softcap": 0.0,
        "level": LEVEL,
    }
    values.update(change)
    return _C.sparse_gqa_forward(**values), values["out"], values["lse"]


def test_a_call_that_fits() -> None:
    taken, out, lse = forward()
    assert taken
    assert not (out == 7.0).any()
    assert not (lse == 7.0).any()


REFUSED: dict[str, dict[str, Any]] = {
    "a plan of other queries": {"plans": [plan_for(Dense().code, 5, 6).native]},
    "a plan of other keys": {"plans": [plan_for(Dense().code, 6, 7).native]},
    "no plan": {"plans": []},
    "two plans": {"plans": [plan_for(Dense().code, 6, 6).native] * 2},
    "no such plan": {"plans": [3]},
    "bounds of queries alone": {"cu_q": torch.tensor([0, 6])},
    "bounds that fall": {"cu_q": torch.tensor([0, 9, 6]), "cu_k": torch.tensor([0, 3, 6])},
    "bounds beyond the end": {"cu_q": torch.tensor([0, 9]), "cu_k": torch.tensor([0, 6])},
    "heads that repeat": {"heads": (1, 1)},
    "a head too many": {"heads": (0, 4)},
    "a negative head": {"heads": (-1,)},
    "a head beyond any number": {"heads": (2**70,)},
    "padding of another length": {"padding": torch.zeros(1, 5, dtype=torch.bool)},
    "padding of another dtype": {"padding": torch.zeros(1, 6)},
    "sinks of other heads": {"sink_logits": torch.zeros(2)},
    "keys of other rows": {"k": torch.zeros(1, 2, 7, 8)},
    "heads that are no multiple": {"k": torch.zeros(1, 3, 6, 8), "v": torch.zeros(1, 3, 6, 8)},
    "no key-value heads": {"k": torch.zeros(1, 0, 6, 8), "v": torch.zeros(1, 0, 6, 8)},
    "another dtype": {"v": torch.zeros(1, 2, 6, 8, dtype=torch.bfloat16)},
    "three dimensions": {"q": torch.zeros(4, 6, 8)},
    "channels apart": {"q": torch.zeros(1, 4, 8, 6).mT},
}


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED.keys())
def test_refusals_touch_nothing(change: dict[str, Any]) -> None:
    taken, out, lse = forward(**change)
    assert not taken
    assert (out == 7.0).all()
    assert (lse == 7.0).all()


@pytest.mark.parametrize(
    "change",
    [
        {"out": torch.zeros(1, 4, 6, 8, dtype=torch.float16)},
        {"out": torch.zeros(1, 4, 1, 8).expand(1, 4, 6, 8)},
        {"lse": torch.zeros(1, 4, 5)},
        {"lse": torch.zeros(1, 6, 4).mT},
    ],
    ids=["dtype", "rows that overlap", "length", "layout"],
)
def test_outputs_that_do_not_fit(change: dict[str, Any]) -> None:
    assert not forward(**change)[0]


@pytest.mark.parametrize(
    ("sample", "counts", "fits"),
    [
        ([[0, 5, -1]], [2], True),
        ([[0, 6, -1]], [2], False),
        ([[0, -2, -1]], [2], False),
        ([[0, -1, 5]], [2], False),
        ([[-1, -1, -1]], [2], False),
        ([[-1, -1, -1]], [0], True),
        ([[0, 5, -1]], [3], False),
        ([[0, 5, -1]], [-1], False),
        ([[0, 5, -1]], [2, 2], False),
    ],
)
def test_samples_that_do_not_fit(sample: list[list[int]], counts: list[int], fits: bool) -> None:
    q, k, v = heads_of(FLOAT, 1, (4, 2), (6, 6), 8)
    out = torch.full((1, 4, 6, 8), 7.0)
    chosen = torch.full((1, 4, 2), 7)
    taken = _C.sparse_gqa_top_u(
        q,
        k,
        v,
        out,
        None,
        chosen,
        torch.tensor(sample),
        torch.tensor(counts),
        None,
        None,
        None,
        None,
        None,
        1.0,
        0.0,
        LEVEL,
    )
    assert taken == fits
    assert not (out == 7.0).any() if fits else (out == 7.0).all() and (chosen == 7).all()
