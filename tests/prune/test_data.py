"""SensorData, the stand-ins and the synthetic sensors."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from leeboard.prune.backbones import BackboneConfig, build
from leeboard.prune.data import (
    Parts,
    SensorData,
    Statistics,
    breast_cancer,
    digits_quadrants,
    digits_rows,
    synthetic,
)
from leeboard.prune.data.synthetic import SENSORS


def small(subjects: int = 5, windows: int = 6, **changes: Any) -> SensorData:
    size = subjects * windows
    fields: dict[str, Any] = {
        "name": "small",
        "modalities": ("a", "b"),
        "inputs": {"a": 3 + 2 * torch.randn(size, 4, 2), "b": torch.randn(size, 3)},
        "target": torch.arange(size) % 2,
        "subject": torch.arange(subjects).repeat_interleave(windows),
        "classes": ("no", "yes"),
    }
    return SensorData(**fields | changes)


def rows_of(data: SensorData, part: SensorData) -> set[int]:
    """Which windows of the data a part holds; they are all different."""
    flat, own = (d.inputs["a"].flatten(1) for d in (data, part))
    return set((own[:, None] == flat[None]).all(2).nonzero()[:, 1].tolist())


def test_split_by_subject() -> None:
    data = small(10)
    split = data.split(normalize=False)
    subjects = [set(part.subject.tolist()) for part in split]
    assert [len(s) for s in subjects] == [6, 2, 2]
    assert set.union(*subjects) == set(range(10))
    assert set.union(*(rows_of(data, part) for part in split)) == set(range(60))
    again = data.split(normalize=False)
    assert [set(part.subject.tolist()) for part in again] == subjects
    others = {tuple(data.split(seed=s, normalize=False).test.subject.tolist()) for s in range(5)}
    assert len(others) > 1
    # Three subjects are enough, whatever the shares.
    assert [len(part) for part in small(3).split(validation=0.45, test=0.45)] == [6, 6, 6]


def test_split_by_class() -> None:
    data = small(1, 100, target=(torch.arange(100) < 20).long())
    split = data.split(validation=0.1, test=0.25, normalize=False)
    assert [len(part) for part in split] == [65, 10, 25]
    assert [int(part.target.sum()) for part in split] == [13, 2, 5]
    sets = [rows_of(data, part) for part in split]
    assert len(set.union(*sets)) == 100


def test_customary_split() -> None:
    data = small(parts=Parts((0, 3), (1,), (2,)))
    split = data.split()
    assert [part.subject.unique().tolist() for part in split] == [[0, 3], [1], [2]]
    assert len(data.split(by="subject").train) == 18
    with pytest.raises(ValueError, match="subjects: got 0 twice"):
        data.split_subjects([0], [1], [0])
    with pytest.raises(ValueError, match=r"test: got subjects \[9\], expected some of those"):
        data.split_subjects([0], [1], [9])


def test_statistics_are_those_of_the_training_part() -> None:
    data = small(6)
    # Subjects that are held out would move the means.
    raw = data.split(normalize=False)
    far = torch.isin(data.subject, raw.test.subject)
    data.inputs["a"][far] += 100
    split = data.split()
    flat = split.train.inputs["a"].reshape(-1, 2)
    torch.testing.assert_close(flat.mean(0), torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(flat.std(0, correction=0), torch.ones(2), rtol=1e-5, atol=0)
    assert split.test.inputs["a"].mean() > 10
    assert split.validation.inputs["a"].abs().mean() < 3


def test_constant_and_still_channels_are_not_blown_up() -> None:
    x = torch.randn(200, 3)
    x[:, 1] = 5.0
    x[:, 2] *= 1e-3
    data = small(20, 10, inputs={"a": x, "b": torch.ones(200, 1)})
    statistics = Statistics.of(data)
    assert statistics.divisor["b"].item() == 1
    done = statistics.apply(data).inputs
    assert not done["a"][:, 1].any()
    assert done["a"][:, 2].abs().max() < 0.1
    assert not done["b"].any()


def test_batches() -> None:
    data = small()
    got = list(data.batches(8))
    assert [len(target) for _, target in got] == [8, 8, 8, 6]
    torch.testing.assert_close(torch.cat([t for _, t in got]), data.target)
    assert len(list(data.batches(8, drop_last=True))) == 3
    shuffled, again = (next(data.batches(30, seed=1))[0]["b"] for _ in range(2))
    torch.testing.assert_close(shuffled, again, rtol=0, atol=0)
    assert not torch.equal(shuffled, data.inputs["b"])
    torch.testing.assert_close(shuffled.sort(0).values, data.inputs["b"].sort(0).values)
    assert not torch.equal(shuffled, next(data.batches(30, seed=2))[0]["b"])
    with pytest.raises(ValueError, match="size: got 0"):
        next(data.batches(0))


def test_take() -> None:
    data = small()
    part = data.take([3, 1])
    torch.testing.assert_close(part.inputs["a"], data.inputs["a"][[3, 1]])
    assert part.target.tolist() == [1, 1]
    assert len(data.take(data.target == 0)) == 15
    assert len(data.take([])) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modalities": ("b", "a")}, "inputs: got .* expected the modalities"),
        ({"target": torch.zeros(30)}, r"target: got torch.float32 \[30\], expected torch.int64"),
        ({"target": torch.full((30,), 2)}, "target: got 2 to 2, expected 0 to 1"),
        (
            {"subject": torch.zeros(29).long()},
            r"subject: got torch.int64 \[29\], expected .*\[30\]",
        ),
        ({"inputs": {"a": torch.zeros(30, 4), "b": torch.zeros(30)}}, r"'b'\]: .* expected torch"),
        ({"inputs": {"a": torch.full((30, 4), torch.nan), "b": torch.zeros(30, 1)}}, "'a'.* NaN"),
    ],
)
def test_bad_data(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_bad_splits() -> None:
    with pytest.raises(ValueError, match=r"validation, test: got 0.5 and 0.5"):
        small().split(validation=0.5, test=0.5)
    with pytest.raises(ValueError, match="by: got 'subject', expected 'class': small has 2"):
        small(2).split(by="subject")
    with pytest.raises(ValueError, match="by: got 'parts', but small has no customary split"):
        small().split(by="parts")
    with pytest.raises(ValueError, match="by: got 'time'"):
        small().split(by="time")  # type: ignore[arg-type]


def test_digits() -> None:
    pytest.importorskip("sklearn")
    quadrants, rows = digits_quadrants(), digits_rows()
    assert {tuple(x.shape) for x in quadrants.inputs.values()} == {(1797, 4, 4)}
    assert len(rows.modalities) == 8
    assert {tuple(x.shape) for x in rows.inputs.values()} == {(1797, 8)}
    image = torch.stack([rows.inputs[f"row{i}"][7] for i in range(8)])
    q = {name: x[7] for name, x in quadrants.inputs.items()}
    top = torch.cat((q["top_left"], q["top_right"]), 1)
    bottom = torch.cat((q["bottom_left"], q["bottom_right"]), 1)
    torch.testing.assert_close(torch.cat((top, bottom)), image)
    assert image.max() > 10
    for data in (quadrants, rows, breast_cancer()):
        assert "stand-in" in data.notes
        split = data.split()
        assert [round(len(part) / len(data), 1) for part in split] == [0.6, 0.2, 0.2]
        counts = torch.bincount(split.train.target) / torch.bincount(data.target)
        torch.testing.assert_close(counts, torch.full_like(counts, 0.6), rtol=0.05, atol=0)


def test_breast_cancer_instruments() -> None:
    pytest.importorskip("sklearn")
    data = breast_cancer()
    assert data.modalities == ("mean", "error", "worst")
    assert {tuple(x.shape) for x in data.inputs.values()} == {(569, 10)}
    # The worst value of a quantity is at least its mean.
    assert (data.inputs["worst"] >= data.inputs["mean"]).float().mean() > 0.99
    assert data.classes == ("malignant", "benign")


PRESETS: dict[str, dict[str, Any]] = {
    "mixed": {},
    "xor": {"xor": True},
    "unique": {"preset": "unique"},
}


@pytest.mark.parametrize("name", PRESETS)
def test_synthetic_is_seeded_and_split_by_subject(name: str) -> None:
    data = synthetic(**PRESETS[name], subjects=6, windows=50)
    again = synthetic(**PRESETS[name], subjects=6, windows=50)
    other = synthetic(**PRESETS[name], subjects=6, windows=50, seed=1)
    for sensor, (steps, channels) in SENSORS.items():
        x = data.inputs[sensor]
        assert x.shape == (300, steps, channels)
        torch.testing.assert_close(x, again.inputs[sensor], rtol=0, atol=0)
        assert not torch.equal(x, other.inputs[sensor])
    assert len(data.target.unique()) == len(data.classes)
    split = data.split()
    assert not {*split.train.subject.tolist()} & {*split.test.subject.tolist()}


def features(data: SensorData, sensors: tuple[str, ...]) -> Tensor:
    """What a reader of these sensors sees, without phases: means, slopes, spectra."""
    parts = []
    for sensor in sensors:
        x = data.inputs[sensor]
        t = torch.linspace(-1, 1, x.shape[1])
        parts += [x.mean(1), (x * t[:, None]).mean(1)]
        if sensor not in ("EDA", "TEMP"):
            parts.append(torch.fft.rfft(x, dim=1).abs()[:, 1:].mean(2))
    flat = torch.cat(parts, 1)
    return (flat - flat.mean(0)) / flat.std(0)


def told(data: SensorData, sensors: tuple[str, ...], label: Tensor) -> float:
    """How much of the label nearest neighbours in the sensors' features tell: 0 chance, 1 all."""
    x = features(data, sensors)
    held = data.subject >= data.subject.max() - 3
    near = torch.cdist(x[held], x[~held]).topk(15, largest=False).indices
    votes = F.one_hot(label[~held])[near].sum(1).argmax(1)
    right = float((votes == label[held]).float().mean())
    chance = 1 / int(label.max() + 1)
    return (right - chance) / (1 - chance)


