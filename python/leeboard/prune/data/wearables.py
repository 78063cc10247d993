"""Loaders of chest and wrist devices from a folder: WESAD, PPG-DaLiA."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leeboard.prune.data.dataset import Parts, SensorData
from leeboard.prune.data.pickled import read_pickle
from leeboard.prune.data.recordings import (
    Cut,
    Recording,
    averaged,
    chosen,
    parts_among,
    require,
    watched,
    windowed,
)

if TYPE_CHECKING:
    from leeboard.prune.data.recordings import Array

# Steps per second. The chest's are averaged over 20 steps, the blood volume pulse over 2: 35 and 32.
_CHEST_RATE, _CHEST_AVERAGE = 700, 20
_WRIST_RATES = {"ACC": 32, "BVP": 64, "EDA": 4, "TEMP": 4}
_WRIST_AVERAGES = {"BVP": 2}

WESAD_STATES = {1: "baseline", 2: "stress", 3: "amusement"}
# S1 and S12 were lost. Splits of the subjects as in the code of MAESTRO (github.com/payalmohapatra/
# MAESTRO).
_WESAD_SUBJECTS = (*range(2, 12), *range(13, 18))
_WESAD_PARTS = Parts(tuple(range(2, 12)), (16, 17), (13, 14, 15))

DALIA_ACTIVITIES = {
    1: "sitting",
    2: "stairs",
    3: "table soccer",
    4: "cycling",
    5: "driving",
    6: "lunch break",
    7: "walking",
    8: "working",
}
_DALIA_PARTS = Parts(tuple(range(1, 11)), (11, 12), (13, 14, 15))


def wesad(
    folder: str | os.PathLike[str],
    *,
    window: float = 8.0,
    step: float = 4.0,
    meditation: bool = False,
    subjects: Sequence[int] | None = None,
    progress: bool = False,
) -> SensorData:
    """WESAD (Schmidt et al., 2018): baseline, stress and amusement of 15 subjects.

    Ten modalities: chest_ACC (3 channels), chest_ECG, chest_EMG, chest_EDA, chest_Temp, chest_Resp,
    recorded at 700 Hz and averaged to 35 Hz; wrist_ACC (3 channels, 32 Hz), wrist_BVP (64 Hz,
    averaged to 32 Hz), wrist_EDA and wrist_TEMP (4 Hz). Customary split: training subjects 2 to 11,
    validation 16 and 17, test 13 to 15. Mind its licence: it is said to be for non-commercial research.

    The files are pickles. They are read without being run, see `read_pickle`.

    Args:
        folder: With S2/S2.pkl to S17/S17.pkl.
        window: Seconds.
        step: Seconds between the starts of windows.
        meditation: Whether it is a fourth class.
        subjects: 2 to 11 and 13 to 17; all by default.
        progress: Whether a progress bar is shown.

    Raises:
        FileNotFoundError: Naming what is missing.
        RefusedPickleError: For a file that holds more than numbers and text, by name.
        ValueError: For a file of another format, or if no window is left.
    """
    states = WESAD_STATES | ({4: "meditation"} if meditation else {})
    chest = {"ACC": 3, "ECG": 1, "EMG": 1, "EDA": 1, "Temp": 1, "Resp": 1}
    people = chosen(subjects, _WESAD_SUBJECTS)

    def labels(data: Any, path: Path) -> tuple[Array, float]:
        return _array(data, path, "label")[:, 0], _CHEST_RATE

    return _load(
        "WESAD",
        folder,
        people,
        chest,
        labels,
        states,
        Cut(window, step),
        parts_among(_WESAD_PARTS, people),
        progress,
    )


def ppg_dalia(
    folder: str | os.PathLike[str],
    *,
    window: float = 8.0,
    step: float = 4.0,
    subjects: Sequence[int] | None = None,
    progress: bool = False,
) -> SensorData:
    """PPG-DaLiA (Reiss et al., 2019) for activity recognition: 8 activities of 15 subjects.

    Modalities chest_ACC (3 channels), chest_ECG, chest_Resp, wrist_ACC, wrist_BVP, wrist_EDA,
    wrist_TEMP, at the rates of `wesad`. Transitions are left out. Customary split: training
    subjects 1 to 10, validation 11 and 12, test 13 to 15.

    The files are pickles. They are read without being run, see `read_pickle`.

    Args:
        folder: With S1/S1.pkl to S15/S15.pkl, perhaps in a folder "PPG_FieldStudy".
        window: Seconds.
        step: Seconds between the starts of windows.
        subjects: 1 to 15; all by default.
        progress: Whether a progress bar is shown.

    Raises:
        FileNotFoundError: Naming what is missing.
        RefusedPickleError: For a file that holds more than numbers and text, by name.
        ValueError: For a file of another format, or if no window is left.
    """
    root = Path(folder)
    root = root / "PPG_FieldStudy" if (root / "PPG_FieldStudy").is_dir() else root
    people = chosen(subjects, range(1, 16))

    def labels(data: Any, path: Path) -> tuple[Array, float]:
        return _array(data, path, "activity")[:, 0], 4

    return _load(
        "PPG-DaLiA",
        root,
        people,
        {"ACC": 3, "ECG": 1, "Resp": 1},
        labels,
        DALIA_ACTIVITIES,
        Cut(window, step),
        parts_among(_DALIA_PARTS, people),
        progress,
    )


def _load(
    name: str,
    folder: str | os.PathLike[str],
    people: list[int],
    chest: dict[str, int],
    labels: Any,
    classes: dict[int, str],
    cut: Cut,
    parts: Parts | None,
    progress: bool,
) -> SensorData:
    files = {s: f"S{s}/S{s}.pkl" for s in people}
    root = require(folder, files.values(), name)

    def recordings() -> Iterator[Recording]:
        for subject, file in watched(list(files.items()), name, progress):
            path = root / file
            data = read_pickle(path)
            signals: dict[str, tuple[Array, float]] = {}
            for sensor, channels in chest.items():
                values = _array(data, path, "signal", "chest", sensor, channels=channels)
                rate = _CHEST_RATE / _CHEST_AVERAGE
                signals[f"chest_{sensor}"] = (averaged(values, _CHEST_AVERAGE), rate)
            for sensor, rate in _WRIST_RATES.items():
                channels = 3 if sensor == "ACC" else 1
                values = _array(data, path, "signal", "wrist", sensor, channels=channels)
                block = _WRIST_AVERAGES.get(sensor, 1)
                signals[f"wrist_{sensor}"] = (averaged(values, block), rate / block)
            code, rate = labels(data, path)
            yield Recording(subject, signals, code.astype(int), rate)

    return windowed(name.lower(), recordings(), classes, cut, f"{name}.", parts)


def _array(data: Any, path: Path, *keys: str, channels: int = 1) -> Array:
    """The numbers [T, channels] under these keys.

    Raises:
        ValueError: If there is something else, or nothing.
    """
    import numpy as np

    where = "".join(f"[{key!r}]" for key in keys)
    for key in keys:
        # The data sets' own texts write TEMP and RESP, their files Temp and Resp.
        items = data.items() if isinstance(data, dict) else ()
        found = [value for name, value in items if str(name).lower() == key.lower()]
        if len(found) != 1:
            raise ValueError(f"{path}: holds no {where}")
        data = found[0]
    if not isinstance(data, np.ndarray) or data.dtype.kind not in "iuf":
        raise ValueError(f"{path}: {where} is no array of numbers")
    values = data[:, None] if data.ndim == 1 else data
    if values.ndim != 2 or values.shape[1] != channels:
        raise ValueError(f"{path}: {where} has shape {list(data.shape)}, expected [T, {channels}]")
    return values
