"""What a benchmark declares, and how a declared case becomes checked calls.

A file bench/ops/bench_<op>.py holds one `Subject`: its cases, its inputs and the idiom that a user
of plain PyTorch would write. Variants, expected values, checks and limits follow from it here, for
every op alike.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch._functorch.config as functorch_config
from torch import Tensor
from torch.utils import _pytree as pytree

from leeboard.ops.registry import OPS

# A backward walks a graph that is kept; training is a forward and a backward.
Direction = Literal["forward", "backward", "training"]
# leeboard, leeboard-out, eager, compile, reference, or what a subject calls its own rivals.
Variant = str
Call = Callable[[], Any]

# The kernels' contract allows twice the reference's own error. Peers are only held to compute the
# same thing: torch.compile adds thousands of rows one after another, which alone costs them tens of
# times the error of a pairwise sum.
OWN_BUDGET, PEER_BUDGET = 2.0, 64.0


@dataclass(frozen=True)
class Aim:
    """What a case should reach.

    Attributes:
        seconds: A time.
        share: A share of the limit.
        compiled: The compiled peer's time.
        ratios: How many times as long each of these peers should take; "best" is the fastest.
        overhead: How many times its share of the dense arithmetic, in time of the own dense call,
            it may take.
    """

    seconds: float | None = None
    share: float | None = None
    compiled: bool = False
    ratios: Mapping[str, float] = field(default_factory=dict)
    overhead: float | None = None


@dataclass(frozen=True)
class Case:
    """One shape, dtype and direction of an op, with what it must at least move and compute.

    Attributes:
        shape: Sizes by letter, in the order in which they are shown.
        read: Bytes that must be read at least once.
        written: Bytes that must be written.
        flops: Operations of its arithmetic.
        streams: (arrays read, arrays written) of the read/write mix that gives the limit.
        quick: Whether `--quick` measures it.
        label: What sets it apart from other cases of its sizes, a word.
        products: Whether its arithmetic is products of `dtype` that are summed in float32, which
            some processors do faster for bfloat16. Otherwise it is float32.
        dense_flops: Operations of the call that leaves nothing out, where that is another one.
        memory: Whether its memory is measured; where no case of an op says so, that of the largest.
    """

    op: str
    shape: Mapping[str, int]
    dtype: torch.dtype
    direction: Direction
    read: int
    written: int
    flops: int
    streams: tuple[int, int]
    aim: Aim | None = None
    quick: bool = False
    label: str = ""
    products: bool = False
    dense_flops: int | None = None
    memory: bool = False

    @property
    def sizes(self) -> str:
        sizes = (f"{letter}{size}" for letter, size in self.shape.items())
        return "-".join([self.label, *sizes] if self.label else sizes)

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def id(self) -> str:
        return f"{self.sizes}-{self.dtype_name}-{self.direction}"

    @property
    def moved(self) -> int:
        return self.read + self.written


@dataclass(frozen=True)
class Inputs:
    """Arguments of one call; tensors may sit in lists.

    `constants` are the positions, among the floating-point tensors, of those without a gradient.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    constants: Collection[int] = ()

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        args, kwargs = pytree.tree_map_only(Tensor, change, (self.args, dict(self.kwargs)))
        return Inputs(args, kwargs, self.constants)

    def learned(self) -> list[Tensor]:
        """The tensors that have a gradient."""
        return [t for i, t in enumerate(self.floats()) if i not in self.constants]

    def floats(self) -> list[Tensor]:
        leaves = pytree.tree_leaves((self.args, dict(self.kwargs)))
        return [t for t in leaves if isinstance(t, Tensor) and t.is_floating_point()]

    def nbytes(self) -> int:
        leaves = pytree.tree_leaves((self.args, dict(self.kwargs)))
        return sum(t.nbytes for t in leaves if isinstance(t, Tensor))


Check = Callable[["Prepared", Variant, Any], None]
# Makes the function that a rival calls with the op's arguments; what it prepares is not timed.
Peer = Callable[["Prepared"], Callable[..., Any]]


class NotOfferedError(RuntimeError):
    """A peer does not do what a case asks; its message says what it answered."""


