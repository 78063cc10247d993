"""Speculative decoding of a Hugging Face causal LM with a chain drafter."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leeboard.draft.checks import positive_int
from leeboard.draft.protocol import Drafter
from leeboard.draft.target import TargetRun
from leeboard.ops import verify_greedy, verify_sample


@dataclasses.dataclass(frozen=True)
class SpeculateResult:
    """What `speculate` produced and how the drafts fared. Depth 1 is index 0.

    Figures by round and by depth are sums or means over all rounds of all sequences.

    Attributes:
        tokens: int64 [B, T + longest], the prompts as given and their continuations, filled up
            with the target's padding id (or an id that ends the output, or 0).
        lengths: int64 [B], tokens produced per sequence (an end-of-sequence token included):
            sequence b ends at column T + lengths[b].
        new_tokens: Tokens produced in all.
        accepted_by_sequence: Per sequence, round by round: drafted tokens that entered the output;
            the bonus token is not counted, nor is a draft after the end of the sequence.
        reached_by_depth: Rounds in which the draft at each depth was put to the test: drafted,
            all before it accepted, the sequence not over.
        accepted_by_depth: Rounds in which it was accepted.
        target_forwards: Forward passes of the target, the prompts' included. One pass serves all
            sequences.
        seconds: Wall time of the whole call, the prompts' forward pass included.
        state_rms_by_depth: Root mean square of the state fed back after each chain step, averaged
            over all drafted chains; None unless `collect_states`.
    """

    tokens: Tensor
    lengths: Tensor
    new_tokens: int
    accepted_by_sequence: list[list[int]]
    reached_by_depth: list[int]
    accepted_by_depth: list[int]
    target_forwards: int
    seconds: float
    state_rms_by_depth: list[float] | None = None

    @property
    def accepted_per_round(self) -> list[int]:
        """`accepted_by_sequence`, one sequence after another."""
        return [accepted for rounds in self.accepted_by_sequence for accepted in rounds]

    @property
    def rounds(self) -> int:
        """Draft-and-verify rounds; a round of B sequences counts B times."""
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
            if field.name not in ("tokens", "lengths")
        }
        fields["lengths"] = self.lengths.tolist()
        for name in (
            "accepted_per_round",
            "mean_accepted",
            "tau",
            "acceptance_by_depth",
            "tokens_per_second",
        ):
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
    drafter: Drafter,
    input_ids: Tensor,
    *,
    max_new_tokens: int,
    depth: int,
    attention_mask: Tensor | None = None,
    eos_token_id: int | Iterable[int] | None = None,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    collect_states: bool = False,
    progress: bool = False,
) -> SpeculateResult:
    """Decode with a drafter; the output is the target's own.

    Every round drafts a chain of `depth` tokens, runs the target once over the last token and
    the chain, keeps the drafts that `verify_greedy` or `verify_sample` accepts, and adds one more
    token of the target's. The drafter's rows of kept tokens are then rebuilt from the target's
    states; the chain's rows are dropped. Every sequence of a batch accepts its own count, and
    leaves the batch when it is over.

    At temperature 0 the output is the target's greedy output. Equality with token-by-token
    decoding holds as far as the target computes the same logits for several positions at once as
    for one (it may differ in exact ties, more often in bfloat16). Above 0 the output is distributed
    as the target's own samples from softmax(logits / temperature), computed in float32: the
    target-only rule, whatever the drafter proposes. Logits processors of a generation config are
    not applied.

    With several sequences the target's KV cache is realigned after every round in which they keep
    different counts: one read and one write of it.

    Args:
        target: A Hugging Face causal LM with a KV cache that can be cut back, in eval mode.
        drafter: A drafter for this target, on the same device.
        input_ids: [B, T] int32 or int64, T at least 1.
        max_new_tokens: Tokens to produce per sequence, at least 1.
        depth: Tokens to draft per round, at least 1.
        attention_mask: [B, T], 0 on padding and 1 on tokens, as a tokenizer returns it; padding
            stands on the left only. None for no padding.
        eos_token_id: One or several ids that end a sequence (and stay in it). None takes those of
            the target's generation config, as `generate` does; an empty list never stops early.
        temperature: 0.0 for greedy decoding, else finite and positive.
        generator: Where randomness comes from, on the target's device; None is torch's default.
        collect_states: Measure the RMS of the fed-back state at every depth.
        progress: Show a progress bar (needs tqdm).

    Returns:
        A `SpeculateResult`.

    Raises:
        TypeError: `target`, `drafter`, `eos_token_id` or `temperature` is of another kind.
        ValueError: An argument is out of range, an id is outside the vocabulary, padding stands
            elsewhere than on the left, the target is in training mode or yields states or logits
            that are not finite, the drafter does not fit it, or a sequence would outgrow either's
            positions.
        ImportError: transformers (or tqdm, with `progress`) is not installed.
    """
    for name, value in (("max_new_tokens", max_new_tokens), ("depth", depth)):
        positive_int(name, value)
    temperature = _checked_temperature(temperature)
    _check_models(target, drafter)
    _check_fit(target, drafter)
    starts = _check_prompt(target, drafter, input_ids, attention_mask)
    limit = _check_room(target, drafter, input_ids.shape[1] - min(starts), max_new_tokens)
    stops = _stop_ids(target, eos_token_id)
    run = TargetRun(target)
    batch = input_ids.shape[0]
    bar = _progress_bar(batch * max_new_tokens) if progress else None

    began = time.perf_counter()
    # Columns that hold padding alone are left out; where there is padding, any id will do.
    prompt = input_ids.long()[:, min(starts) :]
    starts = [start - min(starts) for start in starts]
    prompt = _without_padding(prompt, starts)
    cache = drafter.new_cache(prompt.shape[1] + max_new_tokens + depth)
    tally = _Tally(batch, depth)
    states: list[Tensor] | None = [] if collect_states else None

    try:
        with drafter.capture(target) as aux:
            logits = run.prompt(prompt, starts)
            _, following = _verify(prompt[:, :0], logits[:, None], temperature, generator)
            new = [[token] for token in following.tolist()]
            # The drafter's next rows: row t pairs the target's state t with token t + 1.
            tokens = torch.cat((prompt[:, 1:], following[:, None]), dim=1)
            counts = list(run.lengths)
            tokens, *hiddens = _from_the_left(starts, tokens, *aux.hiddens)
            active = list(range(batch))
            going = _going(active, new, max_new_tokens, stops)
            run.keep([0] * batch, 0, going)
            while True:
                if bar is not None:
                    bar.update(sum(map(len, new)) - bar.n)
                if not going:
                    break
                if len(going) < len(active):
                    chosen = torch.tensor(going, device=prompt.device)
                    if cache.longest:
                        cache.select(going)
                    tokens, following = tokens[chosen], following[chosen]
                    hiddens = [hidden[chosen] for hidden in hiddens]
                    counts, active = [counts[b] for b in going], [active[b] for b in going]
                left = [max_new_tokens - len(new[b]) for b in active]
                k = min(depth, max(left), limit - 1 - max(run.lengths))
                drafts, fed = drafter.draft(hiddens, tokens, counts, cache, k)
                if states is not None:
                    states.extend(fed.unbind())
                logits = run.extend(torch.cat((following[:, None], drafts), dim=1))
                accepted, following = _verify(drafts, logits, temperature, generator)

                counts = [n + 1 for n in accepted.tolist()]
                rows = zip(active, left, counts, drafts.tolist(), following.tolist(), strict=True)
                for b, room, n, drafted, bonus in rows:
                    line = [*drafted[: n - 1], bonus]
                    stop = next((i for i, token in enumerate(line) if token in stops), n)
                    line = line[: min(stop + 1, room)]
                    tally.add(b, drafted=min(k, room), accepted=min(n - 1, len(line)), stop=stop)
                    new[b] += line
                going = _going(active, new, max_new_tokens, stops)
                run.keep(counts, k + 1, going)
                # Beyond a sequence's count its rows mean nothing.
                n = max(counts)
                at = torch.arange(n, device=prompt.device)
                padded = torch.cat((drafts, following[:, None]), dim=1)[:, :n]
                tokens = torch.where(at < accepted[:, None], padded, following[:, None])
                hiddens = [hidden[:, :n] for hidden in aux.hiddens]
    finally:
        if bar is not None:
            bar.close()

    lengths = torch.tensor([len(row) for row in new], device=prompt.device)
    fill = _fill_id(target, stops)
    longest = max(map(len, new))
    padded_rows = [row + [fill] * (longest - len(row)) for row in new]
    continuation = torch.tensor(padded_rows, device=prompt.device)
    return SpeculateResult(
        tokens=torch.cat((input_ids.long(), continuation), dim=1),
        lengths=lengths,
        new_tokens=sum(map(len, new)),
        accepted_by_sequence=tally.accepted,
        reached_by_depth=tally.reached_at,
        accepted_by_depth=tally.accepted_at,
        target_forwards=run.forwards,
        seconds=time.perf_counter() - began,
        state_rms_by_depth=None if states is None else _mean_rms(states),
    )


class _Tally:
    """Counts of tested and accepted drafts."""

    def __init__(self, batch: int, depth: int) -> None:
        self.accepted: list[list[int]] = [[] for _ in range(batch)]
        self.reached_at = [0] * depth
        self.accepted_at = [0] * depth

    def add(self, sequence: int, *, drafted: int, accepted: int, stop: int) -> None:
        """Count a round; `stop` is the index of the token that ends the sequence, if any."""
        self.accepted[sequence].append(accepted)
        for j in range(drafted):
            # Past the end of the sequence no draft is on trial.
            self.reached_at[j] += j <= min(accepted, stop)
            self.accepted_at[j] += j < accepted


def _going(
    active: Sequence[int], new: Sequence[Sequence[int]], most: int, stops: Collection[int]
) -> list[int]:
    """Places in `active` of the sequences that are not over."""
    return [
        place for place, b in enumerate(active) if len(new[b]) < most and new[b][-1] not in stops
    ]


def _verify(
    drafts: Tensor, logits: Tensor, temperature: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """(accepted, next_token), int64 [B], of drafts [B, k] by the target's logits [B, k + 1, V]."""
    peak, best = logits.max(dim=-1)
    if not bool(peak.isfinite().all()):
        b, j = (~peak.isfinite()).nonzero()[0].tolist()
        raise ValueError(
            f"target: the largest of its logits is {float(peak[b, j])} (sequence {b} of those that "
            "go on), expected finite logits"
        )
    if temperature == 0.0:
        accepted, following = verify_greedy(drafts, best)
        return accepted, following
    # Less the peak before the division, which may otherwise overflow.
    scaled = (logits.float() - peak.float()[..., None]) / temperature
    accepted, following = verify_sample(drafts, scaled.softmax(dim=-1), generator=generator)
    return accepted, following


