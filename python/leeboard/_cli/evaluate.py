"""`leeboard draft eval`: what a target accepts of a drafter's tokens, and how fast that is."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leeboard._cli.tables import progress_bar, table
from leeboard.draft import (
    Drafter,
    Eagle3Drafter,
    SpeculateResult,
    load_drafter,
    quantize,
    speculate,
)

_DEMO = Path("runs", "demo")
_TITLES = {"post": "post-norm", "pre": "pre-norm"}


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a target, drafters for it by name, prompts as token ids.

    `new_tokens` is how many of them to decode where the options do not say, `train_length` the
    tokens of a row in the drafters' training where it is known.
    """

    target: Any
    drafters: Mapping[str, Drafter]
    prompts: Sequence[Sequence[int]]
    new_tokens: int = 96
    tokenizer: Any = None
    train_length: int | None = None


@torch.no_grad()
def evaluate(args: argparse.Namespace) -> None:
    """Decode as the parsed options say, and print the table.

    Raises:
        FileNotFoundError: There is no such model or file of prompts.
        ValueError: Options contradict each other, or a file cannot be read.
    """
    if not 0 <= args.temperature < math.inf:
        raise ValueError(f"--temperature: got {args.temperature}, expected a number from 0 up")
    subject = _subject(args)
    drafters = dict(subject.drafters)
    for name, drafter in subject.drafters.items():
        for format_ in args.quantize:
            if isinstance(drafter, Eagle3Drafter):
                drafters[f"{name} {format_}"] = quantize(drafter, format_)
                continue
            raise ValueError(f"--quantize: {name} is no EAGLE-3 drafter, expected no --quantize")
    figures = {
        "temperature": args.temperature,
        "depth": args.depth,
        "batch": args.batch,
        "prompts": len(subject.prompts),
        **_decode(subject, drafters, args),
    }
    print(_report(figures))
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


def _subject(args: argparse.Namespace) -> Subject:
    given = {"--target": args.target, "--drafter": args.drafter}
    if not any(given.values()):
        return demo_subject(args)
    if args.demo is not None:
        raise ValueError(
            "--demo: it was given with --target or --drafter, expected one or the other"
        )
    if missing := [name for name, path in given.items() if path is None]:
        raise ValueError(f"{missing[0]}: missing, expected a folder")
    if args.prompts is None:
        raise ValueError("--prompts: missing, expected a .jsonl or text file")
    for path in (args.target, args.drafter, args.prompts):
        if not path.exists():
            raise FileNotFoundError(f"{path}: not found")
    dtype = None if args.dtype is None else getattr(torch, args.dtype)
    target, tokenizer = load_target(args.target, dtype)
    drafter = load_drafter(args.drafter, target=target, dtype=dtype)
    prompts = [_encoded(tokenizer, entry) for entry in read_prompts(args.prompts)]
    return Subject(target, {"drafter": drafter}, prompts[: args.max_prompts], tokenizer=tokenizer)


