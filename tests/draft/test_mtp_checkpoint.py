"""MTP heads on disk: the originals' names, a target's own folder, and what has to be refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from leeboard.draft import load_drafter, quantize, save_drafter
from leeboard.draft.mtp import MTPHead, load_mtp
from mtp_models import CONVENTIONS, make_head, make_mtp_target, states, tokens

pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

# The names that the originals' checkpoints have, apart from the decoder layer's own.
OWN = {
    "deepseek_v3": {
        "model.layers.3.enorm.weight",
        "model.layers.3.hnorm.weight",
        "model.layers.3.eh_proj.weight",
        "model.layers.3.shared_head.norm.weight",
        "model.layers.3.shared_head.head.weight",
        "model.layers.3.embed_tokens.weight",
    },
    "qwen3_next": {
        "mtp.pre_fc_norm_embedding.weight",
        "mtp.pre_fc_norm_hidden.weight",
        "mtp.fc.weight",
        "mtp.norm.weight",
    },
    "mimo": {
        "model.mtp_layers.0.token_layernorm.weight",
        "model.mtp_layers.0.hidden_layernorm.weight",
        "model.mtp_layers.0.input_proj.weight",
        "model.mtp_layers.0.final_layernorm.weight",
    },
}
LAYER = {
    "deepseek_v3": ("model.layers.3.", ("self_attn.kv_b_proj.weight", "mlp.gate.weight")),
    "qwen3_next": ("mtp.layers.0.", ("self_attn.q_norm.weight", "mlp.shared_expert_gate.weight")),
    "mimo": ("model.mtp_layers.0.", ("self_attn.q_proj.bias", "mlp.down_proj.weight")),
}


def tensors_of(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = safetensors_torch.load_file(folder / "model.safetensors")
    return found


def rewrite(folder: Path, tensors: dict[str, Tensor]) -> None:
    safetensors_torch.save_file(
        {k: t.contiguous() for k, t in tensors.items()}, folder / "model.safetensors"
    )


def same(a: MTPHead, b: MTPHead) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name
    assert a.config == b.config
    assert torch.equal(a.t2d, b.t2d)
    assert torch.equal(a.d2t, b.d2t)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_round_trip(tmp_path: Path, convention: str, heads: int, dtype: torch.dtype) -> None:
    target = make_mtp_target(CONVENTIONS[convention])
    head = make_head(convention, heads=heads, recycle="pre", target_state="raw").to(dtype)
    head.copy_from_target(target)
    save_drafter(head, tmp_path)
    stored = tensors_of(tmp_path)
    prefix, names = LAYER[convention]
    assert OWN[convention] <= stored.keys()
    assert {prefix + name for name in names} <= stored.keys()
    # One tensor per expert, and the target's matrices only where the original has copies.
    assert not any(name.endswith("gate_up_proj") for name in stored)
    if convention != "mimo":
        assert stored[f"{prefix}mlp.experts.3.up_proj.weight"].shape == (16, 32)
        assert f"{prefix}mlp.experts.0.down_proj.weight" in stored
    assert "lm_head.weight" not in stored
    assert "model.embed_tokens.weight" not in stored
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["leeboard_mtp"] == {
        "convention": convention,
        "heads": heads,
        "concat_order": head.config.concat_order,
        "recycle": "pre",
        "target_state": "raw",
    }
    loaded = load_drafter(tmp_path, target=None if convention == "deepseek_v3" else target)
    assert isinstance(loaded, MTPHead)
    assert not loaded.training
    same(loaded, head)
    assert not loaded.head_weight.requires_grad
    assert not loaded.embedding.weight.requires_grad
    if convention != "deepseek_v3" and dtype == torch.float32:
        assert loaded.head_weight.data_ptr() == target.lm_head.weight.data_ptr()
    ids, hiddens = tokens(head, 1, 6), states(head, 1, 6)
    for a, b in zip(loaded.unroll(ids, [hiddens], 3), head.unroll(ids, [hiddens], 3), strict=True):
        assert torch.equal(a[0], b[0])
    # Not a byte differs the second time.
    save_drafter(loaded, tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


def original_folder(folder: Path, convention: str, heads: int = 1, shards: bool = True) -> MTPHead:
    """A target's checkpoint with MTP heads as the originals publish them: (heads, folder)."""
    target = make_mtp_target(CONVENTIONS[convention])
    head = make_head(convention, heads=heads)
    head.copy_from_target(target)
    save_drafter(head, folder / "heads")
    target.save_pretrained(folder / "target")
    config = json.loads((folder / "target" / "config.json").read_text())
    if convention == "mimo":
        config["model_type"] = "mimo"
    (folder / "target" / "config.json").write_text(json.dumps(config))
    mine, theirs = tensors_of(folder / "heads"), tensors_of(folder / "target")
    if not shards:
        rewrite(folder / "target", mine | theirs)
        return head
    (folder / "target" / "model.safetensors").unlink()
    # The heads' tensors stand in two shards; a third has nothing of theirs.
    body = {k: t for k, t in theirs.items() if "embed" not in k and "lm_head" not in k}
    rest = {k: t for k, t in theirs.items() if k not in body}
    names = sorted(mine)
    parts = [rest | {k: mine[k] for k in names[::2]}, {k: mine[k] for k in names[1::2]}, body]
    index = {}
    for i, part in enumerate(parts):
        file = f"model-{i}.safetensors"
        safetensors_torch.save_file(part, folder / "target" / file)
        index.update(dict.fromkeys(part, file))
    (folder / "target" / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": index})
    )
    return head


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_targets_own_folder(tmp_path: Path, convention: str) -> None:
    head = original_folder(tmp_path, convention, heads=2)
    folder = tmp_path / "target"
    # What has nothing of the heads is not opened.
    (folder / "model-2.safetensors").write_bytes(b"no safetensors")
    loaded = load_mtp(folder)
    assert loaded.config.heads == 2
    assert loaded.config.convention == convention
    assert (loaded.config.recycle, loaded.config.target_state) == ("post", "normed")
    for name, tensor in head.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    chosen = load_mtp(folder, recycle="pre", target_state="raw", dtype=torch.bfloat16)
    assert (chosen.config.recycle, chosen.config.target_state) == ("pre", "raw")
    assert chosen.dtype == torch.bfloat16
    same(load_drafter(folder), loaded)  # type: ignore[arg-type]


