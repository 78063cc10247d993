"""Loaders of public data sets, on small files of the same formats."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from leeboard.prune import data
from leeboard.prune.data import RefusedPickleError
from leeboard.prune.data.recordings import Cut, Recording, averaged, carried, filled, windowed

pytest.importorskip("pandas")

RNG = np.random.default_rng(0)


def write(path: Path, rows: Any, form: str = "%.5f", separator: str = " ") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, rows, fmt=form, delimiter=separator)


def test_windows_hold_one_label_each() -> None:
    labels = np.array([0] * 3 + [1] * 10 + [2] * 4 + [1] * 5 + [7] * 9)
    fast = np.arange(2 * len(labels), dtype=np.float32)[:, None]
    slow = np.arange(len(labels), dtype=np.float32)[:, None]
    recording = Recording(4, {"fast": (fast, 20.0), "slow": (slow, 10.0)}, labels, 10)
    got = windowed("x", [recording], {2: "two", 1: "one"}, Cut(0.4, 0.3), "Notes.")
    # Starts 3, 6, 9 of label 1, 13 of label 2, 17 of label 1 again.
    assert got.inputs["slow"][:, 0, 0].tolist() == [3, 6, 9, 13, 17]
    assert got.inputs["fast"][:, :, 0].tolist()[1] == [12, 13, 14, 15, 16, 17, 18, 19]
    assert [got.classes[t] for t in got.target] == ["one", "one", "one", "two", "one"]
    assert got.subject.tolist() == [4] * 5
    assert got.notes.startswith("Notes. 0 of 5 windows")
    slow[14] = np.nan
    less = Recording(4, {"fast": (fast[:40], 20.0), "slow": (slow, 10.0)}, labels, 10)
    got = windowed("x", [less], {2: "two", 1: "one"}, Cut(0.4, 0.3), "Notes.")
    assert got.inputs["slow"][:, 0, 0].tolist() == [3, 6, 9]
    assert "2 of 5 windows were dropped" in got.notes
    short = Recording(4, {"fast": (fast[:5], 20.0)}, labels, 10)
    with pytest.raises(ValueError, match=r"x: no window of 0.4 s is left; all 5 held NaN or ran"):
        windowed("x", [short], {2: "two", 1: "one"}, Cut(0.4, 0.3), "")
    with pytest.raises(ValueError, match="no label held so long"):
        windowed("x", [recording], {1: "one"}, Cut(5, 0.3), "")
    with pytest.raises(ValueError, match="step: got 0, expected seconds > 0"):
        Cut(1, 0)


def test_gaps() -> None:
    nan = np.nan
    x = np.array([[nan, 1, nan, nan, 4, nan, nan, nan, 8, nan]], np.float32).T
    expected = [nan, 1, 2, 3, 4, nan, nan, nan, 8, nan]
    np.testing.assert_allclose(filled(x, 2)[:, 0], expected)
    np.testing.assert_allclose(carried(x, 2)[:, 0], [nan, 1, 1, 1, 4, 4, 4, nan, 8, 8])
    assert np.isnan(x).sum() == 7
    assert np.isnan(filled(np.full((3, 1), nan), 2)).all()
    np.testing.assert_allclose(averaged(np.arange(14.0).reshape(7, 2), 3), [[2, 3], [8, 9]])
    assert averaged(np.zeros((2, 3)), 5).shape == (0, 3)


def uci_har(root: Path) -> dict[str, Any]:
    drawn = {}
    subjects = {"train": [1, 1, 3, 5, 6, 7, 8], "test": [2, 4]}
    for part, people in subjects.items():
        for kind in ("body_acc", "total_acc", "body_gyro"):
            for axis in "xyz":
                rows = RNG.normal(size=(len(people), 128))
                drawn[f"{part} {kind} {axis}"] = rows
                # As published: two spaces or one before each number.
                path = root / part / "Inertial Signals" / f"{kind}_{axis}_{part}.txt"
                write(path, rows, "% 16.7e")
        write(root / part / f"y_{part}.txt", [[1 + i % 6] for i in range(len(people))], "%d")
        write(root / part / f"subject_{part}.txt", [[s] for s in people], "%d")
    return drawn


def test_uci_har(tmp_path: Path) -> None:
    drawn = uci_har(tmp_path)
    got = data.load("uci-har", str(tmp_path))
    assert got.modalities == ("body_acc", "total_acc", "body_gyro")
    assert got.subject.tolist() == [1, 1, 3, 5, 6, 7, 8, 2, 4]
    assert got.target.tolist() == [0, 1, 2, 3, 4, 5, 0, 0, 1]
    assert got.inputs["total_acc"].shape == (9, 128, 3)
    expected = torch.tensor(drawn["test body_gyro z"], dtype=torch.float32)
    torch.testing.assert_close(got.inputs["body_gyro"][7:, :, 2], expected)
    split = got.split()
    assert [p.subject.unique().tolist() for p in split] == [[1, 3], [5, 6, 7, 8], [2, 4]]
    (tmp_path / "train" / "y_train.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks train/y_train.txt of the UCI-HAR data"):
        data.uci_har(tmp_path)


def pamap2_rows(count: int = 3000) -> Any:
    rows = RNG.normal(size=(count, 54))
    rows[:, 0] = np.arange(count) / 100
    rows[:, 1] = 0
    rows[500:1700, 1], rows[1700:, 1] = 4, 24
    # The heart rate is measured in every eleventh row.
    rows[:, 2] = np.where(np.arange(count) % 11 == 3, 80 + np.arange(count) / 100, np.nan)
    return rows


def test_uci_har_with_a_short_file(tmp_path: Path) -> None:
    uci_har(tmp_path)
    (file,) = tmp_path.rglob("body_acc_y_test.txt")
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match=r"body_acc_y_test.txt: got \d+ rows, expected \d+, one"):
        data.uci_har(tmp_path)


def test_pamap2(tmp_path: Path) -> None:
    rows = pamap2_rows()
    rows[600:640, 4:7] = np.nan
    for subject in (1, 2):
        write(tmp_path / "Protocol" / f"subject10{subject}.dat", rows)
    got = data.pamap2(tmp_path, subjects=[2, 1])
    assert {n: tuple(x.shape[1:]) for n, x in got.inputs.items()} == {
        "hand": (128, 9),
        "chest": (128, 9),
        "ankle": (128, 9),
        "heart_rate": (8, 1),
    }
    # 12 s of walking and 13 s of rope jumping each.
    names = [got.classes[t] for t in got.target]
    assert names == (["walking"] * 3 + ["rope jumping"] * 4) * 2
    assert got.subject.tolist() == [1] * 7 + [2] * 7
    # Column 38, the ankle's first acceleration (16 g) after its temperature.
    means = rows[500:1012, 38].reshape(128, 4).mean(1)
    np.testing.assert_allclose(got.inputs["ankle"][0, :, 0], means, atol=1e-4)
    # Chest: turn rates are 27 to 29, the magnetic field 30 to 32.
    means = rows[500:1012, 32].reshape(128, 4).mean(1)
    np.testing.assert_allclose(got.inputs["chest"][0, :, 8], means, atol=1e-4)
    heart = got.inputs["heart_rate"]
    assert 84 < heart[0, 0, 0] < 86
    assert (heart[0, 1:] > heart[0, :-1]).all()
    # A gap of 0.4 s is a straight line.
    bridged = got.inputs["hand"][0, 26:34, 0].diff()
    torch.testing.assert_close(bridged, bridged[:1].expand(7), rtol=1e-3, atol=1e-4)
    assert "0 of 14 windows were dropped" in got.notes


def test_pamap2_drops_what_stays_missing(tmp_path: Path) -> None:
    rows = pamap2_rows()
    rows[600:750, 22] = np.nan
    rows[2500:2900, 2] = np.nan
    write(tmp_path / "Protocol" / "subject103.dat", rows)
    got = data.pamap2(tmp_path, subjects=[3])
    # The first window of walking, and the last of rope jumping.
    assert "2 of 7 windows were dropped for NaN" in got.notes
    assert len(got) == 5
    rows[:, 2] = np.nan
    write(tmp_path / "Protocol" / "subject103.dat", rows)
    with pytest.raises(ValueError, match=r"pamap2: no window of 5.12 s is left; all 7 held NaN"):
        data.pamap2(tmp_path, subjects=[3])
    with pytest.raises(FileNotFoundError, match=r"lacks Protocol/subject101.dat, .* and 5 more"):
        data.pamap2(tmp_path)
    with pytest.raises(ValueError, match="subjects: got 12, expected some of"):
        data.pamap2(tmp_path, subjects=[3, 12])
    write(tmp_path / "Protocol" / "subject103.dat", rows[:, :20])
    with pytest.raises(ValueError, match=r"subject103.dat: got 20 columns, expected 54"):
        data.pamap2(tmp_path, subjects=[3])
    (tmp_path / "Protocol" / "subject103.dat").write_text("a b c\n")
    with pytest.raises(ValueError, match=r"subject103.dat: no table of numbers"):
        data.pamap2(tmp_path, subjects=[3])


def test_mhealth(tmp_path: Path) -> None:
    rows = RNG.normal(size=(600, 24))
    rows[:, 23] = 0
    rows[100:300, 23], rows[300:500, 23] = 11, 12
    for subject in (1, 10):
        write(tmp_path / f"mHealth_subject{subject}.log", rows, separator="\t")
    got = data.mhealth(tmp_path, subjects=[1, 10], progress=False)
    assert {n: x.shape[2] for n, x in got.inputs.items()} == {
        "chest": 3,
        "ecg": 2,
        "ankle": 9,
        "arm": 9,
    }
    assert got.inputs["ecg"].shape[1] == 128
    assert [got.classes[t] for t in got.target] == (
        ["running"] * 2 + ["jump front and back"] * 2
    ) * 2
    np.testing.assert_allclose(got.inputs["ecg"][0], rows[100:228, 3:5], atol=1e-4)
    np.testing.assert_allclose(got.inputs["arm"][1], rows[164:292, 14:23], atol=1e-4)
    assert got.subject.unique().tolist() == [1, 10]


def test_dsads(tmp_path: Path) -> None:
    drawn = {}
    for activity in range(1, 20):
        for subject in (1, 2):
            for segment in (1, 2) if activity == 3 else (1,):
                rows = RNG.normal(size=(125, 45))
                drawn[activity, subject, segment] = rows
                name = f"a{activity:02}/p{subject}/s{segment:02}.txt"
                write(tmp_path / "data" / name, rows, "%.4f", ",")
    got = data.dsads(tmp_path, subjects=[1, 2])
    assert got.modalities == ("torso", "right_arm", "left_arm", "right_leg", "left_leg")
    assert len(got) == 40
    row = next(i for i in range(40) if got.target[i] == 2 and got.subject[i] == 2)
    assert got.classes[2] == "lying on back"
    np.testing.assert_allclose(got.inputs["left_arm"][row], drawn[3, 2, 1][:, 18:27], atol=1e-4)
    np.testing.assert_allclose(got.inputs["left_leg"][row + 1], drawn[3, 2, 2][:, 36:], atol=1e-4)
    write(tmp_path / "data/a19/p2/s01.txt", np.zeros((124, 45)), "%.1f", ",")
    with pytest.raises(ValueError, match=r"s01.txt: got 124 rows, expected 125"):
        data.dsads(tmp_path, subjects=[1, 2])
    with pytest.raises(FileNotFoundError, match=r"lacks a01/p3/s01.txt"):
        data.dsads(tmp_path)


def device(chest: dict[str, int], seconds: int, **more: Any) -> dict[str, Any]:
    rates = {"ACC": 32, "BVP": 64, "EDA": 4, "TEMP": 4}
    return {
        "signal": {
            "chest": {
                n: RNG.normal(size=(700 * seconds, c)).astype(np.float32) for n, c in chest.items()
            },
            "wrist": {
                n: RNG.normal(size=(r * seconds, 3 if n == "ACC" else 1)) for n, r in rates.items()
            },
        },
        **more,
    }


CHEST = {"ACC": 3, "ECG": 1, "EMG": 1, "EDA": 1, "Temp": 1, "Resp": 1}


def save(path: Path, content: Any, protocol: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol))


def test_wesad(tmp_path: Path) -> None:
    labels = np.repeat([0, 1, 2, 4, 3], [700 * 5, 700 * 20, 700 * 10, 700 * 10, 700 * 15])
    sessions = {s: device(CHEST, 60, subject=f"S{s}", label=labels) for s in (2, 13, 16)}
    for subject, session in sessions.items():
        save(tmp_path / f"S{subject}" / f"S{subject}.pkl", session)
    got = data.wesad(tmp_path, subjects=[2, 13, 16])
    assert len(got.modalities) == 10
    lengths = {n: x.shape[1] for n, x in got.inputs.items()}
    assert {n for n, length in lengths.items() if length == 280} == {f"chest_{n}" for n in CHEST}
    assert [lengths[f"wrist_{n}"] for n in ("ACC", "BVP", "EDA", "TEMP")] == [256, 256, 32, 32]
    assert got.classes == ("baseline", "stress", "amusement")
    assert got.target[:7].tolist() == [0, 0, 0, 0, 1, 2, 2]
    signal = sessions[13]["signal"]
    row = int((got.subject == 13).nonzero()[0])
    # The second window starts at 9 s.
    expected = signal["chest"]["ACC"][9 * 700 : 17 * 700].reshape(280, 20, 3).mean(1)
    np.testing.assert_allclose(got.inputs["chest_ACC"][row + 1], expected, atol=1e-5)
    expected = signal["wrist"]["BVP"][9 * 64 : 17 * 64].reshape(256, 2).mean(1)
    np.testing.assert_allclose(got.inputs["wrist_BVP"][row + 1, :, 0], expected, atol=1e-6)
    np.testing.assert_allclose(
        got.inputs["wrist_EDA"][row + 1], signal["wrist"]["EDA"][36:68], atol=1e-6
    )
    # The split of the subjects that are there.
    assert [p.subject.unique().tolist() for p in got.split()] == [[2], [16], [13]]
    assert data.wesad(tmp_path, subjects=[2, 13], meditation=True).parts is None
    with pytest.raises(FileNotFoundError, match=r"lacks S3/S3.pkl, .* of the WESAD data"):
        data.wesad(tmp_path)
    with pytest.raises(ValueError, match="subjects: got 12"):
        data.wesad(tmp_path, subjects=[12])


def test_wesad_that_holds_code_is_refused(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path}/ran",)

    session = device(CHEST, 1, label=np.zeros(700, int), extra=Harmful())
    save(tmp_path / "S2" / "S2.pkl", session)
    with pytest.raises(RefusedPickleError, match=r"S2.pkl: names (posix|nt)\.system, .* was run"):
        data.wesad(tmp_path, subjects=[2])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("signal"), r"S2.pkl: holds no \['signal'\]\['chest'\]\['ACC'\]"),
        (lambda s: s["signal"]["chest"].pop("EMG"), r"holds no \['signal'\]\['chest'\]\['EMG'\]"),
        (lambda s: s.update(label="none"), r"\['label'\] is no array of numbers"),
        (
            lambda s: s["signal"]["wrist"].update(BVP=np.zeros((9, 2))),
            r"\['BVP'\] has shape \[9, 2\], expected \[T, 1\]",
        ),
    ],
)
def test_wesad_of_another_format(spoil: Callable[[Any], Any], message: str, tmp_path: Path) -> None:
    session = device(CHEST, 1, label=np.zeros(700, int))
    spoil(session)
    save(tmp_path / "S2" / "S2.pkl", session)
    with pytest.raises(ValueError, match=message):
        data.wesad(tmp_path, subjects=[2])


def test_ppg_dalia(tmp_path: Path) -> None:
    activity = np.repeat([[0.0], [7.0], [2.0]], [4 * 4, 20 * 4, 12 * 4], axis=0)
    session = device({"ACC": 3, "ECG": 1, "Resp": 1}, 36, activity=activity, label=np.ones(10))
    for subject in (1, 11, 15):
        save(tmp_path / "PPG_FieldStudy" / f"S{subject}" / f"S{subject}.pkl", session, 4)
    got = data.ppg_dalia(tmp_path, subjects=[1, 11, 15], progress=True)
    assert got.modalities == (
        *("chest_ACC", "chest_ECG", "chest_Resp"),
        *("wrist_ACC", "wrist_BVP", "wrist_EDA", "wrist_TEMP"),
    )
    assert [got.classes[t] for t in got.target[:6]] == ["walking"] * 4 + ["stairs"] * 2
    expected = session["signal"]["wrist"]["ACC"][4 * 32 : 12 * 32]
    np.testing.assert_allclose(got.inputs["wrist_ACC"][0], expected, atol=1e-6)
    assert [p.subject.unique().tolist() for p in got.split()] == [[1], [11], [15]]


def test_load_by_name(tmp_path: Path) -> None:
    assert data.load("synthetic", subjects=3, windows=2).name == "synthetic-mixed"
    with pytest.raises(ValueError, match="name: got 'opportunity', expected one of digits-quadr"):
        data.load("opportunity")
    with pytest.raises(ValueError, match="folder: got None, expected the folder that holds the we"):
        data.load("wesad")
    with pytest.raises(ValueError, match="folder: got 'x', expected None: synthetic needs no"):
        data.load("synthetic", "x")
    with pytest.raises(FileNotFoundError, match=r"folder: got .*none', expected the unpacked"):
        data.load("mhealth", str(tmp_path / "none"))
