"""Modality-aware zero-shot pruning: shed what this moment does not need."""

from __future__ import annotations

from leeboard.prune.plan import Plan
from leeboard.prune.scores import Scores
from leeboard.prune.static import StaticScores
from leeboard.prune.units import LeftAlone, Sublayer, Tokens, Units

__all__ = ["LeftAlone", "Plan", "Scores", "StaticScores", "Sublayer", "Tokens", "Units"]
