"""Rotary frequencies and tables against transformers', and the drafter's cached table."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

from drafter_models import tiny_config, tiny_drafter
from leeboard.draft import DrafterConfig, Eagle3Drafter
from leeboard.draft.layer import rotate
from leeboard.draft.rope import inverse_frequencies, rope_table

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
SCALINGS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "llama3": LLAMA3,
    "yarn": YARN,
    "yarn-untruncated": {**YARN, "truncate": False, "beta_fast": 20.0, "beta_slow": 2.0},
    "yarn-factor": {**YARN, "attention_factor": 1.25},
    "yarn-mscale": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.1},
}


def scaled(name: str, **overrides: Any) -> DrafterConfig:
    fields = {"rope_theta": 5000.0, "head_dim": 34, "max_position_embeddings": 700}
    return tiny_config(rope_scaling=SCALINGS[name], **fields, **overrides)


@pytest.mark.parametrize("name", SCALINGS)
def test_equals_transformers(name: str) -> None:
    pytest.importorskip("transformers")
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = scaled(name)
    theirs = LlamaRotaryEmbedding(
        LlamaConfig(
            hidden_size=68,
            num_attention_heads=2,
            head_dim=34,
            rope_theta=5000.0,
            # transformers writes into the mapping that it is given.
            rope_scaling=copy.deepcopy(SCALINGS[name]),
            max_position_embeddings=700,
        )
    )
    inverse, factor = inverse_frequencies(config)
    assert inverse.dtype == torch.float32
    assert torch.equal(inverse, theirs.inv_freq)
    assert factor == theirs.attention_scaling
    cos, sin = theirs(torch.zeros(1), torch.arange(501)[None])
    ours = rope_table(config, 501)
    assert torch.equal(ours[0], cos[0, :, :17])
    assert torch.equal(ours[1], sin[0, :, :17])


def test_llama3_scales_all_three_bands() -> None:
    """The case above sees what is kept, what is blended and what is divided."""
    plain, _ = inverse_frequencies(scaled("none"))
    ratio = plain / inverse_frequencies(scaled("llama3"))[0]
    assert ratio[0] == 1
    assert ratio[-1] == 8
    assert ((ratio > 1.01) & (ratio < 7.9)).any()


@pytest.mark.parametrize("name", ["linear", "llama3", "yarn"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_turns_by_the_table(name: str, dtype: torch.dtype) -> None:
    drafter = tiny_drafter(dtype, rope_scaling=SCALINGS[name])
    positions = torch.tensor([5, 0, 63, 17])
    table_cos, table_sin = drafter.rope_table(64)
    for given in (positions, positions.expand(2, 4)):
        cos, sin = drafter.midlayer.self_attn.turns(given)
        assert torch.equal(cos, torch.cat((table_cos[given],) * 2, -1)[..., None, :])
        below = table_sin[given]
        assert torch.equal(sin, torch.cat((-below, below), -1)[..., None, :])
    # As in the original: x cos + (-high, low) sin, in the dtype of x.
    x = torch.randn(2, 4, 3, 10, dtype=dtype)
    cos, sin = (torch.cat((t[positions],) * 2, -1)[:, None] for t in (table_cos, table_sin))
    low, high = x.chunk(2, dim=-1)
    expected = x.float() * cos + torch.cat((-high, low), -1).float() * sin
    ours = rotate(x, *drafter.midlayer.self_attn.turns(positions))
    assert ours.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(ours.float(), expected, rtol=tolerance, atol=tolerance)


def test_gradient_of_the_rotation() -> None:
    x = torch.randn(3, 2, 6, dtype=torch.float64, requires_grad=True)
    angle = torch.randn(3, 1, 3, dtype=torch.float64)
    cos, sin = angle.cos(), angle.sin()
    turn = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    assert torch.autograd.gradcheck(lambda x: rotate(x, *turn), [x])


def test_scaling_changes_what_is_drafted() -> None:
    config = tiny_config(rope_scaling=SCALINGS["linear"])
    torch.manual_seed(0)
    plain = tiny_drafter()
    scaled_drafter = Eagle3Drafter(config)
    scaled_drafter.load_state_dict(plain.state_dict())
    state, ids, at = torch.randn(1, 4, 24), torch.randint(37, (1, 4)), torch.arange(4)
    ours, theirs = (d.step(ids, state, at)[0] for d in (plain, scaled_drafter))
    assert torch.equal(ours[:, 0], theirs[:, 0])
    assert (ours[:, 1:] - theirs[:, 1:]).abs().max() > 1e-3


def test_table_grows_by_doubling_up_to_the_limit() -> None:
    drafter = tiny_drafter(max_position_embeddings=700)
    expected = rope_table(drafter.config, 700)
    seen = []
    for length in (1, 100, 129, 70, 600, 700):
        for ours, whole in zip(drafter.rope_table(length), expected, strict=True):
            assert torch.equal(ours, whole[:length])
        assert drafter._rope is not None
        seen.append(drafter._rope[0].shape[0])
    assert seen == [128, 128, 256, 256, 700, 700]
    assert drafter.rope_table(600)[0].data_ptr() == drafter.rope_table(3)[0].data_ptr()
    with pytest.raises(ValueError, match=r"got 701 positions.*max_position_embeddings = 700"):
        drafter.rope_table(701)
    for bad in (0, -1, True):
        with pytest.raises(ValueError, match="length: got"):
            drafter.rope_table(bad)


def test_table_stays_float32_and_out_of_the_state() -> None:
    drafter = tiny_drafter()
    names = set(drafter.state_dict())
    before = drafter.rope_table(9)
    assert set(drafter.to(torch.bfloat16).state_dict()) == names
    for ours, kept in zip(drafter.rope_table(9), before, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, kept)
    for other in (copy.deepcopy(drafter), pickle.loads(pickle.dumps(drafter))):
        assert torch.equal(other.rope_table(40)[1], drafter.rope_table(40)[1])
        assert other.config == drafter.config


def test_table_and_angles_follow_the_device() -> None:
    with torch.device("meta"):
        drafter = Eagle3Drafter(scaled("llama3"))
    attention = drafter.midlayer.self_attn
    drafter = drafter.to_empty(device="meta")
    assert drafter.rope_table(5)[0].device.type == "meta"
    assert attention._inverse.device.type == "meta"
    drafter = drafter.to_empty(device="cpu")
    assert torch.equal(attention._inverse, inverse_frequencies(drafter.config)[0])
    assert torch.equal(drafter.rope_table(5)[0], rope_table(drafter.config, 5)[0])


def test_table_of_inference_mode_serves_training() -> None:
    drafter = tiny_drafter()
    with torch.inference_mode():
        drafter.rope_table(8)
    x = torch.randn(8, 5, requires_grad=True)
    (x * drafter.rope_table(8)[0]).sum().backward()
    assert x.grad is not None
