"""Compute by roofline: flops and bytes of ops against closed forms, with and without DTensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn import functional
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.flop_counter import FlopCounterMode

from compute_core import FakeRank, metered
from leeboard.sim.distributed.compute import RooflineMeter, report_of
from leeboard.sim.distributed.compute.flops import MOVES, PER_ELEMENT
from leeboard.sim.ops import PRECISIONS

FLOAT32, FLOAT16 = PRECISIONS.index("float32"), PRECISIONS.index("float16")


class Block(nn.Module):
    """A Llama block: grouped queries, SwiGLU, no biases."""

    def __init__(self, width: int, heads: int, groups: int, hidden: int, ways: int = 1) -> None:
        super().__init__()
        self.head = width // heads
        self.heads, self.groups = heads // ways, groups // ways
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, groups * self.head, bias=False)
        self.v = nn.Linear(width, groups * self.head, bias=False)
        self.o = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape

        def heads(y: Tensor, count: int) -> Tensor:
            return y.view(batch, length, count, self.head).transpose(1, 2)

        q, k, v = heads(self.q(x), self.heads), heads(self.k(x), self.groups), self.v(x)
        v = heads(v, self.groups)
        repeat = self.heads // self.groups
        k, v = (y.repeat_interleave(repeat, 1) for y in (k, v))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(batch, length, -1))
        return x + self.down(functional.silu(self.gate(x)) * self.up(x))


def products(core: FakeRank) -> int:
    """FLOP of the matrix products and attentions."""
    return sum(
        count * call.cost.flops
        for call, (count, _) in core.meter.tally.calls.items()
        if call.rule.count is not None
    )


def block_flops(tokens: int, length: int, width: int, kv: int, hidden: int, ways: int) -> int:
    """One block forward on one of `ways` devices: two FLOP a weight, and attention."""
    weights = 2 * width * width + 2 * width * kv + 3 * width * hidden
    return (2 * tokens * weights + 4 * tokens * length * width) // ways


def meters() -> RooflineMeter:
    return RooflineMeter()


def test_linear() -> None:
    """Forward and both products of the backward; weights, inputs and outputs once each."""
    layer, x = nn.Linear(512, 1024), torch.randn(8, 512, requires_grad=True)
    rank = metered(RooflineMeter(), lambda: layer(x))
    work = 2 * 8 * 512 * 1024
    assert rank.computed == [(work, 4 * (8 * 512 + 512 * 1024 + 1024 + 8 * 1024), FLOAT32)]
    out = layer(x)
    ones = torch.ones(8, 1024)
    rank = metered(RooflineMeter(), lambda: out.backward(ones))
    assert products(rank) == 2 * work
    assert [flops for flops, _, _ in rank.computed] == [work, work, 8 * 1024]


def test_forms_of_the_same_product() -> None:
    """mm, addmm, bmm, mv, einsum and inference mode's undecomposed linear count alike."""
    a, b, work = torch.randn(16, 32), torch.randn(32, 64), 2 * 16 * 32 * 64
    batch = torch.randn(5, 16, 32)
    cases: list[tuple[Callable[[], object], int]] = [
        (lambda: a @ b, work),
        (lambda: torch.addmm(torch.randn(64), a, b), work),
        (lambda: batch @ b, 5 * work),
        (lambda: torch.bmm(batch, batch.transpose(1, 2)), 5 * 2 * 16 * 32 * 16),
        (lambda: torch.baddbmm(torch.zeros(5, 16, 16), batch, batch.mT), 5 * 2 * 16 * 32 * 16),
        (lambda: torch.einsum("ik,kj->ij", a, b), work),
        (lambda: torch.mv(b.T, a[0][:32]), 2 * 32 * 64),
        (lambda: torch.dot(a[0], a[1]), 64),
    ]
    for run, expected in cases:
        assert products(metered(meters(), run)) == expected
    with torch.inference_mode():
        layer = nn.Linear(32, 64)
        assert products(metered(meters(), lambda: layer(a))) == work


