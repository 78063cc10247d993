"""Models under plans, against copies whose weights are zero where a plan keeps nothing."""

from __future__ import annotations

import copy
import pickle
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from leeboard import nn as lnn
from leeboard.ops.patterns import Band, Causal, Modality, TopU
from leeboard.prune import Declaration, Plan, active_plan, apply, compact, revert, units
from leeboard.prune._expose import exposed
from pruned_models import (
    Fused,
    encoder,
    hugging_face,
    inputs_of,
    masked,
    none,
    odd_units,
    plan_for,
    tensors_of,
    whole_units,
)

Call = Callable[[Any], Tensor]


def attributes(model: nn.Module) -> dict[str, dict[str, Any]]:
    return {name: dict(vars(module)) for name, module in model.named_modules()}


def check(model: nn.Module, call: Call, *, twice: bool = True) -> None:
    """All kinds of plans give what the masked model gives; then the model is as it was."""
    model.eval()
    found = units(model)
    assert len(found)
    before, state = attributes(model), {k: v.clone() for k, v in model.state_dict().items()}
    biased = all(model.get_submodule(s.reader).bias is not None for s in found)
    for keep in (whole_units(found), odd_units, none):
        for extra in (False, True):
            plan = plan_for(found, keep, scales=extra, bias=extra and biased)
            with torch.no_grad():
                expected = call(masked(model, found, plan))
                apply(model, plan)
                assert active_plan(model) is plan
                result = call(model)
            torch.testing.assert_close(result, expected)
    parameters = dict(model.named_parameters())
    now = model.state_dict()
    assert now.keys() == state.keys()
    assert all(torch.equal(v, now[k]) for k, v in state.items())
    revert(model)
    assert attributes(model) == before
    assert all(p is parameters[n] for n, p in model.named_parameters())
    assert active_plan(model) is None


def windows() -> dict[str, Tensor]:
    return {"left": torch.randn(2, 3, 24), "right": torch.randn(2, 3, 24)}


@pytest.mark.parametrize("gated", [False, True])
def test_own_modules(gated: bool) -> None:
    x = windows()
    check(Fused(gated=gated, sinks=gated), lambda m: m(x))