def _without_padding(ids: Tensor, starts: Sequence[int]) -> Tensor:
    """ids [B, T] with 0 in place of what stands before starts[b]."""
    first = torch.tensor(list(starts), device=ids.device)[:, None]
    return ids.masked_fill(torch.arange(ids.shape[1], device=ids.device) < first, 0)


def _from_the_left(starts: Sequence[int], *rows: Tensor) -> list[Tensor]:
    """Tensors [B, T, ...] with row starts[b] first; behind the end the last row is repeated."""
    if not any(starts):
        return list(rows)
    length = rows[0].shape[1]
    each = torch.arange(len(starts), device=rows[0].device)[:, None]
    at = torch.arange(length, device=rows[0].device)
    source = (at + torch.tensor(list(starts), device=rows[0].device)[:, None]).clamp(max=length - 1)
    return [t[each, source] for t in rows]


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
    if not isinstance(drafter, Drafter):
        raise TypeError(f"drafter: got {type(drafter).__name__}, expected a leeboard.draft.Drafter")
    if target.training:
        raise ValueError("target: it is in training mode, expected eval mode: call target.eval()")


def _check_fit(target: Any, drafter: Drafter) -> None:
    config, theirs = drafter.config, _text_config(target)
    for ours, name in (("vocab_size", "vocab_size"), ("target_hidden_size", "hidden_size")):
        value = getattr(theirs, name)
        if getattr(config, ours) != value:
            raise ValueError(
                f"drafter: its {ours} is {getattr(config, ours)}, expected {value}, the target's "
                f"{name}"
            )
    if target.device != drafter.device:
        raise ValueError(
            f"drafter: it is on {drafter.device}, expected {target.device} like the target"
        )


