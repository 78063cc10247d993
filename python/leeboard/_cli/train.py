"""`leeboard draft train`: the parser. Importing this module does not import torch."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leeboard._cli.messages import status_of

# Repeated from leeboard.draft.training.TrainSettings, which comes with torch; a test compares them.
DEFAULTS: dict[str, Any] = {
    "epochs": 1.0,
    "batch": 8,
    "accumulate": 1,
    "ttt": 4,
    "decay": 0.8,
    "loss": "kl",
    "eta": 3.0,
    "lr": 1e-4,
    "schedule": "cosine",
    "warmup": 0.05,
    "clip": 0.5,
    "weight_decay": 0.0,
    "precision": "float32",
    "seed": 0,
    "too_long": "truncate",
    "heldout_share": 0.05,
    "checkpoint_seconds": 300.0,
}
CHOICES = {
    "loss": ("kl", "lk_alpha", "lk_lambda"),
    "schedule": ("cosine", "linear", "constant"),
    "precision": ("float32", "bfloat16"),
    "too_long": ("truncate", "drop", "error"),
}
CONVENTIONS = ("deepseek_v3", "qwen3_next", "mimo")

_DESCRIPTION = """\
Train a drafter for a Hugging Face causal LM on chats of your own. The target
runs over the data; at every token of the assistant the drafter is unrolled a
few steps, fed its own states as in decoding, and learns the target's
distribution at each step. What comes out is a folder that `leeboard draft
eval`, `probe` and serving engines read.

The command may be stopped (Ctrl-C) or killed at any time: the same command
goes on from the last checkpoint, and does what it would have done."""

_EPILOG = """\
examples:
  leeboard draft train --target T --data chats.jsonl --out runs/mine
      a post-norm EAGLE-3 drafter with the target's shape
  leeboard draft train --target T --data chats.jsonl --out runs/mine \\
      --draft-vocab 32000 --ttt 4 --batch 16 --lr 1e-4 --precision bfloat16
      a smaller head: the 32000 tokens that the assistant says most often
  leeboard draft train ... --states states/
      the target runs over the data once; its states are kept on disk, whose
      size is told before
  leeboard draft train ... --pre-norm --out runs/pre
      EAGLE-3 as first published, for comparison
  leeboard draft train ... --set norm_before_residual=true --set head_dim=64
      any field of DrafterConfig
  leeboard draft train ... --mtp deepseek_v3 --set heads=2
      MTP heads instead of an EAGLE-3 drafter; fields of MTPConfig
  leeboard draft train ... --init runs/mine/drafter --out runs/cooled \\
      --schedule linear --warmup 0
      go on with a trained drafter
  torchrun --nproc-per-node 8 -m leeboard.cli draft train ...
      on several GPUs; --batch counts the rows of all of them

the data, one JSON object in every line:
  {"messages": [{"role": "user", "content": "..."},
                {"role": "assistant", "content": "..."}]}
  {"text": "..."}     every token is learnt
  Chats are laid out by the chat template of the target's tokenizer. The best
  data are answers of the target itself to the prompts that it will get.

what appears where, in --out:
  drafter/            the trained drafter
  best/               the one with the lowest held-out loss so far
  log.csv             every step: loss, learning rate, norm of the gradient and,
                      per chain step @1, @2, ..., loss and accuracy
  evaluations.csv     the same on held-out chats; overlap is what sampling
                      accepts in expectation
  checkpoints/        the newest one; run.json: what was trained on what"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `leeboard draft train`, and what its `--help` explains."""
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    _add_what(parser.add_argument_group("what to train on what"))
    _add_drafter(parser.add_argument_group("the drafter"))
    _add_data(parser.add_argument_group("the data"))
    _add_training(parser.add_argument_group("the training"))
    _add_running(parser.add_argument_group("how to run"))


def run(args: argparse.Namespace) -> int:
    """Train as the parsed options say.

    Returns:
        The exit status: 0; 2 with a message on stderr; 128 and the number of the signal that asked
        for the end.
    """

    def command() -> int:
        from leeboard._cli.training import train

        return train(args)

    try:
        return status_of("draft train", command)
    except KeyboardInterrupt as error:
        number: int | None = getattr(error, "signal", None)
        if number is None:
            raise
        print(f"leeboard draft train: {error}", file=sys.stderr)
        return 128 + number


def _add_what(group: Any) -> None:
    group.add_argument(
        "--target",
        required=True,
        metavar="DIR|NAME",
        help="a Hugging Face causal LM: its folder, or its name on the hub",
    )
    group.add_argument(
        "--data", required=True, type=Path, metavar="FILE", help="chats or text, .jsonl (see below)"
    )
    group.add_argument("--out", required=True, type=Path, metavar="DIR", help="where to write")
    group.add_argument(
        "--heldout",
        type=Path,
        metavar="FILE",
        help="what to evaluate on, as --data (default: a share of --data)",
    )
    group.add_argument(
        "--tokenizer", metavar="DIR|NAME", help="with the chat template (default: the target's)"
    )
    group.add_argument(
        "--states",
        type=Path,
        metavar="DIR",
        help="keep the target's states there, so that it runs over the data once (default: it runs "
        "on every batch)",
    )


