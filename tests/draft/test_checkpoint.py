"""Checkpoints: round trips, foreign layouts, and everything that has to be refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from drafter_models import VARIANTS, make_target, tiny_config, tiny_drafter
from foreign_checkpoints import (
    EAGLE,
    IDS,
    SPECULATORS,
    assert_same,
    embedding_target,
    foreign,
    foreign_tensors,
    renamed,
    write,
)
from leeboard.draft import (
    DrafterConfig,
    Eagle3Drafter,
    capture,
    checkpoint,
    load_drafter,
    save_drafter,
)
from leeboard.draft.rope import inverse_frequencies

safetensors_torch = pytest.importorskip("safetensors.torch")

LAYOUTS = ("eagle", "speculators")
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [20, 37])
def test_round_trip(
    tmp_path: Path, variant: dict[str, Any], layout: Any, dtype: torch.dtype, rows: int
) -> None:
    drafter = tiny_drafter(dtype, draft_vocab_size=rows, **variant)
    with torch.no_grad():
        drafter.lm_head.weight[0, :3] = torch.tensor([-0.0, float("inf"), float("nan")])
    save_drafter(drafter, tmp_path / "a", layout=layout)
    loaded = load_drafter(tmp_path / "a")
    assert_same(loaded, drafter)
    assert not loaded.training
    assert not loaded.embed_tokens.weight.requires_grad
    assert loaded.fc.weight.requires_grad
    # Across the other layout and back: not a byte differs.
    other = LAYOUTS[1 - LAYOUTS.index(layout)]
    save_drafter(loaded, tmp_path / "b", layout=other)  # type: ignore[arg-type]
    save_drafter(load_drafter(tmp_path / "b"), tmp_path / "c", layout=layout)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "c" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    window = draw(st.none() | st.integers(1, 9))
    convention = draw(st.sampled_from(["input", "output"]))
    first = 1 if convention == "input" else 0
    ids = draw(st.sets(st.integers(first, 40), min_size=1, max_size=8).map(sorted))
    fc_norm = draw(st.booleans())
    return {
        "aux_layer_ids": ids,
        "num_aux_hidden_states": len(ids),
        "aux_layer_convention": convention,
        "norm_output": draw(st.booleans()),
        "fc_norm": fc_norm,
        "norm_before_fc": not fc_norm and draw(st.booleans()),
        "norm_before_residual": draw(st.booleans()),
        "draft_vocab_size": draw(st.integers(1, 37)),
        "rms_norm_eps": draw(st.sampled_from([1e-5, 1e-6, 3e-8])),
        "rope_theta": draw(st.sampled_from([10000, 10000.0, 123.25])),
        "rope_scaling": draw(st.sampled_from([None, LLAMA3, {"type": "linear", "factor": 2}])),
        "sliding_window": window,
        "attention_sinks": 0 if window is None else draw(st.integers(0, 5)),
    }


@settings(
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(fields=configs(), layout=st.sampled_from(LAYOUTS))
def test_round_trip_of_any_config(tmp_path: Path, fields: dict[str, Any], layout: Any) -> None:
    drafter = tiny_drafter(**fields)
    save_drafter(drafter, tmp_path, layout=layout)
    loaded = load_drafter(tmp_path)
    assert_same(loaded, drafter)
    state, ids = torch.randn(1, 3, 24), torch.randint(37, (1, 3))
    with torch.no_grad():
        ours, theirs = (d.step(ids, state, torch.arange(3))[1] for d in (drafter, loaded))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_foreign_checkpoint(tmp_path: Path, layout: str) -> None:
    drafter = load_drafter(foreign(tmp_path, layout))
    assert drafter.config == tiny_config(
        draft_vocab_size=20,
        rms_norm_eps=1e-5,
        norm_output=False,
        fc_norm=False,
        norm_before_residual=layout == "speculators",
        aux_layer_convention="output" if layout == "eagle" else "input",
    )
    state = drafter.state_dict()
    expected = foreign_tensors()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name
        assert state[name].dtype == tensor.dtype


def test_files_say_what_engines_read(tmp_path: Path) -> None:
    drafter = tiny_drafter(
        torch.bfloat16,
        draft_vocab_size=20,
        rope_scaling=LLAMA3,
        sliding_window=16,
        attention_sinks=4,
    )
    save_drafter(drafter, tmp_path / "eagle")
    fields = json.loads((tmp_path / "eagle" / "config.json").read_text())
    shape = {name: fields[name] for name in EAGLE.keys() & fields.keys() - {"eagle_config"}}
    assert shape == {
        **{name: EAGLE[name] for name in shape},
        "rms_norm_eps": 1e-6,
        "rope_scaling": LLAMA3,
    }
    assert fields["num_aux_hidden_states"] == 3
    # The same states twice: vLLM reads inputs of layers at the top, SGLang and SpecForge outputs
    # in eagle_config.
    assert fields[IDS] == [1, 2, 4]
    assert fields["eagle_config"][IDS] == [0, 1, 3]
    for place in (fields, fields["eagle_config"]):
        flags = ("norm_output", "fc_norm", "norm_before_fc", "norm_before_residual")
        assert [place[name] for name in flags] == [True, True, False, False]
    assert fields["use_sliding_window"] is True
    assert (fields["sliding_window"], fields["layer_types"]) == (16, ["sliding_attention"])

    save_drafter(drafter, tmp_path / "speculators", layout="speculators")
    fields = json.loads((tmp_path / "speculators" / "config.json").read_text())
    assert fields["speculators_model_type"] == "eagle3"
    assert fields["transformer_layer_config"]["hidden_size"] == 24
    assert fields[IDS] == [1, 2, 4]
    assert "eagle_config" not in fields
    keys = safetensors_torch.load_file(tmp_path / "speculators" / "model.safetensors").keys()
    names = {re.sub(r"^midlayer\.", "layers.0.", name) for name in foreign_tensors()}
    assert keys == names | {f"fc_norm.{i}.weight" for i in range(3)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_transformers_reads_the_config(tmp_path: Path, layout: Any) -> None:
    """Engines read config.json through LlamaConfig: it must see the same rotary embedding."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    drafter = tiny_drafter(rope_scaling=LLAMA3, sliding_window=16)
    save_drafter(drafter, tmp_path, layout=layout)
    fields = json.loads((tmp_path / "config.json").read_text())
    theirs = transformers.LlamaConfig(**fields.get("transformer_layer_config", fields))
    assert (theirs.hidden_size, theirs.head_dim, theirs.num_hidden_layers) == (24, 10, 1)
    assert theirs.rms_norm_eps == drafter.config.rms_norm_eps
    assert theirs.sliding_window == 16
    assert torch.equal(
        LlamaRotaryEmbedding(theirs).inv_freq, inverse_frequencies(drafter.config)[0]
    )


