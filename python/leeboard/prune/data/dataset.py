"""Windows of several modalities with labels and subjects, and how they are split."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

# A channel that hardly moves is not blown up to unit variance: least divisor, as a share of the
# modality's own standard deviation.
_LEAST_SPREAD = 0.1


class Parts(NamedTuple):
    """Subjects of each part of a split."""

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]


class Split(NamedTuple):
    """Three parts that share no window, and no subject if split by subject."""

    train: SensorData
    validation: SensorData
    test: SensorData


@dataclass(frozen=True)
class Statistics:
    """Mean and divisor of every channel, float32 [C], by modality."""

    mean: Mapping[str, Tensor]
    divisor: Mapping[str, Tensor]

    @staticmethod
    def of(data: SensorData) -> Statistics:
        """Means and standard deviations over windows and steps.

        A divisor is at least a tenth of the standard deviation of all channels of its modality
        around their means, and 1 where that is zero.
        """
        mean, divisor = {}, {}
        for name, x in data.inputs.items():
            flat = x.reshape(-1, x.shape[-1]).double()
            center = flat.mean(0)
            variance = (flat - center).square().mean(0)
            least = _LEAST_SPREAD * variance.mean().sqrt()
            spread = variance.sqrt().clamp_min(float(least))
            mean[name] = center.float()
            divisor[name] = torch.where(spread > 0, spread, 1.0).float()
        return Statistics(mean, divisor)

    def apply(self, data: SensorData) -> SensorData:
        """(x - mean) / divisor of every modality."""
        inputs = {n: (x - self.mean[n]) / self.divisor[n] for n, x in data.inputs.items()}
        return dataclasses.replace(data, inputs=inputs)


@dataclass(frozen=True)
class SensorData:
    """Labelled windows of several modalities.

    Attributes:
        name: Of the data set.
        modalities: Names, in order.
        inputs: For each, float32 [N, T, C], or [N, C] for a single step; T and C are its own.
        target: int64 [N], indices into `classes`.
        subject: int64 [N], whose window it is; the same number everywhere for data without.
        classes: Names of the labels.
        notes: Where it is from, what was dropped or filled.
        parts: Subjects of the customary split, if there is one.

    Raises:
        TypeError, ValueError: If the parts do not fit each other, or a window is not finite.
    """

    name: str
    modalities: tuple[str, ...]
    inputs: dict[str, Tensor]
    target: Tensor
    subject: Tensor
    classes: tuple[str, ...]
    notes: str = ""
    parts: Parts | None = None

    def __post_init__(self) -> None:
        if tuple(self.inputs) != self.modalities:
            raise ValueError(
                f"inputs: got {list(self.inputs)}, expected the modalities {list(self.modalities)}"
            )
        size = len(self.target)
        for name, x in self.inputs.items():
            if x.dtype != torch.float32 or x.dim() not in (2, 3) or len(x) != size:
                raise ValueError(
                    f"inputs[{name!r}]: got {x.dtype} {list(x.shape)}, expected torch.float32 "
                    f"[{size}, T, C] or [{size}, C]"
                )
            if not x.isfinite().all():
                raise ValueError(f"inputs[{name!r}]: got NaN or infinity, expected finite numbers")
        for name, t in (("target", self.target), ("subject", self.subject)):
            if t.dtype != torch.int64 or t.shape != (size,):
                raise ValueError(
                    f"{name}: got {t.dtype} {list(t.shape)}, expected torch.int64 [{size}]"
                )
        if size and not 0 <= int(self.target.min()) <= int(self.target.max()) < len(self.classes):
            raise ValueError(
                f"target: got {int(self.target.min())} to {int(self.target.max())}, expected "
                f"0 to {len(self.classes) - 1}"
            )

    def __len__(self) -> int:
        return len(self.target)

    @property
    def subjects(self) -> list[int]:
        """Their numbers, ascending."""
        return sorted(set(self.subject.tolist()))

    def take(self, rows: Tensor | Sequence[int]) -> SensorData:
        """The windows of these rows (int64 or bool [N]), in their order."""
        index = torch.as_tensor(rows)
        if index.dtype != torch.bool:
            index = index.long()
        return dataclasses.replace(
            self,
            inputs={name: x[index] for name, x in self.inputs.items()},
            target=self.target[index],
            subject=self.subject[index],
        )

    def batches(
        self, size: int, *, seed: int | None = None, drop_last: bool = False
    ) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """(inputs, target) of `size` windows each, the last with what is left.

        Args:
            size: Windows of a batch.
            seed: Of the shuffle; None keeps the order. Take another one for every epoch.
            drop_last: Whether a last, smaller batch is left out.
        """
        if type(size) is not int or size < 1:
            raise ValueError(f"size: got {size!r}, expected a positive integer")
        order = torch.arange(len(self)) if seed is None else _shuffled(len(self), seed)
        for first in range(0, len(self), size):
            rows = order[first : first + size]
            if drop_last and len(rows) < size:
                return
            yield {name: x[rows] for name, x in self.inputs.items()}, self.target[rows]

    def split(
        self,
        *,
        validation: float = 0.2,
        test: float = 0.2,
        by: Literal["subject", "class", "parts"] | None = None,
        seed: int = 0,
        normalize: bool = True,
    ) -> Split:
        """Train, validation and test windows.

        Args:
            validation: Share of the subjects (of the windows of each class), > 0.
            test: The same.
            by: "subject": no subject is in two parts. "class": every class is shared out alike
                (stratified), for data without subjects. "parts": the customary split. By default
                the last one that the data has, of "class", "subject" and "parts".
            seed: Of the draw.
            normalize: Whether all parts are shifted and scaled by the statistics of the training
                part alone.

        Raises:
            ValueError: For shares that leave nothing to train on, or too few subjects.
        """
        if not (validation > 0 and test > 0 and validation + test < 1):
            raise ValueError(
                f"validation, test: got {validation} and {test}, expected positive shares that "
                "leave something to train on"
            )
        subjects = self.subjects
        if by is None:
            by = "parts" if self.parts else "subject" if len(subjects) >= 3 else "class"
        if by == "parts":
            if self.parts is None:
                raise ValueError(f"by: got 'parts', but {self.name} has no customary split")
            return self.split_subjects(*self.parts, normalize=normalize)
        if by == "subject":
            if len(subjects) < 3:
                raise ValueError(
                    f"by: got 'subject', expected 'class': {self.name} has {len(subjects)} "
                    "subjects; three parts need three"
                )
            drawn = [subjects[place] for place in _shuffled(len(subjects), seed).tolist()]
            held, tested = (max(1, round(share * len(drawn))) for share in (validation, test))
            held = min(held, len(drawn) - tested - 1)
            tested = min(tested, len(drawn) - 2)
            held = max(1, held)
            return self.split_subjects(
                drawn[held + tested :],
                drawn[:held],
                drawn[held : held + tested],
                normalize=normalize,
            )
        if by != "class":
            raise ValueError(f"by: got {by!r}, expected 'subject', 'class' or 'parts'")
        chosen: tuple[list[Tensor], ...] = ([], [], [])
        for label in range(len(self.classes)):
            rows = (self.target == label).nonzero()[:, 0]
            rows = rows[_shuffled(len(rows), seed + label)]
            held, tested = (round(share * len(rows)) for share in (validation, test))
            cuts = (rows[held + tested :], rows[:held], rows[held : held + tested])
            for part, cut in zip(chosen, cuts, strict=True):
                part.append(cut)
        train, middle, last = (torch.cat(part).sort().values for part in chosen)
        return self._parted(train, middle, last, normalize)

    def split_subjects(
        self,
        train: Sequence[int],
        validation: Sequence[int],
        test: Sequence[int],
        *,
        normalize: bool = True,
    ) -> Split:
        """The windows of these subjects; those of others are left out.

        Raises:
            ValueError: If a subject is in two parts, or a part has no window.
        """
        groups = {"train": train, "validation": validation, "test": test}
        every = [subject for group in groups.values() for subject in group]
        twice = sorted({subject for subject in every if every.count(subject) > 1})
        if twice:
            raise ValueError(f"subjects: got {twice[0]} twice, expected parts that share none")
        masks = []
        for name, group in groups.items():
            mask = torch.isin(self.subject, torch.tensor(list(group), dtype=torch.int64))
            if not mask.any():
                raise ValueError(
                    f"{name}: got subjects {list(group)}, expected some of those that "
                    f"{self.name} has: {self.subjects}"
                )
            masks.append(mask)
        return self._parted(masks[0], masks[1], masks[2], normalize)

    def _parted(self, train: Tensor, validation: Tensor, test: Tensor, normalize: bool) -> Split:
        parts = Split(self.take(train), self.take(validation), self.take(test))
        if not normalize:
            return parts
        statistics = Statistics.of(parts.train)
        return Split(*(statistics.apply(part) for part in parts))


def _shuffled(size: int, seed: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))
