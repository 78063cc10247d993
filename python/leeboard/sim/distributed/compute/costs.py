"""What an op costs: floating-point operations, bytes of memory traffic, and the precision."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from leeboard.sim.distributed.compute import flops
from leeboard.sim.ops import PRECISIONS

# Namespaces whose ops move data between ranks, which the process group accounts for, or are hooks.
_ELSEWHERE = frozenset(
    (
        *("c10d", "_c10d_functional", "c10d_functional", "_c10d_functional_autograd", "symm_mem"),
        *("_dtensor", "prim", "profiler", "inductor", "streams", "debugprims"),
    )
)
# Nothing is read or written: memory is named, sized or looked at.
_FREE = frozenset(
    (
        *("_unsafe_view", "_reshape_alias", "empty", "empty_like", "empty_strided", "new_empty"),
        *("new_empty_strided", "empty_permuted", "resize_", "set_", "_resize_output_", "detach_"),
        *(
            "_local_scalar_dense",
            "item",
            "is_nonzero",
            "record_stream",
            "is_pinned",
            "is_same_size",
        ),
        *("size", "stride", "numel", "dim", "sym_size", "sym_stride", "sym_numel", "is_contiguous"),
        *("sym_storage_offset", "storage_offset", "sym_is_contiguous", "is_strides_like_format"),
        *("is_non_overlapping_and_dense", "_has_compatible_shallow_copy_type", "lift_fresh"),
        *("lift", "unsafe_split", "unsafe_chunk", "unsafe_split_with_sizes", "requires_grad_"),
        *("_assert_async", "_assert_tensor_metadata", "_functional_assert_async", "squeeze_"),
        *("unsqueeze_", "transpose_", "t_", "swapaxes_", "as_strided_", "_version", "alias"),
    )
)
# A tensor that is written without being read before.
_OVERWRITTEN = frozenset(
    (
        *("fill_", "zero_", "copy_", "uniform_", "normal_", "random_", "bernoulli_"),
        *("exponential_", "cauchy_", "geometric_", "log_normal_", "_foreach_copy_"),
        *("_foreach_zero_", "split_with_sizes_copy", "chunk_cat", "_chunk_cat", "eye_"),
    )
)
# The first argument lends its shape only.
_LIKE = frozenset(
    (
        *("zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "randint_like"),
        *("new_zeros", "new_ones", "new_full"),
    )
)
# As much is read of the first argument as the result holds.
_GATHERING = frozenset(("embedding", "index_select", "gather", "index", "take", "masked_select"))
# As much is written to the first argument as the values hold; the second column: and read.
_SCATTERING = {
    **dict.fromkeys(("index_put_", "_index_put_impl_", "index_copy_", "scatter_"), False),
    **dict.fromkeys(("index_add_", "scatter_add_", "scatter_reduce_", "index_reduce_"), True),
}
_PRECISION: dict[torch.dtype, int] = {
    torch.float64: PRECISIONS.index("float64"),
    torch.complex128: PRECISIONS.index("float64"),
    torch.float32: PRECISIONS.index("float32"),
    torch.complex64: PRECISIONS.index("float32"),
    torch.float16: PRECISIONS.index("float16"),
    torch.bfloat16: PRECISIONS.index("float16"),
    torch.int8: PRECISIONS.index("int8"),
    **{
        getattr(torch, name): PRECISIONS.index("float8")
        for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
        if hasattr(torch, name)
    },
}


@dataclass(frozen=True, eq=False)
class Rule:
    """How the cost of an op is found; the same for every call of it.

    Attributes:
        func: The op.
        free: It costs nothing.
        view: Nor does it make a tensor with memory of its own.
        composite: It is to be taken apart into ops that have costs.
        count: Its formula, or None: `per_element`.
        per_element: FLOP an element of its largest tensor.
        known: Whether its operations are known; otherwise one an element is a guess.
        dynamic: Its result's shape depends on values.
        names: Of the arguments, in order.
        defaults: Their defaults.
        written: Names of the arguments that it writes to.
    """

    func: Any
    free: bool = False
    view: bool = False
    composite: bool = False
    count: flops.Count | None = None
    per_element: int = 0
    known: bool = True
    dynamic: bool = False
    names: tuple[str, ...] = ()
    defaults: tuple[Any, ...] = ()
    written: frozenset[str] = field(default_factory=frozenset)

    @property
    def name(self) -> str:
        """As in "mm" of aten::mm.default."""
        return str(self.func._schema.name).partition("::")[2]


@dataclass(frozen=True, eq=False)
class Cost:
    """What one call costs.

    Attributes:
        flops: Floating-point operations.
        bytes: Read from memory and written to it.
        precision: Which of `PRECISIONS` it computes in.
    """

    flops: int
    bytes: int
    precision: int


@cache
def rule_of(func: Any) -> Rule:
    """The rule of an op."""
    if not isinstance(func, torch._ops.OpOverload):
        # Higher-order ops, such as flex_attention.
        return Rule(func, per_element=1, known=False)
    schema = func._schema
    written = frozenset(
        argument.name
        for argument in schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    )
    name = schema.name.partition("::")[2]
    views = schema.returns and all(value.alias_info is not None for value in schema.returns)
    free = func.namespace in _ELSEWHERE or (views and not written)
    if func.namespace == "aten" and name in _FREE:
        free = True
    if free or torch.Tag.inplace_view in func.tags:
        return Rule(func, free=True, view=bool(views) and not written)
    count = flops.FORMULAS.get(schema.name) or flops.registered(func)
    per_element, known = _per_element(func, name)
    return Rule(
        func,
        composite=count is None and name not in flops.PER_ELEMENT and func._can_decompose(),
        count=count,
        per_element=per_element,
        known=known or count is not None,
        dynamic=torch.Tag.dynamic_output_shape in func.tags,
        names=tuple(argument.name for argument in schema.arguments),
        defaults=tuple(argument.default_value for argument in schema.arguments),
        written=written,
    )


def _per_element(func: Any, name: str) -> tuple[int, bool]:
    """FLOP an element, and whether that is known."""
    if name in flops.MOVES:
        return 0, True
    if name in flops.PER_ELEMENT:
        return flops.PER_ELEMENT[name], True
    # An op that writes in place, or to `out`, is tagged as its functional twin is.
    twin = getattr(torch.ops.aten, name.rstrip("_").removeprefix("_foreach_"), None)
    tags = set(func.tags)
    for overload in twin.overloads() if twin is not None else ():
        tags |= set(getattr(twin, overload).tags)
    reduction = getattr(torch.Tag, "reduction", None)
    known = torch.Tag.pointwise in tags or reduction in tags or name in _REDUCTIONS
    return 1, known


_REDUCTIONS = frozenset(
    (
        *("sum", "mean", "amax", "amin", "max", "min", "prod", "any", "all", "argmax", "argmin"),
        *("var", "std", "var_mean", "norm", "linalg_vector_norm", "_foreach_norm", "logsumexp"),
        *("count_nonzero", "embedding_dense_backward", "index_add_", "index_add", "scatter_add_"),
        *("scatter_add", "index_add", "aminmax", "_foreach_max", "cumprod", "nansum"),
    )
)


def bound(rule: Rule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What an op was called with, by name, in the order of its schema; defaults filled in."""
    values = dict(zip(rule.names, (*args, *rule.defaults[len(args) :]), strict=True))
    values.update(kwargs)
    return values


