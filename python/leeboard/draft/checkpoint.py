"""Drafters on disk: safetensors and config.json, in the layouts that serving engines read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leeboard._files import put_tensors, replacing, write_json
from leeboard.draft.config import AuxLayerConvention, DrafterConfig
from leeboard.draft.layouts import (
    IGNORED,
    Layout,
    canonical_name,
    check_layout,
    layout_name,
    layout_of,
    read_config,
    write_config,
)
from leeboard.draft.model import Eagle3Drafter
from leeboard.draft.mtp.checkpoint import holds_mtp, load_mtp, save_mtp
from leeboard.draft.mtp.head import MTPHead
from leeboard.draft.protocol import Drafter
from leeboard.draft.quantize import QuantizedDrafter
from leeboard.draft.stored import (
    CONFIG,
    FLOATS,
    WEIGHTS,
    Stored,
    TargetSource,
    open_folder,
    read_object,
)

_EMBEDDING = "embed_tokens.weight"
_MAPS = {"d2t": ("I64", "I32"), "t2d": ("BOOL",)}


def load_drafter(
    path: str | os.PathLike[str],
    *,
    target: Any = None,
    aux_layer_convention: AuxLayerConvention | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Eagle3Drafter | MTPHead:
    """Load a drafter from a folder with config.json and safetensors.

    Reads EAGLE-3 drafters as EAGLE, SpecForge, NeMo and speculators write them, MTP heads in a
    target's own folder (as `leeboard.draft.load_mtp` does), and what `save_drafter` writes; the
    pages on drafters and on MTP heads list names and meanings. Nothing is guessed: a tensor too
    many or too few, or a field that asks for something else than these drafters, is an error, and
    nothing is returned then. An EAGLE-3 config's switches default to False, whatever
    `DrafterConfig` does.

    Args:
        path: The folder. Weights are in model.safetensors, or in shards that
            model.safetensors.index.json names.
        target: The target, for what the checkpoint leaves to it: the embedding, and the number of
            layers where the ids of the fused states are missing. A Hugging Face model, or the
            path of a folder or safetensors file.
        aux_layer_convention: What the ids of the fused states mean, in place of the layout's rule
            ("output" for ids in `eagle_config`, "input" for ids at the top of config.json). A
            checkpoint that states it, as ours do, cannot be overridden.
        dtype: Of the weights; None for the checkpoint's own, which is then one for all of them.
        device: Where to; None for torch's default device.

    Returns:
        The drafter in eval mode, its embedding frozen.

    Raises:
        ImportError: safetensors is not installed.
        FileNotFoundError: There is no such folder, or a file in it is missing.
        ValueError: The checkpoint is damaged or not what was described; the message names the
            file, the key or field, what was found and what was expected.
    """
    if dtype is not None and dtype not in FLOATS.values():
        raise ValueError(f"dtype: got {dtype!r}, expected one of {list(FLOATS.values())}")
    folder = Path(path)
    raw = read_object(folder / CONFIG)
    file = str(folder / CONFIG)
    if holds_mtp(raw, folder):
        if aux_layer_convention is not None:
            raise ValueError(
                f"aux_layer_convention: got {aux_layer_convention!r}, but {folder} holds an MTP "
                "head, expected None: it reads the target's last state"
            )
        return load_mtp(folder, target=target, dtype=dtype, device=device)
    layout = layout_of(raw, file)
    source = TargetSource(target)
    config = read_config(raw, file, aux_layer_convention, source.layers)
    with torch.device("meta"):
        drafter = Eagle3Drafter(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in drafter.state_dict().items()}
    with ExitStack() as stack:
        stored = open_folder(folder, stack)
        ignored = IGNORED.get(layout, frozenset())
        found = _by_name(tensor for key, tensor in stored.items() if key not in ignored)
        _check_names(found, shapes, config, folder)
        for name, tensor in found.items():
            tensor.check(shapes[name], _MAPS.get(name))
        if dtype is None:
            dtype = _one_dtype(found, folder)
        state = {name: tensor.read() for name, tensor in found.items()}
    state.update(_vocabulary_maps(state, config, str(folder)))
    if _EMBEDDING not in state:
        state[_EMBEDDING] = source.embedding(shapes[_EMBEDDING])
    drafter = drafter.to(dtype).to_empty(device=device or torch.get_default_device())
    # Copies into the drafter's tensors, and so casts.
    drafter.load_state_dict(state)
    drafter.embed_tokens.weight.requires_grad_(False)
    return drafter.eval()


def save_drafter(
    drafter: Drafter,
    path: str | os.PathLike[str],
    *,
    layout: Layout = "eagle",
) -> None:
    """Write a drafter as a folder with model.safetensors and config.json.

    `load_drafter` gives the same tensors, bit by bit, and an equal config. The maps d2t and t2d
    are left out where the draft vocabulary is the whole vocabulary. A reader sees the old
    checkpoint, an incomplete one (no config.json) or the new one.

    Args:
        drafter: Its weights all have one dtype, which is kept.
        path: The folder; made if there is none. Other files in it are left alone.
        layout: "eagle" (EAGLE, SpecForge, SGLang, vLLM) or "speculators". An `MTPHead` has one
            layout, its convention's, whatever is given.

    Raises:
        TypeError: The drafter is quantised, or of a kind without a layout.
        ValueError: The layout is unknown or cannot say what the config says, the weights have
            several dtypes or one that cannot be loaded, or d2t and t2d contradict each other.
    """
    check_layout(layout)
    if isinstance(drafter, MTPHead):
        save_mtp(drafter, path)
        return
    if not isinstance(drafter, Eagle3Drafter):
        raise TypeError(
            f"drafter: got {type(drafter).__name__}, expected an Eagle3Drafter or an MTPHead"
        )
    if isinstance(drafter, QuantizedDrafter):
        raise TypeError(
            f"drafter: got one quantised to {drafter.format}, expected the original: serving engines "
            "have no layout for these weights; save the original and quantise after loading"
        )
    config, state = drafter.config, drafter.state_dict()
    dtypes = {str(state[name].dtype): name for name in state if name not in _MAPS}
    if len(dtypes) > 1 or drafter.dtype not in FLOATS.values():
        raise ValueError(
            f"drafter: got weights of {sorted(dtypes)} (for example {sorted(dtypes.values())}), "
            f"expected one of {[str(dtype) for dtype in FLOATS.values()]}"
        )
    maps = {name: state.pop(name).cpu() for name in _MAPS}
    checked = _vocabulary_maps(maps, config, "drafter")
    if config.draft_vocab_size < config.vocab_size:
        state.update(checked)
    fields = write_config(config, layout, next(iter(dtypes)).removeprefix("torch."))
    tensors = {layout_name(name, layout): tensor for name, tensor in state.items()}
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS) as temporary:
        put_tensors(temporary, tensors, {"format": "pt"})
        # The switches of an older checkpoint must never meet the new weights.
        (folder / CONFIG).unlink(missing_ok=True)
    write_json(folder / CONFIG, fields)


def _by_name(tensors: Iterable[Stored]) -> dict[str, Stored]:
    """The tensors by the drafter's own names."""
    found: dict[str, Stored] = {}
    for tensor in tensors:
        name = canonical_name(tensor.key)
        if name in found:
            raise ValueError(
                f"{tensor.file}: got {found[name].key} and {tensor.key}, expected one of them: "
                f"both are {name}"
            )
        found[name] = tensor
    return found


