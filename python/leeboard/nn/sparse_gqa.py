"""Grouped-query self-attention under a pattern, as a module with a key-value cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from leeboard.nn._decoding import AttentionCache, decode, require_decodable
from leeboard.ops import sparse_gqa
from leeboard.ops.patterns import Dense, Pattern


class SparseGQA(nn.Module):
    """Self-attention with grouped key-value heads that computes what its pattern shows.

    out_proj(concat_h(attention_h)), attention as `leeboard.ops.sparse_gqa`: query head h reads
    key-value head h // (num_heads / num_kv_heads). There is no dropout of attention weights.

    Args:
        embed_dim: Channels E of inputs and outputs.
        num_heads: Query heads.
        num_kv_heads: Key-value heads, a divisor of `num_heads`; as many by default.
        head_dim: Channels of a head, 1 to 256; embed_dim / num_heads by default.
        pattern: Who sees whom, of `leeboard.ops.patterns`.
        bias: Whether the projections have biases.
        softcap: Bound of the scores, > 0; none by default.
        sinks: Whether each head has a learned logit in its softmax whose value is zero:
            `sink_logits` [num_heads], zero at first.
        device: Of the parameters.
        dtype: Of the parameters.

    Attributes:
        active_heads: Query heads to compute, ascending, or None for all; a call may override it.
        scale: Of the scores, or None for head_dim ** -0.5.

    Raises:
        TypeError, ValueError: For an argument that does not fit; the message names it.
    """

    sink_logits: nn.Parameter | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        *,
        head_dim: int | None = None,
        pattern: Pattern = Dense(),  # noqa: B008 (a value)
        bias: bool = True,
        softcap: float | None = None,
        sinks: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        sizes = {"embed_dim": embed_dim, "num_heads": num_heads, "num_kv_heads": num_kv_heads}
        for name, size in sizes.items():
            if type(size) is not int or size < 1:
                raise ValueError(f"{name}: got {size!r}, expected a positive integer")
        if num_heads % num_kv_heads:
            raise ValueError(
                f"num_kv_heads: got {num_kv_heads}, expected a divisor of num_heads, {num_heads}"
            )
        if head_dim is None:
            if embed_dim % num_heads:
                raise ValueError(
                    f"num_heads: got {num_heads}, expected a divisor of embed_dim, {embed_dim}, or "
                    "a head_dim"
                )
            head_dim = embed_dim // num_heads
        if not 1 <= head_dim <= 256:
            raise ValueError(f"head_dim: got {head_dim}, expected 1 to 256")
        if not isinstance(pattern, Pattern):
            raise TypeError(f"pattern: got {type(pattern).__name__}, expected a leeboard Pattern")
        if softcap is not None and not softcap > 0:
            raise ValueError(f"softcap: got {softcap}, expected a positive number")
        self.embed_dim, self.num_heads, self.num_kv_heads = embed_dim, num_heads, num_kv_heads
        self.head_dim = head_dim
        self.pattern = pattern
        self.softcap = softcap
        self.scale: float | None = None
        self.active_heads: Sequence[int] | None = None
        options: dict[str, Any] = {"bias": bias, "device": device, "dtype": dtype}
        self.q_proj = nn.Linear(embed_dim, num_heads * head_dim, **options)
        self.k_proj = nn.Linear(embed_dim, num_kv_heads * head_dim, **options)
        self.v_proj = nn.Linear(embed_dim, num_kv_heads * head_dim, **options)
        self.out_proj: nn.Module = nn.Linear(num_heads * head_dim, embed_dim, **options)
        # Logits are not rounded to the storage type.
        logits = torch.zeros(num_heads, device=device) if sinks else None
        self.register_parameter("sink_logits", None if logits is None else nn.Parameter(logits))

    @classmethod
    def from_mha(
        cls, mha: nn.MultiheadAttention, *, pattern: Pattern, num_kv_heads: int | None = None
    ) -> SparseGQA:
        """A module with copies of the weights of a `torch.nn.MultiheadAttention`.

        With as many key-value heads its outputs are those of `mha` under the pattern. Fewer are
        the means of the heads that they replace (Ainslie et al., 2023, arXiv:2305.13245).

        Raises:
            ValueError: If `mha` has other sizes for keys and values, or extra keys; or
                `num_kv_heads` is no divisor of its heads.
        """
        reason = why_not_plain_mha(mha)
        if reason:
            raise ValueError(f"mha: {reason}")
        weights = mha.in_proj_weight.chunk(3)
        biases = (
            (None,) * 3 if mha._parameters["in_proj_bias"] is None else mha.in_proj_bias.chunk(3)
        )
        projections = [*zip(weights, biases, strict=True), (mha.out_proj.weight, mha.out_proj.bias)]
        return cls._from_weights(
            projections, mha.embed_dim, mha.num_heads, mha.num_heads, pattern, num_kv_heads
        )

    @classmethod
    def from_hugging_face(
        cls, attention: nn.Module, *, pattern: Pattern, num_kv_heads: int | None = None
    ) -> SparseGQA:
        """A module with copies of the weights of a self-attention of Hugging Face transformers.

        For modules with separate projections q_proj, k_proj, v_proj (or query, key, value) and
        o_proj or out_proj; without the last (BERT's `self`), `out_proj` is the identity. Scale,
        softcap and sinks are taken over; positions come with each call. Fewer key-value heads are
        means, as in `from_mha`.

        Raises:
            ValueError: If projections are missing, or queries and keys are normed; or
                `num_kv_heads` is no divisor.
        """
        layers = [_child(attention, *names) for names in _PROJECTIONS]
        for names, layer in zip(_PROJECTIONS[:3], layers, strict=False):
            if not isinstance(layer, nn.Linear):
                raise ValueError(  # noqa: TRY004 (it is a module)
                    f"attention: {type(attention).__name__} has no linear {' or '.join(names)}"
                )
        normed = [name for name in ("q_norm", "k_norm") if _child(attention, name) is not None]
        if normed:
            raise ValueError(
                f"attention: {type(attention).__name__} has {normed[0]}; a SparseGQA has no norms "
                "of queries and keys. Use leeboard.nn.replace(model, attention=pattern)"
            )
        q, k, _, out = layers
        config: Any = getattr(attention, "config", None)
        head_dim = _first(attention, "head_dim", "attention_head_size")
        if head_dim is None:
            heads = _first(attention, "num_heads", "num_attention_heads") or _first(
                config, "num_attention_heads"
            )
            if heads is None:
                raise ValueError(f"attention: {type(attention).__name__} does not say its head_dim")
            head_dim = q.out_features // heads
        sinks = _child(attention, "sinks", parameter=True)
        module = cls._from_weights(
            [(layer.weight, layer.bias) for layer in layers if layer is not None],
            q.in_features,
            q.out_features // head_dim,
            k.out_features // head_dim,
            pattern,
            num_kv_heads,
            softcap=_first(attention, "attn_logit_softcapping"),
            sinks=sinks is not None,
        )
        module.scale = _first(attention, "scaling", "scale")
        if sinks is not None:
            with torch.no_grad():
                module.sink_logits.copy_(sinks)  # type: ignore[union-attr]
        if out is None:
            module.out_proj = nn.Identity()
        return module

    @classmethod
    def _from_weights(
        cls,
        projections: Sequence[tuple[Tensor, Tensor | None]],
        embed_dim: int,
        heads: int,
        kv_heads: int,
        pattern: Pattern,
        num_kv_heads: int | None,
        **options: Any,
    ) -> SparseGQA:
        groups = kv_heads if num_kv_heads is None else num_kv_heads
        if type(groups) is not int or groups < 1 or kv_heads % groups:
            raise ValueError(
                f"num_kv_heads: got {groups!r}, expected a divisor of the {kv_heads} heads"
            )
        weight = projections[0][0]
        module = cls(
            embed_dim,
            heads,
            groups,
            head_dim=weight.shape[0] // heads,
            pattern=pattern,
            bias=any(bias is not None for _, bias in projections),
            device=weight.device,
            dtype=weight.dtype,
            **options,
        )
        layers = (module.q_proj, module.k_proj, module.v_proj, module.out_proj)
        with torch.no_grad():
            for n, (layer, (source, bias)) in enumerate(zip(layers, projections, strict=False)):
                assert isinstance(layer, nn.Linear)
                pooled = n in (1, 2)
                layer.weight.copy_(_pooled(source, kv_heads, groups) if pooled else source)
                if layer._parameters["bias"] is None:
                    continue
                if bias is None:
                    layer.bias.zero_()
                else:
                    layer.bias.copy_(_pooled(bias, kv_heads, groups) if pooled else bias)
        return module

    def cache(self, batch: int, capacity: int) -> AttentionCache:
        """An empty cache for `capacity` tokens of each of `batch` sequences.

        Raises:
            ValueError: If the pattern cannot be decoded: a token must not see later ones.
        """
        require_decodable(self.pattern)
        weight = self.k_proj.weight
        shape = (batch, self.num_kv_heads, capacity, self.head_dim)
        return AttentionCache(
            torch.zeros(shape, device=weight.device, dtype=weight.dtype),
            torch.zeros(shape, device=weight.device, dtype=weight.dtype),
            torch.zeros(batch, dtype=torch.int64, device=weight.device),
        )

    def forward(
        self,
        x: Tensor,
        *,
        key_padding: Tensor | None = None,
        pattern: Pattern | None = None,
        active_heads: Sequence[int] | None = None,
        cu_seqlens: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        cache: AttentionCache | None = None,
        need_lse: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attention of the tokens x over themselves, and over those in the cache.

        Args:
            x: [B, L, E].
            key_padding: bool [B, L], true for tokens that nobody sees. With a cache they come last
                in their sequence, and are not kept.
            pattern: In place of the module's, e.g. for the modalities of this call.
            active_heads: In place of the module's.
            cu_seqlens: [n + 1], bounds of sequences packed into one row, for B = 1.
            position_embeddings: (cos, sin), each [B or 1, L, D]: queries and keys are rotated,
                channel i paired with i + D / 2.
            cache: Where keys and values are appended. Inference only.
            need_lse: Whether the log-sum-exp of the scores is returned, too.

        Returns:
            [B, L, E]; with `need_lse` also float32 [B, num_heads, L].

        Raises:
            TypeError, ValueError: For an argument that does not fit, a full cache, or a pattern
                that does not fit the length.
            RuntimeError: If a gradient is wanted through a cache.
        """
        self._check(x)
        heads = self.active_heads if active_heads is None else active_heads
        out, lse = self._attend(
            self._heads(self.q_proj(x)),
            self._heads(self.k_proj(x)),
            self._heads(self.v_proj(x)),
            heads,
            self.sink_logits,
            key_padding=key_padding,
            pattern=pattern,
            cu_seqlens=cu_seqlens,
            position_embeddings=position_embeddings,
            cache=cache,
            need_lse=need_lse,
        )
        y: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return (y, lse) if need_lse else y

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        active_heads: Sequence[int] | None,
        sink_logits: Tensor | None,
        *,
        key_padding: Tensor | None = None,
        pattern: Pattern | None = None,
        cu_seqlens: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        cache: AttentionCache | None = None,
        need_lse: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Attention between the projections; of any heads, [B, H, L, D], and the log-sum-exp."""
        pattern = self.pattern if pattern is None else pattern
        if position_embeddings is not None:
            q, k = (_rotated(t, *position_embeddings) for t in (q, k))
        options: dict[str, Any] = {
            "scale": self.scale,
            "active_heads": active_heads,
            "softcap": self.softcap,
            "sink_logits": sink_logits,
            "return_lse": True,
        }
        if cache is None:
            out, lse = sparse_gqa(
                q, k, v, pattern, key_padding=key_padding, cu_seqlens=cu_seqlens, **options
            )
            return out, lse
        if cu_seqlens is not None:
            raise ValueError("cu_seqlens: got a tensor along with a cache, expected None")
        return decode(q, k, v, cache, pattern, key_padding, options, need_lse)

    def _check(self, x: Tensor) -> None:
        if x.dim() != 3 or x.shape[2] != self.embed_dim:
            raise ValueError(f"x: got shape {list(x.shape)}, expected [B, L, {self.embed_dim}]")

    def _heads(self, t: Tensor) -> Tensor:
        """[B, L, H * D] to [B, H, L, D]."""
        heads = t.shape[2] // self.head_dim
        return t.view(*t.shape[:2], heads, self.head_dim).transpose(1, 2)

    def extra_repr(self) -> str:
        """Sizes and pattern."""
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, "
            f"num_kv_heads={self.num_kv_heads}, head_dim={self.head_dim}, pattern={self.pattern}"
        )


_PROJECTIONS = (
    ("q_proj", "query"),
    ("k_proj", "key"),
    ("v_proj", "value"),
    ("o_proj", "out_proj"),
)


def why_not_plain_mha(mha: nn.MultiheadAttention) -> str:
    """What a MultiheadAttention has that no pattern serves, or an empty string."""
    if not isinstance(mha, nn.MultiheadAttention):
        raise TypeError(f"mha: got {type(mha).__name__}, expected a torch.nn.MultiheadAttention")
    if mha._parameters["in_proj_weight"] is None:
        return "its keys or values have sizes of their own (kdim, vdim)"
    if mha.bias_k is not None or mha.bias_v is not None:
        return "it adds keys and values of its own (add_bias_kv)"
    if mha.add_zero_attn:
        return "it adds a key of zeros (add_zero_attn)"
    if mha.head_dim > 256:
        return f"its heads have {mha.head_dim} channels; at most 256 are supported"
    return ""


def _child(module: nn.Module, *names: str, parameter: bool = False) -> Any:
    where = module._parameters if parameter else module._modules
    return next((where[name] for name in names if where.get(name) is not None), None)


def _first(owner: Any, *names: str) -> Any:
    return next((v for name in names if (v := getattr(owner, name, None)) is not None), None)


def _pooled(t: Tensor, heads: int, groups: int) -> Tensor:
    """The means of neighbouring heads, of the rows of a weight or bias."""
    return (
        t.reshape(groups, heads // groups, t.shape[0] // heads, -1)
        .mean(1)
        .reshape(-1, *t.shape[1:])
    )


def _rotated(t: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = t.chunk(2, -1)
    return t * cos[:, None] + torch.cat((-b, a), -1) * sin[:, None]
