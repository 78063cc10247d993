"""Windows of several modalities: stand-ins, synthetic sensors, and loaders of public data sets."""

from __future__ import annotations

from leeboard.prune.data.dataset import Parts, SensorData, Split, Statistics
from leeboard.prune.data.stand_ins import breast_cancer, digits_quadrants, digits_rows
from leeboard.prune.data.synthetic import synthetic

__all__ = [
    "Parts",
    "SensorData",
    "Split",
    "Statistics",
    "breast_cancer",
    "digits_quadrants",
    "digits_rows",
    "synthetic",
]
