"""One training step of a drafter: unroll, loss, backward, clip, AdamW."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.draft.plain import PlainDrafter, plain_loss
from leeboard.draft import Batch, DrafterConfig, Eagle3Drafter, chain_loss


@dataclass(frozen=True)
class Case:
    """Sizes of a step; the first two are those of `leeboard demo`."""

    name: str
    steps: int
    hidden: int = 96
    inner: int = 256
    heads: int = 3
    vocab: int = 1024
    rows: int = 8
    length: int = 128


CASES = (
    Case("demo, TTT 2", 2),
    Case("demo, TTT 4", 4),
    Case("larger, TTT 4", 4, hidden=512, inner=1408, heads=8, vocab=32000, rows=1, length=512),
)
DECAY = 0.8


def made(case: Case) -> tuple[Eagle3Drafter, PlainDrafter, Batch, Tensor]:
    """Both drafters with the same weights, a batch of which two thirds are to be learnt, and the
    teacher's head.
    """
    torch.manual_seed(0)
    config = DrafterConfig(
        vocab_size=case.vocab,
        draft_vocab_size=case.vocab,
        hidden_size=case.hidden,
        intermediate_size=case.inner,
        num_attention_heads=case.heads,
        num_key_value_heads=case.heads,
        head_dim=case.hidden // case.heads,
        target_hidden_size=case.hidden,
        aux_layer_ids=(2, 5, 7),
        aux_layer_convention="input",
        max_position_embeddings=2 * case.length,
    )
    ours = Eagle3Drafter(config)
    ours.embed_tokens.weight.requires_grad_(False)
    plain = PlainDrafter(config, case.length)
    plain.load_state_dict(ours.state_dict())
    plain.embed_tokens.weight.requires_grad_(False)
    shape = (case.rows, case.length)
    head = torch.randn(case.vocab, case.hidden) * 3 * case.hidden**-0.5
    final = torch.randn(*shape, case.hidden)
    logits = final @ head.T
    mask = torch.arange(case.length).expand(shape) >= case.length // 3
    batch = Batch(
        ids=torch.randint(case.vocab, shape),
        loss_mask=mask,
        positions=torch.arange(case.length).expand(shape),
        hiddens=tuple(torch.randn(*shape, case.hidden) for _ in range(3)),
        final=final,
        best=logits.argmax(-1),
        logsumexp=logits.logsumexp(-1),
    )
    return ours, plain, batch, head


def trainer(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """A step of training as a call."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True
    )

    def step() -> None:
        loss().backward()
        nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()
        optimizer.zero_grad()

    return step


def losses(
    case: Case, ours: Eagle3Drafter, plain: PlainDrafter, batch: Batch, head: Tensor
) -> dict[str, Callable[[], Tensor]]:
    weights = [DECAY**j for j in range(case.steps)]
    return {
        "leeboard": lambda: chain_loss(ours, batch, head, step_weights=weights).loss,
        "eager": lambda: plain_loss(plain, batch, head, weights)[0],
    }


def profiled(case: Case, name: str) -> None:
    from torch.profiler import ProfilerActivity, profile

    ours, plain, batch, head = made(case)
    step = trainer(
        ours if name == "leeboard" else plain, losses(case, ours, plain, batch, head)[name]
    )
    for _ in range(3):
        step()
    with profile(activities=[ProfilerActivity.CPU]) as prof:
        for _ in range(5):
            step()
    print(
        prof.key_averages().table(
            sort_by="self_cpu_time_total", row_limit=40, max_name_column_width=48
        )
    )


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]) if len(sys.argv) > 3 else 1)
    profiled(CASES[int(sys.argv[1])], sys.argv[2])
