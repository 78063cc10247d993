"""leeboard.nn.RMSNorm: what it computes, and that it is torch's module in every other respect."""

from __future__ import annotations

import copy
import io
import re

import pytest
import torch
from torch import nn

import leeboard.nn
import leeboard.reference
from tolerances import assert_close_to_reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def wild(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Rows of very different magnitude."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    scale = torch.logspace(-2, 2, shape[0], dtype=torch.float64)
    return (x * scale.view(-1, *[1] * (len(shape) - 1))).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("eps", [1e-5, None], ids=["eps", "no_eps"])
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
def test_equals_torch(dtype: torch.dtype, eps: float | None, affine: bool) -> None:
    theirs = nn.RMSNorm(96, eps, affine, dtype=dtype)
    ours = leeboard.nn.RMSNorm(96, eps, affine, dtype=dtype)
    if affine:
        nn.init.normal_(theirs.weight, 1.0, 0.3)
    ours.load_state_dict(theirs.state_dict())
    x = wild(5, 3, 96, dtype=dtype)
    y = ours(x)
    assert y.dtype == dtype
    assert_close_to_reference(y, theirs(x), copy.deepcopy(theirs).double()(x.double()))


def test_no_eps_is_the_epsilon_of_the_computation() -> None:
    # At this magnitude the result is dominated by eps.
    x = torch.full((1, 8), 1e-4)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        theirs = nn.RMSNorm(8, dtype=dtype)(x.to(dtype))
        ours = leeboard.nn.RMSNorm(8, None, dtype=dtype)(x.to(dtype))
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("rounding", ["after_weight", "before_weight"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_offset_and_rounding(dtype: torch.dtype, rounding: str) -> None:
    module = leeboard.nn.RMSNorm(64, 1e-6, dtype=dtype, weight_offset=1.0, rounding=rounding)
    nn.init.normal_(module.weight, 0.0, 0.3)
    x = wild(6, 64, dtype=dtype)
    settings = {"weight_offset": 1.0, "rounding": rounding}
    low = leeboard.reference.rms_norm(x, module.weight, 1e-6, **settings)
    exact = leeboard.reference.rms_norm(x.double(), module.weight.double(), 1e-6, **settings)
    assert_close_to_reference(module(x), low, exact)


def test_starts_as_pure_normalisation() -> None:
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    for offset in (0.0, 1.0, 0.25):
        module = leeboard.nn.RMSNorm(32, weight_offset=offset)
        assert torch.equal(module.weight, torch.full((32,), 1.0 - offset))
        torch.testing.assert_close(module(x).square().mean(-1), torch.ones(4))
        nn.init.zeros_(module.weight)
        module.reset_parameters()
        assert torch.equal(module.weight, torch.full((32,), 1.0 - offset))


def test_wider_weight_widens_as_the_llama_family_does() -> None:
    x = wild(3, 16, dtype=torch.bfloat16)
    module = leeboard.nn.RMSNorm(16, 1e-6, rounding="before_weight")
    nn.init.normal_(module.weight)
    y = module(x)
    assert y.dtype == torch.float32
    assert torch.equal(y, leeboard.nn.RMSNorm(16, 1e-6, False)(x) * module.weight)
    # Rounding once at the end keeps the type of the input, as torch does.
    assert leeboard.nn.RMSNorm(16)(x).dtype == torch.bfloat16


def test_gradients_reach_input_and_weight() -> None:
    theirs = nn.RMSNorm(48, 1e-6)
    ours = leeboard.nn.RMSNorm(48, 1e-6)
    nn.init.normal_(theirs.weight, 1.0, 0.3)
    ours.load_state_dict(theirs.state_dict())
    exact = copy.deepcopy(theirs).double()
    grads = []
    for module, dtype in ((ours, torch.float32), (theirs, torch.float32), (exact, torch.float64)):
        x = wild(7, 48, dtype=torch.float32).to(dtype).requires_grad_()
        weighting = torch.linspace(-1, 1, 48, dtype=dtype)
        (module(x) * weighting).sum().backward()
        grads.append((x.grad, module.weight.grad))
    for actual, low, true in zip(*grads, strict=True):
        assert actual.abs().sum() > 0
        assert_close_to_reference(actual, low, true)


def test_is_a_torch_module_in_every_other_respect() -> None:
    module = leeboard.nn.RMSNorm((24,), 1e-5, dtype=torch.bfloat16)
    assert isinstance(module, nn.RMSNorm)
    assert module.normalized_shape == (24,)
    assert list(module.state_dict()) == list(nn.RMSNorm(24).state_dict()) == ["weight"]
    assert list(leeboard.nn.RMSNorm(24, elementwise_affine=False).state_dict()) == []
    assert leeboard.nn.RMSNorm([24], device="meta").weight.is_meta
    assert repr(module) == "RMSNorm((24,), eps=1e-05, elementwise_affine=True)"
    tuned = leeboard.nn.RMSNorm(24, weight_offset=1.0, rounding="before_weight")
    assert "weight_offset=1.0, rounding='before_weight'" in repr(tuned)


@pytest.mark.parametrize("how", ["deepcopy", "save"])
def test_copies_keep_everything(how: str) -> None:
    module = leeboard.nn.RMSNorm(16, 1e-3, weight_offset=1.0, rounding="before_weight").eval()
    nn.init.normal_(module.weight)
    if how == "deepcopy":
        twin = copy.deepcopy(module)
    else:
        buffer = io.BytesIO()
        torch.save(module, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    x = wild(3, 16, dtype=torch.float32)
    assert type(twin) is leeboard.nn.RMSNorm
    assert repr(twin) == repr(module)
    assert not twin.training
    assert twin.weight is not module.weight
    assert torch.equal(twin(x), module(x))


@pytest.mark.parametrize("rounding", ["after_weight", "before_weight"])
def test_compiles_as_one_graph(rounding: str) -> None:
    module = leeboard.nn.RMSNorm(32, rounding=rounding)
    nn.init.normal_(module.weight)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for rows in (3, 5):
        x = wild(rows, 32, dtype=torch.float32)
        torch.testing.assert_close(compiled(x), module(x))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"normalized_shape": (2, 3)}, ValueError, "normalized_shape: got (2, 3)"),
        ({"normalized_shape": 0}, ValueError, "normalized_shape: got 0"),
        ({"normalized_shape": ()}, ValueError, "normalized_shape: got ()"),
        ({"normalized_shape": "8"}, TypeError, "normalized_shape: got '8'"),
        ({"normalized_shape": 8.0}, TypeError, "normalized_shape: got 8.0"),
        ({"normalized_shape": 8, "rounding": "never"}, ValueError, "rounding: got 'never'"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_constructor_errors(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        leeboard.nn.RMSNorm(**arguments)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(2, 7), ()], ids=str)
def test_wrong_input_size(affine: bool, shape: tuple[int, ...]) -> None:
    module = leeboard.nn.RMSNorm(8, elementwise_affine=affine)
    with pytest.raises(ValueError, match=re.escape(f"x: got shape {shape}, expected [..., 8]")):
        module(torch.zeros(shape))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_on_a_gpu_widens_as_torch_does(dtype: torch.dtype) -> None:
    x = wild(4, 64, dtype=dtype).cuda()
    theirs, ours = nn.RMSNorm(64).cuda(), leeboard.nn.RMSNorm(64, None).cuda()
    with torch.autocast("cuda", dtype):
        assert torch.equal(ours(x), theirs(x))
        assert ours(x).dtype == theirs(x).dtype
