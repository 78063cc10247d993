"""What cached states belong to: a target, the states kept of it, and rows of tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

# Of a config, what does not change what the target computes.
_IMMATERIAL = frozenset(
    {
        "_name_or_path",
        "architectures",
        "dtype",
        "id2label",
        "label2id",
        "problem_type",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
# What drafters call the choice of the target's states that they read.
_CHOICES = ("aux_layer_ids", "aux_layer_convention", "target_state")
# Values hashed of each weight, evenly spread over it.
_SAMPLES = 64


def identity_of_target(target: Any) -> dict[str, Any]:
    """Class, dtype, config and a hash of samples of every weight, ready for JSON."""
    config = target.config.to_dict() if hasattr(target.config, "to_dict") else {}
    kept = {name: value for name, value in config.items() if name not in _IMMATERIAL}
    weight = target.get_output_embeddings().weight
    facts = {
        "class": type(target).__name__,
        "dtype": str(weight.dtype).removeprefix("torch."),
        "weights": weights_hash(target),
        "config": kept,
    }
    return json.loads(json.dumps(facts, default=str))  # type: ignore[no-any-return]


def identity_of_states(drafter: Any) -> dict[str, Any]:
    """Which of the target's states a drafter reads, ready for JSON."""
    chosen = {name: getattr(drafter.config, name, None) for name in _CHOICES}
    facts = {name: value for name, value in chosen.items() if value is not None}
    return json.loads(json.dumps(facts))  # type: ignore[no-any-return]


def weights_hash(model: nn.Module) -> str:
    """Of the names, shapes and dtypes of all weights and of some values of each."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        if weight.is_meta or not weight.numel():
            continue
        flat = weight.detach().reshape(-1)
        some = flat[:: max(1, len(flat) // _SAMPLES)][:_SAMPLES].cpu().contiguous()
        digest.update(some.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def check_same(folder: Path, cached: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise ValueError, with what differs, unless cached states belong to what is here."""
    found = differences(cached, here)
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise ValueError(
            f"{folder}: the cached states are of something else: {'; '.join(found[:5])}{more}. "
            "Give another folder, or delete this one"
        )


def differences(cached: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Where two identities differ, in words.

    Of the target's config only what both have is compared: another version of transformers may
    have other fields in it.
    """
    found = []
    for name in sorted({*cached, *here}):
        path = f"{prefix}{name}"
        one, other = cached.get(name), here.get(name)
        if prefix.startswith("target.config.") and not (name in cached and name in here):
            continue
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += differences(one, other, f"{path}.")
        elif one != other:
            found.append(f"{path} is {one!r} there and {other!r} here")
    return found
