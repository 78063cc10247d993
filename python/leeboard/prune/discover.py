"""Finds the prunable units of a model by the types of its modules."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from torch import nn

from leeboard.ops.patterns import Pattern
from leeboard.prune._weights import Census, is_linear_like
from leeboard.prune.families import Candidate, at, recognise
from leeboard.prune.units import Kind, LeftAlone, Sublayer, Tokens, Units

# Up to so many modalities, all sets of them are asked for at once.
_EAGER_MODALITIES = 12


@dataclass(frozen=True)
class Declaration:
    """A block that `units` does not know, declared by hand.

    What happens between the writers' outputs and the reader's input must treat every unit alone:
    its sizes must come from the tensors (views with -1 heads), and nothing may mix or weigh
    channels of different units.

    Attributes:
        name: Dotted name of the block; "" is the model itself.
        kind: "attention" or "feed_forward".
        writers: Names of its linear layers, inside the block: (q, k, v), or (up,) or (up, gate).
        reader: Name of the linear layer, inside the block, that reads the units.
        width: Columns of the reader in a unit: head_dim, or 1.
    """

    name: str
    kind: Kind
    writers: tuple[str, ...]
    reader: str
    width: int = 1


def units(
    model: nn.Module,
    *,
    tokens: int | Mapping[str, int] | None = None,
    modalities: Sequence[str] | None = None,
    declare: Sequence[Declaration] = (),
) -> Units:
    """The attention heads and feed-forward channels of a model that plans can shed.

    Known are `nn.MultiheadAttention`, `nn.TransformerEncoderLayer` and `nn.TransformerDecoderLayer`;
    leeboard's `SparseGQA`, `CrossAttention`, `SparseMultiheadAttention` and `FeedForward`; and
    attention and feed-forward blocks of Hugging Face transformers that are built like BERT's,
    ViT's, CLIP's or Llama's. They are known by type: nothing is traced and the model is not run or
    changed. Everything else that holds linear layers is in `left_alone`, with the reason.

    Args:
        model: The model.
        tokens: Tokens of a sample, for costs. A number; or a number for each modality, which add
            up over those that are present; or for each sublayer, by name or the beginning of a
            name. By default the model is asked: `model.leeboard_tokens(present)`; one without is
            counted for a single token.
        modalities: Names of the model's inputs; `model.modalities` by default, or ("input",).
        declare: Blocks that are not known by type.

    Raises:
        TypeError: If `model` is not a module.
        ValueError: If a declaration does not fit the model, `tokens` is not positive or names
            neither modalities nor sublayers, or names of modalities are repeated.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    names = _modalities(model, modalities)
    census = Census(model)
    sublayers: list[Sublayer] = []
    left: list[LeftAlone] = []
    claimed: set[str] = set()
    patterns: dict[str, Pattern | None] = {}
    for declaration in declare:
        candidate = _declared(model, declaration)
        sublayer = _sized(model, census, candidate)
        if isinstance(sublayer, LeftAlone):
            raise ValueError(  # noqa: TRY004 (a value of the argument)
                f"declare: {declaration.name!r} cannot be pruned: {sublayer.reason}"
            )
        taken = claimed.intersection(_layers(candidate))
        if taken:
            raise ValueError(f"declare: {min(taken)} is declared twice")
        claimed.update(_layers(candidate))
        sublayers.append(sublayer)
    for name, module in model.named_modules():
        for candidate in recognise(name, module):
            if claimed.intersection(_layers(candidate)):
                continue
            found = _sized(model, census, candidate)
            claimed.update(_layers(candidate))
            if isinstance(found, LeftAlone):
                left.append(found)
            else:
                sublayers.append(found)
                patterns[found.name] = candidate.pattern
    order = {name: n for n, (name, _) in enumerate(model.named_modules())}
    sublayers.sort(key=lambda s: order[s.reader])
    left += _unclaimed(model, claimed)
    passing, default = _counts(model, [s.name for s in sublayers], tokens, names)
    whole = passing[frozenset(names)] if passing else {}
    shown = [
        replace(s, pairs=_pairs(patterns.get(s.name), whole.get(s.name, default)))
        for s in sublayers
    ]
    return Units(
        tuple(shown),
        tuple(left),
        names,
        _fingerprint(model, sublayers, names),
        passing,
        default,
    )


def _modalities(model: nn.Module, modalities: Sequence[str] | None) -> tuple[str, ...]:
    if isinstance(modalities, str):
        raise TypeError(f"modalities: got the string {modalities!r}, expected a list of names")
    given = getattr(model, "modalities", None) if modalities is None else modalities
    names = ("input",) if given is None else tuple(given)
    if not names or len(set(names)) != len(names) or not all(type(n) is str for n in names):
        raise ValueError(f"modalities: got {list(names)}, expected different names, at least one")
    return names


