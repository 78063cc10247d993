"""Which keys each query attends to, as small values: checked once, printable, hashable.

`Dense`, `Causal`, `Band`, `Modality`, `Blocks` and `TopU`; `a & b` sees what both see, `a | b` what
either sees. Where there are more keys than queries, or fewer, the last query is aligned with the
last key, as in a key-value cache: query i sits at position p = i + keys - queries.
"""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from leeboard.ops import _spans
from leeboard.ops._numpy import Integers, np
from leeboard.ops._pattern_fields import ascending, integer, is_sequence, sample, share, tiling
from leeboard.ops._spans import Spans

__all__ = [
    "And",
    "Band",
    "Blocks",
    "Causal",
    "Dense",
    "Modality",
    "Or",
    "Pattern",
    "TopU",
    "decode",
]

# Beyond any distance of tokens, and far from where sums of int64 would wrap.
_FAR = 1 << 48


class Pattern:
    """Which keys a query sees.

    Attributes:
        kind: The name of its class of patterns.
        code: Canonical text; `decode` reads it. Patterns are equal iff their codes are.
    """

    kind: ClassVar[str]
    code: str

    def _finish(self, *fields: object) -> None:
        """Sets the code; the last step of every constructor."""
        object.__setattr__(self, "code", json.dumps([self.kind, *fields], separators=(",", ":")))

    def __eq__(self, other: object) -> bool:
        return self.code == other.code if isinstance(other, Pattern) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.code)

    def __and__(self, other: Pattern) -> Pattern:
        return _composed(And, self, other)

    def __or__(self, other: Pattern) -> Pattern:
        return _composed(Or, self, other)

    def check(self, queries: int, keys: int) -> None:
        """Nothing where the pattern fits these lengths.

        Raises:
            ValueError: Where it does not, with its own lengths and those given.
        """

    def dense_mask(
        self, queries: int, keys: int | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        """bool [queries, keys], true where a query sees a key; as many keys as queries by default.

        For the reference and tests: the kernels never build it.

        Raises:
            ValueError: If the pattern does not fit these lengths.
        """
        keys = queries if keys is None else keys
        self.check(queries, keys)
        i = torch.arange(queries, device=device)[:, None]
        j = torch.arange(keys, device=device)[None]
        return self._sees(i, j, keys - queries).expand(queries, keys).contiguous()

    def spans(self, queries: int, keys: int) -> Spans:
        """What each row sees, as intervals of keys: (offsets [queries + 1], spans [n, 2]), int64.

        Row i sees the keys in the union of [begin, end) of spans[offsets[i] : offsets[i + 1]],
        which ascend, are not empty and do not touch.

        Raises:
            ValueError: If the pattern does not fit these lengths.
        """
        self.check(queries, keys)
        if keys == 0:
            return np.zeros(queries + 1, np.int64), np.zeros((0, 2), np.int64)
        return self._spans(queries, keys)

    def pairs(self, queries: int, keys: int | None = None) -> int:
        """How many pairs of a query and a key it sees.

        Raises:
            ValueError: If the pattern does not fit these lengths.
        """
        return _spans.tokens(self.spans(queries, queries if keys is None else keys))

    def flops(self, queries: int, keys: int | None = None, *, head_dim: int, heads: int = 1) -> int:
        """Floating-point operations of the forward's two products: 4 * head_dim for each pair.

        Raises:
            ValueError: If the pattern does not fit these lengths.
        """
        return 4 * head_dim * heads * self.pairs(queries, keys)

    def _sees(self, i: Tensor, j: Tensor, offset: int) -> Tensor:
        raise NotImplementedError

    def _spans(self, queries: int, keys: int) -> Spans:
        raise NotImplementedError

    def _queries(self) -> tuple[int, int] | None:
        """Fewest and most queries that it fits, or None for any number."""
        return None


@dataclass(frozen=True, eq=False)
class Dense(Pattern):
    """Every query sees every key."""

    kind: ClassVar[str] = "dense"

    def __post_init__(self) -> None:
        self._finish()

    def _sees(self, i: Tensor, j: Tensor, offset: int) -> Tensor:
        return torch.ones_like(i + j, dtype=torch.bool)

    def _spans(self, queries: int, keys: int) -> Spans:
        spans = np.zeros((queries, 2), np.int64)
        spans[:, 1] = keys
        return np.arange(queries + 1), spans


@dataclass(frozen=True, eq=False)
class Causal(Pattern):
    """A query sees the keys up to its own position."""

    kind: ClassVar[str] = "causal"

    def __post_init__(self) -> None:
        self._finish()

    def _sees(self, i: Tensor, j: Tensor, offset: int) -> Tensor:
        return j <= i + offset

    def _spans(self, queries: int, keys: int) -> Spans:
        ends = np.maximum(np.arange(queries) + (keys - queries + 1), 0)[:, None]
        return _spans.from_columns(np.zeros_like(ends), ends)


@dataclass(frozen=True, eq=False)
class Band(Pattern):
    """A query sees the keys at a distance less than `window` from its position, and sink tokens.

    Args:
        window: Least distance out of sight, >= 1. 1 sees the own position alone.
        sinks: Leading keys that stay in sight whatever the distance, >= 0.
        causal: Whether nothing beyond the own position is seen, sinks included.
    """

    window: int
    sinks: int = 0
    causal: bool = True
    kind: ClassVar[str] = "band"

    def __post_init__(self) -> None:
        _set(self, "window", integer("window", self.window, 1))
        _set(self, "sinks", integer("sinks", self.sinks, 0))
        if not isinstance(self.causal, bool):
            raise TypeError(f"causal: expected a bool, got {type(self.causal).__name__}")
        self._finish(self.window, self.sinks, self.causal)

    def _sees(self, i: Tensor, j: Tensor, offset: int) -> Tensor:
        distance = i + offset - j
        window, sinks = (min(n, _FAR) for n in (self.window, self.sinks))
        seen = (distance.abs() < window) | (j < sinks)
        return seen & (distance >= 0) if self.causal else seen

    def _spans(self, queries: int, keys: int) -> Spans:
        position = np.arange(queries) + (keys - queries)
        limit = np.clip(position + 1, 0, keys) if self.causal else np.full(queries, keys)
        window = min(self.window, _FAR)
        begin = np.clip(position - window + 1, 0, keys)
        end = np.minimum(np.maximum(position + window, 0), limit)
        if self.sinks == 0:
            return _spans.from_columns(begin[:, None], end[:, None])
        sinks = np.minimum(limit, min(self.sinks, _FAR))
        # Where they touch, the second takes both.
        touching = (begin <= sinks) & (begin < end)
        end = np.where(touching, np.maximum(end, sinks), end)
        begin = np.where(touching, 0, begin)
        sinks = np.where(touching, 0, sinks)
        return _spans.from_columns(
            np.stack((np.zeros_like(sinks), begin), 1), np.stack((sinks, end), 1)
        )


@dataclass(frozen=True, eq=False, init=False, repr=False)
class Modality(Pattern):
    """Local inside each modality; its first tokens see all and are seen by all.

    For as many keys as queries: the tokens of all modalities.

    Args:
        spans: (start, stop) of each modality; they follow each other from 0 on, without gap or
            overlap. Kept as `modalities`.
        window: A query sees the keys of its own modality at a distance less than this, >= 1; None
            for all of them.
        summary: Leading tokens of each modality that see every key and are seen by every query,
            >= 0; at most all that it has.

    Raises:
        TypeError, ValueError: For an argument that does not fit; the message names it, and which
            modalities overlap or leave a gap.
    """

    modalities: tuple[tuple[int, int], ...]
    window: int | None
    summary: int
    kind: ClassVar[str] = "modality"

    def __init__(
        self, spans: Iterable[Sequence[int]], window: int | None = None, summary: int = 1
    ) -> None:
        _set(self, "modalities", tiling(spans))
        _set(self, "window", None if window is None else integer("window", window, 1))
        _set(self, "summary", integer("summary", summary, 0))
        self._finish(self.modalities, self.window, self.summary)

    @staticmethod
    def of_lengths(lengths: Iterable[int], window: int | None = None, summary: int = 1) -> Modality:
        """Modalities of these numbers of tokens, in this order."""
        counts = [integer(f"lengths[{n}]", length, 1) for n, length in enumerate(lengths)]
        stops = np.cumsum(counts).tolist()
        starts = [stop - count for stop, count in zip(stops, counts, strict=True)]
        return Modality(tuple(zip(starts, stops, strict=True)), window, summary)

    def __repr__(self) -> str:
        return f"Modality({self.modalities}, window={self.window}, summary={self.summary})"

    def check(self, queries: int, keys: int) -> None:
        total = self.modalities[-1][1]
        if queries != total or keys != total:
            raise ValueError(
                f"pattern: {self} was given for {queries} queries and {keys} keys; expected "
                f"{total} of both, the tokens of its spans"
            )

    def _sees(self, i: Tensor, j: Tensor, offset: int) -> Tensor:
        starts = torch.tensor([start for start, _ in self.modalities], device=i.device)

        def modality(token: Tensor) -> Tensor:
            return torch.bucketize(token, starts, right=True) - 1

        def is_summary(token: Tensor) -> Tensor:
            return token - starts[modality(token)] < min(self.summary, _FAR)

        local = modality(i) == modality(j)
        if self.window is not None:
            local = local & ((i - j).abs() < min(self.window, _FAR))
        return local | is_summary(i) | is_summary(j)

    def _spans(self, queries: int, keys: int) -> Spans:
        bounds = np.array(self.modalities)
        start, stop = bounds.repeat(bounds[:, 1] - bounds[:, 0], 0).T
        token = np.arange(queries)
        window, summary = (_FAR if n is None else min(n, _FAR) for n in (self.window, self.summary))
        sees_all = token < start + summary
        begin = np.where(sees_all, 0, np.maximum(start, token - window + 1))
        end = np.where(sees_all, keys, np.minimum(stop, token + window))
        summaries = (bounds[:, 0], np.minimum(bounds[:, 0] + summary, bounds[:, 1]))
        every_row = [np.broadcast_to(side, (queries, len(bounds))) for side in summaries]
        return _spans.joined(
            np.column_stack((begin, every_row[0])), np.column_stack((end, every_row[1])), keys
        )

    def _queries(self) -> tuple[int, int]:
        return self.modalities[-1][1], self.modalities[-1][1]


@dataclass(frozen=True, eq=False)
class Blocks(Pattern):
    """A list of key blocks for each block of queries.

    For more than (len(index) - 1) * block queries, and at most len(index) * block.

    Args:
        index: For each block of queries the blocks of keys that it sees, in ascending order. A
            block of queries without any sees nothing.
        block: Rows of a block, >= 1, of queries and keys alike; the last may have fewer.
    """

    index: tuple[tuple[int, ...], ...]
    block: int = 64
    kind: ClassVar[str] = "blocks"

    def __post_init__(self) -> None:
        index: object = self.index
        if not is_sequence(index):
            raise TypeError(
                f"index: expected a list of key blocks for each block of queries, got "
                f"{type(index).__name__}"
            )
        _set(self, "index", tuple(ascending(f"index[{n}]", row) for n, row in enumerate(index)))
        _set(self, "block", integer("block", self.block, 1))
        self._finish(self.index, self.block)

    def check(self, queries: int, keys: int) -> None:
        least, most = self._queries()
        if not least <= queries <= most:
            raise ValueError(
                f"pattern: Blocks of {len(self.index)} blocks of {self.block} queries was given "
                f"for {queries} queries; expected {least} to {most}"
            )
        have = -(-keys // self.block)
        for n, row in enumerate(self.index):
            if row and row[-1] >= have:
                raise ValueError(
                    f"pattern: index[{n}] of Blocks names key block {row[-1]}; expected less than "
                    f"{have}, the blocks of {self.block} in {keys} keys"
                )

    def _sees(self, i: Tensor, j: Tensor, offset: int) -> Tensor:
        table = torch.zeros(
            len(self.index), -(-j.shape[1] // self.block), dtype=torch.bool, device=i.device
        )
        for n, row in enumerate(self.index):
            table[n, list(row)] = True
        return table[i // self.block, j // self.block]

    def _spans(self, queries: int, keys: int) -> Spans:
        offsets = np.zeros(len(self.index) + 1, np.int64)
        np.cumsum([len(row) for row in self.index], out=offsets[1:])
        begin = np.array([b for row in self.index for b in row], np.int64) * self.block
        spans = np.stack((begin, np.minimum(begin + self.block, keys)), 1)
        # One part: neighbouring blocks become one span.
        merged = _spans.union([(offsets, spans)], keys)
        return _spans.repeated(merged, self.block, queries)

    def _queries(self) -> tuple[int, int]:
        blocks = len(self.index)
        return max((blocks - 1) * self.block + 1, 0) if blocks else 0, blocks * self.block


@dataclass(frozen=True, eq=False)
class TopU(Pattern):
    """ProbSparse attention: the u most peaked queries of a head attend, the others take the mean.

    Of n keys that are not padding, U are sampled, the same ones for every query of a head (Zhou et
    al., 2021, arXiv:2012.07436, sample for each query anew). A query is as peaked as its greatest
    scaled score over the sample exceeds their mean. The u most peaked queries of each head, the
    lower index first among equal ones, attend to all keys; every other's result is the plain mean
    of the values, and its log-sum-exp is log n.

    Args:
        factor: u = min(factor * ceil(ln queries), queries) and U = min(factor * ceil(ln n), n), at
            least 1 of what there is; >= 1.
        seed: Of the sample, 0 to 2 ** 63 - 1: the same seed and n give the same keys.
    """

    factor: int = 5
    seed: int = 0
    kind: ClassVar[str] = "top_u"

    def __post_init__(self) -> None:
        _set(self, "factor", integer("factor", self.factor, 1))
        _set(self, "seed", integer("seed", self.seed, 0))
        if self.seed >= 1 << 63:
            raise ValueError(f"seed: {self.seed} was given; expected at most {(1 << 63) - 1}")
        self._finish(self.factor, self.seed)

    def queries(self, queries: int) -> int:
        """How many of the queries of a head attend."""
        return share(self.factor, queries)

    def sampled(self, keys: int) -> Integers:
        """The sampled keys, int64 [U], ascending: places among `keys` that are not padding.

        Place i is floor((i + r[i]) * keys / U), r uniform in [0, 1) from the seed: one for each
        part of the keys of size keys / U; two may be the same.
        """
        return sample(self.factor, self.seed, keys)

    def pairs(self, queries: int, keys: int | None = None) -> int:
        """How many pairs of a query and a key attention is computed for."""
        return self.queries(queries) * (queries if keys is None else keys)

    def flops(self, queries: int, keys: int | None = None, *, head_dim: int, heads: int = 1) -> int:
        """As of every pattern, and 2 * head_dim for each query and sampled key."""
        keys = queries if keys is None else keys
        sampling = 2 * head_dim * heads * queries * share(self.factor, keys)
        return sampling + 4 * head_dim * heads * self.pairs(queries, keys)

    def _sees(self, i: Tensor, j: Tensor, offset: int) -> Tensor:
        # A query that attends may see every key; which ones attend depends on the values.
        return torch.ones_like(i + j, dtype=torch.bool)

    def _spans(self, queries: int, keys: int) -> Spans:
        return Dense()._spans(queries, keys)


@dataclass(frozen=True, eq=False, repr=False)
class _Composite(Pattern):
    """Several patterns, flat, without repetition, in the order of their codes."""

    parts: tuple[Pattern, ...]
    sign: ClassVar[str]

    def __post_init__(self) -> None:
        self._finish(*(json.loads(part.code) for part in self.parts))

    def __repr__(self) -> str:
        texts = [f"({p})" if isinstance(p, _Composite) else str(p) for p in self.parts]
        return f" {self.sign} ".join(texts)

    def check(self, queries: int, keys: int) -> None:
        for part in self.parts:
            part.check(queries, keys)

    def _queries(self) -> tuple[int, int] | None:
        return _common_queries(self.parts)


@dataclass(frozen=True, eq=False, repr=False)
class And(_Composite):
    """What every part sees; made by `&`."""

    kind: ClassVar[str] = "and"
    sign: ClassVar[str] = "&"

    def _sees(self, i: Tensor, j: Tensor, offset: int) -> Tensor:
        return functools.reduce(operator.and_, (p._sees(i, j, offset) for p in self.parts))

    def _spans(self, queries: int, keys: int) -> Spans:
        return _spans.intersection([part._spans(queries, keys) for part in self.parts], keys)


@dataclass(frozen=True, eq=False, repr=False)
class Or(_Composite):
    """What any part sees; made by `|`."""

    kind: ClassVar[str] = "or"
    sign: ClassVar[str] = "|"

    def _sees(self, i: Tensor, j: Tensor, offset: int) -> Tensor:
        return functools.reduce(operator.or_, (p._sees(i, j, offset) for p in self.parts))

    def _spans(self, queries: int, keys: int) -> Spans:
        return _spans.union([part._spans(queries, keys) for part in self.parts], keys)


@functools.lru_cache(1024)
def decode(code: str) -> Pattern:
    """The pattern of a code.

    Raises:
        ValueError: If it is none.
    """
    try:
        return _built(json.loads(code))
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise ValueError(f"pattern: {code!r} is no code of a pattern ({error})") from error


_SIMPLE: dict[str, Callable[..., Pattern]] = {
    p.kind: p for p in (Dense, Causal, Band, Modality, Blocks, TopU)
}


def _built(node: Any) -> Pattern:
    kind, *fields = node
    if kind not in ("and", "or"):
        return _SIMPLE[kind](*fields)
    parts = [_built(field) for field in fields]
    return functools.reduce(operator.and_ if kind == "and" else operator.or_, parts)


def _composed(kind: type[And | Or], a: Pattern, b: object) -> Pattern:
    if not isinstance(b, Pattern):
        raise TypeError(f"{kind.sign}: expected a Pattern, got {type(b).__name__}")
    parts: dict[str, Pattern] = {}
    for pattern in (a, b):
        for part in pattern.parts if isinstance(pattern, kind) else (pattern,):
            parts[part.code] = part
    dense = Dense()
    if dense.code in parts:
        if kind is Or:
            return dense
        if len(parts) > 1:
            del parts[dense.code]
    if len(parts) == 1:
        return next(iter(parts.values()))
    members = tuple(parts[code] for code in sorted(parts))
    for member in members:
        if isinstance(member, TopU):
            raise ValueError(  # noqa: TRY004 (it is a pattern)
                f"{kind.sign}: {member} chooses queries by their scores over all keys; it goes "
                "with no pattern but Dense()"
            )
    _common_queries(members)
    return kind(members)


def _common_queries(parts: Sequence[Pattern]) -> tuple[int, int] | None:
    """The numbers of queries that fit all parts.

    Raises:
        ValueError: If there is none.
    """
    known: tuple[Pattern, int, int] | None = None
    for part in parts:
        own = part._queries()
        if own is None:
            continue
        if known is None:
            known = (part, *own)
            continue
        other, least, most = known
        if max(least, own[0]) > min(most, own[1]):
            raise ValueError(
                f"pattern: {other} is for {_text(least, most)} queries and {part} for "
                f"{_text(*own)}; expected patterns of one length"
            )
        known = (part, max(least, own[0]), min(most, own[1]))
    return None if known is None else known[1:]


def _text(least: int, most: int) -> str:
    return str(least) if least == most else f"{least} to {most}"


def _set(pattern: Pattern, name: str, value: object) -> None:
    object.__setattr__(pattern, name, value)
