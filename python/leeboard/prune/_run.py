"""The forwards of modules under a plan."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leeboard.nn._decoding import AttentionCache
from leeboard.nn.feed_forward import differs_under_autocast, under_autocast
from leeboard.ops import FeedForwardWeights, panel_ffn, panel_linear
from leeboard.ops._sparse_checks import heads_of
from leeboard.prune._mha import as_call, attend
from leeboard.prune._patches import Applied, Dense
from leeboard.prune._prepare import Entry

Find = Callable[[], "Entry | None"]


class Run(Applied):
    """A forward in place of a module's: under a plan if there is one for it, else as it was.

    Args:
        module: Whose forward it is.
        original: Its own forward.
        find: The entry of the sublayer in the plan that this thread runs.
    """

    def __init__(self, module: Any, original: Callable[..., Any], find: Find) -> None:
        self.module, self.original, self.find = module, original, find

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        entry = self.find()
        if entry is None:
            return self.original(*args, **kwargs)
        return self.under(entry, *args, **kwargs)

    def under(self, entry: Entry, *args: Any, **kwargs: Any) -> Any:
        """The forward under a plan's entry."""
        raise NotImplementedError

    def __deepcopy__(self, memo: dict[int, Any]) -> Dense:
        # A copy of the model is a model without a plan.
        return Dense(copy.deepcopy(self.module, memo), self.original.__name__)

    def __reduce__(self) -> Any:
        raise RuntimeError("model: a plan is applied to it; revert(model) before it is pickled")


class Writer(Run):
    """A linear layer that makes the columns of the units that run."""

    def __init__(self, module: Any, original: Callable[..., Any], find: Find, place: int) -> None:
        super().__init__(module, original, find)
        self.place = place

    def under(self, entry: Entry, x: Tensor) -> Tensor:
        if entry.dropped:
            if entry.sublayer.family != "linear":
                return x.new_empty((*x.shape[:-1], 0))
            # What stands between is unknown, and may need columns.
            return self.original(x)[..., : entry.panel]  # type: ignore[no-any-return]
        panels = entry.on(x).writers[self.place]
        weight, bias = self.module.weight, self.module._parameters["bias"]
        return rows_of(x, weight, bias, panels, entry.panel)


class Reader(Run):
    """The linear layer that reads the units that run."""

    def under(self, entry: Entry, x: Tensor) -> Tensor:
        tensors = entry.on(x)
        if entry.dropped:
            return nothing(x, entry)
        if tensors.factors is not None:
            x = x * tensors.factors
        weight, bias = self.module.weight, self.module._parameters["bias"]
        return columns_of(x, weight, total(bias, tensors.bias), tensors.reader, entry.panel)