def _checked_temperature(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"temperature: got {value!r}, expected a number")
    number = float(value)
    if not 0.0 <= number < math.inf:
        raise ValueError(
            f"temperature: got {value}, expected 0.0 (greedy) or a finite positive number"
        )
    return number


def _check_prompt(
    target: Any, drafter: Drafter, input_ids: Tensor, attention_mask: Tensor | None
) -> list[int]:
    """Raise ValueError unless the prompts can be read; the columns at which they begin."""
    got = getattr(input_ids, "dtype", type(input_ids).__name__)
    if got not in (torch.int32, torch.int64):
        raise ValueError(f"input_ids: got {got}, expected a tensor of int64 or int32")
    if input_ids.ndim != 2 or 0 in input_ids.shape:
        raise ValueError(
            f"input_ids: got shape {tuple(input_ids.shape)}, expected [B, T] with B, T at least 1"
        )
    if input_ids.device != target.device:
        raise ValueError(
            f"input_ids: on {input_ids.device}, expected {target.device} like the target"
        )
    starts = [0] * input_ids.shape[0]
    inside = torch.ones_like(input_ids, dtype=torch.bool)
    if attention_mask is not None:
        inside = _token_mask(attention_mask, input_ids)
        starts = inside.long().argmax(dim=1).tolist()
    vocab = drafter.config.vocab_size
    outside = ((input_ids < 0) | (input_ids >= vocab)) & inside
    if bool(outside.any()):
        row, position = outside.nonzero()[0].tolist()
        where = f"position {position}" + (f" of row {row}" if len(starts) > 1 else "")
        raise ValueError(
            f"input_ids: got id {int(input_ids[row, position])} at {where}, expected "
            f"0 to {vocab - 1}"
        )
    return starts


