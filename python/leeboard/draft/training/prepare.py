"""From what a user gives to what the loop takes: rows, states, a drafter; checked, with an identity."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leeboard.draft.config import DrafterConfig
from leeboard.draft.model import Eagle3Drafter
from leeboard.draft.mtp import MTPConfig, MTPHead
from leeboard.draft.protocol import Drafter
from leeboard.draft.training.cached import CachedStates, cache_states
from leeboard.draft.training.layout import Data, Say, lay_out, rows_of
from leeboard.draft.training.parallel import Processes
from leeboard.draft.training.rows import Rows
from leeboard.draft.training.settings import TrainSettings
from leeboard.draft.training.states import OnlineStates, StateSource
from leeboard.draft.training.teacher import teacher_of
from leeboard.draft.training.vocabulary import choose_vocabulary, vocabulary_coverage

# Of each tensor, the numbers that go into a digest.
_SAMPLE = 4096


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a training runs on.

    Attributes:
        drafter: On the target's device, in float32.
        source: The target's states on rows, of which `train` are trained on.
        train: Numbers of rows.
        heldout_source: The same of what `heldout` numbers.
        heldout: Numbers of rows; empty for no evaluation.
        teacher_rows: [Vd, Ht], see `Teacher.rows`.
        softcap: Of the target's logits.
        identity: What decides the course of the training, JSON-ready.
    """

    drafter: Drafter
    source: StateSource
    train: Sequence[int]
    heldout_source: StateSource
    heldout: Sequence[int]
    teacher_rows: Tensor
    softcap: float | None
    identity: Mapping[str, Any]


def prepare(
    target: Any,
    data: Data,
    *,
    config: DrafterConfig | MTPConfig | None,
    drafter: Drafter | None,
    tokenizer: Any,
    settings: TrainSettings,
    states: str | os.PathLike[str] | None,
    heldout: Data | None,
    progress: bool,
    group: Processes,
    say: Say,
) -> Prepared:
    """Read and lay out the data, make the drafter, and check that all fits; see `train_drafter`.

    Args:
        group: The processes of the training; the first of them writes files.

    Raises:
        ValueError: Something does not fit.
    """
    if drafter is not None and config is not None:
        raise ValueError("config: given with drafter, expected one of them")
    if config is not None and not isinstance(config, (DrafterConfig, MTPConfig)):
        raise TypeError(
            f"config: got a {type(config).__name__}, expected a DrafterConfig or an MTPConfig"
        )
    teacher = teacher_of(target)
    if drafter is None and config is None:
        config = DrafterConfig.for_target(target.config)
    shape: Any = config if drafter is None else drafter.config
    if shape.vocab_size != teacher.vocab_size:
        raise ValueError(
            f"{'config' if drafter is None else 'drafter'}: vocab_size is {shape.vocab_size}, "
            f"expected {teacher.vocab_size}, the rows of the target's head"
        )
    split = lay_out(target, data, heldout, tokenizer, settings, shape, say, progress=progress)
    rows = rows_of(split.data)
    if rows is not None:
        _check_rows(rows, split.train, settings, shape)
    device = target.get_input_embeddings().weight.device
    if drafter is None:
        assert config is not None
        drafter = _new_drafter(
            target, config, rows, split.train, split.always, settings.seed, say
        ).to(device)
    _check_drafter(drafter, device)
    source = _source(target, drafter, split.data, states, group, progress, say)
    heldout_source = source
    if split.heldout_data is not split.data:
        heldout_source = _source(target, drafter, split.heldout_data, None, group, progress, say)
    trained = sum(p.numel() for p in drafter.parameters() if p.requires_grad)
    say(
        f"{type(drafter).__name__}: {trained / 1e6:.1f} M weights to train; "
        f"{len(split.train)} rows, {len(split.heldout)} held out"
    )
    identity = {
        "settings": _course(settings),
        "drafter": {
            "class": type(drafter).__name__,
            "config": _fields(drafter.config),
            "vocabulary": _digest({"d2t": drafter.d2t}),
            "first weights": _digest(drafter.state_dict()),
        },
        "data": _name(split.data, split.train),
        "heldout": _name(split.heldout_data, split.heldout),
        "target": {"class": type(target).__name__, "weights": _digest(target.state_dict())},
    }
    return Prepared(
        drafter,
        source,
        split.train,
        heldout_source,
        split.heldout,
        teacher.rows(drafter.t2d).to(device),
        teacher.softcap,
        identity,
    )


