"""From recordings of whole sessions to labelled windows."""

from __future__ import annotations

import importlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from leeboard.prune.data.dataset import Parts, SensorData

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

T = TypeVar("T")


@dataclass(frozen=True)
class Recording:
    """What one subject's sensors recorded in a row.

    Attributes:
        subject: Number.
        signals: By modality: values [T, C], and steps per second.
        labels: Integer [T], one for each step.
        rate: Labels per second.
    """

    subject: int
    signals: Mapping[str, tuple[Array, float]]
    labels: Array
    rate: float


@dataclass(frozen=True)
class Cut:
    """How recordings are cut.

    Attributes:
        window: Seconds of a window.
        step: Seconds from the start of one to the start of the next.
    """

    window: float
    step: float

    def __post_init__(self) -> None:
        for name in ("window", "step"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected seconds > 0")


def windowed(
    name: str,
    recordings: Iterable[Recording],
    labels: Mapping[int, str],
    cut: Cut,
    notes: str,
    parts: Parts | None = None,
) -> SensorData:
    """Windows in which one label holds throughout; those that hold NaN are dropped and counted.

    Args:
        name: Of the data set.
        recordings: Of all subjects.
        labels: The labels that are kept, with their names; stretches of others are left out.
        cut: Lengths.
        notes: What happened before; the count is added.
        parts: Subjects of the customary split.

    Raises:
        ValueError: If no window is left, with the reason.
    """
    import numpy as np

    kept: dict[str, list[Array]] = {}
    targets: list[Array] = []
    subjects: list[Array] = []
    codes = list(labels)
    dropped = found = 0
    for recording in recordings:
        starts, which = _starts(recording, codes, cut)
        found += len(starts)
        pieces: dict[str, Array] = {}
        good = np.ones(len(starts), bool)
        for modality, (values, rate) in recording.signals.items():
            length = max(1, round(cut.window * rate))
            # The step that is going on at the start; rounding must not make it the one before.
            first = np.floor(starts * (rate / recording.rate) + 1e-6).astype(np.int64)
            inside = first + length <= len(values)
            # The devices did not stop at the same moment.
            rows = np.where(inside, first, 0)[:, None] + np.arange(length)
            whole = len(values) >= length
            piece = (
                values[rows]
                if whole
                else np.full((len(starts), length, values.shape[1]), np.nan, np.float32)
            )
            good &= inside & np.isfinite(piece).all((1, 2))
            pieces[modality] = piece.astype(np.float32, copy=False)
        dropped += int((~good).sum())
        for modality, piece in pieces.items():
            kept.setdefault(modality, []).append(piece[good])
        targets.append(which[good])
        subjects.append(np.full(int(good.sum()), recording.subject))
    if found == dropped:
        reason = f"all {found} held NaN or ran over the end" if found else "no label held so long"
        raise ValueError(f"{name}: no window of {cut.window} s is left; {reason}")
    text = f"{notes} {dropped} of {found} windows were dropped for NaN or missing ends."
    return SensorData(
        name,
        tuple(kept),
        {modality: _tensor(np.concatenate(p)) for modality, p in kept.items()},
        _tensor(np.concatenate(targets)).long(),
        _tensor(np.concatenate(subjects)).long(),
        tuple(labels.values()),
        text,
        parts,
    )


def _starts(recording: Recording, codes: Sequence[int], cut: Cut) -> tuple[Array, Array]:
    """First steps of the windows inside stretches of one label, and the labels' places."""
    import numpy as np

    labels = recording.labels
    length = max(1, round(cut.window * recording.rate))
    step = max(1, round(cut.step * recording.rate))
    bounds = np.flatnonzero(np.diff(labels)) + 1
    edges = np.concatenate(([0], bounds, [len(labels)]))
    starts, which = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for begin, end in itertools.pairwise(edges):
        if begin < end and int(labels[begin]) in codes:
            own = np.arange(begin, end - length + 1, step)
            starts.append(own)
            which.append(np.full(len(own), codes.index(int(labels[begin]))))
    return np.concatenate(starts), np.concatenate(which)


def filled(values: Array, gap: int) -> Array:
    """Gaps of at most `gap` steps between two measured values are bridged by straight lines.

    Longer gaps, and those at an end, stay NaN.
    """
    import numpy as np

    done = values.copy()
    for column in done.T:
        missing = np.isnan(column)
        if not missing.any() or missing.all():
            continue
        edges = np.flatnonzero(np.diff(np.concatenate(([False], missing, [False])).astype(np.int8)))
        rows = np.arange(len(column))
        line = np.interp(rows, rows[~missing], column[~missing])
        for begin, end in edges.reshape(-1, 2):
            if end - begin <= gap and begin > 0 and end < len(column):
                column[begin:end] = line[begin:end]
    return done


def carried(values: Array, most: int) -> Array:
    """Each NaN becomes the last value before it, if that is at most `most` steps old."""
    import numpy as np

    done = values.copy()
    rows = np.arange(len(values))
    for column in done.T:
        last = np.maximum.accumulate(np.where(np.isnan(column), -1, rows))
        fresh = (last >= 0) & (rows - last <= most)
        column[fresh] = column[last[fresh]]
    return done


def averaged(values: Array, block: int) -> Array:
    """Means of `block` steps; a rest at the end is left out."""
    import numpy as np

    count, channels = len(values) // block, values.shape[1]
    blocks = values[: count * block].reshape(count, block, channels)
    means: Array = blocks.mean(1, dtype=np.float64).astype(np.float32)
    return means


def table(path: Path, columns: int, separator: str) -> Array:
    """A text file of numbers, float32 [rows, columns].

    Raises:
        ValueError: For another number of columns, or text.
    """
    pandas = need("pandas", "reading text tables")
    try:
        frame = pandas.read_csv(path, sep=separator, header=None, dtype="float32", na_values="NaN")
    except (ValueError, pandas.errors.ParserError) as error:
        raise ValueError(f"{path}: no table of numbers ({error})") from error
    if frame.shape[1] != columns:
        raise ValueError(f"{path}: got {frame.shape[1]} columns, expected {columns}")
    values: Array = frame.to_numpy()
    return values


def need(module: str, purpose: str) -> Any:
    """An optional module.

    Raises:
        ImportError: With what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'{purpose} needs {module}: pip install "leeboard[prune]"') from error


def require(folder: str | os.PathLike[str], files: Iterable[str], name: str) -> Path:
    """The folder, if it holds these files.

    Raises:
        FileNotFoundError: Naming those that are missing. Nothing is ever downloaded.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"folder: got {str(root)!r}, expected the unpacked {name} data")
    missing = [file for file in files if not (root / file).is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise FileNotFoundError(
            f"folder: {root} lacks {', '.join(missing[:3])}{more} of the {name} data; it is not "
            "downloaded"
        )
    return root


def chosen(subjects: Sequence[int] | None, known: Sequence[int]) -> list[int]:
    """The subjects to read, ascending; all by default.

    Raises:
        ValueError: For one that the data set does not have.
    """
    if subjects is None:
        return list(known)
    unknown = sorted(set(subjects) - set(known))
    if unknown or not subjects:
        raise ValueError(
            f"subjects: got {unknown[0] if unknown else 'none'}, expected some of {list(known)}"
        )
    return sorted(set(subjects))


def parts_among(parts: Parts, subjects: Iterable[int]) -> Parts | None:
    """The customary split with only these subjects; None if a part would be empty."""
    there = set(subjects)
    own = Parts(*(tuple(s for s in group if s in there) for group in parts))
    return own if all(own) else None


def watched(items: Sequence[T], name: str, progress: bool) -> Iterator[T]:
    """The items, with a progress bar if wanted."""
    if not progress:
        yield from items
        return
    yield from need("tqdm", "a progress bar").tqdm(items, desc=name, unit="file")


def _tensor(values: Array) -> Tensor:
    return torch.from_numpy(values.copy())
