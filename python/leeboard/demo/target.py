"""The target: a small Llama, trained from scratch on the corpus."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from leeboard.demo.settings import Settings
from leeboard.demo.tokens import BOS, EOT, Documents, pack
from leeboard.demo.training import History, fit


def new_target(settings: Settings) -> Any:
    """A `LlamaForCausalLM` with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(settings.seed)
    config = LlamaConfig(
        vocab_size=settings.vocab_size,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=settings.positions,
        bos_token_id=BOS,
        eos_token_id=EOT,
        attn_implementation="sdpa",
        # The usual 0.02 suits widths in the thousands; here it delays the start.
        initializer_range=0.06,
    )
    return LlamaForCausalLM(config)


def load_target(folder: Path) -> Any:
    """The trained target, ready to decode."""
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def train_target(
    settings: Settings,
    documents: Documents,
    checkpoint: Path,
    title: str,
    device: torch.device | str = "cpu",
) -> tuple[Any, History]:
    """Train a new target on all tokens of the documents, both turns, on a device.

    Returns:
        The target and its loss per step, in nats per token.
    """
    batch, length = settings.target_batch, settings.target_row
    steps = math.ceil(settings.target_tokens / (batch * length))
    rows = torch.from_numpy(pack(documents, steps * batch, length, settings.seed)[0])
    target = new_target(settings).to(device)

    def losses(step: int) -> dict[str, Tensor]:
        return {"target": _loss(target, rows[step * batch : (step + 1) * batch].to(device))}

    history = fit(
        {"target": target},
        losses,
        steps=steps,
        lr=settings.target_lr,
        clip=1.0,
        checkpoint=checkpoint,
        title=title,
    )
    return target.eval(), history


@torch.no_grad()
def mean_loss(target: Any, documents: Documents, settings: Settings) -> float:
    """Nats per token on 64 rows of other documents."""
    rows = torch.from_numpy(pack(documents, 64, settings.target_row, settings.seed)[0])
    return sum(float(_loss(target, part.to(target.device))) for part in rows.chunk(4)) / 4


def _loss(target: Any, ids: Tensor) -> Tensor:
    logits = target(input_ids=ids, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