def captured(drafter: Eagle3Drafter, target: Any) -> list[int]:
    """Which of the target's hidden states a drafter fuses: i is the input of layer i."""
    tokens = torch.arange(5)[None]
    with torch.no_grad(), capture(target, drafter.config) as aux:
        states = target(tokens, output_hidden_states=True).hidden_states
    # The last entry is after the final norm, so no state that a layer puts out.
    return [
        next(i for i, state in enumerate(states[:-1]) if torch.equal(state, hidden))
        for hidden in aux.hiddens
    ]


@pytest.fixture(scope="module")
def eight_layers() -> Any:
    return make_target("llama", num_hidden_layers=8)


@pytest.mark.parametrize(
    ("layout", "changes", "convention", "inputs"),
    [
        # SpecForge and SGLang: outputs of layers 1, 2, 4.
        ("eagle", {}, None, [2, 3, 5]),
        ("eagle", {}, "input", [1, 2, 4]),
        ("eagle", {}, "output", [2, 3, 5]),
        # vLLM and speculators: inputs of layers 1, 2, 4.
        ("speculators", {}, None, [1, 2, 4]),
        ("speculators", {}, "input", [1, 2, 4]),
        ("speculators", {}, "output", [2, 3, 5]),
        ("eagle", {"eagle_config": {}, IDS: [1, 2, 4]}, None, [1, 2, 4]),
        ("eagle", {"eagle_config": {IDS: []}, IDS: [1, 2, 4]}, "output", [2, 3, 5]),
        # Both, of the same states; and both as one list, which needs a word.
        ("eagle", {IDS: [2, 3, 5]}, None, [2, 3, 5]),
        ("eagle", {IDS: [2, 3, 5]}, "input", [2, 3, 5]),
        ("eagle", {IDS: [1, 2, 4]}, "input", [1, 2, 4]),
        ("eagle", {IDS: [1, 2, 4]}, "output", [2, 3, 5]),
        # None: inputs of layers 2, N//2, N-3.
        ("eagle", {"eagle_config": None}, None, [2, 4, 5]),
        ("eagle", {"eagle_config": {}}, "output", [2, 4, 5]),
        ("speculators", {IDS: None}, None, [2, 4, 5]),
    ],
)
def test_layer_ids_mean_the_right_states(
    tmp_path: Path,
    eight_layers: Any,
    layout: str,
    changes: dict[str, Any],
    convention: Any,
    inputs: list[int],
) -> None:
    drafter = load_drafter(
        foreign(tmp_path / "theirs", layout, **changes),
        aux_layer_convention=convention,
        target=eight_layers,
    )
    usual = "output" if layout == "eagle" and changes.get("eagle_config", True) else "input"
    assert drafter.config.aux_layer_convention == (convention or usual)
    assert captured(drafter, eight_layers) == inputs
    for other in LAYOUTS:
        save_drafter(drafter, tmp_path / other, layout=other)  # type: ignore[arg-type]
        again = load_drafter(tmp_path / other)
        assert again.config == drafter.config
        assert captured(again, eight_layers) == inputs


