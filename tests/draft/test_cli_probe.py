"""The command `leeboard draft probe`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from drafter_models import make_target
from leeboard._cli import probe as parser
from leeboard.cli import main
from leeboard.draft import DrafterConfig, Eagle3Drafter, save_drafter
from leeboard.draft.probe import CONDITIONS
from leeboard.scenarios.acceptance import acceptance_of

TEMPLATE = "{{ bos_token }}{% for m in messages %} {{ m['role'] }} {{ m['content'] }}{% endfor %} assistant"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a target, its tokenizer and two drafters."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("models")
    target = make_target("llama")
    target.save_pretrained(folder / "target")
    names = ["<s>", "user", "assistant", "person", "helper"]
    words = {name: i for i, name in enumerate([*names, *(f"w{i}" for i in range(5, 61))])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w5"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="w5", bos_token="<s>", chat_template=TEMPLATE
    ).save_pretrained(folder / "target")
    torch.manual_seed(0)
    for name, on in (("old", False), ("new", True)):
        drafter = Eagle3Drafter(DrafterConfig.for_target(target.config, norm_output=on, fc_norm=on))
        drafter.copy_from_target(target)
        save_drafter(drafter, folder / name)
    chats = [{"messages": [{"role": "user", "content": f"w{i} w{i + 1}"}]} for i in (7, 30, 40)]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    (folder / "plain.txt").write_text("w7 w8\nw9\n")
    return folder


def options(models: Path, *more: object, drafters: tuple[str, ...] = ("new",)) -> list[str]:
    given: list[object] = ["--target", models / "target", "--max-new-tokens", 12, "--depth", 3]
    for name in drafters:
        given += ["--drafter", models / name]
    return ["draft", "probe", *map(str, [*given, "--resamples", 50, *more])]


def test_whole_command(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    more = ["--prompts", models / "chats.jsonl", "--train-length", 30, "--lengths", "1,2"]
    more += ["--force", "norm_output=true", "--noise", "0.5", "--batch", 2]
    more += ["--json", tmp_path / "probe.json", "--plot", tmp_path / "probe.png"]
    assert main(options(models, *more, drafters=("old", "new"))) == 0
    shown = capsys.readouterr()
    assert "TEST, not a way to run a drafter" in shown.err
    for text in ("old, template as trained", "new - old", "roles renamed", "window + sink"):
        assert text in shown.out
    figures = json.loads((tmp_path / "probe.json").read_text())
    assert list(figures["ways"]) == ["old", "new"]
    assert list(figures["drafters"]["old"]["conditions"]) == list(CONDITIONS)
    assert list(figures["drafters"]["old"]["context"]["window"]) == ["30", "60"]
    assert list(figures["drafters"]["old"]["forced"]) == ["norm_output=true"]
    assert acceptance_of(tmp_path / "probe.json", "new").by_depth
    assert (tmp_path / "probe.png").stat().st_size > 0


def test_plain_prompts_and_a_name(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--prompts", models / "plain.txt", "--noise", "none", "--no-attention"]
    given = [f"--drafter=mine={models / 'new'}", *map(str, more)]
    assert main(options(models, *given, drafters=())) == 0
    shown = capsys.readouterr().out
    assert "mine, template as trained" in shown
    assert "no_template: left out, prompts are strings" in shown
    assert "less than 8 away" not in shown


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--prompts", "{}/nothing"], "nothing: not found"),
        ([], "--prompts: missing"),
        (["--demo", "x", "--prompts", "{}/chats.jsonl"], "--demo: it was given with --target"),
        (["--prompts", "{}/chats.jsonl", "--window", "9"], "--window: is for long texts"),
        (["--prompts", "{}/chats.jsonl", "--force", "fc_norm=true"], "--force fc_norm: expected"),
        (["--prompts", "{}/chats.jsonl", "--json", "{}"], "is a folder"),
        (["--prompts", "{}/chats.jsonl", "--drafter", "{}/new"], "two are called 'new'"),
        (["--prompts", "{}/chats.jsonl", "--max-new-tokens", "126"], "prompt 1 .matched.: 5 tokens"),
        (["--prompts", "{}/chats.jsonl", "--train-length", "13"], "leave no room for 12 new"),
    ],
)  # fmt: skip
def test_refuses(
    models: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    given = [text.replace("{}", str(models)) for text in more]
    assert main(options(models, *given)) == 2
    error = capsys.readouterr().err
    assert error.startswith("leeboard draft probe: ")
    assert re.search(message, error)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--conditions", "no_boss"], "expected some of matched"),
        (["--noise", "-1"], "expected positive numbers, or none"),
        (["--force", "norm_output"], "expected NAME=VALUE"),
        (["--depth", "0"], "expected an integer from 1 up"),
    ],
)
def test_options_refuse(capsys: pytest.CaptureFixture[str], given: list[str], message: str) -> None:
    with pytest.raises(SystemExit):
        main(["draft", "probe", *given])
    assert message in capsys.readouterr().err


def test_help_teaches_without_torch() -> None:
    code = (
        "import sys\nfrom leeboard.cli import main\n"
        "try:\n    main(['draft', 'probe', '--help'])\n"
        "except SystemExit as done:\n    assert done.code == 0\n"
        "assert not {'torch', 'numpy', 'transformers', 'matplotlib'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for text in ("examples:", "how to read the table:", "leeboard plan speculation"):
        assert text in done.stdout
    assert parser.CONDITIONS == CONDITIONS
