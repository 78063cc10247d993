"""What is claimed of drift, fixed before the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from leeboard.reproduce.claims import Claim, Figures
from leeboard.reproduce.readings import FORCED, Readings, context, noisy
from leeboard.reproduce.settings import CONDITIONS, MATCHED
from leeboard.reproduce.statistics import Estimate, least

PRE, POST, BOTH = "pre", "norm_output", "norm_output+fc_norm"
BEFORE, FC = "norm_before_residual", "fc_norm"
GROWS, FLAT = 1.3, 0.05
# What a mean accepted length may lose and still be called as good.
AS_GOOD = 0.05


def _growth(r: Readings, ttt: int) -> Figures:
    def flat(name: str) -> Callable[[int | None], Estimate]:
        return lambda seed: _minus(FLAT, abs(r.growth(name, ttt, seed) - 1.0))

    return [
        (f"RMS at step 8 by step 1, {PRE}", GROWS, lambda s: r.growth(PRE, ttt, s)),
        (f"{FLAT:g} less the change of RMS, {BOTH}", 0.0, flat(BOTH)),
    ]


def _bounded(r: Readings, ttt: int) -> Figures:
    return [
        (
            f"{GROWS:g} less RMS at step 8 by step 1, {BEFORE}",
            0.0,
            lambda s: _minus(GROWS, r.growth(BEFORE, ttt, s)),
        ),
        (
            f"RMS at step 8 by step 1, {PRE} less {BEFORE}",
            0.0,
            lambda s: r.growth(PRE, ttt, s) - r.growth(BEFORE, ttt, s),
        ),
    ]


def _tail(better: str) -> Callable[[Readings, int], Figures]:
    def measure(r: Readings, ttt: int) -> Figures:
        return [
            (
                f"tail acceptance, {better} less {PRE}",
                0.0,
                lambda s: r.tail(better, ttt, s) - r.tail(PRE, ttt, s),
            )
        ]

    return measure


def _attention(r: Readings, ttt: int) -> Figures:
    def falls(of: str) -> Callable[[int | None], Estimate]:
        # A slope that is lower but not negative leaves nothing. In all: a step alone is too small to see.
        return lambda s: (
            least(
                _minus(0.0, r.slope(PRE, ttt, s, of)),
                r.slope(BOTH, ttt, s, of) - r.slope(PRE, ttt, s, of),
            )
            / (1 / (r.settings.depth - 1))
        )

    return [
        (
            f"fall of the {of} share over the chain, {PRE} less {BOTH} (if that falls)",
            0.0,
            falls(of),
        )
        for of in ("sink", "prompt")
    ]


def _any_bound(r: Readings, ttt: int) -> Figures:
    return [
        (
            f"accepted, {BEFORE} by {POST}",
            1 - AS_GOOD,
            lambda s: r.accepted(BEFORE, ttt, s) / r.accepted(POST, ttt, s),
        )
    ]


def _more(better: str, worse: str) -> Callable[[Readings, int], Figures]:
    def measure(r: Readings, ttt: int) -> Figures:
        return [
            (
                f"accepted, {better} less {worse}",
                0.0,
                lambda s: r.accepted(better, ttt, s) - r.accepted(worse, ttt, s),
            )
        ]

    return measure


def _across(r: Readings, ttt: int) -> Figures:
    low, high = min(r.settings.ttt), max(r.settings.ttt)
    return [
        (
            f"accepted, {BOTH} at TTT {low} less {PRE} at TTT {high}",
            0.0,
            lambda s: r.accepted(BOTH, low, s) - r.accepted(PRE, high, s),
        )
    ]


def _template(r: Readings, ttt: int) -> Figures:
    def steadier(condition: str) -> Callable[[int | None], Estimate]:
        return lambda s: r.relative(BOTH, ttt, s, condition) - r.relative(PRE, ttt, s, condition)

    def lost(condition: str) -> Callable[[int | None], Estimate]:
        return lambda s: _minus(1.0, r.relative(PRE, ttt, s, condition))

    off = [condition for condition in CONDITIONS if condition != MATCHED]
    return [
        *((f"1 less {name} by {MATCHED}, {PRE}", 0.0, lost(name)) for name in off),
        *((f"{name} by {MATCHED}, {BOTH} less {PRE}", 0.0, steadier(name)) for name in off),
    ]


def _off_template(r: Readings, ttt: int) -> Figures:
    return [
        (
            f"accepted on raw text, {BOTH} less {PRE}",
            0.0,
            lambda s: r.accepted(BOTH, ttt, s, "raw") - r.accepted(PRE, ttt, s, "raw"),
        )
    ]


def _context(r: Readings, ttt: int) -> Figures:
    last = context(r.settings.buckets - 1, "full")
    first = context(0, "full")
    return [
        (
            f"1 less accepted at {r.settings.buckets}x the training length by 1x, {PRE}",
            0.0,
            lambda s: _minus(1.0, r.relative(PRE, ttt, s, last, first)),
        ),
        (
            f"accepted at {r.settings.buckets}x the training length by 1x, {BOTH} less {PRE}",
            0.0,
            lambda s: r.relative(BOTH, ttt, s, last, first) - r.relative(PRE, ttt, s, last, first),
        ),
    ]


def _window(r: Readings, ttt: int) -> Figures:
    last = r.settings.buckets - 1

    def gain(name: str) -> Callable[[int | None], Estimate]:
        windowed, full = context(last, "window + sinks"), context(last, "full")
        return lambda s: r.accepted(name, ttt, s, windowed) - r.accepted(name, ttt, s, full)

    return [
        (f"accepted at {last + 1}x, window + sinks less full, {name}", 0.0, gain(name))
        for name in (PRE, BOTH)
    ]


def _noise(r: Readings, ttt: int) -> Figures:
    def steadier(alpha: float) -> Callable[[int | None], Estimate]:
        return lambda s: (
            r.relative(BOTH, ttt, s, noisy(alpha)) - r.relative(PRE, ttt, s, noisy(alpha))
        )

    chosen = 0.5 if 0.5 in r.settings.noise else r.settings.noise[0]
    return [
        (
            f"1 less accepted with noise {chosen:g} by none, {PRE}",
            0.0,
            lambda s: _minus(1.0, r.relative(PRE, ttt, s, noisy(chosen))),
        ),
        (f"accepted with noise {chosen:g} by none, {BOTH} less {PRE}", 0.0, steadier(chosen)),
    ]


def _control(r: Readings, ttt: int) -> Figures:
    return [
        (
            f"accepted, {PRE} less {PRE} with {FORCED}",
            0.0,
            lambda s: r.accepted(PRE, ttt, s) - r.accepted(PRE, ttt, s, FORCED),
        )
    ]


def _minus(value: float, of: Estimate) -> Estimate:
    return Estimate(value - of.value, value - of.replicates)


def _needs(*arms: str, readings: Sequence[str] = (MATCHED,)) -> tuple[tuple[str, str], ...]:
    return tuple((arm, reading) for arm in arms for reading in readings)


def _claims() -> Iterator[Claim]:
    yield Claim(
        "Growth",
        "The state that a pre-norm drafter feeds back grows along the chain; the post-norm one's does "
        "not.",
        f"RMS at step 8 by step 1 above {GROWS:g} for {PRE}, within {100 * FLAT:g} % of 1 for {BOTH}. "
        "The second half follows from the norm by construction and is no evidence by itself.",
        "Llama-3.1-8B: 3.92 to 14.02 pre-norm, 1.21 to 1.20 post-norm (steps 1 to 8).",
        _growth,
        _needs(PRE, BOTH),
    )
    yield Claim(
        "Bounded by the residual",
        "norm_before_residual alone bounds the growth, too.",
        f"RMS at step 8 by step 1 below {GROWS:g} for {BEFORE}, and smaller than for {PRE}.",
        "",
        _bounded,
        _needs(PRE, BEFORE),
    )
    yield Claim(
        "Beyond the trained depth",
        "At equal acceptance at depth 1, the post-norm drafter is accepted more often at depths far "
        "beyond its training.",
        f"Tail acceptance (depths 5 to 16) of {BOTH} above that of {PRE}.",
        "Trained on chains of 2, acceptance at depth 16: 0.00 pre-norm, 0.53 post-norm.",
        _tail(BOTH),
        _needs(PRE, BOTH),
    )
    yield Claim(
        "Beyond the trained depth, norm_output alone",
        "norm_output without fc_norm does it.",
        f"Tail acceptance of {POST} above that of {PRE}.",
        "",
        _tail(POST),
        _needs(PRE, POST),
    )
    yield Claim(
        "Beyond the trained depth, norm_before_residual alone",
        "norm_before_residual without any change of the feedback does it.",
        f"Tail acceptance of {BEFORE} above that of {PRE}.",
        "",
        _tail(BEFORE),
        _needs(PRE, BEFORE),
    )
    yield Claim(
        "Attention drifts",
        "A pre-norm drafter's attention leaves the sink or the prompt as the chain grows, faster than "
        "the post-norm one's.",
        f"The slope over depth of the sink's or the prompt's share is negative for {PRE}, and lower "
        f"than for {BOTH}.",
        "Llama-3.1-8B, share of the sink from step 1 to 8: 0.46 to 0.08 pre-norm, 0.11 to 0.10 "
        "post-norm.",
        _attention,
        _needs(PRE, BOTH),
        "one",
    )
    yield Claim(
        "Any bound will do",
        "norm_before_residual is as good as norm_output: what helps is a bound on the recurrence, not "
        "where it is.",
        f"Accepted length of {BEFORE} above {100 * (1 - AS_GOOD):g} % of that of {POST}.",
        "",
        _any_bound,
        _needs(POST, BEFORE),
    )
    yield Claim(
        "fc_norm alone",
        "fc_norm helps without a bound on the recurrence.",
        f"Accepted length of {FC} above that of {PRE}.",
        "",
        _more(FC, PRE),
        _needs(PRE, FC),
    )
    yield Claim(
        "fc_norm on top",
        "fc_norm adds to norm_output.",
        f"Accepted length of {BOTH} above that of {POST}.",
        "Gains over EAGLE-3, of other models and data: Qwen3-8B +7.2 % without fc_norm, Qwen3-30B-A3B "
        "+1.1 % with it.",
        _more(BOTH, POST),
        _needs(POST, BOTH),
    )
    yield Claim(
        "Shorter chains in training",
        "A post-norm drafter trained on short chains is accepted for longer than a pre-norm one "
        "trained on long ones.",
        f"Accepted length of {BOTH} at the lowest TTT above that of {PRE} at the highest.",
        "Chains of 2 post-norm 5.05, chains of 8 pre-norm 7.12: it is not.",
        _across,
        _needs(PRE, BOTH),
        across=True,
    )
    yield Claim(
        "Template",
        "Off the template of its training a pre-norm drafter loses a larger share of its accepted "
        "length.",
        "Accepted length off the template by that on it, in each of the three conditions, below 1 for "
        f"{PRE}, and higher for {BOTH}. Reported, not required.",
        "Llama-3.1-8B, no template and no BOS by the matched one: 0.49 pre-norm, 0.95 post-norm.",
        _template,
        _needs(PRE, BOTH, readings=tuple(CONDITIONS)),
    )
    yield Claim(
        "Off the template",
        "On raw text without BOS the post-norm drafter is accepted for longer.",
        f"Accepted length on raw text of {BOTH} above that of {PRE}.",
        "Llama-3.1-8B: 2.59 against 1.34.",
        _off_template,
        _needs(PRE, BOTH, readings=("raw",)),
    )
    yield Claim(
        "Long context",
        "With a context of several times its training length a pre-norm drafter loses a larger share "
        "of its accepted length.",
        f"Accepted length in the longest bucket by that in the first, full attention, below 1 for "
        f"{PRE}, and higher for {BOTH}. Reported, not required.",
        "A drafter trained at 4K in very long chats, full attention: 0.05 pre-norm, 0.83 post-norm.",
        _context,
        _needs(PRE, BOTH, readings=(context(0, "full"),)),
    )
    yield Claim(
        "A window mends long contexts",
        "In a long context a drafter is accepted for longer when it sees a window and the sink only.",
        "Accepted length in the longest bucket with window and sinks above that with full attention, "
        f"for {PRE} and {BOTH}.",
        "The same chats, window and BOS: 2.53 pre-norm, 2.99 post-norm.",
        _window,
        _needs(PRE, BOTH, readings=(context(0, "window + sinks"),)),
    )
    yield Claim(
        "Noise",
        "Noise on the fed-back state costs a pre-norm drafter a larger share of its accepted length.",
        f"Accepted length with noise of half the RMS by that without, below 1 for {PRE}, and higher "
        f"for {BOTH}.",
        "Noise 0.1, 0.5, 1.0: 82, 5, 0 % pre-norm; 99, 58, 22 % post-norm.",
        _noise,
        _needs(PRE, BOTH),
    )
    yield Claim(
        "Negative control",
        "Switching norm_output on in a drafter that was trained without it hurts.",
        f"Accepted length of {PRE} above that of the same weights with {FORCED}.",
        "Pinning the RMS of a trained drafter's state: 3.06 to 1.33 pre-norm.",
        _control,
        _needs(PRE, readings=(MATCHED, FORCED)),
    )


CLAIMS: tuple[Claim, ...] = tuple(_claims())
