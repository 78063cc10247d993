"""Greedy speculative decoding of a Hugging Face causal LM with a chain drafter."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leeboard.draft.cache import DrafterCache
from leeboard.draft.capture import capture
from leeboard.draft.checks import positive_int
from leeboard.draft.model import Eagle3Drafter
from leeboard.draft.target import cache_arguments, new_cache, takes


@dataclasses.dataclass(frozen=True)
class SpeculateResult:
    """What `speculate` produced and how the drafts fared. Depth 1 is index 0.

    Attributes:
        tokens: int64 [1, prompt + new_tokens], the prompt and its continuation.
        new_tokens: How many tokens were produced (an end-of-sequence token included).
        accepted_per_round: Drafted tokens that entered the output, round by round; the bonus
            token is not counted, nor is a draft after the end of the sequence.
        reached_by_depth: Rounds in which the draft at each depth was put to the test: drafted,
            all before it accepted, the sequence not over.
        accepted_by_depth: Rounds in which it was accepted.
        target_forwards: Forward passes of the target, the prompt's included.
        seconds: Wall time of the whole call, the prompt's forward pass included.
        state_rms_by_depth: Root mean square of the state fed back after each chain step, averaged
            over all drafted chains; None unless `collect_states`.
    """

    tokens: Tensor
    new_tokens: int
    accepted_per_round: list[int]
    reached_by_depth: list[int]
    accepted_by_depth: list[int]
    target_forwards: int
    seconds: float
    state_rms_by_depth: list[float] | None = None

    @property
    def rounds(self) -> int:
        """Draft-and-verify rounds."""
        return len(self.accepted_per_round)

    @property
    def mean_accepted(self) -> float:
        """Accepted drafts per round, without the bonus token; 0.0 without a round."""
        return sum(self.accepted_per_round) / self.rounds if self.rounds else 0.0

    @property
    def tau(self) -> float:
        """Tokens per round: `mean_accepted` plus the bonus token that every round yields.

        The last round's bonus token is counted even where the output ended before it.
        """
        return self.mean_accepted + 1.0

    @property
    def acceptance_by_depth(self) -> list[float]:
        """Share of tested drafts accepted at each depth, up to the deepest depth tested.

        Conditional: all shallower drafts of the round had been accepted.
        """
        tested = zip(self.accepted_by_depth, self.reached_by_depth, strict=True)
        return [accepted / reached for accepted, reached in tested if reached]

    @property
    def tokens_per_second(self) -> float:
        """`new_tokens / seconds`."""
        return self.new_tokens / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Everything but the tokens, JSON-ready."""
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "tokens"
        }
        for name in ("mean_accepted", "tau", "acceptance_by_depth", "tokens_per_second"):
            fields[name] = getattr(self, name)
        return fields

    def __str__(self) -> str:
        return (
            f"{self.new_tokens} tokens in {self.seconds:.2f} s ({self.tokens_per_second:.1f}/s), "
            f"{self.target_forwards} target forwards, {self.mean_accepted:.2f} accepted per round "
            f"(tau {self.tau:.2f})"
        )


