"""A smaller dense model that computes what a plan computes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from leeboard.nn import CrossAttention, FeedForward, SparseGQA, SparseMultiheadAttention
from leeboard.ops.patterns import Pattern, TopU
from leeboard.prune import _compact_modules as plain_modules
from leeboard.prune._patches import Dense, Patches, quiet_torch
from leeboard.prune._prepare import Entry, prepare
from leeboard.prune._weights import linear
from leeboard.prune.discover import units as find_units
from leeboard.prune.families import at
from leeboard.prune.plan import Plan
from leeboard.prune.units import Sublayer, Units

# Where the copy hangs while it is changed: a model may be a block itself.
_ROOT = "model"

# Attributes that count heads, of attention modules of transformers.
_COUNTS = ("num_heads", "num_attention_heads")


_OURS = (FeedForward, SparseGQA, CrossAttention, SparseMultiheadAttention)


def compact(
    model: nn.Module, plan: Plan, *, plain: bool = True, units: Units | None = None
) -> nn.Module:
    """A copy of the model with smaller linear layers, which computes what the plan computes.

    Weights of what is shed are gone, scales and biases of the plan are folded in, blocks that are
    dropped give a constant. It can be compiled, trained and exported. A group of heads with one
    that is kept stays whole, with zero weights for the others. Attention of torch becomes a small
    module of the same call (its channels are more than its heads fill); blocks of transformers keep
    their class, but the config still counts the original's heads, so the model is saved by its
    state_dict or exported.

    A model with `modalities` becomes one that reads the plan's only; parts that hang by the name
    of another modality in a `ModuleDict` are left out.

    Args:
        model: The model; under a plan or not. It stays as it is.
        plan: Of the model's units.
        plain: Whether leeboard's modules become plain torch ones. Their attention then makes every
            score and hides by a mask; it takes no packed sequences, no cache and no list of heads.
        units: As `leeboard.prune.units` gave them, where blocks were declared by hand.

    Raises:
        TypeError: If `model` is no module or `plan` no plan.
        ValueError: If the plan is for another model or does not fit; or with `plain`, where a
            pattern depends on values (`TopU`).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    found = find_units(model) if units is None else units
    prepared = prepare(model, found, plan)
    root = nn.Module()
    root.training = model.training
    root.add_module(_ROOT, copy.deepcopy(model))
    for module in root.modules():
        for name in [n for n, value in vars(module).items() if isinstance(value, Dense)]:
            del vars(module)[name]
    if prepared.entries:
        quiet_torch(root, Patches())
    for name, entry in prepared.entries.items():
        _shrink(root, found[name], entry)
    if plain:
        made: dict[nn.Module, nn.Module | None] = {}
        for name, module in [*root.named_modules(remove_duplicate=False)]:
            if module not in made:
                made[module] = _plain(name, module)
            stand_in = made[module]
            if stand_in is not None:
                _put(root, name, stand_in)
    small = root.get_submodule(_ROOT)
    if getattr(model, "modalities", None) is None:
        return small
    _leave_out(small, [m for m in found.modalities if m not in plan.present])
    return plain_modules.PresentOnly(small, tuple(plan.present))


def _put(root: nn.Module, name: str, module: nn.Module) -> None:
    """Puts a module in the place of another."""
    parent, _, child = name.rpartition(".")
    module.train(root.get_submodule(name).training)
    root.get_submodule(parent)._modules[child] = module


