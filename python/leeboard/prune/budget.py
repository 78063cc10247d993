"""How much a plan may cost: a share, multiply-adds, milliseconds or bytes."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

BudgetKind = Literal["share", "macs", "milliseconds", "bytes"]

_LARGE = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}
_UNITS: dict[str, tuple[BudgetKind, float]] = {
    "%": ("share", 0.01),
    "s": ("milliseconds", 1e3),
    "ms": ("milliseconds", 1.0),
    "us": ("milliseconds", 1e-3),
    "µs": ("milliseconds", 1e-3),
    **{f"{p}MAC": ("macs", scale) for p, scale in _LARGE.items()},
    **{f"{p}MACs": ("macs", scale) for p, scale in _LARGE.items()},
    **{f"{p}B": ("bytes", scale) for p, scale in (_LARGE | _BINARY).items()},
}
_TEXT = re.compile(r"\s*(\+?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,2})?)\s*([^\s\d]\S*)?\s*", re.ASCII)
_EXPECTED = (
    'expected a share of the dense multiply-adds ("50%", 0.5), multiply-adds ("3 MMAC"), '
    'milliseconds ("2.5 ms") or bytes of weights ("200 kB", "200 KiB")'
)


@dataclass(frozen=True)
class Budget:
    """How much the prunable part of a model may cost, for one sample. `str(budget)` parses back.

    Attributes:
        amount: Positive: a share (at most 1) of the multiply-adds that the model has with the same
            modalities present, multiply-adds, milliseconds of the whole model, or bytes of weights.
        kind: What `amount` counts.

    Raises:
        ValueError: For an amount that is not finite and positive, or a share above 1.
    """

    amount: float
    kind: BudgetKind

    def __post_init__(self) -> None:
        if self.kind not in ("share", "macs", "milliseconds", "bytes"):
            raise ValueError(f"kind: got {self.kind!r}, expected share, macs, milliseconds, bytes")
        _check(self.amount, self.kind, f"{self.amount!r} ({self.kind})")

    @classmethod
    def parse(cls, budget: Budget | str | float) -> Budget:
        """A budget of text or of a number, which is a share.

        Case counts: "3 MMAC" are 3e6 multiply-adds. "kB" are 1000 bytes, "KiB" 1024.

        Raises:
            TypeError: For anything but a budget, text or a number.
            ValueError: For text that says no budget, or an amount that is none.
        """
        if isinstance(budget, Budget):
            return budget
        if isinstance(budget, str):
            return cls._of_text(budget)
        if isinstance(budget, bool) or not isinstance(budget, int | float):
            raise TypeError(f"budget: got {type(budget).__name__}, {_EXPECTED}")
        _check(float(budget), "share", repr(budget))
        return cls(float(budget), "share")

    @classmethod
    def _of_text(cls, text: str) -> Budget:
        found = _TEXT.fullmatch(text) if len(text) <= 64 else None
        if found is None:
            raise ValueError(f"budget: got {text[:64]!r}, {_EXPECTED}")
        number, unit = float(found[1]), found[2]
        if unit is None:
            # "0.5" is a share; "50" might mean anything.
            if number > 1.0:
                raise ValueError(f"budget: got {text!r} without a unit, {_EXPECTED}")
            kind, scale = _UNITS["%"][0], 1.0
        elif unit in _UNITS:
            kind, scale = _UNITS[unit]
        else:
            alike = [known for known in _UNITS if known.lower() == unit.lower()]
            hint = f"did you mean {' or '.join(alike)}? " if alike else ""
            raise ValueError(f"budget: got the unit {unit!r} in {text!r}; {hint}{_EXPECTED}")
        _check(number, kind, repr(text))
        # 30% is 0.3, not 30 * 0.01.
        return cls(number / 100.0 if unit == "%" else number * scale, kind)

    def __str__(self) -> str:
        if self.kind == "share":
            return f"{_digits(100.0 * self.amount)}%"
        if self.kind == "milliseconds":
            return f"{_digits(self.amount)} ms"
        prefix = next((p for p, scale in reversed(_LARGE.items()) if self.amount >= scale), "")
        unit = "MAC" if self.kind == "macs" else "B"
        return f"{_digits(self.amount / _LARGE[prefix])} {prefix}{unit}"


def _check(amount: float, kind: BudgetKind, given: str) -> None:
    if not math.isfinite(amount) or amount <= 0.0:
        raise ValueError(f"budget: got {given}, expected a positive amount")
    limit = 100.0 if given.rstrip("'\" ").endswith("%") else 1.0
    if kind == "share" and amount > limit:
        raise ValueError(
            f"budget: got {given}, expected a share of at most 100% (1.0); "
            'absolute budgets have units, e.g. "3 MMAC"'
        )


def _digits(value: float) -> str:
    return f"{value:.12g}"
