"""Data that scikit-learn brings along, cut into "modalities".

Stand-ins for sensors, and no sensor data: they show that code works and what pruning does to a
small model, and carry no claim about sensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from leeboard.prune.data.dataset import SensorData


def digits_quadrants() -> SensorData:
    """Handwritten digits (8 x 8 pixels), each quadrant a modality: float32 [1797, 4, 4].

    A step is a row of the quadrant. The quadrants are redundant: two or three often do.

    Raises:
        ImportError: Without scikit-learn, of the extra "prune".
    """
    images, target, version = _digits()
    halves = {"top": slice(0, 4), "bottom": slice(4, 8)}
    sides = {"left": slice(0, 4), "right": slice(4, 8)}
    inputs = {
        f"{half}_{side}": images[:, rows, columns].contiguous()
        for half, rows in halves.items()
        for side, columns in sides.items()
    }
    return _stand_in("digits-quadrants", inputs, target, tuple("0123456789"), version)


def digits_rows() -> SensorData:
    """Handwritten digits (8 x 8 pixels), each row of pixels a modality: float32 [1797, 8].

    Raises:
        ImportError: Without scikit-learn, of the extra "prune".
    """
    images, target, version = _digits()
    inputs = {f"row{row}": images[:, row].contiguous() for row in range(8)}
    return _stand_in("digits-rows", inputs, target, tuple("0123456789"), version)


def breast_cancer() -> SensorData:
    """Ten quantities of cell nuclei (Wisconsin), by three "instruments": float32 [569, 10].

    The instruments are their mean, standard error and worst value.

    Raises:
        ImportError: Without scikit-learn, of the extra "prune".
    """
    datasets, version = _sklearn()
    bunch = datasets.load_breast_cancer()
    values = torch.tensor(bunch.data, dtype=torch.float32)
    names = [str(name) for name in bunch.feature_names]
    inputs = {}
    for instrument in ("mean", "error", "worst"):
        columns = [i for i, name in enumerate(names) if instrument in name.split()]
        assert len(columns) == 10, names
        inputs[instrument] = values[:, columns].contiguous()
    target = torch.tensor(bunch.target, dtype=torch.int64)
    classes = tuple(str(name) for name in bunch.target_names)
    return _stand_in("breast-cancer", inputs, target, classes, version)


def _digits() -> tuple[Tensor, Tensor, str]:
    datasets, version = _sklearn()
    bunch = datasets.load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32)
    return images, torch.tensor(bunch.target, dtype=torch.int64), version


def _sklearn() -> tuple[Any, str]:
    try:
        import sklearn
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            'the stand-ins come with scikit-learn: pip install "leeboard[prune]"'
        ) from error
    return datasets, str(sklearn.__version__)


def _stand_in(
    name: str, inputs: dict[str, Tensor], target: Tensor, classes: tuple[str, ...], version: str
) -> SensorData:
    return SensorData(
        name,
        tuple(inputs),
        inputs,
        target,
        torch.zeros_like(target),
        classes,
        f"A stand-in for sensors, from scikit-learn {version}; no sensor data.",
    )
