"""The training loop, its schedule, checkpoints, logs and history, on models of a few numbers."""

from __future__ import annotations

import csv
import dataclasses
import errno
import json
import math
import os
import signal
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from leeboard import _files
from leeboard._files import put_tensors
from leeboard.draft.training.checkpoint import Checkpoints
from leeboard.draft.training.history import History
from leeboard.draft.training.logs import Logs, check_tensorboard
from leeboard.draft.training.loop import Interrupted, Terms, Watch, fit
from leeboard.draft.training.settings import LoopSettings, TrainSettings

pytest.importorskip("safetensors")
pytest.importorskip("tqdm")

SETTINGS = LoopSettings(
    steps=12, lr=0.1, schedule="linear", warmup=2, weight_decay=0.05, checkpoint_every=1
)


def models() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    frozen = nn.Linear(4, 4)
    frozen.weight.requires_grad_(False)
    return {"a": nn.Linear(4, 4), "b": frozen}


def train(
    trained: Mapping[str, nn.Module],
    folder: Path | None,
    settings: LoopSettings = SETTINGS,
    *,
    at: Callable[[int], None] = lambda step: None,
    identity: Mapping[str, Any] | None = None,
    watch: Watch | None = None,
) -> History:
    def parts(step: int) -> Iterable[Mapping[str, Terms]]:
        at(step)
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        for half in x.chunk(2):
            losses = {name: (m(half) - half).square().mean() / 2 for name, m in trained.items()}
            yield {name: Terms(loss, {"twice": 2 * loss}) for name, loss in losses.items()}

    checkpoints = None if folder is None else Checkpoints(folder, identity or {"of": "test"})
    return fit(trained, parts, settings, checkpoints=checkpoints, watch=watch, progress=False)


def weights(trained: Mapping[str, nn.Module]) -> list[torch.Tensor]:
    return [tensor for model in trained.values() for tensor in model.state_dict().values()]


def timeless(history: History) -> dict[str, list[float]]:
    return {name: column for name, column in history.steps.items() if name != "seconds"}


def stop_at(step: int) -> Callable[[int], None]:
    def at(now: int) -> None:
        if now == step:
            raise RuntimeError("power cut")

    return at


def test_an_interrupted_training_resumes_to_the_same_weights(tmp_path: Path) -> None:
    whole = models()
    expected = train(whole, None)
    with pytest.raises(RuntimeError, match="power cut"):
        train(models(), tmp_path / "c", at=stop_at(7))
    files = sorted(path.name for path in (tmp_path / "c").iterdir())
    assert files == ["step-000000007.json", "step-000000007.safetensors"]
    resumed = models()
    history = train(resumed, tmp_path / "c")
    assert timeless(history) == timeless(expected)
    assert len(history) == len(history.steps["a.loss"]) == 12
    assert all(map(torch.equal, weights(resumed), weights(whole)))

    again = models()
    finished = train(again, tmp_path / "c", at=stop_at(0))
    assert finished.steps == history.steps
    assert all(map(torch.equal, weights(again), weights(whole)))


def test_the_average_of_the_weights_is_evaluated_and_kept(tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, average=0.6)
    plain, seen = models(), [weights(models())]
    # The weights after every step, of the same training without an average.
    watch = Watch(on_step=lambda step, values: seen.append([w.clone() for w in weights(plain)]))
    train(plain, None, watch=watch)
    expected = seen[1]
    for step, now in enumerate(seen[2:], start=1):
        kept = min(0.6, (1 + step) / (10 + step))
        expected = [kept * old + (1 - kept) * new for old, new in zip(expected, now, strict=True)]

    whole, looked = models(), []
    watch = Watch(
        evaluate=lambda done: {"of": float(whole["a"].weight.detach().sum())},
        evaluate_every=4,
        evaluated=lambda history: looked.append(history.evaluations["of"][-1]),
    )
    train(whole, None, settings, watch=watch)
    torch.testing.assert_close(weights(whole), expected)
    assert looked[-1] == pytest.approx(float(whole["a"].weight.detach().sum()))
    assert len(looked) == 3

    resumed = models()
    with pytest.raises(RuntimeError, match="power cut"):
        train(models(), tmp_path / "c", settings, at=stop_at(7))
    train(resumed, tmp_path / "c", settings)
    assert all(map(torch.equal, weights(resumed), weights(whole)))
    with pytest.raises(ValueError, match="average: got 1, expected 0 to below 1"):
        dataclasses.replace(SETTINGS, average=1)