def test_redundancy_is_controlled() -> None:
    for redundancy in (0.0, 1.0):
        data = synthetic(redundancy=redundancy, subjects=15, noise=0.5)
        activity = data.target // 3
        assert told(data, ("ACC",), activity) > 0.9
        assert (told(data, ("GYR",), activity) > 0.9) == (redundancy == 1)
        assert abs(told(data, ("EDA", "TEMP"), activity)) < 0.1


def test_uniqueness_is_controlled() -> None:
    shared = synthetic(uniqueness=0.0, subjects=15, noise=0.3)
    state = shared.target % 3
    assert told(shared, ("EDA",), state) > 0.8
    assert told(shared, ("TEMP",), state) > 0.8
    split = synthetic(uniqueness=1.0, subjects=15, noise=0.3)
    state = split.target % 3
    # One tells a state from the other two: two thirds right at best, half way from chance to all.
    assert 0.35 < told(split, ("EDA",), state) < 0.6
    assert 0.35 < told(split, ("TEMP",), state) < 0.6
    assert told(split, ("EDA",), (state == 2).long()) > 0.9
    assert told(split, ("TEMP",), (state == 0).long()) > 0.9
    assert told(split, ("EDA", "TEMP"), state) > 0.8
    assert abs(told(split, ("ACC", "GYR"), state)) < 0.1


