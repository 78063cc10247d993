"""MTP heads: each convention's formula, the unroll, and that decoding does what it does."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leeboard.draft import Attended
from leeboard.draft.mtp import MTPConfig, MTPHead
from mtp_models import CONVENTIONS, make_head, make_mtp_target, states, target_config, tokens

pytest.importorskip("transformers")

# transformers' norms and rotary angles are float32 whatever the model's dtype.
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


def layers_of(convention: str, head: MTPHead, m: int) -> tuple[nn.Module, ...]:
    """(embed norm, hidden norm, projection, block, final norm) by the originals' names."""
    n = head.config.num_hidden_layers
    base, layer, names = {
        "deepseek_v3": (
            f"model.layers.{n + m}",
            f"model.layers.{n + m}",
            ("enorm", "hnorm", "eh_proj", "shared_head.norm"),
        ),
        "qwen3_next": (
            "mtp",
            f"mtp.layers.{m}",
            ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "fc", "norm"),
        ),
        "mimo": (
            f"model.mtp_layers.{m}",
            f"model.mtp_layers.{m}",
            ("token_layernorm", "hidden_layernorm", "input_proj", "final_layernorm"),
        ),
    }[convention]
    e, h, project, norm = (head.get_submodule(f"{base}.{name}") for name in names)
    return e, h, project, head.get_submodule(layer), norm


def plain_layer(block: nn.Module) -> nn.Module:
    """The same weights behind transformers' own attention, fed with a mask."""
    block = copy.deepcopy(block)
    for module in block.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = "eager"
    return block


def causal_layer(head: MTPHead, block: nn.Module, x: Tensor, positions: Tensor) -> Tensor:
    """The decoder layer on x [B, T, H], every row before the ones behind it."""
    rotary = head._rotary[0]
    rows = x.shape[1]
    mask = torch.full((rows, rows), float("-inf"), dtype=x.dtype).triu(1)[None, None]
    out = plain_layer(block)(
        x,
        attention_mask=mask,
        position_ids=positions,
        position_embeddings=rotary(x, position_ids=positions),
    )
    return out[0] if isinstance(out, tuple) else out


@pytest.mark.parametrize("recycle", ["pre", "post"])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_one_head_follows_its_formula(convention: str, recycle: Any) -> None:
    """Steps of a chain from every row, each computed anew from plain modules."""
    head = make_head(convention, recycle=recycle)
    ids, hiddens = tokens(head, 2, 9), states(head, 2, 9)
    steps = head.unroll(ids, [hiddens], 3)
    embed_norm, hidden_norm, project, block, norm = layers_of(convention, head, 0)

    def enter(token: Tensor, state: Tensor) -> Tensor:
        e, h = embed_norm(head.embedding(token)), hidden_norm(state)
        # MiMo's projection reads the state first.
        return project(torch.cat((h, e) if convention == "mimo" else (e, h), dim=-1))

    for t in (0, 3, 5):
        rows = enter(ids[:, 1 : t + 2], hiddens[:, : t + 1])
        for j in range(3):
            x = causal_layer(head, block, rows, torch.arange(t + 1 + j)[None])[:, -1:]
            hidden = norm(x)
            state = hidden if recycle == "post" else x
            torch.testing.assert_close(steps[j][0][:, t : t + 1], hidden, **CLOSE)
            torch.testing.assert_close(steps[j][1][:, t : t + 1], state, **CLOSE)
            if t + 2 + j < ids.shape[1]:
                rows = torch.cat((rows, enter(ids[:, t + 2 + j, None], state)), dim=1)
    expected = F.linear(steps[0][0], head.head_weight)
    torch.testing.assert_close(head.logits(steps[0][0]), expected)
    assert torch.equal(head.greedy(steps[0][0]), expected.argmax(-1))


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_several_heads_run_one_after_the_other(convention: str) -> None:
    head = make_head(convention, heads=2, recycle="pre")
    ids, hiddens = tokens(head, 1, 8), states(head, 1, 8)
    steps = head.unroll(ids, [hiddens], 2)
    state, shifted = hiddens, ids
    for m in range(2):
        embed_norm, hidden_norm, project, block, norm = layers_of(convention, head, m)
        shifted = F.pad(shifted[:, 1:], (0, 1))
        e, h = embed_norm(head.embedding(shifted)), hidden_norm(state)
        x = project(torch.cat((h, e) if convention == "mimo" else (e, h), dim=-1))
        state = causal_layer(head, block, x, torch.arange(m, 8 + m)[None])
        torch.testing.assert_close(steps[m][1], state, **CLOSE)
        torch.testing.assert_close(steps[m][0], norm(state), **CLOSE)
    # Qwen3-Next's heads share all but the decoder layer.
    first, second = layers_of(convention, head, 0), layers_of(convention, head, 1)
    assert [a is b for a, b in zip(first, second, strict=True)] == (
        [True, True, True, False, True] if convention == "qwen3_next" else [False] * 5
    )


