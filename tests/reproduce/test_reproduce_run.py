"""What is trained, when it ends, and a whole run of the smallest size."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leeboard.demo.corpus import Function, standard_library
from leeboard.demo.tokens import ASST, BOS, EOT, USER, Documents
from leeboard.reproduce.formats import choose, in_condition, long_contexts, mixture
from leeboard.reproduce.matching import UntilEqual
from leeboard.reproduce.settings import CONDITIONS, PRESETS, Arm, Settings

SETTINGS = dataclasses.replace(
    PRESETS["quick"],
    warmup_steps=2,
    check_every=5,
    smooth=2,
    threshold=0.5,
    most_steps=40,
)


class Words:
    """A tokenizer of whole words."""

    def encode(self, text: str) -> Any:
        ids = [10 + sum(word.encode()) % 50 for word in text.split()]
        return type("Encoding", (), {"ids": ids})()


def test_the_target_learns_all_formats() -> None:
    # <bos> <user> 7 8 <asst> 9 <eot>
    document = [BOS, USER, 7, 8, ASST, 9, EOT]
    whole = Documents(np.array(document, dtype=np.uint16), np.array([0, 7]), np.array([5]))
    mixed = mixture(whole)
    bounds = zip(mixed.starts[:-1], mixed.starts[1:], mixed.answers, strict=True)
    forms = [(mixed.ids[a:b].tolist(), int(answer - a)) for a, b, answer in bounds]
    raw = [7, 8, 9, EOT]
    assert forms == [(document, 5), (document, 5), ([BOS, *raw], 3), (raw, 2)]


def test_conditions() -> None:
    assert {name: in_condition([7, 8], name) for name in CONDITIONS} == {
        "template + BOS": [BOS, USER, 7, 8, ASST],
        "template, no BOS": [USER, 7, 8, ASST],
        "raw + BOS": [BOS, 7, 8],
        "raw": [7, 8],
    }


def functions(files: int, each: int) -> list[Function]:
    return [
        Function(f"f{f}.py", f"g{g}", f"def g{g} file {f}", "x = 1\n" * 20, documented=True)
        for f in range(files)
        for g in range(each)
    ]


def test_no_file_is_used_for_prompts_and_for_checks() -> None:
    settings = dataclasses.replace(SETTINGS, prompts=9, checks=3)
    # The file's number is the last word.
    prompts, checks = choose(functions(8, 2), Words(), settings)
    assert (len(prompts), len(checks)) == (9, 3)
    assert not {ids[-1] for ids in prompts} & {ids[-1] for ids in checks}
    # One function of each file before any file's second: 6 files for 9 prompts.
    assert len({ids[-1] for ids in prompts}) == 6
    with pytest.raises(ValueError, match="prompts: got 99, expected at most"):
        choose(functions(8, 2), Words(), dataclasses.replace(settings, prompts=99))


def test_long_contexts_are_the_same_prompt_behind_more_and_more() -> None:
    settings = dataclasses.replace(SETTINGS, row=64, context_tokens=24, buckets=4, contexts=5)
    files = []
    for file in range(3):
        documents = [[100 * file + i] * (12 + i % 5) for i in range(40)]
        files.append((documents, [document[:6] for document in documents]))
    buckets = long_contexts(files, settings)
    assert [len(bucket) for bucket in buckets] == [5] * 4
    for number, bucket in enumerate(buckets):
        for prompt, shorter in zip(bucket, buckets[0], strict=True):
            assert number * 64 <= len(prompt) <= number * 64 + 40
            assert prompt[-6:] == shorter[-6:]
            # Of one file, in its order.
            assert prompt == sorted(prompt)
            assert prompt[0] // 100 == prompt[-1] // 100
    with pytest.raises(ValueError, match="contexts: got 999, expected at most"):
        long_contexts(files, dataclasses.replace(settings, contexts=999))


def play(course: UntilEqual, acceptance: Any, first: int = 0, until: int = 200) -> int:
    """How many steps a loop would do."""
    for step in range(first, until):
        done = step + 1
        if done % SETTINGS.check_every == 0:
            course.check(done, acceptance(done))
            if course.ended(done):
                return done
    return until


def test_training_ends_at_the_common_acceptance(tmp_path: Path) -> None:
    def learns(done: int) -> float:
        return done / 40

    path = tmp_path / "matching.json"
    steps = play(UntilEqual(SETTINGS, path), learns)
    record = json.loads(path.read_text())
    # Means of two checks: 0.4375 after 20 steps, 0.5625 after 25.
    assert steps == record["ended"] == 25
    assert record["reached"] is True
    assert record["level"] == pytest.approx(0.5625)

    # Interrupted anywhere it goes on alike; what was noted after the checkpoint happens again.
    for stop, resumed in ((13, 11), (24, 24), (25, 19)):
        other = tmp_path / f"{stop}-{resumed}.json"
        assert play(UntilEqual(SETTINGS, other), learns, until=stop) == stop
        assert play(UntilEqual(SETTINGS, other), learns, first=resumed) == steps
        assert json.loads(other.read_text()) == record


def test_an_arm_that_does_not_get_there_ends_all_the_same(tmp_path: Path) -> None:
    course = UntilEqual(SETTINGS, tmp_path / "matching.json")
    assert play(course, lambda done: 0.3) == 40
    assert course.record()["reached"] is False
    assert course.record()["ended"] == 40

    anchor = dataclasses.replace(SETTINGS, threshold=None, anchor_steps=20).anchor
    course = UntilEqual(anchor, tmp_path / "anchor.json")
    assert play(course, lambda done: done / 100) == 20
    assert course.level == pytest.approx((0.15 + 0.2) / 2)


TINY = Settings(
    preset="quick",
    seeds=1,
    arms=("pre", "norm_output+fc_norm"),
    ttt=(2,),
    heldout_share=0.4,
    vocab_size=600,
    layers=4,
    hidden_size=32,
    intermediate_size=64,
    heads=2,
    target_tokens=8192,
    target_row=256,
    target_batch=4,
    pool_rows=40,
    row=128,
    buckets=2,
    batch=4,
    warmup_steps=2,
    check_every=2,
    smooth=2,
    anchor_steps=4,
    most_steps=6,
    depth=6,
    prompts=3,
    checks=2,
    prompt_tokens=112,
    new_tokens=16,
    contexts=1,
    context_tokens=16,
    context_depth=3,
    window=32,
    noise=(0.5,),
    noise_prompts=2,
)


@pytest.mark.slow
def test_a_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage, two arms, results and page; then all from the cache; then a worker process."""
    pytest.importorskip("transformers")
    from leeboard.reproduce.pipeline import Reproduction
    from leeboard.reproduce.report import text

    monkeypatch.setattr(
        "leeboard.demo.corpus.standard_library", lambda: standard_library() / "email"
    )
    said: list[str] = []

    def run(**options: Any) -> dict[str, Any]:
        said.clear()
        made = Reproduction(TINY, tmp_path, threads=1, say=said.append, **options).run()
        assert made[1] == []
        return made[0]

    found = run(workers=0)
    assert len(said) == 7
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(found))
    assert [t["steps"] % TINY.check_every for t in found["trainings"]] == [0, 0]
    for training in found["trainings"]:
        assert 0 < training["steps"] == training["ended"] <= TINY.most_steps
    pre, post = found["figures"]
    assert set(pre["accepted"]) - set(post["accepted"]) == {"norm_output forced"}
    assert len(pre["rms"]) == TINY.depth
    verdicts = {claim["name"]: claim["verdict"] for claim in found["claims"]}
    assert verdicts["fc_norm alone, TTT 2"] == "not measured"
    assert verdicts["Negative control, TTT 2"] != "not measured"
    assert "too small to answer anything" in text(found, {})
    left = [p.name for p in tmp_path.rglob("*") if "partial" in p.name or "progress" in p.name]
    assert left == []

    again = run(workers=0)
    assert all("cached" in line for line in said)
    assert again["figures"] == found["figures"]

    # The same weights and counts from another process.
    (arm,) = (tmp_path / "stages").glob(f"arm-{Arm('pre', 2, 0).slug}-*")
    before = (arm / "readings.json").read_text()
    for file in arm.iterdir():
        file.unlink()
    arm.rmdir()
    redone = run(workers=1)
    assert (arm / "readings.json").read_text() == before
    assert redone["claims"] == found["claims"]


