"""Convert a drafter's checkpoint to another layout and probe it. Downloads nothing: a tiny target
and two drafters for it are trained here, in less than a minute on a synthetic language.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from leeboard.cli import main
from leeboard.draft import DrafterConfig, Eagle3Drafter, chain_loss, observe, save_drafter

torch.manual_seed(0)
folder = Path(tempfile.mkdtemp(prefix="leeboard-probe-"))

# A language: words stand in a ring, and each goes on to the next one or to the third, as the word
# before it says. (So texts do not turn in small circles, which would be too easy to draft.)
ring = torch.randperm(60)
place = ring.argsort()
table = torch.stack([ring[(place + step) % 60] for step in (1, 3)]) + 5


def sentences(count: int, length: int) -> torch.Tensor:
    said = [torch.randint(5, 65, (count,)) for _ in range(2)]
    while len(said) < length:
        said.append(table[said[-2] % 2, said[-1] - 5])
    return torch.stack(said, dim=1)


# A target that speaks it, with a tokenizer and a chat template, as one downloads them.
config = LlamaConfig(
    vocab_size=65,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=6,
    num_attention_heads=4,
    max_position_embeddings=512,
    initializer_range=0.06,
)
target = LlamaForCausalLM(config)
target.generation_config.eos_token_id = None
names = ["<s>", "user", "assistant", "person", "helper"]
words = {name: i for i, name in enumerate([*names, *(f"w{i}" for i in range(5, 65))])}
tokenizer = Tokenizer(models.WordLevel(words, unk_token="w5"))
tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    bos_token="<s>",
    unk_token="w5",
    chat_template="<s>{% for m in messages %} {{ m['role'] }} {{ m['content'] }}{% endfor %} assistant",
).save_pretrained(folder / "target")


def dialogues(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Four words of the user's, then the assistant goes on; and which tokens it says."""
    said = sentences(count, 44)
    special = [torch.full((count, 1), words[name]) for name in ("<s>", "user", "assistant")]
    ids = torch.cat((*special[:2], said[:, :4], special[2], said[:, 4:]), dim=1)
    return ids, (torch.arange(ids.shape[1]) > 6).expand(ids.shape)


optimizer = torch.optim.AdamW(target.parameters(), lr=3e-3)
for _ in range(250):
    ids, _ = dialogues(16)
    optimizer.zero_grad()
    target(input_ids=ids, labels=ids).loss.backward()
    torch.nn.utils.clip_grad_norm_(target.parameters(), 1.0)
    optimizer.step()
target.eval().requires_grad_(False).save_pretrained(folder / "target")

# Two drafters for it: EAGLE-3 as first published, and with post-norm and normed fusion. Trained on
# chains of two steps.
for name, on in (("pre-norm", False), ("post-norm", True)):
    torch.manual_seed(1)
    drafter = Eagle3Drafter(DrafterConfig.for_target(config, norm_output=on, fc_norm=on))
    drafter.copy_from_target(target)
    optimizer = torch.optim.AdamW((p for p in drafter.parameters() if p.requires_grad), lr=3e-3)
    for _ in range(120):
        batch = observe(target, drafter, *dialogues(16))
        optimizer.zero_grad()
        chain_loss(drafter, batch, target.lm_head.weight, step_weights=[1.0, 0.8]).loss.backward()
        optimizer.step()
    save_drafter(drafter, folder / name, layout="eagle")

# From here on: what one does with checkpoints that exist. The same commands work in a shell:
#   leeboard draft convert pre-norm pre-norm-speculators --layout speculators
#   leeboard draft probe --target target --drafter ... --prompts chats.jsonl --plot probe.png
with (folder / "chats.jsonl").open("w") as stream:
    for said in sentences(24, 4).tolist():
        message = {"role": "user", "content": " ".join(f"w{i}" for i in said)}
        stream.write(json.dumps({"messages": [message]}) + "\n")


def run(*command: object) -> None:
    line = [str(word) for word in command]
    print("\n$ leeboard", *line)
    if main(line):
        raise SystemExit(1)


converted = folder / "pre-norm-speculators"
run("draft", "convert", folder / "pre-norm", converted, "--layout", "speculators")
run(
    "draft", "probe", "--target", folder / "target", "--prompts", folder / "chats.jsonl",
    "--drafter", f"pre-norm={converted}", "--drafter", f"post-norm={folder / 'post-norm'}",
    "--depth", 8, "--max-new-tokens", 40, "--train-length", 48, "--lengths", "1,2,4",
    "--json", folder / "probe.json", "--plot", folder / "probe.png",
)  # fmt: skip
print(f"\nwritten: {folder / 'probe.json'}, {folder / 'probe.png'}")
