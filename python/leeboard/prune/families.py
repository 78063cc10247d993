"""Blocks that are known by their type: torch's, leeboard's, those of Hugging Face transformers.

A recogniser looks at one module and says which sublayers it holds. Nothing is traced, and no model
library is imported.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from leeboard.nn import CrossAttention, FeedForward, SparseGQA, SparseMultiheadAttention
from leeboard.nn.sparse_gqa import why_not_plain_mha
from leeboard.ops.patterns import Pattern
from leeboard.prune.units import Kind


@dataclass(frozen=True)
class Candidate:
    """A sublayer before its linear layers are looked at.

    Attributes:
        name: Of the sublayer.
        kind: "attention" or "feed_forward".
        family: How it is run.
        writers: Names of linear layers, or of one parameter that holds q, k and v.
        reader: Name of the linear layer.
        width: Columns in a unit.
        gated: Of a feed-forward block.
        pattern: Of attention, or None.
        reason: Why it cannot be pruned, or an empty string.
        modules: Names of modules whose own forward a plan goes around.
    """

    name: str
    kind: Kind
    family: str
    writers: tuple[str, ...]
    reader: str
    width: int = 1
    gated: bool = False
    pattern: Pattern | None = None
    reason: str = ""
    modules: tuple[str, ...] = ()


def at(*parts: str) -> str:
    """A dotted name; empty parts are the root."""
    return ".".join(part for part in parts if part)


def recognise(name: str, module: nn.Module) -> list[Candidate]:
    """The sublayers that a module of a known type holds, or none."""
    for recogniser in _RECOGNISERS:
        found = recogniser(name, module)
        if found:
            return found
    return []


def _leeboard(name: str, module: nn.Module) -> list[Candidate]:
    if type(module) is FeedForward:
        writers = ("up",) if module.gate is None else ("up", "gate")
        reason = "" if module.active_panels is None else "active_panels is set; set it to None"
        return [
            Candidate(
                name,
                "feed_forward",
                "feed_forward",
                tuple(at(name, w) for w in writers),
                at(name, "down"),
                gated=module.gate is not None,
                reason=reason,
                modules=(name,),
            )
        ]
    if type(module) in (SparseGQA, CrossAttention):
        block: Any = module
        family = "sparse_gqa" if type(module) is SparseGQA else "cross_attention"
        return [
            Candidate(
                name,
                "attention",
                family,
                tuple(at(name, w) for w in ("q_proj", "k_proj", "v_proj")),
                at(name, "out_proj"),
                width=block.head_dim,
                pattern=block.pattern,
                modules=(name,),
            )
        ]
    return []


def _torch(name: str, module: nn.Module) -> list[Candidate]:
    if isinstance(module, nn.MultiheadAttention):
        known = (nn.MultiheadAttention, SparseMultiheadAttention)
        reason = why_not_plain_mha(module)
        if type(module) not in known:
            reason = "subclass of MultiheadAttention; only the exact class is known"
        sparse = isinstance(module, SparseMultiheadAttention)
        return [
            Candidate(
                name,
                "attention",
                "sparse_mha" if sparse else "torch_mha",
                (at(name, "in_proj_weight"),),
                at(name, "out_proj"),
                width=module.head_dim,
                pattern=module.pattern if isinstance(module, SparseMultiheadAttention) else None,
                reason=reason,
                modules=(name,),
            )
        ]
    if type(module) in (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer):
        return [
            Candidate(
                at(name, "feed_forward"),
                "feed_forward",
                "torch_layer",
                (at(name, "linear1"),),
                at(name, "linear2"),
                modules=(name,),
            )
        ]
    return []


def _hugging_face(name: str, module: nn.Module) -> list[Candidate]:
    if not type(module).__module__.startswith("transformers."):
        return []
    children = module._modules
    for parts in (("gate_proj", "up_proj", "down_proj"), ("fc1", "fc2")):
        if all(isinstance(children.get(part), nn.Module) for part in parts):
            gated = len(parts) == 3
            act = "act_fn" if gated else "activation_fn"
            if set(children) - {*parts, act} or act not in children or module._parameters:
                continue
            writers = ("up_proj", "gate_proj") if gated else ("fc1",)
            return [
                Candidate(
                    name,
                    "feed_forward",
                    "hugging_face_mlp",
                    tuple(at(name, w) for w in writers),
                    at(name, parts[-1]),
                    gated=gated,
                    modules=(name,),
                )
            ]
    if _has(module, "intermediate", "dense") and _has(module, "output", "dense"):
        return [
            Candidate(
                at(name, "feed_forward"),
                "feed_forward",
                "hugging_face_dense",
                (at(name, "intermediate", "dense"),),
                at(name, "output", "dense"),
                modules=(name,),
            )
        ]
    for inner, outer in (("self", "output"), ("attention", "output")):
        if _has(module, inner, "query") and _has(module, outer, "dense"):
            block: Any = children[inner]
            return [
                _attention(
                    name,
                    block,
                    "bert_attention",
                    tuple(at(name, inner, w) for w in ("query", "key", "value")),
                    at(name, outer, "dense"),
                    at(name, inner),
                )
            ]
    for out in ("o_proj", "out_proj"):
        if all(part in children for part in ("q_proj", "k_proj", "v_proj", out)):
            return [
                _attention(
                    name,
                    module,
                    "hugging_face_attention",
                    tuple(at(name, w) for w in ("q_proj", "k_proj", "v_proj")),
                    at(name, out),
                    name,
                )
            ]
    return []


def _attention(
    name: str,
    block: nn.Module,
    family: str,
    writers: tuple[str, ...],
    reader: str,
    block_name: str,
) -> Candidate:
    width = next(
        (
            size
            for attribute in ("head_dim", "attention_head_size")
            if type(size := getattr(block, attribute, None)) is int
        ),
        0,
    )
    return Candidate(
        name,
        "attention",
        family,
        writers,
        reader,
        width=max(width, 1),
        reason=_why_not_attention(block, width),
        modules=(block_name,),
    )


def _why_not_attention(block: nn.Module, width: int) -> str:
    kind = type(block).__name__
    if width < 1:
        return "does not say its head_dim"
    if "cross" in kind.lower():
        return "cross-attention of transformers, which caches keys and values of its own"
    code = getattr(inspect.unwrap(type(block).forward), "__code__", None)
    if code is None or "ALL_ATTENTION_FUNCTIONS" not in code.co_names:
        return "does not ask transformers' attention interface"
    counted = _COUNTS & set(code.co_names)
    if counted:
        return f"its forward counts heads by {min(counted)}, whatever its projections make"
    if block._parameters:
        return f"has parameters of its own ({', '.join(block._parameters)})"
    if getattr(block, "leeboard_active_heads", None) is not None:
        return "leeboard_active_heads is set"
    for child_name, child in block._modules.items():
        if child is None or isinstance(child, nn.Linear):
            continue
        if any(p.shape != (width,) for p in child.parameters()):
            return f"{child_name} has weights that may belong to heads"
    return ""


# Attributes that fix the number of heads in an attention's forward.
_COUNTS = {
    "num_heads",
    "num_attention_heads",
    "num_key_value_heads",
    "all_head_size",
    "embed_dim",
}


def _has(module: nn.Module, *path: str) -> bool:
    for part in path:
        found = module._modules.get(part)
        if found is None:
            return False
        module = found
    return True


_RECOGNISERS: Sequence[Callable[[str, nn.Module], list[Candidate]]] = (
    _leeboard,
    _torch,
    _hugging_face,
)
