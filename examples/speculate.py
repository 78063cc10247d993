"""Decode a tiny random Llama with a drafter trained for a few seconds. Downloads nothing."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from leeboard.draft import DrafterConfig, Eagle3Drafter, chain_loss, observe, speculate

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=256,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=6,
    num_attention_heads=4,
    initializer_range=0.3,
)
target = LlamaForCausalLM(config).eval().requires_grad_(False)
drafter = Eagle3Drafter(DrafterConfig.for_target(config))
drafter.copy_from_target(target)

# Text to learn from: what the target itself says.
greedy = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
prompts = torch.randint(256, (64, 4))
mask = torch.ones_like(prompts)
text = target.generate(prompts, attention_mask=mask, max_new_tokens=44, **greedy)
batch = observe(target, drafter, text, torch.ones_like(text))
parameters = [p for p in drafter.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(parameters, lr=3e-3)
for _ in range(100):
    optimizer.zero_grad()
    chain_loss(drafter, batch, target.lm_head.weight, step_weights=[1.0, 0.8, 0.64]).loss.backward()
    optimizer.step()

out = speculate(target, drafter, prompts[:1], max_new_tokens=44, depth=4)
print(out)
print("acceptance by depth:", " ".join(f"{share:.2f}" for share in out.acceptance_by_depth))
print("equal to the target's own greedy output:", torch.equal(out.tokens, text[:1]))
