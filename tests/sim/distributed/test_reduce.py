"""Reductions over ranks: gloo's ring, message after message, gives the same bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributed import ReduceOp

from leeboard.sim.distributed.reduce import PRODUCT, SUM, reduced

SPREAD = {torch.float32: 1.0, torch.float64: 1.0, torch.float16: 0.5, torch.bfloat16: 1.0}


def rows(ranks: int, elements: int, dtype: torch.dtype) -> list[Tensor]:
    """Numbers of many magnitudes, of which sums depend on the order."""
    generator = torch.Generator().manual_seed(ranks * 1000 + elements)
    shape = (ranks, elements)
    powers = torch.randn(shape, generator=generator, dtype=torch.float64) * SPREAD[dtype]
    signs = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return list((powers.exp2() * signs).to(dtype))


def ring(given: list[Tensor], chunk: int, product: bool = False) -> Tensor:
    """What gloo's reduce-scatter over a ring makes: everybody sends to the rank before.

    In round k rank r passes on chunk r + 1 + k; who gets it adds its own.
    """
    ranks = len(given)
    held = [list(row.split(chunk)) for row in given]
    for row in held:
        row += [torch.empty(0, dtype=given[0].dtype)] * (ranks - len(row))
    for turn in range(ranks - 1):
        sent = [(rank + 1 + turn) % ranks for rank in range(ranks)]
        passed = [held[rank][sent[rank]] for rank in range(ranks)]
        for rank in range(ranks):
            target = (rank - 1) % ranks
            own = held[target][sent[rank]]
            held[target][sent[rank]] = own * passed[rank] if product else own + passed[rank]
    return torch.cat([held[rank][rank] for rank in range(ranks)])


# Elements, and those of a rank's chunk: of 2 segments a rank or more, of 1 MiB at most.
@pytest.mark.parametrize("dtype", list(SPREAD), ids=str)
@pytest.mark.parametrize(
    ("ranks", "elements", "chunk"), [(3, 7, 4), (3, 1000, 334), (5, 96, 20), (8, 1600, 200)]
)
def test_sums_in_the_order_of_the_ring(
    ranks: int, elements: int, chunk: int, dtype: torch.dtype
) -> None:
    given = rows(ranks, elements, dtype)
    expected = ring(given, chunk)
    assert torch.equal(reduced(given, SUM), expected)
    assert torch.equal(reduced(given, SUM, to_root=True), expected)
    if dtype.itemsize > 2:
        assert not torch.equal(expected, torch.stack(given).sum(0))


@pytest.mark.parametrize(
    ("to_root", "chunk"),
    # 6.8 MB: 9 segments, equal ones; or, for a root, of 1 MiB.
    [(False, 566_667), (True, 786_432)],
)
def test_large_tensors_have_more_segments(to_root: bool, chunk: int) -> None:
    given = list(torch.randn(3, 1_700_000, generator=torch.Generator().manual_seed(5)))
    assert torch.equal(reduced(given, SUM, to_root), ring(given, chunk))


def test_products_and_other_shapes() -> None:
    given = rows(3, 60, torch.float32)
    shaped = [given[0].view(3, 20), given[1].view(20, 3).t().t(), given[2].view(60)]
    result = reduced(shaped, PRODUCT)
    assert result.shape == (3, 20)
    assert torch.equal(result.flatten(), ring(given, 20, product=True))


def test_few_elements_are_one_chunk() -> None:
    given = rows(5, 1, torch.float32)
    expected = given[4]
    for rank in (3, 2, 1, 0):
        expected = expected + given[rank]
    assert torch.equal(reduced(given, SUM), expected)


@pytest.mark.parametrize("elements", [3, 70_000])
def test_many_ranks_in_any_order(elements: int) -> None:
    given = rows(40, elements, torch.float32)
    exact = torch.stack(given).double().sum(0)
    torch.testing.assert_close(reduced(given, SUM).double(), exact, rtol=0, atol=1e-4)
    whole = [row.to(torch.int32) for row in given]
    total = reduced(whole, SUM)
    assert total.dtype == torch.int32
    assert torch.equal(total, torch.stack(whole).sum(0).to(torch.int32))


def test_what_was_given_stays_as_it_is() -> None:
    for ranks in (1, 2, 3, 40):
        for kind in (SUM, int(ReduceOp.RedOpType.MAX), int(ReduceOp.RedOpType.AVG)):
            given = rows(ranks, 5, torch.float32)
            before = [row.clone() for row in given]
            result = reduced(given, kind)
            result.zero_()
            assert all(map(torch.equal, given, before))
