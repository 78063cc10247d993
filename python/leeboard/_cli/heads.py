"""Sizes of published EAGLE-3 heads, as fields of a DrafterConfig."""

from __future__ import annotations

from typing import Any

_COMMON = {
    "draft_vocab_size": 32000,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "target_hidden_size": 4096,
    "aux_layer_convention": "input",
}

HEADS: dict[str, dict[str, Any]] = {
    "llama3-8b-eagle3": {
        **_COMMON,
        "vocab_size": 128256,
        "intermediate_size": 14336,
        "aux_layer_ids": (2, 16, 29),
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "max_position_embeddings": 131072,
    },
    "qwen3-8b-eagle3": {
        **_COMMON,
        "vocab_size": 151936,
        "intermediate_size": 12288,
        "aux_layer_ids": (2, 18, 33),
        "rope_theta": 1000000.0,
        "max_position_embeddings": 40960,
    },
    "small": {
        **_COMMON,
        "vocab_size": 4096,
        "draft_vocab_size": 4096,
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "target_hidden_size": 512,
        "aux_layer_ids": (1, 4, 7),
        "max_position_embeddings": 8192,
    },
}