@pytest.mark.parametrize("backward", [False, True])
def test_attention(backward: bool) -> None:
    """2 B H T S (D + E) forward, 2 B H T S (3 D + 2 E) backward; fused: scores never leave."""
    q, k, v = (torch.randn(2, 4, n, 16, requires_grad=True) for n in (8, 24, 24))
    run = functional.scaled_dot_product_attention
    pairs = 2 * 4 * 8 * 24
    rank = metered(meters(), lambda: run(q, k, v))
    assert products(rank) == 2 * pairs * 32
    assert rank.computed[0][1] == 4 * (2 * q.numel() + 2 * k.numel() + 2 * 4 * 8)
    if backward:
        out = run(q, k, v)
        rank = metered(meters(), lambda: out.backward(torch.ones_like(out)))
        assert products(rank) == 2 * pairs * 5 * 16


def test_convolution_agrees_with_torchs_counter() -> None:
    """Forward and backward, strided and grouped."""
    layer = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=2)
    x = torch.randn(2, 8, 15, 15, requires_grad=True)

    def step() -> None:
        layer(x).sum().backward()

    with FlopCounterMode(display=False) as counter:
        step()
    assert products(metered(meters(), step)) == counter.get_total_flops() > 0


@pytest.mark.parametrize("fake", [False, True])
def test_llama_block(fake: bool) -> None:
    """Forward and backward of a block: exactly as the closed form, real or fake, every time."""
    with ExitStack() as stack:
        if fake:
            stack.enter_context(FakeTensorMode())
        block, x = Block(64, 8, 2, 160), torch.randn(2, 24, 64)
        expected = block_flops(48, 24, 64, 16, 160, 1)
        for _ in range(2):
            assert products(metered(meters(), lambda: block(x))) == expected
        out = block(x.requires_grad_())
        backward = products(metered(meters(), lambda: out.sum().backward()))
        attention = 4 * 48 * 24 * 64
        assert backward == 2 * (expected - attention) + attention * 5 // 2


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    try:
        yield init_device_mesh("cpu", (4,))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("fake", [False, True])