def _shrink(root: nn.Module, s: Sublayer, entry: Entry) -> None:
    """Makes a sublayer of the copy small."""
    tensors = entry.on(torch.device("cpu"))
    reader = at(_ROOT, s.reader)
    if entry.dropped:
        _drop(root, s, tensors.bias)
        return
    # Channels are cut one by one; heads with their groups, whose number must be the same for all.
    units = entry.computed if s.kind == "attention" else entry.kept
    factors = torch.ones(s.units) if tensors.gates is None else tensors.gates[:: s.width]
    down = _narrowed(linear(root, reader), units, s.width, factors, tensors.bias)
    if s.family in ("torch_mha", "sparse_mha"):
        _shrink_mha(root, s, units, down)
        return
    _put(root, reader, down)
    for place, writer in enumerate(s.writers):
        name = at(_ROOT, writer)
        rows = _spread(units, s.width)
        if s.kind == "attention" and place:
            rows = _spread(sorted({unit // s.group for unit in units}), s.width)
        _put(root, name, _cut(linear(root, name), rows))
    if s.family in ("hugging_face_attention", "bert_attention"):
        inner = root.get_submodule(at(_ROOT, s.writers[0].rpartition(".")[0]))
        for attribute in _COUNTS:
            if attribute in vars(inner):
                setattr(inner, attribute, len(units))
    if s.family not in ("sparse_gqa", "cross_attention"):
        return
    block: Any = root.get_submodule(at(_ROOT, s.name))
    block.num_heads, block.num_kv_heads = len(units), len(units) // s.group
    if block.active_heads is not None:
        block.active_heads = [n for n, h in enumerate(units) if h in set(block.active_heads)]
    if getattr(block, "sink_logits", None) is not None:
        block.sink_logits = _parameter(block.sink_logits, block.sink_logits[list(units)])


def _shrink_mha(root: nn.Module, s: Sublayer, heads: Sequence[int], out: nn.Linear) -> None:
    mha: Any = root.get_submodule(at(_ROOT, s.name))
    rows = _spread(heads, s.width)
    bias = mha._parameters["in_proj_bias"]
    made = [
        _linear(
            _parameter(mha.in_proj_weight, mha.in_proj_weight[part * mha.embed_dim + rows]),
            None if bias is None else _parameter(bias, bias[part * mha.embed_dim + rows]),
        )
        for part in range(3)
    ]
    q, k, v = made
    index = torch.tensor(heads, device=mha.in_proj_weight.device)
    _put(root, at(_ROOT, s.name), plain_modules.CompactMultihead((q, k, v), out, index, mha))


def _drop(root: nn.Module, s: Sublayer, bias: Tensor | None) -> None:
    """Puts what gives the constant in the place of a block."""
    weight = linear(root, at(_ROOT, s.reader)).weight
    if bias is not None:
        bias = bias.to(weight.device, weight.dtype)
    constant = plain_modules.Constant(s.out_features, bias)
    block, reader = at(_ROOT, s.name), at(_ROOT, s.reader)
    if s.family == "feed_forward":
        module: Any = root.get_submodule(block)
        _put(root, block, plain_modules.Shift(bias) if module.residual else constant)
    elif s.family in ("torch_mha", "sparse_mha"):
        _put(root, block, _DroppedMultihead(constant, root.get_submodule(block)))
    elif s.family in ("sparse_gqa", "cross_attention", "hugging_face_mlp"):
        _put(root, block, constant)
    elif s.family == "hugging_face_attention":
        layer = getattr(root.get_submodule(block), "layer_idx", None)
        _put(root, block, plain_modules.DroppedAttention(constant, layer))
    elif s.family == "bert_attention":
        inner = at(_ROOT, s.writers[0].rpartition(".")[0])
        layer = getattr(root.get_submodule(inner), "layer_idx", None)
        _put(root, inner, plain_modules.DroppedAttention(plain_modules.Nothing(), layer))
        _put(root, reader, constant)
    else:
        _put(root, reader, constant)
        if s.family != "linear":
            for writer in s.writers:
                _put(root, at(_ROOT, writer), plain_modules.Nothing())
        else:
            # What stands between is unknown, and may need columns: those of one unit stay.
            for writer in s.writers:
                name = at(_ROOT, writer)
                _put(root, name, _cut(linear(root, name), _spread([0], s.width)))


class _DroppedMultihead(nn.Module):
    """In place of an `nn.MultiheadAttention` that is dropped."""

    def __init__(self, out: nn.Module, like: Any) -> None:
        super().__init__()
        self.out = out
        self.batch_first, self.num_heads = like.batch_first, like.num_heads
        self.in_proj_bias = None
        self._qkv_same_embed_dim = False

    def forward(self, query: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        """The constant, and no weights."""
        return self.out(query), None


def _spread(units: Sequence[int], width: int) -> Tensor:
    """Columns of the units, int64."""
    return (torch.tensor(units)[:, None] * width + torch.arange(width)).flatten()


def _parameter(like: Tensor, value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(), requires_grad=like.requires_grad)


def _linear(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = weight
    made._parameters["bias"] = bias
    return made


def _cut(layer: nn.Linear, rows: Tensor) -> nn.Linear:
    """The layer with these outputs only."""
    rows = rows.to(layer.weight.device)
    bias = layer._parameters["bias"]
    return _linear(
        _parameter(layer.weight, layer.weight[rows]),
        None if bias is None else _parameter(bias, bias[rows]),
    )


def _narrowed(
    layer: nn.Linear, units: Sequence[int], width: int, factors: Tensor, bias: Tensor | None
) -> nn.Linear:
    """The layer with the inputs of these units only, times their factors, and with more bias."""
    weight, own = layer.weight, layer._parameters["bias"]
    columns = _spread(units, width)
    scale = factors.repeat_interleave(width)[columns].to(weight.device)
    cut = (weight[:, columns.to(weight.device)].to(scale.dtype) * scale).to(weight.dtype)
    if bias is not None:
        more = bias.to(weight.device, weight.dtype)
        own = _parameter(weight, more if own is None else own + more)
    elif own is not None:
        own = _parameter(own, own)
    return _linear(_parameter(weight, cut), own)


def _plain(name: str, module: nn.Module) -> nn.Module | None:
    """The stand-in in plain torch for a module of leeboard's, or None."""
    owner = name.partition(".")[2] or "the model"
    chosen = "active_panels" if type(module) is FeedForward else "active_heads"
    if type(module) in _OURS and getattr(module, chosen) is not None:
        raise ValueError(
            f"plain: {owner} has {chosen}; set it to None: a plan says what runs, or use "
            "plain=False"
        )
    if type(module) is FeedForward:
        return plain_modules.PlainFeedForward(module)
    pattern: Pattern | None = getattr(module, "pattern", None)
    if isinstance(module, (SparseGQA, CrossAttention, SparseMultiheadAttention)):
        if isinstance(pattern, TopU):
            raise ValueError(
                f"plain: {owner} attends by {pattern}, which no "
                "mask says; expected plain=False, or another pattern"
            )
        if not isinstance(module, SparseMultiheadAttention):
            return plain_modules.PlainAttention(module)
        heads = range(module.num_heads)
        bias = module._parameters["in_proj_bias"]
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        q, k, v = (
            _linear(_parameter(w, w), None if b is None else _parameter(b, b))
            for w, b in zip(module.in_proj_weight.chunk(3), biases, strict=True)
        )
        index = torch.tensor(heads, device=module.in_proj_weight.device)
        return plain_modules.CompactMultihead((q, k, v), module.out_proj, index, module)
    return None


def _leave_out(model: nn.Module, missing: Sequence[str]) -> None:
    """Takes away what hangs by a missing modality's name."""
    for module in model.modules():
        if isinstance(module, nn.ModuleDict):
            for name in missing:
                if name in module._modules:
                    module._modules[name] = plain_modules.Absent(name)
