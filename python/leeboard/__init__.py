"""leeboard: cheaper inference that holds its course."""
from __future__ import annotations

from leeboard._version import __version__

__all__ = ["__version__"]
