"""Loaders of activity data from a folder: UCI-HAR, PAMAP2, MHEALTH, DSADS."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from leeboard.prune.data.dataset import Parts, SensorData
from leeboard.prune.data.recordings import (
    Cut,
    Recording,
    averaged,
    carried,
    chosen,
    filled,
    require,
    table,
    watched,
    windowed,
)

Folder = str | os.PathLike[str]

_UCI_HAR = (
    "walking",
    "walking upstairs",
    "walking downstairs",
    "sitting",
    "standing",
    "laying",
)
# The data set's own test subjects.
_UCI_HAR_TEST = (2, 4, 9, 10, 12, 13, 18, 20, 24)


def uci_har(folder: Folder, *, progress: bool = False) -> SensorData:
    """Human Activity Recognition Using Smartphones (Anguita et al., 2013): windows as published.

    Modalities body_acc, total_acc and body_gyro, float32 [N, 128, 3] each, 2.56 s at 50 Hz; 30
    subjects, 6 classes. Customary split: the published test subjects; of the others the last four
    validate (our choice, the data set has no such part).

    Args:
        folder: "UCI HAR Dataset", with train/ and test/.
        progress: Whether a progress bar is shown.

    Raises:
        FileNotFoundError: Naming what is missing.
        ValueError: For a file of another format.
    """
    kinds = ("body_acc", "total_acc", "body_gyro")
    signals = [f"{kind}_{axis}" for kind in kinds for axis in "xyz"]
    files = [
        f"{part}/{file}"
        for part in ("train", "test")
        for file in (
            *(f"Inertial Signals/{signal}_{part}.txt" for signal in signals),
            f"y_{part}.txt",
            f"subject_{part}.txt",
        )
    ]
    root = require(folder, files, "UCI-HAR")
    read = {
        file: torch.from_numpy(table(root / file, 128 if "Inertial" in file else 1, r"\s+").copy())
        for file in watched(files, "UCI-HAR", progress)
    }
    for file, values in read.items():
        part = file.partition("/")[0]
        expected = len(read[f"{part}/subject_{part}.txt"])
        if len(values) != expected:
            raise ValueError(
                f"{root / file}: got {len(values)} rows, expected {expected}, one for each window"
            )

    def both(name: str) -> torch.Tensor:
        return torch.cat([read[f"{part}/{name}_{part}.txt"] for part in ("train", "test")])

    inputs = {
        kind: torch.stack([both(f"Inertial Signals/{kind}_{axis}") for axis in "xyz"], 2)
        for kind in kinds
    }
    subject = both("subject")[:, 0].long()
    target = both("y")[:, 0].long() - 1
    people = sorted(set(subject.tolist()))
    others = [s for s in people if s not in _UCI_HAR_TEST]
    tested = [s for s in people if s in _UCI_HAR_TEST]
    parts = Parts(tuple(others[:-4]), tuple(others[-4:]), tuple(tested))
    return SensorData(
        "uci-har",
        kinds,
        inputs,
        target,
        subject,
        _UCI_HAR,
        "UCI-HAR, windows as published (scaled and filtered by its authors).",
        parts if all(parts) else None,
    )


PAMAP2_ACTIVITIES = {
    1: "lying",
    2: "sitting",
    3: "standing",
    4: "walking",
    5: "running",
    6: "cycling",
    7: "Nordic walking",
    12: "ascending stairs",
    13: "descending stairs",
    16: "vacuum cleaning",
    17: "ironing",
    24: "rope jumping",
}
# First columns of the inertial units; from there on: temperature, acceleration (16 g), acceleration
# (6 g, which saturates), turn rates, magnetic field, orientation (invalid in this recording).
_PAMAP2_UNITS = {"hand": 3, "chest": 20, "ankle": 37}
_PAMAP2_COLUMNS = (1, 2, 3, 7, 8, 9, 10, 11, 12)


def pamap2(
    folder: Folder,
    *,
    window: float = 5.12,
    step: float = 2.56,
    average: int = 4,
    subjects: Sequence[int] | None = None,
    progress: bool = False,
) -> SensorData:
    """PAMAP2 Physical Activity Monitoring (Reiss and Stricker, 2012), the protocol's 12 activities.

    Modalities hand, chest and ankle: 9 channels each (acceleration of the 16 g sensor, turn rate,
    magnetic field), recorded at 100 Hz, here means of `average` rows; heart_rate: 1 channel, one
    value for each 0.64 s. Subjects 1 to 9. There is no customary split: subjects are drawn.

    Missing values: gaps of the inertial units of up to 1 s are bridged by straight lines. The heart
    rate, measured about nine times a second, is carried on for up to 2 s. Windows that still hold
    NaN are dropped; `notes` says how many.

    Args:
        folder: With Protocol/subject101.dat to subject109.dat.
        window: Seconds.
        step: Seconds between the starts of windows.
        average: Rows of 10 ms that become one step.
        subjects: 1 to 9; all by default.
        progress: Whether a progress bar is shown.

    Raises:
        FileNotFoundError: Naming what is missing.
        ValueError: For a file of another format, or if no window is left.
    """
    cut = Cut(window, step)
    if type(average) is not int or average < 1:
        raise ValueError(f"average: got {average!r}, expected a positive integer")
    files = {s: f"Protocol/subject{100 + s}.dat" for s in chosen(subjects, range(1, 10))}
    root = require(folder, files.values(), "PAMAP2")

    def recordings() -> Iterator[Recording]:
        for subject, file in watched(list(files.items()), "PAMAP2", progress):
            rows = table(root / file, 54, r"\s+")
            signals = {}
            for unit, first in _PAMAP2_UNITS.items():
                values = filled(rows[:, [first + c for c in _PAMAP2_COLUMNS]], 100)
                signals[unit] = (averaged(values, average), 100 / average)
            heart = averaged(carried(rows[:, 2:3], 200), 64)
            signals["heart_rate"] = (heart, 100 / 64)
            yield Recording(subject, signals, rows[:, 1].astype(int), 100)

    notes = (
        "PAMAP2, protocol. Gaps of up to 1 s were bridged, the heart rate was carried on for up to "
        "2 s."
    )
    return windowed("pamap2", recordings(), PAMAP2_ACTIVITIES, cut, notes)


MHEALTH_ACTIVITIES = {
    1: "standing still",
    2: "sitting and relaxing",
    3: "lying down",
    4: "walking",
    5: "climbing stairs",
    6: "waist bends forward",
    7: "frontal elevation of arms",
    8: "knees bending",
    9: "cycling",
    10: "jogging",
    11: "running",
    12: "jump front and back",
}
_MHEALTH_COLUMNS = {
    "chest": (0, 1, 2),
    "ecg": (3, 4),
    "ankle": tuple(range(5, 14)),
    "arm": tuple(range(14, 23)),
}


def mhealth(
    folder: Folder,
    *,
    window: float = 2.56,
    step: float = 1.28,
    subjects: Sequence[int] | None = None,
    progress: bool = False,
) -> SensorData:
    """MHEALTH (Banos et al., 2014): 12 activities of 10 subjects at 50 Hz.

    Modalities chest (acceleration, 3 channels), ecg (2 leads), left ankle and right lower arm
    (acceleration, turn rate, magnetic field: 9 channels each). There is no customary split.

    Args:
        folder: With mHealth_subject1.log to mHealth_subject10.log.
        window: Seconds.
        step: Seconds between the starts of windows.
        subjects: 1 to 10; all by default.
        progress: Whether a progress bar is shown.

    Raises:
        FileNotFoundError: Naming what is missing.
        ValueError: For a file of another format, or if no window is left.
    """
    cut = Cut(window, step)
    files = {s: f"mHealth_subject{s}.log" for s in chosen(subjects, range(1, 11))}
    root = require(folder, files.values(), "MHEALTH")

    def recordings() -> Iterator[Recording]:
        for subject, file in watched(list(files.items()), "MHEALTH", progress):
            rows = table(root / file, 24, r"\s+")
            signals = {n: (rows[:, list(c)], 50.0) for n, c in _MHEALTH_COLUMNS.items()}
            yield Recording(subject, signals, rows[:, 23].astype(int), 50)

    return windowed("mhealth", recordings(), MHEALTH_ACTIVITIES, cut, "MHEALTH.")


DSADS_ACTIVITIES = (
    "sitting",
    "standing",
    "lying on back",
    "lying on right side",
    "ascending stairs",
    "descending stairs",
    "standing in an elevator",
    "moving around in an elevator",
    "walking in a parking lot",
    "walking on a flat treadmill",
    "walking on an inclined treadmill",
    "running on a treadmill",
    "exercising on a stepper",
    "exercising on a cross trainer",
    "cycling in horizontal position",
    "cycling in vertical position",
    "rowing",
    "jumping",
    "playing basketball",
)
_DSADS_SITES = ("torso", "right_arm", "left_arm", "right_leg", "left_leg")


def dsads(
    folder: Folder, *, subjects: Sequence[int] | None = None, progress: bool = False
) -> SensorData:
    """Daily and Sports Activities (Barshan and Altun, 2010): segments as published.

    Modalities torso, right_arm, left_arm, right_leg and left_leg, float32 [N, 125, 9] each
    (acceleration, turn rate, magnetic field), 5 s at 25 Hz; 8 subjects, 19 classes. There is no
    customary split.

    Args:
        folder: With a01/p1/s01.txt to a19/p8/s60.txt, perhaps in a folder "data".
        subjects: 1 to 8; all by default.
        progress: Whether a progress bar is shown.

    Raises:
        FileNotFoundError: Naming what is missing: each activity of each subject needs a segment.
        ValueError: For a file of another format.
    """
    root = Path(folder)
    root = root / "data" if (root / "data").is_dir() else root
    activities = range(1, len(DSADS_ACTIVITIES) + 1)
    people = chosen(subjects, range(1, 9))
    first = [f"a{a:02}/p{p}/s01.txt" for a in activities for p in people]
    require(root, first, "DSADS")
    files = [
        (a, p, file)
        for a in activities
        for p in people
        for file in sorted((root / f"a{a:02}" / f"p{p}").glob("s[0-9][0-9].txt"))
    ]
    windows = []
    for _, _, file in watched(files, "DSADS", progress):
        rows = table(file, 45, ",")
        if len(rows) != 125:
            raise ValueError(f"{file}: got {len(rows)} rows, expected 125")
        windows.append(torch.from_numpy(rows.copy()))
    every = torch.stack(windows).view(-1, 125, 5, 9)
    return SensorData(
        "dsads",
        _DSADS_SITES,
        {site: every[:, :, i].contiguous() for i, site in enumerate(_DSADS_SITES)},
        torch.tensor([a - 1 for a, _, _ in files]),
        torch.tensor([p for _, p, _ in files]),
        DSADS_ACTIVITIES,
        "DSADS, segments as published.",
    )