def test_synergy_is_controlled() -> None:
    data = synthetic(xor=True, subjects=15, noise=0.3)
    state = data.target % 2
    for sensors in (("EDA",), ("TEMP",), ("ACC", "GYR", "PPG")):
        assert abs(told(data, sensors, state)) < 0.15, sensors
    assert told(data, ("EDA", "TEMP"), state) > 0.9


def test_unique_events_show_in_one_sensor_only() -> None:
    data = synthetic("unique", subjects=15, noise=0.0)
    for index, sensor in enumerate(SENSORS):
        x = data.inputs[sensor]
        moves = (x.amax(1) - x.amin(1)).amax(1)
        shows = data.target // 3 == index
        assert moves[shows].amin() > 0.3
        assert moves[~shows].amax() < 1e-5


def test_subjects_differ() -> None:
    data = synthetic(noise=0.0, subjects=8)
    means = torch.stack([data.inputs["TEMP"][data.subject == s].mean() for s in range(8)])
    within = data.inputs["TEMP"].mean((1, 2))[data.subject == 0].std()
    assert means.std() > 0.2
    assert within < 1e-5


def test_a_small_model_learns_it() -> None:
    """Far above chance (8 %) on new subjects after seconds; full training is an example's."""
    torch.set_num_threads(1)
    train, _, test = synthetic(noise=0.5).split()
    config = BackboneConfig.for_inputs(train.inputs, 12, tokens=4, layers=1, d_model=32, heads=4)
    model = build("shared", config.replace(hidden=64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for epoch in range(3):
        for inputs, target in train.batches(60, seed=epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), target).backward()
            optimizer.step()
    with torch.no_grad():
        right = (model(test.inputs).argmax(1) == test.target).float().mean()
    assert right > 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "hard"}, "preset: got 'hard'"),
        ({"subjects": 2}, "subjects, windows: got 2 and 100"),
        ({"redundancy": 1.5}, "redundancy: got 1.5, expected 0 to 1"),
        ({"noise": -1}, "noise: got -1"),
        ({"preset": "unique", "xor": True}, "xor: got True with preset 'unique'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        synthetic(**options)


def test_data_are_values() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        small().name = "other"  # type: ignore[misc]
