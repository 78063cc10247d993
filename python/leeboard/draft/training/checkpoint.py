"""Checkpoints of a training: safetensors and JSON, each there as a whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leeboard._files import only_holder, read_json, write_json, write_tensors
from leeboard.draft.training.history import History

_FORMAT = "leeboard training checkpoint 1"
_NAMES = "step-*.json"


@dataclasses.dataclass(frozen=True)
class Saved:
    """A checkpoint on disk.

    Attributes:
        step: Optimizer steps done.
        record: Its JSON file; the tensors are beside it.
        identity: What the training was told, JSON-ready.
    """

    step: int
    record: Path
    identity: Mapping[str, Any]

    @property
    def tensors(self) -> Path:
        """The safetensors file."""
        return self.record.with_suffix(".safetensors")


class Checkpoints:
    """The checkpoints of one training in a folder.

    A checkpoint is `step-<number>.safetensors` (weights, the optimizer's averages, the history) and
    `step-<number>.json`, written last: only with it does a checkpoint count. The newest is kept.

    Args:
        folder: Made when something is saved.
        identity: What decides the training's course, JSON-ready. A checkpoint of another training
            is refused.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        # As it will be read: tuples are lists then.
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))

    def latest(self) -> Saved | None:
        """The newest checkpoint, of this training.

        Raises:
            ValueError: It is damaged, or of another training: the message names what differs.
        """
        found = None
        for file in sorted(self.folder.glob(_NAMES)):
            saved = _read_record(file)
            if found is None or saved.step > found.step:
                found = saved
        if found is None:
            return None
        if differences := list(_differences(found.identity, self.identity)):
            raise ValueError(
                f"{found.record}: the checkpoint is of another training and is left alone: "
                + "; ".join(differences)
                + ". Give the same settings and data to resume, or another folder; resume=False "
                "(--fresh) removes the checkpoint and begins again"
            )
        return found

    def save(
        self,
        step: int,
        trained: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        history: History,
    ) -> Path:
        """Write a checkpoint after `step` steps, then remove older ones. Returns its JSON file.

        Raises:
            OSError: It could not be written; the one before is kept.
        """
        record = self.folder / f"step-{step:09d}.json"
        tensors = {f"history/{name}": column for name, column in history.tensors().items()}
        for name, parameter in trained.items():
            tensors[f"value/{name}"] = parameter
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{key}/{name}"] = value
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            write_tensors(record.with_suffix(".safetensors"), tensors, {"format": "pt"})
            write_json(record, {"format": _FORMAT, "step": step, "identity": self.identity})
        except OSError as error:
            raise OSError(
                error.errno, f"checkpoint of step {step} not written: {error}", str(record)
            ) from error
        self.prune(step)
        return record

    def prune(self, step: int) -> None:
        """Remove every checkpoint but that of `step`, and what interrupted writes have left."""
        for file in self.folder.glob(_NAMES):
            if file.stem != f"step-{step:09d}":
                file.unlink(missing_ok=True)
        for file in (*self.folder.glob("step-*.safetensors"), *self.folder.glob(".step-*")):
            if file.name.startswith(".") or not file.with_suffix(".json").exists():
                file.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove all checkpoints, and the folder if nothing else is in it."""
        self.prune(-1)
        # Not empty, or never made.
        with contextlib.suppress(OSError):
            self.folder.rmdir()


@contextmanager
def only_training(folder: Path) -> Iterator[None]:
    """Hold the folder, made if missing, as long as the block runs.

    Raises:
        RuntimeError: Another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    message = f"{folder}: another process trains there: wait, or give another folder"
    with only_holder(folder / ".lock", message):
        yield


def restore(
    saved: Saved, trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> History:
    """Put a checkpoint's weights and averages in place; returns its history.

    Raises:
        ValueError: The file is damaged or does not fit the model; nothing is changed then.
    """
    from safetensors import SafetensorError, safe_open

    file = saved.tensors
    try:
        with safe_open(file, framework="pt") as stored:
            tensors: dict[str, Tensor] = {
                key: stored.get_tensor(key)
                for key in stored.keys()  # noqa: SIM118
            }
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file}: damaged or no safetensors file ({error})") from error
    kinds: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        kinds.setdefault(kind, {})[name] = tensor
    history = History.from_tensors(kinds.pop("history", {}))
    values = kinds.pop("value", {})
    for name, parameter in trained.items():
        if name not in values or values[name].shape != parameter.shape:
            got = tuple(values[name].shape) if name in values else "no such tensor"
            raise ValueError(f"{file}: {name}: got {got}, expected {tuple(parameter.shape)}")
    state = {
        i: {kind: parts[name] for kind, parts in kinds.items() if name in parts}
        for i, name in enumerate(trained)
    }
    groups = optimizer.state_dict()["param_groups"]
    # Moves each entry to where the optimizer wants it.
    optimizer.load_state_dict(
        {"state": {i: s for i, s in state.items() if s}, "param_groups": groups}
    )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(values[name])
    return history


def _read_record(file: Path) -> Saved:
    try:
        record = read_json(file)
        if record["format"] != _FORMAT:
            raise ValueError(f"got format {record['format']!r}, expected {_FORMAT!r}")
        saved = Saved(int(record["step"]), file, dict(record["identity"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: damaged or no checkpoint of a training ({error})") from error
    if not saved.tensors.is_file():
        raise ValueError(f"{file}: damaged: there is no {saved.tensors.name} beside it")
    return saved


def _differences(stored: Any, given: Any, path: str = "") -> Iterator[str]:
    """What differs between two identities, in words."""
    if isinstance(stored, Mapping) and isinstance(given, Mapping):
        for key in dict.fromkeys((*stored, *given)):
            here = f"{path}.{key}" if path else key
            if key not in given or key not in stored:
                yield f"{here}: {'not any more' if key in stored else 'not in it'}"
            else:
                yield from _differences(stored[key], given[key], here)
    elif stored != given:
        yield f"{path}: it has {stored!r}, this training {given!r}"
