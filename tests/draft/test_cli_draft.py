"""The commands `leeboard draft bench` and `leeboard draft eval`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from drafter_models import make_target, tiny_config, tiny_drafter
from leeboard._cli import bench, heads
from leeboard._cli.evaluate import read_prompts
from leeboard.cli import main
from leeboard.draft import DrafterConfig, Eagle3Drafter, save_drafter

TINY = {
    "vocab_size": 300,
    "draft_vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "target_hidden_size": 64,
    "aux_layer_ids": (1, 2, 3),
    "aux_layer_convention": "input",
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    "command",
    [
        ["draft"],
        ["draft", "bench"],
        ["draft", "convert"],
        ["draft", "eval"],
        ["draft", "train"],
        [],
    ],
)
def test_help_does_not_import_torch(command: list[str]) -> None:
    code = (
        "import sys\nfrom leeboard.cli import main\n"
        f"try:\n    main({[*command, '--help']!r})\n"
        "except SystemExit as done:\n    assert done.code == 0\n"
        "assert not {'torch', 'numpy', 'transformers'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: leeboard")


@pytest.fixture
def tiny_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(heads.HEADS, "tiny", TINY)


def run_bench(*options: str) -> int:
    common = ("--config", "tiny", "--context", "9", "--steps", "4", "--quick")
    return main(["draft", "bench", *common, *options])


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.usefixtures("tiny_head")
def test_bench(tmp_path: Path, capsys: pytest.CaptureFixture[str], batch: int) -> None:
    file = tmp_path / "figures.json"
    options = ("--formats", "float32,bfloat16,int8,int4", "--no-compile", "--batch", str(batch))
    assert run_bench(*options, "--json", str(file)) == 0
    shown = capsys.readouterr().out
    figures = json.loads(file.read_text())
    names = [f"leeboard {f}" for f in ("float32", "bfloat16", "int8", "int4")]
    assert [way["name"] for way in figures["ways"]] == [*names, "eager float32"]
    bytes_of = {way["name"]: way["weight_bytes"] for way in figures["ways"]}
    matrices = 128 * 64 * 2 + 128 * 32 * 2 - 128 * 64 + 64 * 64 + 3 * 64 * 96 + 200 * 64
    assert bytes_of["eager float32"] == bytes_of["leeboard float32"] == 4 * (matrices + 4 * 64)
    assert bytes_of["leeboard bfloat16"] == 2 * (matrices + 4 * 64)
    assert bytes_of["leeboard int8"] < bytes_of["leeboard bfloat16"]
    for way in figures["ways"]:
        assert way["name"] in shown
        assert len(way["seconds_per_chain"]) == 3
        assert way["speedup_over_eager"] > 0
    assert figures["ways"][-1]["speedup_over_eager"] == 1
    assert (figures["context"], figures["steps"], figures["batch"]) == (9, 4, batch)
    assert figures["read_bandwidth"] > 0


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_head")
def test_bench_compiles(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    assert run_bench("--formats", "bfloat16", "--json", str(file)) == 0
    figures = json.loads(file.read_text())
    assert not figures["problems"]
    assert figures["ways"][-1]["name"] == "compile bfloat16"


@pytest.mark.usefixtures("tiny_head")
def test_bench_believes_no_wrong_way(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = bench.draft_chain

    def wrong(*given: Any) -> Any:
        draft = chain(*given)
        draft.tokens[:, 2] = (draft.tokens[:, 2] + 1) % 200
        return draft

    monkeypatch.setattr(bench, "draft_chain", wrong)
    assert run_bench("--formats", "int8", "--no-compile") == 1
    assert "leeboard int8: at step 3 its token is" in capsys.readouterr().err


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"norm_output": False, "fc_norm": False},
        {"norm_before_residual": True, "fc_norm": False},
        {"sliding_window": 4, "attention_sinks": 1},
    ],
)
def test_bench_of_a_checkpoint(tmp_path: Path, overrides: dict[str, Any]) -> None:
    """The plain step and the check follow the checkpoint's switches."""
    pytest.importorskip("safetensors")
    save_drafter(tiny_drafter(draft_vocab_size=23, **overrides), tmp_path / "drafter")
    options = ("--context", "9", "--steps", "3", "--quick", "--no-compile", "--formats", "float32")
    assert main(["draft", "bench", "--config", str(tmp_path / "drafter"), *options]) == 0


