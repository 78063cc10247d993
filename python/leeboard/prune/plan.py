"""What stays of a model: a small value that can be stored, compared and applied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Plan:
    """The units that run, for the modalities that are present and a budget.

    Attributes:
        fingerprint: Of the model's units (`Units.fingerprint`).
        present: Modalities that are there, in the model's order.
        budget: The budget as text, e.g. "50%", "2 ms".
        keep: For each sublayer that runs, its kept units (query heads, channels), ascending; () is
            a block that is dropped whole, so that only the residual remains.
        scales: For some sublayers a factor for each kept unit (Kwon's rescaling).
        bias: For some sublayers [out_features] numbers that are added to the reader's bias, in
            place of what the missing units gave on average.
        macs: Multiply-adds of the prunable part for one sample, and with all units.
        dense_macs: With all units, the same modalities present.
        bytes: Weights of the prunable part that the plan reads.
        dense_bytes: With all units.
        milliseconds: Predicted by a latency table, or None.
        dense_milliseconds: With all units, or None.
        score: Share of the units' importance that is kept, 0 to 1.
        ranking: What ranked the units, as text.
    """

    fingerprint: str
    present: tuple[str, ...]
    budget: str
    keep: Mapping[str, tuple[int, ...]]
    scales: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    bias: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    macs: float = 0.0
    dense_macs: float = 0.0
    bytes: float = 0.0
    dense_bytes: float = 0.0
    milliseconds: float | None = None
    dense_milliseconds: float | None = None
    score: float = 1.0
    ranking: str = ""
