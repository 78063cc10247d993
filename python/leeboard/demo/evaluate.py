"""Decoding held-out prompts: plainly, and with each drafter."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from leeboard._progress import progress_bar
from leeboard.demo.corpus import Function, draw
from leeboard.demo.settings import Settings
from leeboard.demo.tokens import EOT, prompt_ids
from leeboard.draft import Eagle3Drafter, SpeculateResult, speculate
from leeboard.draft.target import cache_arguments, new_cache


def choose_prompts(
    functions: Sequence[Function], tokenizer: Any, settings: Settings
) -> list[Function]:
    """Documented functions with room for an answer, one per file before any file's second.

    Raises:
        ValueError: There are fewer than `settings.prompts`.
    """
    order = sorted(
        (f for f in functions if f.documented and len(f.body) > 80),
        key=lambda f: draw(settings.seed, f.file + f.name + f.user),
    )
    seen: dict[str, int] = {}
    ranked = []
    for function in order:
        if len(prompt_ids(tokenizer, function.user)) <= settings.prompt_tokens:
            rank = seen[function.file] = seen.get(function.file, -1) + 1
            ranked.append((rank, function))
    if len(ranked) < settings.prompts:
        raise ValueError(
            f"prompts: got {settings.prompts}, expected at most {len(ranked)}, the held-out "
            "functions that fit"
        )
    ranked.sort(key=lambda pair: pair[0])
    return [function for _, function in ranked[: settings.prompts]]


@torch.no_grad()
def greedy(target: Any, prompt: Tensor, new_tokens: int) -> tuple[Tensor, float]:
    """Plain greedy decoding with a KV cache: (tokens [1, T + new], seconds)."""
    began = time.perf_counter()
    cached = cache_arguments(target, new_cache())
    tokens, step = prompt, prompt
    for _ in range(new_tokens):
        logits = target(input_ids=step, logits_to_keep=1, **cached).logits
        step = logits[:, -1:].argmax(-1)
        tokens = torch.cat((tokens, step), dim=1)
        if int(step) == EOT:
            break
    return tokens, time.perf_counter() - began


def decode_prompts(
    settings: Settings,
    target: Any,
    drafters: Mapping[str, Eagle3Drafter],
    tokenizer: Any,
    functions: Sequence[Function],
    title: str,
) -> dict[str, Any]:
    """Decode every prompt in every way and gather the figures.

    Every drafter decodes with chains as long as in its training and with chains of
    `settings.depth`. The ways take turns on each prompt, so that a slow moment of the machine does
    not fall on one of them alone.

    Returns:
        JSON-ready: "plain" and "runs" (per drafter, per chain depth) with the totals, "prompts"
        with one entry each, "sample" with one decoded text.
    """
    depths = sorted({settings.ttt, settings.depth})
    ways = [(name, depth) for name in drafters for depth in depths]
    results: dict[tuple[str, int], list[SpeculateResult]] = {way: [] for way in ways}
    prompts: list[dict[str, Any]] = []
    plain_seconds = 0.0
    texts: list[Tensor] = []

    def draft(prompt: Tensor, name: str, depth: int, new_tokens: int) -> SpeculateResult:
        return speculate(
            target,
            drafters[name],
            prompt,
            max_new_tokens=new_tokens,
            depth=depth,
            eos_token_id=EOT,
            collect_states=True,
        )

    with progress_bar(title, len(functions)) as bar:
        for number, function in enumerate(functions):
            prompt = torch.tensor([prompt_ids(tokenizer, function.user)])
            if number == 0:
                # The first calls set up caches that the later ones find ready.
                greedy(target, prompt, 4)
                for name, depth in ways:
                    draft(prompt, name, depth, 4)
            expected, seconds = greedy(target, prompt, settings.new_tokens)
            plain_seconds += seconds
            texts.append(expected)
            equal = {}
            turn = number % len(ways)
            for name, depth in ways[turn:] + ways[:turn]:
                result = draft(prompt, name, depth, settings.new_tokens)
                results[name, depth].append(result)
                equal[f"{name}@{depth}"] = torch.equal(result.tokens, expected)
            prompts.append(
                {
                    "file": function.file,
                    "name": function.name,
                    "prompt_tokens": prompt.shape[1],
                    "new_tokens": expected.shape[1] - prompt.shape[1],
                    "equal_to_greedy": equal,
                }
            )
            bar.update()

    new_tokens = sum(prompt["new_tokens"] for prompt in prompts)
    runs: dict[str, dict[str, Any]] = {name: {} for name in drafters}
    for (name, depth), members in results.items():
        runs[name][str(depth)] = _totals(members, depth) | {
            "equal_to_greedy": sum(p["equal_to_greedy"][f"{name}@{depth}"] for p in prompts)
        }
    shown = _telling(results["post", settings.depth])
    sample = results["post", settings.depth][shown]
    return {
        "plain": {
            "new_tokens": new_tokens,
            "target_forwards": new_tokens,
            "seconds": plain_seconds,
            "tokens_per_second": new_tokens / plain_seconds,
        },
        "runs": runs,
        "prompts": prompts,
        "sample": {
            "file": functions[shown].file,
            "prompt": functions[shown].user,
            "pieces": _pieces(tokenizer, sample),
            "new_tokens": sample.new_tokens,
            "target_forwards": sample.target_forwards,
        },
    }


def _totals(results: Sequence[SpeculateResult], depth: int) -> dict[str, Any]:
    """Counts over all prompts and the figures that follow from them."""
    rounds = sum(result.rounds for result in results)
    accepted = sum(sum(result.accepted_per_round) for result in results)
    reached = [sum(result.reached_by_depth[j] for result in results) for j in range(depth)]
    kept = [sum(result.accepted_by_depth[j] for result in results) for j in range(depth)]
    new_tokens = sum(result.new_tokens for result in results)
    forwards = sum(result.target_forwards for result in results)
    seconds = sum(result.seconds for result in results)
    mean = accepted / max(rounds, 1)
    return {
        "new_tokens": new_tokens,
        "target_forwards": forwards,
        "rounds": rounds,
        "seconds": seconds,
        "tokens_per_second": new_tokens / seconds,
        "tokens_per_target_forward": new_tokens / forwards,
        "mean_accepted": mean,
        "tau": mean + 1,
        "reached_by_depth": reached,
        "accepted_by_depth": kept,
        "acceptance_by_depth": [a / r if r else None for a, r in zip(kept, reached, strict=True)],
        "share_by_depth": [a / max(rounds, 1) for a in kept],
        "state_rms_by_depth": _weighted_rms(results, depth),
    }


def _weighted_rms(results: Sequence[SpeculateResult], depth: int) -> list[float]:
    """State RMS per depth: the mean over prompts, weighted by their rounds."""
    rms = []
    for j in range(depth):
        pairs = [
            (result.state_rms_by_depth[j], result.rounds)
            for result in results
            if result.state_rms_by_depth is not None and len(result.state_rms_by_depth) > j
        ]
        rms.append(sum(value * n for value, n in pairs) / max(sum(n for _, n in pairs), 1))
    return rms


def _telling(results: Sequence[SpeculateResult]) -> int:
    """Index of the sample to show: of middling length, with the acceptance nearest the mean."""
    mean = sum(result.tau for result in results) / len(results)
    lengths = sorted(result.new_tokens for result in results)
    middle = lengths[len(lengths) // 2]
    fit = [i for i, result in enumerate(results) if result.new_tokens <= middle and result.rounds]
    fit = [i for i in fit if results[i].new_tokens >= 20] or fit or [0]
    return min(fit, key=lambda i: abs(results[i].tau - mean))


def _pieces(tokenizer: Any, result: SpeculateResult) -> list[tuple[str, bool]]:
    """The new text in runs: (text, drafted), where drafted tokens were accepted by the target."""
    drafted = [False]
    for accepted in result.accepted_per_round:
        drafted += [True] * accepted + [False]
    ids = result.tokens[0, -result.new_tokens :].tolist()
    runs: list[tuple[list[int], bool]] = []
    for token, flag in zip(ids, drafted, strict=False):
        if token == EOT:
            break
        if not runs or runs[-1][1] != flag:
            runs.append(([], flag))
        runs[-1][0].append(token)
    return [(tokenizer.decode(part), flag) for part, flag in runs]
