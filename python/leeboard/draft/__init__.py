"""Speculative drafters: small models that guess ahead of a large one.

Only targets need `transformers`, only checkpoints `safetensors`; nothing here imports either
before it is used.
"""

from __future__ import annotations

from leeboard.draft.batch import Batch
from leeboard.draft.cache import DrafterCache
from leeboard.draft.capture import AuxStates, capture
from leeboard.draft.checkpoint import load_drafter, save_drafter
from leeboard.draft.config import DrafterConfig
from leeboard.draft.loss import ChainLoss, chain_loss, count_rows
from leeboard.draft.model import Eagle3Drafter
from leeboard.draft.mtp import MTPConfig, MTPHead, load_mtp
from leeboard.draft.probe import ProbeResult, probe
from leeboard.draft.protocol import Attended, Drafter
from leeboard.draft.quantize import QuantizedDrafter, quantize
from leeboard.draft.speculate import SpeculateResult, speculate
from leeboard.draft.training import Trained, TrainSettings, observe, train_drafter

__all__ = [
    "Attended",
    "AuxStates",
    "Batch",
    "ChainLoss",
    "Drafter",
    "DrafterCache",
    "DrafterConfig",
    "Eagle3Drafter",
    "MTPConfig",
    "MTPHead",
    "ProbeResult",
    "QuantizedDrafter",
    "SpeculateResult",
    "TrainSettings",
    "Trained",
    "capture",
    "chain_loss",
    "count_rows",
    "load_drafter",
    "load_mtp",
    "observe",
    "probe",
    "quantize",
    "save_drafter",
    "speculate",
    "train_drafter",
]