class FeedForwardRun(Run):
    """`leeboard.nn.FeedForward`."""

    _held: FeedForwardWeights | None = None

    def under(
        self, entry: Entry, x: Tensor, *, gates: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        module = self.module
        if differs_under_autocast(x, module.up.weight):
            wide = x.to(module.up.weight.dtype)
            return self.under(entry, wide, gates=gates, bias=bias).to(x.dtype)
        tensors = entry.on(x)
        if entry.dropped:
            y = nothing(x, entry)
            return x + y if module.residual else y
        if tensors.gates is not None:
            gates = tensors.gates if gates is None else gates * tensors.gates
        bias = module.down.bias if bias is None else bias
        weights = self._weights(entry.panel)
        return panel_ffn(
            x,
            weights,
            tensors.reader,
            bias=total(bias, tensors.bias),
            gates=gates,
            residual=x if module.residual else None,
        )

    def _weights(self, panel: int) -> FeedForwardWeights:
        """The module's weights; made anew where a parameter is another one."""
        module, held = self.module, self._held
        parts = module._modules
        if held is not None and held.panel == panel:
            up, down, gate, norm = parts["up"], parts["down"], parts.get("gate"), parts.get("norm")
            if (
                up._parameters["weight"] is held.up
                and up._parameters["bias"] is held.up_bias
                and down._parameters["weight"] is held.down
                and down._parameters["bias"] is held.down_bias
                and (gate is None or gate._parameters["weight"] is held.gate)
                and (gate is None or gate._parameters["bias"] is held.gate_bias)
                and (norm is None or norm._parameters["weight"] is held.norm_weight)
                and (norm is None or norm._parameters.get("bias") is held.norm_bias)
                and (module.activation, module.norm_type, module.eps)
                == (held.activation, held.norm, held.eps)
            ):
                return held
        made = module.weights()
        self._held = made if made.panel == panel else replace(made, panel=panel)
        return self._held


class Fused(Run):
    """A block up, activation, down (with a gate or without) of torch or transformers.

    Args:
        module: That holds the linear layers.
        original: The block's own function, which calls them.
        find: As of `Run`.
        layers: Names of up, gate or None, and down in the module.
        activation: Name of the attribute.
        dropouts: Names of dropouts, which are no part of the fused op.
    """

    def __init__(
        self,
        module: Any,
        original: Callable[..., Any],
        find: Find,
        layers: tuple[str, str | None, str],
        activation: str,
        dropouts: Sequence[str] = (),
    ) -> None:
        super().__init__(module, original, find)
        self.layers, self.activation, self.dropouts = layers, activation, dropouts

    def under(self, entry: Entry, x: Tensor) -> Tensor:
        module = self.module
        if entry.dropped:
            return nothing(x, entry)
        act = activation_name(getattr(module, self.activation))
        names: list[str] = [name for name in self.layers if name is not None]
        linears = [module._modules[name] for name in names]
        drops = module.training and any(module._modules[name].p for name in self.dropouts)
        if act is None or drops or any(map(has_hooks, linears)) or odd(x, linears[0].weight):
            # The linear layers run under the plan, too.
            return self.original(x)  # type: ignore[no-any-return]
        up, down = linears[0], linears[-1]
        gate = linears[1] if len(linears) == 3 else None
        tensors = entry.on(x)
        weights = FeedForwardWeights(
            up=up.weight,
            down=down.weight,
            up_bias=up.bias,
            down_bias=down.bias,
            gate=None if gate is None else gate.weight,
            gate_bias=None if gate is None else gate.bias,
            activation=act,
            panel=entry.panel,
        )
        bias = total(down.bias, tensors.bias)
        return panel_ffn(x, weights, tensors.reader, bias=bias, gates=tensors.gates)


class MultiheadRun(Run):
    """`nn.MultiheadAttention` and `SparseMultiheadAttention`."""

    def under(self, entry: Entry, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        module, call = self.module, as_call(args, kwargs)
        if entry.dropped:
            return nothing(call.query, entry), None
        tensors = entry.on(call.query)
        weight, bias = module.in_proj_weight, module._parameters["in_proj_bias"]

        def project(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            if query is key and query is value:
                made = rows_of(query, weight, bias, tensors.writers[3], entry.panel)
                q, k, v = made.chunk(3, -1)
                return q, k, v
            weights = weight.chunk(3)
            biases = (None,) * 3 if bias is None else bias.chunk(3)
            parts = zip((query, key, value), weights, biases, tensors.writers, strict=False)
            q, k, v = (rows_of(x, w, b, p, entry.panel) for x, w, b, p in parts)
            return q, k, v

        return attend(module, call, project, plain=False, heads=tensors.heads)


_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


def plainly(x: Tensor, layers: Sequence[nn.Module]) -> bool:
    """Whether linear layers may be run by their weights, which takes no calls of modules."""
    if under_autocast(x):
        return False
    for layer in layers:
        weight = layer._parameters.get("weight")
        if weight is None or weight.dtype != x.dtype or has_hooks(layer):
            return False
    return True


class SparseGqaRun(Run):
    """`leeboard.nn.SparseGQA`."""

    def under(
        self,
        entry: Entry,
        x: Tensor,
        *,
        active_heads: Sequence[int] | None = None,
        cache: AttentionCache | None = None,
        need_lse: bool = False,
        **others: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        module, tensors = self.module, entry.on(x)
        module._check(x)
        shape = (x.shape[0], entry.sublayer.units, x.shape[1])
        chosen = module.active_heads if active_heads is None else active_heads
        if cache is not None:
            # It holds all key-value heads, so that plans can change between two tokens.
            kept: Sequence[int] = entry.kept
            if chosen is not None:
                wanted = set(heads_of(chosen, entry.sublayer.units))
                kept = [h for h in kept if h in wanted]
            layers = (module.q_proj, module.k_proj, module.v_proj)
            q, k, v = (module._heads(type(m).forward(m, x)) for m in layers)
            out, lse = module._attend(
                q, k, v, kept, module.sink_logits, cache=cache, need_lse=need_lse, **others
            )
            y = _read_all(out.transpose(1, 2).flatten(2), module.out_proj, entry)
        elif entry.dropped:
            y = nothing(x, entry)
            lse = torch.full(shape, -torch.inf, device=x.device)
        else:
            own = module._modules
            direct = plainly(x, [own[name] for name in _PROJECTIONS])
            if direct:
                *into, last = (
                    (own[n]._parameters["weight"], own[n]._parameters["bias"]) for n in _PROJECTIONS
                )
                q, k, v = (
                    module._heads(panel_linear(x, weight, panels, bias, panel=entry.panel))
                    for (weight, bias), panels in zip(into, tensors.writers, strict=False)
                )
            else:
                q, k, v = (module._heads(own[name](x)) for name in _PROJECTIONS[:3])
            sinks = module.sink_logits
            out, part = module._attend(
                q,
                k,
                v,
                places(entry, chosen),
                None if sinks is None else sinks[tensors.heads],
                need_lse=need_lse,
                **others,
            )
            out = out.transpose(1, 2).flatten(2)
            if direct:
                if tensors.factors is not None:
                    out = out * tensors.factors
                bias = total(last[1], tensors.bias)
                y = panel_linear(
                    out, last[0], tensors.reader, bias, panel=entry.panel, over="inputs"
                )
            else:
                y = module.out_proj(out)
            lse = part
            if need_lse:
                lse = part.new_full(shape, -torch.inf).index_copy(1, tensors.heads, part)
        return (y, lse) if need_lse else y


class CrossAttentionRun(Run):
    """`leeboard.nn.CrossAttention`."""

    def under(
        self,
        entry: Entry,
        x: Tensor,
        memory: Tensor,
        *,
        active_heads: Sequence[int] | None = None,
        **others: Any,
    ) -> Tensor:
        if entry.dropped:
            return nothing(x, entry)
        chosen = self.module.active_heads if active_heads is None else active_heads
        heads = places(entry, chosen)
        if heads is None:
            heads = tuple(range(len(entry.computed)))
        y: Tensor = self.original(x, memory, active_heads=heads, **others)
        return y


class HuggingFaceAttentionRun(Run):
    """An attention of transformers, whose linear layers run under the plan; here it is dropped."""

    def __init__(self, module: Any, original: Callable[..., Any], find: Find, inner: bool) -> None:
        super().__init__(module, original, find)
        # Whether the reader is outside of the module.
        self.inner = inner

    def under(self, entry: Entry, *args: Any, **kwargs: Any) -> Any:
        if not entry.dropped:
            return self.original(*args, **kwargs)
        x: Tensor = args[0] if args else kwargs["hidden_states"]
        fill_cache(self.module, x, kwargs)
        return (x.new_empty((*x.shape[:-1], 0)) if self.inner else nothing(x, entry)), None


def fill_cache(module: Any, x: Tensor, kwargs: Mapping[str, Any]) -> None:
    """Tells a cache of transformers of tokens whose keys are not made: it counts them."""
    names = ("cache", "past_key_values", "past_key_value")
    cache = next((kwargs[n] for n in names if kwargs.get(n) is not None), None)
    if cache is None:
        return
    cache = getattr(cache, "self_attention_cache", cache)
    none = x.new_zeros((x.shape[0], 1, x.shape[1], 1))
    cache.update(none, none, module.layer_idx)


def places(entry: Entry, chosen: Sequence[int] | None) -> tuple[int, ...] | None:
    """Where, among the heads that are computed, the kept and chosen ones are; None for all.

    Raises:
        TypeError, ValueError: For chosen heads that the module itself would refuse.
    """
    if chosen is None:
        return entry.active
    wanted = set(heads_of(chosen, entry.sublayer.units)) & set(entry.kept)
    return tuple(n for n, head in enumerate(entry.computed) if head in wanted)


def _read_all(x: Tensor, reader: nn.Linear, entry: Entry) -> Tensor:
    """The reader over all of its columns, those that are not kept being zero."""
    if entry.dropped:
        return nothing(x, entry)
    tensors = entry.on(x)
    if tensors.gates is not None:
        x = x * tensors.gates
    return F.linear(x, reader.weight, total(reader.bias, tensors.bias))


def nothing(x: Tensor, entry: Entry) -> Tensor:
    """What a dropped sublayer adds for x [..., any]: zeros, or the plan's bias."""
    bias = entry.on(x).bias
    shape = (*x.shape[:-1], entry.sublayer.out_features)
    if bias is None:
        return x.new_zeros(shape)
    return bias.expand(shape).clone()


def total(bias: Tensor | None, more: Tensor | None) -> Tensor | None:
    """The sum of two biases, in the dtype of the first."""
    if more is None:
        return bias
    return more if bias is None else bias + more.to(bias.dtype)


def rows_of(x: Tensor, weight: Tensor, bias: Tensor | None, panels: Tensor, panel: int) -> Tensor:
    """`panel_linear` over outputs; by indexing where the op does not take x."""
    if not odd(x, weight):
        return panel_linear(x, weight, panels, bias, panel=panel)
    rows, valid = _indices(panels, panel, weight.shape[0])
    out = F.linear(x, weight[rows], None if bias is None else bias[rows])
    return out * valid.to(out.dtype)


def columns_of(
    x: Tensor, weight: Tensor, bias: Tensor | None, panels: Tensor, panel: int
) -> Tensor:
    """`panel_linear` over inputs; by indexing where the op does not take x."""
    if not odd(x, weight):
        bias = None if bias is None else bias.to(weight.dtype)
        return panel_linear(x, weight, panels, bias, panel=panel, over="inputs")
    columns, valid = _indices(panels, panel, weight.shape[1])
    return F.linear(torch.where(valid, x, 0), weight[:, columns], bias)


def odd(x: Tensor, weight: Tensor) -> bool:
    """Whether x and the weight differ in dtype, or autocast would make them another."""
    return x.dtype != weight.dtype or under_autocast(x)


def _indices(panels: Tensor, panel: int, size: int) -> tuple[Tensor, Tensor]:
    listed = (panels.long()[:, None] * panel + torch.arange(panel, device=panels.device)).flatten()
    valid = (listed >= 0) & (listed < size)
    return torch.where(valid, listed, 0), valid


def has_hooks(module: nn.Module) -> bool:
    """Whether something looks at the module's calls."""
    own: Any = module
    return bool(own._forward_hooks or own._forward_pre_hooks or own._backward_hooks) or bool(
        own._backward_pre_hooks
    )


_BY_FUNCTION: dict[Any, str] = {F.gelu: "gelu", F.relu: "relu", F.silu: "silu", torch.relu: "relu"}
_BY_CLASS = {
    "ReLU": "relu",
    "SiLU": "silu",
    "SiLUActivation": "silu",
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh",
    "PytorchGELUTanh": "gelu_tanh",
    "NewGELUActivation": "gelu_tanh",
}


def activation_name(activation: object) -> str | None:
    """What `panel_ffn` calls it, or None for one that it does not know."""
    if type(activation) is nn.GELU:
        return "gelu" if activation.approximate == "none" else "gelu_tanh"
    if isinstance(activation, nn.Module):
        return _BY_CLASS.get(type(activation).__name__)
    try:
        return _BY_FUNCTION.get(activation)
    except TypeError:
        return None
