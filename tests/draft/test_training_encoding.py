"""Encoding: which tokens are learnt, under templates of every kind, and errors that name the line."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from chat_tokenizers import (
    CHATML,
    INST,
    MARKED,
    MARKED_WITH_END,
    OPENING,
    THINKING,
    SlowTokenizer,
    chat_tokenizer,
)
from leeboard.draft.training import Chat, Documents, TrainSettings, encode_chats, read_chats
from leeboard.draft.training.layout import lay_out

TURNS = (
    {"role": "user", "content": "hello é there"},
    {"role": "assistant", "content": "fine é 😀 thanks"},
    {"role": "user", "content": "how are you"},
    {"role": "assistant", "content": " the weather is\n\n"},
)


def learnt(tokenizer: Any, documents: Documents) -> list[str]:
    """The runs of marked tokens, as text."""
    runs: list[list[int]] = []
    for i, (token, mark) in enumerate(
        zip(documents.ids.tolist(), documents.loss_mask.tolist(), strict=True)
    ):
        if mark and (i == 0 or not documents.loss_mask[i - 1]):
            runs.append([])
        if mark:
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize("template", [CHATML, MARKED, MARKED_WITH_END])
def test_every_assistant_turn_with_its_end(template: str) -> None:
    tokenizer = chat_tokenizer(template)
    documents = encode_chats([Chat(1, TURNS)], tokenizer, 200)
    rendered = tokenizer.apply_chat_template(list(TURNS), tokenize=False)
    assert tokenizer.decode(documents.ids) == rendered
    assert learnt(tokenizer, documents) == [
        "fine é 😀 thanks<|im_end|>",
        " the weather is\n\n<|im_end|>",
    ]


def test_marks_and_differences_agree() -> None:
    """The same bits by both ways, and with a tokenizer that tells no places."""
    ways = [
        encode_chats([Chat(1, TURNS)], tokenizer, 200)
        for tokenizer in (
            chat_tokenizer(CHATML),
            chat_tokenizer(MARKED_WITH_END),
            SlowTokenizer(chat_tokenizer(CHATML)),
            SlowTokenizer(chat_tokenizer(MARKED)),
        )
    ]
    for other in ways[1:]:
        assert torch.equal(other.ids, ways[0].ids)
        assert torch.equal(other.loss_mask, ways[0].loss_mask)


@pytest.mark.parametrize("metaspace", [False, True])
def test_turns_without_a_header(metaspace: bool) -> None:
    tokenizer = chat_tokenizer(INST, metaspace=metaspace)
    documents = encode_chats([Chat(1, TURNS[:2])], tokenizer, 200)
    marked = documents.loss_mask.nonzero()[:, 0]
    assert documents.ids[marked[-1]] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert learnt(tokenizer, documents)[0].strip().startswith("fine é")
    # What comes before is exactly the prompt that the target will be given.
    prompt = tokenizer.apply_chat_template(
        [TURNS[0]], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert documents.ids[: marked[0]].tolist() == prompt


def test_a_header_with_more_than_is_written_down() -> None:
    tokenizer = chat_tokenizer(OPENING)
    documents = encode_chats([Chat(1, TURNS)], tokenizer, 200)
    assert learnt(tokenizer, documents)[0] == "fine é 😀 thanks<|im_end|>"


def test_a_template_that_changes_turns_once_others_follow() -> None:
    tokenizer = chat_tokenizer(THINKING)
    tokenizer.name_or_path = "org/thinker"
    chats = [Chat(1, TURNS[:2]), Chat(7, TURNS)]
    with pytest.raises(
        ValueError,
        match=r"^line 7: the chat template of org/thinker renders it differently once others "
        r"follow: assistant's turn messages\[1\], .*give split_turns=True",
    ):
        encode_chats(chats, tokenizer, 200)
    documents = encode_chats(chats[1:], tokenizer, 200, split_turns=True)
    assert len(documents) == 2
    assert learnt(tokenizer, documents) == [
        "<think>\n\n</think>\n\nfine é 😀 thanks<|im_end|>",
        "<think>\n\n</think>\n\n the weather is\n\n<|im_end|>",
    ]
    # The second document has the first turn as the target is shown it then: without thoughts.
    second = tokenizer.decode(documents.ids[documents.starts[1] :])
    assert second.count("<think>") == 1


def test_split_turns_of_a_steady_template() -> None:
    tokenizer = chat_tokenizer(CHATML)
    whole = encode_chats([Chat(1, TURNS)], tokenizer, 200)
    split = encode_chats([Chat(1, TURNS)], tokenizer, 200, split_turns=True)
    assert learnt(tokenizer, split) == learnt(tokenizer, whole)
    first = int(split.starts[1])
    assert torch.equal(split.ids[:first], whole.ids[:first])
    assert torch.equal(split.ids[first:], whole.ids)


def test_texts_are_learnt_whole() -> None:
    tokenizer = chat_tokenizer(None)
    documents = encode_chats([Chat(1, text="hello there how are you")], tokenizer, 200)
    assert tokenizer.decode(documents.ids) == "hello there how are you"
    assert bool(documents.loss_mask.all())


def test_documents_know_their_chats() -> None:
    chats = [Chat(1, TURNS), Chat(4, TURNS[:2]), Chat(5, TURNS)]
    documents = encode_chats(chats, chat_tokenizer(CHATML), 200, split_turns=True)
    assert documents.sources == (0, 0, 1, 2, 2)
    some = documents.take([4, 1])
    assert some.sources == (2, 0)
    assert some.lengths.tolist() == [int(documents.lengths[i]) for i in (4, 1)]
    assert torch.equal(some.ids, documents.ids[documents.starts[3 + 1] :].repeat(2))
    assert int(some.loss_mask.sum()) == 2 * int(documents.loss_mask[documents.starts[4] :].sum())


@pytest.mark.parametrize("usable", [1, 2, 5])
def test_what_is_held_out_is_usable(usable: int, tmp_path: Path) -> None:
    """Whole conversations, of which something is left: else a share of a few would be nothing."""
    path = tmp_path / "chats.jsonl"
    long = [{"role": "user", "content": "hello " * 300}, *TURNS[1:2]]
    every = [list(TURNS)] * usable + [long] * 12
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in every))
    target = SimpleNamespace(config=SimpleNamespace())
    shape = SimpleNamespace(vocab_size=400, max_position_embeddings=100)
    settings = TrainSettings(heldout_share=0.4, split_turns=True, packed=False)
    said: list[str] = []
    split = lay_out(target, path, None, chat_tokenizer(CHATML), settings, shape, said.append)
    held = {1: 0, 2: 1, 5: 2}[usable]
    assert (len(split.heldout), len(split.train)) == (2 * held, 2 * (usable - held))
    assert not set(split.heldout) & set(split.train)
    assert said[1].endswith("12 left out (too long, or nothing to learn within the limit)")
    assert [line.split(",")[0] for line in said[2:]] == (
        [f"to train on: {2 * (usable - held)} documents", f"held out: {2 * held} documents"]
        if held
        else []
    )


def test_length_limit() -> None:
    tokenizer = chat_tokenizer(CHATML)
    chats = [Chat(1, TURNS[:2]), Chat(2, TURNS), Chat(5, TURNS[2:])]
    lengths = encode_chats(chats, tokenizer, 1000).lengths.tolist()
    limit = lengths[1] - 1
    cut = encode_chats(chats, tokenizer, limit)
    assert cut.lengths.tolist() == [lengths[0], limit, lengths[2]]
    assert (cut.truncated, cut.dropped) == (1, 0)
    assert "1 cut to the limit" in cut.told()
    fewer = encode_chats(chats, tokenizer, limit, too_long="drop")
    assert fewer.lengths.tolist() == [lengths[0], lengths[2]]
    assert (fewer.truncated, fewer.dropped) == (0, 1)
    with pytest.raises(
        ValueError, match=rf"line 2: got {lengths[1]} tokens, expected at most {limit}"
    ):
        encode_chats(chats, tokenizer, limit, too_long="error")
    # Cut before the assistant speaks: nothing to learn is left.
    with pytest.raises(
        ValueError, match=r"nothing is left: 3 documents are longer than max_length = 4"
    ):
        encode_chats(chats, tokenizer, 4)
    with pytest.raises(ValueError, match="too_long: got 'keep', expected truncate"):
        encode_chats(chats, tokenizer, 4, too_long="keep")  # type: ignore[arg-type]


def test_template_errors_name_the_line(tmp_path: Any) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(
        '{"text": "hello"}\n'
        '{"messages": [{"role": "system", "content": "x"}, {"role": "assistant", "content": "y"}]}\n'
    )
    with pytest.raises(
        ValueError, match=r"chats.jsonl, line 2: .* does not take it: only user and assistant"
    ):
        encode_chats(read_chats(path), chat_tokenizer(INST), 100)
    documents = encode_chats(
        [*read_chats(path), Chat(9, TURNS)], chat_tokenizer(INST), 100, skip_broken=True
    )
    assert len(documents) == 1
    assert documents.told().endswith("only user and assistant roles are supported)")
    assert [line for line, _ in documents.skipped] == [2]
    with pytest.raises(ValueError, match=r"nothing is left: 0 documents .*; 1 skipped: line 2 \("):
        encode_chats(read_chats(path)[1:], chat_tokenizer(INST), 100, skip_broken=True)
    with pytest.raises(ValueError, match=r"has no chat template.* take the tokenizer of the chat"):
        encode_chats(read_chats(path), chat_tokenizer(None), 100)
    with pytest.raises(ValueError, match=r"line 3: it begins with an assistant turn"):
        encode_chats([Chat(3, TURNS[1:])], chat_tokenizer(CHATML), 100)
    never = "{% for m in messages %}{{ m.content }}{% endfor %}{% if tools %}{% generation %}x"
    never += "{% endgeneration %}{% endif %}"
    with pytest.raises(ValueError, match="line 1: the chat template marks nothing"):
        encode_chats([Chat(1, TURNS)], chat_tokenizer(never), 100)


def test_a_slow_tokenizer_that_merges_across_the_border() -> None:
    class Merging(SlowTokenizer):
        def __call__(self, text: str, **options: Any) -> Any:
            found = super().__call__(text.replace("\nfine", "~"), **options)
            return {"input_ids": found["input_ids"]}

    with pytest.raises(ValueError, match=r"line 1: tokenizer: Merging cuts the text differently"):
        encode_chats([Chat(1, TURNS)], Merging(chat_tokenizer(CHATML)), 100)


def test_tools_reach_the_template() -> None:
    template = "{% if tools %}{{ tools | length }} tools\n{% endif %}" + CHATML
    tokenizer = chat_tokenizer(template)
    documents = encode_chats([Chat(1, TURNS, tools=({"name": "f"},))], tokenizer, 200)
    assert tokenizer.decode(documents.ids).startswith("1 tools\n<|im_start|>user")
