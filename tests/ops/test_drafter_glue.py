"""What is particular to drafter_glue: its parts, one rounding, token ids, outputs over inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness import assert_same
from leeboard import _C, reference
from leeboard.ops import backend, drafter_glue, rms_norm
from leeboard.ops._state import state as forced

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
backends = pytest.mark.parametrize("name", ["cpu", "reference"])
feedback = pytest.mark.parametrize("norm_output", [True, False])


def inputs(dtype: torch.dtype, *shape: int, vocabulary: int = 11) -> tuple[Tensor, ...]:
    """x, token, embedding and the three gains."""
    width = shape[-1]
    gains = (1 + 0.2 * torch.randn(3, width)).to(dtype).unbind()
    token = torch.randint(0, vocabulary, shape[:-1])
    table = torch.randn(vocabulary, width).to(dtype)
    return torch.randn(shape).to(dtype), token, table, *gains


@dtypes
@feedback
@pytest.mark.parametrize("width", [1, 17, 136, 1000])
def test_parts_are_norms(dtype: torch.dtype, norm_output: bool, width: int, isa: str) -> None:
    """Bit for bit what rms_norm gives, wherever nothing unrounded goes from one to the next."""
    x, token, table, norm, hidden, entry = inputs(dtype, 9, width)
    joined, state = drafter_glue(x, token, table, norm, hidden, entry, norm_output=norm_output)
    assert_same([joined[:, :width]], [rms_norm(table[token], entry)])
    if norm_output:
        assert_same([state], [rms_norm(x, norm)])
    else:
        assert_same([state, joined[:, width:]], [x, rms_norm(x, hidden)])


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_one_rounding(dtype: torch.dtype, isa: str) -> None:
    """The second half follows from the unrounded state: it is the exact value, rounded."""
    call = inputs(dtype, 9, 1000)
    *_, hidden, _ = call
    joined, state = drafter_glue(*call)
    exact, _ = reference.drafter_glue(*(t if t.dtype == torch.int64 else t.double() for t in call))
    right = exact[:, 1000:].to(dtype)
    assert (joined[:, 1000:] == right).float().mean() > 0.99
    assert (rms_norm(state, hidden) == right).float().mean() < 0.95


@backends
def test_a_state_beyond_its_dtype(name: str, isa: str) -> None:
    """float16 cannot hold the state; the norm of it is an ordinary number."""
    x, token, table, _, _, entry = inputs(torch.float16, 3, 8)
    x[:] = torch.tensor([1.0] + 7 * [0.0])
    norm, hidden = torch.full_like(entry, 65504.0), torch.ones_like(entry)
    with backend(name):
        joined, state = drafter_glue(x, token, table, norm, hidden, entry)
    assert state[:, 0].isinf().all()
    assert not state[:, 1:].any()
    torch.testing.assert_close(joined[:, 8:], 8**0.5 * x, rtol=1e-3, atol=0)


@dtypes
def test_norm_weight_is_not_read_without_norm_output(dtype: torch.dtype, isa: str) -> None:
    x, token, table, norm, hidden, entry = inputs(dtype, 5, 40)
    expected = drafter_glue(x, token, table, norm, hidden, entry, norm_output=False)
    nothing = torch.full_like(norm, float("nan"))
    assert_same(drafter_glue(x, token, table, nothing, hidden, entry, norm_output=False), expected)


@dtypes
def test_only_the_chosen_rows_are_read(dtype: torch.dtype, isa: str) -> None:
    x, token, table, *gains = inputs(dtype, 5, 40, vocabulary=100)
    expected = drafter_glue(x, token, table, *gains)
    unused = torch.ones(100, dtype=torch.bool)
    unused[token] = False
    table[unused] = float("nan")
    assert_same(drafter_glue(x, token, table, *gains), expected)


@pytest.mark.parametrize("vocabulary", [1, 2, 500])
def test_first_and_last_token(vocabulary: int, isa: str) -> None:
    x, token, table, *gains = inputs(torch.float32, 2, 24, vocabulary=vocabulary)
    token[:] = torch.tensor([0, vocabulary - 1])
    joined, _ = drafter_glue(x, token, table, *gains)
    assert_same([joined[:, :24]], [rms_norm(table[[0, -1]], gains[2])])


@dtypes
@feedback
def test_state_over_x(dtype: torch.dtype, norm_output: bool, isa: str) -> None:
    """What a chain does from step to step, in the memory of one state."""
    x, *others = inputs(dtype, 70, 136)
    expected = drafter_glue(x, *others, norm_output=norm_output)
    joined, address = torch.empty(70, 272, dtype=dtype), x.data_ptr()
    returned = drafter_glue(x, *others, norm_output=norm_output, out=(joined, x))
    assert returned[0] is joined
    assert returned[1] is x
    assert x.data_ptr() == address
    assert_same([joined, x], expected)


@feedback
def test_the_kernel_writes_the_state_over_x_itself(norm_output: bool, isa: str) -> None:
    x, *others = inputs(torch.bfloat16, 7, 136)
    expected = drafter_glue(x, *others, norm_output=norm_output)
    joined = torch.empty(7, 272, dtype=torch.bfloat16)
    assert _C.drafter_glue_forward(x, *others, joined, x, 1e-6, norm_output, forced().level)
    assert_same([joined, x], expected)


def test_halves_of_one_tensor_as_outputs() -> None:
    """Strided outputs that interleave in memory: results are right, whichever way they take."""
    call = inputs(torch.float32, 5, 40)
    expected = drafter_glue(*call)
    room = torch.zeros(2, 5, 100)
    out = room[0, :, 7:87], room[1, :, 3:43]
    drafter_glue(*call, out=out)
    assert_same(out, expected)
    assert not room[0, :, :7].any()
    assert not room[0, :, 87:].any()


@backends
@pytest.mark.parametrize("wrong", [-1, 11, -11, 1 << 40, -(1 << 63), (1 << 63) - 1])
@pytest.mark.parametrize("at", [0, 4, 6])
def test_no_token_outside_the_table(name: str, wrong: int, at: int) -> None:
    """The message has the id, its place and the range; nothing is written."""
    x, token, *others = inputs(torch.float32, 7, 24)
    token[at] = wrong
    out = torch.zeros(7, 48), torch.zeros(7, 24)
    message = rf"^token: {wrong} was given at \[{at}\]; expected 0 to 10$"
    with backend(name):
        with pytest.raises(ValueError, match=message):
            drafter_glue(x, token, *others)
        with pytest.raises(ValueError, match=message):
            drafter_glue(x, token, *others, out=out)
        with pytest.raises(ValueError, match=message):
            torch.ops.leeboard.drafter_glue(x, token, *others, 1e-6, True)
    assert not out[0].any()
    assert not out[1].any()


def test_the_kernel_itself_refuses_such_a_token() -> None:
    """Whoever calls it past the public function; the whole batch is looked at first."""
    x, token, *others = inputs(torch.float32, 7, 24)
    out = torch.zeros(7, 48), torch.zeros(7, 24)
    assert _C.drafter_glue_forward(x, token, *others, *out, 1e-6, True, forced().level)
    for tensor in out:
        tensor.zero_()
    for wrong in (-1, 11, -(1 << 63)):
        token[6] = wrong
        assert not _C.drafter_glue_forward(x, token, *others, *out, 1e-6, True, forced().level)
    assert not out[0].any()
    assert not out[1].any()


def test_a_compiled_function_refuses_such_a_token() -> None:
    """Tracing sees no values: the op itself looks when it runs."""
    x, token, *others = inputs(torch.float32, 7, 24)
    torch._dynamo.reset()
    compiled = torch.compile(drafter_glue, backend="aot_eager", fullgraph=True)
    assert_same(compiled(x, token, *others), drafter_glue(x, token, *others))
    token[2] = 11
    with pytest.raises(ValueError, match=r"token: 11 was given at \[2\]; expected 0 to 10"):
        compiled(x, token, *others)


def test_under_vmap_too() -> None:
    x, token, *others = inputs(torch.float32, 3, 4, 24)
    batched = torch.func.vmap(lambda a, b: drafter_glue(a, b, *others))
    assert_same(batched(x, token), drafter_glue(x, token, *others))
    token[1, 2] = -1
    with pytest.raises(ValueError, match=r"token: -1 was given"):
        batched(x, token)


@dtypes
def test_a_column_of_tokens(dtype: torch.dtype, isa: str) -> None:
    """The last tokens of [B, N] drafts, where they lie: no copy."""
    x, token, *others = inputs(dtype, 5, 40)
    drafts = torch.zeros(5, 3, dtype=torch.int64)
    drafts[:, -1] = token
    expected = drafter_glue(x, token, *others)
    assert_same(drafter_glue(x, drafts[:, -1], *others), expected)
    out = torch.empty_like(expected[0]), torch.empty_like(expected[1])
    assert _C.drafter_glue_forward(x, drafts[:, -1], *others, *out, 1e-6, True, forced().level)
    assert_same(out, expected)


def test_a_vector_has_one_token() -> None:
    x, token, *others = inputs(torch.float32, 24)
    assert token.shape == ()
    joined, state = drafter_glue(x, token, *others)
    assert joined.shape == (48,)
    assert state.shape == (24,)
    assert_same([joined[None], state[None]], drafter_glue(x[None], token[None], *others))


def test_needs_no_gradient() -> None:
    x, token, table, *gains = inputs(torch.float32, 3, 24)
    expected = drafter_glue(x, token, table, *gains)
    table = torch.nn.Parameter(table)
    with pytest.raises(RuntimeError, match=r"embedding: requires grad.*torch.no_grad\(\)"):
        drafter_glue(x, token, table, *gains)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            outputs = drafter_glue(x, token, table, *gains)
        assert_same(outputs, expected)
        assert not any(y.requires_grad for y in outputs)


def test_the_op_behind_it_has_no_gradient() -> None:
    x, *others = inputs(torch.float32, 3, 24)
    joined, _ = torch.ops.leeboard.drafter_glue(x.requires_grad_(), *others, 1e-6, True)
    with pytest.raises(RuntimeError, match="drafter_glue has no gradient"):
        joined.sum().backward()