def _two_rows(case: Case) -> Case:
    return replace(case, shape={**case.shape, "N": 2})


@dataclass(frozen=True)
class Subject:
    """All that is special about one op's benchmark.

    Attributes:
        inputs: Builds the arguments of a case on a device.
        eager: The best idiom in plain PyTorch, taking the same arguments.
        check: Raises unless a result of a variant is right; by default, against the reference.
        plain: What the idiom is given instead, where the op's own arguments mean nothing to it.
        peers: Rivals beside the two that every op has, by name. Names that begin with "leeboard" are
            the op itself, asked otherwise.
        choose: Which variants a case is measured in; by default the op and the two rivals.
        warm: The small case that readies a process before memory is measured.
        gpu: The cases on a GPU, where those of the CPU are too small.
    """

    op: str
    cases: Sequence[Case]
    inputs: Callable[[Case, torch.device], Inputs]
    eager: Callable[..., Any]
    check: Check | None = None
    plain: Callable[[Inputs], Inputs] | None = None
    peers: Mapping[str, Peer] = field(default_factory=dict)
    choose: Callable[[Case], Sequence[Variant]] | None = None
    warm: Callable[[Case], Case] = _two_rows
    gpu: Sequence[Case] | None = None


def tensors_of(result: Any) -> list[Tensor]:
    """The tensors of a result, in order."""
    return [t for t in pytree.tree_leaves(result) if isinstance(t, Tensor)]


def differentiable(result: Any) -> list[Tensor]:
    """The tensors of a result that a gradient comes back from, in order."""
    return [t for t in tensors_of(result) if t.requires_grad]


def _double(t: Tensor) -> Tensor:
    return t.detach().double() if t.is_floating_point() else t


class Prepared:
    """A case with its inputs, ready to be called and checked."""

    def __init__(self, subject: Subject, case: Case, device: str = "cpu") -> None:
        torch.manual_seed(0)
        self.subject, self.case = subject, case
        self.spec = OPS[subject.op]
        self.inputs = subject.inputs(case, torch.device(device))
        backward = case.direction != "forward"
        for t in self.inputs.learned():
            # A weight is a parameter in every use; activations only carry gradients in training.
            t.requires_grad_(backward or isinstance(t, torch.nn.Parameter))
        # A subject's own check keeps here what is the same for every variant.
        self.kept: dict[str, Any] = {}
        self.grads_out: list[Tensor] = []
        if backward:
            shapes = self.inputs.map(
                lambda t: t.detach().to("meta").requires_grad_(t.requires_grad)
            )
            outputs = differentiable(self.spec.reference(*shapes.args, **shapes.kwargs))
            self.grads_out = [torch.randn_like(t, device=device) for t in outputs]

    def function(self, variant: Variant) -> Callable[..., Any]:
        """The function that a variant calls."""
        if variant in ("leeboard", "leeboard-out"):
            return self.spec.function
        if variant == "reference":
            return self.spec.reference
        if variant in self.subject.peers:
            return self.subject.peers[variant](self)
        if variant == "eager":
            return self.subject.eager
        torch._dynamo.reset()
        return torch.compile(self.subject.eager, fullgraph=True, dynamic=False)

    def call(self, variant: Variant) -> Call:
        """A call without arguments that runs a variant once and returns its result.

        A backward call leaves the graph of one forward in place and walks it again each time.
        """
        function = self.function(variant)
        inputs = self.inputs
        if variant in ("eager", "compile") and self.subject.plain is not None:
            inputs = self.subject.plain(inputs)
        args, kwargs = inputs.args, dict(inputs.kwargs)
        if variant == "leeboard-out":
            made = function(*args, **kwargs)
            kwargs["out"] = pytree.tree_map_only(Tensor, torch.empty_like, made)
        if self.case.direction == "forward":
            return functools.partial(function, *args, **kwargs)
        if self.case.direction == "training":

            def train() -> tuple[Tensor, ...]:
                outputs = differentiable(function(*args, **kwargs))
                return torch.autograd.grad(outputs, self.inputs.learned(), self.grads_out)

            return train
        # Compiled backwards would otherwise reuse saved tensors as scratch and allow one walk only.
        with functorch_config.patch(donated_buffer=False):
            outputs = differentiable(function(*args, **kwargs))
            run = functools.partial(
                torch.autograd.grad,
                outputs,
                self.inputs.learned(),
                self.grads_out,
                retain_graph=True,
            )
            run()
        return run

    def reference_result(self, inputs: Inputs, grads_out: list[Tensor]) -> list[Tensor]:
        if self.case.direction == "forward":
            with torch.no_grad():
                return tensors_of(self.spec.reference(*inputs.args, **inputs.kwargs))
        with torch.enable_grad():
            fresh = inputs.map(Tensor.detach)
            for t in fresh.learned():
                t.requires_grad_()
            outputs = differentiable(self.spec.reference(*fresh.args, **fresh.kwargs))
            return list(torch.autograd.grad(outputs, fresh.learned(), grads_out))

    @functools.cached_property
    def budget(self) -> list[tuple[Tensor, float]]:
        """(float64 result, the reference's own largest error in the case's dtype) per output."""
        exact = self.reference_result(
            self.inputs.map(_double), [g.double() for g in self.grads_out]
        )
        rounded = self.reference_result(self.inputs, self.grads_out)
        return [
            (e, float((r.double() - e).abs().max())) for e, r in zip(exact, rounded, strict=True)
        ]

    def check(self, variant: Variant, result: Any) -> None:
        """Raises AssertionError unless `result` is what the reference says, within the budget."""
        if self.subject.check is not None:
            self.subject.check(self, variant, result)
        else:
            self.check_all(variant, result)

    def check_all(self, variant: Variant, result: Any) -> None:
        """The check of ops without their own: every output, against the whole reference."""
        actual = tensors_of(result)
        assert len(actual) == len(self.budget), f"{len(actual)} outputs, not {len(self.budget)}"
        for index, (got, (exact, own)) in enumerate(zip(actual, self.budget, strict=True)):
            assert got.shape == exact.shape, f"output {index}: {got.shape}, not {exact.shape}"
            assert got.dtype == self.case.dtype, f"output {index}: dtype {got.dtype}"
            within(variant, got, exact, own, f"output {index}")


