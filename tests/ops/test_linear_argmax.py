"""What is particular to linear_argmax: ties, NaN, the offset table, no gradient."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from harness import assert_same
from leeboard import reference
from leeboard.ops import backend, linear_argmax

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
vocabularies = pytest.mark.parametrize("vocabulary", [2, 7, 128, 129, 517, 4099])
backends = pytest.mark.parametrize("name", ["cpu", "reference"])


def one_hot_head(vocabulary: int, logits: dict[int, float], floor: float) -> torch.Tensor:
    """A head whose logit of token v, for x = [1, 0, 0, ...], is logits[v], else `floor`."""
    weight = torch.zeros(vocabulary, 24)
    weight[:, 0] = floor
    for token, value in logits.items():
        weight[token, 0] = value
    return weight


def unit(rows: int = 1) -> torch.Tensor:
    x = torch.zeros(rows, 24)
    x[:, 0] = 1.0
    return x


@dtypes
@vocabularies
def test_ties_go_to_the_lowest_token(dtype: torch.dtype, vocabulary: int, isa: str) -> None:
    for tokens in ([0, vocabulary - 1], [vocabulary // 2, vocabulary - 1], range(vocabulary)):
        weight = one_hot_head(vocabulary, dict.fromkeys(tokens, 3.0), floor=-1.0).to(dtype)
        index, value = linear_argmax(unit(5).to(dtype), weight)
        assert index.tolist() == [min(tokens)] * 5
        assert value.tolist() == [3.0] * 5


@dtypes
@vocabularies
def test_every_token_can_win(dtype: torch.dtype, vocabulary: int, isa: str) -> None:
    """All logits are negative: no token, and no padding of a tile, counts as zero."""
    step = max(1, vocabulary // 9)
    for token in {*range(0, vocabulary, step), vocabulary - 1}:
        weight = one_hot_head(vocabulary, {token: -1.0}, floor=-2.0).to(dtype)
        index, value = linear_argmax(unit().to(dtype), weight)
        assert (index.item(), value.item()) == (token, -1.0)


@vocabularies
@backends
def test_nan_is_the_maximum(vocabulary: int, name: str, isa: str) -> None:
    """As in torch.max; the first NaN, whatever else there is."""
    nan, inf = float("nan"), float("inf")
    tokens = sorted({vocabulary // 3, vocabulary - 1})
    weight = one_hot_head(vocabulary, {0: inf, **dict.fromkeys(tokens, nan)}, floor=1.0)
    # 0 * inf is NaN too: the other columns stay finite.
    with backend(name):
        index, value = linear_argmax(unit(3), weight)
    expected = tokens[0]
    assert index.tolist() == [expected] * 3
    assert value.isnan().all()


@backends
def test_infinities(name: str, isa: str) -> None:
    inf = float("inf")
    with backend(name):
        index, value = linear_argmax(unit(), one_hot_head(300, {200: inf}, floor=1.0))
        assert (index.item(), value.item()) == (200, inf)
        index, value = linear_argmax(unit(), one_hot_head(300, {}, floor=-inf))
        assert (index.item(), value.item()) == (0, -inf)
        index, value = linear_argmax(unit(), one_hot_head(300, {7: -5.0}, floor=-inf))
        assert (index.item(), value.item()) == (7, -5.0)


@dtypes
@pytest.mark.parametrize("rows", [1, 3, 64, 65, 200])
@pytest.mark.parametrize(("vocabulary", "width"), [(517, 40), (1003, 129), (31, 1000)])
def test_index_is_exact_where_the_gap_is_clear(
    dtype: torch.dtype, rows: int, vocabulary: int, width: int, isa: str
) -> None:
    """The float64 argmax, wherever the second best is further off than rounding reaches."""
    x = torch.randn(rows, width).to(dtype)
    weight = torch.randn(vocabulary, width).to(dtype)
    with backend("cpu"):
        index, value = linear_argmax(x, weight)
    logits = x.double() @ weight.double().t()
    best = logits.topk(2, dim=-1)
    bound = width * 2**-24 * (x.double().abs() @ weight.double().abs().t()).amax(-1)
    clear = best.values[:, 0] - best.values[:, 1] > 2 * bound
    assert clear.float().mean() > 0.9
    assert torch.equal(index[clear], best.indices[:, 0][clear])
    assert ((value.double() - logits.gather(1, index[:, None])[:, 0]).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_products_are_not_rounded_before_the_comparison(dtype: torch.dtype, isa: str) -> None:
    """Two logits that are one number in the storage type, and two in float32."""
    x = torch.ones(1, 2, dtype=dtype)
    weight = torch.tensor([[256.0, 0.0], [256.0, 0.0625]], dtype=dtype)
    assert F.linear(x, weight).unique().numel() == 1
    index, value = linear_argmax(x, weight)
    assert (index.item(), value.item()) == (1, 256.0625)


@backends
def test_d2t_is_an_offset(name: str, isa: str) -> None:
    d2t = torch.tensor([10, 20, -2, 1 << 40])
    for token in range(4):
        weight = one_hot_head(4, {token: 2.0}, floor=0.0)
        with backend(name):
            index, value = linear_argmax(unit(), weight, d2t=d2t)
        assert index.item() == token + d2t[token].item()
        assert value.item() == 2.0


@pytest.mark.parametrize("make", [lambda t: t.repeat_interleave(2)[::2], lambda t: t[:1].expand(9)])
def test_strided_d2t(make) -> None:
    d2t = make(torch.arange(100, 109))
    weight = torch.randn(9, 24)
    x = torch.randn(6, 24)
    index, _ = linear_argmax(x, weight, d2t=d2t)
    plain, _ = linear_argmax(x, weight)
    assert torch.equal(index, plain + d2t[plain])


@dtypes
def test_more_rows_than_one_panel(dtype: torch.dtype, isa: str) -> None:
    x, weight = torch.randn(150, 40).to(dtype), torch.randn(301, 40).to(dtype)
    whole = linear_argmax(x, weight)
    parts = [linear_argmax(x[i : i + 1], weight) for i in range(150)]
    assert_same(whole, [torch.cat(ts) for ts in zip(*parts, strict=True)])


def test_needs_no_gradient() -> None:
    x, weight = torch.randn(3, 24), torch.nn.Parameter(torch.randn(9, 24))
    with pytest.raises(RuntimeError, match=r"weight: requires grad.*torch.no_grad\(\)"):
        linear_argmax(x, weight)
    expected = reference.linear_argmax(x, weight.detach())
    with torch.no_grad():
        assert torch.equal(linear_argmax(x, weight)[0], expected[0])
    with torch.inference_mode():
        assert torch.equal(linear_argmax(x, weight)[0], expected[0])
    index, value = linear_argmax(x, weight.detach())
    assert not value.requires_grad
    assert not index.requires_grad


def test_the_op_behind_it_has_no_gradient() -> None:
    x = torch.randn(3, 24, requires_grad=True)
    _, value, _ = torch.ops.leeboard.linear_argmax(x, [torch.randn(9, 24)], "plain", None, False)
    with pytest.raises(RuntimeError, match="linear_argmax has no gradient"):
        value.sum().backward()


def test_shapes_of_the_outputs() -> None:
    weight = torch.randn(9, 24)
    for shape in [(24,), (2, 24), (2, 0, 24), (2, 1, 3, 24)]:
        index, value = linear_argmax(torch.randn(shape), weight)
        assert index.shape == value.shape == shape[:-1]
        assert (index.dtype, value.dtype) == (torch.int64, torch.float32)


def test_out_of_one_row() -> None:
    """0-dimensional outputs for a vector."""
    x, weight = torch.randn(24), torch.randn(9, 24)
    out = (torch.empty((), dtype=torch.int64), torch.empty(()))
    linear_argmax(x, weight, out=out)
    assert_same(out, linear_argmax(x, weight))