def test_contradicting_layer_ids(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"which name different states.*aux_layer_convention"):
        load_drafter(foreign(tmp_path, **{IDS: [1, 2, 4]}))
    with pytest.raises(ValueError, match="which name different states"):
        load_drafter(foreign(tmp_path, **{IDS: [1, 2, 5]}), aux_layer_convention="input")


def test_our_convention_is_not_overridden(tmp_path: Path) -> None:
    save_drafter(tiny_drafter(), tmp_path)
    with pytest.raises(ValueError, match=r"got 'output', expected 'input': .*config.json states"):
        load_drafter(tmp_path, aux_layer_convention="output")
    load_drafter(tmp_path, aux_layer_convention="input")
    fields = json.loads((tmp_path / "config.json").read_text())
    fields["eagle_config"][IDS] = [1, 2, 4]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=rf"eagle_config.{IDS}: got \[1, 2, 4\] \(outputs"):
        load_drafter(tmp_path)


def test_missing_layer_ids_need_the_target(tmp_path: Path) -> None:
    path = foreign(tmp_path, eagle_config={})
    with pytest.raises(ValueError, match=rf"{IDS}: it is missing.*target="):
        load_drafter(path)
    with pytest.raises(ValueError, match=r"gives \[2, 3, 3\] for a target of 6 layers"):
        load_drafter(path, target=make_target("llama"))
    path = foreign(tmp_path, eagle_config={}, num_aux_hidden_states=5)
    with pytest.raises(ValueError, match=r"it is missing \(num_aux_hidden_states = 5\)"):
        load_drafter(path, target=make_target("llama"))


def test_embedding_layer_fits_one_layout_only(tmp_path: Path) -> None:
    drafter = tiny_drafter(aux_layer_ids=(0, 1, 2))
    with pytest.raises(ValueError, match="expected 'speculators'"):
        save_drafter(drafter, tmp_path / "eagle")
    assert not (tmp_path / "eagle").exists()
    save_drafter(drafter, tmp_path, layout="speculators")
    assert_same(load_drafter(tmp_path), drafter)


@pytest.mark.parametrize(
    "rename",
    [
        (r"^", "model."),
        (r"^midlayer\.", "model.layers.0."),
        (r"^midlayer\.", "layers.0."),
        (r"^(?!lm_head|d2t|t2d)", "model."),
    ],
)
def test_names_of_others(tmp_path: Path, rename: tuple[str, str]) -> None:
    drafter = load_drafter(write(tmp_path, EAGLE, renamed(foreign_tensors(), *rename)))
    for name, tensor in foreign_tensors().items():
        assert torch.equal(drafter.state_dict()[name], tensor)