def test_own_modules_in_bfloat16() -> None:
    model, x = Fused(sinks=False).bfloat16().eval(), {m: t.bfloat16() for m, t in windows().items()}
    found = units(model)
    plan = plan_for(found, lambda name, count: tuple(range(count // 2)))
    expected = masked(model, found, plan)(x)
    apply(model, plan)
    torch.testing.assert_close(model(x), expected, atol=2**-8, rtol=2**-6)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_torch_encoder(norm_first: bool, activation: str) -> None:
    x = torch.randn(2, 5, 24)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    model = encoder(norm_first=norm_first, activation=activation)
    # The masked copy may not take torch's path of nested tensors, which warns.
    for part in model.modules():
        if isinstance(part, nn.TransformerEncoder):
            part.use_nested_tensor = False
    check(model, lambda m: m(x, src_key_padding_mask=padding)[~padding])
    check(model, lambda m: m(x, mask=causal, is_causal=True))
    check(model, lambda m: m(x, mask=torch.triu(torch.ones(5, 5), 2).bool()))


def test_torch_encoder_with_nested_tensors() -> None:
    """An encoder that would make nested tensors of padded sequences makes none under a plan."""
    model, x = encoder().eval(), torch.randn(2, 5, 24)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    assert any(m.use_nested_tensor for m in model.modules() if hasattr(m, "use_nested_tensor"))
    found = units(model)
    plan = plan_for(found, odd_units)
    plain = masked(model, found, plan)
    plain.use_nested_tensor = False
    with torch.no_grad():
        expected = plain(x, src_key_padding_mask=padding)[~padding]
        apply(model, plan)
        torch.testing.assert_close(model(x, src_key_padding_mask=padding)[~padding], expected)


def test_torch_decoder() -> None:
    x, memory = torch.randn(2, 4, 24), torch.randn(2, 7, 24)
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 5:] = True
    model = nn.TransformerDecoderLayer(24, 4, 40, batch_first=True)
    check(model, lambda m: m(x, memory, memory_key_padding_mask=padding))


def test_multihead_attention_arguments() -> None:
    x = torch.randn(5, 2, 24)
    per_head = torch.randn(2 * 4, 5, 5)
    bias = torch.randn(2, 5)
    check(nn.MultiheadAttention(24, 4), lambda m: m(x, x, x)[0])
    check(nn.MultiheadAttention(24, 4, bias=False), lambda m: m(x, x, x, need_weights=False)[0])
    check(nn.MultiheadAttention(24, 4), lambda m: m(x, x, x, attn_mask=per_head)[0])
    check(nn.MultiheadAttention(24, 4), lambda m: m(x, x, x, bias, need_weights=False)[0])
    check(nn.MultiheadAttention(24, 4), lambda m: m(x[:3], x, x + 1, need_weights=False)[0])
    one = torch.randn(5, 24)
    check(nn.MultiheadAttention(24, 4), lambda m: m(one, one, one, need_weights=False)[0])


def test_multihead_attention_weights_are_those_of_the_heads_that_run() -> None:
    model, x = nn.MultiheadAttention(24, 4, batch_first=True), torch.randn(2, 5, 24)
    found = units(model)
    _, every = model(x, x, x, average_attn_weights=False)
    apply(model, plan_for(found, lambda name, count: (1, 3)))
    torch.testing.assert_close(model(x, x, x, average_attn_weights=False)[1], every[:, [1, 3]])
    torch.testing.assert_close(model(x, x, x)[1], every[:, [1, 3]].mean(1))
    apply(model, plan_for(found, none))
    assert model(x, x, x)[1] is None


def test_replaced_attention() -> None:
    x = torch.randn(2, 6, 24)
    model = encoder(dropout=0.0)
    lnn.replace(model, attention=Modality.of_lengths([4, 2]))
    check(model, lambda m: m(x))
    causal = nn.Transformer.generate_square_subsequent_mask(6)
    other = encoder(dropout=0.0)
    lnn.replace(other, attention=Band(3))
    check(other, lambda m: m(x, mask=causal, is_causal=True))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["bert", "vit", "clip", "llama", "qwen3"])
def test_hugging_face(kind: str, attention: str) -> None:
    inputs = inputs_of(kind)
    check(hugging_face(kind, attention), lambda m: tensors_of(m(**inputs))[0])


def first_dropped(name: str, count: int) -> tuple[int, ...]:
    return () if ".0." in name else odd_units(name, count)


@pytest.mark.parametrize("keep", [odd_units, none, first_dropped])
@pytest.mark.parametrize("cache", [None, "static"])
def test_generate_with_a_cache(
    keep: Callable[[str, int], tuple[int, ...]], cache: str | None
) -> None:
    """A dropped attention still counts its tokens, or positions would stand still."""
    model = hugging_face("llama").eval()
    found, inputs = units(model), inputs_of("llama")
    plan = plan_for(found, keep)
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}
    if cache:
        options["cache_implementation"] = cache
    expected = masked(model, found, plan).generate(**inputs, **options)
    apply(model, plan)
    assert torch.equal(model.generate(**inputs, **options), expected)


def test_hugging_face_through_leeboard_attention() -> None:
    lnn.register_attention()
    inputs = inputs_of("llama")
    check(hugging_face("llama", "leeboard"), lambda m: m(**inputs).logits[1, 3:])


def test_sparse_gqa_options() -> None:
    x = torch.randn(2, 6, 24)
    padding = torch.zeros(2, 6, dtype=torch.bool)
    padding[0, 4:] = True
    angles = torch.rand(1, 6, 6)
    rotation = (angles.cos(), angles.sin())
    model = lnn.SparseGQA(24, 4, 2, pattern=Causal(), sinks=True, softcap=5.0)
    nn.init.normal_(model.sink_logits)
    check(model, lambda m: m(x, key_padding=padding, position_embeddings=rotation))
    check(lnn.SparseGQA(24, 4, bias=False, pattern=TopU(1)), lambda m: m(x))
    check(model, lambda m: m(x, active_heads=[0, 1]) + m(x, pattern=Band(2)))
    model.active_heads = [1, 2]
    check(model, lambda m: m(x))


def test_cross_attention_active_heads() -> None:
    x, memory = torch.randn(2, 6, 24), torch.randn(2, 3, 8)
    model = lnn.CrossAttention(24, 4, 2, key_dim=8)
    check(model, lambda m: m(x, memory, active_heads=[1, 2]))


@torch.no_grad()
def test_active_heads_are_checked_under_a_plan() -> None:
    model, x = lnn.SparseGQA(24, 4, pattern=Causal()), torch.randn(1, 5, 24)
    apply(model, plan_for(units(model), lambda name, count: (0, 1, 2)))
    for cache in (None, model.cache(1, 5)):
        with pytest.raises(TypeError, match="active_heads: expected a list"):
            model(x, active_heads=torch.tensor([0, 1]), cache=cache)
        with pytest.raises(ValueError, match=r"active_heads\[1\]: 7"):
            model(x, active_heads=[0, 7], cache=cache)


