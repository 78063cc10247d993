"""What a probe found, ready to print, to write and to draw."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leeboard._files import write_json
from leeboard.draft.probe import bootstrap
from leeboard.draft.probe.bootstrap import Interval
from leeboard.draft.probe.tally import Tally


@dataclasses.dataclass(frozen=True)
class Measured:
    """One drafter on one set of texts.

    Attributes:
        tally: Rounds and rows, prompt by prompt.
        looping: bool [P], whether the prompt's continuation turns in circles.
    """

    tally: Tally
    looping: NDArray[np.bool_]

    @property
    def without_loops(self) -> Tally:
        """The prompts whose continuation does not loop; there may be none."""
        return self.tally.chosen(~self.looping)

    def accepted(self, resamples: int, seed: int) -> Interval:
        """Mean accepted per round, without the bonus token."""
        pair = self.tally.accepted, self.tally.rounds
        return bootstrap.mean(pair, n=resamples, seed=seed)

    def against(
        self, other: Measured, resamples: int, seed: int, *, loops: bool = True
    ) -> Interval | None:
        """Ratio of mean accepted per round to `other`'s, on the same prompts; None without any.

        Args:
            other: What is compared with.
            resamples: Of the bootstrap.
            seed: Of the bootstrap.
            loops: False leaves out prompts whose continuation loops in either of the two.
        """
        kept = np.ones_like(self.looping) if loops else ~(self.looping | other.looping)
        if not kept.any():
            return None
        ours, theirs = self.tally.chosen(kept), other.tally.chosen(kept)
        return bootstrap.ratio(
            (ours.accepted, ours.rounds),
            (theirs.accepted, theirs.rounds),
            n=resamples,
            seed=seed,
        )


@dataclasses.dataclass(frozen=True)
class Sink:
    """The column that draws the most attention while the target feeds the drafter.

    Attributes:
        column: Its place in the text, from 0.
        share: Its mean attention, over rows and heads.
        even: What it would draw if every row spread its attention evenly.
    """

    column: int
    share: float
    even: float


@dataclasses.dataclass(frozen=True)
class DrafterProbe:
    """All that was measured of one drafter.

    Attributes:
        conditions: By name of the condition; "matched" first.
        sinks: By name of the condition.
        noise: By alpha.
        forced: By what was forced, as "norm_output=true".
        context: By variant ("full", "window", "window + sink"), then by tokens of the text.
        switches: The config's fields that matter to drift.
    """

    conditions: Mapping[str, Measured]
    sinks: Mapping[str, Sink]
    noise: Mapping[float, Measured]
    forced: Mapping[str, Measured]
    context: Mapping[str, Mapping[int, Measured]]
    switches: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """What `probe` found.

    Attributes:
        settings: The arguments, JSON-ready.
        drafters: By name.
        texts: Per condition (and per context length): prompts, new tokens, looping continuations.
        notes: What was left out, and why.
    """

    settings: Mapping[str, Any]
    drafters: Mapping[str, DrafterProbe]
    texts: Mapping[str, Mapping[str, int]]
    notes: tuple[str, ...] = ()

    @property
    def depth(self) -> int:
        """Steps of the chains."""
        return int(self.settings["depth"])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready.

        "ways" holds per drafter the figures of decoding with the matched template, as the file of
        `leeboard draft eval` does; `leeboard plan speculation` reads it. "drafters" holds the rest.
        A share without a row is null.
        """
        return {
            "format": "leeboard draft probe 1",
            "settings": dict(self.settings),
            "texts": {name: dict(values) for name, values in self.texts.items()},
            "notes": list(self.notes),
            "ways": {
                name: _way(found.conditions["matched"]) for name, found in self.drafters.items()
            },
            "drafters": {name: self._drafter(found) for name, found in self.drafters.items()},
            "comparisons": self.comparisons(),
        }

    def to_json(self, path: str | Path) -> None:
        """Write `to_dict` there, atomically."""
        write_json(Path(path), self.to_dict())

    def comparisons(self) -> dict[str, Any]:
        """Every further drafter less the first one: accepted per round on the matched prompts."""
        first, *others = self.drafters
        base = self.drafters[first].conditions["matched"].tally
        found = {}
        for name in others:
            tally = self.drafters[name].conditions["matched"].tally
            difference = bootstrap.paired_difference(
                (tally.accepted, tally.rounds),
                (base.accepted, base.rounds),
                n=self.resamples,
                seed=self.seed,
            )
            found[f"{name} - {first}"] = {"mean_accepted": interval_dict(difference)}
        return found

    @property
    def resamples(self) -> int:
        """Of the bootstrap."""
        return int(self.settings["resamples"])

    @property
    def seed(self) -> int:
        """Of the bootstrap and of the noise."""
        return int(self.settings["seed"])

    def table(self) -> str:
        """The figures as text."""
        from leeboard.draft.probe.report import report

        return report(self)

    def __str__(self) -> str:
        return self.table()

    def plot(self, path: str | Path) -> None:
        """Draw the figures to a file, by the name's ending .png, .svg or .pdf.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        from leeboard.draft.probe.plot import plot

        plot(self, Path(path))

    def _drafter(self, found: DrafterProbe) -> dict[str, Any]:
        matched = found.conditions["matched"]
        return {
            "switches": dict(found.switches),
            "sinks": {name: dataclasses.asdict(sink) for name, sink in found.sinks.items()},
            "conditions": {
                name: self._measured(measured, matched)
                for name, measured in found.conditions.items()
            },
            "noise": {
                f"{alpha:g}": self._measured(measured, matched)
                for alpha, measured in found.noise.items()
            },
            "forced": {
                name: self._measured(measured, matched) for name, measured in found.forced.items()
            },
            "context": {
                variant: {
                    str(length): self._measured(measured, None)
                    for length, measured in lengths.items()
                }
                for variant, lengths in found.context.items()
            },
        }

    def _measured(self, measured: Measured, matched: Measured | None) -> dict[str, Any]:
        found = measured.tally.figures()
        found["mean_accepted_interval"] = interval_dict(
            measured.accepted(self.resamples, self.seed)
        )
        found["looping_continuations"] = int(measured.looping.sum())
        found["without_loops"] = measured.without_loops.figures()
        if matched is not None and matched is not measured:
            for key, loops in (("ratio_to_matched", True), ("ratio_without_loops", False)):
                ratio = measured.against(matched, self.resamples, self.seed, loops=loops)
                found[key] = None if ratio is None else interval_dict(ratio)
        return found


def interval_dict(found: Interval) -> dict[str, float | None]:
    """JSON-ready; null for what cannot be told."""
    names = ("value", "low", "high")
    return {
        name: value if math.isfinite(value) else None
        for name, value in zip(names, found, strict=True)
    }


def _way(matched: Measured) -> dict[str, Any]:
    figures = matched.tally.figures()
    return {name: value for name, value in figures.items() if name != "rows"}