def test_parts_and_values_add_up() -> None:
    trained = models()
    history = train(trained, None)
    assert history.steps["a.twice"] == [2 * loss for loss in history.steps["a.loss"]]
    assert history.steps["a.loss"][-1] < history.steps["a.loss"][0]


def test_frozen_weights_stay_and_others_move() -> None:
    trained = models()
    before = {name: value.clone() for name, value in trained["b"].state_dict().items()}
    train(trained, None)
    assert torch.equal(trained["b"].state_dict()["weight"], before["weight"])
    assert not torch.equal(trained["b"].state_dict()["bias"], before["bias"])
    with pytest.raises(ValueError, match="expected parameters to train"):
        train({"a": nn.Linear(2, 2).requires_grad_(False)}, None)


def test_models_train_as_they_would_alone() -> None:
    together, alone = models(), models()
    train(together, None)
    history = train({"b": alone["b"]}, None)
    assert all(map(torch.equal, weights({"b": together["b"]}), weights({"b": alone["b"]})))
    assert {"loss", "grad_norm", "lr", "seconds"} < history.steps.keys()
    assert "b.loss" not in history.steps


def test_the_clip_bounds_the_gradient(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    short = dataclasses.replace(SETTINGS, steps=1, clip=1e-3)
    history = train({"a": nn.Linear(4, 4)}, tmp_path / "c", short)
    assert history.steps["grad_norm"][0] > 1e-3
    saved = load_file(tmp_path / "c" / "step-000000001.safetensors")
    averages = [saved[f"exp_avg/a.{name}"].flatten() for name in ("weight", "bias")]
    # The first average is a tenth of the gradient.
    assert float(torch.cat(averages).norm()) == pytest.approx(1e-4, rel=1e-3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_ends_the_step_with_a_checkpoint(
    tmp_path: Path, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = dataclasses.replace(SETTINGS, checkpoint_every=None)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def at(step: int) -> None:
        if step == 4:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match="stopped after step 5") as caught:
        train(models(), tmp_path / "c", settings, at=at)
    assert (caught.value.signal, caught.value.step) == (number, 5)
    assert isinstance(caught.value, KeyboardInterrupt)
    assert "stopping after this step" in capsys.readouterr().err
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    history = train(models(), tmp_path / "c", settings)
    assert timeless(history) == timeless(train(models(), None))


def test_a_second_interrupt_does_not_wait(tmp_path: Path) -> None:
    def at(step: int) -> None:
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("the second one did not end it")

    with pytest.raises(KeyboardInterrupt) as caught:
        train(models(), tmp_path / "c", at=at)
    assert not isinstance(caught.value, Interrupted)


def test_a_loss_that_is_not_finite_stops_and_names_the_step(tmp_path: Path) -> None:
    trained = models()

    def at(step: int) -> None:
        if step == 6:
            with torch.no_grad():
                trained["a"].weight[0, 0] = math.nan

    with pytest.raises(ArithmeticError, match=r"step 7: a\.loss is nan.*step-000000006\.json"):
        train(trained, tmp_path / "c", at=at)
    assert [path.name for path in (tmp_path / "c").glob("*.json")] == ["step-000000006.json"]
    with pytest.raises(ArithmeticError, match="none has been saved"):
        train(trained, None)


def test_another_trainings_checkpoint_is_refused(tmp_path: Path) -> None:
    first = {"settings": {"lr": 0.1, "weights": (1, 2)}, "data": "x", "gone": 1}
    train(models(), tmp_path / "c", identity=first)
    before = {path: path.read_bytes() for path in (tmp_path / "c").iterdir()}
    other = {"settings": {"lr": 0.2, "weights": (1, 2)}, "data": "x", "new": 1}
    with pytest.raises(ValueError, match="another training") as caught:
        train(models(), tmp_path / "c", identity=other)
    message = str(caught.value)
    assert "settings.lr: it has 0.1, this training 0.2" in message
    assert "gone: not any more" in message
    assert "new: not in it" in message
    assert "weights" not in message
    assert {path: path.read_bytes() for path in (tmp_path / "c").iterdir()} == before


def test_damaged_checkpoints_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    train(models(), folder)
    record = folder / "step-000000012.json"
    tensors = record.with_suffix(".safetensors")
    whole, text = tensors.read_bytes(), record.read_text()

    tensors.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"step-000000012\.safetensors: damaged"):
        train(models(), folder)
    tensors.unlink()
    with pytest.raises(ValueError, match=r"there is no step-000000012\.safetensors"):
        train(models(), folder)
    tensors.write_bytes(whole)
    with pytest.raises(ValueError, match=r"a\.weight: got \(4, 4\), expected \(5, 4\)"):
        train({"a": nn.Linear(4, 5), "b": nn.Linear(4, 4)}, folder)
    for wrong in ("{", "[]", json.dumps({"format": "other"})):
        record.write_text(wrong)
        with pytest.raises(ValueError, match="damaged or no checkpoint of a training"):
            train(models(), folder)
    record.write_text(text)
    assert len(train(models(), folder)) == 12


def test_a_failed_save_keeps_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def full(file: Any, tensors: Any, *rest: Any) -> None:
        calls.append(file)
        put_tensors(file, tensors, *rest)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(_files, "put_tensors", full)
    with pytest.raises(OSError, match=r"checkpoint of step 4 not written.*No space") as caught:
        train(models(), tmp_path / "c")
    assert caught.value.errno == errno.ENOSPC
    names = sorted(path.name for path in (tmp_path / "c").iterdir())
    assert names == ["step-000000003.json", "step-000000003.safetensors"]


def test_leftovers_of_a_kill_are_cleared(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    with pytest.raises(RuntimeError):
        train(models(), folder, at=stop_at(3))
    for name in ("step-000000004.safetensors", ".step-000000004.safetensors.7.ab", "notes.txt"):
        (folder / name).write_bytes(b"half")
    assert timeless(train(models(), folder)) == timeless(train(models(), None))
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["notes.txt", "step-000000012.json", "step-000000012.safetensors"]
    Checkpoints(folder, {}).remove()
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedules(schedule: Any) -> None:
    settings = LoopSettings(steps=100, lr=2.0, schedule=schedule, warmup=0.1)
    rates = [settings.rate(step) for step in range(100)]
    assert settings.warmup_steps == 10
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10] == max(rates) == 2.0
    middle = {"cosine": 1.0, "linear": 1.0, "constant": 2.0}[schedule]
    assert rates[55] == pytest.approx(middle)
    last = {"cosine": 1 - math.cos(math.pi / 90), "linear": 2 / 90, "constant": 2.0}[schedule]
    assert rates[99] == pytest.approx(last)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert LoopSettings(steps=3, lr=2.0, schedule=schedule, warmup=0).rate(0) == 2.0
    assert LoopSettings(steps=3, lr=2.0, schedule=schedule, warmup=9).rate(2) == 2.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.0}, "lr: got 0.0"),
        ({"lr": math.nan}, "lr: got nan"),
        ({"batch": 0}, "batch: got 0"),
        ({"ttt": True}, "ttt: got True"),
        ({"warmup": 1.5}, "warmup: got 1.5"),
        ({"warmup": -1}, "warmup: got -1"),
        ({"schedule": "step"}, "schedule: got 'step', expected one of cosine"),
        ({"loss": "ce"}, "loss: got 'ce', expected one of kl"),
        ({"precision": "float16"}, "precision: got 'float16'"),
        ({"ttt": 3, "step_weights": (1.0, 0.5)}, "step_weights: got 2 of them, expected ttt = 3"),
        ({"ttt": 2, "step_weights": (1.0, -0.5)}, "step_weights: got -0.5"),
        ({"ttt": 2, "step_weights": (0.0, 0.0)}, "step_weights: got zeros only"),
        ({"heldout_share": 1.0}, "heldout_share: got 1.0"),
        ({"seed": -1}, "seed: got -1"),
        ({"packed": 1}, "packed: got 1"),
        ({"clip": math.inf}, "clip: got inf"),
        ({"checkpoint_seconds": -1.0}, "checkpoint_seconds: got -1.0"),
        ({"evaluate_every": 0}, "evaluate_every: got 0"),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        TrainSettings(**changes)


