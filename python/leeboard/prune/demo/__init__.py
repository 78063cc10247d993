"""`leeboard prune demo`: a stream in which sensors drop out and the budget falls."""

from __future__ import annotations
