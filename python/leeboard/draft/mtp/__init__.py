"""MTP heads: multi-token prediction in the conventions of DeepSeek-V3, Qwen3-Next and MiMo."""

from __future__ import annotations

from leeboard.draft.mtp.cache import MTPCache
from leeboard.draft.mtp.checkpoint import load_mtp
from leeboard.draft.mtp.config import MTPConfig
from leeboard.draft.mtp.head import MTPHead

__all__ = ["MTPCache", "MTPConfig", "MTPHead", "load_mtp"]
