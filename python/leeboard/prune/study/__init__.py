"""The study of what pruning costs: training arms x rankings x pruning x missing modalities."""

from __future__ import annotations

from leeboard.prune.study.presets import PRESETS
from leeboard.prune.study.runner import Failure, run_study
from leeboard.prune.study.settings import ARMS, RANKERS, Case, Study, Unit
from leeboard.prune.study.statistics import Bootstrap, Interval
from leeboard.prune.study.storage import ChangedStudyError, RunFolder

__all__ = [
    "ARMS",
    "PRESETS",
    "RANKERS",
    "Bootstrap",
    "Case",
    "ChangedStudyError",
    "Failure",
    "Interval",
    "RunFolder",
    "Study",
    "Unit",
    "run_study",
]
