"""`leeboard draft probe`: the parser. Importing this module does not import torch."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leeboard._cli.messages import status_of

# Repeated from leeboard.draft.probe, which comes with torch; a test compares them.
CONDITIONS = ("matched", "no_bos", "no_template", "no_template_no_bos", "renamed_roles")

_DESCRIPTION = """\
Show how a drafter drifts. A drafter reads the target's states at the first
step of a chain and its own at all later ones; a drafter that drifts comes to
see states that it was not trained on, and its drafts fail.

The target writes its greedy answer to every prompt once. The drafters are then
unrolled over these texts, which tells exactly what decoding would accept, at
every depth of a chain, also beyond the depth that they were trained on. The
same prompts come again without BOS, without the chat template, and with the
roles renamed; the fed-back state gets noise; and with --train-length the texts
get longer than in training, with and without a window on the drafter."""

_EPILOG = """\
examples:
  leeboard draft probe --demo runs/demo --plot drift.png
      both drafters of `leeboard demo`
  leeboard draft probe --target T --drafter D --prompts chats.jsonl \\
      --train-length 2048 --json drift.json --plot drift.png
  leeboard draft probe --target T --drafter old=D1 --drafter new=D2 \\
      --prompts chats.jsonl --conditions matched --noise none
      two drafters on the same texts
  leeboard plan speculation drift.json ...
      a probe's file says what is accepted at every depth

how to read the table:
  accepted     drafts that the target keeps in a round, without the bonus token;
               tau is one more: the token that the target adds to every round
  surviving    rows whose earlier drafts all matched: what happens in decoding.
               Deep ones are the easy ones, so they look better than they are
  all rows     fed the text's tokens whatever was drafted: no such choice
  RMS          of the state that a step feeds back; growth is drift
  sink         the column that draws the most attention while the target feeds
               the drafter; found from the texts
  own tokens   attention on the chain's own keys. It grows with depth because
               there are more of them: compare "over distance-matched", which
               stays near 1 where they draw no more than any others would
  loops        continuations that turn in circles are trivial to draft: figures
               come with and without them"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `leeboard draft probe`, and what its `--help` explains."""
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    number = _integer(1)
    what = parser.add_argument_group("what to probe")
    what.add_argument(
        "--target", type=Path, metavar="DIR", help="folder of a Hugging Face causal LM"
    )
    what.add_argument(
        "--drafter",
        type=_named,
        action="append",
        default=[],
        metavar="[NAME=]DIR",
        help="folder of a drafter for it; several may be given, to be compared on the same texts",
    )
    what.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help='.jsonl with "messages" (needed for the template\'s conditions), "prompt" or "text" in '
        "every line, or a text file with a prompt in every line",
    )
    what.add_argument(
        "--demo",
        type=Path,
        metavar="DIR",
        help="take target, drafters and prompts of a run of `leeboard demo` (default: runs/demo, "
        "where neither --target nor --drafter is given)",
    )
    what.add_argument(
        "--max-prompts", type=number, default=32, metavar="N", help="default: %(default)s"
    )
    what.add_argument(
        "--max-new-tokens", type=number, metavar="N", help="default: 96, or as in the demo's run"
    )
    how = parser.add_argument_group("what to measure")
    how.add_argument(
        "--depth",
        type=number,
        default=16,
        metavar="N",
        help="steps of the chains; go beyond the depth in training (default: %(default)s)",
    )
    how.add_argument(
        "--conditions",
        type=_conditions,
        default=CONDITIONS,
        metavar="LIST",
        help=f"of {', '.join(CONDITIONS)}; matched is always measured (default: all)",
    )
    how.add_argument(
        "--noise",
        type=_levels,
        default=(0.1, 0.5, 1.0),
        metavar="LIST",
        help="Gaussian noise on the fed-back state, as multiples of its RMS, or none "
        "(default: 0.1,0.5,1)",
    )
    how.add_argument(
        "--train-length",
        type=number,
        metavar="N",
        help="tokens of a row in the drafter's training: measures texts of 1 to 4 times that length "
        "(not measured without it, but for a demo's run)",
    )
    how.add_argument(
        "--lengths",
        type=_factors,
        default=(1, 2, 3, 4),
        metavar="LIST",
        help="multiples of --train-length (default: 1,2,3,4)",
    )
    how.add_argument(
        "--window",
        type=number,
        metavar="N",
        help="rows that a windowed drafter sees of long texts (default: half of --train-length)",
    )
    how.add_argument(
        "--force",
        type=_switch,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="A TEST, not a way to run a drafter: override a switch that it was trained with, such "
        "as norm_output=true, to see what the mismatch costs",
    )
    how.add_argument(
        "--no-attention", action="store_true", help="do not measure where drafters look: faster"
    )
    run_ = parser.add_argument_group("how to run")
    run_.add_argument(
        "--batch", type=number, default=16, metavar="N", help="prompts at a time (default: 16)"
    )
    run_.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of target and drafters (default: the checkpoint's)",
    )
    run_.add_argument(
        "--resamples",
        type=number,
        default=10000,
        metavar="N",
        help="of the bootstrap over prompts behind the intervals (default: %(default)s)",
    )
    run_.add_argument(
        "--seed", type=_integer(0), default=0, metavar="N", help="of the bootstrap and the noise"
    )
    run_.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    run_.add_argument(
        "--plot", type=Path, metavar="FILE", help="also draw them there: .png, .svg or .pdf"
    )


def run(args: argparse.Namespace) -> int:
    """Probe as the parsed options say; the exit status."""

    def command() -> int:
        from leeboard._cli.probing import probe_drafters

        return probe_drafters(args)

    return status_of("draft probe", command)


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


def _named(text: str) -> tuple[str | None, Path]:
    name, equals, folder = text.partition("=")
    if not equals or Path(text).exists():
        return None, Path(text)
    if not name or not folder:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected DIR or NAME=DIR")
    return name, Path(folder)


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _conditions(text: str) -> tuple[str, ...]:
    given = _words(text)
    if not given or set(given) - set(CONDITIONS):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected some of {','.join(CONDITIONS)}")
    return tuple(given)


def _levels(text: str) -> tuple[float, ...]:
    if text == "none":
        return ()
    try:
        levels = tuple(float(word) for word in _words(text))
    except ValueError:
        levels = ()
    if not levels or not all(0.0 < level < float("inf") for level in levels):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected positive numbers, or none")
    return levels


def _factors(text: str) -> tuple[int, ...]:
    return tuple(sorted(_integer(1)(word) for word in _words(text)))


def _switch(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected NAME=VALUE such as norm_output=true"
        )
    try:
        return name, json.loads(value.lower())
    except ValueError:
        return name, value