def own_model(folder: Path) -> None:
    """A tiny target with a tokenizer and a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<bos>", "<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["how are you today, I am fine"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<bos>", eos_token="<end>")
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }}<end>{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


@pytest.mark.slow
def test_a_target_and_chats_of_ones_own(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from leeboard.reproduce.given import Given
    from leeboard.reproduce.pipeline import Reproduction
    from leeboard.reproduce.report import write_docs

    own_model(tmp_path / "model")
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"how are you today, number {n}"},
                {"role": "assistant", "content": "I am fine, " * (1 + n % 4)},
            ]
        }
        for n in range(40)
    ]
    data = tmp_path / "chats.jsonl"
    data.write_text("\n".join(map(json.dumps, chats)))
    settings = dataclasses.replace(TINY, target_row=256, prompts=4)

    given = Given(str(tmp_path / "model"), data)

    def prepared(settings: Settings, name: str) -> Reproduction:
        return Reproduction(
            settings, tmp_path / name, threads=1, workers=0, given=given, say=lambda line: None
        )

    found, failures = prepared(settings, "out").run()
    assert failures == []
    assert set(found["figures"][0]["accepted"]) >= set(CONDITIONS)
    (tmp_path / "docs").mkdir()
    page = write_docs(found, tmp_path / "docs").read_text()
    assert "| chats | chats.jsonl |" in page
    assert str(tmp_path) not in page
    greedy = prepared(dataclasses.replace(settings, prompts=100), "other")
    with pytest.raises(ValueError, match="held-out chats have a prompt of at most"):
        greedy.run()
