"""The rivals of sparse_gqa compute what they are compared with, and the check can fail."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

from leeboard.ops.patterns import TopU

ROOT = Path(__file__).parents[2]
LENGTH = 64


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    from bench.ops import bench_sparse_gqa

    return bench_sparse_gqa


@pytest.mark.parametrize("label", ["causal", "band", "band-both", "modality"])
def test_masks_of_the_rivals_say_the_same(bench: ModuleType, label: str) -> None:
    from bench.attention import visible

    pattern, at = bench.PATTERNS[label](LENGTH), torch.arange(LENGTH)
    see = visible(pattern, torch.device("cpu"))
    assert torch.equal(see(at[:, None], at[None, :]), pattern.dense_mask(LENGTH))


@pytest.mark.parametrize("label", ["dense", "padded", "causal", "band", "modality", "topu"])
def test_variants_are_checked(bench: ModuleType, label: str) -> None:
    from bench.cases import Prepared, variants

    case = bench._case(label, LENGTH, 16, torch.float32)
    prepared = Prepared(bench.SUBJECT, case)
    for variant in variants(bench.SUBJECT, case):
        # Its compilation takes seconds; the mask that it is given is checked above.
        if variant == "flex":
            continue
        result = prepared.call(variant)()
        prepared.check(variant, result)
        for wrong in (result * 1.01, result.roll(1, 1), result * math.nan):
            with pytest.raises(AssertionError):
                prepared.check(variant, wrong)


def test_prob_sparse_has_as_many_rows(bench: ModuleType) -> None:
    from bench.attention import is_prob_sparse, prob_sparse

    q, k, v = torch.randn(2, 4, 300, 8), *torch.randn(2, 2, 2, 300, 8)
    count = TopU(2).queries(300)
    out = prob_sparse(q, k, v, 2, seed=3)
    assert is_prob_sparse(out, q, k, v, count)
    assert not is_prob_sparse(out, q, k, v, count - 1)
    assert not is_prob_sparse(out, q, k, v, count + 1)


def test_cases_declare_their_work(bench: ModuleType) -> None:
    cases = {case.id: case for case in bench.SUBJECT.cases}
    assert len(cases) == len(bench.SUBJECT.cases)
    dense = cases["dense-L2048-H32-G8-D128-bfloat16-forward"]
    assert dense.flops == 4 * 32 * 2048 * 2048 * 128
    assert dense.moved == 2 * (2 * 32 + 2 * 8) * 2048 * 128
    band = cases["band-L1024-H8-G2-D64-float32-forward"]
    assert band.dense_flops is not None
    assert band.flops / band.dense_flops == pytest.approx(1 / 8, rel=0.07)
    assert any(case.direction == "training" for case in cases.values())


def test_the_benchmark_of_gpus_has_a_column_for_each_rival(bench: ModuleType) -> None:
    from bench import gpu

    case = bench._case("topu", LENGTH, 16, torch.float32)
    row = gpu.measure(bench.SUBJECT, case, "cpu", "reference", lambda call: len(call()) * 1e-6)
    assert gpu._rivals([row]) == ["sdpa", "eager"]
    assert len(row.cells(["sdpa", "flex", "eager"])) == 3 + 1 + 3 + 2
    assert row.cells(["sdpa", "flex"])[4:6] == ["1.00x", ""]
