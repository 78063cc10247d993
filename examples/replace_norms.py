"""Swap the norms of a Hugging Face model for fused ones, compare, and swap back.

Run: python examples/replace_norms.py    (needs pip install "leeboard[hf]"; downloads nothing)
"""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import leeboard.nn


def main() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    tokens = torch.randint(1000, (1, 32))

    with torch.no_grad():
        before = model(tokens).logits
        report = leeboard.nn.replace(model)
        after = model(tokens).logits

    print(report)
    print(model.model.norm)
    print(f"largest difference of the logits: {(after - before).abs().max().item():.3g}")

    report.undo()
    print(f"after undo: {type(model.model.norm).__name__}")


if __name__ == "__main__":
    main()
