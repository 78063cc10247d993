"""What `leeboard draft train` does."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from leeboard._cli.tables import table
from leeboard._cli.train import DEFAULTS
from leeboard.draft import DrafterConfig, MTPConfig, Trained, TrainSettings, load_drafter
from leeboard.draft.training import train_drafter
from leeboard.draft.training.logs import check_tensorboard
from leeboard.draft.training.parallel import local_device, processes


def train(args: argparse.Namespace) -> int:
    """Train as the parsed options say, and tell what came out.

    Raises:
        FileNotFoundError: A file or folder is missing.
        ImportError: A package is missing.
        ValueError: Options contradict each other, or as `train_drafter` raises.
    """
    settings = settings_of(args)
    for path in (args.data, args.heldout, args.init):
        if path is not None and not path.exists():
            raise FileNotFoundError(f"{path}: not found")
    if args.tensorboard:
        check_tensorboard()
    if args.init is not None and (args.set or args.draft_vocab):
        raise ValueError("--init: given with --set or --draft-vocab, expected one or the other")
    if args.mtp and args.draft_vocab:
        raise ValueError("--draft-vocab: given with --mtp, whose heads draft from all tokens")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device = local_device(args.device)
    group = processes(device)
    target = load_target(args.target, args.dtype).to(device)
    config = drafter = None
    if args.init is not None:
        drafter = load_drafter(args.init, target=target, dtype=torch.float32, device=device)
    else:
        config = config_of(args, target.config)
    tokenizer = None
    if args.tokenizer is not None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    trained = train_drafter(
        target,
        args.data,
        config=config,
        drafter=drafter,
        tokenizer=tokenizer,
        out=args.out,
        settings=settings,
        states=args.states,
        heldout=args.heldout,
        resume=not args.fresh,
        tensorboard=args.tensorboard,
        say=lambda line: print(line, file=sys.stderr),
    )
    if group.first:
        print(_report(trained, args))
    return 0


def settings_of(args: argparse.Namespace) -> TrainSettings:
    """The settings that the options ask for."""
    given = {name: getattr(args, name) for name in DEFAULTS if hasattr(args, name)}
    for name in ("steps", "length", "step_weights", "evaluate_every", "checkpoint_every"):
        if getattr(args, name) is not None:
            given[name] = getattr(args, name)
    if args.step_weights is not None and "ttt" not in given:
        given["ttt"] = len(args.step_weights)
    given["packed"] = not args.no_packing
    given["split_turns"], given["skip_broken"] = args.split_turns, args.skip_broken
    given["ignore_keys"] = args.ignore_keys or ()
    return TrainSettings(**given)


def config_of(args: argparse.Namespace, target_config: Any) -> DrafterConfig | MTPConfig:
    """The drafter that the options ask for, made to fit the target.

    Raises:
        ValueError: A field is unknown or out of range.
    """
    kind = MTPConfig if args.mtp else DrafterConfig
    known = {field.name for field in dataclasses.fields(kind)}
    fields = {name: _json(value) for name, value in args.set}
    if unknown := sorted(fields.keys() - known):
        raise ValueError(
            f"--set: got {unknown}, expected fields of {kind.__name__}: {sorted(known)}"
        )
    if args.mtp:
        return MTPConfig.for_target(target_config, args.mtp, **fields)
    switches = {"norm_output": False, "fc_norm": False} if args.pre_norm else {}
    if args.draft_vocab is not None:
        switches["draft_vocab_size"] = args.draft_vocab
    for name in switches.keys() & fields.keys():
        if switches[name] != fields[name]:
            raise ValueError(f"--set: got {name}={fields[name]}, but another option says otherwise")
    return DrafterConfig.for_target(target_config, **{**switches, **fields})


def load_target(place: str, dtype: str | None) -> Any:
    """A Hugging Face causal LM from a folder or by its name, in eval mode.

    Raises:
        FileNotFoundError: `place` is a path where nothing is.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    here = Path(place)
    if not here.exists() and (place.count("/") > 1 or place.startswith((".", "/", "~"))):
        raise FileNotFoundError(f"{place}: not found, expected a folder or a name on the hub")
    logging.disable_progress_bar()
    target = AutoModelForCausalLM.from_pretrained(
        place,
        dtype="auto" if dtype is None else getattr(torch, dtype),
        local_files_only=here.exists(),
    )
    return target.eval().requires_grad_(False)


def _json(text: str) -> Any:
    """A value as JSON; words that are none, as they are."""
    try:
        value = json.loads(text)
    except ValueError:
        # Python's spelling of three words.
        return {"True": True, "False": False, "None": None}.get(text, text)
    return tuple(value) if isinstance(value, list) else value


def _report(trained: Trained, args: argparse.Namespace) -> str:
    history = trained.history
    lines = [f"{trained.steps} steps, {history.steps['seconds'][-1]:.0f} s."]
    parts: dict[str, Sequence[Sequence[float]]] = {
        name: history.chain(name, evaluations=True) for name in ("loss", "accuracy", "overlap")
    }
    if parts["loss"]:
        rows = [
            [f"@{j + 1}", f"{loss:.3f}", f"{accuracy:.1%}", f"{overlap:.1%}"]
            for j, (loss, accuracy, overlap) in enumerate(
                zip(*(part[-1] for part in parts.values()), strict=True)
            )
        ]
        lines += [
            "",
            table(["held out", "loss", "accuracy", "overlap"], rows),
            "",
            "@j: chain step. accuracy: drafted tokens that are the target's, on all rows, fed the",
            "text's tokens; overlap: what sampling would accept.",
        ]
    lines += [
        "",
        f"Written: {trained.path}",
        "Next:",
        f"  leeboard draft eval --target {args.target} --drafter {trained.path} --prompts FILE",
        f"  leeboard draft probe --target {args.target} --drafter {trained.path} --prompts FILE",
    ]
    return "\n".join(lines)