def test_tensor_parallel_block(mesh: DeviceMesh, fake: bool) -> None:
    """A quarter of the work on each of four devices, from the first call on: what DTensor runs to
    learn shapes does not count, in the program's own fake mode neither."""
    torch.distributed.tensor.DTensor._op_dispatcher.sharding_propagator.propagate_op_sharding.cache_clear()
    plan = {name: ColwiseParallel() for name in ("q", "k", "v", "gate", "up")}
    plan |= {name: RowwiseParallel() for name in ("o", "down")}
    # Sizes that no other test has: DTensor remembers what it has propagated.
    width, hidden = (96, 224) if fake else (96, 256)
    with ExitStack() as stack:
        if fake:
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        block = Block(width, 8, 4, hidden, ways=4)
        parallelize_module(block, mesh, plan)
        x = torch.randn(2, 20, width)
        expected = block_flops(40, 20, width, width // 2, hidden, 4)
        first = products(metered(meters(), lambda: block(x)))
        again = products(metered(meters(), lambda: block(x)))
        assert first == again == expected
        x.requires_grad_()
        attention = 4 * 40 * 20 * width // 4
        for _ in range(2):
            out = block(x)
            backward = products(metered(meters(), lambda out=out: out.sum().backward()))
            assert backward == 2 * (expected - attention) + attention * 5 // 2


def test_propagation_is_put_back(mesh: DeviceMesh) -> None:
    """What hides the propagation is gone when the last mode has left."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
    from torch.distributed.tensor._sharding_prop import ShardingPropagator

    before = ShardingPropagator._propagate_tensor_meta_non_cached
    a = distribute_tensor(torch.randn(8, 12), mesh, [Shard(0)])
    b = distribute_tensor(torch.randn(12, 20), mesh, [Replicate()])
    assert products(metered(meters(), lambda: a @ b)) == 2 * 2 * 12 * 20
    assert ShardingPropagator._propagate_tensor_meta_non_cached is before


def test_bytes() -> None:
    """Read once and written once; views are free; overwriting does not read; gathers read what they
    take."""
    x, y = torch.randn(100, 10), torch.randn(100, 10)
    table, index = torch.randn(1000, 10), torch.randint(0, 1000, (7,))
    some, place = torch.ones(7, 10), torch.tensor([4])
    cache, row = torch.zeros(2, 50, 8), torch.randn(2, 1, 8)
    flags = torch.zeros(100, 10, dtype=torch.bool)
    size = 4000
    cases: list[tuple[Callable[[], object], list[tuple[int, int]]]] = [
        (lambda: x + y, [(1000, 3 * size)]),
        (lambda: x * x, [(1000, 2 * size)]),
        (lambda: x.add_(y), [(1000, 3 * size)]),
        (lambda: torch.add(x, y, out=y), [(1000, 3 * size)]),
        (lambda: x.copy_(y), [(0, 2 * size)]),
        (lambda: x.zero_(), [(0, size)]),
        (lambda: torch.zeros(1000), [(0, size)]),
        (lambda: torch.zeros_like(x), [(0, size)]),
        (lambda: x.view(10, 100).t()[2:5].unsqueeze(0).expand(4, 3, 10).detach(), []),
        (lambda: x.split(10, 1)[0].chunk(2)[0].unbind(0)[0].squeeze(0), []),
        (lambda: torch.empty(5, 5), []),
        (lambda: x[0].sum(), [(10, 44)]),
        (lambda: x + y[:1], [(1000, 2 * size + 40)]),
        (lambda: y[:, :1].expand(100, 10) + 1, [(1000, 400 + size)]),
        (lambda: functional.embedding(index, table), [(0, 2 * 280 + 56)]),
        (lambda: table[index], [(0, 2 * 280 + 56)]),
        (lambda: table.index_select(0, index), [(0, 2 * 280 + 56)]),
        (lambda: table.index_add_(0, index, some), [(70, 56 + 3 * 280)]),
        (lambda: cache[:, 3:4].copy_(row), [(0, 128)]),
        (lambda: cache.index_copy_(1, place, row), [(0, 8 + 128)]),
        (lambda: torch.cat([x, y]), [(0, 4 * size)]),
        (lambda: x.to(torch.float16), [(0, size * 3 // 2)]),
        (lambda: torch.where(flags, x, y), [(0, 3 * size + 1000)]),
        (lambda: functional.softmax(x, 1), [(5000, 2 * size)]),
        (lambda: torch._foreach_add([x, y], 1.0), [(2000, 4 * size)]),
        (lambda: x.sum().item(), [(1000, size + 4)]),
    ]
    for number, (run, expected) in enumerate(cases):
        rank = metered(meters(), run)
        assert [(flops, size) for flops, size, _ in rank.computed] == expected, number


def test_precisions() -> None:
    """That of the inputs; what has no floats takes the device's own peak."""
    for dtype, name in (
        (torch.float64, "float64"),
        (torch.float32, "float32"),
        (torch.bfloat16, "float16"),
        (torch.float16, "float16"),
        (torch.int64, "any"),
    ):
        x = torch.ones(4, 4, dtype=dtype)
        rank = metered(meters(), lambda x=x: x + x)
        assert rank.computed[0][2] == PRECISIONS.index(name)


def test_only_the_programs_own_ops() -> None:
    """Between flush and resume the simulator works: its copies cost nothing."""
    meter, rank, x = RooflineMeter(), FakeRank(), torch.ones(10)
    with ExitStack() as stack:
        for mode in meter.modes():
            stack.enter_context(mode)
        x + 1
        meter.resume(rank)
        x + 1
        meter.flush(rank)
        x.clone()
        meter.resume(rank)
        x + 1
        meter.flush(rank)
        meter.flush(rank)
    assert rank.computed == [(10, 80, FLOAT32)] * 2


def test_meta_tensors_count_on_request() -> None:
    """Building a model on the meta device takes no time; simulating on it does."""
    x = torch.ones(10, 10, device="meta")
    assert metered(RooflineMeter(), lambda: x @ x).computed == []
    assert products(metered(RooflineMeter(meta=True), lambda: x @ x)) == 2000


def test_leeboards_own_ops() -> None:
    """Products of the fused ops: two FLOP a weight and row, and weights read once."""
    from leeboard import ops
    from leeboard.reference import FeedForwardWeights

    x, gamma = torch.randn(3, 64), torch.ones(64)
    gate, up, head = (torch.randn(n, 64) for n in (160, 160, 500))
    down = torch.randn(64, 160)
    panels = torch.tensor([0, 3], dtype=torch.int32)
    wide = torch.randn(64, 3 * 64)
    steps = torch.randn(2, 3, 64, requires_grad=True)
    ones = torch.ones(2, 3)
    q = torch.randn(1, 2, 8, 16)
    cases: list[tuple[Callable[[], object], int]] = [
        (lambda: ops.qlinear(x, up), 2 * 3 * 64 * 160),
        (lambda: ops.linear_argmax(x, head), 2 * 3 * 64 * 500),
        (lambda: ops.linear_topk(x, head, 4), 2 * 3 * 64 * 500),
        (lambda: ops.swiglu_linear(x, gate, up, down), 2 * 3 * 64 * 480),
        (lambda: ops.panel_linear(x, up, panels), 2 * 3 * 64 * 32),
        (lambda: ops.panel_ffn(x, FeedForwardWeights(up, down), panels), 2 * 2 * 3 * 64 * 32),
        (lambda: ops.panel_ffn(x, FeedForwardWeights(up, down)), 2 * 2 * 3 * 64 * 160),
        (lambda: ops.aux_norm_linear([x] * 3, [gamma] * 3, wide), (2 * 3 * 64 + 4 * 3) * 192),
        # Of 8 rows 36 pairs and two own keys each.
        (lambda: ops.ttt_attention(q, [q] * 3, [q] * 3), 4 * 2 * 16 * (36 + 16)),
        # The teacher's logits, those of two steps, and the gradient in these.
        (lambda: ops.ttt_loss(steps, head, x, head, ones), 2 * 500 * (3 + 2 * 6) * 64),
    ]
    for number, (run, expected) in enumerate(cases):
        rank = metered(meters(), run)
        assert products(rank) == expected, number
        assert not report_of("roofline", [rank.meter]).unknown
    (norm,) = metered(meters(), lambda: ops.rms_norm(x, gamma)).computed
    assert norm == (4 * x.numel(), 4 * (2 * x.numel() + 64), FLOAT32)


def test_unknown_ops_are_named() -> None:
    """An op without a formula is counted as traffic, and said to be."""
    x = torch.eye(6)
    rank = metered(meters(), lambda: torch.linalg.svd(x))
    report = report_of("roofline", [rank.meter])
    assert [op.name for op in report.unknown] == ["aten._linalg_svd.default"]
    assert "without a formula, taken for memory traffic: aten._linalg_svd.default (1)" in str(
        report
    )


def test_tables_name_ops_that_there_are() -> None:
    """A name that torch does not have would never be found."""
    import leeboard.ops

    spaces = (torch.ops.aten, torch.ops.leeboard, torch.ops.fsdp)
    assert leeboard.ops.rms_norm
    for name in PER_ELEMENT:
        assert any(hasattr(space, name) for space in spaces), name
    assert MOVES.isdisjoint(PER_ELEMENT)
