"""Train a drafter for a Hugging Face model on chats of your own, then decode with it.

python examples/train_drafter.py --target DIR|NAME --data chats.jsonl --out runs/mine

Without --target it makes a tiny random Llama and a file of chats that this model answered itself,
in seconds, and downloads nothing. The command line does the same: leeboard draft train.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from leeboard.draft import (
    DrafterConfig,
    TrainSettings,
    load_drafter,
    speculate,
    train_drafter,
)

TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def tiny_model(folder: Path) -> None:
    """A random Llama and a tokenizer of single letters, with a chat template."""
    # The blank, as ByteLevel writes it.
    alphabet = ["\u0120", *"abcdefghijklmnopqrstuvwxyz0123456789"]
    special = ["<user>", "<assistant>", "<end>"]
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", additional_special_tokens=special[:2]
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        max_position_embeddings=256,
        initializer_range=0.15,
        bos_token_id=None,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def rendered(tokenizer: Any, user: str) -> str:
    """A prompt as the model knows it."""
    chat = [{"role": "user", "content": user}]
    text: str = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return text


@torch.no_grad()
def own_answers(folder: Path, file: Path, count: int) -> None:
    """Chats that the model itself answers: the best data for its drafter."""
    target = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # All of one length, so that they make a batch as they are.
    words = ["sail", "keel", "wind", "tide", "rope", "knot", "mast", "helm", "deck", "reef"]
    users = [f"{words[i % 10]} {words[i // 10 % 10]} {i:03}" for i in range(count)]
    prompts = [rendered(tokenizer, user) for user in users]
    ids = tokenizer(prompts, return_tensors="pt", add_special_tokens=False)["input_ids"]
    out = target.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=40,
        do_sample=False,
        pad_token_id=2,
    )
    answers = tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
    lines = []
    for user, answer in zip(users, answers, strict=True):
        chat = [
            {"role": "user", "content": user},
            {"role": "assistant", "content": answer or "-"},
        ]
        lines.append(json.dumps({"messages": chat}))
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", help="folder or name of a Hugging Face causal LM")
    parser.add_argument("--data", type=Path, help='.jsonl with "messages" or "text" in every line')
    parser.add_argument("--out", type=Path, help="where to write (default: a temporary folder)")
    parser.add_argument("--steps", type=int, help="optimizer steps (default: one epoch; tiny: 80)")
    args = parser.parse_args()
    out = args.out or Path(tempfile.mkdtemp(prefix="train-drafter-"))
    tiny = args.target is None
    if tiny:
        # Too little work to share between threads.
        torch.set_num_threads(1)
        args.target, args.data = out / "target", out / "chats.jsonl"
        tiny_model(args.target)
        own_answers(args.target, args.data, 200)

    target = AutoModelForCausalLM.from_pretrained(args.target, dtype="auto").eval()
    settings = TrainSettings(
        steps=args.steps or (80 if tiny else None),
        lr=3e-3 if tiny else 1e-4,
        ttt=3,
        batch=4,
        length=256 if tiny else None,
    )
    # What the drafter is: the target's shape, post-norm, and a head of the most frequent tokens.
    vocabulary = target.get_output_embeddings().weight.shape[0]
    config = DrafterConfig.for_target(
        target.config, draft_vocab_size=min(32 if tiny else 32000, vocabulary)
    )
    trained = train_drafter(
        target, args.data, config=config, settings=settings, out=out / "run", say=print
    )
    for step, losses in zip(
        trained.history.evaluations["step"],
        trained.history.chain("loss", evaluations=True),
        strict=True,
    ):
        print(f"step {step:4.0f}  held-out loss by chain step:", *(f"{x:.3f}" for x in losses))

    drafter = load_drafter(trained.path, target=target)
    tokenizer = AutoTokenizer.from_pretrained(args.target)
    prompt = rendered(tokenizer, "wind tide 123")
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
    result = speculate(target, drafter, ids, max_new_tokens=40, depth=3)
    print(result)
    print("saved:", trained.path)


if __name__ == "__main__":
    main()
