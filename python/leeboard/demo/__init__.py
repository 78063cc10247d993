"""`leeboard demo`: from the standard library's source to a picture of attention drift."""

from __future__ import annotations
