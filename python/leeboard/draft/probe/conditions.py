"""The same prompts as the drafter knows them, and with parts of the chat template missing."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# In the order of reports. The four of arXiv:2605.09992, and one that keeps the form but not the
# names.
CONDITIONS = ("matched", "no_bos", "no_template", "no_template_no_bos", "renamed_roles")

# Other words for the roles, of the same kind.
ROLES = {
    "system": "instructions",
    "developer": "instructions",
    "user": "person",
    "assistant": "helper",
    "model": "helper",
    "tool": "device",
}

Ids = list[int]


@dataclasses.dataclass(frozen=True)
class PromptSet:
    """Prompts as token ids, the same ones in every condition.

    Attributes:
        ids: Per condition the prompts, paired across conditions; "matched" is always there.
        notes: Which conditions are left out, and why.
    """

    ids: Mapping[str, Sequence[Sequence[int]]]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if "matched" not in self.ids:
            raise ValueError(f"prompts: got {list(self.ids)}, expected 'matched' among them")
        counts = {name: len(prompts) for name, prompts in self.ids.items()}
        if len(set(counts.values())) != 1 or not counts["matched"]:
            raise ValueError(
                f"prompts: got {counts}, expected as many in every condition, and some"
            )


def prompt_set(
    prompts: Sequence[str | Sequence[Mapping[str, Any]] | Sequence[int]],
    tokenizer: Any = None,
    conditions: Sequence[str] = CONDITIONS,
) -> PromptSet:
    """Token ids of the prompts in every condition that they allow.

    - matched: a chat by the tokenizer's template with the opening of the answer; a string with the
      special tokens that the tokenizer adds; ids as they are.
    - no_bos: without the begin-of-sequence token in front.
    - no_template: the contents of a chat's messages, with blank lines between, as a string.
    - no_template_no_bos: both.
    - renamed_roles: the template's text with other words for the roles (`ROLES`), contents as they
      are.

    A condition that would change nothing for some prompt (a template without a begin-of-sequence
    token, strings without a template, roles that the template does not name) is left out and noted.

    Args:
        prompts: Chats (lists of messages with "role" and "content"), strings or token ids.
        tokenizer: A Hugging Face tokenizer; None if all prompts are ids.
        conditions: Of `CONDITIONS`; "matched" is always there.

    Raises:
        ValueError: A condition is unknown, a prompt is empty, there is none, or a tokenizer is
            missing.
    """
    check_conditions(conditions)
    if not prompts:
        raise ValueError("prompts: got none, expected at least one")
    plain = [not isinstance(p, str) and bool(p) and isinstance(p[0], int) for p in prompts]
    if tokenizer is None and not all(plain):
        raise ValueError("tokenizer: missing, expected one for prompts that are no token ids")
    wanted = [name for name in CONDITIONS if name == "matched" or name in conditions]
    found: dict[str, list[Ids]] = {}
    notes = []
    for name in wanted:
        ids, reason = _all_ids(tokenizer, prompts, name)
        if reason is None:
            found[name] = ids
        else:
            notes.append(f"{name}: left out, {reason}")
    return PromptSet(found, tuple(notes))


def check_conditions(conditions: Sequence[str]) -> None:
    """Raise ValueError unless all are of `CONDITIONS`."""
    if unknown := [name for name in conditions if name not in CONDITIONS]:
        raise ValueError(
            f"conditions: got {unknown[0]!r}, expected some of {', '.join(CONDITIONS)}"
        )


class NotApplicable(Exception):  # noqa: N818
    """A condition that says nothing about these prompts."""


def _all_ids(
    tokenizer: Any, prompts: Sequence[Any], condition: str
) -> tuple[list[Ids], str | None]:
    """(ids, None), or ([], why the condition does not apply)."""
    try:
        found = [_ids(tokenizer, p, condition, number) for number, p in enumerate(prompts, 1)]
    except NotApplicable as reason:
        return [], str(reason)
    return found, None


def _ids(tokenizer: Any, prompt: Any, condition: str, number: int) -> Ids:
    if isinstance(prompt, str):
        ids = _of_text(tokenizer, prompt, condition)
    elif prompt and isinstance(prompt[0], int):
        ids = list(prompt)
        if condition != "matched":
            ids = _without_bos(tokenizer, ids) if condition == "no_bos" else _no("ids", condition)
    else:
        ids = _of_chat(tokenizer, prompt, condition)
    if not ids:
        raise ValueError(f"prompt {number}: it has no tokens ({condition}), expected at least one")
    return ids


def _of_text(tokenizer: Any, text: str, condition: str) -> Ids:
    if condition in ("no_template", "no_template_no_bos", "renamed_roles"):
        _no("strings", condition)
    ids: Ids = list(tokenizer(text)["input_ids"])
    return _without_bos(tokenizer, ids) if condition == "no_bos" else ids


def _of_chat(tokenizer: Any, messages: Sequence[Mapping[str, Any]], condition: str) -> Ids:
    def render(chat: Sequence[Mapping[str, Any]]) -> str:
        rendered: str = tokenizer.apply_chat_template(
            [dict(message) for message in chat], tokenize=False, add_generation_prompt=True
        )
        return rendered

    def encoded(text: str) -> Ids:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    matched = encoded(render(messages))
    if condition == "matched":
        return matched
    if condition == "no_bos":
        return _without_bos(tokenizer, matched)
    if condition == "renamed_roles":
        return encoded(renamed(render, messages))
    bare = encoded("\n\n".join(_content(message) for message in messages))
    bos = _bos(tokenizer, matched)
    if condition == "no_template_no_bos":
        if not bos:
            raise NotApplicable("the template has no begin-of-sequence token: as no_template")
        return bare
    return [*bos, *bare]


def renamed(
    render: Callable[[Sequence[Mapping[str, Any]]], str], messages: Sequence[Mapping[str, Any]]
) -> str:
    """The rendered chat with other words for its roles, contents as they are.

    Args:
        render: Applies the template.
        messages: The chat.

    Raises:
        NotApplicable: The template names no role, or does more with contents than to insert them.
    """
    # Characters for private use stand for the contents, which may hold the names of roles, too.
    marks = [f"\ue000{i}\ue001" for i in range(len(messages))]
    empty = render([{**m, "content": mark} for m, mark in zip(messages, marks, strict=True)])

    def filled(text: str, contents: Sequence[str]) -> str:
        for mark, content in zip(marks, contents, strict=True):
            text = text.replace(mark, content)
        return text

    as_they_are = [_content(message) for message in messages]
    # Many templates strip what they insert.
    for contents in (as_they_are, [content.strip() for content in as_they_are]):
        if filled(empty, contents) == render(messages):
            break
    else:
        raise NotApplicable("the template changes the messages' contents")
    words = re.compile(rf"(?<![A-Za-z])({'|'.join(ROLES)})(?![A-Za-z])")
    changed = words.sub(lambda found: ROLES[found[1]], empty)
    if changed == empty:
        raise NotApplicable("the template does not name the roles")
    return filled(changed, contents)


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(part.get("text", "") for part in parts if isinstance(part, Mapping))


def _bos(tokenizer: Any, ids: Ids) -> Ids:
    bos = getattr(tokenizer, "bos_token_id", None)
    return [bos] if bos is not None and ids[:1] == [bos] else []


def _without_bos(tokenizer: Any, ids: Ids) -> Ids:
    bos = _bos(tokenizer, ids)
    if not bos or len(ids) < 2:
        raise NotApplicable("prompts do not begin with a begin-of-sequence token")
    return ids[1:]


def _no(kind: str, condition: str) -> Ids:
    raise NotApplicable(f"prompts are {kind} and have no template ({condition} needs chats)")