def test_sparse_gqa_log_sum_exp() -> None:
    model, x = lnn.SparseGQA(24, 6, 2, sinks=True), torch.randn(2, 5, 24)
    _, every = model(x, need_lse=True)
    apply(model, plan_for(units(model), lambda name, count: (3, 5)))
    _, lse = model(x, need_lse=True)
    torch.testing.assert_close(lse[:, [3, 5]], every[:, [3, 5]])
    assert (lse[:, :3] == -torch.inf).all()
    apply(model, plan_for(units(model), none))
    assert (model(x, need_lse=True)[1] == -torch.inf).all()


@torch.no_grad()
def test_plans_change_between_two_tokens_of_a_cache() -> None:
    model, x = lnn.SparseGQA(24, 4, 2, pattern=Causal()).eval(), torch.randn(2, 6, 24)
    found = units(model)
    plans = [plan_for(found, keep, scales=True) for keep in (odd_units, none, whole_units(found))]
    cache, parts = model.cache(2, 6), []
    for n, plan in enumerate(plans):
        apply(model, plan)
        parts.append(model(x[:, 2 * n : 2 * n + 2], cache=cache))
    revert(model)
    for n, (part, plan) in enumerate(zip(parts, plans, strict=True)):
        expected = masked(model, found, plan)(x)[:, 2 * n : 2 * n + 2]
        torch.testing.assert_close(part, expected)


def test_declared_blocks() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(24, n) for n in (24, 12, 12))
            self.o = nn.Linear(24, 24)
            self.norm = nn.LayerNorm(6)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (
                layer(x).view(*x.shape[:2], -1, 6).transpose(1, 2)
                for layer in (self.q, self.k, self.v)
            )
            groups = q.shape[1] // k.shape[1]
            k, v = (t.repeat_interleave(groups, 1) for t in (self.norm(k), v))
            out = nn.functional.scaled_dot_product_attention(q, k, v)
            return self.o(out.transpose(1, 2).flatten(2))

    model = nn.Sequential(Attention(), nn.Linear(24, 33), nn.Sigmoid(), nn.Linear(33, 5)).eval()
    declared = [
        Declaration("0", "attention", ("q", "k", "v"), "o", width=6),
        Declaration("", "feed_forward", ("1",), "3"),
    ]
    found = units(model, declare=declared)
    assert found["0"].group == 2
    x = torch.randn(2, 4, 24)
    for keep in (whole_units(found), odd_units, none):
        plan = plan_for(found, keep, scales=True, bias=True)
        expected = masked(model, found, plan)(x)
        apply(model, plan, units=found)
        torch.testing.assert_close(model(x), expected)
    revert(model)
    with pytest.raises(ValueError, match="declared by hand need units="):
        apply(model, plan)


@pytest.mark.parametrize("seed", range(12))
@torch.no_grad()
def test_random_plans(seed: int) -> None:
    torch.manual_seed(seed)
    x = {m: torch.randn(2, 3, 24) for m in ("left", "right")}
    for model, call in (
        (Fused().eval(), lambda m: m(x)),
        (encoder(norm_first=True).eval(), lambda m: m(x["left"])),
    ):
        found = units(model)

        def keep(name: str, count: int) -> tuple[int, ...]:
            share = torch.rand(()) * 1.4 - 0.2
            return tuple((torch.rand(count) < share).nonzero().flatten().tolist())

        plan = plan_for(found, keep, scales=seed % 2 == 0, bias=seed % 3 == 0)
        if seed % 4 == 0:
            named = {n: kept for n, kept in plan.keep.items() if torch.rand(()) < 0.7}
            fitting = {n: b for n, b in plan.bias.items() if n in named}
            scales = {n: s for n, s in plan.scales.items() if n in named}
            plan = replace(plan, keep=named, bias=fitting, scales=scales)
        expected = call(masked(model, found, plan))
        apply(model, plan)
        torch.testing.assert_close(call(model), expected)
        torch.testing.assert_close(call(compact(model, plan)), expected)