@pytest.mark.parametrize("heads", [1, 2])
def test_drafts_as_transformers_does(heads: int) -> None:
    """transformers' own MTP model, given the same weights, for a prompt of DeepSeek-V3."""
    layers = pytest.importorskip("transformers.modeling_layers")
    cache_utils = pytest.importorskip("transformers.cache_utils")
    if not hasattr(layers, "MtpModel") or not hasattr(cache_utils, "MtpCache"):
        pytest.skip("this transformers has no MtpModel")
    target = make_mtp_target("DeepseekV3", num_nextn_predict_layers=heads)
    head = make_head("deepseek_v3", heads=heads)
    head.copy_from_target(target)
    theirs = layers.MtpModel(target, heads).eval()
    for m, layer in enumerate(theirs.layers):
        parts = layers_of("deepseek_v3", head, m)
        ours = (layer.enorm, layer.hnorm, layer.eh_proj, layer.mtp_block, layer.post_norm)
        for to, part in zip(ours, parts, strict=True):
            wanted = to.state_dict().keys()
            to.load_state_dict({k: v for k, v in part.state_dict().items() if k in wanted})
    ids, hiddens = tokens(head, 1, 10), states(head, 1, 9)
    with torch.no_grad():
        drafts, logits, _ = theirs(
            input_ids=ids[:, 1:],
            last_hidden_states=hiddens,
            attention_mask=None,
            position_ids=torch.arange(9)[None],
            mtp_cache=cache_utils.MtpCache(config=target.config.get_mtp_config()),
        )
    got, fed = head.draft([hiddens], ids[:, 1:], [9], head.new_cache(0), heads)
    assert torch.equal(got, drafts)
    torch.testing.assert_close(head.logits(fed), logits, **CLOSE)


@pytest.mark.parametrize(
    ("convention", "heads", "recycle"),
    [*itertools.product(CONVENTIONS, (1, 2), ("pre", "post")), ("mimo", 3, "post")],
)
def test_decoding_does_what_the_unroll_does(convention: str, heads: int, recycle: Any) -> None:
    """Three rounds of two sequences of different lengths; chains longer than there are heads."""
    head = make_head(convention, heads=heads, recycle=recycle).double()
    if convention == "deepseek_v3" and not any("gate_up_proj" in n for n in head.state_dict()):
        pytest.skip("this transformers has experts for float32 alone")
    depth, rounds = 5, ((3, 5), (4, 1), (1, 2))
    ids, hiddens = tokens(head, 2, 10), states(head, 2, 10)
    cache, done = head.new_cache(0), [0, 0]
    for counts in rounds:
        new = torch.full((2, max(counts)), 10**6)
        entered = torch.full((2, max(counts), hiddens.shape[-1]), float("nan"))
        for b, count in enumerate(counts):
            begin, done[b] = done[b], done[b] + count
            new[b, :count] = ids[b, begin + 1 : done[b] + 1]
            entered[b, :count] = hiddens[b, begin : done[b]]
        drafts, fed = head.draft([entered], new, counts, cache, depth)
        assert drafts.shape == (2, depth)
        assert fed.shape == (2, depth, hiddens.shape[-1])
        assert cache.lengths == done
        assert cache.longest == max(done)
        for b, rows in enumerate(done):
            # Only rows up to the last one matter to it.
            text = torch.cat((ids[b, : rows + 1], drafts[b]))[None]
            seen = F.pad(hiddens[b : b + 1, :rows], (0, 0, 0, text.shape[1] - rows))
            for j, (hidden, state) in enumerate(head.unroll(text, [seen], depth)):
                torch.testing.assert_close(fed[b, j], state[0, rows - 1], **CLOSE)
                assert head.greedy(hidden[0, rows - 1]) == drafts[b, j]


