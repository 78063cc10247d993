"""From chats to token ids, and to which of them the assistant spoke."""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from leeboard._progress import progress_bar
from leeboard.draft.checks import positive_int
from leeboard.draft.training.chats import Chat, Chats, Message
from leeboard.draft.training.rows import Documents, told_lines

TooLong = Literal["truncate", "drop", "error"]

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

Encoded = tuple[list[int], list[bool]]


def encode_chats(
    chats: Sequence[Chat],
    tokenizer: Any,
    max_length: int,
    *,
    too_long: TooLong = "truncate",
    split_turns: bool = False,
    skip_broken: bool = False,
    progress: bool = False,
) -> Documents:
    """Token ids of chats and texts, with the tokens to learn marked.

    Of a conversation these are the assistant's, the token that ends each turn among them. The
    template's `{% generation %}` marks tell them, where it has these; else they are what the
    conversation's rendering has between the prompt before a turn and the end of that turn. Of a
    text every token is to be learnt.

    Args:
        chats: From `read_chats`, or of your own.
        tokenizer: The target's own, a Hugging Face tokenizer; with a chat template unless there are
            texts only.
        max_length: Tokens of the longest document.
        too_long: What is done with a longer one: "truncate" keeps its front, "drop" leaves it out,
            "error" raises. A document with nothing left to learn is dropped. `Documents.told` says
            how many.
        split_turns: Make a document of every assistant turn, with the conversation up to it. For
            templates that render a turn differently once others follow.
        skip_broken: Leave out chats that the template does not take instead of raising;
            `Documents.told` says which.
        progress: Whether a progress bar is shown.

    Raises:
        ValueError: The tokenizer has no chat template, the template cannot render a chat or renders
            a turn differently once others follow, a document is too long, or nothing is left. The
            message names the line.
    """
    positive_int("max_length", max_length)
    if too_long not in ("truncate", "drop", "error"):
        raise ValueError(f"too_long: got {too_long!r}, expected truncate, drop or error")
    where = f"{chats.path}, " if isinstance(chats, Chats) else ""
    encode = _encoder(chats, tokenizer, split_turns=split_turns)
    # Python's lists of numbers take ten times the room.
    pairs: list[tuple[NDArray[np.int32], NDArray[np.bool_]]] = []
    sources: list[int] = []
    skipped: list[tuple[int, str]] = []
    truncated = dropped = 0
    with progress_bar("encode", len(chats), quiet=not progress) as bar:
        for number, chat in enumerate(chats):
            found = encode(chat)
            if isinstance(found, ValueError):
                if not skip_broken:
                    raise ValueError(f"{where}line {chat.line}: {found}") from found
                skipped.append((chat.line, str(found)))
                found = []
            for ids, mask in found:
                long = len(ids) > max_length
                if long and too_long == "error":
                    raise ValueError(
                        f"{where}line {chat.line}: got {len(ids)} tokens, expected at most "
                        f"{max_length}"
                    )
                # Nothing predicts the first two tokens of a document.
                if (long and too_long == "drop") or not any(mask[2:max_length]):
                    dropped += 1
                    continue
                truncated += long
                cut = np.array(ids[:max_length], np.int32), np.array(mask[:max_length], np.bool_)
                pairs.append(cut)
                sources.append(number)
            bar.update()
    if not pairs:
        why = f"; {told_lines(skipped)}" if skipped else ""
        raise ValueError(
            f"{where}nothing is left: {dropped} documents are longer than max_length = "
            f"{max_length}, or have nothing to learn within it{why}"
        )
    return Documents.of(
        pairs,
        truncated=truncated,
        dropped=dropped,
        skipped=tuple(skipped),
        sources=tuple(sources),
    )


def _encoder(
    chats: Sequence[Chat], tokenizer: Any, *, split_turns: bool
) -> Callable[[Chat], list[Encoded] | ValueError]:
    """What makes documents of a chat, or says what is wrong with it."""
    if any(chat.messages is not None for chat in chats):
        template = _template(tokenizer)
        marked = bool(_GENERATION.search(template)) and getattr(tokenizer, "is_fast", False)
    else:
        marked = False

    def encode(chat: Chat) -> list[Encoded]:
        if chat.messages is None:
            ids = list(tokenizer(chat.text)["input_ids"])
            return [(ids, [True] * len(ids))]
        renderer = _Renderer(tokenizer, chat)
        if not split_turns:
            return [renderer.marked() if marked else renderer.differenced()]
        turns = renderer.turns
        return [renderer.differenced(turns[: i + 1], upto=turns[i] + 1) for i in range(len(turns))]

    def tried(chat: Chat) -> list[Encoded] | ValueError:
        try:
            return encode(chat)
        except ValueError as error:
            return error

    return tried


def _template(tokenizer: Any) -> str:
    """The chat template.

    Raises:
        ValueError: There is none.
    """
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    if not isinstance(template, str) or not template:
        raise ValueError(
            f"tokenizer: {type(tokenizer).__name__} has no chat template, so that conversations "
            "cannot be laid out as the target knows them: take the tokenizer of the chat model, set "
            "tokenizer.chat_template, or render the conversations yourself and give them as "
            '{"text": ...} lines'
        )
    return template


