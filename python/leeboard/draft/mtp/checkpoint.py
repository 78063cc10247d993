"""MTP heads on disk, in the target's own folder or in one of theirs, under the originals' names."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from leeboard._files import put_tensors, replacing, write_json
from leeboard.draft.mtp.config import Convention, MTPConfig, Recycle, TargetState
from leeboard.draft.mtp.head import MTPHead
from leeboard.draft.mtp.structure import roots, shared_names
from leeboard.draft.stored import (
    CONFIG,
    FLOATS,
    TARGET_EMBEDDINGS,
    TARGET_HEADS,
    WEIGHTS,
    Stored,
    TargetSource,
    open_folder,
    read_object,
    stored_keys,
)

# The object in config.json that says how a head of ours reads its inputs.
_FIELD: Final = "leeboard_mtp"
# One key that every head of a convention has, and where its number stands.
_SIGNS: Final = {
    "deepseek_v3": re.compile(r"model\.layers\.(\d+)\.eh_proj\.weight"),
    "qwen3_next": re.compile(r"mtp\.layers\.(\d+)\.input_layernorm\.weight"),
    "mimo": re.compile(r"model\.mtp_layers\.(\d+)\.input_proj\.weight"),
}
# Where transformers keeps all experts in one tensor: gate and up, one below the other, and down.
_EXPERTS: Final = re.compile(r"(.*\.experts)\.(gate_up_proj|down_proj)")
_IGNORED: Final = re.compile(r".*\.rotary_emb\.inv_freq")


def holds_mtp(raw: Mapping[str, Any], folder: Path) -> bool:
    """Whether a folder with config.json `raw` holds an MTP head, of ours or in a target's folder."""
    if _FIELD in raw:
        return True
    if "model_type" not in raw:
        return False
    try:
        keys = stored_keys(folder)
    except (OSError, ValueError):
        # Whoever reads the folder says what is wrong with it.
        return False
    return any(sign.fullmatch(key) for sign in _SIGNS.values() for key in keys)


