"""Chats and texts from JSONL files, with errors that name the line."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from leeboard.draft.training.rows import told_lines

# What a line holds: one of these.
CONTENTS = ("messages", "conversations", "text")
# What may stand beside it: what goes into the template, and what data sets tell about a line.
_BESIDE = frozenset({"tools", "system"})
_ABOUT = frozenset(
    {"id", "prompt", "prompt_id", "source", "dataset", "model", "meta", "metadata", "category"}
)
_MESSAGE = frozenset(
    {"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "thinking"}
)
_SHAREGPT = frozenset({"from", "value"})
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
}

Message = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Chat:
    """One line of a file: a conversation, or a text.

    Attributes:
        line: Its number in the file, from 1.
        messages: The conversation, each message with `role` and `content` as chat templates take
            them; None for a text.
        text: The text; None for a conversation.
        tools: What the template is given as `tools`, if anything.
    """

    line: int
    messages: tuple[Message, ...] | None = None
    text: str | None = None
    tools: tuple[Any, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Chats(Sequence[Chat]):
    """The chats of a file.

    Attributes:
        path: The file.
        skipped: (line, what is wrong with it) of the lines that were left out.
    """

    path: str
    chats: tuple[Chat, ...]
    skipped: tuple[tuple[int, str], ...] = ()

    def __len__(self) -> int:
        return len(self.chats)

    @overload
    def __getitem__(self, index: int) -> Chat: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Chat]: ...
    def __getitem__(self, index: int | slice) -> Chat | Sequence[Chat]:
        return self.chats[index]

    def told(self) -> str:
        """How many lines were read, how many skipped and which, in words."""
        text = f"{self.path}: {len(self)} lines"
        if self.skipped:
            text += f"; {told_lines(self.skipped)}"
        return text


def read_chats(
    path: str | os.PathLike[str], *, skip_broken: bool = False, ignore: Sequence[str] = ()
) -> Chats:
    """Read chats or texts, one JSON object a line.

    A line holds `messages` (a list of {"role", "content"}), `conversations` (ShareGPT's list of
    {"from", "value"}) or `text`. Beside a conversation may stand `tools`, and `system`, a system
    message to begin it. Blank lines do not count.

    Args:
        path: The file, UTF-8.
        skip_broken: Leave out lines with something wrong instead of raising; `Chats.skipped` says
            which.
        ignore: Further keys of a line or a message to pass over.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is no JSON object, has unknown keys, no assistant turn or nothing in it
            (the message names file and line), or the file has no line that is right.
    """
    name = os.fspath(path)
    chats: list[Chat] = []
    skipped: list[tuple[int, str]] = []
    for line, raw in _lines(Path(path)):
        found = _read_line(line, raw, frozenset(ignore))
        if isinstance(found, Chat):
            chats.append(found)
        elif skip_broken:
            skipped.append((line, str(found)))
        else:
            raise ValueError(f"{name}, line {line}: {found}") from found
    if not chats:
        why = ""
        if skipped:
            line, wrong = skipped[0]
            why = f": {len(skipped)} skipped, the first is line {line} ({wrong})"
        raise ValueError(f"{name}: no line with a chat or text{why}")
    return Chats(name, tuple(chats), tuple(skipped))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that are not blank. Only a newline ends a line, whatever else Unicode has."""
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            content = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            if content.strip():
                yield number, content


def _read_line(line: int, raw: bytes, ignore: frozenset[str]) -> Chat | ValueError:
    """The line's chat, or what is wrong with it."""
    try:
        return _chat(line, _parse(raw), ignore)
    except ValueError as error:
        return error


def _parse(raw: bytes) -> Mapping[str, Any]:
    try:
        text = raw.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason} at byte {error.start})") from error
    if text.startswith("["):
        raise ValueError("a JSON array, expected one JSON object on every line (JSONL)")
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"broken JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"broken JSON: {error}") from error
    if not isinstance(value, dict):
        raise _wrong("", value, "a JSON object")
    if "\\ud" in text.lower():
        # JSON may spell half a pair, which no tokenizer takes.
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError("half of a surrogate pair in a string, which is no text") from error
    return value


