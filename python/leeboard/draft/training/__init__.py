"""Training of drafters."""

from __future__ import annotations

from leeboard.draft.training.cached import CachedStates, cache_bytes, cache_states
from leeboard.draft.training.chats import Chat, Chats, read_chats
from leeboard.draft.training.encoding import encode_chats
from leeboard.draft.training.history import History
from leeboard.draft.training.loop import Interrupted
from leeboard.draft.training.rows import Documents, Rows, pack_rows, shuffled
from leeboard.draft.training.settings import LoopSettings, TrainSettings
from leeboard.draft.training.shards import DiskFullError
from leeboard.draft.training.states import OnlineStates, StateSource, observe
from leeboard.draft.training.teacher import Teacher, teacher_of
from leeboard.draft.training.trainer import Trained, train_drafter
from leeboard.draft.training.vocabulary import (
    check_tokenizer,
    choose_vocabulary,
    special_ids,
    vocabulary_coverage,
)

__all__ = [
    "CachedStates",
    "Chat",
    "Chats",
    "DiskFullError",
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
    "cache_bytes",
    "cache_states",
    "check_tokenizer",
    "choose_vocabulary",
    "encode_chats",
    "observe",
    "pack_rows",
    "read_chats",
    "shuffled",
    "special_ids",
    "teacher_of",
    "train_drafter",
    "vocabulary_coverage",
]