def _token_mask(attention_mask: object, input_ids: Tensor) -> Tensor:
    """The mask as bool [B, T], true on tokens; ValueError unless padding stands on the left."""
    if not isinstance(attention_mask, Tensor) or attention_mask.shape != input_ids.shape:
        got = getattr(attention_mask, "shape", None)
        raise ValueError(
            f"attention_mask: got {type(attention_mask).__name__ if got is None else tuple(got)}, "
            f"expected a tensor {tuple(input_ids.shape)} like input_ids"
        )
    mask = attention_mask.to(input_ids.device)
    if bool(((mask != 0) & (mask != 1)).any()):
        raise ValueError("attention_mask: got other values than 0 and 1")
    tokens = mask.bool()
    if not bool(tokens[:, -1].all()) or bool((tokens[:, :-1] & ~tokens[:, 1:]).any()):
        gap = ~tokens & (tokens.long().cumsum(1) > 0) | ~tokens.any(1, keepdim=True)
        row, position = gap.nonzero()[0].tolist()
        raise ValueError(
            f"attention_mask: row {row} has padding at position {position}, expected padding on "
            'the left only and at least one token: tokenizer.padding_side = "left"'
        )
    return tokens


def _check_room(target: Any, drafter: Drafter, prompt: int, new: int) -> int:
    """Raise ValueError unless the longest sequence fits; the positions that there are."""
    limits = {
        "drafter": drafter.config.max_position_embeddings,
        "target": getattr(_text_config(target), "max_position_embeddings", None),
    }
    for owner, limit in limits.items():
        if limit is not None and prompt + new > limit:
            raise ValueError(
                f"max_new_tokens: prompt of {prompt} + {new} new = {prompt + new} tokens, "
                f"expected at most {limit}, the {owner}'s max_position_embeddings"
            )
    return min(limit for limit in limits.values() if limit is not None)


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


def _fill_id(target: Any, stops: Collection[int]) -> int:
    """What fills up the shorter rows of a result."""
    given = getattr(getattr(target, "generation_config", None), "pad_token_id", None)
    return int(given) if isinstance(given, int) else min(stops, default=0)


def _progress_bar(total: int) -> Any:
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError('progress=True needs tqdm: pip install "leeboard[hf]"') from error
    return tqdm(total=total, unit="token")
