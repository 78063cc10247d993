"""What is particular to ttt_loss: its definition, skipped rows, chunks, extreme logits."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness import assert_same
from leeboard import _C, reference
from leeboard.ops import _ttt_chunks, backend, ttt_loss

LOSSES = ("kl", "lk_alpha", "lk_lambda")
ONE = torch.ones(1, 1)


def of_logits(x: Tensor, z: Tensor, weight: Tensor | None = None, **options: object):
    """The loss of rows of logits themselves, [S, N, V] and [N, V], as products with unit rows.

    Every row needs a head of its own: one call a row.
    """
    rows = [
        ttt_loss(ONE[None], x[s, n][:, None], ONE, z[n][:, None], ONE, **options)
        for s in range(x.shape[0])
        for n in range(x.shape[1])
    ]
    return torch.stack([terms.row_loss.view(()) for terms in rows]), rows


def draw(S: int = 2, N: int = 6, H: int = 16, V: int = 50, seed: int = 0) -> list[Tensor]:
    torch.manual_seed(seed)
    hidden, weight = torch.randn(S, N, H), torch.randn(V, H) / 4
    teacher, teacher_weight = torch.randn(N, 8), torch.randn(V, 8) / 3
    return [hidden, weight, teacher, teacher_weight, torch.rand(S, N) + 0.1]


@pytest.fixture(params=["reference", "cpu"])
def either(request: pytest.FixtureRequest):
    with backend(request.param):
        yield request.param


@pytest.mark.usefixtures("either")
def test_kl_is_what_torch_makes_of_the_logits() -> None:
    hidden, weight, teacher, teacher_weight, row_weight = args = draw()
    log_q = (hidden @ weight.T).log_softmax(-1)
    p = (teacher @ teacher_weight.T).softmax(-1).expand_as(log_q)
    expected = F.kl_div(log_q, p, reduction="none").sum(-1)
    terms = ttt_loss(*args)
    torch.testing.assert_close(terms.row_loss, expected)
    torch.testing.assert_close(terms.loss, (row_weight * expected).sum())
    assert torch.equal(terms.hit, log_q.argmax(-1) == p.argmax(-1))


@pytest.mark.usefixtures("either")
def test_the_overlap_is_with_what_the_target_samples() -> None:
    """Over the full vocabulary: tokens that cannot be drafted have p alone."""
    hidden, weight, teacher, _, row_weight = draw()
    full = torch.randn(400, 8) / 3
    drafted = torch.arange(3, 400, 8)
    p = (teacher @ full.T).softmax(-1)
    q = torch.zeros(*row_weight.shape, 400)
    q[..., drafted] = (hidden @ weight.T).softmax(-1)
    overlap = torch.minimum(p, q).sum(-1)
    total_variation = 0.5 * (p - q).abs().sum(-1)

    args = (hidden, weight, teacher, full[drafted], row_weight)
    options = {"teacher_logsumexp": (teacher @ full.T).logsumexp(-1)}
    kl = ttt_loss(*args).row_loss
    terms = ttt_loss(*args, **options, loss="lk_lambda", eta=2.0)
    torch.testing.assert_close(terms.overlap, overlap)
    lam = (-2.0 * overlap).exp()
    torch.testing.assert_close(terms.row_loss, lam * kl + (1 - lam) * total_variation)
    alpha = ttt_loss(*args, **options, loss="lk_alpha")
    torch.testing.assert_close(alpha.row_loss, -overlap.log())
    # As large as if the draft vocabulary had all of the mass, without the full log-sum-exp.
    assert (ttt_loss(*args).overlap > terms.overlap).all()


def test_what_lambda_weighs_is_held_constant() -> None:
    hidden, weight, teacher, teacher_weight, row_weight = draw()
    hidden.requires_grad_()
    args = (weight, teacher, teacher_weight, row_weight)
    (grad,) = torch.autograd.grad(ttt_loss(hidden, *args, loss="lk_lambda").loss, hidden)
    log_q = (hidden @ weight.T).log_softmax(-1)
    p = (teacher @ teacher_weight.T).softmax(-1).expand_as(log_q)
    overlap = torch.minimum(p, log_q.exp()).sum(-1)
    lam = (-3.0 * overlap.detach()).exp()
    each = lam * F.kl_div(log_q, p, reduction="none").sum(-1) + (1 - lam) * (1 - overlap)
    (expected,) = torch.autograd.grad((row_weight * each).sum(), hidden)
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.usefixtures("either")
def test_a_perfect_drafter(loss: str) -> None:
    """Equal logits give equal shares, to the bit."""
    _, weight, teacher, _, _ = draw(H=8)
    hidden = teacher[None].clone().requires_grad_()
    terms = ttt_loss(hidden, weight, teacher, weight, torch.ones(1, 6), loss=loss)
    assert terms.hit.all()
    torch.testing.assert_close(terms.overlap, torch.ones(1, 6))
    assert terms.row_loss.abs().max() < 1e-6
    (grad,) = torch.autograd.grad(terms.loss, hidden)
    assert grad.abs().max() < 1e-6


@pytest.mark.parametrize("loss", LOSSES)
def test_skipped_rows_are_left_out(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever they hold; and no product sees them."""
    hidden, weight, teacher, teacher_weight, row_weight = draw(S=3, N=9)
    row_weight[0, [1, 4]] = row_weight[1, [1, 5]] = row_weight[2, 1:] = 0.0
    live = row_weight != 0
    expected = [t.clone() for t in (hidden, teacher)]
    hidden[~live], teacher[1] = float("nan"), float("inf")
    seen: list[int] = []
    logits = _ttt_chunks.Head.logits

    def counted(self: _ttt_chunks.Head, x: Tensor, out: Tensor) -> Tensor:
        seen.append(x.shape[0])
        return logits(self, x, out)

    monkeypatch.setattr(_ttt_chunks.Head, "logits", counted)
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    terms = ttt_loss(hidden, weight, teacher, teacher_weight, row_weight, loss=loss)
    assert seen == [8, int(live.sum())]
    grads = torch.autograd.grad(terms.loss, leaves)
    assert not grads[0][~live].any()
    for made in (terms.row_loss, terms.hit, terms.overlap):
        assert not made[~live].any()
    clean = expected[0].requires_grad_()
    again = ttt_loss(clean, weight, expected[1], teacher_weight, row_weight, loss=loss)
    assert_same(tuple(terms), tuple(again))
    assert_same(grads, torch.autograd.grad(again.loss, (clean, weight)))


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_chunks_do_not_show(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    args = draw(S=3, N=40)
    args[4][torch.rand(3, 40) < 0.4] = 0.0
    leaves = args[0].requires_grad_(), args[1].requires_grad_()
    whole = ttt_loss(*args)
    expected = torch.autograd.grad(whole.loss, leaves)
    held: list[int] = []
    mm = torch.mm

    def recorded(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
        held.append(out.shape[0])
        return mm(a, b, out=out)

    monkeypatch.setattr(_ttt_chunks, "CHUNK_BYTES", 0)
    monkeypatch.setattr(_ttt_chunks, "ENOUGH_ROWS", rows)
    monkeypatch.setattr(torch, "mm", recorded)
    cut = ttt_loss(*args)
    torch.testing.assert_close(tuple(cut), tuple(whole))
    torch.testing.assert_close(torch.autograd.grad(cut.loss, leaves), expected)
    # The teacher's rows and, of three steps, the drafter's.
    assert max(a + b for a, b in zip(held[::2], held[1::2], strict=True)) <= max(rows, 4)


def test_rows_of_logits_do_not_depend_on_how_they_are_cut(isa: str) -> None:
    """Nor on the number of threads."""
    torch.manual_seed(0)
    logits, teacher = torch.randn(2, 40, 5000) * 5
    total, coverage, row_loss, overlap, weight = torch.rand(5, 40)
    best, hit = torch.empty(40, dtype=torch.int64), torch.empty(40, dtype=torch.bool)
    place = torch.randint(40, (40,))
    level = {name: i for i, name in _C.isa_levels()}[isa]
    assert _C.ttt_loss_teacher(teacher, None, total, coverage, best, 30.0, level)
    made = []
    for threads, cut in ((1, 40), (2, 40), (1, 7)):
        torch.set_num_threads(threads)
        x = logits.clone()
        for rows in (slice(i, i + cut) for i in range(0, 40, cut)):
            results = (row_loss[rows], hit[rows], overlap[rows])
            numbers = (total, coverage, best, weight[rows])
            assert _C.ttt_loss_rows(
                x[rows], teacher, place[rows], *numbers, *results, "lk_lambda", 3.0, True, level
            )
        made.append((x, row_loss.clone(), hit.clone(), overlap.clone()))
    assert_same(made[1], made[0])
    assert_same(made[2], made[0])


def test_kernels_refuse_what_does_not_fit() -> None:
    z, (total, coverage) = torch.randn(3, 8), torch.empty(2, 3)
    best = torch.empty(3, dtype=torch.int64)
    assert not _C.ttt_loss_teacher(z.double(), None, total, coverage, best, 0.0, -1)
    assert not _C.ttt_loss_teacher(z, total[:2], total, coverage, best, 0.0, -1)
    assert not _C.ttt_loss_teacher(z.T, None, total, coverage, best, 0.0, -1)
    assert _C.ttt_loss_teacher(z, None, total, coverage, best, 0.0, -1)
    x, results = torch.randn(2, 8), (torch.empty(2), torch.empty(2, dtype=torch.bool))
    rest = (total, coverage, best, torch.ones(2), *results, torch.empty(2))
    for place in ([0, 3], [-1, 0]):
        assert not _C.ttt_loss_rows(x, z, torch.tensor(place), *rest, "kl", 3.0, False, -1)
    good = torch.tensor([0, 2])
    assert not _C.ttt_loss_rows(x[:, :7], z, good, *rest, "kl", 3.0, False, -1)
    assert not _C.ttt_loss_rows(x, z, good, *rest, "tv", 3.0, False, -1)
    assert _C.ttt_loss_rows(x, z, good, *rest, "kl", 3.0, False, -1)


@pytest.mark.parametrize("scale", [1e3, 1e6, 1e30])
@pytest.mark.usefixtures("isa")
def test_extreme_logits(scale: float) -> None:
    """All mass on one token: the loss is how much less likely the drafter finds it."""
    z = torch.tensor([[0.0, 2.0, -1.0, 1.0]]) * scale
    x = torch.tensor([[[3.0, 1.0, 0.0, 0.0]]]) * scale
    row_loss, (terms,) = of_logits(x, z)
    assert row_loss.item() == pytest.approx(2.0 * scale)
    assert not terms.hit
    assert terms.overlap.item() == 0.0
    same, (terms,) = of_logits(z[None], z)
    assert (same.item(), terms.overlap.item(), terms.hit.item()) == (0.0, 1.0, True)
    assert of_logits(x, z, loss="lk_alpha")[0].item() == math.inf


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.usefixtures("isa", "either")
def test_tokens_without_probability(loss: str) -> None:
    """A teacher's logit of -inf takes part in nothing; so does the drafter's own, at such tokens."""
    torch.manual_seed(0)
    z, x = torch.randn(1, 40), torch.randn(1, 1, 40)
    gone = torch.arange(0, 40, 3)
    z[:, gone] = -math.inf
    row_loss, _ = of_logits(x, z, loss=loss)
    p, log_q = z.softmax(-1), x.log_softmax(-1)
    overlap = torch.minimum(p, log_q.exp()).sum(-1).view(())
    kl = torch.where(p == 0, 0.0, p * (z.log_softmax(-1) - log_q)).sum()
    lam = (-3.0 * overlap).exp()
    expected = {
        "kl": kl,
        "lk_alpha": -overlap.log(),
        "lk_lambda": lam * kl + (1 - lam) * (1 - overlap),
    }[loss]
    torch.testing.assert_close(row_loss[0], expected)
    x[..., gone] = -math.inf
    row_loss, _ = of_logits(x, z, loss=loss)
    assert row_loss.isfinite().all()


@pytest.mark.usefixtures("isa")
def test_the_first_of_equal_logits_is_the_best() -> None:
    z = torch.zeros(1, 70)
    z[0, [17, 40]] = 1.0
    for index in (17, 40, 69):
        x = torch.zeros(1, 1, 70)
        x[0, 0, index:] = 2.0
        _, (terms,) = of_logits(x, z)
        assert terms.hit.item() == (index == 17)


def test_only_the_loss_has_a_gradient() -> None:
    args = draw()
    args[0].requires_grad_()
    terms = ttt_loss(*args)
    assert [t.requires_grad for t in terms] == [True, False, False, False]
    (grad,) = torch.autograd.grad(3.0 * terms.loss, args[0])
    torch.testing.assert_close(grad, 3.0 * reference.ttt_loss_gradients(*args)[0].detach())
    with torch.no_grad():
        assert not ttt_loss(*args).loss.requires_grad


def test_gradients_are_made_when_they_are_asked_for() -> None:
    args = draw()
    args[0].requires_grad_()
    options = (None, "kl", 3.0, None)
    made = torch.ops.leeboard.ttt_loss(*args, *options, True, False)
    assert [t.shape for t in made[4:]] == [args[0].shape, (0,)]
    made = torch.ops.leeboard.ttt_loss(*args, *options, False, False)
    with pytest.raises(RuntimeError, match="no gradient in hidden was made"):
        made[0].backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_head_in_float32(dtype: torch.dtype) -> None:
    """States in 16 bits with a head in 32, as under autocast; and a teacher in another type."""
    hidden, weight, teacher, teacher_weight, row_weight = draw()
    args = (hidden.to(dtype), weight, teacher.half(), teacher_weight.half(), row_weight)
    leaves = args[0].requires_grad_(), weight.requires_grad_()
    with backend("cpu"):
        terms = ttt_loss(*args)
    grads = torch.autograd.grad(terms.loss, leaves)
    assert [g.dtype for g in grads] == [dtype, torch.float32]
    expected = reference.ttt_loss(*args)
    torch.testing.assert_close(tuple(terms), tuple(expected))
    for got, made in zip(grads, reference.ttt_loss_gradients(*args), strict=True):
        torch.testing.assert_close(got, made.to(got.dtype).detach())


def test_parts_of_a_wide_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """A 16-bit head that is widened in pieces."""
    args = [t.bfloat16() for t in draw()[:4]] + [draw()[4]]
    leaves = args[0].requires_grad_(), args[1].requires_grad_()
    whole = ttt_loss(*args)
    expected = torch.autograd.grad(whole.loss, leaves)
    monkeypatch.setattr(_ttt_chunks, "PART_BYTES", 4 * 16 * 12)
    cut = ttt_loss(*args)
    torch.testing.assert_close(tuple(cut), tuple(whole))
    torch.testing.assert_close(torch.autograd.grad(cut.loss, leaves), expected)


def test_a_forced_kernel_says_what_it_does_not_take() -> None:
    args = draw()
    args[2:4] = [t.double() for t in args[2:4]]
    assert ttt_loss(*args).loss.isfinite()
    with backend("cpu"), pytest.raises(RuntimeError, match=r"cpu kernels take float32.*float64"):
        ttt_loss(*args)
