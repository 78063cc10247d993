"""What stays of a model: a small value that can be stored, compared and applied."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from operator import index, lt
from pathlib import Path
from typing import Any

from leeboard._files import replacing
from leeboard.prune import _plan_file, _plan_text
from leeboard.prune._frozen import Frozen
from leeboard.prune.costs import Latency, Part, costs
from leeboard.prune.units import Sublayer, Units


@dataclass(frozen=True, eq=False)
class Plan:
    """The units that run, for the modalities that are present and a budget.

    A value: it cannot be changed, is equal to a plan with equal fields, hashes, pickles, and prints
    as a table.

    Attributes:
        fingerprint: Of the model's units (`Units.fingerprint`).
        present: Modalities that are there, in the model's order.
        budget: The budget as text, e.g. "50%", "2 ms".
        keep: For each sublayer that runs, its kept units (query heads, channels), ascending; () is
            a block that is dropped whole, so that only the residual remains.
        scales: For some sublayers a factor for each kept unit (Kwon's rescaling).
        bias: For some sublayers [out_features] numbers that are added to the reader's bias, in
            place of what the missing units gave on average; of one that is dropped, all that is
            left beside the residual.
        macs: Multiply-adds of the prunable part for one sample.
        dense_macs: With all units, the same modalities present.
        bytes: Weights of the prunable part that the plan reads.
        dense_bytes: With all units.
        milliseconds: Of the whole model for one sample as a latency table predicts it, or None.
        dense_milliseconds: With all units, or None.
        score: Share of the units' importance that is kept, 0 to 1.
        ranking: What ranked the units, as text.
        parts: What each sublayer costs, where that is known.

    Raises:
        TypeError, ValueError: For units that do not ascend, factors that do not go with them, or
            numbers that are not finite.
    """

    fingerprint: str
    present: tuple[str, ...]
    budget: str
    keep: Mapping[str, tuple[int, ...]]
    scales: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    bias: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    macs: float = 0.0
    dense_macs: float = 0.0
    bytes: float = 0.0
    dense_bytes: float = 0.0
    milliseconds: float | None = None
    dense_milliseconds: float | None = None
    score: float = 1.0
    ranking: str = ""
    parts: Mapping[str, Part] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "present", tuple(self.present))
        set_(self, "keep", _frozen(self.keep, "keep", index))
        set_(self, "scales", _frozen(self.scales, "scales", _finite))
        set_(self, "bias", _frozen(self.bias, "bias", _finite))
        set_(self, "parts", Frozen({name: Part(*part) for name, part in self.parts.items()}))
        if not self.present or len(set(self.present)) < len(self.present):
            raise ValueError(f"present: got {self.present}, expected modalities, each once")
        for name, kept in self.keep.items():
            if kept and (kept[0] < 0 or not all(map(lt, kept, kept[1:]))):
                raise ValueError(f"keep: units of {name} must ascend, none twice, from 0 on")
        for name, scales in self.scales.items():
            expected = len(self.keep.get(name, ()))
            if name not in self.keep or len(scales) != expected:
                raise ValueError(
                    f"scales: got {len(scales)} for {name}, expected {expected}, one a kept unit"
                )
        for field_ in ("bias", "parts"):
            for name in getattr(self, field_):
                if name not in self.keep:
                    raise ValueError(f"{field_}: got {name!r}, which the plan does not run")
        for part in ("macs", "dense_macs", "bytes", "dense_bytes", "score"):
            set_(self, part, _amount(getattr(self, part), part))
        for part in ("milliseconds", "dense_milliseconds"):
            if getattr(self, part) is not None:
                set_(self, part, _amount(getattr(self, part), part))
        if self.score > 1.0 + 1e-6:
            raise ValueError(f"score: got {self.score}, expected a share of at most 1")
        value = tuple(getattr(self, f.name) for f in fields(self))
        set_(self, "_value", value)
        # apply() looks plans up: nothing is hashed twice.
        set_(self, "_hash", hash(value))

    def __hash__(self) -> int:
        hashed: int = self._hash  # type: ignore[attr-defined]
        return hashed

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Plan):
            return NotImplemented
        same: bool = self._value == other._value  # type: ignore[attr-defined]
        return same

    def __reduce__(self) -> tuple[Any, ...]:
        # Hashes of strings differ from process to process.
        return Plan, tuple(self._value)  # type: ignore[attr-defined]

    def __str__(self) -> str:
        return _plan_text.text(self)

    @classmethod
    def dense(
        cls,
        units: Units,
        present: Sequence[str] | None = None,
        *,
        latency: Latency | None = None,
    ) -> Plan:
        """The plan that keeps everything; missing modalities' sublayers still do not run.

        Raises:
            ValueError: For a modality that the model does not have.
        """
        chosen = units.check_present(present)
        keep = {name: tuple(range(units[name].units)) for name in units.tokens(chosen)}
        plan = cls(units.fingerprint, chosen, "100%", keep, ranking="dense")
        return plan.priced(units, latency)

    def priced(self, units: Units, latency: Latency | None = None) -> Plan:
        """The same plan with the costs of the units it keeps: for plans that were made by hand.

        Raises:
            ValueError: If it is a plan for another model.
        """
        self.check(units)
        found = costs(units, self.keep, self.present, latency)
        return replace(self, **{f.name: getattr(found, f.name) for f in fields(found)})

    def check(self, units: Units) -> None:
        """Nothing if the plan fits the model with these units.

        Raises:
            ValueError: If it was made for another model, or names a sublayer, unit or modality
                that this one does not have.
        """
        if self.fingerprint != units.fingerprint:
            raise ValueError(
                f"plan: it was made for another model (fingerprint {self.fingerprint[:12]}, this "
                f"one has {units.fingerprint[:12]}); make a plan from this model's scores"
            )
        if units.check_present(self.present) != self.present:
            raise ValueError(
                f"plan: got present {self.present}, expected the model's order {units.modalities}"
            )
        running = units.tokens(self.present)
        if set(self.keep) != set(running):
            odd = min(set(self.keep) ^ set(running))
            wrong = "keeps units of" if odd in self.keep else "says nothing of"
            does = "does not run" if odd in self.keep else "runs"
            raise ValueError(
                f"plan: it {wrong} {odd!r}, which {does} with {', '.join(self.present)} present"
            )
        for name, kept in self.keep.items():
            self._check_part(units[name], kept)

    def _check_part(self, sublayer: Sublayer, kept: tuple[int, ...]) -> None:
        if kept and kept[-1] >= sublayer.units:
            raise ValueError(
                f"plan: it keeps unit {kept[-1]} of {sublayer.name}, expected 0 to "
                f"{sublayer.units - 1}"
            )
        bias = self.bias.get(sublayer.name)
        if bias is not None and len(bias) != sublayer.out_features:
            raise ValueError(
                f"plan: its bias of {sublayer.name} has {len(bias)} numbers, expected "
                f"{sublayer.out_features}"
            )

    def to_json(self) -> str:
        """The plan as JSON, a sublayer a line; `from_json` gives an equal plan."""
        return _plan_file.dump(self)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote.

        Raises:
            ValueError: For anything else; the message says what is wrong where.
        """
        return cls(**_plan_file.read(text))

    def save(self, path: str | Path) -> None:
        """Write `to_json` to a file, which is there whole or not at all.

        Raises:
            OSError: If it cannot be written.
        """
        with replacing(Path(path)) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """The plan in a file of `save`.

        Raises:
            OSError: If it cannot be read.
            ValueError: If it holds no plan; the message names the file.
        """
        try:
            return cls.from_json(Path(path).read_bytes().decode())
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error


def _frozen(
    given: Mapping[str, Sequence[Any]], name: str, each: Callable[[Any], Any]
) -> Frozen[tuple[Any, ...]]:
    if isinstance(given, Frozen):
        return given
    try:
        return Frozen({key: tuple(map(each, values)) for key, values in given.items()})
    except (AttributeError, TypeError, ValueError) as error:
        raise TypeError(
            f"{name}: expected names with a sequence of numbers each: {error}"
        ) from None


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"got {number}")
    return number


def _amount(value: Any, name: str) -> float:
    number = float(value)
    if not (math.isfinite(number) and number >= 0.0):
        raise ValueError(f"{name}: got {value!r}, expected a finite number of at least 0")
    return number
