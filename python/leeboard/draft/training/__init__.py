"""Training of drafters."""

from __future__ import annotations

from leeboard.draft.training.history import History
from leeboard.draft.training.loop import Interrupted
from leeboard.draft.training.rows import Documents, Rows, pack_rows, shuffled
from leeboard.draft.training.settings import LoopSettings, TrainSettings
from leeboard.draft.training.states import OnlineStates, StateSource
from leeboard.draft.training.teacher import Teacher, teacher_of
from leeboard.draft.training.trainer import Trained, train_drafter

__all__ = [
    "Documents",
    "History",
    "Interrupted",
    "LoopSettings",
    "OnlineStates",
    "Rows",
    "StateSource",
    "Teacher",
    "TrainSettings",
    "Trained",
    "pack_rows",
    "shuffled",
    "teacher_of",
    "train_drafter",
]
