"""The Triton rows of ttt_loss against the reference: losses, gradients, blocks, strides."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from leeboard import reference
from leeboard.kernels import ttt_loss
from leeboard.ops._ttt_chunks import HalfHead, Head, Options, compute
from leeboard.reference import TTTLossTerms
from tolerances import assert_close_to_reference, nudged


def draw(S, N, H, V, dtype, device, *, scale=1.0):
    """hidden, weight, teacher, teacher_weight, row_weight (some of them 0), logsumexp."""

    def normal(*shape):
        return (torch.randn(shape, dtype=torch.float64) * scale).to(dtype).to(device)

    hidden, teacher = normal(S, N, H), normal(N, H)
    weight, teacher_weight = normal(V, H), normal(V, H)
    row_weight = (torch.rand(S, N) * (torch.rand(S, N) > 0.3)).to(device)
    z = teacher.double() @ teacher_weight.double().T
    return hidden, weight, teacher, teacher_weight, row_weight, (z.logsumexp(-1) + 0.3).float()


def expected(tensors, options, dtype):
    *args, lse = (t.to(dtype) if t.dtype != torch.bool else t for t in tensors)
    names = {"loss": options.loss, "eta": options.eta, "softcap": options.softcap}
    wide = torch.promote_types(dtype, torch.float32)
    args[4], lse = args[4].to(wide), lse.to(wide)
    terms = reference.ttt_loss(*args, teacher_logsumexp=lse, **names)
    return terms, reference.ttt_loss_gradients(*args, teacher_logsumexp=lse, **names)


def check(tensors: tuple[Tensor, ...], options: Options) -> TTTLossTerms:
    loss, row_loss, hit, overlap, *grads = compute(ttt_loss, options, *tensors)
    low, low_grads = expected(tensors, options, tensors[0].dtype)
    exact, exact_grads = expected(tensors, options, torch.float64)
    # The error of a sum of exponentials falls on a whole row, and how large it is, is chance.
    near, near_grads = expected(tuple(map(nudged, tensors)), options, torch.float64)
    for got, in_dtype, in_double, nearby in zip(
        (loss, row_loss, overlap, *grads),
        (low.loss, low.row_loss, low.overlap, *low_grads),
        (exact.loss, exact.row_loss, exact.overlap, *exact_grads),
        (near.loss, near.row_loss, near.overlap, *near_grads),
        strict=True,
    ):
        assert_close_to_reference(got, in_dtype, in_double, nearby=nearby)
    assert torch.equal(hit, exact.hit)
    return TTTLossTerms(loss, row_loss, hit, overlap)


@pytest.mark.parametrize("loss", ["kl", "lk_alpha", "lk_lambda"])
@pytest.mark.parametrize("V", [1, 7, 2048, 2100])
def test_random(loss, V, dtype, device):
    """One block, a whole one, and more."""
    check(draw(2, 4, 16, V, dtype, device), Options(loss, 3.0, None, True, True))


@pytest.mark.parametrize("loss", ["kl", "lk_lambda"])
def test_softcap(loss, device):
    tensors = draw(1, 5, 16, 50, torch.float32, device, scale=2.0)
    z = tensors[2].double() @ tensors[3].double().T
    whole = (4.0 * (z / 4.0).tanh()).logsumexp(-1).float() + 0.1
    check((*tensors[:5], whole), Options(loss, 0.5, 4.0, True, True))


def test_without_gradient(device):
    tensors = draw(2, 3, 8, 40, torch.float32, device)
    options = Options("kl", 3.0, None, False, False)
    loss, *_, grad_hidden, grad_weight = compute(ttt_loss, options, *tensors)
    again = compute(ttt_loss, Options("kl", 3.0, None, True, True), *tensors)[0]
    assert torch.equal(loss, again)
    assert grad_hidden.shape == grad_weight.shape == (0,)


def test_strided_logits(device):
    """Rows with gaps between them, which stay."""
    wide = torch.full((3, 50), 7.0, device=device)
    wide[:, :40] = torch.randn(3, 40)
    logits = wide[:, :40]
    plain = logits.clone()
    numbers = [
        (*torch.empty(2, 3, device=device), torch.empty(3, dtype=torch.int64, device=device))
        for _ in range(2)
    ]
    ttt_loss.teacher(logits, None, *numbers[0], 0.0)
    ttt_loss.teacher(plain, None, *numbers[1], 0.0)
    assert torch.equal(logits, plain)
    assert all(torch.equal(*pair) for pair in zip(*numbers, strict=True))
    assert (wide[:, 40:] == 7.0).all()


def test_products_of_half_precision(monkeypatch, device):
    """What a GPU multiplies in bfloat16, here with the same factors in float32."""
    monkeypatch.setattr(HalfHead, "product", staticmethod(lambda a, b: a.float() @ b.float()))
    tensors = draw(2, 6, 16, 60, torch.bfloat16, device, scale=0.5)
    options = Options("kl", 3.0, None, True, True)
    float_made = compute(ttt_loss, options, *tensors)
    monkeypatch.setattr("leeboard.ops._ttt_chunks.head_of", lambda x, w: HalfHead(w))
    half_made = compute(ttt_loss, options, *tensors)
    for got, exact in zip(half_made[:4], float_made[:4], strict=True):
        torch.testing.assert_close(got, exact)
    for got, exact in zip(half_made[4:], float_made[4:], strict=True):
        # The slope of a row is rounded once.
        error = (got - exact).norm() / exact.norm()
        assert error < torch.finfo(torch.bfloat16).eps


def test_parts_of_a_head(monkeypatch):
    monkeypatch.setattr("leeboard.ops._ttt_chunks.PART_BYTES", 4 * 16 * 24)
    x, weight = torch.randn(5, 16), torch.randn(100, 16).bfloat16()
    head = Head(weight)
    assert len(list(head._parts())) == 5
    torch.testing.assert_close(head.logits(x, torch.empty(5, 100)), x @ weight.float().T)
    slope = torch.randn(5, 100)
    torch.testing.assert_close(head.back(slope), slope @ weight.float())


def test_tiles_cover_every_vocabulary():
    for V in (1, 2, 1000, 1024, 2048, 2049, 128256):
        tile = ttt_loss.config(V)
        assert tile["BLOCK"] >= min(V, 2048)
        assert tile["BLOCK"] <= 16 * 32 * tile["num_warps"] or tile["num_warps"] == 1