def test_shallow_rounds_and_lost_sequences() -> None:
    """A round that is shorter than there are heads leaves all of them ready; `select` works."""
    head = make_head("mimo", heads=3)
    ids, hiddens = tokens(head, 3, 8), states(head, 3, 8)
    cache = head.new_cache(2)
    assert cache.longest == 0
    head.draft([hiddens[:, :4]], ids[:, 1:5], [4, 2, 3], cache, 1)
    cache.select([2, 0])
    assert cache.lengths == [3, 4]
    new = torch.stack((ids[2, 4:6], ids[0, 5:7]))
    drafts, _ = head.draft([torch.stack((hiddens[2, 3:5], hiddens[0, 4:6]))], new, [2, 2], cache, 4)
    for b, (row, rows) in enumerate(((2, 5), (0, 6))):
        one = head.draft(
            [hiddens[row : row + 1, :rows]],
            ids[row : row + 1, 1 : rows + 1],
            [rows],
            head.new_cache(0),
            4,
        )
        assert torch.equal(one[0][0], drafts[b])
    with pytest.raises(ValueError, match="counts: got 1"):
        head.draft([hiddens[:1, :1]], ids[:1, :1], [1], cache, 1)


@pytest.mark.parametrize("heads", [1, 2])
def test_packed_documents_see_themselves_alone(heads: int) -> None:
    head = make_head("deepseek_v3", heads=heads)
    ids, hiddens = tokens(head, 2, 12), states(head, 2, 12)
    positions = torch.stack((torch.arange(12), torch.cat((torch.arange(5), torch.arange(7)))))
    packed = head.unroll(ids, [hiddens], 3, positions=positions)
    for row, begin, end in ((0, 0, 12), (1, 0, 5), (1, 5, 12)):
        alone = head.unroll(ids[row : row + 1, begin:end], [hiddens[row : row + 1, begin:end]], 3)
        for j in range(3):
            # The last rows' tokens are the next document's.
            rows = end - begin - 1 - j
            for both in zip(packed[j], alone[j], strict=True):
                a, b = both[0][row, begin : begin + rows], both[1][0, :rows]
                torch.testing.assert_close(a, b, **CLOSE)


def test_feed_and_watch() -> None:
    head = make_head("qwen3_next", heads=2)
    ids, hiddens = tokens(head, 2, 7), states(head, 2, 7)
    plain = head.unroll(ids, [hiddens], 4)
    fed: list[tuple[int, Tensor]] = []
    seen: list[Attended] = []

    def feed(j: int, state: Tensor) -> Tensor:
        fed.append((j, state))
        return state * 0.5 if j == 2 else state

    altered = head.unroll(ids, [hiddens], 4, feed=feed, watch=seen.append)
    assert [j for j, _ in fed] == [1, 2, 3]
    assert torch.equal(fed[0][1], plain[0][1])
    assert torch.equal(altered[1][1], plain[1][1])
    assert not torch.allclose(altered[2][1], plain[2][1])
    assert [s.step for s in seen] == [0, 1, 2, 3]
    # Every head has keys of its own.
    assert [len(s.keys) for s in seen] == [1, 1, 2, 2]
    assert seen[2].keys[0] is seen[0].keys[0]
    assert seen[3].keys[0] is seen[1].keys[0]
    # transformers' head width is 8, of 4 query and 2 key heads.
    assert seen[0].q.shape == (2, 4, 7, 8)
    assert seen[0].keys[0].shape == (2, 2, 7, 8)
    assert seen[0].scale == 8**-0.5
    assert seen[0].window is None


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_gradients_reach_all_but_the_targets_weights(convention: str) -> None:
    head = make_head(convention, heads=2).train()
    ids, hiddens = tokens(head, 1, 9), states(head, 1, 9)
    total = sum(head.logits(hidden).square().mean() for hidden, _ in head.unroll(ids, [hiddens], 3))
    assert isinstance(total, Tensor)
    total.backward()
    frozen = {name for name, p in head.named_parameters() if not p.requires_grad}
    assert len(frozen) == 2
    assert head.head_weight.grad is None
    assert head.embedding.weight.grad is None
    for name, p in head.named_parameters():
        if name not in frozen:
            assert p.grad is not None, name
            assert bool(p.grad.isfinite().all()), name
            assert bool(p.grad.any()), name


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("target_state", ["normed", "raw"])
def test_what_of_the_target_enters(convention: str, target_state: Any) -> None:
    target = make_mtp_target(CONVENTIONS[convention])
    head = make_head(convention, target_state=target_state)
    ids = tokens(head, 2, 6)
    with head.capture(target) as aux:
        output = target(input_ids=ids, logits_to_keep=1)
        (state,) = aux.hiddens
    assert state.shape == (2, 6, 32)
    normed = state if target_state == "normed" else target.model.norm(state)
    logits = target.get_output_embeddings()(normed)
    torch.testing.assert_close(logits[:, -1:], output.logits)
    raw = target.model.norm(target.model.norm(state))
    assert not torch.allclose(target.model.norm(state), raw)
    # Outside of the block nothing is caught.
    target(input_ids=ids[:, :1])
    assert aux.hiddens[0] is state