def _chat(line: int, value: Mapping[str, Any], ignore: frozenset[str]) -> Chat:
    contents = [name for name in CONTENTS if name in value]
    if len(contents) != 1:
        found = contents or sorted(value)
        raise ValueError(f"got the keys {found}, expected one of {', '.join(CONTENTS)}")
    content = contents[0]
    beside = _ABOUT | (_BESIDE if content != "text" else frozenset())
    _known(value, {content} | beside | ignore, "keys")
    if content == "text":
        text = value["text"]
        if not isinstance(text, str) or not text.strip():
            raise _wrong("text", text, "a string that is not empty")
        return Chat(line, text=text)
    turns = value[content]
    if not isinstance(turns, list) or not turns:
        raise _wrong(content, turns, "a list that is not empty")
    read = _message if content == "messages" else _sharegpt
    messages = [read(i, turn, ignore) for i, turn in enumerate(turns)]
    if system := value.get("system"):
        if not isinstance(system, str):
            raise _wrong("system", system, "a string")
        messages.insert(0, {"role": "system", "content": system})
    spoken = [message for message in messages if message["role"] == "assistant"]
    if not spoken:
        raise ValueError(f"{content}: no assistant turn, there is nothing to learn")
    if not any(message.get("tool_calls") or message["content"].strip() for message in spoken):
        raise ValueError(f"{content}: every assistant turn is empty, there is nothing to learn")
    return Chat(line, messages=tuple(messages), tools=_tools(value.get("tools")))


def _message(i: int, turn: Any, ignore: frozenset[str]) -> dict[str, Any]:
    where = f"messages[{i}]"
    if not isinstance(turn, dict):
        raise _wrong(where, turn, "an object with role and content")
    _known(turn, _MESSAGE | ignore, f"{where}: keys")
    role = turn.get("role")
    if not isinstance(role, str) or not role:
        raise _wrong(f"{where}.role", role, "a string")
    kept = {name: turn[name] for name in turn if name in _MESSAGE and turn[name] is not None}
    return {**kept, "role": role, "content": _text(where, turn)}


def _text(where: str, turn: Mapping[str, Any]) -> str:
    content = turn.get("content")
    if isinstance(content, str):
        return content
    if content is None and turn.get("tool_calls"):
        return ""
    if isinstance(content, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    ):
        return "".join(part["text"] for part in content)
    raise _wrong(f"{where}.content", content, "a string or text parts")


def _sharegpt(i: int, turn: Any, ignore: frozenset[str]) -> dict[str, Any]:
    where = f"conversations[{i}]"
    if isinstance(turn, dict) and "role" in turn:
        return _message(i, turn, ignore)
    if not isinstance(turn, dict) or not turn.keys() >= _SHAREGPT:
        raise _wrong(where, turn, "an object with from and value")
    _known(turn, _SHAREGPT | ignore, f"{where}: keys")
    speaker, said = turn["from"], turn["value"]
    if not isinstance(speaker, str) or speaker not in _ROLES:
        raise ValueError(f"{where}.from: got {speaker!r}, expected one of {', '.join(_ROLES)}")
    if not isinstance(said, str):
        raise _wrong(f"{where}.value", said, "a string")
    return {"role": _ROLES[speaker], "content": said}


def _tools(tools: Any) -> tuple[Any, ...] | None:
    if isinstance(tools, str):
        # Some data sets keep them as JSON within JSON.
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise ValueError(f"tools: broken JSON in the string ({error})") from error
    if tools is None or tools == []:
        return None
    if not isinstance(tools, list):
        raise _wrong("tools", tools, "a list")
    return tuple(tools)


def _known(value: Mapping[str, Any], known: frozenset[str] | set[str], what: str) -> None:
    if unknown := sorted(value.keys() - known):
        raise ValueError(
            f"unknown {what} {unknown}: rename them, or name them among the keys to ignore"
        )


def _wrong(what: str, value: Any, expected: str) -> ValueError:
    return ValueError(f"{what}{': ' if what else ''}got {_kind(value)}, expected {expected}")


def _kind(value: Any) -> str:
    """A value in an error message: its kind in JSON's words."""
    if value is None:
        return "nothing"
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    if value in ("", [], {}):
        return f"{names[type(value)]} that is empty"
    if isinstance(value, dict):
        return f"an object with {sorted(value)}"
    return names.get(type(value), "a number")
