"""Tensors in safetensors files, found by their keys and read when they are asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
# As safetensors spells them.
FLOATS: Final = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F64": torch.float64,
}
TARGET_EMBEDDINGS = (
    "model.embed_tokens.weight",
    "language_model.model.embed_tokens.weight",
    "model.language_model.embed_tokens.weight",
)
TARGET_HEADS = ("lm_head.weight", "language_model.lm_head.weight")


def needs_safetensors(what: str) -> ImportError:
    return ImportError(f'{what} needs safetensors: pip install "leeboard[hf]"')


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    if not file.is_file():
        place = "folder" if file.parent.is_dir() else "no such folder"
        raise FileNotFoundError(f"{file}: not found ({place} {file.parent}), expected a JSON file")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({error})") from error
    if isinstance(value, dict):
        return value
    raise ValueError(f"{file}: got a {type(value).__name__}, expected an object")


class Stored:
    """A tensor in an open safetensors file."""

    def __init__(self, file: Path, handle: Any, key: str) -> None:
        self.file, self.key, self._handle = file, key, handle
        entry = handle.get_slice(key)
        self.shape, self.dtype = tuple(entry.get_shape()), str(entry.get_dtype())

    def check(self, shape: tuple[int, ...], dtypes: Iterable[str] | None = None) -> None:
        """Raise ValueError unless shape and dtype are as expected."""
        expected = tuple(dtypes or FLOATS)
        if self.dtype not in expected:
            raise ValueError(
                f"{self.file}: {self.key}: got dtype {self.dtype}, expected one of {list(expected)}"
            )
        if self.shape != shape:
            raise ValueError(
                f"{self.file}: {self.key}: got shape {self.shape}, expected {shape} by {CONFIG}"
            )

    def read(self) -> Tensor:
        tensor: Tensor = self._handle.get_tensor(self.key)
        return tensor


def open_folder(
    folder: Path, stack: ExitStack, wanted: Callable[[str], bool] | None = None
) -> dict[str, Stored]:
    """The tensors of a folder by their keys; the files stay open as long as `stack`.

    Args:
        folder: With model.safetensors, or shards that model.safetensors.index.json names.
        stack: Closes the files.
        wanted: Which keys to open; other shards are not touched. None for all.
    """
    if (folder / WEIGHTS).is_file():
        stored = open_file(folder / WEIGHTS, stack)
        return {key: tensor for key, tensor in stored.items() if wanted is None or wanted(key)}
    index = folder / INDEX
    shards = shard_names(folder)
    keys = [key for key in shards if wanted is None or wanted(key)]
    tensors: dict[str, Stored] = {}
    for name in sorted({shards[key] for key in keys}):
        stored = open_file(folder / name, stack)
        listed = {key for key, shard in shards.items() if shard == name}
        if wrong := sorted(listed ^ stored.keys()):
            raise ValueError(
                f"{folder / name}: {wrong}: {index.name} and this file disagree on them"
            )
        tensors.update((key, stored[key]) for key in keys if key in stored)
    return tensors


def shard_names(folder: Path) -> dict[str, str]:
    """Where model.safetensors.index.json says each key is.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged, or there are only pickles.
    """
    index = folder / INDEX
    if not index.is_file():
        if pickled := sorted(file.name for file in folder.glob("*.bin")):
            raise ValueError(
                f"{folder}: found {pickled} and no {WEIGHTS}: pickles run code when they are "
                "loaded and are not read; convert them to safetensors first (torch.load with "
                "weights_only=True, then safetensors.torch.save_file)"
            )
        raise FileNotFoundError(f"{folder}: found neither {WEIGHTS} nor {INDEX}")
    shards = read_object(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise ValueError(f"{index}: weight_map: got {shards!r}, expected keys and names of files")
    for name in sorted(set(shards.values())):
        if Path(name).name != name:
            raise ValueError(f"{index}: weight_map: got {name!r}, expected a file beside it")
    return shards


def stored_keys(folder: Path) -> list[str]:
    """The keys of a folder's tensors; of shards their index alone is read."""
    if (folder / WEIGHTS).is_file():
        with ExitStack() as stack:
            return list(open_file(folder / WEIGHTS, stack))
    return list(shard_names(folder))


def open_file(file: Path, stack: ExitStack) -> dict[str, Stored]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise needs_safetensors("load_drafter") from error
    if not file.is_file():
        raise FileNotFoundError(f"{file}: not found, expected a safetensors file")
    try:
        handle = stack.enter_context(safe_open(file, framework="pt"))
        return {key: Stored(file, handle, key) for key in handle.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{file}: damaged or no safetensors file ({error})") from error


class TargetSource:
    """What a checkpoint may leave to the target: a Hugging Face model, a path or nothing."""

    def __init__(self, given: Any) -> None:
        self._path = Path(given) if isinstance(given, str | os.PathLike) else None
        self._model = None if self._path is not None else given
        if self._model is not None and not hasattr(self._model, "get_input_embeddings"):
            raise TypeError(
                f"target: got {type(given).__name__}, expected a Hugging Face model, the path of a "
                "folder or safetensors file, or None"
            )

    def layers(self) -> int | None:
        """Its number of decoder layers, None without a target."""
        if self._model is not None:
            config: Any = self._model.config
            return int(config.get_text_config().num_hidden_layers)
        if self._path is None:
            return None
        folder = self._path if self._path.is_dir() else self._path.parent
        fields = read_object(folder / CONFIG)
        count = fields.get("text_config", fields).get("num_hidden_layers")
        if type(count) is not int or count < 1:
            raise ValueError(
                f"{folder / CONFIG}: num_hidden_layers: got {count!r}, expected a positive integer"
            )
        return count

    def embedding(self, shape: tuple[int, ...]) -> Tensor:
        """Its embedding on the CPU."""
        return self._matrix("embedding", "embed_tokens.weight", TARGET_EMBEDDINGS, shape)

    def head(self, shape: tuple[int, ...]) -> Tensor:
        """Its output matrix on the CPU; where it is tied to the embedding, that one."""
        keys = (*TARGET_HEADS, *TARGET_EMBEDDINGS)
        return self._matrix("output matrix", "lm_head.weight", keys, shape)

    def _matrix(
        self, what: str, name: str, keys: tuple[str, ...], shape: tuple[int, ...]
    ) -> Tensor:
        if self._model is not None:
            inputs = what == "embedding"
            model = self._model
            module = model.get_input_embeddings() if inputs else model.get_output_embeddings()
            weight: Tensor = module.weight
            if weight.shape != shape:
                raise ValueError(
                    f"target: its {what} is {tuple(weight.shape)}, expected {shape}: vocab_size "
                    f"and hidden_size of {CONFIG}"
                )
            return weight.detach().cpu()
        if self._path is None:
            raise ValueError(
                f"{name}: missing in the checkpoint, expected the target's {what}: give "
                "target= (a Hugging Face model, or the path of its safetensors)"
            )
        with ExitStack() as stack:
            if self._path.is_dir():
                stored = open_folder(self._path, stack, lambda key: key in keys)
            else:
                stored = open_file(self._path, stack)
            for key in keys:
                if key in stored:
                    stored[key].check(shape)
                    return stored[key].read()
        raise ValueError(f"target: {self._path} has no {keys[0]}")