def test_shares_the_targets_matrices() -> None:
    target = make_mtp_target("Llama")
    head = make_head("mimo", family="Llama")
    written = head.copy_from_target(target)
    assert set(written) == {
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.mtp_layers.0.final_layernorm.weight",
    }
    assert head.head_weight.data_ptr() == target.lm_head.weight.data_ptr()
    assert head.embedding.weight.data_ptr() == target.model.embed_tokens.weight.data_ptr()
    assert torch.equal(layers_of("mimo", head, 0)[-1].weight, target.model.norm.weight)
    # What becomes of the head is nothing to the target.
    head.to(torch.bfloat16)
    assert target.lm_head.weight.dtype == torch.float32
    assert not head.head_weight.requires_grad
    # A trained head keeps its norm.
    again = make_head("mimo", family="Llama")
    norm = layers_of("mimo", again, 0)[-1].weight.clone()
    assert again.share(target) == written[:2]
    assert torch.equal(layers_of("mimo", again, 0)[-1].weight, norm)
    other = make_mtp_target("Llama", vocab_size=12)
    with pytest.raises(ValueError, match=r"target: its embedding is \(12, 32\)"):
        head.copy_from_target(other)


def test_a_router_keeps_its_corrections() -> None:
    """DeepSeek's biases decide between experts that bfloat16 cannot tell apart."""
    head = make_head("deepseek_v3")
    before = {name: head.state_dict()[name].clone() for name in head.float32_names}
    assert any("e_score_correction_bias" in name for name in before)
    head.to(torch.bfloat16)
    assert head.dtype == torch.bfloat16
    for name, tensor in before.items():
        assert torch.equal(head.state_dict()[name], tensor)
    head.unroll(tokens(head, 1, 5), [states(head, 1, 5)], 2)
    assert make_head("deepseek_v3").double().dtype == torch.float64
    assert all(t.dtype == torch.float64 for t in make_head("deepseek_v3").double().parameters())


