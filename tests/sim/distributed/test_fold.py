"""One rank of each class stands for the others: the same result, and errors where it cannot."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from leeboard.sim import Device, Platform, Trace
from leeboard.sim.distributed.launch import Launched, launch
from leeboard.sim.distributed.mesh import FoldError
from leeboard.sim.op_ranges import executions
from leeboard.sim.ops import OpKind

SCRIPT = Path(__file__).parents[3] / "examples" / "sim" / "llama70b.py"


def _platform(ranks: int) -> Platform:
    device = Device(flops="10 TFLOP/s", memory_bandwidth="1 TB/s", overhead="1 us")
    return Platform.star(ranks, bandwidth="100 Gbit/s", latency="2 us", device=device)


def _llama(fold: str | None, axes: tuple[int, int, int], *words: str, **options: Any) -> Launched:
    dp, pp, tp = axes
    mesh = ["--dp", str(dp), "--pp", str(pp), "--tp", str(tp)]
    return launch(
        str(SCRIPT),
        _platform(dp * pp * tp),
        args=["--model", "tiny", "--tokens", "48", *mesh, *words],
        compute="roofline",
        fake=True,
        fold=fold,
        **options,
    )


def _run(program: Callable[[], Any], fold: str | None, ranks: int, **options: Any) -> Launched:
    def whole() -> Any:
        dist.init_process_group("gloo")
        return program()

    return launch(whole, _platform(ranks), fold=fold, **{"compute": "none", **options})


@pytest.mark.parametrize("words", [(), ("--train", "--microbatches", "2")], ids=["eval", "train"])
def test_a_folded_run_is_that_of_all_ranks(words: tuple[str, ...]) -> None:
    words = (*words, "--layers", "2")
    whole = _llama(None, (2, 2, 2), *words)
    folded = _llama("dp=2 pp=2* tp=2", (2, 2, 2), *words)
    assert folded.trace.stats() == whole.trace.stats()
    assert folded.result.makespan == whole.result.makespan
    assert folded.result.event_hash == whole.result.event_hash
    assert folded.trace.metadata["fold"] == "dp=2 pp=2* tp=2"


def _computed(trace: Trace) -> Counter[int]:
    """How often each number of flops is computed by an op."""
    times, compute = executions(trace), trace.ops["kind"] == OpKind.COMPUTE
    found: Counter[int] = Counter()
    for flops, count in zip(trace.ops["a"][compute], times[compute], strict=True):
        found[int(flops)] += round(float(count))
    return found


@pytest.fixture(scope="module")
def trace() -> Trace:
    """Of 64 ranks, of which 8 run."""
    return _llama("dp=4 pp=4* tp=4", (4, 4, 4)).trace


def test_flops_are_exact(trace: Trace) -> None:
    """2 P T of the linear layers, each once, and nothing from DTensor's learning of shapes."""
    dp, tp, parts, time = 4, 4, 4, 48
    layers, hidden, inner, vocab, grouped = 4, 64, 128, 256, 32
    layer = [hidden * hidden] * 2 + [hidden * grouped] * 2 + [hidden * inner] * 3
    each = dp * tp * parts
    expected = Counter()
    for weights in layer:
        expected[2 * weights * time // tp] += each * layers
    expected[2 * hidden * vocab * time // tp] += each
    linear = Counter({k: n for k, n in _computed(trace).items() if k in expected})
    assert linear == expected
    weights = layers * sum(layer) + hidden * vocab
    assert sum(k * n for k, n in linear.items()) == 2 * weights * dp * parts * time
    # What is left is attention, and a few operations an element.
    rest = Counter(_computed(trace)) - linear
    attention = 4 * time * time * hidden // tp
    assert rest[attention] == each * layers
    assert max(k for k in rest if k != attention) <= 8 * time * hidden


def test_every_rank_has_its_own_partners(trace: Trace) -> None:
    for rank in (0, 17, 63):
        own = trace.ops[int(trace.begin[rank]) : int(trace.end[rank])]
        peers = set(own["peer"][own["kind"] == OpKind.SEND].tolist())
        stage = rank // 4 % 4
        around = {rank + 4 * step for step in (-1, 1) if 0 <= stage + step < 4}
        assert peers == around
    # 16 tensor-parallel groups, and all ranks.
    assert len(trace.group_offsets) - 1 == 17
    assert len(trace.ops) < 64 * 200


def ring() -> list[int]:
    """Messages around one axis, known by their sender, and from anybody."""
    me, size = dist.get_rank(), dist.get_world_size()
    sent = dist.isend(torch.ones(1000), (me + 1) % size)
    first = dist.recv(torch.empty(1000), (me - 1) % size)
    sent.wait()
    sent = dist.isend(torch.ones(1000), (me + 3) % size, tag=1)
    source = dist.recv(torch.empty(1000), tag=1)
    sent.wait()
    return [first, source]


def stages() -> list[Any]:
    """Objects between stages, collectives of stages and of replicas."""
    me = dist.get_rank()
    lines = [dist.new_group([d * 4 + p for p in range(4)]) for d in range(2)]
    replicas = [dist.new_group([p, 4 + p]) for p in range(4)]
    stage, replica = me % 4, me // 4
    received: list[Any] = [None]
    if stage:
        dist.recv_object_list(received, me - 1)
    if stage < 3:
        dist.send_object_list([{"stage": stage, "sizes": [3, 4]}], me + 1)
    gathered: list[Any] = [None] * 4
    dist.all_gather_object(gathered, stage, group=lines[replica])
    dist.broadcast(torch.ones(3), stage, group=replicas[stage])
    parts = list(torch.empty(4, 10).unbind())
    if stage == 2:
        dist.gather(torch.ones(10), parts, dst=me, group=lines[replica])
    else:
        dist.gather(torch.ones(10), dst=replica * 4 + 2, group=lines[replica])
    dist.all_to_all_single(torch.empty(8), torch.ones(8))
    return [received[0], gathered]


@pytest.mark.parametrize("witness", ["one", "all", "none"])
@pytest.mark.parametrize(("program", "fold"), [(ring, "ring=8"), (stages, "dp=2 pp=4*")])
def test_messages_and_groups(program: Callable[[], Any], fold: str, witness: str) -> None:
    whole = _run(program, None, 8)
    folded = _run(program, fold, 8, witness=witness)
    assert folded.result.event_hash == whole.result.event_hash
    ran = [rank for rank, value in enumerate(folded.values) if value is not None]
    assert (
        len(ran) == {"ring=8": 1, "dp=2 pp=4*": 4}[fold] * {"one": 2, "all": 8, "none": 1}[witness]
        if witness != "all"
        else len(ran) == 8
    )
    for rank in ran:
        assert folded.values[rank] == whole.values[rank]


def test_copies_pass_in_what_their_representative_does() -> None:
    def program() -> list[list[float]]:
        me = dist.get_rank()
        x = torch.full((2,), float(me))
        dist.all_reduce(x)
        parts = list(torch.empty(8, 1).unbind())
        dist.all_gather(parts, torch.full((1,), float(me)))
        return [x.tolist(), torch.cat(parts).tolist()]

    values = _run(program, "dp=4 pp=2*", 8, fake=False, witness="none").values
    assert values[0] == values[1] == [[4.0, 4.0], [0.0, 1.0] * 4]
    assert values[2:] == [None] * 6


@pytest.mark.parametrize(
    ("different", "text"),
    [
        (
            lambda me: dist.all_reduce(torch.ones(4 + (me > 4))),
            "rank 0 calls all_reduce of float32 [4], SUM",
        ),
        (
            lambda me: dist.send(torch.empty(9), 3) if me == 7 else None,
            "Op 0 of rank 7: send to rank 3, 36 bytes; of rank 0: the end",
        ),
        (
            lambda me: torch.ones(100, 100 + me).sum(),
            (
                "does, which was to stand for it. Op 0 of rank 7: compute of 0 flops and 42800 bytes; "
                "of rank 0: compute of 0 flops and 40000 bytes. Mark the axis along which they differ "
                "as distinct (*): dp=2* tp=4*"
            ),
        ),
    ],
)
def test_ranks_that_do_something_else_are_found(different: Callable[[int], Any], text: str) -> None:
    def program() -> None:
        me = dist.get_rank()
        if me in (0, 7):
            different(me)

    with pytest.raises(Exception, match=re.escape(text)) as raised:
        _run(program, "dp=2 tp=4", 8, compute="roofline")
    assert type(raised.value).__name__ in ("FoldError", "CollectiveMismatchError")


def test_groups_that_cannot_be_folded() -> None:
    def pairs() -> None:
        for first in (0, 2, 4, 6):
            dist.new_group([first, first + 1])

    with pytest.raises(FoldError, match=r"ranks 0, 1 cannot be folded over tp.*tp_far=2 tp=4"):
        _run(pairs, "dp=2* tp=4", 8)
    assert _run(pairs, "dp=2* tp_far=2 tp=2", 8).result.makespan >= 0

    def uneven() -> None:
        me = dist.get_rank()
        sizes = [1 + (me + k) % 2 for k in range(8)]
        dist.all_to_all_single(torch.empty(12), torch.ones(12), sizes, sizes)

    with pytest.raises(FoldError, match=r"all_to_all of uneven sizes .* as distinct"):
        _run(uneven, "a=8", 8)


@pytest.mark.parametrize(
    ("fold", "options", "text"),
    [
        ("dp=2 tp=2", {}, "'dp=2 tp=2' has 4 ranks, expected 8"),
        ("dp=2 tp", {}, "got 'tp' in 'dp=2 tp'"),
        ("dp=8", {"witness": "two"}, "witness: got 'two', expected one of one, all, none"),
    ],
)
def test_what_is_refused(fold: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(FoldError, match=re.escape(text)):
        _run(ring, fold, 8, **options)


def test_a_deadlock_names_ranks_of_the_mesh() -> None:
    def program() -> None:
        if dist.get_rank() % 4 == 2:
            dist.recv(torch.empty(3), dist.get_rank() + 1)

    with pytest.raises(Exception, match=r"rank 6 waits for a message of rank 7"):
        _run(program, "dp=2 pp=4*", 8)
