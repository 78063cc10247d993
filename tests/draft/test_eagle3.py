"""Eagle3Drafter against a restatement, and its training unroll against real decoding."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from drafter_models import make_target, tiny_config, tiny_drafter
from leeboard.draft import DrafterCache, DrafterConfig, Eagle3Drafter

STEPS = 5


class Restated:
    """The drafter written out row by row and head by head from its state_dict."""

    def __init__(self, drafter: Eagle3Drafter) -> None:
        self.w = {k: v.double() for k, v in drafter.state_dict().items() if v.is_floating_point()}
        self.c = drafter.config

    def norm(self, x: Tensor, name: str) -> Tensor:
        return x / (x.pow(2).mean() + self.c.rms_norm_eps).sqrt() * self.w[f"{name}.weight"]

    def fused(self, states: list[Tensor]) -> Tensor:
        if self.c.fc_norm:
            states = [self.norm(s, f"fc_norm.{i}") for i, s in enumerate(states)]
        joined = torch.cat(states)
        if self.c.norm_before_fc:
            joined = self.norm(joined, "input_norm")
        return self.w["fc.weight"] @ joined

    def rotated(self, x: Tensor, position: int) -> Tensor:
        d = self.c.head_dim
        out = torch.empty_like(x)
        for i in range(d // 2):
            angle = position * self.c.rope_theta ** (-2 * i / d)
            c, s = math.cos(angle), math.sin(angle)
            out[i] = x[i] * c - x[i + d // 2] * s
            out[i + d // 2] = x[i + d // 2] * c + x[i] * s
        return out

    def row(
        self, token: int, state: Tensor, position: int, past: list[tuple[Any, Any]]
    ) -> tuple[Tensor, Tensor, list[tuple[Any, Any]]]:
        """(hidden, next_state, past with this row)."""
        c, w = self.c, self.w
        u = self.norm(state, "midlayer.hidden_norm")
        e = self.norm(w["embed_tokens.weight"][token], "midlayer.input_layernorm")
        x = torch.cat([e, u])
        attn = "midlayer.self_attn."
        q = (w[attn + "q_proj.weight"] @ x).view(c.num_attention_heads, c.head_dim)
        k = (w[attn + "k_proj.weight"] @ x).view(c.num_key_value_heads, c.head_dim)
        v = (w[attn + "v_proj.weight"] @ x).view(c.num_key_value_heads, c.head_dim)
        past = [*past, ([self.rotated(head, position) for head in k], v)]
        heads = []
        for h in range(c.num_attention_heads):
            g = h // (c.num_attention_heads // c.num_key_value_heads)
            query = self.rotated(q[h], position) / math.sqrt(c.head_dim)
            weights = torch.stack([query @ keys[g] for keys, _ in past]).softmax(0)
            heads.append(sum(p * values[g] for p, (_, values) in zip(weights, past, strict=True)))
        r = (u if c.norm_before_residual else state) + w[attn + "o_proj.weight"] @ torch.cat(heads)
        n = self.norm(r, "midlayer.post_attention_layernorm")
        gate = w["midlayer.mlp.gate_proj.weight"] @ n
        gated = gate * gate.sigmoid() * (w["midlayer.mlp.up_proj.weight"] @ n)
        out = r + w["midlayer.mlp.down_proj.weight"] @ gated
        hidden = self.norm(out, "norm")
        return hidden, hidden if c.norm_output else out, past


def inputs(config: DrafterConfig, batch: int = 2, length: int = 7) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(2)
    ids = torch.randint(config.vocab_size, (batch, length))
    scales = (0.3, 2.0, 9.0, 1.0)[: config.num_aux_hidden_states]
    return ids, [s * torch.randn(batch, length, config.target_hidden_size) for s in scales]


def test_every_row_and_step_matches_the_restatement(variant: dict[str, Any]) -> None:
    drafter = tiny_drafter(**variant)
    ids, hiddens = inputs(drafter.config)
    plain = Restated(drafter)
    length = ids.shape[1]
    with torch.no_grad():
        unrolled = drafter.unroll(ids, hiddens, STEPS)
        stepped, _ = drafter.step(
            ids[:, 1:], drafter.fuse(hiddens)[:, :-1], torch.arange(length - 1)
        )
    for b in range(ids.shape[0]):
        past: list[tuple[Any, Any]] = []
        for t in range(length - 1):
            state = plain.fused([h[b, t].double() for h in hiddens])
            hidden, state, past = plain.row(int(ids[b, t + 1]), state, t, past)
            torch.testing.assert_close(stepped[b, t].double(), hidden, rtol=1e-4, atol=1e-5)
            chain = past
            for j in range(STEPS):
                if j:
                    hidden, state, chain = plain.row(int(ids[b, t + 1 + j]), state, t + j, chain)
                torch.testing.assert_close(
                    unrolled[j][0][b, t].double(), hidden, rtol=1e-4, atol=1e-5
                )
                torch.testing.assert_close(
                    unrolled[j][1][b, t].double(), state, rtol=1e-4, atol=1e-5
                )
                if t + 2 + j >= length:
                    break


@pytest.mark.parametrize("window", [None, 1, 2, 4])
@pytest.mark.parametrize("sinks", [0, 1, 3])
def test_window_of_training_and_decoding(window: int | None, sinks: int) -> None:
    """A row at a time from the cache, all at once, and unrolled: the same rows are in sight."""
    sinks = sinks if window is not None else 0
    drafter = tiny_drafter(sliding_window=window, attention_sinks=sinks)
    ids, hiddens = inputs(drafter.config, batch=1, length=9)
    with torch.no_grad():
        fused = drafter.fuse(hiddens)
        whole, _ = drafter.step(ids[:, 1:], fused[:, :-1])
        cache = DrafterCache()
        for t in range(8):
            hidden, fed = drafter.step(ids[:, t + 1 : t + 2], fused[:, t : t + 1], cache=cache)
            torch.testing.assert_close(hidden[:, 0], whole[:, t], rtol=1e-4, atol=1e-5)
            first = drafter.greedy(hidden[:, 0])
            draft = drafter.chain(fed[:, 0], first, cache, 3)
            taught = torch.cat((ids[:, : t + 2], first[:, None], draft.tokens), dim=1)
            padded = [
                torch.cat((h[:, : t + 1], torch.randn(1, taught.shape[1] - t - 1, h.shape[2])), 1)
                for h in hiddens
            ]
            for j, (_, state) in enumerate(drafter.unroll(taught, padded, 4)):
                ours = fed[:, 0] if j == 0 else draft.states[:, j - 1]
                torch.testing.assert_close(state[:, t], ours, rtol=1e-4, atol=1e-5)
    # The window hides something, or this test could not fail.
    open_drafter = tiny_drafter()
    open_drafter.load_state_dict(drafter.state_dict())
    with torch.no_grad():
        everything, _ = open_drafter.step(ids[:, 1:], fused[:, :-1])
    assert torch.allclose(everything, whole, atol=1e-4) == (window is None)


def test_rows_of_different_counts() -> None:
    """A batch that enters 3, 1 and 2 rows, then 1, 2 and 2, is its sequences one by one."""
    drafter = tiny_drafter(sliding_window=3, attention_sinks=1)
    ids, hiddens = inputs(drafter.config, batch=3)
    cache, alone = DrafterCache(), [DrafterCache() for _ in range(3)]
    starts = [0, 0, 0]
    with torch.no_grad():
        fused = drafter.fuse(hiddens)
        for counts in ([3, 1, 2], [1, 2, 2]):
            width = max(counts)
            rows = torch.tensor(starts)[:, None] + torch.arange(width)
            each = torch.arange(3)[:, None]
            state = fused[each, rows]
            # What does not count may be anything.
            state[torch.arange(width) >= torch.tensor(counts)[:, None]] = math.nan
            hidden, fed = drafter.step(ids[each, rows], state, cache=cache, counts=counts)
            for b, (start, count) in enumerate(zip(starts, counts, strict=True)):
                part = slice(start, start + count)
                one, _ = drafter.step(ids[b : b + 1, part], fused[b : b + 1, part], cache=alone[b])
                torch.testing.assert_close(hidden[b, :count], one[0], rtol=1e-5, atol=1e-5)
            starts = [start + count for start, count in zip(starts, counts, strict=True)]
            assert cache.lengths.tolist() == starts
        last = torch.tensor(counts) - 1
        drafts = drafter.chain(fed[torch.arange(3), last], ids[:, 0], cache, 4).tokens
        for b in range(3):
            single = drafter.chain(fed[b : b + 1, last[b]], ids[b : b + 1, 0], alone[b], 4).tokens
            assert torch.equal(drafts[b], single[0])


def test_no_position_beyond_the_last() -> None:
    drafter = tiny_drafter(max_position_embeddings=6)
    ids, hiddens = inputs(drafter.config)
    with torch.no_grad():
        fused = drafter.fuse(hiddens)
        cache = DrafterCache()
        drafter.step(ids[:, :4], fused[:, :4], cache=cache)
        with pytest.raises(ValueError, match="expected at most max_position_embeddings = 6"):
            drafter.step(ids[:, 4:], fused[:, 4:], cache=cache)
        with pytest.raises(ValueError, match="expected at most max_position_embeddings = 6"):
            drafter.chain(fused[:, 4], ids[:, 4], cache, 3)
        assert cache.lengths.tolist() == [4, 4]
        # Rows that stick out but do not count are no reason to refuse.
        drafter.step(ids[:, 4:], fused[:, 4:], cache=cache, counts=[2, 1])
        assert cache.lengths.tolist() == [6, 5]


def test_weights_share_the_drafters_tensors() -> None:
    drafter = tiny_drafter(draft_vocab_size=23, norm_before_residual=True, norm_output=False)
    weights = drafter.weights(9)
    assert weights.q.data_ptr() == drafter.midlayer.self_attn.q_proj.weight.data_ptr()
    assert weights.head.data_ptr() == drafter.lm_head.weight.data_ptr()
    assert not weights.q.requires_grad
    assert weights.cos.shape == (9, 5)
    assert weights.d2t is not None
    assert (weights.norm_before_residual, weights.norm_output) == (True, False)
    assert tiny_drafter().weights(1).d2t is None


def test_cached_rows_equal_one_pass() -> None:
    drafter = tiny_drafter()
    ids, hiddens = inputs(drafter.config, length=9)
    positions = torch.arange(9)
    with torch.no_grad():
        fused = drafter.fuse(hiddens)
        whole, _ = drafter.step(ids, fused, positions)
        cache, parts = DrafterCache(), []
        for part in (slice(0, 1), slice(1, 4), slice(4, 5), slice(5, 9)):
            hidden, _ = drafter.step(ids[:, part], fused[:, part], positions[part], cache)
            drafter.chain(hidden[:, -1], ids[:, 0], cache, 3)
            parts.append(hidden)
        assert cache.length == 9
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=1e-5)


def test_batched_positions() -> None:
    drafter = tiny_drafter()
    ids, hiddens = inputs(drafter.config)
    fused = drafter.fuse(hiddens)
    one, _ = drafter.step(ids, fused, torch.arange(7))
    each, _ = drafter.step(ids, fused, torch.arange(7).expand(2, 7))
    torch.testing.assert_close(one, each)


def test_what_is_fed_back() -> None:
    ids, hiddens = inputs(tiny_config())
    post, pre = tiny_drafter(), tiny_drafter(norm_output=False)
    hidden, state = post.unroll(ids, hiddens, 1)[0]
    assert state is hidden
    raw_hidden, raw_state = pre.unroll(ids, hiddens, 1)[0]
    torch.testing.assert_close(raw_hidden, hidden)
    torch.testing.assert_close(pre.norm(raw_state), hidden)
    assert (raw_state - hidden).abs().max() > 0.1


def test_gradients_reach_every_parameter(variant: dict[str, Any]) -> None:
    drafter = tiny_drafter(**variant)
    ids, hiddens = inputs(drafter.config)
    loss = sum(
        drafter.logits(hidden).square().mean() for hidden, _ in drafter.unroll(ids, hiddens, 3)
    )
    assert isinstance(loss, Tensor)
    loss.backward()
    for name, parameter in drafter.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_gradient_flows_through_the_chain() -> None:
    """The last step alone must reach the target states: no step is cut off."""
    drafter = tiny_drafter()
    ids, hiddens = inputs(drafter.config)
    hiddens = [h.requires_grad_() for h in hiddens]
    hidden, _ = drafter.unroll(ids, hiddens, 3)[-1]
    hidden[:, 3].square().sum().backward()
    for h in hiddens:
        assert h.grad is not None
        rows = h.grad.abs().sum((0, 2)) > 0
        # Row 3 sees rows 0 to 3.
        assert rows.tolist() == [True] * 4 + [False] * 3


def test_state_dict_names(variant: dict[str, Any]) -> None:
    names = {
        "embed_tokens.weight",
        "fc.weight",
        "midlayer.input_layernorm.weight",
        "midlayer.hidden_norm.weight",
        "midlayer.post_attention_layernorm.weight",
        *(f"midlayer.self_attn.{p}_proj.weight" for p in "qkvo"),
        *(f"midlayer.mlp.{p}_proj.weight" for p in ("gate", "up", "down")),
        "norm.weight",
        "lm_head.weight",
        "d2t",
        "t2d",
    }
    config = tiny_config(**variant)
    if config.fc_norm:
        names |= {f"fc_norm.{i}.weight" for i in range(3)}
    if config.norm_before_fc:
        names.add("input_norm.weight")
    state = Eagle3Drafter(config).state_dict()
    assert set(state) == names
    assert state["d2t"].dtype == torch.int64
    assert state["t2d"].dtype == torch.bool


def test_draft_vocabulary_maps_by_offset() -> None:
    drafter = tiny_drafter(draft_vocab_size=5)
    ids = [0, 3, 4, 20, 36]
    drafter.set_draft_vocabulary(ids)
    assert drafter.d2t.tolist() == [0, 2, 2, 17, 32]
    assert drafter.t2d.nonzero()[:, 0].tolist() == ids
    hidden = torch.randn(2, 3, 24)
    expected = torch.tensor(ids)[drafter.logits(hidden).argmax(-1)]
    assert torch.equal(drafter.greedy(hidden), expected)
    for bad in ([0, 3, 4, 20], [0, 4, 3, 20, 36], [0, 3, 4, 20, 37], [-1, 3, 4, 20, 36]):
        with pytest.raises(ValueError, match="token_ids"):
            drafter.set_draft_vocabulary(bad)


def test_chain_of_a_batch_equals_its_rows() -> None:
    drafter = tiny_drafter()
    ids, hiddens = inputs(drafter.config, batch=3)
    with torch.no_grad():
        fused = drafter.fuse(hiddens)
        drafts = drafter.chain(fused[:, 0], ids[:, 1], DrafterCache(), 4).tokens
        for b in range(3):
            one = slice(b, b + 1)
            alone = drafter.chain(fused[one, 0], ids[one, 1], DrafterCache(), 4).tokens
            assert torch.equal(drafts[one], alone)


def test_bfloat16_stays_close() -> None:
    drafter = tiny_drafter()
    ids, hiddens = inputs(drafter.config)
    exact = drafter.unroll(ids, hiddens, 3)[-1][0]
    rough = tiny_drafter(torch.bfloat16).unroll(ids, hiddens, 3)[-1][0]
    assert rough.dtype == torch.bfloat16
    error = (rough.float() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    # Three steps of about ten roundings of 2^-9 each, amplified by the layer.
    assert error < 0.05


def test_errors_name_the_argument() -> None:
    drafter = tiny_drafter()
    ids, hiddens = inputs(drafter.config)
    with pytest.raises(ValueError, match="hiddens: got 2 tensors, expected 3"):
        drafter.fuse(hiddens[:2])
    with pytest.raises(ValueError, match=r"hiddens\[1\]: got shape"):
        drafter.fuse([hiddens[0], hiddens[1][..., :-1], hiddens[2]])
    with pytest.raises(ValueError, match="steps: got 0"):
        drafter.unroll(ids, hiddens, 0)
    with pytest.raises(ValueError, match="input_ids: got shape"):
        drafter.unroll(ids[:, :-1], hiddens, 1)
    with pytest.raises(ValueError, match="state: got shape"):
        drafter.step(ids, hiddens[0], torch.arange(7))
    with pytest.raises(ValueError, match=r"torch\.no_grad"):
        drafter.step(ids, drafter.fuse(hiddens), torch.arange(7), DrafterCache())


def test_cache_limits() -> None:
    cache = DrafterCache(capacity=2)
    rows = torch.randn(1, 2, 3, 4)
    cache.append(rows, rows)
    keys, values = cache.append(rows[:, :, :1], rows[:, :, :1])
    assert torch.equal(keys, torch.cat((rows, rows[:, :, :1]), dim=2))
    assert torch.equal(values, keys)
    cache.crop(1)
    assert cache.length == 1
    with pytest.raises(ValueError, match="length: got 2, expected 0 to 1"):
        cache.crop(2)
    with pytest.raises(ValueError, match="keys: got"):
        cache.append(rows[:, :1], rows[:, :1])
    with pytest.raises(ValueError, match="values: got"):
        cache.append(rows, rows[:, :, :1])
    with pytest.raises(ValueError, match=r"keys: got torch\.float64"):
        cache.append(rows.double(), rows.double())
    with pytest.raises(ValueError, match="empty, expected rows"):
        _ = DrafterCache().keys
    with pytest.raises(ValueError, match="capacity: got -1"):
        DrafterCache(-1)


def test_cache_of_sequences() -> None:
    cache = DrafterCache()
    rows = torch.randn(3, 1, 2, 4)
    cache.append(rows, -rows, counts=[2, 0, 1])
    assert cache.lengths.tolist() == [2, 0, 1]
    assert cache.longest == 2
    with pytest.raises(ValueError, match=r"length: the sequences hold \[2, 0, 1\] rows"):
        _ = cache.length
    # Grows; the rows held stay.
    more = torch.randn(3, 1, 4, 4)
    cache.append(more, -more, counts=[1, 4, 0])
    assert torch.equal(cache.keys[0, :, :3], torch.cat((rows[0], more[0, :, :1]), dim=1))
    assert torch.equal(cache.values[1, :, :4], -more[1])
    assert torch.equal(cache.keys[2, :, :1], rows[2, :, :1])
    for bad in ([1, 1], [5, 0, 0], [-1, 0, 0]):
        with pytest.raises(ValueError, match="counts: got"):
            cache.append(more, more, counts=bad)
    assert cache.lengths.tolist() == [3, 4, 1]
    with pytest.raises(ValueError, match="no more than were reserved"):
        cache.advance(10)
    cache.crop([2, 4, 0])
    cache.select([1, 0])
    assert cache.lengths.tolist() == [4, 2]
    assert torch.equal(cache.keys[1, :, :2], rows[0])
    assert "[4, 2]" in repr(cache)
    with pytest.raises(ValueError, match="length: got 1 lengths, expected 2"):
        cache.crop([1])


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma"])
def test_copy_from_target(family: str) -> None:
    target = make_target(family)
    drafter = Eagle3Drafter(DrafterConfig.for_target(target.config, draft_vocab_size=10))
    chosen = torch.arange(3, 33, 3)
    drafter.set_draft_vocabulary(chosen)
    copied = drafter.copy_from_target(target)
    assert copied == ("embed_tokens.weight", "lm_head.weight", "norm.weight")
    assert not drafter.embed_tokens.weight.requires_grad
    assert drafter.lm_head.weight.requires_grad
    # The target's own final norm and head, restricted to the draft vocabulary.
    x = torch.randn(5, 32)
    expected = target.lm_head(target.model.norm(x))[:, chosen]
    torch.testing.assert_close(drafter.logits(drafter.norm(x)), expected, rtol=1e-4, atol=1e-4)


def test_copy_leaves_a_layer_norm_alone() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_embd=32, n_head=4, n_layer=3, n_positions=64, vocab_size=50)
    target = transformers.GPT2LMHeadModel(config)
    drafter = Eagle3Drafter(DrafterConfig.for_target(config))
    assert drafter.copy_from_target(target) == ("embed_tokens.weight", "lm_head.weight")
    narrow = Eagle3Drafter(DrafterConfig.for_target(config, hidden_size=16))
    with pytest.raises(ValueError, match="its embedding is"):
        narrow.copy_from_target(target)