def _check_rows(rows: Rows, train: Sequence[int], settings: TrainSettings, shape: Any) -> None:
    """Raise ValueError unless there is something to learn, within the drafter's limit."""
    if not len(train):
        raise ValueError("data: got no rows to train on, expected at least one")
    chosen = rows.take(train)
    # A chain's first step predicts the token two places on.
    learnable = chosen.loss_mask & (chosen.positions >= 2)
    if not bool(learnable.any()):
        raise ValueError(
            f"data: none of its {int(chosen.loss_mask.sum())} tokens to learn (the assistant's) has "
            "two others before it in its document, expected some: nothing can be trained"
        )
    longest = int(rows.positions.max()) + 1
    if longest > shape.max_position_embeddings:
        raise ValueError(
            f"data: it has positions up to {longest - 1}, expected at most "
            f"{shape.max_position_embeddings - 1} by the drafter's max_position_embeddings"
        )
    if settings.ttt + 1 >= rows.ids.shape[1]:
        raise ValueError(
            f"ttt: got {settings.ttt}, expected at most {rows.ids.shape[1] - 2} for rows of "
            f"{rows.ids.shape[1]} tokens"
        )


def _new_drafter(
    target: Any,
    config: DrafterConfig | MTPConfig,
    rows: Rows | None,
    train: Sequence[int],
    always: Sequence[int],
    seed: int,
    say: Say,
) -> Drafter:
    """Seeded weights; embedding, head and norm of the target where they fit."""
    torch.manual_seed(seed)
    drafter = MTPHead(config) if isinstance(config, MTPConfig) else Eagle3Drafter(config)
    if config.draft_vocab_size < config.vocab_size:
        if rows is None:
            raise ValueError(
                f"config: draft_vocab_size is {config.draft_vocab_size} of {config.vocab_size}, but "
                "the data's tokens are not known to choose from: give a drafter with its vocabulary"
            )
        learnt = rows.take(train)
        chosen = choose_vocabulary(learnt, config.draft_vocab_size, config.vocab_size, always)
        drafter.set_draft_vocabulary(chosen)
        say(
            f"draft vocabulary: {len(chosen)} of {config.vocab_size} tokens, "
            f"{vocabulary_coverage(learnt, chosen):.2%} of those to learn"
        )
    if target.get_input_embeddings().weight.shape[-1] == config.hidden_size:
        drafter.copy_from_target(target)
    else:
        say(
            f"hidden_size is {config.hidden_size}, the target's another: embedding and head start "
            "from random weights"
        )
    return drafter.float()


def _check_drafter(drafter: Drafter, device: torch.device) -> None:
    trained = {name: p for name, p in drafter.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError(
            f"drafter: got a {type(drafter).__name__} without a parameter to train, expected one "
            "that is not quantised"
        )
    for name, parameter in trained.items():
        if parameter.dtype != torch.float32:
            raise ValueError(
                f"drafter: {name} is {parameter.dtype}, expected torch.float32 (use .float()); "
                'precision="bfloat16" computes in bfloat16 all the same'
            )
        if parameter.device != device:
            raise ValueError(
                f"drafter: {name} is on {parameter.device}, expected {device}, where the target is"
            )


def _source(
    target: Any,
    drafter: Drafter,
    data: Rows | StateSource,
    states: str | os.PathLike[str] | None,
    group: Processes,
    progress: bool,
    say: Say,
) -> StateSource:
    if not isinstance(data, Rows):
        if states is not None:
            raise ValueError("states: given with data that has states, expected rows or a file")
        return data
    if states is None:
        return OnlineStates(target, drafter, data)
    return _kept_states(target, drafter, data, Path(states), group, progress)


def _kept_states(
    target: Any, drafter: Drafter, rows: Rows, folder: Path, group: Processes, progress: bool
) -> StateSource:
    """The states in a folder, computed by the first process if they are not there yet."""
    device = target.get_input_embeddings().weight.device
    group.first_does(lambda: cache_states(target, drafter, rows, folder, progress=progress))
    return CachedStates(folder, target=target, drafter=drafter, rows=rows, device=device)


def _course(settings: TrainSettings) -> dict[str, Any]:
    """The settings that decide what is computed."""
    fields = dataclasses.asdict(settings)
    for name in ("checkpoint_every", "checkpoint_seconds"):
        del fields[name]
    return fields


def _fields(config: Any) -> dict[str, Any]:
    fields: dict[str, Any] = config.to_dict()
    return fields


def _name(data: Rows | StateSource, numbers: Sequence[int]) -> str:
    """A text that other data would have another of."""
    rows = rows_of(data)
    known = rows.fingerprint() if rows is not None else getattr(data, "fingerprint", None)
    known = known() if callable(known) else known
    chosen = hashlib.sha256(np.asarray(numbers, dtype=np.int64).tobytes()).hexdigest()[:8]
    return f"{len(numbers)} rows {chosen} of {len(data)} {known or type(data).__name__}"


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, shapes and up to 4096 numbers of each tensor."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if tensor.is_meta or not tensor.numel():
            continue
        flat = tensor.detach().reshape(-1)
        some = flat[:: -(-flat.numel() // _SAMPLE)]
        digest.update(some.double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