def load_mtp(
    path: str | os.PathLike[str],
    *,
    target: Any = None,
    convention: Convention | None = None,
    recycle: Recycle | None = None,
    target_state: TargetState | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> MTPHead:
    """Load the MTP heads of a target's checkpoint folder, or of a folder that `save_drafter` wrote.

    Of a target's folder only the heads' tensors, the embedding and the output matrix are read, and
    of its shards only those that have them. Nothing is guessed: of the heads, a tensor too many or
    too few is an error.

    Args:
        path: The folder, with config.json and model.safetensors or shards and their index.
        target: The target, for embedding and output matrix where the folder has none: a Hugging
            Face model, whose storage is shared as by `MTPHead.share`, or the path of a folder or
            safetensors file.
        convention: Whose names to look for; None for what the keys show.
        recycle: Which state to feed back; None for what the folder says, "post" in a target's.
        target_state: Which of the target's states to read; None for what the folder says,
            "normed" in a target's.
        dtype: Of the weights; None for the checkpoint's own, which is then one for all of them,
            but for those that the original keeps in float32.
        device: Where to; None for torch's default device.

    Returns:
        The heads in eval mode, embedding and output matrix frozen.

    Raises:
        ImportError: safetensors or transformers is not installed.
        FileNotFoundError: There is no such folder, or a file in it is missing.
        ValueError: The folder has no MTP heads or is damaged; the message names the file and key.
    """
    if dtype is not None and dtype not in FLOATS.values():
        raise ValueError(f"dtype: got {dtype!r}, expected one of {list(FLOATS.values())}")
    folder = Path(path)
    raw = read_object(folder / CONFIG)
    config = _read_config(raw, folder, convention)
    changes: dict[str, Any] = {"recycle": recycle, "target_state": target_state}
    config = dataclasses.replace(config, **{k: v for k, v in changes.items() if v is not None})
    with torch.device("meta"):
        head = MTPHead(config)
    source = TargetSource(target)
    with ExitStack() as stack:
        theirs = (*TARGET_HEADS, *TARGET_EMBEDDINGS)
        own = _own_prefixes(config)
        # In a folder of their own everything is theirs.
        alone = _FIELD in raw
        stored = open_folder(
            folder, stack, lambda key: alone or key.startswith(own) or key in theirs
        )
        found = {key: t for key, t in stored.items() if alone or key.startswith(own)}
        found = {key: t for key, t in found.items() if not _IGNORED.fullmatch(key)}
        embeds, outputs = shared_names(config)
        state = head.state_dict()
        wanted = {name: t for name, t in state.items() if name not in (*embeds, *outputs)}
        _check_names(found, wanted, (*embeds, *outputs), folder)
        if dtype is None:
            dtype = _one_dtype(found, head, folder)
        head = head.to(dtype).to_empty(device=device or torch.get_default_device())
        for name, module_tensor in head.state_dict().items():
            if name in wanted:
                _fill(module_tensor, name, found)
        shape = tuple(head.head_weight.shape)
        if hasattr(target, "get_input_embeddings") and not stored.keys() & {
            *embeds,
            *outputs,
            *theirs,
        }:
            head.share(target)
        else:
            for weight, names, spare, elsewhere in (
                (head.embedding.weight, embeds, TARGET_EMBEDDINGS, source.embedding),
                (head.head_weight, outputs, theirs, source.head),
            ):
                keys = [k for k in names if k in stored] or [k for k in spare if k in stored][:1]
                tensor = _same(keys, stored, shape) if keys else elsewhere(shape)
                with torch.no_grad():
                    weight.copy_(tensor)
    with torch.no_grad():
        head.d2t.zero_()
        head.t2d.fill_(True)
    return head.eval()


def save_mtp(head: MTPHead, path: str | os.PathLike[str]) -> None:
    """Write MTP heads as a folder with model.safetensors and config.json; see `save_drafter`.

    Keys are the originals', one per expert. Embedding and output matrix are written where the
    originals' heads have copies of them ("deepseek_v3"), else they are left to the target.
    """
    config = head.config
    own = _own_prefixes(config)
    tensors = {
        key: tensor
        for name, whole in head.state_dict().items()
        if name.startswith(own)
        for key, tensor in _pieces(name, whole)
    }
    exact = tuple(head.float32_names)
    dtypes = {str(t.dtype) for key, t in tensors.items() if not key.endswith(exact)}
    if len(dtypes) > 1 or head.dtype not in FLOATS.values():
        raise ValueError(
            f"drafter: got weights of {sorted(dtypes)}, expected one of "
            f"{[str(dtype) for dtype in FLOATS.values()]}"
        )
    settings = config.to_dict()
    fields = {**settings.pop("block"), "dtype": str(head.dtype).removeprefix("torch.")}
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS) as temporary:
        put_tensors(temporary, tensors, {"format": "pt"})
        # The settings of an older checkpoint must never meet the new weights.
        (folder / CONFIG).unlink(missing_ok=True)
    write_json(folder / CONFIG, {**fields, _FIELD: settings})


