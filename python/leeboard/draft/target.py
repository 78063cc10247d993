"""Running a Hugging Face target on its KV cache."""

from __future__ import annotations

import inspect
from typing import Any


def new_cache() -> Any:
    """An empty KV cache for any Hugging Face causal LM.

    Raises:
        ImportError: transformers is not installed.
    """
    try:
        from transformers import DynamicCache
    except ImportError as error:
        raise ImportError('speculate needs transformers: pip install "leeboard[hf]"') from error
    # Without a config every layer keeps its whole past; a layer that drops what lies outside its
    # window could not be cut back after a rejected draft.
    return DynamicCache()


def takes(target: Any, name: str) -> bool:
    """Whether the target's forward pass has an argument of this name."""
    return name in inspect.signature(target.forward).parameters


def cache_arguments(target: Any, cache: Any) -> dict[str, Any]:
    """Keyword arguments of a forward pass that reads and extends `cache`.

    Newer versions of transformers call the argument `cache` and warn about the old name.
    """
    name = "cache" if takes(target, "cache") else "past_key_values"
    return {name: cache, "use_cache": True}
