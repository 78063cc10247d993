"""`probe`: perturbed prompts, noise, forced switches, long texts, and what comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drafter_models import make_target
from leeboard.draft import DrafterConfig, Eagle3Drafter, speculate
from leeboard.draft.probe import CONDITIONS, ProbeResult, PromptSet, Texts, looping, probe
from leeboard.draft.probe.conditions import NotApplicable, prompt_set, renamed
from leeboard.draft.probe.context import long_prompts
from leeboard.draft.probe.variants import forced, noise, with_config
from leeboard.scenarios.acceptance import acceptance_of

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

CHATS = [
    [{"role": "user", "content": f"w{20 + i} w{21 + i} w{22 + 2 * i}"}, *more]
    for i, more in enumerate([[], [], [], [{"role": "assistant", "content": "w9"}]])
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Words; a template with a begin-of-sequence token and named roles."""
    names = ["<s>", "user", "assistant", "person", "helper", ":"]
    words = {name: i for i, name in enumerate([*names, *(f"w{i}" for i in range(6, 61))])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w6"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="w6",
        bos_token="<s>",
        chat_template="<s> {% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {% endfor %}"
        "assistant :",
    )


@pytest.fixture(scope="module")
def target() -> Any:
    return make_target("llama")


@pytest.fixture(scope="module")
def drafters(target: Any) -> dict[str, Eagle3Drafter]:
    found = {}
    for name, on in (("pre", False), ("post", True)):
        torch.manual_seed(3)
        config = DrafterConfig.for_target(target.config, norm_output=on, fc_norm=on)
        found[name] = Eagle3Drafter(config).requires_grad_(False)
        found[name].copy_from_target(target)
    return found


@pytest.fixture(scope="module")
def result(target: Any, drafters: dict[str, Eagle3Drafter], tokenizer: Any) -> ProbeResult:
    return probe(
        target,
        drafters,
        CHATS,
        tokenizer=tokenizer,
        depth=4,
        new_tokens=20,
        noise_levels=(0.5, 2.0),
        force={"norm_output": True},
        train_length=40,
        batch=3,
        resamples=200,
    )


def test_conditions_are_what_they_say(tokenizer: Any) -> None:
    ids = prompt_set([CHATS[3]], tokenizer).ids
    texts = {name: tokenizer.decode(prompts[0]) for name, prompts in ids.items()}
    assert texts == {
        "matched": "<s> user : w23 w24 w28 assistant : w9 assistant :",
        "no_bos": "user : w23 w24 w28 assistant : w9 assistant :",
        "no_template": "<s> w23 w24 w28 w9",
        "no_template_no_bos": "w23 w24 w28 w9",
        "renamed_roles": "<s> person : w23 w24 w28 helper : w9 helper :",
    }


def test_contents_keep_their_words() -> None:
    """A role's name inside a message is no role."""
    messages = [{"role": "user", "content": "a user"}, {"role": "user", "content": "user"}]

    def render(chat: Any) -> str:
        return "".join(f"|{m['role']}|{m['content']}" for m in chat) + "|assistant|"

    assert renamed(render, messages) == "|person|a user|person|user|helper|"
    with pytest.raises(NotApplicable, match="name the roles"):
        renamed(lambda chat: "".join(m["content"] for m in chat), messages)
    stripped = renamed(lambda c: f"<user>{c[0]['content'].strip()}", [{"content": " a "}])
    assert stripped == "<person>a"
    with pytest.raises(NotApplicable, match="changes the messages"):
        renamed(lambda chat: "user" + chat[0]["content"].upper(), messages)


