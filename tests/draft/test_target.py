"""The target's KV cache: its argument's name, and sequences that keep different counts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drafter_models import FAMILIES, make_target
from leeboard.draft.target import TargetRun, cache_arguments


class OldTarget(nn.Module):
    def forward(self, input_ids: Any, past_key_values: Any = None, use_cache: Any = None) -> Any:
        raise NotImplementedError


class NewTarget(nn.Module):
    def forward(self, input_ids: Any, cache: Any = None, use_cache: Any = None, **more: Any) -> Any:
        raise NotImplementedError


class ForgetfulTarget(NewTarget):
    def forward(self, input_ids: Any, cache: Any = None, use_cache: Any = None, **more: Any) -> Any:
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 5))


def test_the_cache_goes_by_the_name_that_the_target_knows() -> None:
    pytest.importorskip("transformers")
    assert cache_arguments(OldTarget(), 1) == {"past_key_values": 1, "use_cache": True}
    assert cache_arguments(NewTarget(), 1) == {"cache": 1, "use_cache": True}
    with pytest.raises(ValueError, match="target: it does not keep its past"):
        TargetRun(ForgetfulTarget()).prompt(torch.ones(1, 3, dtype=torch.int64), [0])


def logits_alone(target: Any, tokens: list[int]) -> Tensor:
    with torch.no_grad():
        logits: Tensor = target(torch.tensor([tokens])).logits[0]
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_ragged_batch_equals_its_sequences(family: str) -> None:
    """Different prompts, counts, and a sequence that leaves: the logits are those of each alone."""
    target = make_target(family)
    prompts = [[5, 9, 11, 60, 2, 33, 8, 17], [1, 2, 3], [42]]
    ids = torch.tensor([[0] * (8 - len(p)) + p for p in prompts])
    with torch.no_grad():
        run = TargetRun(target)
        logits = run.prompt(ids, [8 - len(p) for p in prompts])
        for b, prompt in enumerate(prompts):
            torch.testing.assert_close(
                logits[b], logits_alone(target, prompt)[-1], rtol=1e-3, atol=1e-3
            )
        sequences = [list(p) for p in prompts]
        for counts, survivors in (
            ([1, 4, 2], [0, 1, 2]),
            ([3, 3, 3], [0, 1, 2]),
            ([0, 4, 1], [0, 2]),
            ([4, 1], [0, 1]),
            ([1, 3], [1]),
            ([2], [0]),
        ):
            new = torch.randint(61, (len(sequences), 4))
            logits = run.extend(new)
            for b, past in enumerate(sequences):
                whole = logits_alone(target, past + new[b].tolist())[-4:]
                torch.testing.assert_close(logits[b], whole, rtol=1e-3, atol=1e-3)
            run.keep(counts, 4, survivors)
            sequences = [
                past + new[b, : counts[b]].tolist()
                for b, past in enumerate(sequences)
                if b in survivors
            ]
            assert run.lengths == [len(past) for past in sequences]
    assert run.forwards == 7
