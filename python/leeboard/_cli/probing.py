"""What `leeboard draft probe` does once its options are parsed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from leeboard._cli.evaluate import demo_subject, load_target, read_prompts
from leeboard._cli.outputs import check_outputs
from leeboard.draft import load_drafter
from leeboard.draft.probe import PromptSet, probe, prompt_set
from leeboard.draft.probe.conditions import ROLES
from leeboard.draft.probe.report import FORCED
from leeboard.draft.probe.variants import FORCIBLE


def probe_drafters(args: argparse.Namespace) -> int:
    """Load, probe, print, write, draw.

    Raises:
        FileNotFoundError: There is no such model or file of prompts.
        ValueError: Options contradict each other, or a file cannot be read.
    """
    check_outputs(args, ("plot", "json"))
    force = dict(args.force)
    if wrong := [name for name in force if name not in FORCIBLE]:
        raise ValueError(f"--force {wrong[0]}: expected one of {', '.join(FORCIBLE)}")
    if args.window is not None and args.train_length is None and args.demo is None:
        raise ValueError("--window: is for long texts; give --train-length, too")
    target, drafters, prompts, new_tokens, train_length = _loaded(args)
    if force:
        told = ", ".join(f"{name}={value}" for name, value in force.items())
        print(f"*** --force {told}: {FORCED} ***\n", file=sys.stderr)
    result = probe(
        target,
        drafters,
        prompts,
        depth=args.depth,
        new_tokens=args.max_new_tokens or new_tokens,
        conditions=args.conditions,
        noise_levels=args.noise,
        force=force,
        train_length=args.train_length or train_length,
        window=args.window,
        lengths=args.lengths,
        attention=not args.no_attention,
        batch=args.batch,
        resamples=args.resamples,
        seed=args.seed,
        progress=True,
    )
    if args.json is not None:
        result.to_json(args.json)
    if args.plot is not None:
        result.plot(args.plot)
    print(result.table())
    return 0


def _loaded(args: argparse.Namespace) -> tuple[Any, dict[str, Any], PromptSet, int, int | None]:
    """(target, drafters, prompts, new tokens by default, tokens of a row in training)."""
    if args.target is None and not args.drafter:
        subject = demo_subject(args)
        prompts = _demo_prompts(subject.tokenizer, subject.prompts, args.conditions)
        return (
            subject.target,
            dict(subject.drafters),
            prompts,
            subject.new_tokens,
            subject.train_length,
        )
    if args.demo is not None:
        raise ValueError(
            "--demo: it was given with --target or --drafter, expected one or the other"
        )
    given = {"--target": args.target, "--drafter": args.drafter, "--prompts": args.prompts}
    if missing := [name for name, value in given.items() if not value]:
        raise ValueError(f"{missing[0]}: missing; see leeboard draft probe --help")
    folders = _folders(args.drafter)
    for path in (args.target, *folders.values(), args.prompts):
        if not path.exists():
            raise FileNotFoundError(f"{path}: not found")
    entries = read_prompts(args.prompts)[: args.max_prompts]
    dtype = None if args.dtype is None else getattr(torch, args.dtype)
    target, tokenizer = load_target(args.target, dtype)
    drafters = {
        name: load_drafter(folder, target=target, dtype=dtype).eval()
        for name, folder in folders.items()
    }
    return target, drafters, prompt_set(entries, tokenizer, args.conditions), 96, None


def _folders(given: Sequence[tuple[str | None, Path]]) -> dict[str, Path]:
    """Folders by name; one without a name takes its folder's."""
    folders: dict[str, Path] = {}
    for name, folder in given:
        name = name or ("drafter" if len(given) == 1 else folder.resolve().name)
        if name in folders:
            raise ValueError(f"--drafter: two are called {name!r}, expected NAME=DIR to tell them")
        folders[name] = folder
    return folders


def _demo_prompts(
    tokenizer: Any, prompts: Sequence[Sequence[int]], conditions: Sequence[str]
) -> PromptSet:
    """The demo's prompts in every condition: its template is made of tokens of their own."""
    from leeboard.demo.tokens import BOS

    before, after = (tokenizer.encode(f"<{ROLES[role]}>").ids for role in ("user", "assistant"))
    # <bos><user> ... <asst>
    ids = {
        "matched": [list(p) for p in prompts],
        "no_bos": [list(p[1:]) for p in prompts],
        "no_template": [[BOS, *p[2:-1]] for p in prompts],
        "no_template_no_bos": [list(p[2:-1]) for p in prompts],
        "renamed_roles": [[BOS, *before, *p[2:-1], *after] for p in prompts],
    }
    return PromptSet({k: v for k, v in ids.items() if k == "matched" or k in conditions})
