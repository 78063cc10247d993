"""Training of drafters."""

from __future__ import annotations

from leeboard.draft.training.rows import Documents, Rows, pack_rows, shuffled
from leeboard.draft.training.states import OnlineStates, StateSource
from leeboard.draft.training.teacher import Teacher, teacher_of

__all__ = [
    "Documents",
    "OnlineStates",
    "Rows",
    "StateSource",
    "Teacher",
    "pack_rows",
    "shuffled",
    "teacher_of",
]
