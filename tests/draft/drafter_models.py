"""Tiny targets and drafters for the tests of `leeboard.draft`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from leeboard.draft import DrafterConfig, Eagle3Drafter

VARIANTS: dict[str, dict[str, Any]] = {
    "post-norm": {},
    "pre-norm": {"norm_output": False, "fc_norm": False},
    "norm_output-only": {"fc_norm": False},
    "norm_before_residual": {
        "norm_output": False,
        "fc_norm": False,
        "norm_before_residual": True,
    },
    "norm_before_fc": {"fc_norm": False, "norm_before_fc": True},
}


def tiny_config(**overrides: Any) -> DrafterConfig:
    """Grouped heads, and every width different, so that no two can be confused."""
    fields: dict[str, Any] = {
        "vocab_size": 37,
        "draft_vocab_size": 37,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "target_hidden_size": 18,
        "aux_layer_ids": (1, 2, 4),
        "aux_layer_convention": "input",
        "rope_theta": 100.0,
        "max_position_embeddings": 64,
    }
    return DrafterConfig(**{**fields, **overrides})


def tiny_drafter(dtype: torch.dtype = torch.float32, **overrides: Any) -> Eagle3Drafter:
    """Random weights, gains away from one, and a spread draft vocabulary where it is smaller."""
    torch.manual_seed(1)
    drafter = Eagle3Drafter(tiny_config(**overrides))
    config = drafter.config
    with torch.no_grad():
        for name, parameter in drafter.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    if config.draft_vocab_size < config.vocab_size:
        ids = torch.randperm(config.vocab_size)[: config.draft_vocab_size].sort().values
        drafter.set_draft_vocabulary(ids)
    return drafter.to(dtype)


FAMILIES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {"sliding_window": 6}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 16}),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", {"head_dim": 16}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {"head_dim": 16, "sliding_window": 6}),
}


def make_target(family: str, seed: int = 2, **overrides: Any) -> Any:
    """A Hugging Face model with random weights, large enough for lively output."""
    transformers = pytest.importorskip("transformers")
    config_name, model_name, extra = FAMILIES[family]
    torch.manual_seed(seed)
    fields = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.4,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "tie_word_embeddings": False,
        **extra,
        **overrides,
    }
    config = getattr(transformers, config_name)(**fields)
    model = getattr(transformers, model_name)(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.uniform_(-0.3, 0.3).add_(0.0 if "gemma" in family else 1.0)
    return model