def test_settings_follow_from_each_other() -> None:
    assert TrainSettings(ttt=3, decay=0.5).weights == (1.0, 0.5, 0.25)
    assert TrainSettings(ttt=2, step_weights=(1, 0)).weights == (1.0, 0.0)
    assert TrainSettings(epochs=1.5, batch=4).total_steps(10) == 4
    assert TrainSettings(steps=7).loop(10) == LoopSettings(steps=7, lr=1e-4)


def read_table(path: Path) -> tuple[list[str], list[list[float]]]:
    with path.open(newline="") as stream:
        header, *rows = csv.reader(stream)
    return header, [[float(cell) for cell in row] for row in rows]


def test_logs_tell_every_step_once(tmp_path: Path) -> None:
    def watch() -> Watch:
        return Watch(
            evaluate=lambda done: {"loss": 1 / done, "loss@1": 1.0, "overlap@1": 0.5},
            evaluate_every=5,
            logs=Logs(tmp_path / "logs"),
        )

    settings = dataclasses.replace(SETTINGS, checkpoint_every=4)
    with pytest.raises(RuntimeError):
        train(models(), tmp_path / "c", settings, at=stop_at(11), watch=watch())
    assert len(read_table(tmp_path / "logs" / "log.csv")[1]) == 11
    history = train(models(), tmp_path / "c", settings, watch=watch())
    header, rows = read_table(tmp_path / "logs" / "log.csv")
    assert header[:4] == ["step", "a.loss", "b.loss", "lr"]
    assert [row[0] for row in rows] == list(range(1, 13))
    for i, name in enumerate(header[1:], start=1):
        assert [row[i] for row in rows] == history.steps[name]
    header, rows = read_table(tmp_path / "logs" / "evaluations.csv")
    assert header == ["step", "loss", "loss@1", "overlap@1"]
    assert [row[0] for row in rows] == history.evaluations["step"] == [5, 10, 12]