@pytest.mark.parametrize("place", ["top", "eagle_config"])
@pytest.mark.parametrize("flag", ["use_aux_norm", "fc_norm"])
@pytest.mark.parametrize("keys", ["aux_norm_{}.weight", "fc_norm.{}.weight"])
def test_norms_of_the_fused_states(tmp_path: Path, place: str, flag: str, keys: str) -> None:
    parts = ("low", "mid", "high") if "aux" in keys else (0, 1, 2)
    norms = {keys.format(part): torch.randn(18).bfloat16() for part in parts}
    fields = {**EAGLE, "eagle_config": dict(EAGLE["eagle_config"])}
    (fields if place == "top" else fields["eagle_config"])[flag] = True
    drafter = load_drafter(write(tmp_path, fields, {**foreign_tensors(), **norms}))
    assert drafter.config.fc_norm
    for norm, expected in zip(drafter.fc_norm, norms.values(), strict=True):
        assert torch.equal(norm.weight, expected)


@pytest.mark.parametrize("place", ["top", "eagle_config"])
@pytest.mark.parametrize("flag", ["norm_output", "norm_before_residual", "norm_before_fc"])
def test_switches(tmp_path: Path, place: str, flag: str) -> None:
    fields = {**EAGLE, "eagle_config": dict(EAGLE["eagle_config"])}
    (fields if place == "top" else fields["eagle_config"])[flag] = True
    tensors = foreign_tensors()
    if flag == "norm_before_fc":
        tensors["input_norm.weight"] = torch.randn(54).bfloat16()
    config = load_drafter(write(tmp_path, fields, tensors)).config
    names = ("norm_output", "fc_norm", "norm_before_fc", "norm_before_residual")
    assert [name for name in names if getattr(config, name)] == [flag]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"sliding_window": 8}, 8),
        ({"sliding_window": 8, "use_sliding_window": True}, 8),
        ({"sliding_window": 8, "use_sliding_window": False}, None),
        ({"sliding_window": 8, "layer_types": ["full_attention"]}, None),
        ({"sliding_window": 8, "layer_types": ["sliding_attention"]}, 8),
        ({"sliding_window": None}, None),
    ],
)
def test_window(tmp_path: Path, fields: dict[str, Any], expected: int | None) -> None:
    assert load_drafter(foreign(tmp_path, **fields)).config.sliding_window == expected


def test_defaults_of_absent_fields(tmp_path: Path) -> None:
    optional = ("rope_theta", "rope_scaling", "target_hidden_size", "head_dim", "draft_vocab_size")
    fields = {key: value for key, value in EAGLE.items() if key not in optional}
    fields |= {"num_key_value_heads": None, "target_hidden_size": None}
    config = tiny_config(
        draft_vocab_size=37,
        head_dim=6,
        num_key_value_heads=4,
        target_hidden_size=24,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        norm_output=False,
        fc_norm=False,
        aux_layer_convention="output",
    )
    tensors = Eagle3Drafter(config).state_dict()
    del tensors["d2t"], tensors["t2d"]
    assert load_drafter(write(tmp_path, fields, tensors)).config == config


def test_verifier_tensors_of_speculators(tmp_path: Path) -> None:
    tensors = renamed(foreign_tensors(), r"^midlayer\.", "layers.0.")
    extra = {"verifier_lm_head.weight": torch.ones(20, 24), "verifier_norm.weight": torch.ones(24)}
    drafter = load_drafter(write(tmp_path, SPECULATORS, {**tensors, **extra}))
    assert drafter.state_dict().keys() == foreign_tensors().keys()
    with pytest.raises(ValueError, match=r"verifier_lm_head\.weight: unknown key"):
        load_drafter(write(tmp_path, EAGLE, {**foreign_tensors(), **extra}))


def test_rotary_scaling_in_both_spellings(tmp_path: Path) -> None:
    old = load_drafter(foreign(tmp_path, rope_scaling={**LLAMA3, "type": "llama3"}))
    new = {**EAGLE, "rope_parameters": {**LLAMA3, "rope_theta": 100.0}}
    del new["rope_theta"], new["rope_scaling"]
    assert old.config.rope_scaling == LLAMA3
    assert load_drafter(write(tmp_path, new, foreign_tensors())).config == old.config