def _check_names(
    found: Mapping[str, Stored], expected: Iterable[str], config: DrafterConfig, folder: Path
) -> None:
    """Raise ValueError unless exactly the expected tensors are there."""
    names = set(expected)
    norms = {"fc_norm.": "fc_norm", "input_norm.": "norm_before_fc"}
    for name in sorted(found.keys() - names):
        at = f"{found[name].file}: {found[name].key}"
        for start, flag in norms.items():
            if name.startswith(start) and not getattr(config, flag):
                raise ValueError(
                    f"{at}: found with {flag} false (or absent) in {CONFIG}, expected {flag} true "
                    "or no such key"
                )
        raise ValueError(f"{at}: unknown key, expected those of a drafter of one Llama layer")
    optional = {_EMBEDDING, *_MAPS}
    for name in sorted(names - found.keys() - optional):
        flags = [flag for start, flag in norms.items() if name.startswith(start)]
        why = f" by {flags[0]} true in {CONFIG}" if flags else ""
        raise ValueError(f"{folder}: {name}: missing, expected{why or ' in every checkpoint'}")
    if not found.keys() & _MAPS.keys() and config.draft_vocab_size < config.vocab_size:
        raise ValueError(
            f"{folder}: d2t: missing, expected by draft_vocab_size = "
            f"{config.draft_vocab_size} below vocab_size = {config.vocab_size}"
        )


def _one_dtype(found: Mapping[str, Stored], folder: Path) -> torch.dtype:
    """The dtype of all weights."""
    example = {tensor.dtype: tensor.key for name, tensor in found.items() if name not in _MAPS}
    if len(example) > 1:
        raise ValueError(
            f"{folder}: got weights of several dtypes {example}, expected one, or dtype= given"
        )
    return FLOATS[next(iter(example))]


def _vocabulary_maps(
    state: Mapping[str, Tensor], config: DrafterConfig, where: str
) -> dict[str, Tensor]:
    """Both maps of the draft vocabulary, of the one or two or none that there are."""
    v, vd = config.vocab_size, config.draft_vocab_size
    d2t, t2d = state.get("d2t"), state.get("t2d")
    rows = torch.arange(vd, device="cpu")
    if d2t is not None:
        ids = d2t.to(torch.int64) + rows
    elif t2d is not None:
        ids = t2d.nonzero()[:, 0]
    else:
        ids = rows
    if d2t is not None:
        if bool((ids < 0).any()) or bool((ids >= v).any()):
            row = int(((ids < 0) | (ids >= v)).nonzero()[0])
            raise ValueError(
                f"{where}: d2t: row {row} stands for target id {int(ids[row])}, expected 0 to {v - 1}: "
                "d2t holds offsets, target id = row + d2t[row]"
            )
        if bool((ids.diff() <= 0).any()):
            row = int((ids.diff() <= 0).nonzero()[0]) + 1
            raise ValueError(
                f"{where}: d2t: row {row} stands for target id {int(ids[row])} after {int(ids[row - 1])}, "
                "expected ascending target ids"
            )
    reachable = torch.zeros(v, dtype=torch.bool, device="cpu")
    if len(ids) == vd:
        reachable[ids] = True
    if t2d is not None and not torch.equal(t2d, reachable):
        at = (
            f", first at target id {int((t2d != reachable).nonzero()[0])}"
            if d2t is not None
            else ""
        )
        raise ValueError(
            f"{where}: t2d: got {int(t2d.sum())} target ids that can be drafted, expected the "
            f"{vd} of {'d2t' if d2t is not None else 'draft_vocab_size'}{at}"
        )
    return {"d2t": ids - rows, "t2d": reachable}
