"""Modality-aware zero-shot pruning: shed what this moment does not need."""

from __future__ import annotations

from leeboard.prune.compact import compact
from leeboard.prune.discover import Declaration, units
from leeboard.prune.plan import Plan
from leeboard.prune.runtime import active_plan, apply, revert
from leeboard.prune.scores import Scores
from leeboard.prune.units import LeftAlone, Sublayer, Tokens, Units

__all__ = [
    "Declaration",
    "LeftAlone",
    "Plan",
    "Scores",
    "Sublayer",
    "Tokens",
    "Units",
    "active_plan",
    "apply",
    "compact",
    "revert",
    "units",
]
