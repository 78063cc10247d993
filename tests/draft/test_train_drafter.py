"""`train_drafter`: exact resume, several processes, evaluation, precision, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import train_runs
from drafter_models import make_target
from leeboard.draft import (
    Batch,
    DrafterConfig,
    Eagle3Drafter,
    MTPConfig,
    MTPHead,
    TrainSettings,
    chain_loss,
    load_drafter,
    quantize,
    train_drafter,
)
from leeboard.draft.training import Interrupted, OnlineStates, Rows, shuffled, teacher_of
from leeboard.draft.training.checkpoint import only_training
from train_runs import SETTINGS, curve, new_rows, new_target, train

pytest.importorskip("transformers")
pytest.importorskip("safetensors")
pytest.importorskip("tqdm")

SCRIPT = Path(train_runs.__file__)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An uninterrupted training with its folder."""
    out = tmp_path_factory.mktemp("whole")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    trained = train(out)
    torch.set_num_threads(before)
    return trained


def launch(*command: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(SCRIPT.parent), *sys.path])
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env=env,
    )


def states_of(drafter: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in drafter.state_dict().items()}


def same_states(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_a_killed_training_goes_on_bit_by_bit(whole: Any, tmp_path: Path) -> None:
    done = launch(str(SCRIPT), str(tmp_path), "kill", "7")
    assert done.returncode == -signal.SIGKILL, done.stderr
    # Step 7 was told of, but the last checkpoint is of step 6.
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 8
    assert [p.name for p in (tmp_path / "checkpoints").glob("*.json")] == ["step-000000006.json"]
    seen: list[int] = []
    resumed = train(tmp_path, on_step=lambda step, values: seen.append(step))
    assert seen == [7, 8, 9]
    assert curve(resumed.history) == curve(whole.history)
    assert same_states(states_of(resumed.drafter), states_of(whole.drafter))
    for name in ("log.csv", "evaluations.csv"):
        ours, theirs = ((folder / name).read_text() for folder in (tmp_path, whole.path.parent))
        assert len(ours.splitlines()) == len(theirs.splitlines())
    assert (tmp_path / "evaluations.csv").read_bytes() == (
        whole.path.parent / "evaluations.csv"
    ).read_bytes()


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    command = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = launch(*command, str(SCRIPT), str(tmp_path), "twins")
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    refused = [rank.pop("refused") for rank in ranks]
    assert ranks[0] == ranks[1]
    assert ranks[0]["stopped"] == 6
    assert ranks[0]["resumed"] == ranks[0]["whole"]

    # What one process cannot do ends both, and none waits for the other.
    for rank, step in enumerate((9, 0)):
        assert f"sees the checkpoint of step {step}, another one not" in refused[rank][0]
    assert "DiskFullError" in refused[0][1]
    assert "RuntimeError: the first process has failed" in refused[1][1]

    alone = train(None, dataclasses.replace(SETTINGS, batch=8)).history
    for table, columns in curve(alone).items():
        for name, column in columns.items():
            assert ranks[0]["whole"][table][name] == pytest.approx(column, rel=2e-4, abs=1e-5), name
    assert len(alone) == 9
    low = dataclasses.replace(SETTINGS, batch=8, steps=2, precision="bfloat16")
    assert ranks[0]["low"] == pytest.approx(train(None, low).history.loss, rel=1e-2)
    # The first process alone wrote: one line a step.
    assert len((tmp_path / "whole" / "log.csv").read_text().splitlines()) == 10


def test_the_result_is_saved_for_serving(whole: Any) -> None:
    folder = whole.path.parent
    assert whole.path == folder / "drafter"
    assert not whole.drafter.training
    assert whole.steps == len(whole.history) == 9
    for name in ("drafter", "best"):
        loaded = load_drafter(folder / name)
        assert loaded.config == whole.drafter.config
    assert same_states(states_of(load_drafter(whole.path)), states_of(whole.drafter))
    record = json.loads((folder / "run.json").read_text())
    assert record["settings"]["ttt"] == 2
    assert record["drafter"]["class"] == "Eagle3Drafter"
    assert sorted(path.name for path in folder.iterdir() if path.name != ".lock") == [
        "best",
        "checkpoints",
        "drafter",
        "evaluations.csv",
        "log.csv",
        "run.json",
    ]


def test_a_finished_training_is_not_done_again(whole: Any, tmp_path: Path) -> None:
    seen: list[int] = []
    again = train(whole.path.parent, on_step=lambda step, values: seen.append(step))
    assert seen == []
    assert again.history == whole.history
    assert same_states(states_of(again.drafter), states_of(whole.drafter))


def test_two_trainings_in_a_folder_are_refused(whole: Any) -> None:
    folder = whole.path.parent
    with (
        only_training(folder),
        pytest.raises(RuntimeError, match="another process trains there"),
    ):
        train(folder)


def test_the_first_step_is_chain_loss_on_its_rows(whole: Any) -> None:
    """What is recorded is what the loss says, on the rows that the order says."""
    target, rows = new_target(), new_rows()
    torch.manual_seed(0)
    drafter = Eagle3Drafter(whole.drafter.config)
    drafter.set_draft_vocabulary(whole.drafter.t2d.nonzero()[:, 0])
    drafter.copy_from_target(target)
    held = len(rows) // 5
    kept = shuffled(len(rows), 0, 2**32 - 1)[held:].sort().values
    order = shuffled(len(kept), 0, 0)
    batch = OnlineStates(target, drafter, rows).batch(kept[order[:4]].tolist())
    teacher = teacher_of(target).rows(drafter.t2d)
    expected = chain_loss(drafter, batch, teacher, step_weights=(1.0, 0.8))
    history = whole.history
    assert history.loss[0] == pytest.approx(expected.loss.item(), rel=1e-6)
    assert history.chain("loss")[0] == pytest.approx(expected.step_losses.tolist(), rel=1e-6)
    assert history.chain("accuracy")[0] == pytest.approx(expected.step_accuracies.tolist())


def test_evaluation_is_the_mean_over_held_out_rows() -> None:
    rows = new_rows()
    heldout = rows.take(range(5))
    trained = train(None, dataclasses.replace(SETTINGS, steps=1), heldout=heldout)
    target, drafter = new_target(), trained.drafter
    batch = OnlineStates(target, drafter, heldout).batch(range(5))
    teacher = teacher_of(target).rows(drafter.t2d)
    with torch.no_grad():
        expected = chain_loss(drafter, batch, teacher, step_weights=(1.0, 0.8))
    history = trained.history
    assert history.evaluations["step"] == [1]
    assert history.evaluations["loss"][0] == pytest.approx(float(expected.loss), rel=1e-5)
    for name, values in (
        ("loss", expected.step_losses),
        ("accuracy", expected.step_accuracies),
        ("overlap", expected.step_overlaps),
    ):
        got = history.chain(name, evaluations=True)[0]
        assert got == pytest.approx(values.tolist(), rel=1e-5)


def test_accumulation_changes_nothing_but_rounding(whole: Any) -> None:
    parts = train(None, dataclasses.replace(SETTINGS, accumulate=4)).history
    for table, columns in curve(parts).items():
        expected = curve(whole.history)[table]
        for name, column in columns.items():
            assert column == pytest.approx(expected[name], rel=2e-4, abs=1e-5), name


def test_bfloat16_trains_float32_weights(whole: Any) -> None:
    low = train(None, dataclasses.replace(SETTINGS, precision="bfloat16"))
    assert {p.dtype for p in low.drafter.parameters()} == {torch.float32}
    # Eight bits of a number, in the loss of a step: a few times 2^-8.
    assert low.history.loss == pytest.approx(whole.history.loss, rel=2**-5)
    assert low.history.loss != whole.history.loss


def test_bfloat16_leaves_shared_weights_as_they_are() -> None:
    """Modules with two names, and a weight of two modules."""
    target = new_target()
    head = MTPHead(MTPConfig.for_target(target.config, "deepseek_v3", heads=2))
    tied = Eagle3Drafter(DrafterConfig.for_target(target.config))
    for drafter in (head, tied):
        drafter.copy_from_target(target)
    tied.lm_head.weight = tied.embed_tokens.weight.requires_grad_()
    settings = dataclasses.replace(SETTINGS, precision="bfloat16", steps=2)
    for drafter in (head, tied):
        before = states_of(drafter)
        train(None, settings, target=target, drafter=drafter)
        assert {tensor.dtype for tensor in drafter.parameters()} == {torch.float32}
        frozen = [name for name, p in drafter.named_parameters() if not p.requires_grad]
        assert all(torch.equal(drafter.state_dict()[name], before[name]) for name in frozen)
    assert tied.lm_head.weight is tied.embed_tokens.weight
    assert not torch.equal(tied.lm_head.weight, before["lm_head.weight"])


@pytest.mark.parametrize("loss", ["lk_alpha", "lk_lambda"])
def test_other_losses_are_reached(loss: Any, whole: Any) -> None:
    settings = dataclasses.replace(SETTINGS, loss=loss, steps=12, step_weights=(1.0, 0.5))
    history = train(None, settings).history
    assert history.loss[0] != pytest.approx(whole.history.loss[0], rel=1e-3)
    first, second = history.chain("loss")[0]
    assert history.loss[0] == pytest.approx(first + 0.5 * second, rel=1e-6)
    losses = history.evaluations["loss"]
    assert losses[-1] < losses[0]


def test_states_from_disk_give_the_same_curve(whole: Any, tmp_path: Path) -> None:
    pytest.importorskip("leeboard.draft.training.cached")
    from leeboard.draft.training import CachedStates

    cached = train(tmp_path / "out", states=tmp_path / "states")
    assert curve(cached.history) == curve(whole.history)
    # The states themselves are data too.
    states = CachedStates(tmp_path / "states")
    again = train(None, data=states)
    assert curve(again.history) == curve(whole.history)
    with pytest.raises(ValueError, match="states: given with data that has states"):
        train(None, data=states, states=tmp_path / "more")


def test_a_drafter_goes_on(whole: Any) -> None:
    """A second training, of another schedule, from where the first has ended."""
    drafter = load_drafter(whole.path)
    cooled = dataclasses.replace(SETTINGS, schedule="linear", warmup=0, lr=1e-4, steps=3)
    trained = train(None, cooled, drafter=drafter)
    assert trained.drafter is drafter
    assert trained.history.steps["lr"] == pytest.approx([1e-4, 2e-4 / 3, 1e-4 / 3])
    assert trained.history.loss[0] < whole.history.loss[0]


def test_stop_and_heldout_share_zero() -> None:
    seen: list[int] = []

    def stop(history: Any) -> bool:
        seen.append(len(history))
        return len(history) >= 4

    settings = dataclasses.replace(SETTINGS, evaluate_every=2, schedule="constant", warmup=0)
    assert train(None, settings, stop=stop).steps == 4
    assert seen == [2, 4]
    blind = train(None, dataclasses.replace(SETTINGS, heldout_share=0.0))
    assert blind.history.evaluations == {}
    assert blind.steps == 9


def test_randomness_outside_is_left_alone() -> None:
    target = new_target()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(None, dataclasses.replace(SETTINGS, steps=1), target=target)
    assert torch.equal(torch.rand(3), expected)


def test_ctrl_c_saves_and_the_same_call_goes_on(whole: Any, tmp_path: Path) -> None:
    def on_step(step: int, values: Mapping[str, float]) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="the same call goes on"):
        train(tmp_path, on_step=on_step)
    assert [p.name for p in (tmp_path / "checkpoints").glob("*.json")] == ["step-000000006.json"]
    assert not (tmp_path / "drafter").exists()
    said: list[str] = []
    assert curve(train(tmp_path, say=said.append).history) == curve(whole.history)
    assert "resuming after step 6 of 9" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 1e-3}, r"settings\.lr: it has 0\.003, this training 0\.001"),
        ({"seed": 1}, r"settings\.seed.*first weights"),
        ({"steps": 10}, "steps: it has 9, this training 10"),
    ],
)
def test_resume_with_other_settings(whole: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(whole.path.parent, dataclasses.replace(SETTINGS, **changes))


def test_resume_with_other_data_target_or_drafter(whole: Any) -> None:
    folder = whole.path.parent
    rows = new_rows()
    other = Rows(rows.ids.clone(), rows.loss_mask, rows.positions)
    other.ids[0, 0] += 1
    with pytest.raises(ValueError, match="data: it has"):
        train(folder, data=other)
    with pytest.raises(ValueError, match=r"target\.weights: it has"):
        train(folder, target=make_target("llama", seed=3))
    config = dataclasses.replace(whole.drafter.config, norm_output=False)
    with pytest.raises(ValueError, match=r"drafter\.config\.norm_output: it has True"):
        train(folder, config=config)
    assert len(list((folder / "checkpoints").iterdir())) == 2


class _Broken:
    """States that turn to NaN."""

    def __init__(self, source: OnlineStates, calls: int) -> None:
        self.rows, self._source, self._calls = source.rows, source, calls

    def __len__(self) -> int:
        return len(self._source)

    def batch(self, indices: Sequence[int]) -> Batch:
        self._calls -= 1
        batch = self._source.batch(indices)
        if self._calls < 0:
            batch.hiddens[0].fill_(math.nan)
        return batch


def test_a_loss_that_is_not_finite_keeps_the_checkpoint(tmp_path: Path) -> None:
    target = new_target()
    drafter = Eagle3Drafter(DrafterConfig.for_target(target.config))
    drafter.copy_from_target(target)
    broken = _Broken(OnlineStates(target, drafter, new_rows()), 5)
    settings = dataclasses.replace(SETTINGS, heldout_share=0.0)
    with pytest.raises(ArithmeticError, match=r"step 6: .* nan.*step-000000004\.json"):
        train(tmp_path, settings, target=target, drafter=drafter, data=broken)
    assert (tmp_path / "checkpoints" / "step-000000004.safetensors").is_file()
    assert all(bool(p.isfinite().all()) for p in drafter.parameters())


def test_what_does_not_fit_is_refused_before_a_step(tmp_path: Path) -> None:
    target, rows = new_target(), new_rows()
    fits = DrafterConfig.for_target(target.config)

    def refused(message: str, data: Any = rows, **given: Any) -> None:
        with pytest.raises((ValueError, TypeError), match=message):
            train_drafter(
                target,
                data,
                out=tmp_path / "out",
                progress=False,
                on_step=lambda step, values: pytest.fail("a step was done"),
                **{"settings": SETTINGS, **given},
            )
        assert not (tmp_path / "out").exists()

    larger = dataclasses.replace(fits, vocab_size=99, draft_vocab_size=99)
    refused("config: vocab_size is 99, expected 61", config=larger)
    refused("drafter: vocab_size is 99, expected 61", drafter=Eagle3Drafter(larger))
    refused("config: given with drafter", config=fits, drafter=Eagle3Drafter(fits))
    wide = dataclasses.replace(fits, target_hidden_size=64)
    refused("target_hidden_size is 64, expected 32", drafter=Eagle3Drafter(wide))
    refused(r"expected torch\.float32", drafter=Eagle3Drafter(fits).bfloat16())
    refused("without a parameter to train", drafter=quantize(Eagle3Drafter(fits), "int8"))
    deep = dataclasses.replace(fits, aux_layer_ids=(1, 2, 8))
    refused("aux_layer_ids", drafter=Eagle3Drafter(deep))
    silent = Rows(rows.ids, torch.zeros_like(rows.loss_mask), rows.positions)
    refused("0 tokens to learn", data=silent)
    refused("ttt: got 15, expected at most 14", settings=dataclasses.replace(SETTINGS, ttt=15))
    short = dataclasses.replace(fits, max_position_embeddings=8)
    refused("expected at most 7 by the drafter's max_position_embeddings", config=short)
    odd = dataclasses.replace(SETTINGS, batch=3, accumulate=2)
    refused("batch: got 3, expected a multiple of 2", settings=odd)
    foreign = Rows(rows.ids + 60, rows.loss_mask, rows.positions)
    refused("token ids from 60", data=foreign)


def test_tensorboard_needs_a_folder_and_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from leeboard.draft.training import logs

    monkeypatch.setattr(logs, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"leeboard\[tensorboard\]"):
        train(None, tensorboard=True)
    monkeypatch.setattr(logs, "find_spec", lambda name: object())
    with pytest.raises(ValueError, match="tensorboard: got True without out"):
        train(None, tensorboard=True)


def test_settings_default() -> None:
    assert TrainSettings().weights == pytest.approx((1.0, 0.8, 0.64, 0.512))
