"""Stub until the kernels land: the reference, without dispatch."""

from __future__ import annotations

from leeboard.reference import panel_ffn

__all__ = ["panel_ffn"]
