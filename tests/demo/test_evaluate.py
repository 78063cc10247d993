from __future__ import annotations

from typing import Any

import pytest
import torch
from demo_trees import MODULE

from leeboard.demo.corpus import Function, functions_of
from leeboard.demo.evaluate import choose_prompts, decode_prompts, greedy
from leeboard.demo.settings import Settings
from leeboard.demo.tokens import BOS, EOT, train_tokenizer

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

TINY = Settings.quick(
    vocab_size=300,
    layers=3,
    hidden_size=32,
    intermediate_size=48,
    heads=2,
    prompts=3,
    prompt_tokens=60,
    new_tokens=24,
    depth=4,
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(functions_of(MODULE, "module.py"), TINY.vocab_size)


@pytest.fixture(scope="module")
def functions() -> list[Function]:
    body = "    return " + " + ".join("abcdefghijklmnopqrstuvwxyz") + "\n"
    user = 'def f{i}(x):\n    """Add."""\n'
    made = [Function(f"{i % 3}.py", f"f{i}", user.format(i=i), body, True) for i in range(9)]
    long = Function("long.py", "f", "def f(" + "x, " * 80 + "):\n", body, True)
    bare = Function("bare.py", "f", "def f(x):\n", body, False)
    return [*made, long, bare]


@pytest.fixture(scope="module")
def target() -> Any:
    from leeboard.demo.target import new_target

    return new_target(TINY).eval()


def test_prompts_come_from_many_files(functions: list[Function], tokenizer: Any) -> None:
    chosen = choose_prompts(functions, tokenizer, TINY)
    assert sorted(f.file for f in chosen) == ["0.py", "1.py", "2.py"]
    assert choose_prompts(functions[::-1], tokenizer, TINY) == chosen
    with pytest.raises(ValueError, match="prompts: got 10, expected at most 9"):
        choose_prompts(functions, tokenizer, Settings.quick(prompts=10, prompt_tokens=60))


def test_greedy_is_the_targets_own(target: Any) -> None:
    prompt = torch.tensor([[BOS, 40, 50, 60]])
    ours, seconds = greedy(target, prompt, 20)
    theirs = target.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=20,
        do_sample=False,
        eos_token_id=EOT,
        pad_token_id=EOT,
    )
    assert torch.equal(ours, theirs)
    assert seconds > 0


def test_decoding_counts_add_up(
    target: Any, functions: list[Function], tokenizer: Any, capsys: Any
) -> None:
    from leeboard.demo.drafters import new_drafters

    chosen = choose_prompts(functions, tokenizer, TINY)
    drafters = {name: d.eval() for name, d in new_drafters(TINY, target).items()}
    figures = decode_prompts(TINY, target, drafters, tokenizer, chosen, "decode")
    new_tokens = sum(prompt["new_tokens"] for prompt in figures["prompts"])
    assert figures["plain"]["new_tokens"] == new_tokens
    for name in drafters:
        for depth in (TINY.ttt, TINY.depth):
            run = figures["runs"][name][str(depth)]
            assert run["new_tokens"] == new_tokens
            assert run["equal_to_greedy"] == len(chosen)
            assert sum(run["accepted_by_depth"]) == round(run["mean_accepted"] * run["rounds"])
            assert run["reached_by_depth"][0] == run["rounds"]
            assert run["tau"] == run["mean_accepted"] + 1
    drafted = [piece for piece in figures["sample"]["pieces"] if piece[1]]
    plain = [piece for piece in figures["sample"]["pieces"] if not piece[1]]
    assert len(plain) >= len(drafted)
    assert capsys.readouterr().out == ""
