"""What is particular to linear_topk: order, ties, NaN, borders of blocks, log-sum-exp."""

from __future__ import annotations

import pytest
import torch

from harness import assert_same
from leeboard import reference
from leeboard.ops import backend, linear_argmax, linear_topk, quantize_weight

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
vocabularies = pytest.mark.parametrize("vocabulary", [5, 127, 128, 129, 517, 4099])
counts = pytest.mark.parametrize("k", [1, 2, 5])


def head_of(logits: torch.Tensor) -> torch.Tensor:
    """A head whose logits for x = [1, 0, 0, ...] are these."""
    weight = torch.zeros(logits.numel(), 24)
    weight[:, 0] = logits
    return weight


def unit(rows: int = 1) -> torch.Tensor:
    x = torch.zeros(rows, 24)
    x[:, 0] = 1.0
    return x


@counts
@vocabularies
@dtypes
def test_equal_values_come_in_the_order_of_the_vocabulary(
    dtype: torch.dtype, vocabulary: int, k: int, isa: str
) -> None:
    """Few different values, so that ties cross every border of tiles and blocks."""
    logits = torch.randint(-2, 3, (vocabulary,)).float()
    with backend("cpu"):
        actual = linear_topk(unit(3).to(dtype), head_of(logits).to(dtype), k)
    expected = torch.sort(logits, descending=True, stable=True)
    assert torch.equal(actual[0], expected.indices[:k].expand(3, k))
    assert torch.equal(actual[1], expected.values[:k].expand(3, k))


@pytest.mark.parametrize("k", [1, 3, 17, 64])
@pytest.mark.parametrize("order", ["rising", "falling", "random"])
def test_any_order_of_the_logits(k: int, order: str, isa: str) -> None:
    logits = torch.arange(700.0)
    if order == "falling":
        logits = -logits
    elif order == "random":
        logits = logits[torch.randperm(700)]
    with backend("cpu"):
        index, value = linear_topk(unit(), head_of(logits), k)
    expected = logits.topk(k)
    assert torch.equal(index[0], expected.indices)
    assert torch.equal(value[0], expected.values)


@pytest.mark.parametrize("name", ["cpu", "reference"])
@vocabularies
def test_nan_and_infinities(vocabulary: int, name: str, isa: str) -> None:
    nan, inf = float("nan"), float("inf")
    logits = torch.full((vocabulary,), -inf)
    logits[vocabulary - 1], logits[vocabulary // 2] = nan, nan
    logits[1], logits[0] = inf, 2.0
    with backend(name):
        index, value = linear_topk(unit(), head_of(logits), 5)
    assert index[0, :4].tolist() == [vocabulary // 2, vocabulary - 1, 1, 0]
    assert value[0, :2].isnan().all()
    assert value[0, 2:].tolist() == [inf, 2.0, -inf]


@pytest.mark.parametrize("name", ["cpu", "reference"])
@pytest.mark.parametrize("vocabulary", [3, 128, 300])
def test_log_sum_exp_of_special_values(vocabulary: int, name: str, isa: str) -> None:
    nan, inf = float("nan"), float("inf")
    nothing = torch.full((vocabulary,), -inf)
    one, most, bad = nothing.clone(), nothing.clone(), nothing.clone()
    one[vocabulary - 1] = 3.0
    most[vocabulary - 1] = inf
    bad[0], bad[vocabulary - 1] = inf, nan
    with backend(name):
        results = [
            linear_topk(unit(), head_of(logits), 2, logsumexp=True)[2].item()
            for logits in (nothing, one, most, bad)
        ]
    assert results[:3] == [-inf, 3.0, inf]
    assert results[3] != results[3]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("vocabulary", [1, 129, 4099])
def test_log_sum_exp_against_float64(vocabulary: int, scale: float, isa: str) -> None:
    """Neither many small terms nor one large term are lost."""
    logits = torch.randn(vocabulary) * scale
    with backend("cpu"):
        lse = linear_topk(unit(), head_of(logits), 1, logsumexp=True)[2]
        same = linear_argmax(unit(), head_of(logits), logsumexp=True)[2]
    exact = logits.double().logsumexp(0).item()
    # The sum's relative error is a few units in the last place; the result rounds once more.
    allowed = 8 * 2**-24 + 2**-23 * abs(exact)
    assert abs(lse.item() - exact) <= allowed
    assert torch.equal(lse, same)


@dtypes
@pytest.mark.parametrize("kind", [None, "int8", "int4"])
def test_the_first_is_the_argmax(dtype: torch.dtype, kind: str | None, isa: str) -> None:
    x, weight = torch.randn(70, 300).to(dtype), torch.randn(1003, 300).to(dtype)
    head = weight if kind is None else quantize_weight(weight, kind)
    with backend("cpu"):
        index, value, lse = linear_topk(x, head, 9, logsumexp=True)
        assert_same((index[:, 0], value[:, 0], lse), linear_argmax(x, head, logsumexp=True))
        assert_same((index[:, :4], value[:, :4]), linear_topk(x, head, 4))
    assert bool((value.diff(dim=-1) <= 0).all())


def test_more_than_the_kernels_keep() -> None:
    x, weight = torch.randn(3, 40), torch.randn(300, 40)
    assert_same(linear_topk(x, weight, 65), reference.linear_topk(x, weight, 65))
    with (
        backend("cpu"),
        pytest.raises(RuntimeError, match=r"'cpu' is forced, but .* at most 64 tokens, not k = 65"),
    ):
        linear_topk(x, weight, 65)


@pytest.mark.parametrize("k", [1, 64])
def test_k_is_the_whole_vocabulary(k: int, isa: str) -> None:
    d2t = torch.arange(k) * 3
    x, weight = torch.randn(5, 24), torch.randn(k, 24)
    with backend("cpu"):
        index, _ = linear_topk(x, weight, k, d2t=d2t)
    assert torch.equal(index.sort(dim=-1).values, (torch.arange(k) * 4).expand(5, k))


@dtypes
def test_more_rows_than_one_panel(dtype: torch.dtype, isa: str) -> None:
    x, weight = torch.randn(70, 40).to(dtype), torch.randn(301, 40).to(dtype)
    for k in (3, 20):
        whole = linear_topk(x, weight, k, logsumexp=True)
        parts = [linear_topk(x[i : i + 1], weight, k, logsumexp=True) for i in range(70)]
        assert_same(whole, [torch.cat(ts) for ts in zip(*parts, strict=True)])


def test_the_op_behind_it_has_no_gradient() -> None:
    x = torch.randn(3, 24, requires_grad=True)
    _, value, lse = torch.ops.leeboard.linear_topk(x, [torch.randn(9, 24)], "plain", 2, None, False)
    assert lse.shape == (3, 0)
    with pytest.raises(RuntimeError, match="linear_topk has no gradient"):
        value.sum().backward()


def test_shapes_of_the_outputs() -> None:
    weight = torch.randn(9, 24)
    for shape in [(24,), (2, 24), (2, 0, 24), (2, 1, 3, 24)]:
        index, value, lse = linear_topk(torch.randn(shape), weight, 4, logsumexp=True)
        assert index.shape == value.shape == (*shape[:-1], 4)
        assert lse.shape == shape[:-1]