def _add_drafter(group: Any) -> None:
    kind = group.add_mutually_exclusive_group()
    kind.add_argument(
        "--post-norm",
        action="store_true",
        help="norm_output and fc_norm: what is fed back is bounded (the default)",
    )
    kind.add_argument("--pre-norm", action="store_true", help="neither: EAGLE-3 as first published")
    kind.add_argument(
        "--mtp",
        choices=CONVENTIONS,
        help="MTP heads of the target's own kind of layer, in the structure and names of these",
    )
    kind.add_argument(
        "--init", type=Path, metavar="DIR", help="go on with the drafter in this folder"
    )
    group.add_argument(
        "--draft-vocab",
        type=_integer(1),
        metavar="N",
        help="rows of the head: the most frequent tokens to learn (default: all of the target's)",
    )
    group.add_argument(
        "--set",
        metavar="FIELD=VALUE",
        action="append",
        type=_field,
        default=[],
        help="any field of DrafterConfig (with --mtp, of MTPConfig), VALUE in JSON; may be given "
        "several times",
    )


def _add_data(group: Any) -> None:
    group.add_argument(
        "--length",
        type=_integer(2),
        metavar="N",
        help="tokens of a row (default: 2048, or less where the target takes no more)",
    )
    _setting(group, "too_long", str, "what becomes of longer chats: truncate, drop or error")
    group.add_argument(
        "--no-packing", action="store_true", help="one chat a row instead of as many as fit"
    )
    group.add_argument(
        "--split-turns",
        action="store_true",
        help="learn each assistant turn on a copy that ends there, for templates that rewrite "
        "earlier turns",
    )
    group.add_argument(
        "--skip-broken",
        action="store_true",
        help="leave out broken lines, and say which, instead of stopping at the first",
    )
    group.add_argument(
        "--ignore-keys",
        type=_words,
        metavar="LIST",
        help="unknown keys of the lines to pass over, separated by commas",
    )
    _setting(group, "heldout_share", _number, "of the chats, to evaluate on")


def _add_training(group: Any) -> None:
    group.add_argument(
        "--steps", type=_integer(1), metavar="N", help="optimizer steps (default: by --epochs)"
    )
    _setting(group, "epochs", _number, "how often the data is gone through")
    _setting(group, "batch", _integer(1), "rows of an optimizer step, over all processes")
    _setting(
        group, "accumulate", _integer(1), "parts to take them in: less memory, the same result"
    )
    _setting(group, "ttt", _integer(1), "chain steps unrolled in training")
    weights = group.add_mutually_exclusive_group()
    _setting(weights, "decay", _number, "weight of a chain step relative to the one before")
    weights.add_argument(
        "--step-weights",
        type=_numbers,
        metavar="LIST",
        help="instead, the weight of each chain step, separated by commas",
    )
    _setting(group, "loss", str, "kl, or lk_alpha or lk_lambda, which aim at acceptance")
    _setting(group, "eta", _number, "of lk_lambda")
    _setting(group, "lr", _number, "highest learning rate of AdamW (0.9, 0.95)")
    _setting(
        group, "schedule", str, "after the warm-up: down to 0 as a cosine or line, or constant"
    )
    _setting(group, "warmup", _warmup, "steps, or their share (below 1, with a point)")
    _setting(group, "clip", _number, "largest norm of the gradient")
    _setting(group, "weight_decay", _number, "of AdamW")
    _setting(group, "precision", str, "of the drafter's arithmetic; its weights stay float32")
    _setting(group, "seed", _integer(0), "of the weights, the order and what is held out")


def _add_running(group: Any) -> None:
    group.add_argument(
        "--evaluate-every", type=_integer(1), metavar="N", help="steps (default: ten times in all)"
    )
    group.add_argument(
        "--checkpoint-every", type=_integer(1), metavar="N", help="steps (default: by time alone)"
    )
    _setting(group, "checkpoint_seconds", _number, "time between checkpoints")
    group.add_argument(
        "--fresh", action="store_true", help="forget the checkpoint in --out and begin again"
    )
    group.add_argument("--tensorboard", action="store_true", help="also write logs for TensorBoard")
    group.add_argument(
        "--device", metavar="NAME", help="cpu, cuda, ... (default: cuda where there is one)"
    )
    group.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the target (default: the checkpoint's)",
    )
    group.add_argument(
        "--threads", type=_integer(1), metavar="N", help="torch's threads (default: as it is set)"
    )


def _setting(group: Any, name: str, kind: Callable[[str], Any], text: str) -> None:
    """An option for a field of TrainSettings; absent from the namespace unless it is given."""
    choices = CHOICES.get(name)
    shown = {"choices": choices} if choices else {"metavar": "N" if kind is not _number else "X"}
    group.add_argument(
        f"--{name.replace('_', '-')}",
        type=kind,
        default=argparse.SUPPRESS,
        help=f"{text} (default: {DEFAULTS[name]:g})"
        if isinstance(DEFAULTS[name], float)
        else f"{text} (default: {DEFAULTS[name]})",
        **shown,
    )


def _integer(low: int) -> Callable[[str], int]:
    def integer(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected an integer from {low} up")
        return value

    return integer


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number from 0 up")
    return value


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(_number(word) for word in text.split(","))


def _warmup(text: str) -> int | float:
    return int(text) if text.isdecimal() else _number(text)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _field(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected FIELD=VALUE")
    return name, value