def sharded(folder: Path, **changes: Any) -> dict[str, Any]:
    """The foreign checkpoint in two shards; returns the index that is written."""
    tensors = foreign_tensors()
    names = sorted(tensors)
    files = {
        "model-00001-of-00002.safetensors": names[:7],
        "model-00002-of-00002.safetensors": names[7:],
    }
    for file, keys in files.items():
        safetensors_torch.save_file({key: tensors[key] for key in keys}, folder / file)
    weight_map = {key: file for file, keys in files.items() for key in keys}
    index = {"metadata": {}, "weight_map": {**weight_map, **changes}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(EAGLE))
    return index


def test_shards(tmp_path: Path) -> None:
    sharded(tmp_path)
    for name, tensor in load_drafter(tmp_path).state_dict().items():
        assert torch.equal(tensor, foreign_tensors()[name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ghost.weight": "model-00001-of-00002.safetensors"}, r"\['ghost.weight'\]: .*disagree"),
        ({"d2t": "model-00002-of-00002.safetensors"}, r"\['d2t'\]: .*disagree"),
        ({"d2t": "../model-00001-of-00002.safetensors"}, "expected a file beside it"),
        ({"d2t": 3}, "weight_map: got"),
    ],
)
def test_wrong_index(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    sharded(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load_drafter(tmp_path)


def test_missing_shard(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model-00002-of-00002"):
        load_drafter(tmp_path)


def without(*names: str) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in names:
            del tensors[name]

    return change


def replaced(name: str, value: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name] = value(tensors[name])

    return change


def added(name: str, *shape: int) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({name: torch.ones(shape).bfloat16()})


def moved(row: int, by: int) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors["d2t"].__setitem__(row, int(tensors["d2t"][row]) + by)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("norm.weight"), "norm.weight: missing, expected in every checkpoint"),
        (without("midlayer.mlp.up_proj.weight"), "midlayer.mlp.up_proj.weight: missing"),
        (without("d2t", "t2d"), "d2t: missing, expected by draft_vocab_size = 20 below vocab"),
        (without("embed_tokens.weight"), "embed_tokens.weight: missing.*give target="),
        (added("midlayer.self_attn.q_norm.weight", 10), "self_attn.q_norm.weight: unknown key"),
        (added("midlayer.self_attn.q_proj.bias", 40), "self_attn.q_proj.bias: unknown key"),
        (added("layers.1.input_layernorm.weight", 24), "layers.1.input_layernorm.weight: unknown"),
        (
            added("layers.0.hidden_norm.weight", 24),
            "expected one of them: both are midlayer.hidden",
        ),
        (added("fc_norm.0.weight", 18), r"fc_norm.0.weight: found with fc_norm false"),
        (added("aux_norm_low.weight", 18), r"aux_norm_low.weight: found with fc_norm false"),
        (added("input_norm.weight", 54), r"input_norm.weight: found with norm_before_fc false"),
        (
            replaced("fc.weight", lambda t: t[:, :36].contiguous()),
            r"fc.weight: got shape \(24, 36\), expected \(24, 54\)",
        ),
        (replaced("norm.weight", lambda t: t.int()), "norm.weight: got dtype I32, expected one of"),
        (
            replaced("fc.weight", lambda t: t.to(torch.float8_e4m3fn)),
            "fc.weight: got dtype F8_E4M3, expected one of",
        ),
        (replaced("norm.weight", lambda t: t.float()), "weights of several dtypes.*dtype="),
        (replaced("d2t", lambda t: t.float()), "d2t: got dtype F32, expected one of"),
        (replaced("d2t", lambda t: t[:19].clone()), r"d2t: got shape \(19,\), expected \(20,\)"),
        (replaced("t2d", lambda t: t.long()), "t2d: got dtype I64"),
        (moved(19, 12), "d2t: row 19 stands for target id 37, expected 0 to 36"),
        (moved(0, -1), "d2t: row 0 stands for target id -1, expected 0 to 36"),
        (moved(5, -1), "d2t: row 5 stands for target id 5 after 5, expected ascending"),
        (moved(19, 1), "t2d: got 20 target ids .*expected the 20 of d2t, first at target id 25"),
        (
            lambda tensors: tensors["t2d"].__setitem__(3, True),
            "t2d: got 21 target ids .*expected the 20 of d2t, first at target id 3",
        ),
    ],
)
def test_wrong_tensors(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    tensors = foreign_tensors()
    change(tensors)
    with pytest.raises(ValueError, match=message):
        load_drafter(write(tmp_path, EAGLE, tensors))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fc_norm": True}, "fc_norm.0.weight: missing, expected by fc_norm true"),
        ({"use_aux_norm": True}, "fc_norm.0.weight: missing, expected by fc_norm true"),
        ({"norm_before_fc": True}, "input_norm.weight: missing, expected by norm_before_fc true"),
        ({"fc_norm": True, "norm_before_fc": True}, "norm_before_fc: got True with fc_norm"),
        ({"fc_norm": True, "use_aux_norm": False}, "fc_norm: got .*'use_aux_norm': False"),
        (
            {"norm_output": True, "eagle_config": {IDS: [1, 2, 4], "norm_output": False}},
            "norm_output: got .*'eagle_config.norm_output': False.*expected one value",
        ),
        ({"norm_output": "true"}, "norm_output: got 'true', expected true or false"),
        ({"norm_output": 1}, "norm_output: got 1, expected true or false"),
        ({"attention_bias": True}, "attention_bias: got True, expected false"),
        ({"mlp_bias": True}, "mlp_bias: got True, expected false"),
        ({"hidden_act": "gelu"}, "hidden_act: got 'gelu', expected 'silu'"),
        ({"num_hidden_layers": 2}, "num_hidden_layers: got 2, expected 1"),
        ({"num_hidden_layers": None}, "num_hidden_layers: got None, expected a positive integer"),
        ({"hidden_size": None}, "hidden_size: got None, expected a positive integer"),
        ({"hidden_size": "24"}, "hidden_size: got '24', expected a positive integer"),
        ({"hidden_size": 24.0}, "hidden_size: got 24.0, expected a positive integer"),
        ({"vocab_size": True}, "vocab_size: got True, expected a positive integer"),
        ({"rms_norm_eps": None}, "rms_norm_eps: got None, expected a number"),
        ({"max_position_embeddings": 0}, "max_position_embeddings: got 0"),
        ({"draft_vocab_size": 38}, "draft_vocab_size: got 38, expected at most vocab_size = 37"),
        ({"rope_theta": "1e4"}, "rope_theta: got '1e4', expected a positive number"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic', expected one"),
        ({"rope_parameters": 3}, "rope_parameters: got 3, expected an object"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor: got 0.5"),
        ({"logit_scale": 0.5}, "logit_scale: got 0.5"),
        ({"sliding_window": -4}, "sliding_window: got -4, expected a positive integer"),
        ({"layer_types": ["sliding_attention"]}, "sliding_window: got None"),
        ({"layer_types": ["linear_attention"]}, r"layer_types: got \['linear_attention'\]"),
        ({"architectures": ["GptOssForCausalLMEagle3"]}, r"architectures: got \['GptOss"),
        ({"speculators_model_type": "mtp"}, "speculators_model_type: got 'mtp', expected 'eagle3'"),
        ({"speculators_model_type": "eagle3"}, "transformer_layer_config: got None, expected an"),
        ({"eagle_config": [1]}, r"eagle_config: got \[1\], expected an object"),
        ({"eagle_config": {IDS: [1, 2, 4], "use_aux_hidden_state": False}}, "use_aux_hidden_state"),
        ({"eagle_config": {IDS: "1,2,4"}}, f"eagle_config.{IDS}: got '1,2,4', expected a list"),
        ({"eagle_config": {IDS: [1, 2.0, 4]}}, r"got \[1, 2.0, 4\], expected a list of integers"),
        ({"eagle_config": {IDS: [4, 2, 1]}}, r"aux_layer_ids: got \(4, 2, 1\), expected distinct"),
        ({"num_aux_hidden_states": 4}, "expected num_aux_hidden_states = 4 ids"),
        ({"leeboard": {"aux_layer_convention": "before"}}, "aux_layer_convention: got 'before'"),
        ({"leeboard": {"aux_layer_convention": "input"}}, "leeboard.aux_layer_ids: got None"),
        ({"leeboard": {"attention_sinks": 3}}, "attention_sinks: got 3 with sliding_window = None"),
    ],
)
def test_wrong_config(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_drafter(foreign(tmp_path, **changes))
    assert str(tmp_path) in str(caught.value)


def test_wrong_layer_of_speculators(tmp_path: Path) -> None:
    layer = SPECULATORS["transformer_layer_config"]
    for change, message in (
        ({"model_type": "qwen3"}, "transformer_layer_config.model_type: got 'qwen3'"),
        ({"num_hidden_layers": 2}, "transformer_layer_config.num_hidden_layers: got 2"),
        ({"attention_bias": True}, "transformer_layer_config.attention_bias: got True"),
        ({"hidden_size": None}, "transformer_layer_config.hidden_size: got None"),
    ):
        fields = {**layer, **change}
        with pytest.raises(ValueError, match=message):
            load_drafter(foreign(tmp_path, "speculators", transformer_layer_config=fields))


@pytest.mark.parametrize("text", ["", "{", "\xff", '["a"]', "null", "[" * 100_000])
def test_config_that_is_no_object(tmp_path: Path, text: str) -> None:
    foreign(tmp_path)
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"config.json: (not JSON|got a \w+, expected an object)"):
        load_drafter(tmp_path)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config.json: not found \(no such folder"):
        load_drafter(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"config.json: not found \(folder"):
        load_drafter(tmp_path)
    foreign(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"found neither model\.safetensors nor"):
        load_drafter(tmp_path)
    torch.save(foreign_tensors(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"\['pytorch_model.bin'\].*convert them to safetensors"):
        load_drafter(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:5],
        lambda data: data[:200],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: b"version https://git-lfs.github.com/spec/v1\n",
    ],
)
def test_damaged_weights(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    file = foreign(tmp_path) / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=r"model.safetensors: damaged or no safetensors file"):
        load_drafter(tmp_path)


@pytest.mark.parametrize("kept", ["d2t", "t2d"])
def test_one_map_is_enough(tmp_path: Path, kept: str) -> None:
    tensors = foreign_tensors()
    del tensors["t2d" if kept == "d2t" else "d2t"]
    drafter = load_drafter(write(tmp_path, EAGLE, tensors))
    assert torch.equal(drafter.d2t, foreign_tensors()["d2t"])
    assert torch.equal(drafter.t2d, foreign_tensors()["t2d"])


def test_t2d_of_another_size(tmp_path: Path) -> None:
    tensors = foreign_tensors()
    del tensors["d2t"]
    tensors["t2d"][3] = True
    with pytest.raises(ValueError, match=r"t2d: got 21 .*expected the 20 of draft_vocab_size"):
        load_drafter(write(tmp_path, EAGLE, tensors))


def test_map_of_32_bits(tmp_path: Path) -> None:
    tensors = {**foreign_tensors(), "d2t": foreign_tensors()["d2t"].int()}
    drafter = load_drafter(write(tmp_path, EAGLE, tensors))
    assert drafter.d2t.dtype == torch.int64
    assert torch.equal(drafter.d2t, foreign_tensors()["d2t"])


def test_dtype_and_device(tmp_path: Path) -> None:
    tensors = foreign_tensors()
    tensors["norm.weight"] = tensors["norm.weight"].float() + 1e-4
    write(tmp_path, EAGLE, tensors)
    drafter = load_drafter(tmp_path, dtype=torch.float32)
    for name, tensor in drafter.state_dict().items():
        expected = tensors[name]
        assert torch.equal(tensor, expected.float() if expected.is_floating_point() else expected)
    assert load_drafter(tmp_path, dtype=torch.float16, device="cpu").fc.weight.device.type == "cpu"
    with pytest.raises(ValueError, match=r"dtype: got torch.int8, expected one of"):
        load_drafter(tmp_path, dtype=torch.int8)


def test_embedding_of_the_target(tmp_path: Path) -> None:
    model, folder = embedding_target(tmp_path / "target")
    tensors = foreign_tensors()
    del tensors["embed_tokens.weight"]
    path = write(tmp_path / "drafter", {**EAGLE, "eagle_config": {}}, tensors)
    expected = model.get_input_embeddings().weight.bfloat16()
    for target in (model, folder, str(folder), folder / "model.safetensors"):
        drafter = load_drafter(path, target=target)
        assert torch.equal(drafter.embed_tokens.weight, expected)
        assert drafter.embed_tokens.weight.dtype == torch.bfloat16
        assert drafter.config.aux_layer_ids == (2, 4, 5)
    # Saved with its embedding, the drafter needs no target any more.
    save_drafter(drafter, tmp_path / "whole")
    assert_same(load_drafter(tmp_path / "whole"), drafter)


def test_embedding_of_the_checkpoint_comes_first(tmp_path: Path, eight_layers: Any) -> None:
    drafter = load_drafter(foreign(tmp_path), target=eight_layers)
    assert torch.equal(drafter.embed_tokens.weight, foreign_tensors()["embed_tokens.weight"])


def test_target_that_does_not_fit(tmp_path: Path, eight_layers: Any) -> None:
    tensors = foreign_tensors()
    del tensors["embed_tokens.weight"]
    path = write(tmp_path / "drafter", EAGLE, tensors)
    with pytest.raises(ValueError, match=r"embedding is \(61, 32\), expected \(37, 24\)"):
        load_drafter(path, target=eight_layers)
    with pytest.raises(TypeError, match="target: got int, expected a Hugging Face model"):
        load_drafter(path, target=3)
    with pytest.raises(ValueError, match=r"has no model.embed_tokens.weight"):
        load_drafter(path, target=path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_drafter(path, target=tmp_path / "nowhere")


def test_save_errors(tmp_path: Path) -> None:
    drafter = tiny_drafter(draft_vocab_size=20)
    with pytest.raises(ValueError, match="layout: got 'vllm', expected one of"):
        save_drafter(drafter, tmp_path, layout="vllm")  # type: ignore[arg-type]
    drafter.d2t[3] += 1
    with pytest.raises(ValueError, match=r"drafter: (t2d|d2t): "):
        save_drafter(drafter, tmp_path)
    drafter = tiny_drafter()
    drafter.norm.bfloat16()
    with pytest.raises(ValueError, match=r"drafter: got weights of .*torch.bfloat16"):
        save_drafter(drafter, tmp_path)
    assert not list(tmp_path.iterdir())


def test_tied_and_strided_weights(tmp_path: Path) -> None:
    drafter = tiny_drafter()
    drafter.lm_head.weight = drafter.embed_tokens.weight
    drafter.fc.weight.data = drafter.fc.weight.data.t().contiguous().t()
    save_drafter(drafter, tmp_path)
    assert_same(load_drafter(tmp_path), drafter)


def test_a_save_that_fails_leaves_no_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = tiny_drafter(), tiny_drafter(norm_output=False)
    save_drafter(old, tmp_path)

    def fail(*args: Any) -> None:
        raise OSError("disk full")

    def fail_midway(file: Path, tensors: Any, metadata: Any) -> None:
        file.write_bytes(b"half")
        fail()

    files = sorted(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "put_tensors", fail_midway)
        with pytest.raises(OSError, match="disk full"):
            save_drafter(new, tmp_path)
    assert sorted(tmp_path.iterdir()) == files
    assert_same(load_drafter(tmp_path), old)
    # New weights never stand beside the old switches.
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_json", fail)
        with pytest.raises(OSError, match="disk full"):
            save_drafter(new, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    with pytest.raises(FileNotFoundError, match=r"config.json"):
        load_drafter(tmp_path)


def test_without_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign(tmp_path)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match=r'load_drafter needs safetensors.*"leeboard\[hf\]"'):
        load_drafter(tmp_path)
    save_drafter(tiny_drafter(), tmp_path / "new")
    assert (tmp_path / "new" / "model.safetensors").is_file()


def test_import_is_light() -> None:
    code = (
        "import sys, leeboard.draft, leeboard._cli.convert;"
        "print([n for n in ('safetensors', 'transformers') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_variants_cover_every_switch() -> None:
    """The round trips above run over these."""
    for name in ("norm_output", "fc_norm", "norm_before_fc", "norm_before_residual"):
        values = {
            getattr(DrafterConfig(**{**tiny_config().to_dict(), **v}), name)
            for v in VARIANTS.values()
        }
        assert values == {True, False}, name
