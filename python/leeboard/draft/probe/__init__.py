"""Probes of drift: what a drafter's chains do, depth by depth, and under what they break."""

from __future__ import annotations

from leeboard.draft.probe.bootstrap import Interval, paired_difference, ratio
from leeboard.draft.probe.chains import (
    Attention,
    Chains,
    accepted_rounds,
    find_sink,
    measure_chains,
)
from leeboard.draft.probe.conditions import CONDITIONS, PromptSet, prompt_set
from leeboard.draft.probe.result import DrafterProbe, Measured, ProbeResult
from leeboard.draft.probe.run import probe
from leeboard.draft.probe.texts import Texts, greedy_texts, looping

__all__ = [
    "CONDITIONS",
    "Attention",
    "Chains",
    "DrafterProbe",
    "Interval",
    "Measured",
    "ProbeResult",
    "PromptSet",
    "Texts",
    "accepted_rounds",
    "find_sink",
    "greedy_texts",
    "looping",
    "measure_chains",
    "paired_difference",
    "probe",
    "prompt_set",
    "ratio",
]