@torch.no_grad()
def speculate(
    target: Any,
    drafter: Eagle3Drafter,
    input_ids: Tensor,
    *,
    max_new_tokens: int,
    depth: int,
    eos_token_id: int | Iterable[int] | None = None,
    temperature: float = 0.0,
    collect_states: bool = False,
    progress: bool = False,
) -> SpeculateResult:
    """Decode greedily with a drafter; the output is the target's own greedy output.

    Every round drafts a chain of `depth` tokens, runs the target once over the last token and
    the chain, and keeps the longest prefix that the target would have chosen, plus the target's
    own next token. The drafter's rows of kept tokens are then rebuilt from the target's states;
    the chain's rows are dropped. Equality with token-by-token decoding holds as far as the target
    computes the same logits for several positions at once as for one (it may differ in exact
    ties, more often in bfloat16). Logits processors of a generation config are not applied.

    Args:
        target: A Hugging Face causal LM with a KV cache that can be cut back, in eval mode.
        drafter: A drafter for this target, on the same device.
        input_ids: [1, T] int32 or int64, T at least 1, without padding.
        max_new_tokens: Tokens to produce, at least 1.
        depth: Tokens to draft per round, at least 1.
        eos_token_id: One or several ids that end the output (and stay in it). None takes those of
            the target's generation config, as `generate` does; an empty list never stops early.
        temperature: Only 0.0, greedy decoding.
        collect_states: Measure the RMS of the fed-back state at every depth.
        progress: Show a progress bar (needs tqdm).

    Returns:
        A `SpeculateResult`.

    Raises:
        TypeError: `target`, `drafter` or `eos_token_id` is of another kind.
        ValueError: An argument is out of range, an id is outside the vocabulary, the target is in
            training mode, the drafter does not fit it, or the sequence would outgrow either's
            positions.
        ImportError: transformers (or tqdm, with `progress`) is not installed.
    """
    if temperature != 0.0:
        raise ValueError(f"temperature: got {temperature}, expected 0.0: only greedy decoding")
    for name, value in (("max_new_tokens", max_new_tokens), ("depth", depth)):
        positive_int(name, value)
    _check_models(target, drafter)
    _check_fit(target, drafter)
    _check_prompt(target, drafter, input_ids, max_new_tokens)
    stops = _stop_ids(target, eos_token_id)
    target_cache = new_cache()
    bar = _progress_bar(max_new_tokens) if progress else None

    began = time.perf_counter()
    prompt = input_ids.long()
    cached = cache_arguments(target, target_cache)
    only_last = {"logits_to_keep": 1} if takes(target, "logits_to_keep") else {}
    cache = DrafterCache(capacity=prompt.shape[1] + max_new_tokens + depth)
    tally = _Tally(depth)
    states: list[Tensor] | None = [] if collect_states else None

    try:
        with capture(target, drafter.config) as aux:
            output = target(input_ids=prompt, **cached, **only_last)
            forwards = 1
            _check_cached(target_cache, prompt.shape[1])
            first = output.logits[:, -1:].argmax(-1)
            new = first[0].tolist()
            # The drafter's next rows: row t pairs the target's state t with token t + 1.
            start, tokens, hiddens = 0, torch.cat((prompt[:, 1:], first), dim=1), aux.hiddens
            while len(new) < max_new_tokens and new[-1] not in stops:
                if bar is not None:
                    bar.update(len(new) - bar.n)
                k = min(depth, max_new_tokens - len(new))
                drafts = _draft(drafter, hiddens, tokens, start, cache, k, states)
                checked = torch.cat((tokens[:, -1:], drafts), dim=1)
                output = target(input_ids=checked, **cached)
                forwards += 1
                chosen = output.logits.argmax(-1)
                hits = int((drafts == chosen[:, :-1]).long().cumprod(dim=1).sum())
                if hits < k:
                    # Every version of transformers reads a negative length as rows to remove.
                    target_cache.crop(hits - k)

                line = chosen[0, : hits + 1].tolist()
                stop = next((i for i, token in enumerate(line) if token in stops), len(line))
                line = line[: min(stop + 1, max_new_tokens - len(new))]
                tally.add(drafted=k, accepted=min(hits, len(line)), stop=stop)
                new += line
                start += tokens.shape[1]
                tokens = chosen[:, : hits + 1]
                hiddens = tuple(hidden[:, : hits + 1] for hidden in aux.hiddens)
        if bar is not None:
            bar.update(len(new) - bar.n)
    finally:
        if bar is not None:
            bar.close()

    return SpeculateResult(
        tokens=torch.cat((prompt, torch.tensor([new], device=prompt.device)), dim=1),
        new_tokens=len(new),
        accepted_per_round=tally.accepted,
        reached_by_depth=tally.reached_at,
        accepted_by_depth=tally.accepted_at,
        target_forwards=forwards,
        seconds=time.perf_counter() - began,
        state_rms_by_depth=None if states is None else _mean_rms(states),
    )


class _Tally:
    """Counts of tested and accepted drafts."""

    def __init__(self, depth: int) -> None:
        self.accepted: list[int] = []
        self.reached_at = [0] * depth
        self.accepted_at = [0] * depth

    def add(self, *, drafted: int, accepted: int, stop: int) -> None:
        """Count a round; `stop` is the index of the token that ends the sequence, if any."""
        self.accepted.append(accepted)
        for j in range(drafted):
            # Past the end of the sequence no draft is on trial.
            self.reached_at[j] += j <= min(accepted, stop)
            self.accepted_at[j] += j < accepted


def _draft(
    drafter: Eagle3Drafter,
    hiddens: Sequence[Tensor],
    tokens: Tensor,
    start: int,
    cache: DrafterCache,
    depth: int,
    states: list[Tensor] | None,
) -> Tensor:
    """Enter the rows that stand on target states, then draft a chain: [1, depth] tokens.

    The last of those rows gives the first draft. `states`, if given, receives the chain's
    fed-back states as one [depth, H].
    """
    end = start + tokens.shape[1]
    positions = torch.arange(start, end, device=tokens.device)
    hidden, state = drafter.step(tokens, drafter.fuse(hiddens), positions, cache)
    first, state = drafter.greedy(hidden[:, -1:]), state[:, -1:]
    fed = [state]
    rest = drafter.chain(state, first, end, cache, depth - 1, states=fed)
    if states is not None:
        states.append(torch.cat(fed, dim=1)[0])
    return torch.cat((first, rest), dim=1)