def _declared(model: nn.Module, declaration: Declaration) -> Candidate:
    if declaration.kind not in ("attention", "feed_forward"):
        raise ValueError(
            f"declare: got kind {declaration.kind!r}, expected 'attention' or 'feed_forward'"
        )
    counts = (3,) if declaration.kind == "attention" else (1, 2)
    if len(declaration.writers) not in counts:
        raise ValueError(
            f"declare: {declaration.name!r} has {len(declaration.writers)} writers, expected "
            + ("3: q, k, v" if declaration.kind == "attention" else "1 or 2: up, and gate")
        )
    if type(declaration.width) is not int or declaration.width < 1:
        raise ValueError(f"declare: got width {declaration.width!r}, expected a positive integer")
    candidate = Candidate(
        declaration.name,
        declaration.kind,
        "linear",
        tuple(at(declaration.name, writer) for writer in declaration.writers),
        at(declaration.name, declaration.reader),
        width=declaration.width,
        gated=len(declaration.writers) == 2,
    )
    known = dict(model.named_modules())
    for name in (*candidate.writers, candidate.reader):
        if name not in known:
            raise ValueError(f"declare: the model has no module {name!r}")
    return candidate


def _layers(candidate: Candidate) -> tuple[str, ...]:
    """Names of the linear layers, or of the parameter that stands for three."""
    return (*candidate.writers, candidate.reader)


def _sized(model: nn.Module, census: Census, candidate: Candidate) -> Sublayer | LeftAlone:
    """The sublayer with the sizes of its linear layers, or why there is none."""
    block = (candidate.modules or (candidate.name,))[0]
    kind = type(model.get_submodule(block)).__name__

    def left(reason: str) -> LeftAlone:
        return LeftAlone(candidate.name, kind, reason)

    if candidate.reason:
        return left(candidate.reason)
    for name in candidate.modules:
        reason = census.why_not(model.get_submodule(name))
        if reason:
            return left(reason)
    own = candidate.family in ("torch_mha", "sparse_mha")
    for name in (candidate.reader,) if own else (*candidate.writers, candidate.reader):
        reason = census.why_not_linear(model.get_submodule(name))
        if reason:
            return left(f"{name.rpartition('.')[2]} {reason}")
    reader: Any = model.get_submodule(candidate.reader)
    if own:
        mha: Any = model.get_submodule(candidate.name)
        sizes = [(mha.embed_dim, mha.embed_dim)] * 3
        weight = mha.in_proj_weight
    else:
        linears: list[Any] = [model.get_submodule(name) for name in candidate.writers]
        sizes = [(layer.in_features, layer.out_features) for layer in linears]
        weight = linears[0].weight
    columns, width = reader.in_features, candidate.width
    if weight.dtype != reader.weight.dtype:
        return left(f"writers are {weight.dtype}, the reader is {reader.weight.dtype}")
    written = sizes[-1][1]
    if sizes[0][1] != columns or columns % width:
        return left(f"writers make {sizes[0][1]} columns, the reader takes {columns}")
    group = 1
    if candidate.kind == "attention":
        if sizes[1][1] != written or sizes[1][0] != sizes[2][0] or columns % max(written, 1):
            return left(f"keys have {sizes[1][1]} columns, values {written}, queries {columns}")
        if written % width:
            return left(f"keys have {written} columns, not a multiple of head_dim, {width}")
        group = columns // written
    elif len(set(sizes)) > 1:
        return left(f"writers have different sizes: {sizes}")
    return Sublayer(
        candidate.name,
        candidate.kind,
        candidate.family,
        candidate.reader,
        candidate.writers,
        columns // width,
        width,
        group,
        sizes[0][0],
        sizes[-1][0],
        reader.out_features,
        candidate.gated,
        element_bytes=weight.element_size(),
    )


def _pairs(pattern: Pattern | None, tokens: Tokens) -> float:
    """Share of query-key pairs that the pattern shows at a length that it fits."""
    if pattern is None or tokens.queries < 2:
        return 1.0
    try:
        return pattern.pairs(*tokens) / (tokens.queries * tokens.keys)
    except ValueError:
        return 1.0


def _unclaimed(model: nn.Module, claimed: set[str]) -> list[LeftAlone]:
    """Modules whose linear layers nobody has claimed."""
    left = []
    for name, module in model.named_modules():
        if is_linear_like(module):
            continue
        free = [
            child
            for child, layer in module._modules.items()
            if layer is not None and is_linear_like(layer) and at(name, child) not in claimed
        ]
        if isinstance(module, nn.MultiheadAttention) and at(name, "in_proj_weight") in claimed:
            continue
        if free:
            left.append(LeftAlone(name, type(module).__name__, _how_to_declare(name, module, free)))
    return left


