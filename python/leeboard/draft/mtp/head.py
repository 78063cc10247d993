"""MTP heads: one more decoder layer of the target's own kind, that predicts one token further.

Multi-token prediction of DeepSeek-V3 (arXiv:2412.19437, section 2.2): h' = M [norm(embedding);
norm(state)], h = layer(h'), and the target's own output matrix on norm(h). Row t pairs token
x_{t+1} with the target's state at position t and predicts x_{t+2}, as a drafter's does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor, nn

from leeboard.draft.capture import AuxStates
from leeboard.draft.checks import finite_rows, positive_int
from leeboard.draft.mtp.cache import MTPCache, valid_rows
from leeboard.draft.mtp.config import MTPConfig
from leeboard.draft.mtp.memory import Cached, Memory, Unrolled
from leeboard.draft.mtp.states import capture_last, final_norm
from leeboard.draft.mtp.structure import Head, build
from leeboard.draft.protocol import (
    Drafter,
    Feed,
    Watch,
    check_unroll,
    document_bounds,
    shifted,
)
from leeboard.ops import feedback


class MTPHead(Drafter):
    """One or several MTP heads of a target.

    state_dict names are those of the convention's checkpoints: "deepseek_v3"
    `model.layers.{N + m}.{enorm, hnorm, eh_proj, shared_head.norm, shared_head.head,
    embed_tokens}.*` with N the target's number of layers, "qwen3_next" `mtp.{pre_fc_norm_embedding,
    pre_fc_norm_hidden, fc, norm}.*` and `mtp.layers.{m}.*`, "mimo" `model.mtp_layers.{m}.{
    token_layernorm, hidden_layernorm, input_proj, final_layernorm}.*`; the decoder layer's own
    names beside them. The embedding and the output matrix are the target's and frozen; the last
    two conventions have them under the target's names, `model.embed_tokens.weight` and
    `lm_head.weight`. Experts are in one tensor per layer where transformers keeps them so;
    checkpoints have one per expert (`save_drafter` and `load_drafter` see to it).

    Step j of a chain uses head j % heads. Head m's row t takes token x_{t+1+m} and the state of
    head m - 1 at row t (of the target for m = 0); it attends to the head's rows 0..t and, in later
    visits of the chain, to the row's own keys of the visits before. No window is applied.

    Fresh heads have random weights: `copy_from_target` gives them the target's embedding, output
    matrix and final norm.

    Args:
        config: Shape and conventions.

    Raises:
        ImportError: transformers is not installed.
        ValueError: transformers has no decoder layer for this target.
    """

    config: MTPConfig

    def __init__(self, config: MTPConfig) -> None:
        super().__init__()
        self.config = config
        made = build(config)
        for name, module in made.roots.items():
            self.add_module(name, module)
        # Not registered once more: their names are the originals'.
        self._heads: list[Head] = made.heads
        self._shared: tuple[nn.Embedding, nn.Linear] = (made.embed, made.head)
        self._rotary: tuple[Any] = (made.rotary,)
        self._float32 = made.float32
        self.embedding.weight.requires_grad_(False)
        self.head_weight.requires_grad_(False)
        vocab = config.vocab_size
        self.register_buffer("d2t", torch.zeros(vocab, dtype=torch.int64), persistent=False)
        self.register_buffer("t2d", torch.ones(vocab, dtype=torch.bool), persistent=False)

    @property
    def embedding(self) -> nn.Embedding:
        """The target's, [V, H], frozen."""
        return self._shared[0]

    @property
    def head_weight(self) -> Tensor:
        """[V, H], the target's output matrix, frozen."""
        return self._shared[1].weight

    @property
    def dtype(self) -> torch.dtype:
        """Of the states and of the weights, but for those that a router keeps in float32."""
        return cast(Tensor, self._heads[0].norm.weight).dtype

    @property
    def device(self) -> torch.device:
        """Where the heads are."""
        return cast(Tensor, self._heads[0].norm.weight).device

    @property
    def float32_names(self) -> list[str]:
        """Names in the state_dict of what stays in float32 where the others are rounded."""
        return [name for name in self.state_dict() if name.endswith(self._float32)]

    def step_nbytes(self) -> int:
        """Bytes of the weights that one step of the chain reads, every expert's among them."""
        one = self._heads[0]
        parts = (one.embed_norm, one.hidden_norm, one.project, one.block, one.norm)
        found = {id(t): t for part in parts for t in (*part.parameters(), *part.buffers())}
        found.pop(id(self.embedding.weight), None)
        found[id(self.head_weight)] = self.head_weight
        return sum(t.nbytes for t in found.values())

    def capture(self, target: nn.Module) -> AbstractContextManager[AuxStates]:
        """Catch the target's last state, behind its final norm or before, by `target_state`."""
        return capture_last(target, self.config)

    def fuse(self, hiddens: Sequence[Tensor]) -> Tensor:
        """The one captured state [B, T, H] in the heads' dtype, the `state` of step 0.

        Raises:
            ValueError: Their number or width does not fit the config.
        """
        if len(hiddens) != 1:
            raise ValueError(f"hiddens: got {len(hiddens)} tensors, expected 1")
        state = hiddens[0]
        if state.ndim != 3 or state.shape[-1] != self.config.hidden_size:
            raise ValueError(
                f"hiddens[0]: got shape {tuple(state.shape)}, expected (B, T, "
                f"{self.config.hidden_size})"
            )
        return state.to(self.dtype)

    def iter_unroll(
        self,
        input_ids: Tensor,
        hiddens: Sequence[Tensor],
        steps: int,
        *,
        positions: Tensor | None = None,
        feed: Feed | None = None,
        watch: Watch | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """`unroll` one step at a time.

        With several heads, what `watch` sees are the keys of the step's own head: of its first
        step j % heads, which rows 0..t are seen of, and of its steps since.
        """
        positive_int("steps", steps)
        state, heads = self.fuse(hiddens), self.config.heads
        check_unroll(input_ids, state.shape[:2], positions)
        bounds = None if positions is None else document_bounds(positions)
        if positions is None:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        memories = [Unrolled(bounds, watch) for _ in range(heads)]
        tokens = input_ids
        for j in range(steps):
            tokens = shifted(tokens)
            if j and feed is not None:
                state = feed(j, state)
            memories[j % heads].step = j
            hidden, state = self._run(j % heads, tokens, state, positions + j, memories[j % heads])
            yield hidden, state

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the vocabulary, [..., V], of `hidden` [..., H]."""
        return cast(Tensor, self._shared[1](hidden))

    def new_cache(self, capacity: int) -> MTPCache:
        """An empty cache with room for `capacity` rows at first."""
        return MTPCache(self.config.heads, capacity)

    @torch.no_grad()
    def draft(
        self,
        hiddens: Sequence[Tensor],
        tokens: Tensor,
        counts: Sequence[int],
        cache: MTPCache,
        depth: int,
    ) -> tuple[Tensor, Tensor]:
        """As `Drafter.draft`: every head runs the new rows, then the last row goes on alone."""
        positive_int("depth", depth)
        state, heads = self.fuse(hiddens), self.config.heads
        finite_rows(state, torch.tensor(counts, device=tokens.device) - 1)
        rows = cache.enter(tokens, state, counts)
        valid = valid_rows(rows)
        # Behind the rows that count anything may stand.
        tokens = rows.tokens.masked_fill(~valid, 0)
        state = rows.states.masked_fill(~valid[..., None], 0.0)
        kept = None if bool(valid.all()) else rows.counts
        positions = torch.tensor(rows.starts, device=tokens.device)[:, None]
        positions = positions + torch.arange(tokens.shape[1], device=tokens.device)
        last = torch.tensor(rows.counts, device=tokens.device) - 1
        each = torch.arange(len(last), device=tokens.device)
        drafts: list[Tensor] = []
        fed: list[Tensor] = []
        # A head that the chain does not reach runs its rows all the same: they are never run later.
        for j in range(max(depth, heads)):
            if j == heads:
                state, positions = fed[-1][:, None], positions[each, last][:, None]
            if j >= heads:
                tokens, kept, last = drafts[-1][:, None], None, torch.zeros_like(last)
            elif j:
                tokens = shifted(tokens)
                tokens[each, last] = drafts[-1]
            memory = Cached(cache.heads[j % heads], kept)
            hidden, state = self._run(j % heads, tokens, state, positions + j, memory)
            drafts.append(self.greedy(hidden[each, last]))
            fed.append(state[each, last])
        cache.keep(rows)
        return torch.stack(drafts[:depth], dim=1), torch.stack(fed[:depth], dim=1)

    def share(self, target: Any) -> tuple[str, ...]:
        """Take the target's embedding and output matrix, frozen.

        They share the target's storage where dtype and device are the same, else they are copies.

        Args:
            target: A Hugging Face causal LM.

        Returns:
            Names of the parameters that were replaced.

        Raises:
            ValueError: Vocabulary or width differ, or the target has no output matrix.
        """
        pairs = (
            (self._shared[0], target.get_input_embeddings(), "embedding"),
            (self._shared[1], target.get_output_embeddings(), "output matrix"),
        )
        for ours, theirs, what in pairs:
            shape = getattr(getattr(theirs, "weight", None), "shape", None)
            if shape != ours.weight.shape:
                raise ValueError(
                    f"target: its {what} is {None if shape is None else tuple(shape)}, expected "
                    f"{tuple(ours.weight.shape)}: vocab_size and hidden_size of the config"
                )
        before = {id(self.embedding.weight), id(self.head_weight)}
        names = [n for n, p in self.named_parameters(remove_duplicate=False) if id(p) in before]
        for ours, theirs, _ in pairs:
            weight = theirs.weight.detach().to(self.device, self.dtype)
            # A parameter of our own on the target's storage: `to` must not move the target's.
            ours.weight = nn.Parameter(weight, requires_grad=False)
        return tuple(names)

    @torch.no_grad()
    def copy_from_target(self, target: Any) -> tuple[str, ...]:
        """Start from the target's weights: `share`, and its final norm copied into every head's.

        Args:
            target: A Hugging Face causal LM.

        Returns:
            Names of the parameters that were written.

        Raises:
            ValueError: As `share`.
        """
        names = list(self.share(target))
        norm = final_norm(target)
        gain = getattr(norm, "weight", None)
        for one in {id(one.norm): one for one in self._heads}.values():
            if type(norm) is type(one.norm) and gain is not None:
                ours = cast(Tensor, one.norm.weight)
                ours.copy_(gain)
                names += [n for n, p in self.named_parameters() if p is ours]
        return tuple(names)

    def _run(
        self, m: int, tokens: Tensor, state: Tensor, positions: Tensor, memory: Memory
    ) -> tuple[Tensor, Tensor]:
        """(hidden, next_state), both [B, T, H], of head m: the one step that there is."""
        one = self._heads[m]
        embedded, normed = one.embed_norm(self.embedding(tokens)), one.hidden_norm(state)
        first = self.config.concat_order == "embed_first"
        joined = (embedded, normed) if first else (normed, embedded)
        x = one.project(torch.cat(joined, dim=-1))
        x = one.block(
            x,
            attention_mask=None,
            position_ids=positions,
            position_embeddings=self._rotary[0](x, position_ids=positions),
            memory=memory,
        )
        # Some layers return a tuple whose first entry is the residual stream.
        x = x[0] if isinstance(x, tuple) else x
        hidden = one.norm(x)
        return hidden, feedback(hidden, x, self.config.recycle == "post")

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        exact = {
            name: tensor.detach()
            for name, tensor in (*self.named_parameters(), *self.named_buffers())
            if tensor.dtype == torch.float32 and name.endswith(self._float32)
        }
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in exact.items():
            owner, _, last = name.rpartition(".")
            now = getattr(self.get_submodule(owner), last)
            if now.dtype.itemsize < before.dtype.itemsize:
                now.data = before.to(now.device)
        if self.device.type != "meta":
            # Never cast: angles of far positions need float32.
            self._rotary[0].to(self.device)
        self._choose_experts()
        return self

    def _choose_experts(self) -> None:
        """Let transformers run experts in a way that knows the weights' dtype."""
        for one in self._heads:
            for module in one.block.modules():
                config = getattr(module, "config", None)
                given = getattr(config, "_experts_implementation", None)
                if given is not None and self.dtype == torch.float64:
                    # torch's grouped products have none.
                    cast(Any, config)._experts_implementation = "eager"

    def __repr__(self) -> str:
        config = self.config
        return (
            f"MTPHead({config.convention}, heads={config.heads}, {config.concat_order}, "
            f"recycle={config.recycle!r}, target_state={config.target_state!r}, "
            f"{self.nbytes() / 1e6:.1f} MB)"
        )
