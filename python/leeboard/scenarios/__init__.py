"""Joined-up questions: drafters, pruning plans and the simulator answer them together."""

from __future__ import annotations

from leeboard.scenarios.acceptance import Acceptance, acceptance_of
from leeboard.scenarios.models import DRAFTERS, TARGETS, Drafter, Target
from leeboard.scenarios.sensitivity import Flip, Sensitivity, Swing
from leeboard.scenarios.speculation import Candidate, SpeculationPlan, plan_speculation

__all__ = [
    "DRAFTERS",
    "TARGETS",
    "Acceptance",
    "Candidate",
    "Drafter",
    "Flip",
    "Sensitivity",
    "SpeculationPlan",
    "Swing",
    "Target",
    "acceptance_of",
    "plan_speculation",
]