def test_the_dtype_may_change_under_a_plan() -> None:
    model, x = encoder().eval(), torch.randn(2, 5, 24, dtype=torch.float64)
    found = units(model)
    plan = plan_for(found, odd_units, scales=True, bias=True)
    apply(model, plan)
    model(x.float())
    model.double()
    expected = masked(copy.deepcopy(model).double(), found, plan)(x)
    torch.testing.assert_close(model(x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["fused", "encoder", "llama"])
@torch.no_grad()
def test_on_a_gpu(kind: str) -> None:
    inputs = {m: x.cuda() for m, x in windows().items()}
    ids = torch.randint(3, 30, (2, 6)).cuda()
    model, call = {
        "fused": (Fused(), lambda m: m(inputs)),
        "encoder": (encoder(), lambda m: m(inputs["left"])),
        "llama": (hugging_face("llama"), lambda m: m(ids).logits),
    }[kind]
    found = units(model)
    plans = [plan_for(found, keep, scales=True) for keep in (whole_units(found), odd_units, none)]
    copies = [masked(model, found, plan).cuda().eval() for plan in plans]
    # Moved after the plan was made ready.
    apply(model, plans[0])
    model.cuda().eval()
    for plan, reference in zip(plans, copies, strict=True):
        apply(model, plan)
        torch.testing.assert_close(call(model), call(reference), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["fused", "encoder", "llama"])
def test_training_under_a_plan(kind: str) -> None:
    """Gradients are those of the masked model, but for weights that the mask itself zeroes."""
    x = torch.randn(2, 6, 24)
    ids = torch.randint(3, 30, (2, 6))
    model, call = {
        "fused": (Fused(), lambda m: m({"left": x, "right": x})),
        "encoder": (encoder(dropout=0.0), lambda m: m(x)),
        "llama": (hugging_face("llama"), lambda m: m(ids).logits),
    }[kind]
    model.train()
    found = units(model)
    plan = plan_for(found, odd_units)
    reference = masked(model, found, plan)
    (call(reference) ** 2).sum().backward()
    apply(model, plan)
    (call(model) ** 2).sum().backward()
    readers = {f"{s.reader}.weight" for s in found}
    expected = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        if name not in readers:
            torch.testing.assert_close(
                gradient, expected[name].grad, msg=name, rtol=1e-4, atol=1e-5
            )
    weight = model.get_submodule(found.sublayers[0].reader).weight
    assert weight.grad.abs().sum() > 0


def test_training_after_inference_mode() -> None:
    """What a plan makes at its first call in inference serves a training."""
    model, x = Fused(), {m: torch.randn(2, 3, 24) for m in Fused.modalities}
    plan = plan_for(units(model), odd_units, scales=True, bias=True)
    with torch.inference_mode():
        apply(model, plan)
        model(x)
        model.double()
        x = {name: value.double() for name, value in x.items()}
        model(x)
    x = {name: torch.randn(2, 3, 24, dtype=torch.float64) for name in x}
    # The parameters themselves, made in inference, are replaced.
    fresh = Fused().double().state_dict()
    model.load_state_dict(fresh, assign=True)
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.ff.parameters())


def test_dropout_works_in_training() -> None:
    model, x = encoder(dropout=0.5), torch.randn(4, 6, 24)
    apply(model, plan_for(units(model), odd_units))
    torch.manual_seed(1)
    first = model(x)
    assert not torch.equal(first, model(x))
    torch.manual_seed(1)
    torch.testing.assert_close(model(x), first)


def test_autocast() -> None:
    model, x = encoder().eval(), torch.randn(2, 5, 24)
    found = units(model)
    plan = plan_for(found, odd_units)
    # With gradients, or the masked copy would take torch's fused path, which rounds otherwise.
    with torch.autocast("cpu", torch.bfloat16):
        expected = masked(model, found, plan)(x)
        apply(model, plan)
        torch.testing.assert_close(model(x), expected, atol=2e-2, rtol=2e-2)


