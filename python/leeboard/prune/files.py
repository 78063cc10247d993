"""Rankings on disk: one safetensors file, whose header holds the rest as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leeboard._files import write_tensors
from leeboard.prune._mask_table import check_tensors
from leeboard.prune.score_table import ScoreTable
from leeboard.prune.scores import Scores
from leeboard.prune.sentry_gate import SentryGate
from leeboard.prune.static import StaticScores
from leeboard.prune.units import Units

_KEY = "leeboard.prune.scores"
_VERSION = 1


def save_scores(scores: Scores, path: str | os.PathLike[str]) -> None:
    """Write a `ScoreTable`, a `SentryGate` or `StaticScores` to one safetensors file.

    A training can go on from the file: all that was gathered is in it, and the state of the gate's
    optimiser. A reader sees the old file or the new one, never half of one.

    Raises:
        TypeError: The ranking is of another class.
        FileNotFoundError: The folder does not exist.
    """
    kind, settings, tensors = _taken_apart(scores)
    header = {
        "version": _VERSION,
        "kind": kind,
        "fingerprint": scores.units.fingerprint,
        "modalities": list(scores.units.modalities),
        "settings": settings,
    }
    write_tensors(Path(path), tensors, {_KEY: json.dumps(header, allow_nan=False)})


def load_scores(path: str | os.PathLike[str], units: Units) -> Scores:
    """Read a ranking that `save_scores` wrote, for the model with these units.

    Raises:
        ImportError: safetensors is not installed.
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, of a later version, or was written for another model.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise _needs_safetensors("load_scores") from error
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: not found, expected a file of scores")
    try:
        with safe_open(file, framework="pt") as handle:
            metadata = handle.metadata() or {}
            tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{file}: damaged or no safetensors file ({error})") from error
    header = _header(file, metadata, units)
    try:
        return _put_together(header["kind"], header["settings"], tensors, units)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{file}: damaged: {error}") from error


def _taken_apart(scores: Scores) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Kind, settings for JSON, and tensors of a ranking."""
    if type(scores) is ScoreTable:
        state = scores.state_dict()
        settings = {
            "half_life": scores.half_life,
            "means_half_life": scores.means_half_life,
            "min_samples": scores.min_samples,
            "name": scores.name,
            "samples": state["samples"],
        }
        return "table", settings, _flat({"table": state["table"], "means": state["means"]})
    if type(scores) is SentryGate:
        state = scores.state_dict()
        extra = state.pop("_extra_state")
        return "gate", dict(scores.settings), _flat({"module": state, **extra})
    if type(scores) is StaticScores:
        parts = {"values": scores.values, "means": scores.means_of_inputs or {}}
        settings = {"name": scores.name, "means": scores.means_of_inputs is not None}
        return "static", settings, _flat(parts)
    raise TypeError(
        f"scores: got {type(scores).__name__}, expected a ScoreTable, a SentryGate or StaticScores"
    )


def _put_together(
    kind: str, settings: dict[str, Any], tensors: Mapping[str, Tensor], units: Units
) -> Scores:
    parts = _nested(tensors)
    if kind == "table":
        samples = settings.pop("samples")
        table = ScoreTable(units, **settings)
        means = parts.get("means", {})
        _check_parts(parts, {"table", "means"})
        table.load_state_dict({"table": parts["table"], "means": means, "samples": samples})
        return table
    if kind == "gate":
        gate = SentryGate(units, **settings)
        module, adam = parts.get("module", {}), parts.get("adam", {})
        _check_parts(parts, {"module", "means", "adam"})
        state = {n: t for n, t in gate.state_dict().items() if isinstance(t, Tensor)}
        check_tensors(module, {n: (t.shape, t.dtype) for n, t in state.items()})
        _check_moments(gate, adam)
        extra = {"adam": adam, "means": parts.get("means", {})}
        gate.load_state_dict({**module, "_extra_state": extra})
        return gate
    if kind == "static":
        _check_parts(parts, {"values", "means"})
        found = parts.get("means", {}) if settings["means"] else None
        return StaticScores(units, str(settings["name"]), parts.get("values", {}), found)
    raise ValueError(f"kind: got {kind!r}, expected 'table', 'gate' or 'static'")


def _header(file: Path, metadata: Mapping[str, str], units: Units) -> dict[str, Any]:
    if _KEY not in metadata:
        raise ValueError(f"{file}: got a safetensors file without scores, expected {_KEY}")
    try:
        header = json.loads(metadata[_KEY])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: damaged: {_KEY} is not JSON ({error})") from error
    if not isinstance(header, dict) or not isinstance(header.get("settings"), dict):
        raise ValueError(  # noqa: TRY004 (a file is not typed)
            f"{file}: damaged: {_KEY} is no object with settings"
        )
    if header.get("version") != _VERSION:
        raise ValueError(
            f"{file}: version: got {header.get('version')!r}, expected {_VERSION}; a later version "
            "of leeboard may have written it"
        )
    for field, expected in (
        ("fingerprint", units.fingerprint),
        ("modalities", list(units.modalities)),
    ):
        if header.get(field) != expected:
            raise ValueError(
                f"{file}: {field}: got {header.get(field)!r}, expected {expected!r}: these scores "
                "are of another model"
            )
    return header


def _check_parts(parts: Mapping[str, Any], known: set[str]) -> None:
    if unknown := sorted(parts.keys() - known):
        raise ValueError(f"{unknown[0]}: unknown tensors, expected {', '.join(sorted(known))}")


def _check_moments(gate: SentryGate, moments: Mapping[str, Tensor]) -> None:
    """The optimiser's state is empty or whole."""
    if not moments:
        return
    expected: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    for index, parameter in enumerate(gate.parameters()):
        shape = tuple(parameter.shape)
        expected[f"{index}.step"] = ((), torch.float32)
        expected[f"{index}.exp_avg"] = (shape, parameter.dtype)
        expected[f"{index}.exp_avg_sq"] = (shape, parameter.dtype)
    check_tensors(moments, expected)


def _flat(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Names "part/name"."""
    return {f"{part}/{name}": t for part, group in parts.items() for name, t in group.items()}


def _nested(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        parts.setdefault(part, {})[name] = tensor
    return parts


def _needs_safetensors(what: str) -> ImportError:
    return ImportError(f'{what} needs safetensors: pip install "leeboard[prune]"')
