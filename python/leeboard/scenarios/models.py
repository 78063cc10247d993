"""Sizes of targets and drafters: what a pass reads, computes, keeps and sends."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, TypeVar

Model = TypeVar("Model", "Target", "Drafter")

from leeboard.scenarios.given import given_json


class Work(TypedDict):
    """What a pass costs: FLOP, and bytes of memory traffic."""

    flops: float
    bytes: int


@dataclass(frozen=True)
class Target:
    """A decoder-only language model.

    Attributes:
        name: For people.
        parameters: All of them; they take memory.
        embedding: Of the input embedding, of which a pass reads a row per token only; 0 if it is
            also the output head.
        layers: Decoder layers.
        hidden: Width of the residual stream.
        kv_width: Key-value heads times head size.
        q_width: Query heads times head size.
        bytes_per_weight: 2 for bfloat16, about 1 for int8, about 0.53 for int4 in groups of 128.
        kv_bytes: Bytes of a number in the key-value cache.
        source: Where the sizes come from.
    """

    name: str
    parameters: float
    layers: int
    hidden: int
    embedding: float = 0.0
    kv_width: int = 0
    q_width: int = 0
    bytes_per_weight: float = 2.0
    kv_bytes: float = 2.0
    source: str = "given"

    def __post_init__(self) -> None:
        _check(self, ("parameters", "layers", "hidden", "bytes_per_weight", "kv_bytes"))
        if self.embedding >= self.parameters:
            raise ValueError(f"target: embedding: got {self.embedding:g} of {self.parameters:g}")

    @property
    def stored(self) -> float:
        """Bytes of the weights."""
        return self.parameters * self.bytes_per_weight

    def cache(self, context: int) -> float:
        """Bytes of the key-value cache of one sequence."""
        return 2.0 * self.layers * self.kv_width * self.kv_bytes * context

    def work(self, rows: int, context: int, batch: int = 1) -> Work:
        """FLOP and bytes of a pass over `rows` tokens of each of `batch` sequences."""
        read = self.parameters - self.embedding
        attention = 4.0 * self.layers * self.q_width * context
        return {
            "flops": batch * rows * (2.0 * read + attention),
            "bytes": round(read * self.bytes_per_weight + batch * self.cache(context)),
        }


@dataclass(frozen=True)
class Drafter:
    """A drafter that drafts a chain, a token a step.

    Attributes:
        name: For people.
        step: Parameters that a chain step reads.
        entry: Parameters that take in the target's states (EAGLE's `fc`), read once a round; they
            run where the target runs.
        embedding: Of its input embedding, in memory where the drafter runs without the target.
        layers: Decoder layers.
        hidden: Width of a state.
        states: Vectors of that width that travel from the target for each accepted token; 0 for an
            independent small model.
        kv_width: Key-value heads times head size.
        q_width: Query heads times head size.
        window: Rows of context that its attention sees; 0: all.
        bytes_per_weight: As for a target.
        kv_bytes: As for a target.
        source: Where the sizes come from.
    """

    name: str
    step: float
    layers: int
    hidden: int
    entry: float = 0.0
    embedding: float = 0.0
    states: int = 1
    kv_width: int = 0
    q_width: int = 0
    window: int = 0
    bytes_per_weight: float = 2.0
    kv_bytes: float = 2.0
    source: str = "given"

    def __post_init__(self) -> None:
        _check(self, ("step", "layers", "hidden", "bytes_per_weight", "kv_bytes"))

    def _rows(self, context: int) -> int:
        return min(context, self.window) if self.window else context

    def stored(self, *, alone: bool) -> float:
        """Bytes of the weights; `alone`: away from the target, whose embedding it else shares."""
        own = self.step + (self.embedding if alone else self.entry)
        return own * self.bytes_per_weight

    def cache(self, context: int) -> float:
        """Bytes of the key-value cache of one sequence."""
        return 2.0 * self.layers * self.kv_width * self.kv_bytes * self._rows(context)

    def work(self, rows: int, context: int, batch: int = 1) -> Work:
        """FLOP and bytes of a step over `rows` tokens of each of `batch` sequences."""
        attention = 4.0 * self.layers * self.q_width * self._rows(context)
        return {
            "flops": batch * rows * (2.0 * self.step + attention),
            "bytes": round(self.step * self.bytes_per_weight + batch * self.cache(context)),
        }

    def entry_work(self, rows: int, batch: int = 1) -> Work:
        """FLOP and bytes of taking in the target's states of `rows` tokens."""
        return {
            "flops": batch * rows * 2.0 * self.entry,
            "bytes": round(self.entry * self.bytes_per_weight),
        }

    def message(self, rows: int) -> float:
        """Bytes of the states of `rows` tokens, two bytes a number."""
        return 2.0 * rows * self.states * self.hidden


