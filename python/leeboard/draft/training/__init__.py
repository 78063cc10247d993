"""Training of drafters."""

from __future__ import annotations

from leeboard.draft.training.cached import CachedStates, cache_bytes, cache_states
from leeboard.draft.training.rows import Documents, Rows, pack_rows, shuffled
from leeboard.draft.training.shards import DiskFullError
from leeboard.draft.training.states import OnlineStates, StateSource
from leeboard.draft.training.teacher import Teacher, teacher_of

__all__ = [
    "CachedStates",
    "DiskFullError",
    "Documents",
    "OnlineStates",
    "Rows",
    "StateSource",
    "Teacher",
    "cache_bytes",
    "cache_states",
    "pack_rows",
    "shuffled",
    "teacher_of",
]
