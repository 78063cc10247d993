"""A whole draft in one call: checks, dispatch and fake tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from leeboard import _C, reference
from leeboard.ops import _check
from leeboard.ops._library import (
    check_out,
    choose,
    define,
    kernels,
    takes_reference,
)
from leeboard.ops._state import direct_level, state, values_visible
from leeboard.ops._weights import check_weight, from_arguments, to_arguments
from leeboard.reference import Draft, DrafterWeights, Weight
from leeboard.reference._drafter import MATRICES, NORMS

# What the kernels are told where there is no window.
_NO_WINDOW = -1
# Fields of the weights in the order of the registered op: those that are plain tensors.
_TABLES = ("embedding", *NORMS, "cos", "sin")
# The most children of a node.
_MOST = 64


def draft_chain(
    weights: DrafterWeights,
    state: Tensor,
    token: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    steps: int,
    *,
    topk: int = 1,
    nodes: int | None = None,
    out: Draft | None = None,
) -> Draft:
    """Drafts a chain of `steps` tokens, or a tree of that depth, with an EAGLE-3 decoder layer.

    Step 1 takes (state, token) at rotary position lengths[b]; its `topk` best tokens are the first
    level. Every further step runs the `topk` best nodes of the level before, by the log-probability
    of their paths, and scores `topk` children of each; the `nodes` best of all are returned, in the
    order in which they arose. A row sees the cached rows (within the window, or among the sinks),
    its ancestors and itself. Chain: Li et al., 2025, arXiv:2503.01840; tree: Li et al., 2024,
    arXiv:2406.16858; post-norm feedback: arXiv:2605.09992.

    Sums are float32 (float64 for float64 inputs) and nothing is rounded between the steps, but the
    rows' own keys and values, to the caches' dtype. On the CPU all steps run in one parallel region
    without Python in between and with one workspace; on a GPU they are one CUDA graph.

    Args:
        weights: See `DrafterWeights`. Matrices in the dtype of `state`, in bfloat16, or quantised.
        state: [B, H], finite; float32, bfloat16, float16 (float64 by the reference). The fused
            target states, or what an earlier step fed back.
        token: int64 [B], the token after the state's position, in the target's vocabulary.
        k_cache: [B, Hkv, C, D] of state's dtype, rotated keys. Only read; so is `v_cache`. What
            lies behind lengths[b] is not read.
        v_cache: [B, Hkv, C, D] of state's dtype.
        lengths: int64 [B], rows of the caches in use, 0 to C; lengths[b] + steps is at most the
            rows of the rotary table.
        steps: Depth, at least 1.
        topk: Children of a node, 1 (a chain) to 64.
        nodes: Nodes to keep, steps * topk by default; at most topk + (steps - 1) * topk^2.
        out: A `Draft` (or tuple) of tensors to write and return.

    Returns:
        A `Draft`: tokens, parents, scores, states. Inference only. Same inputs give bit-identical
        results whatever the thread count, and a sequence's draft does not depend on the others.

    Raises:
        TypeError, ValueError: For an argument that does not fit; the message names it. Values
            (lengths, tokens, d2t, finiteness of `state`) are checked on CPU tensors, before
            anything is computed; on other devices they are the caller's promise.
        RuntimeError: If an input requires grad while grad mode is on, or a forced backend cannot
            run.
    """
    if not isinstance(weights, DrafterWeights):
        raise TypeError(f"weights: expected DrafterWeights, got {type(weights).__name__}")
    candidates = _check_counts(steps, topk, nodes)
    count = steps * topk if nodes is None else nodes
    if nodes is None:
        count = min(count, candidates)
    arguments = _arguments(weights, state, token, k_cache, v_cache, lengths, steps, topk, count)
    if out is None:
        drafted = _direct(arguments)
        if drafted is not None:
            return drafted
    _check_call(weights, state, token, k_cache, v_cache, lengths, steps, topk)
    if out is not None:
        _check_out(out, arguments)
    _check_values(weights, state, token, k_cache, lengths, steps)
    if out is None and takes_reference("draft_chain"):
        return reference.draft_chain(
            weights, state, token, k_cache, v_cache, lengths, steps, topk=topk, nodes=count
        )
    made = torch.ops.leeboard.draft_chain(*arguments)
    if out is None:
        return Draft(*made)
    return Draft(*(given.copy_(fresh) for given, fresh in zip(out, made, strict=True)))


def _arguments(
    weights: DrafterWeights,
    state: Tensor,
    token: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    steps: int,
    topk: int,
    nodes: int,
) -> tuple[Any, ...]:
    """The call in the words of the registered op."""
    w = weights
    tables = [getattr(w, name) for name in _TABLES]
    matrices, formats = to_arguments([getattr(w, name) for name in MATRICES])
    window = _NO_WINDOW if w.window is None else w.window
    return (
        state,
        token,
        k_cache,
        v_cache,
        lengths,
        tables,
        matrices,
        ",".join(formats),
        w.d2t,
        steps,
        topk,
        nodes,
        float(w.eps),
        w.norm_output,
        w.norm_before_residual,
        window,
        w.sinks,
    )


def _weights(arguments: tuple[Any, ...]) -> DrafterWeights:
    """The weights of a call of the registered op."""
    tables, matrices, formats, d2t = arguments[5:9]
    eps, norm_output, norm_before_residual, window, sinks = arguments[12:]
    names = formats.split(",")
    hidden, queries = tables[0].shape[1], matrices[0].shape[0]
    # A quantised matrix is two tensors.
    gate = sum(1 if name == "plain" else 2 for name in names[: MATRICES.index("gate")])
    inner = matrices[gate].shape[0]
    columns = [2 * hidden] * 3 + [queries, hidden, hidden, inner, hidden]
    found: dict[str, Any] = dict(zip(_TABLES, tables, strict=True))
    found |= dict(zip(MATRICES, from_arguments(matrices, names, columns), strict=True))
    return DrafterWeights(
        **found,
        d2t=d2t,
        eps=eps,
        norm_output=norm_output,
        norm_before_residual=norm_before_residual,
        window=None if window == _NO_WINDOW else window,
        sinks=sinks,
    )


def _direct(arguments: tuple[Any, ...]) -> Draft | None:
    """The result without torch's dispatcher and Python's checks, or None where they are needed."""
    tables, matrices, _, d2t = arguments[5:9]
    level = direct_level(*arguments[:5], d2t, *tables, *matrices)
    if level is None or not _plain(arguments):
        return None
    outputs = _fake(*arguments)
    return Draft(*outputs) if _run_cpu(arguments, outputs, level) else None


def _plain(arguments: tuple[Any, ...]) -> bool:
    """Whether shapes can be read off without a check."""
    return all(t.dim() == n for t, n in zip(arguments[:5], (2, 1, 4, 4, 1), strict=True))


def _run_cpu(arguments: tuple[Any, ...], outputs: tuple[Tensor, ...], level: int) -> bool:
    formats, d2t = arguments[7:9]
    given = (*arguments[:7], formats.split(","), d2t, list(outputs), *arguments[9:], level)
    return _C.draft_chain_forward(*given)


def _check_counts(steps: int, topk: int, nodes: int | None) -> int:
    """Checks what the size of the draft follows from; returns how many nodes are scored."""
    _check.integer("steps", steps, 1)
    _check.integer("topk", topk, 1)
    if topk > _MOST:
        raise ValueError(f"topk: {topk} was given; expected at most {_MOST}")
    candidates = topk + (steps - 1) * topk * topk
    if nodes is not None:
        _check.integer("nodes", nodes, 1)
        if nodes > candidates:
            raise ValueError(
                f"nodes: {nodes} was given; expected at most {candidates}, the nodes that "
                f"{steps} steps of {topk} score"
            )
    return candidates


def _check_call(
    weights: DrafterWeights,
    state: Tensor,
    token: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    steps: int,
    topk: int,
) -> None:
    """Everything but values that only a look into memory tells."""
    hidden = _check.rows("state", state)
    if state.dim() != 2:
        raise ValueError(f"state: shape {list(state.shape)} was given; expected [B, H]")
    batch = state.shape[0]
    for name, t in (("token", token), ("lengths", lengths)):
        _check.integers(name, t, "state", state)
        _check.shape(name, t, (batch,), "the batch of state")
    w = weights
    for name in ("embedding", *NORMS):
        t = getattr(w, name)
        _check.companion(f"weights.{name}", t, "state", state)
        if name != "embedding":
            _check.shape(f"weights.{name}", t, (hidden,), "the width of state")
    if w.embedding.dim() != 2 or w.embedding.shape[1] != hidden or w.embedding.shape[0] == 0:
        raise ValueError(
            f"weights.embedding: shape {list(w.embedding.shape)} was given; expected [V, {hidden}] "
            "(H is the width of state)"
        )
    tables = (torch.float32,)
    for name, t in (("cos", w.cos), ("sin", w.sin)):
        _check.companion(f"weights.{name}", t, "state", state, tables)
        if t.dim() != 2 or t.shape[1] == 0:
            raise ValueError(
                f"weights.{name}: shape {list(t.shape)} was given; expected [P, D / 2]"
            )
    _check.shape("weights.sin", w.sin, w.cos.shape, "the shape of weights.cos")
    for name, t in (("k_cache", k_cache), ("v_cache", v_cache)):
        _check.companion(name, t, "state", state)
        if t.dim() != 4 or t.shape[0] != batch or t.shape[3] != w.head_dim or t.shape[1] == 0:
            raise ValueError(
                f"{name}: shape {list(t.shape)} was given; expected "
                f"[{batch}, Hkv, C, {w.head_dim}] (B of state, D of weights.cos)"
            )
    _check.shape("v_cache", v_cache, k_cache.shape, "the shape of k_cache")
    kv = k_cache.shape[1] * w.head_dim
    queries = check_weight("weights.q", w.q, state, None, 2 * hidden)
    if queries % kv:
        raise ValueError(
            f"weights.q: {queries} rows were given; expected a multiple of {kv} (Hkv of k_cache "
            "times D)"
        )
    check_weight("weights.k", w.k, state, kv, 2 * hidden)
    check_weight("weights.v", w.v, state, kv, 2 * hidden)
    check_weight("weights.o", w.o, state, hidden, queries)
    inner = check_weight("weights.gate", w.gate, state, None, hidden)
    check_weight("weights.up", w.up, state, inner, hidden)
    check_weight("weights.down", w.down, state, hidden, inner)
    vocabulary = check_weight("weights.head", w.head, state, None, hidden)
    if topk > vocabulary:
        raise ValueError(
            f"topk: {topk} was given; expected at most {vocabulary}, the rows of weights.head"
        )
    if w.d2t is not None:
        _check.integers("weights.d2t", w.d2t, "state", state)
        _check.shape("weights.d2t", w.d2t, (vocabulary,), "the rows of weights.head")
    elif vocabulary > w.embedding.shape[0]:
        raise ValueError(
            f"weights.head: {vocabulary} rows were given; expected at most "
            f"{w.embedding.shape[0]}, the rows of weights.embedding"
        )
    if w.window is not None:
        _check.integer("weights.window", w.window, 1)
    _check.integer("weights.sinks", w.sinks, 0)
    _check.epsilon(w.eps)
    _check.no_grad(
        "draft_chain",
        "is inference-only",
        state=state,
        k_cache=k_cache,
        v_cache=v_cache,
        **{f"weights.{name}": _first(getattr(w, name)) for name in (*_TABLES, *MATRICES)},
    )


def _first(weight: Weight) -> Tensor:
    return weight if isinstance(weight, Tensor) else weight.scales


def _check_values(
    weights: DrafterWeights,
    state: Tensor,
    token: Tensor,
    k_cache: Tensor,
    lengths: Tensor,
    steps: int,
) -> None:
    """What must hold before memory is read through an index; on CPU tensors."""
    if state.device.type != "cpu" or not values_visible(state, token, lengths, weights.d2t):
        return
    bad = (~state.isfinite()).nonzero()
    if bad.numel():
        b, j = bad[0].tolist()
        raise ValueError(
            f"state: {state[b, j].item()} at sequence {b}, channel {j}; expected finite values"
        )
    vocabulary, rows = weights.embedding.shape[0], weights.cos.shape[0]
    for b, (t, length) in enumerate(zip(token.tolist(), lengths.tolist(), strict=True)):
        if not 0 <= t < vocabulary:
            raise ValueError(
                f"token: {t} was given for sequence {b}; expected 0 to {vocabulary - 1}, the rows "
                "of weights.embedding"
            )
        if not 0 <= length <= k_cache.shape[2]:
            raise ValueError(
                f"lengths: {length} was given for sequence {b}; expected 0 to {k_cache.shape[2]}, "
                "the rows of the caches"
            )
        if length + steps > rows:
            raise ValueError(
                f"lengths: {length} was given for sequence {b}; expected at most {rows - steps}, "
                f"for {steps} steps within the {rows} positions of the rotary table"
            )
    if weights.d2t is not None:
        target = weights.d2t + torch.arange(weights.d2t.shape[0])
        wrong = ((target < 0) | (target >= vocabulary)).nonzero()
        if wrong.numel():
            v = int(wrong[0])
            raise ValueError(
                f"weights.d2t: draft token {v} becomes {int(target[v])}; expected 0 to "
                f"{vocabulary - 1}, the rows of weights.embedding"
            )


def _check_out(out: Any, arguments: tuple[Any, ...]) -> None:
    if not isinstance(out, tuple | list):
        raise TypeError(f"out: expected a Draft, got {type(out).__name__}")
    state = arguments[0]
    shapes = [t.shape for t in _fake(*_on_meta(arguments))]
    if len(out) != len(shapes):
        raise ValueError(f"out: {len(out)} tensors given; expected {len(shapes)}")
    for i, (t, size) in enumerate(zip(out, shapes, strict=True)):
        if i < 2:
            _check.integers(f"out[{i}]", t, "state", state)
        elif i == 2:
            _check.values(f"out[{i}]", t, state)
        else:
            _check.companion(f"out[{i}]", t, "state", state)
        _check.shape(f"out[{i}]", t, size, "the shape of the result")
        _check.memory(f"out[{i}]", t)
    check_out("draft_chain", **{"out[2]": out[2], "out[3]": out[3]})


def _on_meta(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return (arguments[0].to("meta"), *arguments[1:])


def _fake(
    state: Tensor,
    token: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    tables: list[Tensor],
    matrices: list[Tensor],
    formats: str,
    d2t: Tensor | None,
    steps: int,
    topk: int,
    nodes: int,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, hidden = state.shape
    wide = torch.promote_types(state.dtype, torch.float32)
    device = state.device
    return (
        torch.empty(batch, nodes, dtype=torch.int64, device=device),
        torch.empty(batch, nodes, dtype=torch.int64, device=device),
        torch.empty(batch, nodes, dtype=wide, device=device),
        torch.empty(batch, 1 + (steps - 1) * topk, hidden, dtype=state.dtype, device=device),
    )


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    state_tensor, token, k_cache, v_cache, lengths = arguments[:5]
    steps, topk, nodes = arguments[9:12]
    weights = _weights(arguments)
    _check_values(weights, state_tensor, token, k_cache, lengths, steps)
    backend = choose("draft_chain", [state_tensor, k_cache, v_cache, weights.embedding])
    outputs = _fake(*arguments)
    if state_tensor.shape[0] == 0:
        return outputs
    if backend == "cpu" and "fp8" in arguments[7]:
        if state().backend is not None:
            raise RuntimeError(
                "leeboard.ops.draft_chain: backend 'cpu' is forced, but its kernels take no fp8 "
                "weights"
            )
        backend = "reference"
    if backend == "triton":
        kernels("draft_chain").forward(weights, *arguments[:5], steps, topk, nodes, *outputs)
    elif backend == "reference":
        rows = (token, k_cache, v_cache, lengths)
        drafted = reference.draft_chain(weights, state_tensor, *rows, steps, topk=topk, nodes=nodes)
        for given, made in zip(outputs, drafted, strict=True):
            given.copy_(made)
    elif not _run_cpu(arguments, outputs, state().level) and not _run_cpu(
        tree_map_only(Tensor, _dense, arguments), outputs, state().level
    ):
        raise RuntimeError("leeboard._C.draft_chain_forward: arguments do not fit together")
    return outputs


def _dense(t: Tensor) -> Tensor:
    return t.as_subclass(Tensor).resolve_neg().contiguous()


define(
    "draft_chain(Tensor state, Tensor token, Tensor k_cache, Tensor v_cache, Tensor lengths, "
    "Tensor[] tables, Tensor[] matrices, str formats, Tensor? d2t, int steps, int topk, "
    "int nodes, float eps, bool norm_output, bool norm_before_residual, int window, int sinks)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _fake,
    row_arguments=(),
)
