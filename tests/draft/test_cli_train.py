"""The command `leeboard draft train`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from chat_tokenizers import CHATML, chat_tokenizer
from drafter_models import make_target
from leeboard._cli import train
from leeboard.cli import main
from leeboard.draft import (
    DrafterConfig,
    Eagle3Drafter,
    MTPConfig,
    MTPHead,
    TrainSettings,
    load_drafter,
    save_drafter,
)
from leeboard.draft.training import logs, settings
from leeboard.draft.training.encoding import TooLong

pytest.importorskip("transformers")
pytest.importorskip("safetensors")
pytest.importorskip("tqdm")

SHORT = ("--length", "64", "--batch", "2", "--ttt", "2", "--threads", "1", "--device", "cpu")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a chat tokenizer."""
    folder = tmp_path_factory.mktemp("target")
    tokenizer = chat_tokenizer(CHATML)
    make_target("llama", vocab_size=320).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    words = "hello there how are you fine thanks the weather is".split()  # noqa: SIM905
    lines = []
    for i in range(12):
        said = " ".join(words[(i * 3 + j * 7) % 10] for j in range(5 + i % 3))
        turns = [{"role": "user", "content": words[i % 10]}, {"role": "assistant", "content": said}]
        lines.append(json.dumps({"messages": turns}))
    file = tmp_path / "chats.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(target: Path | str, data: Path, out: Path, *options: str) -> int:
    common = ("--target", str(target), "--data", str(data), "--out", str(out))
    return main(["draft", "train", *common, *SHORT, *options])


