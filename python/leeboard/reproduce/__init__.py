"""`leeboard draft reproduce`: which claims about drift hold at a scale that runs anywhere."""

from __future__ import annotations
