"""What all arms share: the training rows with the target's states, and the held-out texts."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from leeboard._files import replacing
from leeboard._progress import progress_bar
from leeboard.demo.corpus import Function
from leeboard.demo.tokens import EOT, Documents, encode, pack
from leeboard.draft import DrafterConfig, Eagle3Drafter
from leeboard.draft.probe import Texts, greedy_texts, looping
from leeboard.draft.training import CachedStates, OnlineStates, Rows, StateSource, cache_states
from leeboard.reproduce.formats import choose, in_condition, long_contexts
from leeboard.reproduce.measure import Held
from leeboard.reproduce.settings import CONDITIONS, MATCHED, Settings


def load_target(path: Path) -> Any:
    """A Hugging Face causal LM from its folder (or its name), in float32, ready to decode."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(path), dtype=torch.float32).eval()


def held_texts(
    settings: Settings, target: Any, tokenizer: Any, functions: Sequence[Function], title: str
) -> tuple[Held, dict[str, Any]]:
    """Let the target answer held-out prompts greedily, in every condition and behind every context.

    Args:
        settings: Numbers and lengths.
        target: The target.
        tokenizer: Its tokenizer.
        functions: The held-out part of the corpus.
        title: Shown in front of the progress bar.

    Returns:
        The texts, and what to say of them: per condition the tokens written, the share of texts
        that loop, and the target's loss on its prompts' own text.
    """
    turns, checks = choose(functions, tokenizer, settings)
    contexts = long_contexts(_by_file(functions, tokenizer, settings), settings)
    wanted = [
        *(
            (name, [in_condition(t, name) for t in turns], settings.new_tokens)
            for name in CONDITIONS
        ),
        ("checks", [in_condition(turn, MATCHED) for turn in checks], settings.new_tokens),
        *((str(n), prompts, settings.context_tokens) for n, prompts in enumerate(contexts)),
    ]
    made: dict[str, Texts] = {}
    with progress_bar(title, len(wanted)) as bar:
        for name, prompts, new_tokens in wanted:
            made[name] = greedy_texts(target, prompts, new_tokens, eos_token_id=EOT)
            bar.update()
    held = Held(
        {name: made[name] for name in CONDITIONS},
        tuple(made[str(n)] for n in range(settings.buckets)),
        made["checks"],
    )
    return held, described(target, held)


def described(target: Any, held: Held) -> dict[str, Any]:
    """What to say of the texts: see `held_texts`."""
    conditions = held.conditions.items()
    return {
        "loops": {name: _looping(texts) for name, texts in conditions},
        "new_tokens": {
            name: int((texts.lengths - texts.prompts).sum()) for name, texts in conditions
        },
        "prompt_loss": {name: _prompt_loss(target, texts) for name, texts in conditions},
        "contexts": [
            {"tokens": float(texts.prompts.double().mean()), "loops": _looping(texts)}
            for texts in held.contexts
        ],
    }


def _looping(texts: Texts) -> float:
    """Share of the texts that turn in circles."""
    count = len(texts.lengths)
    return sum(looping(texts.continuation(b)) for b in range(count)) / count


@torch.no_grad()
def _prompt_loss(target: Any, texts: Texts) -> float:
    """Nats per token of the prompts: is the target at home in this condition?"""
    ids = texts.ids.to(target.device)
    logits = target(input_ids=ids, use_cache=False).logits[:, :-1]
    losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    places = torch.arange(1, ids.shape[1], device=ids.device)
    inside = places < texts.prompts.to(ids.device)[:, None]
    return float(losses.view(inside.shape)[inside].mean())


def _by_file(functions: Sequence[Function], tokenizer: Any, settings: Settings) -> Any:
    """For `long_contexts`: per file its functions as templated ids, and the prompts among them."""
    files: dict[str, list[Function]] = defaultdict(list)
    for function in functions:
        files[function.file].append(function)
    found = []
    for members in files.values():
        documents = encode(tokenizer, members)
        bounds = list(zip(documents.starts[:-1], documents.starts[1:], strict=True))
        ids = [documents.ids[start:end].tolist() for start, end in bounds]
        prompts = [
            text[: int(answer - start)] if f.documented and len(f.body) > 80 else None
            for f, text, answer, (start, _) in zip(
                members, ids, documents.answers, bounds, strict=True
            )
        ]
        found.append((ids, prompts))
    return found


def pool(settings: Settings, documents: Documents) -> Rows:
    """The drafters' training rows.

    A row is one context, as a long prompt is; what a drafter has seen ends at its length.

    Args:
        settings: How many rows, how long.
        documents: The templated training part of the corpus.
    """
    ids, marks = pack(documents, settings.pool_rows, settings.row, settings.seed + 1)
    positions = torch.arange(settings.row).expand(settings.pool_rows, -1)
    return Rows(torch.from_numpy(ids), torch.from_numpy(marks), positions.contiguous())


@torch.no_grad()
def keep_states(settings: Settings, target: Any, rows: Rows, folder: Path, title: str) -> None:
    """Keep training rows and, with `settings.cached`, the target's states of them in shards.

    Args:
        settings: Whether to.
        target: The target.
        rows: The rows.
        folder: Where the files go.
        title: Shown in front of the progress bar.
    """
    with replacing(folder / "rows.npz") as temporary, temporary.open("wb") as stream:
        np.savez(stream, **{name: value.numpy() for name, value in vars(rows).items()})
    if settings.cached:
        print(title, file=sys.stderr)
        cache_states(target, _reader(target), rows, folder / "shards", dtype=torch.float16)


def open_states(settings: Settings, folder: Path, target: Any, device: str) -> StateSource:
    """What `keep_states` kept: batches with the target's states, on a device."""
    if settings.cached:
        return CachedStates(folder / "shards", target=target, device=device)
    with np.load(folder / "rows.npz", allow_pickle=False) as arrays:
        rows = Rows(**{name: torch.from_numpy(arrays[name]) for name in arrays.files})
    return OnlineStates(target, _reader(target), rows, device=device)


def _reader(target: Any) -> Eagle3Drafter:
    """A drafter that says which states are read; the same for every arm."""
    return Eagle3Drafter(DrafterConfig.for_target(target.config))
