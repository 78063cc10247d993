"""Probes of drift: what a drafter's chains do, depth by depth, and under what they break."""

from __future__ import annotations

from leeboard.draft.probe.bootstrap import Interval, paired_difference, ratio
from leeboard.draft.probe.chains import Attention, Chains, accepted_rounds, measure_chains
from leeboard.draft.probe.texts import Texts, greedy_texts, looping

__all__ = [
    "Attention",
    "Chains",
    "Interval",
    "Texts",
    "accepted_rounds",
    "greedy_texts",
    "looping",
    "measure_chains",
    "paired_difference",
    "ratio",
]
