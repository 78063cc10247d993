"""Joined-up questions: drafters, pruning plans and the simulator answer them together."""

from __future__ import annotations

from leeboard.scenarios.acceptance import Acceptance, acceptance_of
from leeboard.scenarios.decoding import Candidate
from leeboard.scenarios.edge import plan_edge
from leeboard.scenarios.edge_plan import EdgePlan, NothingMeetsError
from leeboard.scenarios.edge_plans import EdgeCandidate, Plans, Sensor, plans_of
from leeboard.scenarios.edge_question import Choice, Trial
from leeboard.scenarios.edge_study import plans_of_study
from leeboard.scenarios.models import DRAFTERS, TARGETS, Drafter, Target
from leeboard.scenarios.sensitivity import Flip, Sensitivity, Swing
from leeboard.scenarios.speculation import plan_speculation
from leeboard.scenarios.speculation_plan import NothingFitsError, SpeculationPlan

__all__ = [
    "DRAFTERS",
    "TARGETS",
    "Acceptance",
    "Candidate",
    "Choice",
    "Drafter",
    "EdgeCandidate",
    "EdgePlan",
    "Flip",
    "NothingFitsError",
    "NothingMeetsError",
    "Plans",
    "Sensitivity",
    "Sensor",
    "SpeculationPlan",
    "Swing",
    "Target",
    "Trial",
    "acceptance_of",
    "plan_edge",
    "plan_speculation",
    "plans_of",
    "plans_of_study",
]