@pytest.mark.usefixtures("tiny_head")
def test_bench_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["draft", "bench", "--config", "nothing"]) == 1
    message = "leeboard draft bench: --config: got 'nothing', expected a folder or one of llama3"
    assert message in capsys.readouterr().err
    assert run_bench("--context", "61") == 1
    assert "--context: 61 + 4 steps, expected at most 64" in capsys.readouterr().err
    for options in (["--formats", "int2"], ["--steps", "0"]):
        with pytest.raises(SystemExit):
            run_bench(*options)
        assert "expected" in capsys.readouterr().err


def test_heads_are_drafters() -> None:
    for fields in heads.HEADS.values():
        DrafterConfig(**fields)
    with pytest.raises(ValueError, match="vocab_size"):
        tiny_config(vocab_size=0)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a target, its tokenizer and a drafter."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("models")
    target = make_target("llama")
    target.save_pretrained(folder / "target")
    words = {f"w{i}": i for i in range(61)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="w0",
        chat_template="{% for m in messages %}w1 {{ m['content'] }} {% endfor %}w2",
    ).save_pretrained(folder / "target")
    torch.manual_seed(0)
    drafter = Eagle3Drafter(DrafterConfig.for_target(target.config))
    drafter.copy_from_target(target)
    save_drafter(drafter, folder / "drafter")
    prompts = [
        {"prompt": "w5 w6 w7"},
        {"text": "w9"},
        {"messages": [{"role": "user", "content": "w3 w4"}]},
    ]
    lines = "\n".join(json.dumps(prompt) for prompt in prompts)
    (folder / "prompts.jsonl").write_text(lines + "\n\n")
    return folder


@pytest.mark.parametrize(("temperature", "batch"), [(0, 1), (0, 2), (1.5, 3)])
def test_eval(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], temperature: float, batch: int
) -> None:
    options = ["--target", models / "target", "--drafter", models / "drafter"]
    options += ["--prompts", models / "prompts.jsonl", "--max-new-tokens", 12, "--depth", 3]
    options += ["--temperature", temperature, "--batch", batch, "--quantize", "int8,int4"]
    options += ["--json", tmp_path / "figures.json"]
    assert main(["draft", "eval", *map(str, options)]) == 0
    shown = capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert list(figures["ways"]) == ["drafter", "drafter int8", "drafter int4"]
    assert figures["alone"]["new_tokens"] == 36
    for name, way in figures["ways"].items():
        assert name in shown
        assert way["new_tokens"] == 36
        assert way["tau"] == way["mean_accepted"] + 1
        assert way["equal_to_greedy"] == (3 if temperature == 0 else None)
        assert len(way["acceptance_by_depth"]) == 3
    sizes = [way["nbytes"] for way in figures["ways"].values()]
    assert sizes[0] > max(sizes[1:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], r"results\.json: not found; give --target"),
        (["--target", "x"], "--drafter: missing, expected a folder"),
        (["--target", "x", "--drafter", "y"], "--prompts: missing"),
        (["--target", "x", "--drafter", "y", "--prompts", "z"], "x: not found"),
        (["--target", "x", "--drafter", "y", "--demo", "z"], "--demo: it was given with --target"),
        (["--temperature", "-1"], "--temperature: got -1.0"),
    ],
)
def test_eval_refuses(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["draft", "eval", *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("leeboard draft eval: ")
    assert re.search(message, error)


def test_prompts(tmp_path: Path) -> None:
    plain, lines = tmp_path / "p.txt", tmp_path / "p.jsonl"
    plain.write_text("one\n\n{two}\n")
    assert read_prompts(plain) == ["one", "{two}"]
    for bad in ("{", "[1]", "3", '{"prompt": 3}', '{"prompt": "a", "text": "b"}', "{}"):
        lines.write_text('{"prompt": "fine"}\n' + bad)
        with pytest.raises(ValueError, match="line 2: "):
            read_prompts(lines)
    lines.write_text("\n")
    with pytest.raises(ValueError, match="no prompts"):
        read_prompts(lines)
