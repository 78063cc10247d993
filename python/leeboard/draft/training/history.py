"""What a training went through: numbers of every step and of every evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

Column = list[float]


@dataclasses.dataclass
class History:
    """Columns of numbers, one entry per optimizer step or per evaluation.

    Of a drafter's training, `steps` has "loss", "lr", "grad_norm", "seconds" (since the start, time
    between a stop and a resume not counted) and, for chain step j counted from 1, "loss@j" (nats
    for the loss "kl") and "accuracy@j" (share of marked rows whose drafted token is the target's).
    `evaluations` has "step" (optimizer steps done before it), "loss", "loss@j", "accuracy@j" and
    "overlap@j" (share of the two distributions that is common to them, over valid rows), all on
    held-out rows.
    """

    steps: dict[str, Column] = dataclasses.field(default_factory=dict)
    evaluations: dict[str, Column] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        """Optimizer steps done."""
        return max((len(column) for column in self.steps.values()), default=0)

    @property
    def loss(self) -> Column:
        """The loss of every step."""
        return self.steps.get("loss", [])

    def chain(self, what: str, *, evaluations: bool = False) -> list[tuple[float, ...]]:
        """Per step (or evaluation) the numbers of its chain steps: "loss", "accuracy" or "overlap".

        Of the evaluations, "overlap" too.
        """
        table = self.evaluations if evaluations else self.steps
        columns: list[Column] = []
        while (name := f"{what}@{len(columns) + 1}") in table:
            columns.append(table[name])
        return list(zip(*columns, strict=True))

    def add_step(self, values: Mapping[str, float]) -> None:
        """Append a step."""
        _append(self.steps, values)

    def add_evaluation(self, values: Mapping[str, float]) -> None:
        """Append an evaluation."""
        _append(self.evaluations, values)

    def tensors(self) -> dict[str, Tensor]:
        """The columns as float64 tensors, which keep every bit."""
        tables = {"steps": self.steps, "evaluations": self.evaluations}
        return {
            f"{table}/{name}": torch.tensor(column, dtype=torch.float64, device="cpu")
            for table, columns in tables.items()
            for name, column in columns.items()
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> History:
        """What `tensors` gave, its columns in the order of their names."""
        history = cls()
        tables = {"steps": history.steps, "evaluations": history.evaluations}
        for key, column in tensors.items():
            table, _, name = key.partition("/")
            tables[table][name] = column.tolist()
        return history


def _append(table: dict[str, Column], values: Mapping[str, float]) -> None:
    if table and table.keys() != values.keys():
        raise ValueError(f"values: got {sorted(values)}, expected {sorted(table)} as before")
    for name, value in values.items():
        table.setdefault(name, []).append(value)
