"""The words of the page; every number in them is computed or a setting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from leeboard.reproduce.claims import Answer
from leeboard.reproduce.settings import ABOUT, CONDITIONS, MATCHED, Settings
from leeboard.reproduce.statistics import RESAMPLES

VERDICTS = (
    "A claim *holds at this scale* if each of its figures lies above its bound with the whole of its "
    "95 % interval, for all seeds together and for each alone. It *does not hold* if an interval over "
    "all seeds lies below its bound and no seed's lies above. Everything else is *not decided*: the "
    "interval holds both answers, or the seeds disagree. Claims, criteria and bounds were fixed before "
    "the run and are code (`leeboard.reproduce.preregistered`)."
)
UNMATCHED = (
    "**Depth-1 acceptance does not agree between all trainings (below): verdicts that compare arms are "
    "open to that.**"
)
FOREST = "Every figure of every claim less its bound, with its interval"
ACCEPTANCE = (
    "Acceptance at a depth: right drafts among those whose chain was right so far. Chains that get "
    "deep are the easy ones, and not the same ones for every arm; the last table by step has no such "
    "choice. *Accepted per round* walks each text in rounds as speculative decoding does and leaves the bonus token of the "
    "target out; with it the figure is one higher."
)
REACHED = "Rows behind these shares, of all seeds; a share of few rows says little:"
ACCURACY = (
    "On all rows, fed the target's text whatever was drafted before: right drafts at each step. No chain "
    "is left out, but most of these never happen in decoding:"
)
ACCEPTANCE_PICTURE = "Share of drafts accepted by step of the chain, a panel for each TTT depth"
STATE = (
    "Root mean square of the state that each step hands to the next, on all rows. A flat line is what "
    "a norm at the end of the step does by construction: it is no evidence that it helps."
)
STATE_PICTURE = "RMS of the fed-back state by step of the chain, a panel for each TTT depth"
ATTENTION = (
    "Mean over heads and all rows. The sink is the column that draws the most attention while the "
    "drafter reads the target's states, found for each drafter. *Own* tokens are the keys of the "
    "chain's earlier steps, of which there are more at every step, so that their share rises by "
    "itself."
)
OWN = (
    "Attention on the chain's own tokens, by what a target-fed row at the same place gives to the same "
    "tokens; 1 is no difference:"
)
ATTENTION_PICTURE = "Shares of the drafter's attention by step of the chain"
SHARES = {
    "sink": "share on the sink",
    "prompt": "share on the prompt",
    "own": "share on own tokens",
    "recent": "share on the 8 nearest tokens",
    "entropy": "entropy, nats",
}
TEMPLATE_PICTURE = "Drafts accepted per round in four conditions, a panel for each TTT depth"
CONTEXT_PICTURE = "Drafts accepted per round by length of the context and what the drafter sees"
NOISE = (
    "Gaussian noise on the state that each step is fed, relative to its RMS: drafts accepted, by "
    "those without noise. The negative control switches `norm_output` on in drafters that were "
    "trained without any bound on the recurrence; it must hurt."
)
NOISE_PICTURE = "Drafts accepted by size of the noise on the fed-back state"
NOTES = (
    "What is said of large models comes from secondary notes on arXiv:2605.09992 and from public "
    "threads, not from the paper's own tables: leads, not a standard to meet. Depths and scales "
    "differ."
)


def opening(results: Mapping[str, Any], settings: Settings) -> list[str]:
    """Title, what was asked, what was run."""
    lines = [
        "# Does post-norm hold a drafter's course?",
        "",
        "<!-- Written by `leeboard draft reproduce --write-docs`; do not edit. -->",
        "",
        (
            "Pre-norm drafters (EAGLE-3 as first published) are said to drift: their state grows "
            "along the chain, their attention leaves the prompt, and acceptance collapses beyond the "
            "trained depth, off the template and in long contexts (arXiv:2605.09992). "
            f"{len(settings.arms)} kinds of drafters were trained for one small target to equal "
            "acceptance at depth 1, and counted beyond it. What follows says which of the claims "
            "hold at this scale and which do not."
        ),
        "",
        '!!! note "Scale"',
        "",
        f"    {_scale(results)}",
        "",
    ]
    asked = len(settings.trainings())
    if len(results["trainings"]) < asked:
        lines += [f"**Unfinished: {len(results['trainings'])} of {asked} trainings.**", ""]
    if settings.preset == "quick":
        lines += [
            "**The quick preset: a check that everything runs, too small to answer anything.**",
            "",
        ]
    lines += ["| arm | |", "|---|---|"]
    lines += [f"| {name} | {ABOUT[name]} |" for name in settings.arms]
    return lines


def tally(answers: Sequence[Answer]) -> str:
    """How many claims ended how, and which do not hold."""
    counts = Counter(answer.verdict for answer in answers)
    words = [f"{count} {_VERDICT_WORDS[verdict]}" for verdict, count in counts.items()]
    text = f"Of {len(answers)} claims {_list(words)}."
    null = [answer.name for answer in answers if answer.verdict == "does not hold"]
    if null:
        text += f" **At this scale these do not hold: {'; '.join(null)}.**"
    for verdict, words_for in (
        ("holds at this scale", "These hold"),
        ("not decided", "Not decided"),
        ("not measured", "Not measured"),
    ):
        named = [answer.name for answer in answers if answer.verdict == verdict]
        if named:
            text += f" {words_for}: {'; '.join(named)}."
    return text


_VERDICT_WORDS = {
    "holds at this scale": "hold",
    "does not hold": "do not hold",
    "not decided": "are not decided",
    "not measured": "were not measured",
}


def matching(results: Mapping[str, Any], settings: Settings) -> list[str]:
    """The rule, and whether it worked."""
    found = results["matching"]
    low, high = (100 * found["checks"][end] for end in ("low", "high"))
    spread = high - low
    margin = 100 * settings.margin
    trainings = len(results["trainings"])
    return [
        (
            f"Each arm trains with a constant learning rate until the mean of its last "
            f"{settings.smooth} checks of depth-1 acceptance is {100 * results['threshold']:.1f} %, but at "
            f"most {settings.most_steps} steps. Checked, and measured in the end, is the running "
            f"average of the weights. {_source(settings)} So a difference at depth is not one of how well a drafter has learnt its "
            "first step. Checks and prompts are greedy texts of the target on different held-out files."
        ),
        "",
        (
            f"{found['reached']} of {trainings} trainings met the threshold. At the end they lie from "
            f"{low:.1f} % to {high:.1f} % on the checks, {spread:.1f} points apart, and from "
            f"{100 * found['prompts']['low']:.1f} % to {100 * found['prompts']['high']:.1f} % on the "
            "prompts. "
            + (
                f"They agree within the {margin:g} points that were asked for."
                if found["agrees"]
                else f"**They do not agree within the {margin:g} points that were asked for: part "
                "of a difference at depth may be one at depth 1.**"
            )
        ),
    ]


def _source(settings: Settings) -> str:
    if settings.threshold is not None:
        return ""
    anchor = settings.anchors()[0]
    return (
        f"That threshold is what {anchor.name}, trained on chains of {anchor.ttt}, has after "
        f"{settings.anchor_steps} such steps, the least over the seeds."
    )


def template(results: Mapping[str, Any]) -> str:
    """What the conditions are."""
    losses = results["texts"]["prompt_loss"]
    shown = _list([f"{name} {losses[name]:.2f}" for name in CONDITIONS if name in losses])
    own = (
        "; the target learnt half of its text so, a quarter raw behind BOS and a quarter raw, so that "
        "drafters are off their training where it is not"
        if "heldout_loss" in results["target"]
        else ""
    )
    notes = "".join(f" Left out: {note}." for note in results["texts"].get("notes", ()))
    return (
        "The same prompts, answered by the target anew in each condition. Drafters saw "
        f"*{MATCHED}* alone in training{own}. The target's loss on the prompts, nats per token: "
        f"{shown}.{notes}"
    )


def context(results: Mapping[str, Any], settings: Settings) -> str:
    """What the contexts are."""
    lengths = _list([f"{found['tokens']:.0f}" for found in results["texts"]["contexts"]])
    history = "functions before them in their file"
    if "file" in results["corpus"]:
        history = "other prompts with their answers"
    return (
        f"The same {settings.contexts} prompts behind ever more of the {history}; drafters were trained on rows of {settings.row} tokens, so 1x lies within them. Prompts "
        f"have {lengths} tokens on average. The target always sees everything. Accepted per round in "
        f"chains of {settings.context_depth}."
    )


def _scale(results: Mapping[str, Any]) -> str:
    target = results["target"]
    if "parameters" not in target:
        return f"One target, {target['name']}, and one set of chats. Others may behave otherwise."
    return (
        f"The target has {target['parameters'] / 1e6:.1f} million weights and learnt the functions of "
        "Python's standard library. What holds here may not hold for a large model, and what does "
        "not hold here may well hold there."
    )


def _learnt(results: Mapping[str, Any], settings: Settings) -> list[str]:
    """Rows on corpus and target."""
    corpus, target = results["corpus"], results["target"]
    if "parameters" not in target:
        return [f"| chats | {corpus['file']} |", f"| target | {target['name']} |"]
    train, held = corpus["train"], corpus["heldout"]
    return [
        (
            f"| corpus | {train['functions']:,} functions of {train['files']} files to train on, "
            f"{held['functions']:,} of {held['files']} others held out; Python {corpus['python']} |"
        ),
        (
            f"| target | Llama, {settings.layers} layers, width {settings.hidden_size}, "
            f"{settings.vocab_size} BPE entries, {settings.target_tokens:,} tokens; held-out loss "
            f"{target['heldout_loss']:.2f} nats a token |"
        ),
    ]


def methods(results: Mapping[str, Any], settings: Settings) -> list[str]:
    """How it was done, and what it does not say."""
    from leeboard.draft.probe.texts import LOOP_PERIOD, LOOP_STRETCH

    seconds = results["stages"]
    arms = {name: s["seconds"] for name, s in seconds.items() if name.startswith("arm-")}
    train = sum(t["seconds"]["train"] for t in results["trainings"])
    count = sum(t["seconds"]["measure"] for t in results["trainings"])
    other = ", ".join(
        f"{name} {s['seconds']:.0f} s" for name, s in seconds.items() if name not in arms
    )
    loops = _list(
        [f"{name} {100 * share:.0f} %" for name, share in results["texts"]["loops"].items()]
    )
    versions = ", ".join(f"{name} {v}" for name, v in results["versions"].items())
    seeds = f"{settings.seeds} seed{'s' if settings.seeds != 1 else ''}"
    return [
        "",
        "## How it was done",
        "",
        "| | |",
        "|---|---|",
        f"| preset | {settings.preset} |",
        *_learnt(results, settings),
        (
            f"| drafters | one layer, {len(settings.arms)} arms, TTT "
            f"{_list([str(ttt) for ttt in settings.ttt])}, {seeds}; AdamW {settings.lr:g}, "
            f"{settings.batch} rows of {settings.row} tokens a step, KL weighted "
            f"{settings.decay:g}^j |"
        ),
        (
            f"| counted on | {settings.prompts} prompts of other files, {settings.new_tokens} new tokens "
            f"at most, within the {settings.row} tokens of a training row; chains of {settings.depth}; "
            f"noise on the first {min(settings.noise_prompts, settings.prompts)} of the prompts |"
        ),
        (
            f"| time | {results['seconds'] / 60:.1f} min in the last run with {results['workers']} "
            f"workers; {other}; arms, processor time of all workers: training {train / 60:.1f} min, counting "
            f"{count / 60:.1f} min |"
        ),
        f"| versions | {versions} |",
        "",
        (
            "- Drafting is counted without decoding: the target's greedy text is fed to the unrolled "
            "drafter, teacher-forced. Up to a chain's first wrong draft that is what the drafter "
            "would have drafted itself, so the counts are those of real greedy decoding."
        ),
        (
            f"- Intervals: {RESAMPLES:,} paired bootstrap resamples of the prompts, the middle 95 %. All arms "
            "and seeds answer the same prompts and are resampled together. They say what other "
            "prompts would change, not what other trainings would: for that, see the seeds. They are "
            "not corrected for the number of claims. Prompts are drawn one by one, also where several come "
            "from one file; drawn by file, intervals might be wider."
        ),
        (
            f"- The tail pools depths {settings.tail} to {settings.depth}: every draft tested there "
            "counts once, so that depths that few chains reach weigh little. The protocol had asked for "
            "the mean over depths; it stands beside, and is missing where no chain of a training "
            "reaches one of them. Verdicts go by the first."
        ),
        (
            f"- A greedy text loops if somewhere a period of at most {LOOP_PERIOD} tokens holds for "
            f"{LOOP_STRETCH}. Loops inflate deep acceptance. Texts that loop: {loops}."
        ),
        (
            "- States are taken at three layers of the target. Embeddings are frozen; the drafter's "
            "head starts from the target's and is trained. Only answers bear a loss."
        ),
        "",
        "## What it does not say",
        "",
        "- Nothing about large models, other text than code, or sampling.",
        (
            "- Nothing was tuned for any arm: one learning rate serves all, which may suit some "
            "better than others."
        ),
        (
            "- Trees of drafts, quantised drafters and MTP heads were not tried. Times are not "
            "compared: a round costs all arms the same."
        ),
    ]


def _list(words: Sequence[str]) -> str:
    """Words with commas and an 'and'."""
    if len(words) < 2:
        return "".join(words)
    return ", ".join(words[:-1]) + " and " + words[-1]