def _read_config(raw: Mapping[str, Any], folder: Path, convention: Convention | None) -> MTPConfig:
    file = folder / CONFIG
    settings = raw.get(_FIELD)
    if settings is not None:
        if not isinstance(settings, dict):
            raise ValueError(f"{file}: {_FIELD}: got {settings!r}, expected an object")
        block = {name: value for name, value in raw.items() if name != _FIELD}
        try:
            config = MTPConfig.from_dict({**settings, "block": block})
        except ValueError as error:
            raise ValueError(f"{file}: {_FIELD}: {error}") from error
        if convention not in (None, config.convention):
            raise ValueError(
                f"convention: got {convention!r}, expected {config.convention!r} as in {file}"
            )
        return config
    keys = stored_keys(folder)
    block = raw.get("text_config", raw)
    numbers = {
        name: sorted(int(m[1]) for key in keys if (m := sign.fullmatch(key)))
        for name, sign in _SIGNS.items()
        if convention in (None, name)
    }
    seen = [name for name, found in numbers.items() if found]
    if len(seen) != 1:
        raise ValueError(
            f"{folder}: found MTP heads of {seen or 'no convention'}, expected keys like one of "
            f"{[sign.pattern for sign in _SIGNS.values()]}"
        )
    found: Any = seen[0]
    first = int(block.get("num_hidden_layers", 0)) if found == "deepseek_v3" else 0
    if numbers[found] != list(range(first, first + len(numbers[found]))):
        raise ValueError(
            f"{folder}: found MTP heads numbered {numbers[found]}, expected them from {first} up"
        )
    try:
        return MTPConfig(block=block, convention=found, heads=len(numbers[found]))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _own_prefixes(config: MTPConfig) -> tuple[str, ...]:
    """What all keys of the heads begin with, and no others."""
    if config.convention == "qwen3_next":
        return ("mtp.",)
    if config.convention == "mimo":
        return ("model.mtp_layers.",)
    return tuple(roots(config, m) for m in range(config.heads))


def _pieces(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A tensor of the state_dict as checkpoints have it: (key, view), one per expert."""
    fused = _EXPERTS.fullmatch(name)
    if fused is None:
        yield name, tensor
        return
    for e, expert in enumerate(tensor):
        if fused[2] == "down_proj":
            yield f"{fused[1]}.{e}.down_proj.weight", expert
        else:
            for part, rows in zip(("gate_proj", "up_proj"), expert.chunk(2), strict=True):
                yield f"{fused[1]}.{e}.{part}.weight", rows


def _check_names(
    found: Mapping[str, Stored],
    wanted: Mapping[str, Tensor],
    optional: Iterable[str],
    folder: Path,
) -> None:
    """Raise ValueError unless exactly the expected tensors are there, in the expected shapes."""
    known = set(optional)
    for name, tensor in wanted.items():
        if name in found:
            # All experts in one tensor, as transformers has them.
            known.add(name)
            found[name].check(tuple(tensor.shape))
            continue
        for key, piece in _pieces(name, tensor):
            if key not in found:
                raise ValueError(f"{folder}: {key}: missing, expected in every head")
            known.add(key)
            found[key].check(tuple(piece.shape))
    for key in sorted(found.keys() - known):
        why = "expected those of the target's own decoder layer and of its MTP head"
        if key.endswith(("_scale_inv", "_scale")):
            why += ": these weights are quantised; convert them to bfloat16 first"
        raise ValueError(f"{found[key].file}: {key}: unknown key, {why}")


def _one_dtype(found: Mapping[str, Stored], head: MTPHead, folder: Path) -> torch.dtype:
    exact = tuple(head.float32_names)
    example = {t.dtype: key for key, t in found.items() if not key.endswith(exact)}
    if len(example) > 1:
        raise ValueError(
            f"{folder}: got weights of several dtypes {example}, expected one, or dtype= given"
        )
    return FLOATS[next(iter(example))]


@torch.no_grad()
def _fill(tensor: Tensor, name: str, found: Mapping[str, Stored]) -> None:
    """Copy what is stored into a tensor of the state_dict."""
    if name in found:
        tensor.copy_(found[name].read())
        return
    for key, piece in _pieces(name, tensor):
        piece.copy_(found[key].read())


def _same(keys: list[str], stored: Mapping[str, Stored], shape: tuple[int, ...]) -> Tensor:
    """The one tensor behind several keys."""
    for key in keys:
        stored[key].check(shape)
    first = stored[keys[0]].read()
    for key in keys[1:]:
        if not torch.equal(stored[key].read(), first):
            raise ValueError(
                f"{stored[key].file}: {key}: differs from {keys[0]}, expected the same: all heads "
                "share the target's"
            )
    return first
