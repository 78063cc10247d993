"""What `units` finds in models, and what it says of the rest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from leeboard.nn import FeedForward, SparseGQA, replace
from leeboard.ops.patterns import Band, Causal
from leeboard.prune import Declaration, Tokens, apply, units
from leeboard.prune._expose import exposed
from leeboard.prune._weights import reader, writers
from pruned_models import Fused, encoder, hugging_face


def summary(model: nn.Module, **options: Any) -> list[tuple[str, str, int, int, int]]:
    found = units(model, **options)
    return [(s.name, s.kind, s.units, s.width, s.group) for s in found]


def reasons(model: nn.Module) -> dict[str, str]:
    return {left.name: left.reason for left in units(model).left_alone}


def test_torch_layers() -> None:
    assert summary(encoder()) == [
        ("layers.0.self_attn", "attention", 4, 6, 1),
        ("layers.0.feed_forward", "feed_forward", 40, 1, 1),
        ("layers.1.self_attn", "attention", 4, 6, 1),
        ("layers.1.feed_forward", "feed_forward", 40, 1, 1),
    ]
    decoder = nn.TransformerDecoderLayer(24, 4, 40)
    assert summary(decoder) == [
        ("self_attn", "attention", 4, 6, 1),
        ("multihead_attn", "attention", 4, 6, 1),
        ("feed_forward", "feed_forward", 40, 1, 1),
    ]


def test_own_modules() -> None:
    found = units(Fused())
    assert [(s.name, s.units, s.width, s.group, s.key_features) for s in found] == [
        ("attention", 6, 5, 3, 24),
        ("cross", 4, 6, 2, 12),
        ("ff", 40, 1, 1, 24),
    ]
    assert found["ff"].gated
    assert found["ff"].writers == ("ff.up", "ff.gate")
    assert set(reasons(Fused())) == {""}
    with pytest.raises(KeyError, match="expected one of attention, cross, ff"):
        found["head"]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("bert", ["encoder.layer.0.attention", "encoder.layer.0.feed_forward"]),
        ("vit", ["layers.0.attention", "layers.0.mlp"]),
        ("clip", ["text_model.encoder.layers.0.self_attn", "text_model.encoder.layers.0.mlp"]),
        ("llama", ["model.layers.0.self_attn", "model.layers.0.mlp"]),
        ("qwen3", ["model.layers.0.self_attn", "model.layers.0.mlp"]),
    ],
)
def test_hugging_face(kind: str, names: list[str]) -> None:
    found = units(hugging_face(kind))
    attention, feed_forward = found.sublayers[:2]
    assert [attention.name, feed_forward.name] == names
    grouped = kind in ("llama", "qwen3")
    assert (attention.units, attention.width, attention.group) == (4, 6, 2 if grouped else 1)
    assert (feed_forward.units, feed_forward.gated) == (40, grouped)
    assert len(found) == (8 if kind == "clip" else 4)


def test_hugging_face_that_is_left_alone() -> None:
    import transformers as t

    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = t.BertConfig(
        **sizes, vocab_size=9, intermediate_size=32, is_decoder=True, add_cross_attention=True
    )
    assert "cross-attention" in reasons(t.BertModel(config))["encoder.layer.0.crossattention"]
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    gpt = t.GPT2Model(t.GPT2Config(n_embd=24, n_layer=1, n_head=4, vocab_size=9, **ids))
    assert len(units(gpt)) == 0
    assert "Conv1D" in reasons(gpt)["h.0.mlp"]


def test_what_is_left_alone_says_why() -> None:
    shared = nn.Linear(8, 8)
    cases: dict[str, tuple[nn.Module, str]] = {
        "kdim": (nn.MultiheadAttention(8, 2, kdim=4), "kdim"),
        "bias_kv": (nn.MultiheadAttention(8, 2, add_bias_kv=True), "add_bias_kv"),
        "chosen": (FeedForward(8, 16), "active_panels is set"),
        "weight_norm": (FeedForward(8, 16), "has parametrizations"),
        "patched": (FeedForward(8, 16), "has a forward of its own"),
        "mlp": (nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)), "Declaration("),
        "lonely": (nn.ModuleList([nn.Linear(8, 3)]), "none of which"),
    }
    ff: Any = cases["chosen"][0]
    ff.active_panels = torch.tensor([0], dtype=torch.int32)
    parametrizations.weight_norm(cases["weight_norm"][0].up)
    forward: Any = cases["patched"][0]
    forward.forward = lambda x: x
    tied = nn.ModuleDict({"a": SparseGQA(8, 2), "b": SparseGQA(8, 2)})
    for part in ("q_proj", "k_proj"):
        setattr(tied["b"], part, getattr(tied["a"], part))
    tied["c"] = FeedForward(8, 8)
    tied["c"].down.weight = tied["c"].up.weight
    tied["d"] = nn.ModuleList([shared, shared])
    model = nn.ModuleDict({name: module for name, (module, _) in cases.items()} | dict(tied))
    found = reasons(model)
    for name, (_, reason) in cases.items():
        assert reason in found[name], name
    assert "several places" in found["a"]
    assert "tied" in found["c"]
    assert len(units(model)) == 0


def test_declaration_in_the_reason_works() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    reason = reasons(model)[""]
    declaration = eval(reason[reason.index("Declaration(") :], {"Declaration": Declaration})
    assert summary(model, declare=[declaration]) == [("", "feed_forward", 16, 1, 1)]


@pytest.mark.parametrize(
    ("declaration", "message"),
    [
        (Declaration("", "feed_forward", ("0",), "3"), "no module '3'"),
        (Declaration("", "feed_forward", ("0",), "1"), "1 is a ReLU"),
        (Declaration("", "feed_forward", ("2",), "2"), "writers make 4 columns"),
        (Declaration("", "attention", ("0",), "2"), "expected 3"),
        (Declaration("", "heads", ("0",), "2"), "kind 'heads'"),  # type: ignore[arg-type]
        (Declaration("", "attention", ("0", "0", "0"), "2", width=0), "width 0"),
    ],
)
def test_bad_declarations(declaration: Declaration, message: str) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    with pytest.raises(ValueError, match=message):
        units(model, declare=[declaration])


def test_tokens_of_the_model() -> None:
    found = units(Fused())
    assert found.modalities == ("left", "right")
    assert len(found.passing) == 3
    assert found.tokens(["left"])["cross"] == Tokens(3, 3)
    assert found.tokens()["attention"] == Tokens(6, 6)
    # Band(4): a token sees the three on either side.
    assert found["attention"].pairs == Band(4).pairs(6) / 36


def test_tokens_of_many_modalities_are_asked_for_when_needed() -> None:
    class Many(Fused):
        modalities = tuple(f"m{n}" for n in range(20))  # type: ignore[assignment]
        asked = 0

        def leeboard_tokens(self, present: frozenset[str]) -> dict[str, tuple[int, int]]:
            self.asked += 1
            return {"": (len(present), 1)}

    model = Many()
    found = units(model)
    assert len(found.passing) == 2**20 - 1
    assert found.tokens(["m3", "m4"])["ff"] == Tokens(2, 1)
    # For all, once; and for the two.
    assert model.asked == 2


def test_tokens_that_are_given() -> None:
    assert units(encoder(), tokens=9).tokens()["layers.0.self_attn"] == Tokens(9, 9)
    by_modality = units(encoder(), modalities=["a", "b"], tokens={"a": 2, "b": 3})
    assert by_modality.tokens(["b"])["layers.0.self_attn"] == Tokens(3, 3)
    assert by_modality.tokens()["layers.0.self_attn"] == Tokens(5, 5)
    by_name = units(encoder(), tokens={"layers": 4, "layers.1": 5})
    assert by_name.tokens()["layers.0.self_attn"] == Tokens(4, 4)
    assert by_name.tokens()["layers.1.feed_forward"] == Tokens(5, 5)
    with pytest.raises(ValueError, match=r"nothing is said of layers\.1\.self_attn"):
        units(encoder(), tokens={"layers.0": 4})
    with pytest.raises(ValueError, match="got 0, expected a positive integer"):
        units(encoder(), tokens=0)
    with pytest.raises(ValueError, match="different names"):
        units(encoder(), modalities=["a", "a"])
    with pytest.raises(TypeError, match="got the string 'ab'"):
        units(encoder(), modalities="ab")
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module"):
        units("model")  # type: ignore[arg-type]


def test_fingerprint() -> None:
    assert units(encoder()).fingerprint == units(encoder()).fingerprint
    others = [
        encoder().bfloat16(),
        nn.TransformerEncoder(
            nn.TransformerEncoderLayer(24, 4, 48, batch_first=True), 2, enable_nested_tensor=False
        ),
        nn.ModuleDict({"model": encoder()}),
    ]
    prints = {units(model).fingerprint for model in (encoder(), *others)}
    assert len(prints) == 4


def test_table() -> None:
    lines = str(units(Fused())).splitlines()
    assert lines[0].split() == ["name", "kind", "units", "group", "width", "in", "out"]
    assert lines[1].split() == ["attention", "attention", "6", "3", "5", "24", "24"]
    assert "10 heads and 40 channels in 3 sublayers" in lines[4]
    assert lines[5] == "left alone (1):"
    assert "head" in lines[6]


def test_the_model_does_not_change() -> None:
    model = encoder()
    before = {name: dict(vars(m)) for name, m in model.named_modules()}
    state = {k: v.clone() for k, v in model.state_dict().items()}
    units(model)
    assert {name: dict(vars(m)) for name, m in model.named_modules()} == before
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())


def test_a_replaced_attention_is_found() -> None:
    model = encoder(dropout=0.0)
    replace(model, attention=Causal())
    found = units(model, tokens=4)
    assert found["layers.0.self_attn"].family == "sparse_mha"
    assert found["layers.0.self_attn"].pairs == 10 / 16


def test_writers_and_readers() -> None:
    for model in (encoder(), Fused(), hugging_face("llama")):
        found = units(model)
        for s in found:
            assert reader(model, s).in_features == s.columns
            rows = [weight.shape for weight, _ in writers(model, s)]
            if s.kind == "attention":
                written = s.columns // s.group
                assert rows == [
                    (s.columns, s.in_features),
                    (written, s.key_features),
                    (written, s.key_features),
                ]
            else:
                assert rows == [(s.columns, s.in_features)] * (2 if s.gated else 1)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", ["encoder", "pre_norm", "fused", "decoder", "bert", "llama"])
def test_exposed_readers_are_called_and_nothing_else_changes(name: str) -> None:
    x = torch.randn(2, 5, 24)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    ids = torch.randint(3, 30, (2, 5))
    model, call = {
        "encoder": (encoder(), lambda m: m(x, src_key_padding_mask=padding)[~padding]),
        "pre_norm": (encoder(norm_first=True, activation="gelu"), lambda m: m(x)),
        "fused": (Fused(), lambda m: m({"left": x, "right": x})),
        "decoder": (nn.TransformerDecoderLayer(24, 4, 40), lambda m: m(x, x[:, :3])),
        "bert": (hugging_face("bert") if name == "bert" else None, lambda m: m(ids)[0]),
        "llama": (hugging_face("llama") if name == "llama" else None, lambda m: m(ids)[0]),
    }[name]
    if name == "decoder":
        x = x.transpose(0, 1)
    assert model is not None
    model.eval()
    found = units(model)
    before = {n: dict(vars(m)) for n, m in model.named_modules()}
    seen: dict[str, tuple[int, ...]] = {}
    with torch.no_grad():
        expected = call(model)
        with exposed(model, found), exposed(model, found):
            for s in found:

                def look(_: nn.Module, args: tuple[torch.Tensor], name: str = s.name) -> None:
                    seen[name] = tuple(args[0].shape)

                reader(model, s).register_forward_pre_hook(look)
            result = call(model)
    assert {s.name: s.columns for s in found} == {n: shape[-1] for n, shape in seen.items()}
    torch.testing.assert_close(result, expected)
    for n, module in model.named_modules():
        changed = {k for k, v in vars(module).items() if before[n].get(k) is not v}
        assert not changed - {"_forward_pre_hooks"}
        assert vars(module).keys() == before[n].keys()


def test_exposed_refuses_a_model_under_a_plan() -> None:
    from pruned_models import odd_units, plan_for

    model = Fused()
    found = units(model)
    apply(model, plan_for(found, odd_units))
    with pytest.raises(RuntimeError, match=r"revert\(model\) first"), exposed(model, found):
        pass
    # Found units are those of the model without the plan.
    assert units(model) == found


def test_exposed_ends_after_an_error() -> None:
    model = Fused()
    before = dict(vars(model.ff))
    with pytest.raises(ZeroDivisionError), exposed(model, units(model)):
        raise ZeroDivisionError
    assert dict(vars(model.ff)) == before


def test_feed_forward_by_layers() -> None:
    x = torch.randn(2, 3, 8)
    for options in (
        {"gated": True, "activation": "silu", "norm": "rms_norm"},
        {"activation": "gelu_tanh", "residual": False, "bias": False},
        {"activation": "relu", "norm": None},
    ):
        block = FeedForward(8, 40, **options)  # type: ignore[arg-type]
        gates, bias = torch.rand(2, 40), torch.randn(8)
        torch.testing.assert_close(block.by_layers(x), block(x))
        torch.testing.assert_close(
            block.by_layers(x, gates=gates, bias=bias), block(x, gates=gates, bias=bias)
        )
        block.active_panels = torch.tensor([2, -1], dtype=torch.int32)
        torch.testing.assert_close(block.by_layers(x), block(x))
