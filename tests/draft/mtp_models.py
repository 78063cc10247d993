"""Tiny targets and MTP heads for the tests of `leeboard.draft.mtp`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from leeboard.draft.mtp import MTPConfig, MTPHead

# A small vocabulary, so that even a random head is right now and then.
SIZES: dict[str, Any] = {
    "vocab_size": 11,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.4,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
MORE: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen2": {},
    "DeepseekV3": {
        "num_key_value_heads": 4,
        "moe_intermediate_size": 16,
        "n_shared_experts": 1,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 12,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        # Narrower than the keys.
        "v_head_dim": 6,
    },
    "Qwen3Next": {
        "num_hidden_layers": 4,
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
}
# Every convention with a target of its own kind.
CONVENTIONS = {"deepseek_v3": "DeepseekV3", "qwen3_next": "Qwen3Next", "mimo": "Qwen2"}


def target_config(family: str, **overrides: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, f"{family}Config"):
        pytest.skip(f"this transformers has no {family}")
    return getattr(transformers, f"{family}Config")(**{**SIZES, **MORE[family], **overrides})


def make_mtp_target(family: str, seed: int = 2, **overrides: Any) -> Any:
    """A Hugging Face model with random weights."""
    import transformers

    config = target_config(family, **overrides)
    torch.manual_seed(seed)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval().requires_grad_(False)
    roughen(model)
    return model


def make_head(convention: str, seed: int = 3, *, family: str | None = None, **more: Any) -> MTPHead:
    """Random weights, gains away from one."""
    config = target_config(family or CONVENTIONS[convention])
    torch.manual_seed(seed)
    head = MTPHead(MTPConfig.for_target(config, convention, **more))  # type: ignore[arg-type]
    roughen(head)
    return head.eval()


@torch.no_grad()
def roughen(model: torch.nn.Module) -> None:
    """Random numbers for what begins as a constant: gains, biases, a router's corrections."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and "inv_freq" not in name:
            if "norm" in name or "bias" in name:
                tensor.add_(torch.empty_like(tensor).uniform_(-0.3, 0.3))
            elif "gate.weight" in name:
                tensor.copy_(torch.randn_like(tensor))


def states(head: MTPHead, batch: int, rows: int, seed: int = 4) -> Tensor:
    """The target's states."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, rows, head.config.hidden_size, generator=generator).to(head.dtype)


def tokens(head: MTPHead, batch: int, rows: int, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, head.config.vocab_size, (batch, rows), generator=generator)