def within(variant: Variant, got: Tensor, exact: Tensor, own: float, what: str) -> None:
    """Raises AssertionError if `got` is further from `exact` than the variant may be.

    Args:
        variant: Who computed it.
        exact: In float64.
        own: The reference's own largest error in the dtype of `got`.
        what: Its name in the message.
    """
    floor = torch.finfo(got.dtype).eps * float(exact.abs().max())
    error = float((got.detach().double() - exact).abs().max())
    ours = variant == "reference" or variant.startswith("leeboard")
    allowed = (OWN_BUDGET if ours else PEER_BUDGET) * max(own, floor)
    assert error <= allowed, f"{what}: error {error:.3g}, allowed {allowed:.3g}"


def variants(subject: Subject, case: Case) -> Sequence[Variant]:
    """What is measured for a case."""
    if subject.choose is not None:
        return subject.choose(case)
    own: tuple[Variant, ...] = ("leeboard",)
    if case.direction == "forward":
        own = ("leeboard", "leeboard-out")
    return (*own, "eager", "compile")


def subjects() -> dict[str, Subject]:
    """The subject of every registered op.

    Raises:
        LookupError: If a registered op has no benchmark.
    """
    missing = [op for op in OPS if not _file(op).exists()]
    if missing:
        files = ", ".join(f"bench/ops/bench_{op}.py" for op in missing)
        raise LookupError(f"registered ops without a benchmark; expected {files}")
    found: dict[str, Subject] = {}
    for op in OPS:
        found[op] = importlib.import_module(f"bench.ops.bench_{op}").SUBJECT
        if found[op].op != op:
            raise LookupError(f"bench/ops/bench_{op}.py measures {found[op].op!r}, not {op!r}")
    return found


def _file(op: str) -> Path:
    return Path(__file__).parent / "ops" / f"bench_{op}.py"
