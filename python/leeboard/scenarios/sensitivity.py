"""How far an answer depends on its inputs: each moved by a share, and until the decision flips."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from leeboard.sim.table import Table, aligned, text_of

# How far an input is moved in search of another decision, and how exactly that place is found.
_STEPS = (1.6, 2.5, 4.0)
_CLOSE = 1.02


@dataclass(frozen=True)
class Outcome:
    """What is decided with some inputs.

    Attributes:
        decision: In words; equal words are equal decisions.
        value: What it gets, the more the better; 0 where nothing will do.
        keeping: What the decision of the unchanged inputs gets here; 0 where it will not do.
    """

    decision: str
    value: float
    keeping: float


@dataclass(frozen=True)
class Input:
    """An input that is moved.

    Attributes:
        name: For people.
        show: Text of its value, times a factor.
        most: Largest factor that makes sense (a probability ends at 1).
    """

    name: str
    show: Callable[[float], str]
    most: float = math.inf


@dataclass(frozen=True)
class Flip:
    """Where the decision becomes another one.

    Attributes:
        factor: Of the input's value.
        value: The value, as text.
        decision: The new one.
    """

    factor: float
    value: str
    decision: str


@dataclass(frozen=True)
class Swing:
    """What one input does.

    Attributes:
        name: Of the input.
        value: Its value, as text.
        low: Best value with the input down by the share.
        high: Best value with it up.
        keeping_low: Value of the unchanged decision with the input down.
        keeping_high: The same with it up.
        below: Nearest lower value at which the decision flips; None: none down to a quarter.
        above: Nearest higher one; None: none up to four times.
    """

    name: str
    value: str
    low: float
    high: float
    keeping_low: float
    keeping_high: float
    below: Flip | None
    above: Flip | None

    @property
    def width(self) -> float:
        """How much of the best value is at stake."""
        return abs(self.high - self.low)


@dataclass(frozen=True)
class Sensitivity:
    """What each input does to the best value and to the decision; the widest swing first.

    Attributes:
        share: By which inputs were moved, up and down.
        base: Best value with the inputs as they are.
        quantity: What the value is, for people.
        rows: A swing for each input.
    """

    share: float
    base: float
    quantity: str
    rows: tuple[Swing, ...]

    @property
    def table(self) -> Table:
        """A row an input: input, value, low, high (best values), keeping_low, keeping_high, flips_below,
        flips_above (factors; NaN: nowhere within a quarter to four times), to_below, to_above."""
        none = Flip(math.nan, "", "")
        rows = [(row, row.below or none, row.above or none) for row in self.rows]
        return Table(
            {
                "input": [r.name for r, _, _ in rows],
                "value": [r.value for r, _, _ in rows],
                "low": [r.low for r, _, _ in rows],
                "high": [r.high for r, _, _ in rows],
                "keeping_low": [r.keeping_low for r, _, _ in rows],
                "keeping_high": [r.keeping_high for r, _, _ in rows],
                "flips_below": [b.factor for _, b, _ in rows],
                "to_below": [b.decision for _, b, _ in rows],
                "flips_above": [a.factor for _, _, a in rows],
                "to_above": [a.decision for _, _, a in rows],
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        rows = []
        for row in self.rows:
            flips = {
                side: None if flip is None else vars(flip)
                for side, flip in (("below", row.below), ("above", row.above))
            }
            names = ("name", "value", "low", "high", "keeping_low", "keeping_high")
            rows.append({name: getattr(row, name) for name in names} | flips)
        return {"share": self.share, "base": self.base, "quantity": self.quantity, "inputs": rows}

    def __str__(self) -> str:
        share = f"{100 * self.share:g} %"
        header = ("input", "is", f"-{share}", f"+{share}", "the decision flips")
        rows = [
            (
                row.name,
                row.value,
                self._change(row.low),
                self._change(row.high),
                "; ".join(
                    f"{word} {flip.value} ({flip.factor:.2f}x): {flip.decision}"
                    for word, flip in (("below", row.below), ("above", row.above))
                    if flip is not None
                )
                or "nowhere from 0.25x to 4x",
            )
            for row in self.rows
        ]
        lines = [f"{self.quantity}: {text_of(self.base)}; what moves it, an input at a time"]
        lines.append(aligned(header, rows))
        lines += [*self._regrets()]
        return "\n".join(lines)

    def _change(self, value: float) -> str:
        if value == 0.0:
            return "nothing will do"
        change = 100.0 * (value / self.base - 1.0)
        return f"{change:+.1f} %"

    def _regrets(self) -> list[str]:
        """What it costs to stay with the decision where another one has become better."""
        lost = []
        for row in self.rows:
            for kept, best, side in (
                (row.keeping_low, row.low, "down"),
                (row.keeping_high, row.high, "up"),
            ):
                if best > 0.0 and kept < best * 0.9995:
                    text = "all" if kept == 0.0 else f"{100 * (1 - kept / best):.1f} %"
                    lost.append((1 - kept / best, f"{row.name} {side}: {text}"))
        if not lost:
            return [f"Within {100 * self.share:g} %, keeping the decision loses nothing."]
        worst = [text for _, text in sorted(lost, key=lambda item: -item[0])]
        return [f"Keeping the decision although an input moved loses: {', '.join(worst)}."]


def analyse(
    evaluate: Callable[[str, float], Outcome],
    inputs: list[Input],
    *,
    share: float,
    quantity: str,
    advance: Callable[[int], object] = lambda n: None,
) -> Sensitivity:
    """Move one input after the other.

    Args:
        evaluate: Outcome with an input times a factor; a factor of 1 gives the base.
        inputs: To move.
        share: By how much up and down, above 0 and below 1.
        quantity: What the value is.
        advance: Called with 1 after each input.
    """
    base = evaluate(inputs[0].name, 1.0)
    rows = []
    for given in inputs:
        seen: dict[float, Outcome] = {1.0: base}

        def at(factor: float, name: str = given.name, seen: dict[float, Outcome] = seen) -> Outcome:
            if factor not in seen:
                seen[factor] = evaluate(name, factor)
            return seen[factor]

        low, high = at(1.0 - share), at(min(1.0 + share, given.most))
        rows.append(
            Swing(
                given.name,
                given.show(1.0),
                low.value,
                high.value,
                low.keeping,
                high.keeping,
                _flip(at, given, base.decision, 1.0 - share),
                _flip(at, given, base.decision, 1.0 + share),
            )
        )
        advance(1)
    rows.sort(key=lambda row: -row.width)
    return Sensitivity(share, base.value, quantity, tuple(rows))


def _flip(at: Callable[[float], Outcome], given: Input, decision: str, first: float) -> Flip | None:
    """The nearest factor beyond which the decision differs, by steps and then by bisection."""
    up = first > 1.0
    further = [step if up else 1.0 / step for step in _STEPS]
    same = 1.0
    for step in (first, *(f for f in further if (f > first) == up)):
        factor = min(step, given.most)
        if factor == same:
            break
        if at(factor).decision == decision:
            same = factor
            continue
        other = factor
        while max(same, other) / min(same, other) > _CLOSE:
            middle = math.sqrt(same * other)
            if at(middle).decision == decision:
                same = middle
            else:
                other = middle
        return Flip(other, given.show(other), at(other).decision)
    return None
