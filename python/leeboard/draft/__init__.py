"""Speculative drafters: small models that guess ahead of a large one.

Only targets need `transformers`, only checkpoints `safetensors`; nothing here imports either
before it is used.
"""

from __future__ import annotations

from leeboard.draft.cache import DrafterCache
from leeboard.draft.capture import AuxStates, capture
from leeboard.draft.checkpoint import load_drafter, save_drafter
from leeboard.draft.config import DrafterConfig
from leeboard.draft.model import Eagle3Drafter
from leeboard.draft.quantize import QuantizedDrafter, quantize
from leeboard.draft.speculate import SpeculateResult, speculate
from leeboard.draft.train import TTTLoss, ttt_loss

__all__ = [
    "AuxStates",
    "DrafterCache",
    "DrafterConfig",
    "Eagle3Drafter",
    "QuantizedDrafter",
    "SpeculateResult",
    "TTTLoss",
    "capture",
    "load_drafter",
    "quantize",
    "save_drafter",
    "speculate",
    "ttt_loss",
]
