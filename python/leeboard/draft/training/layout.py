"""From files, rows or states to numbered rows: those to train on, and those held out."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import torch

from leeboard.draft.training.chats import read_chats
from leeboard.draft.training.encoding import encode_chats
from leeboard.draft.training.rows import Documents, Rows, pack_rows, shuffled
from leeboard.draft.training.settings import TrainSettings
from leeboard.draft.training.states import StateSource
from leeboard.draft.training.vocabulary import check_tokenizer, special_ids

Data = str | os.PathLike[str] | Rows | StateSource
Say = Callable[[str], None]

# An epoch that no training reaches: its order decides what is held out.
_SPLIT = 2**32 - 1
_LENGTH = 2048


@dataclasses.dataclass(frozen=True)
class Split:
    """Rows or states, with the numbers of those to train on and those held out.

    Attributes:
        data: Has the rows `train`.
        train: Their numbers.
        heldout_data: Has the rows `heldout`; often the same as `data`.
        heldout: Their numbers.
        always: Tokens that the draft vocabulary must have, as far as they are known.
    """

    data: Rows | StateSource
    train: Sequence[int]
    heldout_data: Rows | StateSource
    heldout: Sequence[int]
    always: Sequence[int] = ()


def lay_out(
    target: Any,
    data: Data,
    heldout: Data | None,
    tokenizer: Any,
    settings: TrainSettings,
    shape: Any,
    say: Say,
    *,
    progress: bool = False,
) -> Split:
    """Read and lay out what is a file; hold a share of the data out where nothing else is given.

    Of a file whole conversations are held out, of rows and states whole rows.

    Args:
        shape: The drafter's config.
        progress: Whether a progress bar is shown while chats are encoded.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A file is broken, or what it holds does not fit target and settings.
    """
    share = settings.heldout_share if heldout is None else 0.0
    always: tuple[int, ...] = ()
    if _is_file(data) or _is_file(heldout):
        reader = _Reader(target, tokenizer, settings, shape, say, progress)
        always = reader.always
        if _is_file(data):
            data, apart = reader.rows(data, share)
            heldout, share = (apart if heldout is None else heldout), 0.0
        if _is_file(heldout):
            heldout = reader.rows(heldout, 0.0)[0]
    assert not isinstance(data, (str, os.PathLike))
    assert not isinstance(heldout, (str, os.PathLike))
    if share:
        every = shuffled(len(data), settings.seed, _SPLIT)
        count = _heldout_count(share, len(data))
        kept, held = every[count:].sort().values, every[:count].sort().values
        return Split(data, kept.tolist(), data, held.tolist(), always)
    if heldout is None:
        return Split(data, range(len(data)), data, [], always)
    if (
        not isinstance(data, Rows)
        or not isinstance(heldout, Rows)
        or data.ids.shape[1] != (heldout.ids.shape[1])
    ):
        return Split(data, range(len(data)), heldout, range(len(heldout)), always)
    # One store of states holds both.
    both = Rows(
        torch.cat((data.ids, heldout.ids)),
        torch.cat((data.loss_mask, heldout.loss_mask)),
        torch.cat((data.positions, heldout.positions)),
    )
    return Split(both, range(len(data)), both, range(len(data), len(both)), always)


def rows_of(data: Rows | StateSource) -> Rows | None:
    """The rows themselves, where they are known."""
    rows = data if isinstance(data, Rows) else getattr(data, "rows", None)
    return rows if isinstance(rows, Rows) else None


class _Reader:
    """Reads files for a target."""

    def __init__(
        self,
        target: Any,
        tokenizer: Any,
        settings: TrainSettings,
        shape: Any,
        say: Say,
        progress: bool,
    ) -> None:
        self._tokenizer = _tokenizer_of(target) if tokenizer is None else tokenizer
        check_tokenizer(self._tokenizer, shape.vocab_size)
        self._settings, self._say, self._progress = settings, say, progress
        self._length = settings.length or min([_LENGTH, *_limits(target, shape)])
        self.always = special_ids(self._tokenizer, target)

    def rows(self, path: str | os.PathLike[str], share: float) -> tuple[Rows, Rows | None]:
        """Rows of a file, and of the share of its conversations that is held out."""
        settings = self._settings
        chats = read_chats(path, skip_broken=settings.skip_broken, ignore=settings.ignore_keys)
        self._say(chats.told())
        documents = encode_chats(
            chats,
            self._tokenizer,
            self._length,
            too_long=settings.too_long,
            split_turns=settings.split_turns,
            skip_broken=settings.skip_broken,
            progress=self._progress,
        )
        self._say(documents.told())
        # Only those of which something is left: else a small share might be nothing.
        usable = sorted(set(documents.sources))
        if not share or len(usable) < 2:
            return self._packed(documents), None
        order = shuffled(len(usable), settings.seed, _SPLIT).tolist()
        held = {usable[i] for i in order[: _heldout_count(share, len(usable))]}
        parts: dict[bool, list[int]] = {False: [], True: []}
        for number, source in enumerate(documents.sources):
            parts[source in held].append(number)
        kept, apart = documents.take(parts[False]), documents.take(parts[True])
        self._say(f"to train on: {kept.told()}")
        self._say(f"held out: {apart.told()}")
        return self._packed(kept), self._packed(apart)

    def _packed(self, documents: Documents) -> Rows:
        return pack_rows(documents, self._length, self._settings.seed, packed=self._settings.packed)


def _is_file(data: Data | None) -> TypeGuard[str | os.PathLike[str]]:
    return isinstance(data, (str, os.PathLike))


def _heldout_count(share: float, of: int) -> int:
    """At least one, and not all."""
    return min(max(1, round(share * of)), of - 1)


def _limits(target: Any, shape: Any) -> list[int]:
    """Longest sequences of target and drafter, where they are known."""
    config = target.config
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    named = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions")]
    return [x for x in (*named, shape.max_position_embeddings) if type(x) is int and x > 0]


def _tokenizer_of(target: Any) -> Any:
    """The tokenizer from where the target was loaded."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ImportError('text needs transformers: pip install "leeboard[hf]"') from error
    place = getattr(target.config, "_name_or_path", "")
    if not place:
        raise ValueError(
            "tokenizer: missing, expected one for a file of text: the target was not loaded from a "
            "folder or by a name"
        )
    return AutoTokenizer.from_pretrained(place)