def cost_of(rule: Rule, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Cost:
    """The cost of a call.

    Args:
        rule: Of the op.
        args: What it was called with.
        kwargs: Likewise.
        out: What it returned.
    """
    unnamed = {str(number): value for number, value in enumerate(args)}
    values = bound(rule, args, kwargs) if rule.names else unnamed | kwargs
    given = {name: list(tensors(value)) for name, value in values.items()}
    made = list(tensors(out))
    written = [tensor for name in rule.written for tensor in given[name]]
    if rule.count is not None:
        operations = rule.count(values, out)
    elif rule.per_element:
        operations = rule.per_element * _elements(rule, values, out)
    else:
        operations = 0
    precision = _precision(tensor for group in (*given.values(), made) for tensor in group)
    return Cost(operations, _traffic(rule, values, given, made, written), precision)


def _elements(rule: Rule, values: dict[str, Any], out: Any) -> int:
    """Of the largest argument or result, lists taken together."""
    groups = [*values.values(), *(out if isinstance(out, tuple) else (out,))]
    if rule.names and rule.name in _SCATTERING:
        # What is scattered, not what it is scattered over.
        groups = [*values.values()][1:]
    return max((sum(t.numel() for t in tensors(group)) for group in groups), default=0)


def _traffic(
    rule: Rule,
    values: dict[str, Any],
    given: dict[str, list[Tensor]],
    made: list[Tensor],
    written: list[Tensor],
) -> int:
    name = rule.name if rule.names else ""
    source = next(iter(given), None)
    # What is handed through is no new memory.
    old = {id(tensor) for group in given.values() for tensor in group}
    fresh = sum(memory(tensor) for tensor in made if id(tensor) not in old)
    if name == "all_gather_copy_in":
        return 2 * sum(memory(tensor) for tensor in given["all_gather_inputs"])
    if name in _SCATTERING:
        others = [t for key, group in given.items() if key != source for t in group]
        moved = values.get("values", values.get("src", values.get("source")))
        count = sum(memory(tensor) for tensor in tensors(moved)) or fresh
        if moved is None:
            # scatter_ of a number: as many as there are indices.
            count = given["index"][0].numel() * given["self"][0].element_size()
        return sum(memory(t) for t in others) + count * (1 + _SCATTERING[name])
    total = fresh + sum(memory(tensor) for tensor in written)
    seen: set[int] = set()
    for key, group in given.items():
        if key == source and name in _LIKE:
            continue
        overwritten = key in rule.written and (name in _OVERWRITTEN or _is_out(rule, key))
        for tensor in group:
            # An argument that is given twice is read once.
            if overwritten or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            share = memory(tensor)
            if key == source and name in _GATHERING:
                share = min(share, fresh)
            elif name in ("panel_ffn", "panel_ffn_backward") and key in ("up", "down", "gate"):
                share = share * flops.channels(values) // int(values["up"].shape[0])
            total += share
    return total


def _is_out(rule: Rule, name: str) -> bool:
    return any(
        argument.name == name and argument.kwarg_only for argument in rule.func._schema.arguments
    )


def memory(tensor: Tensor) -> int:
    """Bytes that a tensor's elements take, each place in memory once."""
    if tensor.layout is not torch.strided:
        return tensor.numel() * tensor.element_size()
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        if stride or not size:
            count *= int(size)
    # Windows that overlap cover no more than what is there.
    return min(count * tensor.element_size(), int(tensor.untyped_storage().nbytes()))


def tensors(value: Any) -> Iterator[Tensor]:
    """Tensors in arguments or results of an op."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


def _precision(given: Iterator[Tensor]) -> int:
    """That of the first tensor that has one; floats come before integers."""
    found = 0
    for tensor in given:
        precision = _PRECISION.get(tensor.dtype, 0)
        if precision and tensor.dtype is not torch.int8:
            return precision
        found = found or precision
    return found