def test_copies_are_apart() -> None:
    head = make_head("deepseek_v3", heads=2)
    twin = copy.deepcopy(head)
    ids, hiddens = tokens(head, 1, 6), states(head, 1, 6)
    before = head.unroll(ids, [hiddens], 2)[1][1]
    assert torch.equal(twin.unroll(ids, [hiddens], 2)[1][1], before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(head.unroll(ids, [hiddens], 2)[1][1], before)


def test_configs() -> None:
    config = target_config("Qwen2")
    assert MTPConfig.for_target(config, "mimo").concat_order == "hidden_first"
    assert MTPConfig.for_target(config).concat_order == "embed_first"
    made = MTPConfig.for_target(config, "qwen3_next", heads=2, recycle="pre", target_state="raw")
    assert MTPConfig.from_dict(made.to_dict()) == made
    assert (made.vocab_size, made.hidden_size, made.max_position_embeddings) == (11, 32, 128)
    assert made.draft_vocab_size == 11
    assert made.target_hidden_size == 32
    with pytest.raises(ValueError, match="recycle: got 'mid', expected one of"):
        MTPConfig.for_target(config, recycle="mid")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="convention: got 'llama'"):
        MTPConfig.for_target(config, "llama")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="heads: got 0"):
        MTPConfig.for_target(config, heads=0)
    with pytest.raises(ValueError, match="block: model_type: got None"):
        MTPConfig(block={}, convention="mimo")
    with pytest.raises(ValueError, match="block: hidden_size: got None"):
        MTPConfig(block={"model_type": "qwen2", "vocab_size": 3}, convention="mimo")
    with pytest.raises(ValueError, match=r"unknown MTPConfig field\(s\) \['depth'\]"):
        MTPConfig.from_dict({**made.to_dict(), "depth": 2})
    with pytest.raises(ValueError, match=r"missing MTPConfig field\(s\) \['block'\]"):
        MTPConfig.from_dict({"convention": "mimo"})
    unknown = MTPConfig(block={**made.block, "model_type": "nothing"}, convention="mimo")
    with pytest.raises(ValueError, match="block: model_type: got 'nothing', expected a model"):
        MTPHead(unknown)


def test_takes_config_files_as_they_are_published() -> None:
    """Fields left to the family's defaults, and rotary embeddings under their older names."""
    block = target_config("Qwen3Next").to_dict()
    # Qwen3-Next's says only how often full attention comes.
    del block["layer_types"]
    block.pop("rope_parameters", None)
    block.update(full_attention_interval=4, rope_theta=1e6, partial_rotary_factor=0.5)
    head = MTPHead(MTPConfig(block=block, convention="qwen3_next"))
    assert layers_of("qwen3_next", head, 0)[3].self_attn is not None
    assert head._rotary[0].inv_freq.tolist() == pytest.approx([1.0, 1e-3])


def test_refuses_what_is_no_decoder_with_rotary_embeddings() -> None:
    from transformers import GPT2Config

    config = GPT2Config(vocab_size=11, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    block = {**config.to_dict(), "hidden_size": 32, "num_hidden_layers": 2}
    block["max_position_embeddings"] = 64
    with pytest.raises(ValueError, match="GPT2Model has no layers"):
        MTPHead(MTPConfig(block=block, convention="mimo"))


def test_wrong_calls() -> None:
    head = make_head("mimo")
    ids, hiddens = tokens(head, 2, 5), states(head, 2, 5)
    with pytest.raises(ValueError, match="hiddens: got 2 tensors, expected 1"):
        head.unroll(ids, [hiddens, hiddens], 2)
    with pytest.raises(ValueError, match=r"hiddens\[0\]: got shape \(2, 5, 31\)"):
        head.unroll(ids, [hiddens[..., 1:]], 2)
    with pytest.raises(ValueError, match="input_ids: got shape"):
        head.unroll(ids[:, 1:], [hiddens], 2)
    with pytest.raises(ValueError, match="steps: got 0"):
        head.unroll(ids, [hiddens], 0)
    with pytest.raises(ValueError, match="depth: got 0"):
        head.draft([hiddens], ids, [5, 5], head.new_cache(0), 0)
    with pytest.raises(ValueError, match="hidden states are not finite"):
        head.draft([hiddens / 0], ids, [5, 5], head.new_cache(0), 1)
    block = layers_of("mimo", head, 0)[3]
    angles = head._rotary[0](hiddens, position_ids=torch.arange(5)[None])
    with pytest.raises(RuntimeError, match="called outside of its MTPHead"):
        block(hiddens, position_embeddings=angles)
    # A softcap of the scores (Gemma 2) would be left out: it is refused.
    capped = make_head("mimo")
    inner: Any = layers_of("mimo", capped, 0)[3].self_attn
    forward = inner.forward
    inner.forward = lambda *args, **kwargs: forward(*args, softcap=5.0, **kwargs)
    with pytest.raises(ValueError, match="its attention has a softcap"):
        capped.unroll(ids, [hiddens], 1)
