"""What a study trains, ranks, prunes and counts: cases, presets, units of work."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

# Of the stored records: a change of what a unit measures gets the next number.
FORMAT = 1

ARMS: dict[str, str] = {
    "A": "ordinary training with modality dropout",
    "A-matched": "ordinary, with as many forward and backward passes as B",
    "B": "prune-aware, masks of the gate",
    "C": "prune-aware, masks of one static ranking (Taylor over the dropout mixture)",
    "R": "prune-aware, masks of random rankings drawn anew in each step",
}

# How the rankers are called in tables; those that know which modalities are present come last.
RANDOM = "random"
STATIC: tuple[str, ...] = (
    "magnitude",
    "taylor/full",
    "taylor/mix",
    "fisher/full",
    "fisher/mix",
    "kwon/full",
    "kwon/mix",
    "wanda_sp/full",
    "wanda_sp/mix",
    "flap/full",
    "flap/mix",
    "flap+bias/full",
    "flap+bias/mix",
)
CONDITIONED: tuple[str, ...] = ("table", "gate", "gate+bias")
# Trained without the masks that are held out; evaluated on those only.
HELD_OUT: tuple[str, ...] = ("table, held out", "gate, held out")
RANKERS: tuple[str, ...] = (RANDOM, *STATIC, *CONDITIONED, *HELD_OUT)
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5)


@dataclass(frozen=True)
class Unit:
    """One training and all that is measured on it: what is stored and resumed as a whole."""

    data: str
    backbone: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.data}.{self.backbone}.{self.arm}.{self.seed}"


@dataclass(frozen=True)
class Case:
    """A data set with a backbone, and how far it is taken.

    Attributes:
        data: Name of the data set.
        backbone: Name of the backbone.
        arms: Of ARMS.
        seeds: Trainings of each arm; seeds 0, 1, ...
        rankers: Of RANKERS.
        levels: Shares of the prunable multiply-adds that are taken away.
        per_layer: Rankers that are planned per layer, too, beside the global knapsack.
        per_layer_levels: Levels for them.
        epochs: Of an ordinary training.
        batch: Rows of a step.
        rate: Peak learning rate of AdamW.
        model: Options of the backbone's configuration.
        options: Options of the data set.
        train_rows: At most so many rows are trained on.
        validation_rows: At most so many choose rivals and switches.
        test_rows: At most so many are counted.
        masks: At most so many sets of present modalities for each number of missing ones.
        claim: Whether P1 to P3 are asked of it; if not, it is a sanity check.
        note: Why the case is as large as it is.
    """

    data: str
    backbone: str
    arms: tuple[str, ...] = tuple(ARMS)
    seeds: int = 5
    rankers: tuple[str, ...] = RANKERS
    levels: tuple[float, ...] = LEVELS
    per_layer: tuple[str, ...] = ()
    per_layer_levels: tuple[float, ...] = (0.1, 0.3, 0.5)
    epochs: int = 25
    batch: int = 100
    rate: float = 2e-3
    model: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    train_rows: int = 1200
    validation_rows: int = 300
    test_rows: int = 500
    masks: int = 3
    claim: bool = True
    note: str = ""

    def __post_init__(self) -> None:
        for name, given, known in (
            ("arms", self.arms, tuple(ARMS)),
            ("rankers", self.rankers, RANKERS),
            ("per_layer", self.per_layer, self.rankers),
        ):
            for value in given:
                if value not in known:
                    raise ValueError(f"{name}: got {value!r}, expected some of {', '.join(known)}")
        for level in (*self.levels, *self.per_layer_levels):
            if not 0 < level < 1:
                raise ValueError(f"levels: got {level}, expected shares between 0 and 1")
        for name in ("seeds", "epochs", "batch", "train_rows", "test_rows", "masks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 1 or more")

    @property
    def title(self) -> str:
        return f"{self.data}, {self.backbone}"

    def settings(self) -> dict[str, Any]:
        """What the result of a unit depends on, as JSON has it."""
        without = {"arms", "seeds", "claim", "note"}
        made = dataclasses.asdict(self)
        return {k: _plain(v) for k, v in made.items() if k not in without}


@dataclass(frozen=True)
class Study:
    """Cases under a name."""

    preset: str
    cases: tuple[Case, ...]

    def units(self) -> list[Unit]:
        """In the order in which they are run: seed by seed, so that a stopped study is balanced."""
        return list(self._units())

    def _units(self) -> Iterator[Unit]:
        for seed in range(max(case.seeds for case in self.cases)):
            for case in self.cases:
                if seed < case.seeds:
                    for arm in case.arms:
                        yield Unit(case.data, case.backbone, arm, seed)

    def case_of(self, unit: Unit) -> Case:
        for case in self.cases:
            if (case.data, case.backbone) == (unit.data, unit.backbone):
                return case
        raise KeyError(f"unit: got {unit.name}, which is of no case of the study")

    def settings_of(self, unit: Unit) -> dict[str, Any]:
        """What the unit's result depends on."""
        return self.case_of(unit).settings()

    def with_seeds(self, seeds: int) -> Study:
        """The same with so many seeds in every case."""
        cases = tuple(dataclasses.replace(case, seeds=seeds) for case in self.cases)
        return Study(self.preset, cases)

    def to_dict(self) -> dict[str, Any]:
        cases = [{k: _plain(v) for k, v in dataclasses.asdict(case).items()} for case in self.cases]
        return {"preset": self.preset, "cases": cases}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Study:
        """Inverse of `to_dict`.

        Raises:
            ValueError: Fields are missing, unknown or wrong.
        """
        try:
            cases = [
                {k: tuple(v) if isinstance(v, list) else v for k, v in case.items()}
                for case in given["cases"]
            ]
            return cls(str(given["preset"]), tuple(_case(case) for case in cases))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"study: cannot be read ({error})") from error


def _case(fields: dict[str, Any]) -> Case:
    return Case(**fields)


def _plain(value: Any) -> Any:
    """As JSON gives it back: tuples are lists, mappings are dicts."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value
