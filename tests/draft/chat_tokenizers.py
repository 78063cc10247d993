"""Tokenizers with chat templates of the kinds that are in use, trained on a few words."""

from __future__ import annotations

from typing import Any

import pytest

WORDS = "hello there how are you fine thanks assistant user system model think the weather is"

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Marks what the assistant said, but not the token that ends its turn.
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED_WITH_END = MARKED.replace("{% endgeneration %}", "<|im_end|>{% endgeneration %}").replace(
    "{% endif %}<|im_end|>\n", "<|im_end|>{% endif %}{{ '\n' }}"
)
# As Qwen3's: thoughts stand in the last turn only.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As DeepSeek-R1's: the prompt opens a thought that is not written down.
OPENING = CHATML.replace(
    "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}"
)
# As Llama-2's and Mistral's: no header before the assistant's turn, nothing but text around it.
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}<|im_end|>"
    "{% else %}{{ raise_exception('only user and assistant roles are supported') }}{% endif %}"
    "{% endfor %}"
)


def chat_tokenizer(template: str | None, *, metaspace: bool = False) -> Any:
    """A fast byte-level BPE tokenizer, or one that writes blanks as sentencepiece does."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    models, pre, trainers = tokenizers.models, tokenizers.pre_tokenizers, tokenizers.trainers
    special = ["<bos>", "<|im_start|>", "<|im_end|>"]
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=metaspace))
    if metaspace:
        tokenizer.pre_tokenizer = pre.Metaspace()
        tokenizer.decoder = tokenizers.decoders.Metaspace()
        alphabet = sorted(set(WORDS) | set("[]/INST ▁\n<|>_é"))
    else:
        tokenizer.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        alphabet = pre.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([WORDS] * 3, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = template
    return fast


class SlowTokenizer:
    """Tells no places of tokens, as tokenizers in Python do."""

    is_fast = False

    def __init__(self, fast: Any) -> None:
        self._fast = fast

    def __call__(self, text: str, **options: Any) -> Any:
        assert "return_offsets_mapping" not in options
        return self._fast(text, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fast, name)