def test_what_does_not_apply_is_left_out_and_said(tokenizer: Any) -> None:
    strings = prompt_set(["w7 w8"], tokenizer)
    assert list(strings.ids) == ["matched"]
    assert [note.partition(":")[0] for note in strings.notes] == list(CONDITIONS[1:])
    assert list(prompt_set([[0, 7], [0, 8]], tokenizer).ids) == ["matched", "no_bos"]
    assert list(prompt_set([[7, 8]]).ids) == ["matched"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompts": []}, "prompts: got none"),
        ({"prompts": ["w7"], "tokenizer": None}, "tokenizer: missing"),
        ({"conditions": ["no_boss"]}, "conditions: got 'no_boss'"),
        ({"prompts": [[]], "tokenizer": None}, "tokenizer: missing"),
    ],
)
def test_prompts_refuse(tokenizer: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prompt_set(**{"prompts": ["w7"], "tokenizer": tokenizer, **given})
    with pytest.raises(ValueError, match="'matched' among them"):
        PromptSet({"no_bos": [[1]]})
    with pytest.raises(ValueError, match="as many in every condition"):
        PromptSet({"matched": [[1]], "no_bos": []})


def test_long_prompts_have_history_and_begin_as_before() -> None:
    ids = torch.tensor([[0, 11, 12, 13, 14, 9], [0, 21, 22, 23, 9, 9]])
    texts = Texts(ids, torch.tensor([3, 2]), torch.tensor([5, 4]))
    assert long_prompts(texts, 6, 0) == [[0, 21, 22, 23, 11, 12], [0, 11, 12, 13, 14, 21]]
    assert long_prompts(texts, 5, 0) == [[0, 22, 23, 11, 12], [0, 12, 13, 14, 21]]
    # Texts go round as often as needed; a prompt that is too long loses its oldest tokens.
    assert long_prompts(texts, 9, 0)[0] == [0, 12, 13, 14, 21, 22, 23, 11, 12]
    assert long_prompts(texts, 2, 0) == [[0, 12], [0, 21]]
    # Without a begin-of-sequence token the first one is a part of the template.
    for bos in (None, 7):
        assert long_prompts(texts, 7, bos)[0] == [0, 21, 22, 23, 0, 11, 12]
    with pytest.raises(ValueError, match="length: got 1"):
        long_prompts(texts, 1)


def test_loops() -> None:
    rng = np.random.default_rng(0)
    lively = rng.integers(0, 1000, 96).tolist()
    assert not looping(lively)
    for period in (1, 7, 16):
        for at in (0, 30, 64):
            turning = list(lively)
            turning[at : at + 32] = (lively[:period] * 32)[:32]
            assert looping(turning)
            turning[at + 15] = -1
            assert not looping(turning)
    assert not looping(lively[:17] * 6)
    assert not looping([1] * 31)


def test_variants_leave_the_drafter_alone(drafters: dict[str, Eagle3Drafter]) -> None:
    before = drafters["pre"].config
    other = with_config(drafters["pre"], sliding_window=4, attention_sinks=1)
    assert drafters["pre"].config is before
    assert other.config.sliding_window == 4
    assert other.head_weight is drafters["pre"].head_weight
    with pytest.raises(ValueError, match="has no recycle"):
        forced(drafters["pre"], {"recycle": "pre"})
    with pytest.raises(ValueError, match="force: got 'fc_norm'"):
        forced(drafters["pre"], {"fc_norm": True})


def test_noise_is_as_large_as_it_says() -> None:
    state = torch.randn(3, 50, 64) * torch.logspace(-3, 3, 50)[:, None]
    feed, again = noise(0.5, seed=1), noise(0.5, seed=1)
    added = feed(1, state) - state
    ratio = added.square().mean(-1).sqrt() / state.square().mean(-1).sqrt()
    assert float(ratio.mean()) == pytest.approx(0.5, rel=0.02)
    assert torch.equal(added, again(1, state) - state)
    assert not torch.equal(feed(2, state) - state, added), "every step draws anew"


def test_probe_tells_what_decoding_does(
    target: Any, drafters: dict[str, Eagle3Drafter], tokenizer: Any, result: ProbeResult
) -> None:
    """In every condition."""
    for condition, prompts in prompt_set(CHATS, tokenizer).ids.items():
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        for name, drafter in drafters.items():
            real = speculate(target, drafter, ids, attention_mask=mask, max_new_tokens=20, depth=4)
            tally = result.drafters[name].conditions[condition].tally
            assert tally.accepted.tolist() == [sum(found) for found in real.accepted_by_sequence]
            assert tally.rounds.tolist() == [len(found) for found in real.accepted_by_sequence]


def test_result_holds_all_that_was_asked_for(result: ProbeResult) -> None:
    for name, found in result.drafters.items():
        assert list(found.conditions) == list(CONDITIONS)
        assert list(found.noise) == [0.5, 2.0]
        assert list(found.forced) == (["norm_output=true"] if name == "pre" else [])
        assert {v: list(m) for v, m in found.context.items()} == {
            variant: [40, 80, 120] for variant in ("full", "window", "window + sink")
        }
        for measured in found.conditions.values():
            figures = measured.tally.figures()
            for rows in figures["rows"].values():
                assert rows["count"][0] == 4 * 19
                for j in range(4):
                    for share in ("hit", "sink", "prompt", "own", "recent"):
                        assert rows[share][j] is None or 0.0 <= rows[share][j] <= 1.0 + 1e-5
                assert rows["own"][0] == 0.0
                assert rows["own_per_key"][0] is None
                assert rows["own_per_key"][3] in (
                    None,
                    pytest.approx(rows["own"][3] and rows["own"][3] / 3),
                )
    forced_ = result.drafters["pre"].forced["norm_output=true"].tally.figures()
    plain = result.drafters["pre"].conditions["matched"].tally.figures()
    assert forced_["rows"]["all"]["rms"] != plain["rows"]["all"]["rms"]
    assert "context of 160 tokens: left out" in " ".join(result.notes)
    assert "post: nothing forced" in " ".join(result.notes)


def test_json_is_read_by_the_planner(result: ProbeResult, tmp_path: Path) -> None:
    result.to_json(tmp_path / "probe.json")
    written = json.loads((tmp_path / "probe.json").read_text())
    assert written == json.loads(json.dumps(result.to_dict()))
    for name in result.drafters:
        read = acceptance_of(tmp_path / "probe.json", name)
        shares = written["ways"][name]["acceptance_by_depth"]
        assert list(read.by_depth) == [share for share in shares if share is not None]
        assert written["ways"][name]["tau"] == written["ways"][name]["mean_accepted"] + 1
    entry = written["drafters"]["pre"]["conditions"]["no_bos"]
    assert set(entry["ratio_to_matched"]) == {"value", "low", "high"}
    assert entry["without_loops"]["prompts"] == 4 - entry["looping_continuations"]
    assert list(written["comparisons"]) == ["post - pre"]


def test_table_names_both_figures(result: ProbeResult) -> None:
    shown = str(result)
    for text in (
        "no bonus token", "with the bonus token", "surviving rows", "all rows", "RMS",
        "roles renamed", "TEST, not a way to run a drafter", "window + sink", "post - pre",
    ):  # fmt: skip
        assert text in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_plot(result: ProbeResult, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result.plot(tmp_path / "probe.png")
    assert (tmp_path / "probe.png").read_bytes().startswith(b"\x89PNG")


def test_bare_probe(target: Any, drafters: dict[str, Eagle3Drafter], tmp_path: Path) -> None:
    """One drafter, ids, nothing else; one new token leaves no round, nor anything to compare."""
    none = probe(target, drafters, [[5]], depth=1, new_tokens=1, attention=False, resamples=50)
    assert "no round" in str(none)
    for new_tokens in (1, 3):
        found = probe(
            target, drafters["post"], [[5, 6], [7]], depth=5, new_tokens=new_tokens,
            noise_levels=(), attention=False, resamples=50,
        )  # fmt: skip
        figures = found.to_dict()["ways"]["drafter"]
        assert (figures["rounds"] == 0) == (new_tokens == 1)
        assert len(figures["acceptance_by_depth"]) == 5
        json.dumps(found.to_dict(), allow_nan=False)
        assert "drafter" in str(found)
        found.plot(tmp_path / "bare.svg")
        assert (tmp_path / "bare.svg").stat().st_size > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, "depth: got 0"),
        ({"noise_levels": (0.0,)}, "noise_levels: got 0"),
        ({"train_length": 10}, "train_length: 10 tokens leave no room for 20"),
        ({"window": 10}, "window: given without train_length"),
        ({"train_length": 40, "lengths": ()}, "lengths: got none"),
        ({"new_tokens": 127}, "prompt 1 .matched.: 2 tokens . 127 new"),
        ({"force": {"fc_norm": True}}, "force: got 'fc_norm'"),
        ({"force": {"norm_output": True}}, "how the drafters are already"),
        ({"prompts": [[99]]}, r"prompts\[0\]: got id 99"),
    ],
)
def test_probe_refuses(
    target: Any, drafters: dict[str, Eagle3Drafter], options: dict[str, Any], message: str
) -> None:
    given: dict[str, Any] = {"prompts": [[5, 6], [7]], "new_tokens": 20, "depth": 2, **options}
    with pytest.raises(ValueError, match=message):
        probe(target, drafters["post"], given.pop("prompts"), **given)


def test_probe_refuses_other_models(target: Any) -> None:
    with pytest.raises(TypeError, match="drafter"):
        probe(target, torch.nn.Linear(2, 2), [[1]])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got none"):
        probe(target, {}, [[1]])