class _Renderer:
    """One chat under a tokenizer's template."""

    def __init__(self, tokenizer: Any, chat: Chat) -> None:
        self._tokenizer = tokenizer
        self._messages = [dict(message) for message in chat.messages or ()]
        self._tools = None if chat.tools is None else list(chat.tools)
        self.turns = [i for i, m in enumerate(self._messages) if m["role"] == "assistant"]

    def marked(self) -> Encoded:
        """By the template's own marks."""
        encoded = self._apply(
            self._messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        ids = list(encoded["input_ids"])
        mask = [bool(mark) for mark in encoded["assistant_masks"]]
        if not any(mask):
            raise ValueError(
                "the chat template marks nothing as the assistant's: its {% generation %} block "
                "is not reached"
            )
        special = self._special()
        # The token that ends a turn stands behind the marks in some templates.
        for i in range(len(ids) - 1, 0, -1):
            ends = mask[i - 1] and not mask[i] and ids[i - 1] not in special
            if ends and ids[i] in special:
                mask[i] = True
        return ids, mask

    def differenced(self, turns: Sequence[int] | None = None, upto: int | None = None) -> Encoded:
        """By what rendering each turn adds to the prompt before it.

        Args:
            turns: Assistant turns of the rendering; the last one is marked where `upto` is given,
                else all.
            upto: Messages that are rendered; None for all.
        """
        whole = self._text(self._messages[:upto])
        wanted = self.turns if turns is None else turns[-1:]
        spans = [self._span(turn, whole) for turn in wanted]
        ids, places = self._places(whole, spans)
        mask = [False] * len(ids)
        special = self._special()
        for begin, end in places:
            # Behind the token that ends the turn nothing is generated: blanks of the layout.
            ends = [i for i in range(begin, end) if ids[i] in special]
            if ends and not self._tokenizer.decode(ids[ends[-1] + 1 : end]).strip():
                end = ends[-1] + 1
            mask[begin:end] = [True] * (end - begin)
        return ids, mask

    def _span(self, turn: int, whole: str) -> tuple[int, int]:
        """Where the turn's text begins and ends in the whole.

        Raises:
            ValueError: The renderings are not each the beginning of the next.
        """
        if turn == 0:
            raise ValueError(
                "it begins with an assistant turn: the chat template has no prompt before it to "
                "tell where it begins"
            )
        before = self._text(self._messages[:turn])
        through = self._text(self._messages[: turn + 1])
        for one, other, why in (
            (before, through, "the messages before it differently once it follows"),
            (through, whole, "it differently once others follow"),
        ):
            if not other.startswith(one):
                at = _common(one, other)
                raise ValueError(
                    f"the chat template of {self._name()} renders {why}: assistant's turn "
                    f"messages[{turn}], at {other[max(0, at - 20) : at + 20]!r}. Its tokens cannot "
                    "be told: give split_turns=True, or a template with {% generation %} marks"
                )
        # The header of the turn; some templates open it with more than they write down.
        prompt = self._text(self._messages[:turn], add_generation_prompt=True)
        return max(len(before), _common(prompt, through)), len(through)

    def _places(
        self, text: str, spans: Sequence[tuple[int, int]]
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of the text, and which of them lie in each span.

        Raises:
            ValueError: A slow tokenizer cuts the text differently where a span begins or ends.
        """
        if getattr(self._tokenizer, "is_fast", False):
            encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            begins = [begin for begin, _ in encoded["offset_mapping"]]
            ends = [end for _, end in encoded["offset_mapping"]]
            # A token across the border is the prompt's.
            found = [
                (bisect.bisect_left(begins, begin), bisect.bisect_right(ends, end))
                for begin, end in spans
            ]
            return list(encoded["input_ids"]), found
        ids = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        found = []
        for span in spans:
            pieces = [self._tokenizer(text[:at], add_special_tokens=False) for at in span]
            begin, end = (list(piece["input_ids"]) for piece in pieces)
            if ids[: len(begin)] != begin or ids[: len(end)] != end:
                raise ValueError(
                    f"tokenizer: {type(self._tokenizer).__name__} cuts the text differently where "
                    "an assistant's turn begins or ends, so that its tokens cannot be told; a fast "
                    "tokenizer tells where its tokens lie"
                )
            found.append((len(begin), len(end)))
        return ids, found

    def _text(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        rendered = self._apply(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return cast(str, rendered)

    def _apply(self, messages: Sequence[Message], **options: Any) -> Any:
        import jinja2

        try:
            return self._tokenizer.apply_chat_template(list(messages), tools=self._tools, **options)
        except (jinja2.TemplateError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise ValueError(
                f"the chat template of {self._name()} does not take it: {error}"
            ) from error

    def _name(self) -> str:
        return str(getattr(self._tokenizer, "name_or_path", "") or type(self._tokenizer).__name__)

    def _special(self) -> set[int]:
        known = set(self._tokenizer.all_special_ids)
        added = getattr(self._tokenizer, "added_tokens_decoder", {})
        return known | {number for number, token in added.items() if token.special}


def _common(one: str, other: str) -> int:
    """Length of what both begin with."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
