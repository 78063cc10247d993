"""Speculative drafters: small models that guess ahead of a large one.

Only targets need `transformers`; nothing here imports it before a target is used.
"""

from __future__ import annotations

from leeboard.draft.cache import DrafterCache
from leeboard.draft.capture import AuxStates, capture
from leeboard.draft.config import DrafterConfig
from leeboard.draft.model import Eagle3Drafter
from leeboard.draft.speculate import SpeculateResult, speculate
from leeboard.draft.train import TTTLoss, ttt_loss

__all__ = [
    "AuxStates",
    "DrafterCache",
    "DrafterConfig",
    "Eagle3Drafter",
    "SpeculateResult",
    "TTTLoss",
    "capture",
    "speculate",
    "ttt_loss",
]
