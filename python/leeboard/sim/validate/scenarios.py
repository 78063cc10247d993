"""Settings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """Links and ranks."""

    bandwidth: str
    delay: str
    ranks: int