def test_hooks_of_a_reader_see_what_runs() -> None:
    model, x = hugging_face("llama").eval(), inputs_of("llama")
    found = units(model)
    ff = found["model.layers.0.mlp"]
    plan = plan_for(found, lambda name, count: tuple(range(count // 2)))
    seen = []
    hook = model.get_submodule(ff.reader).register_forward_pre_hook(
        lambda _, args: seen.append(args[0].shape[-1])
    )
    apply(model, plan)
    model(**x)
    hook.remove()
    # 20 channels are two panels.
    assert seen == [32]


def test_modalities_that_the_plan_does_without_are_dropped() -> None:
    model, x = Fused().eval(), windows()
    found = units(model)
    plan = plan_for(found, odd_units, present=("right",))
    expected = masked(model, found, plan)({"right": x["right"]})
    apply(model, plan)
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(model(inputs=x), expected)
    assert set(x) == {"left", "right"}


def test_sublayers_that_the_plan_does_not_name_run_as_they_are() -> None:
    model, x = Fused().eval(), windows()
    found = units(model)
    plan = replace(plan_for(found, odd_units), keep={"ff": (3,)})
    expected = masked(model, found, plan)(x)
    apply(model, plan)
    torch.testing.assert_close(model(x), expected)


def test_gates_and_bias_of_a_call_join_those_of_the_plan() -> None:
    block, x = lnn.FeedForward(24, 40).eval(), torch.randn(2, 3, 24)
    found = units(block)
    plan = plan_for(found, odd_units, scales=True)
    gates, bias = torch.rand(2, 40), torch.randn(24)
    expected = masked(block, found, plan)(x, gates=gates, bias=bias)
    apply(block, plan)
    torch.testing.assert_close(block(x, gates=gates, bias=bias), expected)


class Slow(nn.Module):
    """Many layers, with room for a switch between any two."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(lnn.FeedForward(16, 32) for _ in range(12))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
            time.sleep(0)
        return x


@torch.no_grad()
def test_a_forward_sees_one_plan_while_another_thread_switches() -> None:
    model, x = Slow().eval(), torch.randn(1, 2, 16)
    found = units(model)
    plans = [plan_for(found, lambda n, c, k=k: tuple(range(16 * k, 16 * k + 16))) for k in (0, 1)]
    expected = []
    for plan in plans:
        apply(model, plan)
        expected.append(model(x))
    assert (expected[0] - expected[1]).abs().max() > 1e-2
    results: list[Tensor] = []
    done = threading.Event()

    def infer() -> None:
        while not done.is_set():
            results.append(model(x))

    threads = [threading.Thread(target=infer) for _ in range(2)]
    for thread in threads:
        thread.start()
    switches = 0
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        apply(model, plans[switches % 2])
        switches += 1
        time.sleep(0)
    done.set()
    for thread in threads:
        thread.join()
    kinds = [min((0, 1), key=lambda k: (r - expected[k]).abs().max().item()) for r in results]
    assert all(torch.equal(r, expected[k]) for r, k in zip(results, kinds, strict=True))
    assert set(kinds) == {0, 1}
    assert switches > len(results) / 10


def test_a_nested_call_keeps_the_plan_of_the_outer_one() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ff = lnn.FeedForward(16, 32)
            self.switch: Callable[[], None] | None = None

        def forward(self, x: Tensor, *, inner: bool = False) -> Tensor:
            if inner:
                return self.ff(x)
            if self.switch is not None:
                self.switch()
            return self(x, inner=True)

    model, x = Twice().eval(), torch.randn(2, 16)
    found = units(model)
    first, second = plan_for(found, odd_units), plan_for(found, none)
    apply(model, first)
    expected = model(x)
    model.switch = lambda: apply(model, second)
    assert torch.equal(model(x), expected)
    assert active_plan(model) is second
    # A plan ends with its call, also after an error.
    with pytest.raises(TypeError):
        model()
    model.switch = None
    assert torch.equal(model(x), x)


def test_switching_takes_under_50_microseconds() -> None:
    model = hugging_face("llama")
    found = units(model)
    plans = [plan_for(found, odd_units), plan_for(found, none)]
    for plan in plans:
        apply(model, plan)
    best = float("inf")
    for _ in range(20):
        begin = time.perf_counter()
        for plan in plans:
            apply(model, plan)
        best = min(best, (time.perf_counter() - begin) / 2)
    assert best < 50e-6


def bad_plans() -> list[tuple[Callable[[Plan], Plan], str]]:
    def keep(name: str, kept: Any) -> Callable[[Plan], Plan]:
        return lambda plan: replace(plan, keep={**plan.keep, name: kept})

    return [
        (lambda p: replace(p, fingerprint="0"), "fingerprint 0"),
        (lambda p: replace(p, present=("up",)), "got 'up'"),
        (keep("head", ()), "units of 'head', which the model does not have"),
        (keep("ff", (3, 40)), "unit 40 of 'ff', expected 0 to 39"),
        (lambda p: replace(p, bias={"ff": (1.0,)}), "of 'ff' has 1 numbers, expected 24"),
    ]


@pytest.mark.parametrize("number", range(len(bad_plans())))
def test_bad_plans_leave_the_model_as_it_was(number: int) -> None:
    change, message = bad_plans()[number]
    model = Fused()
    before = attributes(model)
    good = plan_for(units(model), odd_units)
    with pytest.raises(ValueError, match=message):
        apply(model, change(good))
    assert attributes(model) == before
    apply(model, good)
    with pytest.raises(ValueError, match=message):
        apply(model, change(good))
    assert active_plan(model) is good


def test_models_that_cannot_run_a_plan() -> None:
    model = Fused()
    plan = plan_for(units(model), odd_units)
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module"):
        apply(plan, model)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"expected a leeboard\.prune\.Plan"):
        apply(model, "50%")  # type: ignore[arg-type]
    compiled = torch.compile(model, backend="eager")
    with pytest.raises(ValueError, match=r"compact\(model, plan\) can be compiled"):
        apply(compiled, plan, units=units(model))  # type: ignore[arg-type]
    model.ff.forward = lambda x: x  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="here ff has a forward of its own"):
        apply(model, plan)
    with pytest.raises(ValueError, match="'ff' has a forward of its own"):
        apply(model, plan, units=units(Fused()))
    assert set(vars(model.attention)) == set(vars(Fused().attention))
    del model.ff.forward
    outer = nn.ModuleDict({"inner": model})
    apply(model, plan)
    with pytest.raises(ValueError, match="applied to 'inner', as a model of its own"):
        apply(outer, plan_for(units(outer), odd_units))


def test_a_part_of_a_model_under_a_plan_takes_no_other() -> None:
    model = Fused()
    apply(model, plan_for(units(model), odd_units))
    with pytest.raises(ValueError, match="a part of another; revert that first"):
        apply(model.ff, plan_for(units(model.ff), odd_units))
    revert(model)
    with exposed(model, units(model)), pytest.raises(ValueError, match="'ff' is exposed to hooks"):
        apply(model, plan_for(units(model), odd_units))
    assert not any("forward" in vars(m) for m in model.modules())


def test_a_foreign_forward_of_the_whole_model_is_kept() -> None:
    model, x = Fused().eval(), windows()
    found = units(model)
    plan = plan_for(found, odd_units)
    expected = masked(model, found, plan)(x)
    inner = model.forward
    model.forward = lambda *args: 2 * inner(*args)  # type: ignore[method-assign]
    outer = vars(model)["forward"]
    apply(model, plan)
    torch.testing.assert_close(model(x), 2 * expected)
    revert(model)
    assert vars(model)["forward"] is outer


def test_revert_refuses_what_was_changed_since() -> None:
    model, x = Fused().eval(), windows()
    apply(model, plan_for(units(model), odd_units))
    expected = model(x)
    ours = vars(model.ff)["forward"]
    model.ff.forward = lambda x: x  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="ff: its forward was changed since"):
        revert(model)
    vars(model.ff)["forward"] = ours
    torch.testing.assert_close(model(x), expected)
    revert(model)
    revert(model)


def test_copies_run_without_the_plan() -> None:
    model, x = encoder().eval(), torch.randn(2, 5, 24)
    dense = model(x)
    found = units(model)
    plan = plan_for(found, odd_units)
    apply(model, plan)
    other = copy.deepcopy(model)
    assert active_plan(other) is None
    torch.testing.assert_close(other(x), dense)
    revert(model)
    assert units(other) == found
    apply(other, plan)
    assert not torch.allclose(other(x), dense)
    torch.testing.assert_close(model(x), dense)
    with pytest.raises(RuntimeError, match=r"revert\(model\) before it is pickled"):
        pickle.dumps(other)


def test_compiling_a_model_under_a_plan() -> None:
    """In one graph it is refused; else torch runs it as it is, and switches are seen."""
    torch._dynamo.reset()
    model, x = lnn.FeedForward(24, 40).eval(), torch.randn(2, 3, 24)
    found = units(model)
    plans = [plan_for(found, odd_units), plan_for(found, none)]
    apply(model, plans[0])
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        with pytest.raises(Exception, match=r"use compact\(model, plan\)"):
            compiled(x)
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="eager")
        for plan in plans:
            apply(model, plan)
            torch.testing.assert_close(compiled(x), masked(model, found, plan)(x))
    torch._dynamo.reset()


def test_the_signature_stays() -> None:
    import inspect

    model = Fused()
    before = inspect.signature(model.forward)
    apply(model, plan_for(units(model), odd_units))
    assert inspect.signature(model.forward) == before
