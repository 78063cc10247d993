"""Windows of several modalities: stand-ins, synthetic sensors, and loaders of public data sets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from leeboard.prune.data.activities import dsads, mhealth, pamap2, uci_har
from leeboard.prune.data.dataset import Parts, SensorData, Split, Statistics
from leeboard.prune.data.pickled import RefusedPickleError, read_pickle
from leeboard.prune.data.stand_ins import breast_cancer, digits_quadrants, digits_rows
from leeboard.prune.data.synthetic import synthetic
from leeboard.prune.data.wearables import ppg_dalia, wesad

__all__ = [
    "BUNDLED",
    "FROM_FOLDER",
    "Parts",
    "RefusedPickleError",
    "SensorData",
    "Split",
    "Statistics",
    "breast_cancer",
    "digits_quadrants",
    "digits_rows",
    "dsads",
    "load",
    "mhealth",
    "pamap2",
    "ppg_dalia",
    "read_pickle",
    "synthetic",
    "uci_har",
    "wesad",
]

BUNDLED: dict[str, Callable[..., SensorData]] = {
    "digits-quadrants": digits_quadrants,
    "digits-rows": digits_rows,
    "breast-cancer": breast_cancer,
    "synthetic": synthetic,
}
"""What needs no files: stand-ins and synthetic sensors."""

FROM_FOLDER: dict[str, Callable[..., SensorData]] = {
    "uci-har": uci_har,
    "pamap2": pamap2,
    "mhealth": mhealth,
    "wesad": wesad,
    "ppg-dalia": ppg_dalia,
    "dsads": dsads,
}
"""What is read from a folder that the user has."""


def load(name: str, folder: str | None = None, **options: Any) -> SensorData:
    """The data set of that name; options are those of its function.

    Raises:
        ValueError: For an unknown name, or a folder that is missing or not needed.
    """
    if name in BUNDLED:
        if folder is not None:
            raise ValueError(f"folder: got {folder!r}, expected None: {name} needs no files")
        return BUNDLED[name](**options)
    if name not in FROM_FOLDER:
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(BUNDLED | FROM_FOLDER)}")
    if folder is None:
        raise ValueError(f"folder: got None, expected the folder that holds the {name} data")
    return FROM_FOLDER[name](folder, **options)
