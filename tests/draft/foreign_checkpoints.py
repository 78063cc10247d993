"""Checkpoints as others write them, restated here and not made by the code under test."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from drafter_models import make_target
from leeboard.draft import Eagle3Drafter

safetensors_torch = pytest.importorskip("safetensors.torch")

IDS = "eagle_aux_hidden_state_layer_ids"
_BITS = {
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}


def assert_same(one: Eagle3Drafter, two: Eagle3Drafter) -> None:
    """Equal configs, and tensors equal bit by bit."""
    assert one.config == two.config
    ours, theirs = one.state_dict(), two.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        other = theirs[name]
        assert tensor.dtype == other.dtype, name
        as_bits = _BITS.get(tensor.dtype)
        if as_bits is not None:
            tensor, other = tensor.view(as_bits), other.view(as_bits)
        assert torch.equal(tensor, other), name


EAGLE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLMEagle3"],
    "attention_bias": False,
    "draft_vocab_size": 20,
    "eagle_config": {IDS: [1, 2, 4], "use_aux_hidden_state": True},
    "head_dim": 10,
    "hidden_act": "silu",
    "hidden_size": 24,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 100.0,
    "target_hidden_size": 18,
    "torch_dtype": "bfloat16",
    "vocab_size": 37,
}
SPECULATORS: dict[str, Any] = {
    "architectures": ["Eagle3DraftModel"],
    "draft_vocab_size": 20,
    IDS: [1, 2, 4],
    "embed_requires_grad": False,
    "norm_before_fc": False,
    "norm_before_residual": True,
    "speculators_config": {
        "algorithm": "eagle3",
        "verifier": {"architectures": [], "name_or_path": "some/target"},
    },
    "speculators_model_type": "eagle3",
    "target_hidden_size": 18,
    "transformer_layer_config": {
        "attention_bias": False,
        "head_dim": 10,
        "hidden_act": "silu",
        "hidden_size": 24,
        "intermediate_size": 40,
        "max_position_embeddings": 64,
        "model_type": "llama",
        "num_attention_heads": 4,
        "num_hidden_layers": 1,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-05,
        "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"},
        "vocab_size": 37,
    },
}


def draft_ids() -> Tensor:
    return torch.arange(20) + torch.arange(20) // 3


def foreign_tensors(dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """The tensors of a pre-norm drafter in the EAGLE layout."""
    shapes = {
        "embed_tokens.weight": (37, 24),
        "fc.weight": (24, 54),
        "lm_head.weight": (20, 24),
        "norm.weight": (24,),
        "midlayer.hidden_norm.weight": (24,),
        "midlayer.input_layernorm.weight": (24,),
        "midlayer.post_attention_layernorm.weight": (24,),
        "midlayer.mlp.down_proj.weight": (24, 40),
        "midlayer.mlp.gate_proj.weight": (40, 24),
        "midlayer.mlp.up_proj.weight": (40, 24),
        "midlayer.self_attn.k_proj.weight": (20, 48),
        "midlayer.self_attn.o_proj.weight": (24, 40),
        "midlayer.self_attn.q_proj.weight": (40, 48),
        "midlayer.self_attn.v_proj.weight": (20, 48),
    }
    torch.manual_seed(7)
    tensors = {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}
    t2d = torch.zeros(37, dtype=torch.bool)
    t2d[draft_ids()] = True
    return {**tensors, "d2t": draft_ids() - torch.arange(20), "t2d": t2d}


def write(folder: Path, fields: Any, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    safetensors_torch.save_file(tensors, folder / "model.safetensors")
    return folder


def renamed(tensors: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {re.sub(old, new, name): tensor for name, tensor in tensors.items()}


def foreign(folder: Path, layout: str = "eagle", **changes: Any) -> Path:
    fields = {**(EAGLE if layout == "eagle" else SPECULATORS), **changes}
    tensors = foreign_tensors()
    if layout == "speculators":
        tensors = renamed(tensors, r"^midlayer\.", "layers.0.")
    return write(folder, fields, tensors)


def embedding_target(folder: Path) -> tuple[Any, Path]:
    """A target whose embedding fits the foreign checkpoint, as a model and on disk."""
    target = make_target(
        "llama", vocab_size=37, hidden_size=24, num_attention_heads=4, num_hidden_layers=8
    )
    tensors = {name: t.contiguous() for name, t in target.state_dict().items()}
    folder.mkdir()
    safetensors_torch.save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"num_hidden_layers": 8}))
    return target, folder