def test_a_target_whose_matrices_are_tied(tmp_path: Path) -> None:
    original_folder(tmp_path, "mimo", shards=False)
    stored = tensors_of(tmp_path / "target")
    del stored["lm_head.weight"]
    rewrite(tmp_path / "target", stored)
    loaded = load_mtp(tmp_path / "target")
    assert torch.equal(loaded.head_weight, loaded.embedding.weight)


def test_experts_in_one_tensor_are_read_too(tmp_path: Path) -> None:
    head = make_head("qwen3_next")
    save_drafter(head, tmp_path)
    stored = {k: t for k, t in tensors_of(tmp_path).items() if ".experts." not in k}
    experts = {k: t for k, t in head.state_dict().items() if ".experts." in k}
    if not any(name.endswith("gate_up_proj") for name in experts):
        pytest.skip("this transformers has one tensor per expert")
    rewrite(tmp_path, stored | experts)
    loaded = load_mtp(tmp_path, target=make_mtp_target("Qwen3Next"))
    for name, tensor in experts.items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_refuses_what_is_missing_or_unknown(tmp_path: Path) -> None:
    head = make_head("deepseek_v3", heads=2)
    save_drafter(head, tmp_path)
    whole = tensors_of(tmp_path)

    def check(tensors: dict[str, Tensor], message: str, **more: Any) -> None:
        rewrite(tmp_path, tensors)
        with pytest.raises(ValueError, match=message):
            load_drafter(tmp_path, **more)

    name = "model.layers.4.mlp.experts.2.up_proj.weight"
    check({k: t for k, t in whole.items() if k != name}, f"{re.escape(name)}: missing")
    check({k: t for k, t in whole.items() if "3.hnorm" not in k}, "3.hnorm.weight: missing")
    extra = {"model.layers.3.mlp.experts.4.up_proj.weight": torch.zeros(16, 32)}
    check(whole | extra, r"experts.4.up_proj.weight: unknown key, expected those of the target's")
    extra = {"model.layers.2.mlp.up_proj.weight": torch.zeros(48, 32)}
    check(whole | extra, r"model.layers.2.mlp.up_proj.weight: unknown key")
    scale = {"model.layers.3.self_attn.o_proj.weight_scale_inv": torch.zeros(1)}
    check(whole | scale, "weight_scale_inv: unknown key, .* these weights are quantised")
    check(whole | {name: torch.zeros(3, 32)}, r"got shape \(3, 32\), expected \(16, 32\)")
    check(whole | {name: torch.zeros(16, 32).to(torch.float8_e4m3fn)}, "got dtype F8_E4M3")
    check(whole | {name: whole[name].half()}, "several dtypes")
    other = {"model.layers.4.embed_tokens.weight": whole["model.layers.4.embed_tokens.weight"] + 1}
    check(whole | other, "4.embed_tokens.weight: differs from model.layers.3")
    check(whole, "aux_layer_convention: got 'input', but", aux_layer_convention="input")
    bare = {k: t for k, t in whole.items() if "embed_tokens" not in k}
    check(bare, "embed_tokens.weight: missing in the checkpoint, expected the target's embedding")
    with pytest.raises(ValueError, match="convention: got 'mimo', expected 'deepseek_v3'"):
        load_mtp(tmp_path, convention="mimo")
    with pytest.raises(ValueError, match=r"dtype: got torch.int8"):
        load_mtp(tmp_path, dtype=torch.int8)
    for settings, message in (
        ({"heads": 2}, "missing MTPConfig field"),
        ({"convention": "mimo", "size": 1}, "unknown MTPConfig field"),
        ([], "expected an object"),
    ):
        fields = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**fields, "leeboard_mtp": settings}))
        with pytest.raises(ValueError, match=message):
            load_mtp(tmp_path)
    with pytest.raises(FileNotFoundError):
        load_mtp(tmp_path / "nowhere")