def _check(model: Target | Drafter, positive: tuple[str, ...]) -> None:
    what = type(model).__name__.lower()
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        if field.name in ("name", "source"):
            continue
        good = isinstance(value, int | float) and not isinstance(value, bool)
        good = good and math.isfinite(value) and value >= 0
        if not good or (field.name in positive and value == 0):
            least = "above 0" if field.name in positive else "from 0 on"
            raise ValueError(f"{what}: {field.name}: got {value!r}, expected a number {least}")


def _llama(
    name: str,
    hidden: int,
    inner: int,
    layers: int,
    heads: tuple[int, int, int],
    vocabulary: int,
    source: str,
    *,
    tied: bool = False,
) -> Target:
    """The sizes of a Llama-like model; heads: queries, keys and values, size of a head."""
    q, kv = heads[0] * heads[2], heads[1] * heads[2]
    layer = 2 * hidden * q + 2 * hidden * kv + 3 * hidden * inner + 2 * hidden
    table = vocabulary * hidden
    return Target(
        name,
        parameters=layers * layer + hidden + table * (1 if tied else 2),
        layers=layers,
        hidden=hidden,
        embedding=0 if tied else table,
        kv_width=kv,
        q_width=q,
        source=source,
    )


def _eagle3(
    name: str,
    hidden: int,
    inner: int,
    heads: tuple[int, int, int],
    vocabulary: int,
    draft_vocabulary: int,
    source: str,
) -> Drafter:
    """The sizes of an EAGLE-3 head: one layer that attends over [embedding; state], and a head."""
    q, kv = heads[0] * heads[2], heads[1] * heads[2]
    layer = 2 * hidden * (q + 2 * kv) + q * hidden + 3 * hidden * inner
    return Drafter(
        name,
        step=layer + draft_vocabulary * hidden,
        layers=1,
        hidden=hidden,
        entry=3 * hidden * hidden,
        embedding=vocabulary * hidden,
        kv_width=kv,
        q_width=q,
        source=source,
    )


_GQA = (32, 8, 128)
_CARD = "config.json of the model's card; weights of the norms are counted for targets"
_HEAD = "config.json of the published head (one layer, fc over three states, 32,000 draft tokens)"

TARGETS = {
    model.name: model
    for model in (
        _llama("llama-3.1-8b", 4096, 14336, 32, _GQA, 128256, f"meta-llama/Llama-3.1-8B: {_CARD}"),
        _llama(
            "llama-3.1-70b",
            8192,
            28672,
            80,
            (64, 8, 128),
            128256,
            f"meta-llama/Llama-3.1-70B: {_CARD}",
        ),
        _llama("qwen3-8b", 4096, 12288, 36, _GQA, 151936, f"Qwen/Qwen3-8B: {_CARD}"),
        _llama(
            "llama-3.2-1b",
            2048,
            8192,
            16,
            (32, 8, 64),
            128256,
            f"meta-llama/Llama-3.2-1B: {_CARD}; the embedding is the head, too",
            tied=True,
        ),
    )
}
DRAFTERS = {
    model.name: model
    for model in (
        _eagle3(
            "eagle3-llama-3.1-8b",
            4096,
            14336,
            _GQA,
            128256,
            32000,
            f"EAGLE-3 for Llama-3.1-8B: {_HEAD}",
        ),
        _eagle3(
            "eagle3-qwen3-8b",
            4096,
            12288,
            _GQA,
            151936,
            32000,
            f"EAGLE-3 for Qwen3-8B: {_HEAD}",
        ),
    )
}


def find(kind: type[Model], given: object) -> Model:
    """The model that an argument means: a preset's name, a JSON file of fields, or the fields.

    Raises:
        ValueError: An unknown name or field, or a value out of range.
    """
    what = kind.__name__.lower()
    table: Mapping[str, Any] = TARGETS if what == "target" else DRAFTERS
    if isinstance(given, kind):
        return given
    if isinstance(given, str) and given in table:
        preset: Model = table[given]
        return preset
    if isinstance(given, str | Path):
        path = Path(given)
        if not path.is_file():
            raise ValueError(
                f"{what}: got {str(given)!r}, expected {', '.join(table)} or a JSON file of its "
                "fields"
            )
        given = given_json(what, path)
    if not isinstance(given, Mapping):
        raise ValueError(f"{what}: got {given!r}, expected a name or an object of fields")  # noqa: TRY004
    known = {f.name: f for f in dataclasses.fields(kind)}
    for name in given:
        if name not in known:
            raise ValueError(f"{what}: unknown field {name!r}; expected {', '.join(known)}")
    needed = [n for n, f in known.items() if f.default is dataclasses.MISSING and n not in given]
    if needed:
        raise ValueError(f"{what}: {', '.join(needed)} missing")
    made: Model = kind(**given)
    return made
