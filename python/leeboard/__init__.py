"""leeboard: cheaper inference that holds its course.

Speculative drafters that do not drift, modality-aware pruning and a deployment simulator for
PyTorch, on one set of fused ops. Subpackages load when first used: `leeboard.ops`, `leeboard.nn`,
`leeboard.draft`.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

from leeboard._version import __version__

if TYPE_CHECKING:
    from leeboard import draft, nn, ops, reference
    from leeboard._doctor import doctor

_SUBPACKAGES = ("draft", "nn", "ops", "reference")

__all__ = ["__version__", "doctor", "draft", "nn", "ops", "reference"]


def __getattr__(name: str) -> ModuleType | Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"leeboard.{name}")
    if name == "doctor":
        return importlib.import_module("leeboard._doctor").doctor
    raise AttributeError(f"module 'leeboard' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
