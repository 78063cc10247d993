"""Reading JSONL: every form that is in use, and errors that name the line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from leeboard.draft.training import Chats, read_chats

USER = {"role": "user", "content": "hi"}
SAID = {"role": "assistant", "content": "yes"}


def written(path: Path, *lines: Any) -> Path:
    """A file of these lines: values as JSON, bytes as they are."""
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(raw) + b"\n")
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.jsonl"


def test_forms(path: Path) -> None:
    sharegpt = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]
    parts = [{"type": "text", "text": "y"}, {"type": "text", "text": "es"}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    tool = {"role": "tool", "content": "3", "tool_call_id": "1"}
    chats = read_chats(
        written(
            path,
            b"\xef\xbb\xbf" + json.dumps({"messages": [USER, SAID]}).encode() + b"\r",
            {"conversations": sharegpt, "id": "x1", "source": "there", "system": "be brief"},
            b"",
            {"text": "some\u2028text\n"},
            {"messages": [USER, {"role": "assistant", "content": parts}]},
            {"messages": [USER, call, tool, SAID], "tools": '[{"name": "f"}]'},
            {"conversations": [USER, SAID]},
        )
    )
    assert [chat.line for chat in chats] == [1, 2, 4, 5, 6, 7]
    system = {"role": "system", "content": "be brief"}
    assert chats[0].messages == chats[3].messages == chats[5].messages == (USER, SAID)
    assert chats[1].messages == (system, USER, SAID)
    assert chats[2].text == "some\u2028text\n"
    assert chats[4].messages == (USER, {**call, "content": ""}, tool, SAID)
    assert chats[4].tools == ({"name": "f"},)
    assert chats.told() == f"{path}: 6 lines"
    assert isinstance(chats[1:3], tuple)


WRONG: list[tuple[Any, str]] = [
    (b'{"text": "a"', r"broken JSON: Expecting ',' delimiter at column 13"),
    (b'{"text": "a"} x', "broken JSON: Extra data"),
    (b'{"text": "\xff"}', "not UTF-8"),
    (b'{"text": "\\ud800"}', "half of a surrogate pair"),
    (b"[" * 100_000, "a JSON array, expected one JSON object on every line"),
    (b'{"text": ' + b"[" * 100_000, "broken JSON: .*recursion"),
    (b"3", "got a number, expected a JSON object"),
    (b"null", "got nothing, expected a JSON object"),
    ({}, r"got the keys \[\], expected one of messages, conversations, text"),
    ({"mesages": []}, r"got the keys \['mesages'\], expected one of"),
    ({"text": "a", "messages": []}, r"got the keys \['messages', 'text'\], expected one of"),
    ({"text": "a", "lang": "en"}, r"unknown keys \['lang'\]: rename them, or .*keys to ignore"),
    ({"text": "  "}, "text: got a string, expected a string that is not empty"),
    ({"text": 3}, "text: got a number"),
    ({"text": None}, "text: got nothing"),
    ({"messages": []}, "messages: got a list that is empty"),
    ({"messages": "hi"}, "messages: got a string, expected a list"),
    ({"messages": ["hi"]}, r"messages\[0\]: got a string, expected an object"),
    ({"messages": [USER]}, "messages: no assistant turn, there is nothing to learn"),
    ({"messages": [USER, {**SAID, "content": " "}]}, "every assistant turn is empty"),
    ({"messages": [USER, {**SAID, "mood": 1}]}, r"messages\[1\]: keys \['mood'\]"),
    ({"messages": [{"content": "a"}]}, r"messages\[0\].role: got nothing"),
    ({"messages": [{"role": "user"}]}, r"messages\[0\].content: got nothing, expected a string"),
    ({"messages": [{"role": "user", "content": [{"image": "x"}]}]}, r"content: got a list"),
    ({"conversations": [{"from": "me", "value": "a"}]}, r"\[0\].from: got 'me', expected one of"),
    ({"conversations": [{"from": "gpt", "value": 1}]}, r"\[0\].value: got a number"),
    ({"conversations": [{"from": "gpt"}]}, r"\[0\]: got an object with \['from'\], expected"),
    ({"messages": [USER, SAID], "tools": "["}, "tools: broken JSON in the string"),
    ({"messages": [USER, SAID], "tools": 1}, "tools: got a number, expected a list"),
    ({"messages": [USER, SAID], "system": 1}, "system: got a number, expected a string"),
]


@pytest.mark.parametrize(("line", "said"), WRONG, ids=[f"{i}" for i in range(len(WRONG))])
def test_errors_name_the_line(line: Any, said: str, path: Path) -> None:
    good = {"messages": [USER, SAID]}
    with pytest.raises(ValueError, match=rf"data.jsonl, line 3: .*{said}"):
        read_chats(written(path, good, b"", line, good))
    # With the flag the rest is read.
    chats = read_chats(path, skip_broken=True)
    assert [chat.line for chat in chats] == [1, 4]
    assert [number for number, _ in chats.skipped] == [3]
    assert f"2 lines; 1 skipped: line 3 ({chats.skipped[0][1]})" in chats.told()


def test_many_skipped_lines_are_counted(path: Path) -> None:
    chats = read_chats(written(path, {"text": "a"}, *[b"{"] * 8), skip_broken=True)
    assert "8 skipped: line 2 (" in chats.told()
    assert chats.told().endswith("and 3 more")


def test_keys_may_be_passed_over(path: Path) -> None:
    mood = {"role": "assistant", "content": "yes", "mood": 1}
    line = {"messages": [USER, mood], "lang": "en"}
    chats = read_chats(written(path, line), ignore=["lang", "mood"])
    assert chats[0].messages == (USER, SAID)


def test_nothing_to_read(path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.jsonl: no line with a chat or text$"):
        read_chats(written(path, b"", b"  "))
    with pytest.raises(ValueError, match=r"no line with a chat or text: 1 skipped, the first is"):
        read_chats(written(path, b"{"), skip_broken=True)
    with pytest.raises(FileNotFoundError):
        read_chats(path.with_name("other.jsonl"))
    assert len(Chats("", ())) == 0