def load_target(folder: Path, dtype: torch.dtype | None) -> tuple[Any, Any]:
    """(target, tokenizer) of a folder; None for the dtype of the files."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    target = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype or "auto", local_files_only=True
    ).eval()
    return target, AutoTokenizer.from_pretrained(folder, local_files_only=True)


def demo_subject(args: argparse.Namespace) -> Subject:
    """Target, drafters and held-out prompts of a run of the demo."""
    folder = args.demo or _DEMO
    if not (folder / "results.json").is_file():
        raise FileNotFoundError(
            f"{folder / 'results.json'}: not found; give --target, --drafter and --prompts, or run "
            "`leeboard demo` first (with --out, name its folder by --demo)"
        )
    if args.prompts is not None:
        raise ValueError("--prompts: given without --target, expected none: the demo has its own")
    from transformers.utils import logging

    from leeboard._files import read_json
    from leeboard.demo.drafters import load_drafters
    from leeboard.demo.evaluate import choose_prompts
    from leeboard.demo.pipeline import Demo, read_functions
    from leeboard.demo.settings import Settings
    from leeboard.demo.target import load_target
    from leeboard.demo.tokens import load_tokenizer, prompt_ids

    logging.disable_progress_bar()
    settings = Settings(**read_json(folder / "results.json")["settings"])
    demo = Demo(settings, folder, threads=1, say=lambda line: None, build=False)
    corpus, tokens, target, drafters = demo.trained()
    tokenizer = load_tokenizer(tokens.path / "tokenizer.json")
    functions = choose_prompts(read_functions(corpus, "heldout"), tokenizer, settings)
    prompts = [prompt_ids(tokenizer, function.user) for function in functions]
    loaded = load_drafters(drafters.path)
    model = load_target(target.path)
    if args.dtype is not None:
        dtype = getattr(torch, args.dtype)
        model, loaded = model.to(dtype), {name: d.to(dtype) for name, d in loaded.items()}
    named = {_TITLES[name]: drafter for name, drafter in loaded.items()}
    return Subject(
        model,
        named,
        prompts[: args.max_prompts],
        settings.new_tokens,
        tokenizer,
        settings.drafter_row,
    )


def read_prompts(path: Path) -> list[Any]:
    """Prompts of a file: strings, or lists of chat messages.

    Raises:
        ValueError: A line is not what was expected, or there is none.
    """
    prompts: list[Any] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        if path.suffix != ".jsonl":
            prompts.append(line)
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}: line {number}: not JSON ({error})") from error
        keys = {"prompt": str, "text": str, "messages": list}
        found = [key for key in keys if isinstance(entry, dict) and key in entry]
        if len(found) != 1 or not isinstance(entry[found[0]], keys[found[0]]):
            raise ValueError(
                f'{path}: line {number}: expected an object with one of "prompt", "text" (a string) '
                'and "messages" (a list)'
            )
        prompts.append(entry[found[0]])
    if not prompts:
        raise ValueError(f"{path}: no prompts")
    return prompts


def _encoded(tokenizer: Any, prompt: Any) -> list[int]:
    # A template writes the special tokens itself.
    plain = isinstance(prompt, str)
    if not plain:
        prompt = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(prompt, add_special_tokens=plain)["input_ids"]
    if not ids:
        raise ValueError(f"--prompts: {prompt!r} has no tokens")
    return ids


def _decode(
    subject: Subject, drafters: Mapping[str, Drafter], args: argparse.Namespace
) -> dict[str, Any]:
    """Decode every batch in every way, which take turns, and add up."""
    most = args.max_new_tokens or subject.new_tokens
    results: dict[str, list[SpeculateResult]] = {name: [] for name in drafters}
    alone: list[tuple[int, float]] = []
    equal = dict.fromkeys(drafters, 0)
    batches = [
        subject.prompts[i : i + args.batch] for i in range(0, len(subject.prompts), args.batch)
    ]

    def draft(name: str, ids: Tensor, mask: Tensor, new: int) -> SpeculateResult:
        return speculate(
            subject.target,
            drafters[name],
            ids,
            attention_mask=mask,
            max_new_tokens=new,
            depth=args.depth,
            temperature=args.temperature,
            generator=torch.Generator(ids.device).manual_seed(args.seed),
        )

    with progress_bar("prompts", len(batches)) as advance:
        for number, batch in enumerate(batches):
            ids, mask = _padded(batch)
            if number == 0:
                # The first calls set up what the later ones find ready.
                _generate(subject.target, ids, mask, 2, args)
                for name in drafters:
                    draft(name, ids, mask, 2)
            rows, seconds = _generate(subject.target, ids, mask, most, args)
            alone.append((sum(map(len, rows)), seconds))
            for name in drafters:
                result = draft(name, ids, mask, most)
                results[name].append(result)
                ours = result.tokens[:, ids.shape[1] :]
                for row, length, theirs in zip(ours, result.lengths.tolist(), rows, strict=True):
                    equal[name] += row[:length].tolist() == theirs
            advance(1)
    tokens, seconds = (sum(column) for column in zip(*alone, strict=True))
    return {
        "alone": {"new_tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds},
        "ways": {
            name: _totals(results[name], args.depth)
            | {
                "nbytes": drafters[name].nbytes(),
                "equal_to_greedy": equal[name] if args.temperature == 0 else None,
            }
            for name in drafters
        },
    }


def _padded(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(ids, mask) [B, T], padded on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[*[0] * (width - len(p)), *p] for p in prompts])
    lengths = torch.tensor([[len(p)] for p in prompts])
    return ids, (torch.arange(width) >= width - lengths).long()


def _generate(
    target: Any, ids: Tensor, mask: Tensor, most: int, args: argparse.Namespace
) -> tuple[list[list[int]], float]:
    """(new tokens per sequence, seconds) of the target without a drafter."""
    given = target.generation_config.eos_token_id
    stops = set(given if isinstance(given, list) else [] if given is None else [given])
    sampling: dict[str, Any] = {"do_sample": False}
    if args.temperature > 0:
        sampling = {"do_sample": True, "temperature": args.temperature, "top_k": 0, "top_p": 1.0}
    began = time.perf_counter()
    tokens = target.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=most,
        pad_token_id=min(stops, default=0),
        **sampling,
    )
    seconds = time.perf_counter() - began
    rows = []
    for row in tokens[:, ids.shape[1] :].tolist():
        end = next((i + 1 for i, token in enumerate(row) if token in stops), len(row))
        rows.append(row[:end])
    return rows, seconds


def _totals(results: Sequence[SpeculateResult], depth: int) -> dict[str, Any]:
    """Counts over all batches and the figures that follow from them."""
    rounds = sum(result.rounds for result in results)
    accepted = sum(sum(result.accepted_per_round) for result in results)
    reached = [sum(result.reached_by_depth[j] for result in results) for j in range(depth)]
    kept = [sum(result.accepted_by_depth[j] for result in results) for j in range(depth)]
    tokens = sum(result.new_tokens for result in results)
    seconds = sum(result.seconds for result in results)
    mean = accepted / max(rounds, 1)
    return {
        "new_tokens": tokens,
        "target_forwards": sum(result.target_forwards for result in results),
        "rounds": rounds,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "mean_accepted": mean,
        "tau": mean + 1,
        "reached_by_depth": reached,
        "accepted_by_depth": kept,
        "acceptance_by_depth": [a / r if r else None for a, r in zip(kept, reached, strict=True)],
    }


def _report(figures: dict[str, Any]) -> str:
    depth, prompts = figures["depth"], figures["prompts"]
    greedy = figures["temperature"] == 0
    header = ["", "MB", "accepted", "tau", "tokens/s", *(f"@{j + 1}" for j in range(depth))]
    alone = figures["alone"]
    rows = [["target alone", "", "", "", f"{alone['tokens_per_second']:.1f}", *[""] * depth]]
    for name, way in figures["ways"].items():
        shares = ["-" if s is None else f"{s:.0%}" for s in way["acceptance_by_depth"]]
        rows.append(
            [
                name,
                f"{way['nbytes'] / 1e6:.1f}",
                f"{way['mean_accepted']:.2f}",
                f"{way['tau']:.2f}",
                f"{way['tokens_per_second']:.1f}",
                *shares,
            ]
        )
    if greedy:
        header.append("equal")
        rows[0].append("")
        for row, way in zip(rows[1:], figures["ways"].values(), strict=True):
            row.append(f"{way['equal_to_greedy']}/{prompts}")
    notes = [
        f"{prompts} prompts, batch {figures['batch']}, temperature {figures['temperature']:g}.",
        "accepted: drafts per round; tau counts the target's own token too;",
        "@j: share of drafts at depth j accepted, where those before were.",
    ]
    if greedy:
        notes.append("equal: outputs equal to the target's own greedy ones.")
    return "\n".join([table(header, rows), "", *notes])