def test_refuses_folders_without_heads(tmp_path: Path) -> None:
    make_mtp_target("Llama").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="found MTP heads of no convention, expected keys like"):
        load_mtp(tmp_path)
    head = make_head("deepseek_v3", heads=2)
    save_drafter(head, tmp_path / "b")
    fields = json.loads((tmp_path / "b" / "config.json").read_text())
    del fields["leeboard_mtp"]
    (tmp_path / "b" / "config.json").write_text(json.dumps(fields))
    stored = {k: t for k, t in tensors_of(tmp_path / "b").items() if "layers.3" not in k}
    rewrite(tmp_path / "b", stored)
    with pytest.raises(ValueError, match=r"numbered \[4\], expected them from 3 up"):
        load_mtp(tmp_path / "b")
    fields["model_type"] = "nothing"
    (tmp_path / "b" / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="numbered"):
        load_mtp(tmp_path / "b", convention="deepseek_v3")


def test_what_heads_do_not_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from leeboard import cli

    head = make_head("mimo")
    with pytest.raises(TypeError, match="drafter: got MTPHead, expected an Eagle3Drafter"):
        quantize(head, "int8")  # type: ignore[arg-type]
    mixed = make_head("mimo")
    mixed.get_submodule("model.mtp_layers.0.input_proj").half()
    with pytest.raises(ValueError, match="drafter: got weights of"):
        save_drafter(mixed, tmp_path / "c")
    assert not (tmp_path / "c").exists()
    original_folder(tmp_path, "deepseek_v3", shards=False)
    source, to = str(tmp_path / "heads"), str(tmp_path / "to")
    assert cli.main(["draft", "convert", "--layout", "eagle", source, to]) == 1
    assert "holds MTP heads" in capsys.readouterr().err
    assert not (tmp_path / "to").exists()
    assert cli.main(["draft", "bench", "--config", source]) == 1
    assert "holds MTP heads" in capsys.readouterr().err
