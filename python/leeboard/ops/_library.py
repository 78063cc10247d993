"""Registration with torch.library and the choice of a backend inside an op."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from leeboard.ops._check import KERNEL_DTYPES, no_grad
from leeboard.ops._state import Backend, state, transform_problem, use

# The library object owns the registrations: it must live as long as the process.
LIBRARY: Any = torch.library.Library("leeboard", "FRAGMENT")  # type: ignore[no-untyped-call]


def define(
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    row_arguments: Sequence[int],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> None:
    """Registers `leeboard::<name>` for every device, with fake tensors, autograd and vmap.

    Args:
        schema: The op in torch's schema language.
        implementation: Runs it on real tensors of any device.
        fake: Describes its outputs.
        row_arguments: Positions of the arguments [..., H] (or lists of such) whose leading
            dimensions the outputs share: under vmap these take one more leading dimension.
        setup_context: What the forward keeps for `backward`.
        backward: Gradients, made of registered ops; None for an op without one.
    """
    name = schema[: schema.index("(")]
    qualified = f"leeboard::{name}"
    LIBRARY.define(schema)
    LIBRARY.impl(name, _without_autocast(implementation), "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, fake, lib=LIBRARY)
    if backward is None:
        backward, setup_context = _no_backward(name), _keep_nothing
    torch.library.register_autograd(
        qualified,
        _in_forward_state(backward),
        setup_context=_keep_state(setup_context),
        lib=LIBRARY,
    )
    torch.library.register_vmap(qualified, _vmap_rule(name, frozenset(row_arguments)), lib=LIBRARY)


def define_in_place(
    schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]
) -> None:
    """Registers `leeboard::<name>` that writes to the arguments its schema marks.

    For every device, with fake tensors; without a gradient, which the public function refuses.

    Args:
        schema: The op in torch's schema language.
        implementation: Runs it on real tensors of any device, and counts the change of what it
            writes past torch.
        fake: Describes its outputs.
    """
    name = schema[: schema.index("(")]
    LIBRARY.define(schema)
    LIBRARY.impl(name, _without_autocast(implementation), "CompositeExplicitAutograd")
    torch.library.register_fake(f"leeboard::{name}", fake, lib=LIBRARY)

    def refuse(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        raise RuntimeError(f"leeboard.ops: {name} writes to its arguments; vmap cannot batch it")

    torch.library.register_vmap(f"leeboard::{name}", refuse, lib=LIBRARY)


def _keep_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    pass


def _no_backward(name: str) -> Callable[..., Any]:
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(
            f"leeboard.ops: {name} has no gradient (gradients of gradients go through "
            "leeboard.reference only)"
        )

    return backward


def _keep_state(setup_context: Callable[..., None] | None) -> Callable[..., None]:
    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        if not torch.compiler.is_compiling():
            ctx.leeboard_state = state()
        if setup_context is not None:
            setup_context(ctx, inputs, output)

    return setup


def _in_forward_state(backward: Callable[..., Any]) -> Callable[..., Any]:
    # Autograd may run the backward on a thread that has its own context variables.
    def run(ctx: Any, *grads: Any) -> Any:
        forced = getattr(ctx, "leeboard_state", None)
        if forced is None:
            return exact(ctx, *grads)
        with use(forced):
            return exact(ctx, *grads)

    exact = _without_autocast(backward)
    return run


def _without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    # An op computes in the dtype of its arguments; autocast would change the products inside it.
    def run(*args: Any) -> Any:
        device = _first_device(args)
        if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
            return function(*args)
        with torch.amp.autocast(device, enabled=False):
            return function(*args)

    return run


def _first_device(args: Sequence[Any]) -> str:
    """Device type of the first tensor among arguments and lists of them."""
    for arg in args:
        if isinstance(arg, Tensor):
            return arg.device.type
        if isinstance(arg, list | tuple) and arg:
            return _first_device(arg)
    return "cpu"


def _vmap_rule(name: str, row_arguments: frozenset[int]) -> Callable[..., Any]:
    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        op = getattr(torch.ops.leeboard, name)
        batch = info.batch_size
        leaves, spec = pytree.tree_flatten(args)
        dims = _flat_dims(in_dims, args)
        owners = [i for i, arg in enumerate(args) for _ in pytree.tree_leaves(arg)]
        batched_rows_only = all(
            dim is None or owner in row_arguments for owner, dim in zip(owners, dims, strict=True)
        )

        def call(leaf_of: Callable[[Any, int | None, int], Any]) -> Any:
            new = [leaf_of(*each) for each in zip(leaves, dims, owners, strict=True)]
            return op(*pytree.tree_unflatten(new, spec))

        if batched_rows_only:

            def in_front(leaf: Any, dim: int | None, owner: int) -> Any:
                if owner not in row_arguments or not isinstance(leaf, Tensor):
                    return leaf
                return leaf.expand(batch, *leaf.shape) if dim is None else leaf.movedim(dim, 0)

            outputs = call(in_front)
        elif batch == 0:
            # One blank sample tells the shapes.
            blank = call(
                lambda leaf, dim, _: (
                    leaf if dim is None else leaf.new_zeros(leaf.movedim(dim, 0).shape[1:])
                )
            )
            outputs = pytree.tree_map(lambda t: t.new_empty((0, *t.shape)), blank)
        else:
            # A batched weight is another op per sample: no kernel shares work between them.
            def sample(b: int) -> Any:
                return call(lambda leaf, dim, _: leaf if dim is None else leaf.select(dim, b))

            samples = [sample(b) for b in range(batch)]
            outputs = pytree.tree_map(lambda *parts: torch.stack(parts), *samples)
        return outputs, pytree.tree_map(lambda _: 0, outputs)

    return rule


def _flat_dims(in_dims: tuple[Any, ...], args: tuple[Any, ...]) -> list[int | None]:
    flat: list[int | None] = []
    for dim, arg in zip(in_dims, args, strict=True):
        count = len(pytree.tree_leaves(arg))
        flat.extend(dim if isinstance(dim, list | tuple) else [dim] * count)
    return flat


def triton_problem(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on `device`, or None when they can."""
    if importlib.util.find_spec("triton") is None:
        return 'triton is not installed (pip install "leeboard[triton]")'
    if device.type == "cuda":
        return None
    if device.type == "cpu":
        if os.environ.get("TRITON_INTERPRET") == "1":
            return None
        return "on CPU tensors Triton runs only in its interpreter (set TRITON_INTERPRET=1)"
    return f"there is no Triton backend for device {device}"


