"""The corpus in and out of its chat template, and the prompts that drafters are counted on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from leeboard.demo.corpus import Function, draw
from leeboard.demo.tokens import ASST, BOS, USER, Documents
from leeboard.reproduce.settings import CONDITIONS, Settings


def mixture(documents: Documents) -> Documents:
    """Every templated document twice, raw with BOS once, and raw once: what the target learns.

    In 50% : 25% : 25% the target meets the formats that drafters are tested on, so that a drafter
    alone is off its training.
    """
    parts, lengths, answers = [], [], []
    bounds = zip(documents.starts[:-1], documents.starts[1:], documents.answers, strict=True)
    for start, end, answer in bounds:
        document = documents.ids[start:end]
        # <bos> <user> user <asst> body <eot>
        user, body = document[2 : answer - start - 1], document[answer - start :]
        for opening, form in (
            (answer - start, document),
            (answer - start, document),
            (1 + len(user), np.concatenate(([BOS], user, body))),
            (len(user), np.concatenate((user, body))),
        ):
            parts.append(form.astype(np.uint16))
            lengths.append(len(form))
            answers.append(opening)
    starts = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    return Documents(np.concatenate(parts), starts, starts[:-1] + np.array(answers))


def in_condition(user: Sequence[int], condition: str) -> list[int]:
    """A user's turn as the prompt of a condition out of `CONDITIONS`."""
    template, bos = CONDITIONS[condition]
    turn = [USER, *user, ASST] if template else list(user)
    return [BOS, *turn] if bos else turn


def choose(
    functions: Sequence[Function], tokenizer: Any, settings: Settings
) -> tuple[list[list[int]], list[list[int]]]:
    """The user's turns to count on, and those for the checks in training, as token ids.

    Documented functions with room for an answer; files in a drawn order, one function of each
    before any file's second, and no file in both lists.

    Raises:
        ValueError: There are fewer than the settings ask for.
    """
    by_file: dict[str, list[list[int]]] = defaultdict(list)
    for function in sorted(functions, key=lambda f: draw(settings.seed, f.file + f.name + f.user)):
        if function.documented and len(function.body) > 80:
            user = tokenizer.encode(function.user).ids
            if len(in_condition(user, "template + BOS")) <= settings.prompt_tokens:
                by_file[function.file].append(user)
    files = sorted(by_file, key=lambda file: draw(settings.seed + 1, file))
    share = settings.checks / (settings.checks + settings.prompts)
    cut = max(1, round(share * len(files)))
    chosen = []
    for name, wanted, part in (
        ("prompts", settings.prompts, files[cut:]),
        ("checks", settings.checks, files[:cut]),
    ):
        turns = [by_file[file] for file in part]
        ranked = [(rank, place) for place, turn in enumerate(turns) for rank in range(len(turn))]
        if len(ranked) < wanted:
            raise ValueError(
                f"{name}: got {wanted}, expected at most {len(ranked)}, the held-out functions that "
                "fit"
            )
        chosen.append([turns[place][rank] for rank, place in sorted(ranked)[:wanted]])
    return chosen[0], chosen[1]


def long_contexts(
    files: Sequence[tuple[Sequence[Sequence[int]], Sequence[Sequence[int] | None]]],
    settings: Settings,
) -> list[list[list[int]]]:
    """The same prompts behind ever more of the functions before them in their file.

    With a context in bucket i (from 0) a text begins to be generated after at least i * row tokens
    and ends within (i + 1) * row. Whole functions are taken, the nearest first; those that do not
    fit are passed over.

    Args:
        files: Of every held-out file, in its order, the templated functions, and the templated
            prompt of each, or None where it is not to be used.
        settings: `buckets` of `row` tokens, `contexts` in each, texts of `context_tokens` tokens.

    Returns:
        [buckets][contexts] prompts; entry n of all buckets ends in the same function's prompt.

    Raises:
        ValueError: There are fewer than the settings ask for.
    """
    room = settings.row - settings.context_tokens
    candidates = []
    for place, (documents, prompts) in enumerate(files):
        rank = 0
        # The last functions have the most before them.
        for at in range(len(documents) - 1, 0, -1):
            prompt = prompts[at]
            if prompt is None or len(prompt) > room:
                continue
            found = [
                _behind(prompt, documents[:at], bucket * settings.row, room)
                for bucket in range(settings.buckets)
            ]
            if all(found):
                candidates.append((rank, place, [ids for ids in found if ids]))
                rank += 1
    if len(candidates) < settings.contexts:
        raise ValueError(
            f"contexts: got {settings.contexts}, expected at most {len(candidates)}, the held-out "
            "functions with enough before them"
        )
    candidates.sort(key=lambda candidate: candidate[:2])
    chosen = [ids for _, _, ids in candidates[: settings.contexts]]
    return [[ids[bucket] for ids in chosen] for bucket in range(settings.buckets)]


def _behind(
    prompt: Sequence[int], before: Sequence[Sequence[int]], least: int, room: int
) -> list[int] | None:
    """The prompt behind some of the documents: `least` to `least + room` tokens, or None."""
    ids = list(prompt)
    for document in reversed(before):
        if len(ids) >= least:
            break
        if len(document) + len(ids) <= least + room:
            ids = [*document, *ids]
    return ids if len(ids) >= least else None
