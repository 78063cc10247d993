"""What is particular to panel_ffn: activations, norms, gates, lists, and the smaller block."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from harness import LAYOUTS, Sample, assert_matches, assert_same, relayout, run
from leeboard import reference
from leeboard.ops import FeedForwardWeights, backend, panel_ffn
from leeboard.reference.panel_ffn import ACTIVATIONS
from panel_inputs import ffn, weights_of

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def check(sample: Sample) -> Tensor:
    with backend("cpu"):
        outputs = run("panel_ffn", sample)
    assert_matches("panel_ffn", sample, outputs)
    return outputs[0]


@dtypes
@pytest.mark.parametrize("panel", [1, 4, 10, 16, 32])
@pytest.mark.parametrize("rows", [1, 2, 4, 9, 33, 70])
def test_widths_of_panels(rows: int, panel: int, dtype: torch.dtype) -> None:
    """Unsorted, with neighbours and one that is none; the last one is ragged."""
    count = -(-150 // panel)
    panels = [count - 1, 0, -1, 1, *range(2, count - 1, 2)]
    check(ffn((rows,), (40, 150, 24), panels, panel=panel, residual=rows % 2 == 0)(dtype))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("rows", [5, 40])
def test_activations_and_gates(rows: int, activation: str, gated: bool, isa: str) -> None:
    norm = "rms_norm" if gated else "layer_norm"
    for dtype in DTYPES:
        sample = ffn(
            (rows,), (44, 96), [5, 1, 2], activation=activation, gated=gated, norm=norm, gates=()
        )
        check(sample(dtype))


@dtypes
@pytest.mark.parametrize("shape", [(5,), (40,), (3, 2), (4, 1, 9), (2, 64)])
def test_gates_of_samples(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check(ffn(shape, (32, 64), [3, 0, 1], gates=shape[:1], residual=True)(dtype))


def test_activations_over_their_whole_range(isa: str) -> None:
    """One channel a number, through identities; few rows and many."""
    ends = [0.0, -0.0, 1e-30, -1e-30, 5.49, 5.51, -5.49, -5.51, 88.0, -88.0, 1e4, -1e4, 3e38, -3e38]
    values = torch.cat((torch.linspace(-12, 12, 4000), torch.tensor(ends)))
    for name, function in ACTIVATIONS.items():
        x = values[:, None].expand(-1, 4).contiguous()
        weights = FeedForwardWeights(torch.eye(4), torch.eye(4), activation=name)
        exact = function(values.double())
        own = (function(values) - exact).abs()
        for rows in (x, x[-len(ends) :][:8]):
            expected = exact if rows is x else exact[-len(ends) :][:8]
            least = own if rows is x else own[-len(ends) :][:8]
            with backend("cpu"):
                actual = panel_ffn(rows, weights)
            # A few units in the last place of the value, and one in that of Phi: where Phi is small
            # it is what a sum near one half leaves.
            allowed = 2 * least + expected.abs() * 2**-21 + 2**-23 * rows[:, 0].abs().clamp(max=6)
            assert bool(((actual[:, 0].double() - expected).abs() <= allowed).all()), name


def test_values_that_are_no_numbers(isa: str) -> None:
    for rows in (1, 20):
        for name, function in ACTIVATIONS.items():
            x = torch.full((rows, 1), 1.0)
            x[0] = float("nan")
            weights = FeedForwardWeights(torch.eye(1), torch.eye(1), activation=name)
            with backend("cpu"):
                actual = panel_ffn(x, weights)
            assert bool(actual[0].isnan()), name
            torch.testing.assert_close(actual[1:], function(x[1:]))


@pytest.mark.parametrize("rows", [4, 40])
@pytest.mark.parametrize("gated", [False, True])
def test_equals_a_smaller_block(rows: int, gated: bool) -> None:
    """To the bit: of the listed channels, cut out."""
    weights = weights_of(torch.float32, 48, 96, gated=gated, norm="layer_norm")
    kept = torch.tensor([4, 0, 3])
    listed = (kept[:, None] * 16 + torch.arange(16)).flatten()
    small = replace(
        weights,
        up=weights.up[listed].clone(),
        down=weights.down[:, listed].contiguous(),
        up_bias=weights.up_bias[listed].clone(),
        gate=weights.gate[listed].clone() if gated else None,
        gate_bias=weights.gate_bias[listed].clone() if gated else None,
    )
    x = torch.randn(rows, 48)
    assert_same([panel_ffn(x, weights, kept)], [panel_ffn(x, small)])


@pytest.mark.parametrize("rows", [1, 40])
def test_an_empty_list_leaves_bias_and_residual(rows: int) -> None:
    weights = weights_of(torch.float32, 24, 48)
    x, residual, bias = torch.randn(rows, 24), torch.randn(rows, 24), torch.randn(24)
    for none in (torch.empty(0, dtype=torch.int32), torch.tensor([-1, -1])):
        assert_same([panel_ffn(x, weights, none)], [weights.down_bias.expand(rows, 24)])
        made = panel_ffn(x, weights, none, bias=bias, residual=residual)
        assert_same([made], [bias + residual])


def test_a_bias_takes_the_place_of_the_weights_own() -> None:
    weights, bias = weights_of(torch.float32, 24, 48), torch.randn(24)
    x = torch.randn(5, 24)
    own = panel_ffn(x, replace(weights, down_bias=bias))
    assert_same([panel_ffn(x, weights, bias=bias)], [own])


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if not name.startswith("expanded")])
def test_layouts_of_the_list_and_of_many_rows(layout: str) -> None:
    build = ffn(
        (3, 9), (32, 64), [2, 0, 3], gated=True, norm="layer_norm", gates=(3,), residual=True
    )
    sample = build(torch.float32)
    changed = sample.mapped(lambda t: relayout(layout, t))
    assert_matches("panel_ffn", sample, run("panel_ffn", changed))


@dtypes
@pytest.mark.parametrize("rows", [8, 70])
def test_a_row_is_its_own(rows: int, dtype: torch.dtype, isa: str) -> None:
    """Among few rows, and among many, whatever their number."""
    sample = ffn((rows,), (72, 160), [3, 9, 1, 0, 7], norm="rms_norm")(dtype)
    (together,) = run("panel_ffn", sample)
    x, *others = sample.args
    least = 1 if rows == 8 else 9
    for count in (least, least + 1, rows - 1):
        assert_same([panel_ffn(x[:count], *others)], [together[:count]])


@dtypes
@pytest.mark.parametrize("rows", [2, 20, 100])
def test_threads_change_nothing(rows: int, dtype: torch.dtype) -> None:
    """Threads share tokens, or channels where the tokens are few."""
    sample = ffn((rows,), (128, 512), [*range(0, 32, 3), 1], gated=True, residual=True)(dtype)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(run("panel_ffn", sample))
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


def test_gradients_of_a_list_stay_on_it() -> None:
    weights = weights_of(torch.float32, 24, 48)
    leaves = [t.requires_grad_() for t in (weights.up, weights.down, weights.up_bias)]
    x, gates = torch.randn(9, 24, requires_grad=True), torch.rand(48, requires_grad=True)
    panel_ffn(x, weights, torch.tensor([2, 0]), gates=gates).square().sum().backward()
    for grad in (leaves[0].grad, leaves[1].grad.t(), leaves[2].grad, gates.grad):
        assert not grad[16:32].any()
        assert bool(grad[:16].any())
        assert bool(grad[32:].any())


@pytest.mark.parametrize("samples", [0, 3])
@pytest.mark.parametrize("listed", [[], [-1], [1]])
def test_gates_of_samples_with_little_to_gate(listed: list[int], samples: int) -> None:
    """No panel, or no sample: as the reference, gradients included."""
    weights = weights_of(torch.float32, 24, 48)
    inputs = [torch.randn(samples, 2, 24), torch.rand(samples, 48)]
    panels = torch.tensor(listed, dtype=torch.int32)
    results = []
    for function in (panel_ffn, reference.panel_ffn):
        x, gates = (t.clone().requires_grad_() for t in inputs)
        out = function(x, weights, panels, gates=gates)
        out.sum().backward()
        results.append((out, x.grad, gates.grad))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck(activation: str) -> None:
    build = ffn(
        (2, 3), (5, 12, 4), [2, 0], panel=4, gated=activation != "relu", activation=activation,
        norm="rms_norm", gates=(2,), residual=True,
    )  # fmt: skip
    sample = build(torch.float64)
    leaves = [t for t in sample.tensors() if t.is_floating_point()]
    for t in leaves:
        t.requires_grad_()

    def function(*tensors: Tensor) -> Tensor:
        others = iter(tensors)
        changed = [next(others) if t.is_floating_point() else t for t in sample.tensors()]
        return run("panel_ffn", sample.replaced(changed))[0]

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("gates", [(3,), ()])
def test_vmap_repeats_the_samples(gates: tuple[int, ...]) -> None:
    sample = ffn((3, 2), (24, 48), [2, 0], gates=gates)(torch.float32)
    _, weights, panels = sample.args
    x, factors = torch.randn(4, 3, 2, 24), sample.kwargs["gates"]

    def function(one: Tensor) -> Tensor:
        return panel_ffn(one, weights, panels, gates=factors)

    batched = torch.func.vmap(function)(x)
    torch.testing.assert_close(batched, torch.stack([function(one) for one in x]))
    with backend("reference"):
        by_reference = torch.func.vmap(function)(x)
    torch.testing.assert_close(batched, by_reference)


def test_compiled_for_any_number_of_rows_and_any_list() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(panel_ffn, backend="aot_eager", fullgraph=True, dynamic=True)
    weights = weights_of(torch.float32, 24, 64, norm="layer_norm")
    for rows, panels in ((3, [1, 2]), (40, [3, 0, 1]), (9, [2, 1])):
        x, kept = torch.randn(rows, 24), torch.tensor(panels, dtype=torch.int32)
        gates = torch.rand(rows, 64)
        expected = panel_ffn(x, weights, kept, gates=gates)
        assert_same([compiled(x, weights, kept, gates=gates)], [expected])


@pytest.mark.parametrize("rows", [3, 30])
def test_is_the_block_of_torch(rows: int) -> None:
    """The pre-norm feed-forward block of a transformer encoder layer, whole."""
    layer = torch.nn.TransformerEncoderLayer(
        32, 4, 64, norm_first=True, activation="gelu", batch_first=True
    ).eval()
    weights = FeedForwardWeights(
        layer.linear1.weight,
        layer.linear2.weight,
        layer.linear1.bias,
        layer.linear2.bias,
        norm="layer_norm",
        norm_weight=layer.norm2.weight,
        norm_bias=layer.norm2.bias,
        eps=layer.norm2.eps,
    )
    x = torch.randn(rows, 32)
    with torch.no_grad():
        expected = x + layer.linear2(F.gelu(layer.linear1(layer.norm2(x))))
        torch.testing.assert_close(panel_ffn(x, weights, residual=x), expected)
        assert_same([reference.panel_ffn(x[:0], weights)], [panel_ffn(x[:0], weights)])
