"""The convert command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from foreign_checkpoints import (
    EAGLE,
    assert_same,
    embedding_target,
    foreign,
    foreign_tensors,
    write,
)
from leeboard.cli import main
from leeboard.draft import load_drafter


def run_convert(*args: object) -> int:
    return main(["draft", "convert", *map(str, args)])


def test_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = foreign(tmp_path / "source")
    assert run_convert(source, tmp_path / "a", "--layout", "speculators") == 0
    assert "pre-norm drafter, torch.bfloat16, states [1, 2, 4] (outputs" in capsys.readouterr().out
    assert_same(load_drafter(tmp_path / "a"), load_drafter(source))
    options = ("--dtype", "float32", "--set", "sliding_window=16", "--set", "attention_sinks=2")
    assert run_convert(tmp_path / "a", tmp_path / "b", "--layout", "eagle", *options) == 0
    loaded = load_drafter(tmp_path / "b")
    assert loaded.fc.weight.dtype == torch.float32
    assert (loaded.config.sliding_window, loaded.config.attention_sinks) == (16, 2)


def test_convert_takes_the_embedding_of_a_target(tmp_path: Path) -> None:
    model, folder = embedding_target(tmp_path / "target")
    tensors = foreign_tensors()
    del tensors["embed_tokens.weight"]
    source = write(tmp_path / "source", EAGLE, tensors)
    args = (source, tmp_path / "new", "--layout", "eagle", "--target", folder)
    assert run_convert(*args, "--aux-layer-convention", "input") == 0
    loaded = load_drafter(tmp_path / "new")
    assert torch.equal(loaded.embed_tokens.weight, model.get_input_embeddings().weight.bfloat16())
    assert loaded.config.aux_layer_convention == "input"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--set", "norm_output=true"],
            "norm_output cannot be changed: the checkpoint was trained",
        ),
        (["--set", "hidden_size=8"], "hidden_size cannot be changed: the weights depend on it"),
        (["--set", "sliding_window"], "expected FIELD=VALUE"),
        (["--set", "sliding_window=x"], "sliding_window: got 'x', expected JSON"),
        (["--set", "sliding_window=0"], "sliding_window: got 0, expected a positive integer"),
        (["--target", "nowhere"], ""),
    ],
)
def test_convert_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    tensors = foreign_tensors()
    if "--target" in options:
        del tensors["embed_tokens.weight"]
    source = write(tmp_path / "source", EAGLE, tensors)
    assert run_convert(source, tmp_path / "new", "--layout", "eagle", *options) == 1
    assert re.search(f"^leeboard draft convert: .*{message}", capsys.readouterr().err)
    assert not (tmp_path / "new").exists()


def test_convert_does_not_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = foreign(tmp_path / "source")
    before = (source / "config.json").read_bytes()
    assert run_convert(source, source, "--layout", "eagle") == 1
    assert "exists, expected a new or empty folder" in capsys.readouterr().err
    assert (source / "config.json").read_bytes() == before