def parsed(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    return parser.parse_args(["--target", "t", "--data", "d", "--out", "o", *options])


def test_defaults_are_those_of_the_settings() -> None:
    fields = {field.name: field.default for field in dataclasses.fields(TrainSettings)}
    assert {name: fields[name] for name in train.DEFAULTS} == train.DEFAULTS
    kinds = {
        "loss": settings.Loss,
        "schedule": settings.Schedule,
        "precision": settings.Precision,
        "too_long": TooLong,
    }
    assert {name: get_args(kind) for name, kind in kinds.items()} == train.CHOICES


def test_every_setting_has_an_option() -> None:
    from leeboard._cli.training import settings_of

    assert settings_of(parsed()) == TrainSettings()
    options = (
        "--steps 7 --epochs 2 --batch 6 --accumulate 3 --length 99 --no-packing --too-long drop "
        "--split-turns --skip-broken --ignore-keys a,b --ttt 2 --step-weights 1,0.5 "
        "--loss lk_alpha --eta 2 --lr 0.01 --schedule linear --warmup 5 --clip 2 --weight-decay 0.1 "
        "--precision bfloat16 --seed 3 --heldout-share 0.2 --evaluate-every 4 "
        "--checkpoint-every 8 --checkpoint-seconds 9"
    )
    expected = TrainSettings(
        steps=7, epochs=2.0, batch=6, accumulate=3, length=99, packed=False, too_long="drop",
        split_turns=True, skip_broken=True, ignore_keys=("a", "b"), ttt=2, step_weights=(1.0, 0.5),
        loss="lk_alpha", eta=2.0, lr=0.01, schedule="linear", warmup=5, clip=2.0, weight_decay=0.1,
        precision="bfloat16", seed=3, heldout_share=0.2, evaluate_every=4, checkpoint_every=8,
        checkpoint_seconds=9.0,
    )  # fmt: skip
    assert settings_of(parsed(*options.split())) == expected
    default = dataclasses.asdict(TrainSettings())
    assert [n for n, v in dataclasses.asdict(expected).items() if v == default[n]] == ["decay"]
    assert settings_of(parsed("--decay", "0.5")).decay == 0.5
    assert settings_of(parsed("--step-weights", "1,1,1")).ttt == 3
    assert settings_of(parsed("--warmup", "0.1")).warmup == 0.1


def test_help_teaches(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        main(["draft", "train", "--help"])
    shown = capsys.readouterr().out
    for word in (
        "--states",
        "torchrun",
        "messages",
        "evaluations.csv",
        "--pre-norm",
        "(default: 4)",
    ):
        assert word in shown
    assert max(map(len, train._DESCRIPTION.splitlines() + train._EPILOG.splitlines())) <= 80


def test_training_from_a_file(
    target: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ("--steps", "6", "--draft-vocab", "200", "--lr", "3e-3", "--set", "head_dim=6")
    assert run(target, chats, out, *options, "--states", str(tmp_path / "states")) == 0
    shown = capsys.readouterr()
    assert "6 steps" in shown.out
    assert "@2" in shown.out
    assert f"leeboard draft eval --target {target} --drafter {out / 'drafter'}" in shown.out
    assert "draft vocabulary: 200 of 320 tokens, 100.00% of those to learn" in shown.err
    assert "12 lines" in shown.err
    assert (tmp_path / "states" / "manifest.json").is_file()
    drafter = load_drafter(out / "drafter")
    assert (drafter.config.head_dim, drafter.config.draft_vocab_size) == (6, 200)
    assert (drafter.config.norm_output, drafter.config.fc_norm) == (True, True)
    log = (out / "log.csv").read_text().splitlines()
    assert log[0].startswith("step,loss,lr,grad_norm,seconds,loss@1,loss@2,accuracy@1")
    assert len(log) == 7

    # The same command again: nothing is left to do; another one is refused, and may begin afresh.
    assert run(target, chats, out, *options) == 0
    assert "resuming after step 6 of 6" in capsys.readouterr().err
    other = (*options[:4], "--lr", "1e-3", *options[6:])
    assert run(target, chats, out, *other) == 2
    assert "settings.lr: it has 0.003, this training 0.001" in capsys.readouterr().err
    assert run(target, chats, out, *other, "--fresh") == 0
    assert (out / "log.csv").read_text().splitlines()[1:] != log[1:]


def test_pre_norm_and_going_on(target: Path, chats: Path, tmp_path: Path) -> None:
    assert run(target, chats, tmp_path / "pre", "--steps", "2", "--pre-norm") == 0
    config = load_drafter(tmp_path / "pre" / "drafter").config
    assert (config.norm_output, config.fc_norm) == (False, False)
    more = ("--init", str(tmp_path / "pre" / "drafter"), "--steps", "1", "--warmup", "0")
    assert run(target, chats, tmp_path / "more", *more) == 0
    assert load_drafter(tmp_path / "more" / "drafter").config == config


def test_mtp_heads(target: Path, chats: Path, tmp_path: Path) -> None:
    options = ("--steps", "2", "--mtp", "deepseek_v3", "--set", "heads=2")
    assert run(target, chats, tmp_path / "out", *options) == 0
    head = load_drafter(tmp_path / "out" / "drafter")
    assert isinstance(head, MTPHead)
    assert (head.config.convention, head.config.heads) == ("deepseek_v3", 2)


def test_broken_lines(
    target: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = chats.read_text().splitlines()
    lines[4] = lines[4][:-3]
    lines[7] = '{"messages": [{"role": "user", "content": "hello"}]}'
    chats.write_text("\n".join(lines))
    assert run(target, chats, tmp_path / "out", "--steps", "1") == 2
    assert "chats.jsonl, line 5: broken JSON" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run(target, chats, tmp_path / "out", "--steps", "1", "--skip-broken") == 0
    said = capsys.readouterr().err
    assert "2 skipped: line 5 (broken JSON" in said
    assert "line 8 (messages: no assistant turn" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--set", "norm_outptu=true"), "--set: got ['norm_outptu'], expected fields"),
        (("--set", "num_key_value_heads=3"), "num_key_value_heads: got 3"),
        (("--draft-vocab", "999"), "draft_vocab_size: got 999"),
        (("--pre-norm", "--set", "fc_norm=true"), "--set: got fc_norm=True, but another option"),
        (("--mtp", "mimo", "--draft-vocab", "9"), "--draft-vocab: given with --mtp"),
        (("--ttt", "3", "--step-weights", "1,1"), "step_weights: got 2 of them"),
        (("--lr", "0"), "lr: got 0.0"),
        (("--heldout", "nowhere.jsonl"), "nowhere.jsonl: not found"),
        (("--init", "nowhere"), "nowhere: not found"),
        (("--length", "4096"), "expected at most 127"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_options_that_do_not_fit(
    target: Path,
    chats: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    if options[0] == "--length":
        # One chat that is longer than the target takes.
        long = " ".join(["hello there"] * 400)
        turns = [{"role": "user", "content": "you"}, {"role": "assistant", "content": long}]
        chats.write_text(json.dumps({"messages": turns}) + "\n")
    assert run(target, chats, tmp_path / "out", *options) == 2
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("leeboard draft train: ")
    assert message in said
    assert not (tmp_path / "out").exists()


def test_checkpoints_that_do_not_fit(
    target: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of another architecture, and of a drafter for another target."""
    assert run(target, chats, tmp_path / "out", "--init", str(target)) == 2
    assert "config.json" in capsys.readouterr().err
    other = make_target("llama", vocab_size=99)
    save_drafter(Eagle3Drafter(DrafterConfig.for_target(other.config)), tmp_path / "other")
    assert run(target, chats, tmp_path / "out", "--init", str(tmp_path / "other")) == 2
    assert "vocab_size is 99, expected 320" in capsys.readouterr().err
    assert run("./nowhere", chats, tmp_path / "out") == 2
    assert "./nowhere: not found" in capsys.readouterr().err


def test_tensorboard_missing(
    target: Path,
    chats: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logs, "find_spec", lambda name: None)
    assert run(target, chats, tmp_path / "out", "--tensorboard") == 2
    assert 'pip install "leeboard[tensorboard]"' in capsys.readouterr().err


def test_a_signal_says_how_to_go_on(
    target: Path,
    chats: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from leeboard._cli import training

    whole = training.train_drafter

    def stopped(*args: Any, **given: Any) -> Any:
        def on_step(step: int, values: Any) -> None:
            if step == 1:
                os.kill(os.getpid(), signal.SIGTERM)

        return whole(*args, **given, on_step=on_step)

    monkeypatch.setattr(training, "train_drafter", stopped)
    assert run(target, chats, tmp_path / "out", "--steps", "5") == 128 + signal.SIGTERM
    assert "stopped after step 2" in capsys.readouterr().err
    monkeypatch.undo()
    assert run(target, chats, tmp_path / "out", "--steps", "5") == 0
    assert "resuming after step 2 of 5" in capsys.readouterr().err


def test_configs_of_options() -> None:
    from leeboard._cli.training import config_of

    target = make_target("llama").config
    assert config_of(parsed(), target) == DrafterConfig.for_target(target)
    given = (
        "--set",
        "aux_layer_ids=[0,2,4]",
        "--set",
        'rope_scaling={"rope_type":"linear","factor":2}',
    )
    config = config_of(parsed(*given, "--set", "sliding_window=8"), target)
    assert isinstance(config, DrafterConfig)
    assert (config.aux_layer_ids, config.sliding_window) == ((0, 2, 4), 8)
    assert config.rope_scaling is not None
    head = config_of(parsed("--mtp", "mimo", "--set", "recycle=pre"), target)
    assert head == MTPConfig.for_target(target, "mimo", recycle="pre")