def kernel_problem(
    name: Backend, tensors: Sequence[Tensor], taken: Sequence[torch.dtype] = KERNEL_DTYPES
) -> str | None:
    """Why `name` cannot take these tensors, or None when it can."""
    if name == "reference":
        return None
    first = tensors[0]
    dtypes = {t.dtype for t in tensors}
    if len(dtypes) > 1:
        return f"the {name} kernels take one dtype, got {', '.join(sorted(map(str, dtypes)))}"
    if first.dtype not in taken:
        return f"the {name} kernels take float32, bfloat16 and float16, not {first.dtype}"
    if name == "cpu":
        return None if first.device.type == "cpu" else f"the tensors are on {first.device}"
    return triton_problem(first.device)


def choose(
    op: str,
    tensors: Sequence[Tensor],
    dtypes: Sequence[torch.dtype] = KERNEL_DTYPES,
    refusals: Mapping[Backend, str] | None = None,
) -> Backend:
    """The backend for a call: the forced one, or the first that takes the tensors.

    `refusals` says why a backend does not take the call whatever its tensors are.
    """

    def problem_of(name: Backend) -> str | None:
        return kernel_problem(name, tensors, dtypes) or (refusals or {}).get(name)

    forced = state().backend
    if forced is not None:
        problem = problem_of(forced)
        if problem is not None:
            raise RuntimeError(f"leeboard.ops.{op}: backend {forced!r} is forced, but {problem}")
        return forced
    natural: Backend = "cpu" if tensors[0].device.type == "cpu" else "triton"
    return natural if problem_of(natural) is None else "reference"


def takes_reference(op: str) -> bool:
    """Whether a transform is in force that only the reference goes through.

    Raises:
        RuntimeError: If it is, and another backend is forced.
    """
    problem = transform_problem()
    if problem is None:
        return False
    forced = state().backend
    if forced not in (None, "reference"):
        raise RuntimeError(
            f"leeboard.ops.{op}: backend {forced!r} is forced, but {problem} needs the reference"
        )
    return True


def check_out(op: str, **tensors: Tensor | None) -> None:
    """Raises when writing to `out=` would lose a gradient or a tangent.

    Raises:
        RuntimeError: Naming the tensor, or the transform.
    """
    problem = transform_problem()
    if problem is not None:
        raise RuntimeError(f"out: {op} with out= is not differentiable, but {problem} is in force")
    no_grad(op, "with out= is not differentiable", **tensors)


def kernels(op: str) -> ModuleType:
    """The Triton kernels of an op; imports triton."""
    return importlib.import_module(f"leeboard.kernels.{op}")


def as_matrix(t: Tensor) -> Tensor:
    """[..., H] as [N, H] with unit stride along H; copies only where it must."""
    plain = t.as_subclass(Tensor).resolve_neg()
    matrix = plain[None] if t.dim() == 1 else plain.flatten(0, -2)
    return matrix if matrix.stride(-1) == 1 or matrix.shape[-1] == 1 else matrix.contiguous()


def _plain(t: Tensor) -> Tensor:
    t = t.as_subclass(Tensor).resolve_neg().contiguous()
    return t.flatten(0, -2) if t.dim() > 2 else t


def overlaps(out: Tensor, *inputs: Tensor) -> bool:
    """Whether `out` shares its storage with an input."""
    storage = out.untyped_storage().data_ptr()
    return any(t.untyped_storage().data_ptr() == storage for t in inputs)


def run_kernel(
    entry: Callable[..., bool], inputs: Sequence[Any], outputs: Sequence[Any], *options: Any
) -> None:
    """Calls a compiled kernel; where it refuses a layout, once more with contiguous copies.

    `inputs` hold tensors, lists of tensors or None; `outputs` are fresh contiguous tensors.
    """
    if entry(*inputs, *outputs, *options):
        return
    copies = pytree.tree_map_only(Tensor, _plain, list(inputs))
    views = pytree.tree_map_only(Tensor, _plain, list(outputs))
    if not entry(*copies, *views, *options):
        given = [
            f"{t.dtype} {list(t.shape)}"
            for t in pytree.tree_leaves([*inputs, *outputs])
            if isinstance(t, Tensor)
        ]
        raise RuntimeError(
            f"leeboard._C.{entry.__name__}: arguments do not fit together: "
            f"{', '.join(given)}, {options}"
        )