def _mean_rms(states: Sequence[Tensor]) -> list[float]:
    """Per depth the mean over chains [k, H], k at most the depth, of the state's RMS."""
    rms = [state.float().square().mean(-1).sqrt() for state in states]
    depths = max((len(row) for row in rms), default=0)
    return [
        float(torch.stack([row[j] for row in rms if len(row) > j]).mean()) for j in range(depths)
    ]


def _check_models(target: Any, drafter: Any) -> None:
    missing = [name for name in ("config", "device") if not hasattr(target, name)]
    if not isinstance(target, torch.nn.Module) or missing:
        raise TypeError(
            f"target: got {type(target).__name__}, expected a Hugging Face causal language model"
        )
    if not isinstance(drafter, Eagle3Drafter):
        raise TypeError(f"drafter: got {type(drafter).__name__}, expected an Eagle3Drafter")
    if target.training:
        raise ValueError("target: it is in training mode, expected eval mode: call target.eval()")


def _check_fit(target: Any, drafter: Eagle3Drafter) -> None:
    config, theirs = drafter.config, _text_config(target)
    for ours, name in (("vocab_size", "vocab_size"), ("target_hidden_size", "hidden_size")):
        value = getattr(theirs, name)
        if getattr(config, ours) != value:
            raise ValueError(
                f"drafter: its {ours} is {getattr(config, ours)}, expected {value}, the target's "
                f"{name}"
            )
    home = drafter.fc.weight.device
    if target.device != home:
        raise ValueError(f"drafter: it is on {home}, expected {target.device} like the target")


def _check_prompt(target: Any, drafter: Eagle3Drafter, input_ids: Tensor, new: int) -> None:
    got = getattr(input_ids, "dtype", type(input_ids).__name__)
    if got not in (torch.int32, torch.int64):
        raise ValueError(f"input_ids: got {got}, expected a tensor of int64 or int32")
    if input_ids.ndim != 2 or input_ids.shape[1] < 1:
        raise ValueError(
            f"input_ids: got shape {tuple(input_ids.shape)}, expected [1, T] with T at least 1"
        )
    if input_ids.shape[0] != 1:
        raise ValueError(
            f"input_ids: got a batch of {input_ids.shape[0]}, expected 1: decode one sequence at "
            "a time"
        )
    if input_ids.device != target.device:
        raise ValueError(
            f"input_ids: on {input_ids.device}, expected {target.device} like the target"
        )
    vocab = drafter.config.vocab_size
    outside = (input_ids < 0) | (input_ids >= vocab)
    if bool(outside.any()):
        position = int(outside[0].nonzero()[0])
        raise ValueError(
            f"input_ids: got id {int(input_ids[0, position])} at position {position}, expected "
            f"0 to {vocab - 1}"
        )
    total = input_ids.shape[1] + new
    limits = {
        "drafter": drafter.config.max_position_embeddings,
        "target": getattr(_text_config(target), "max_position_embeddings", None),
    }
    for owner, limit in limits.items():
        if limit is not None and total > limit:
            raise ValueError(
                f"max_new_tokens: prompt of {input_ids.shape[1]} + {new} new = {total} tokens, "
                f"expected at most {limit}, the {owner}'s max_position_embeddings"
            )


def _check_cached(cache: Any, length: int) -> None:
    if cache.get_seq_length() != length:
        raise ValueError(
            "target: it does not keep its past in the KV cache that it is given, expected a "
            "model with attention layers only"
        )


def _text_config(target: Any) -> Any:
    config = target.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _stop_ids(target: Any, eos_token_id: int | Iterable[int] | None) -> frozenset[int]:
    given: Any = eos_token_id
    if given is None:
        given = getattr(getattr(target, "generation_config", None), "eos_token_id", None)
    if given is None:
        return frozenset()
    # A tensor or an array counts by its values.
    ids = given.tolist() if hasattr(given, "tolist") else given
    ids = list(ids) if isinstance(ids, Iterable) and not isinstance(ids, str | bytes) else [ids]
    if bad := [i for i in ids if isinstance(i, bool) or not isinstance(i, int | np.integer)]:
        raise TypeError(
            f"eos_token_id: got {bad[0]!r} of type {type(bad[0]).__name__}, expected an integer, "
            "integers or None"
        )
    return frozenset(int(i) for i in ids)


def _progress_bar(total: int) -> Any:
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError('progress=True needs tqdm: pip install "leeboard[hf]"') from error
    return tqdm(total=total, unit="token")
