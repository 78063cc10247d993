"""Stub until the kernels land: the reference, without dispatch."""

from __future__ import annotations

from leeboard.reference import unit_saliency

__all__ = ["unit_saliency"]
