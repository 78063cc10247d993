"""Modality-aware zero-shot pruning: shed what this moment does not need."""

from __future__ import annotations

from leeboard.prune.aware import PruneAware
from leeboard.prune.budget import Budget
from leeboard.prune.calibration import calibrate
from leeboard.prune.compact import compact
from leeboard.prune.costs import Costs, costs
from leeboard.prune.discover import Declaration, units
from leeboard.prune.dropout import ModalityDropout, grouped
from leeboard.prune.files import load_scores, save_scores
from leeboard.prune.latency import LatencyTable
from leeboard.prune.plan import Plan
from leeboard.prune.planner import plan
from leeboard.prune.runtime import active_plan, apply, revert
from leeboard.prune.score_table import ScoreTable
from leeboard.prune.scorer import Scorer
from leeboard.prune.scores import Scores
from leeboard.prune.sentry_gate import SentryGate
from leeboard.prune.static import StaticScores
from leeboard.prune.taps import Taps
from leeboard.prune.units import LeftAlone, Sublayer, Tokens, Units

__all__ = [
    "Budget",
    "Costs",
    "Declaration",
    "LatencyTable",
    "LeftAlone",
    "ModalityDropout",
    "Plan",
    "PruneAware",
    "ScoreTable",
    "Scorer",
    "Scores",
    "SentryGate",
    "StaticScores",
    "Sublayer",
    "Taps",
    "Tokens",
    "Units",
    "active_plan",
    "apply",
    "calibrate",
    "compact",
    "costs",
    "grouped",
    "load_scores",
    "plan",
    "revert",
    "save_scores",
    "units",
]