def _how_to_declare(name: str, module: nn.Module, free: list[str]) -> str:
    known = f"no known block; linear layers: {', '.join(free)}"
    layers: list[Any] = [module._modules[child] for child in free]
    foreign = sorted({type(m).__name__ for m in layers if not isinstance(m, nn.Linear)})
    if foreign:
        return f"{known}, of a kind that no plan runs: {', '.join(foreign)}"
    for up in layers:
        for down in layers:
            sizes = [getattr(m, "out_features", 0) for m in (up, down)]
            if up is down or sizes[0] != getattr(down, "in_features", -1):
                continue
            first, last = free[layers.index(up)], free[layers.index(down)]
            return (
                f'{known}. If {last} reads what {first} writes: Declaration("{name}", '
                f'kind="feed_forward", writers=("{first}",), reader="{last}")'
            )
    return f"{known}, none of which reads another's output; a Declaration needs such a pair"


def _fingerprint(
    model: nn.Module, sublayers: Sequence[Sublayer], modalities: tuple[str, ...]
) -> str:
    rows = [
        [
            s.name,
            s.kind,
            s.family,
            s.reader,
            s.writers,
            [s.units, s.width, s.group, s.in_features, s.key_features, s.out_features],
            s.gated,
            str(model.get_submodule(s.reader).weight.dtype),
        ]
        for s in sublayers
    ]
    text = json.dumps([rows, modalities], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class _Passing(Mapping[frozenset[str], Mapping[str, Tokens]]):
    """What sublayers work on for every set of present modalities; asked for when needed."""

    def __init__(
        self,
        ask: Callable[[frozenset[str]], Mapping[str, Tokens]],
        modalities: Sequence[str],
    ) -> None:
        self._ask, self._modalities = ask, tuple(modalities)
        self._known: dict[frozenset[str], Mapping[str, Tokens]] = {}

    def __getitem__(self, present: frozenset[str]) -> Mapping[str, Tokens]:
        if present not in self._known:
            if not present or not present <= set(self._modalities):
                raise KeyError(present)
            self._known[present] = self._ask(present)
        return self._known[present]

    def __iter__(self) -> Iterator[frozenset[str]]:
        for count in range(1, len(self._modalities) + 1):
            yield from map(frozenset, combinations(self._modalities, count))

    def __len__(self) -> int:
        return int(2 ** len(self._modalities) - 1)


def _by_name(given: Mapping[str, Any], names: Sequence[str]) -> dict[str, Tokens]:
    """Tokens by sublayer: of the longest key that is its name or the beginning of it."""
    found = {}
    for name in names:
        keys = [k for k in given if not k or name == k or name.startswith(k + ".")]
        if keys:
            found[name] = Tokens(*given[max(keys, key=len)])
    return found


def _counts(
    model: Any,
    names: Sequence[str],
    tokens: int | Mapping[str, int] | None,
    modalities: tuple[str, ...],
) -> tuple[Mapping[frozenset[str], Mapping[str, Tokens]], Tokens]:
    """`passing` and `default` of the units."""
    if tokens is None:
        if not hasattr(model, "leeboard_tokens"):
            return {}, Tokens(1, 1)
        return _passing(lambda p: _by_name(model.leeboard_tokens(p), names), modalities)
    counts = [*tokens.values()] if isinstance(tokens, Mapping) else [tokens]
    for count in counts:
        if type(count) is not int or count < 1:
            raise ValueError(f"tokens: got {count!r}, expected a positive integer")
    if not isinstance(tokens, Mapping):
        return {}, Tokens(tokens, tokens)
    if set(tokens) == set(modalities):
        by_modality = dict(tokens)

        def summed(present: frozenset[str]) -> dict[str, Tokens]:
            count = sum(by_modality[m] for m in present)
            return dict.fromkeys(names, Tokens(count, count))

        return _passing(summed, modalities)
    found = _by_name({k: (n, n) for k, n in tokens.items()}, names)
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(
            f"tokens: nothing is said of {missing[0]}, expected a number for every modality "
            f"({', '.join(modalities)}) or every sublayer"
        )
    return _passing(lambda _: found, modalities)


def _passing(
    ask: Callable[[frozenset[str]], Mapping[str, Tokens]], modalities: tuple[str, ...]
) -> tuple[Mapping[frozenset[str], Mapping[str, Tokens]], Tokens]:
    lazy = _Passing(ask, modalities)
    if len(modalities) > _EAGER_MODALITIES:
        return lazy, Tokens(1, 1)
    return {present: lazy[present] for present in lazy}, Tokens(1, 1)
