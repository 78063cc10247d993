"""A Hugging Face target and chats of one's own, in place of the small target and its corpus."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leeboard._progress import progress_bar
from leeboard.demo.corpus import draw
from leeboard.demo.stages import Stage
from leeboard.draft.probe import Texts, greedy_texts, prompt_set
from leeboard.draft.probe.context import begin_id, long_prompts
from leeboard.draft.training import Rows, pack_rows
from leeboard.draft.training.chats import Chat, read_chats
from leeboard.draft.training.encoding import encode_chats
from leeboard.reproduce.material import described
from leeboard.reproduce.measure import Held
from leeboard.reproduce.settings import MATCHED, Settings

# As `leeboard.draft.probe` calls them.
_CONDITIONS = {
    "matched": MATCHED,
    "no_bos": "template, no BOS",
    "no_template": "raw + BOS",
    "no_template_no_bos": "raw",
}


@dataclass(frozen=True)
class Given:
    """What to run on.

    Attributes:
        target: Folder or name of a Hugging Face causal LM with a chat template.
        data: JSONL, chats with `messages` in every line.
    """

    target: str
    data: Path

    def stage(self) -> Stage:
        """The target as a stage that is there already."""
        key = hashlib.sha256(self.target.encode()).hexdigest()[:12]
        return Stage("target", key, Path(self.target), 0.0, reused=True)

    def facts(self) -> dict[str, Any]:
        """What a stage's files depend on."""
        content = hashlib.sha256(self.data.read_bytes()).hexdigest()[:16]
        return {"target": self.target, "data": content}

    def tokenizer(self) -> Any:
        """Of the target."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.target)

    def split(self, settings: Settings) -> tuple[list[Chat], list[Chat]]:
        """Chats to train on, and those held out, by a hash of their place in the file."""
        parts: tuple[list[Chat], list[Chat]] = ([], [])
        for chat in read_chats(self.data):
            held = draw(settings.seed, str(chat.line)) < settings.heldout_share
            parts[held].append(chat)
        return parts

    def rows(self, settings: Settings) -> Rows:
        """Training rows; documents that share one do not see each other.

        Raises:
            ValueError: The file or the template cannot be used; the message says why.
        """
        documents = encode_chats(self.split(settings)[0], self.tokenizer(), settings.row)
        return pack_rows(documents, settings.row, settings.seed)

    def held(self, settings: Settings, target: Any, title: str) -> tuple[Held, dict[str, Any]]:
        """The held-out texts, as `leeboard.reproduce.material.held_texts` makes them.

        Raises:
            ValueError: There are too few held-out chats that fit.
        """
        tokenizer = self.tokenizer()
        prompts = self._prompts(settings, tokenizer)
        wanted = settings.prompts + settings.checks
        if len(prompts) < wanted:
            raise ValueError(
                f"{self.data}: {len(prompts)} held-out chats have a prompt of at most "
                f"{settings.prompt_tokens} tokens, expected {wanted}: give more chats, fewer "
                "--prompts, or another preset"
            )
        chosen = prompt_set(prompts[:wanted], tokenizer, tuple(_CONDITIONS))
        made: dict[str, Texts] = {}
        names = [name for name in _CONDITIONS if name in chosen.ids]
        with progress_bar(title, len(names) + 1 + settings.buckets) as bar:
            for name in names:
                ids = chosen.ids[name][: settings.prompts]
                made[_CONDITIONS[name]] = greedy_texts(target, ids, settings.new_tokens)
                bar.update()
            rest = chosen.ids["matched"][settings.prompts : wanted]
            checks = greedy_texts(target, rest, settings.new_tokens)
            bar.update()
            contexts = []
            for bucket in range(1, settings.buckets + 1):
                length = bucket * settings.row - settings.context_tokens
                long = long_prompts(made[MATCHED], length, begin_id(target))[: settings.contexts]
                contexts.append(greedy_texts(target, long, settings.context_tokens))
                bar.update()
        held = Held(made, tuple(contexts), checks)
        return held, {**described(target, held), "notes": list(chosen.notes)}

    def _prompts(self, settings: Settings, tokenizer: Any) -> list[Sequence[Any]]:
        """The held-out chats up to their first answer, those that are short enough."""
        prompts: list[Sequence[Any]] = []
        for chat in self.split(settings)[1]:
            turns = []
            for message in chat.messages or ():
                if message["role"] == "assistant":
                    break
                turns.append(message)
            if turns:
                (ids,) = prompt_set([turns], tokenizer, ("matched",)).ids["matched"]
                if len(ids) <= settings.prompt_tokens:
                    prompts.append(turns)
        return prompts