def test_stop_ends_the_training_and_a_rerun_knows(tmp_path: Path) -> None:
    evaluated: list[int] = []

    def evaluate(done: int) -> Mapping[str, float]:
        evaluated.append(done)
        return {"loss": 1 / done}

    seen: list[int] = []
    watch = Watch(
        evaluate=evaluate,
        evaluate_every=2,
        stop=lambda history: history.evaluations["loss"][-1] < 0.2,
        on_step=lambda step, values: seen.append(step),
    )
    history = train(models(), tmp_path / "c", watch=watch)
    assert (len(history), evaluated, seen) == (6, [2, 4, 6], [1, 2, 3, 4, 5, 6])
    again = train(models(), tmp_path / "c", watch=watch)
    assert again == history
    assert evaluated == [2, 4, 6]


def test_history_by_chain_step() -> None:
    history = History()
    assert (len(history), history.loss, history.chain("loss")) == (0, [], [])
    for i in range(2):
        history.add_step({"loss": 1.5, "loss@1": 1.0, "loss@2": 0.5 * i})
    history.add_evaluation({"step": 2.0, "overlap@1": 0.1 + 0.2})
    assert history.chain("loss") == [(1.0, 0.0), (1.0, 0.5)]
    assert history.chain("overlap", evaluations=True) == [(0.1 + 0.2,)]
    assert History.from_tensors(history.tensors()) == history
    with pytest.raises(ValueError, match="values: got"):
        history.add_step({"loss": 1.0})


def test_tensorboard_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from leeboard.draft.training import logs

    monkeypatch.setattr(logs, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"leeboard\[tensorboard\]"):
        Logs(tmp_path, tensorboard=True)
    with pytest.raises(ModuleNotFoundError, match=r"leeboard\[tensorboard\]"):
        check_tensorboard()


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = dataclasses.replace(SETTINGS, checkpoint_every=4)
    for at in (stop_at(10), lambda step: None):
        watch = Watch(
            evaluate=lambda done: {"loss": 0.5}, logs=Logs(tmp_path / "logs", tensorboard=True)
        )
        try:
            history = train(models(), tmp_path / "c", settings, at=at, watch=watch)
        except RuntimeError:
            continue
    events = EventAccumulator(str(tmp_path / "logs" / "tensorboard"))
    events.Reload()
    told = events.Scalars("train/a.loss")
    assert [event.step for event in told] == list(range(1, 13))
    assert [event.value for event in told] == pytest.approx(history.steps["a.loss"])
    assert [event.value for event in events.Scalars("heldout/loss")] == [0.5]
