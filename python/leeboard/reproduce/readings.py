"""What was counted on each drafter, and the figures that follow, with their paired resamples."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from leeboard.reproduce.settings import MATCHED, Arm, Settings
from leeboard.reproduce.statistics import Array, Bootstrap, Estimate, mean

FORCED = "norm_output forced"
WINDOWS = ("full", "window", "window + sinks")
SHARES = ("sink", "prompt", "own", "recent", "entropy")


def noisy(alpha: float) -> str:
    """Name of the reading with noise of this size."""
    return f"noise {alpha:g}"


def context(bucket: int, window: str) -> str:
    """Name of the reading of a bucket of context lengths, from 0, and a name out of `WINDOWS`."""
    return f"context {bucket + 1}, {window}"


@dataclasses.dataclass(frozen=True)
class Reading:
    """One drafter on one set of texts: sums over the rows of every prompt's continuation.

    Entry k of what has K entries is chain step k (from 0). A row reaches step k if its drafts of all
    steps before were right, and it has a token there to compare with.

    Attributes:
        loops: bool [P], whether the text loops.
        rounds: [P], rounds of speculative decoding, `accepted`: [P], drafts accepted in them.
        accepted: See `rounds`.
        reached: [P, K], rows that reach a step.
        kept: [P, K], those of them whose draft is right.
        rows: [P, K], all rows that have a token to compare with.
        hits: [P, K], those of them whose draft is right, teacher-forced.
        rms: [P, K], sums over `rows` of the RMS of the step's fed-back state.
        reached_rms: [P, K], the same over `reached`.
        shares: Of the attention, per name out of `SHARES`: sums over `rows`, [P, K]. "own_paired" and
            "matched": what drafted tokens draw, and target-fed tokens at the same distances, over
            the rows that have both. Empty if not measured.
    """

    loops: Array
    rounds: Array
    accepted: Array
    reached: Array
    kept: Array
    rows: Array
    hits: Array
    rms: Array
    reached_rms: Array
    shares: Mapping[str, Array]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; sums keep six digits."""
        made: dict[str, Any] = {
            name: _digits(value) for name, value in vars(self).items() if name != "shares"
        }
        return made | {"shares": {name: _digits(value) for name, value in self.shares.items()}}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Reading:
        arrays = {k: np.asarray(v, dtype=np.float64) for k, v in given.items() if k != "shares"}
        shares = {k: np.asarray(v, dtype=np.float64) for k, v in given["shares"].items()}
        return cls(**arrays, shares=shares)

    def without_loops(self) -> Reading:
        """The prompts whose text does not loop."""
        keep = self.loops == 0
        arrays = {k: v[keep] for k, v in vars(self).items() if k != "shares"}
        return Reading(**arrays, shares={k: v[keep] for k, v in self.shares.items()})


class Readings:
    """All readings of all trainings.

    The figures are `Estimate`s: of one training, or with `seed` None the mean over the seeds.

    Args:
        settings: Of the run.
        readings: Per training, per name of a reading.
        bootstrap: For the resamples.
    """

    def __init__(
        self,
        settings: Settings,
        readings: Mapping[Arm, Mapping[str, Reading]],
        bootstrap: Bootstrap | None = None,
    ) -> None:
        self.settings = settings
        self._readings = readings
        self._bootstrap = bootstrap or Bootstrap()
        self._without: dict[tuple[Arm, str], Reading] = {}

    def seeds(self) -> list[int]:
        """Seeds of which anything was counted, ascending."""
        return sorted({arm.seed for arm in self._readings})

    def has(self, name: str, ttt: int, reading: str = MATCHED) -> bool:
        """Whether the reading was taken on this arm for every seed."""
        found = [self._readings.get(Arm(name, ttt, seed), {}) for seed in self.seeds()]
        return bool(found) and all(reading in of for of in found)

    def accepted(
        self, name: str, ttt: int, seed: int | None, reading: str = MATCHED, *, loops: bool = True
    ) -> Estimate:
        """Drafts accepted per round, without the bonus token. Not `loops`: no looping texts."""
        return self._over(name, ttt, seed, reading, "accepted", "rounds", loops=loops)

    def acceptance(
        self, name: str, ttt: int, seed: int | None, step: int, reading: str = MATCHED
    ) -> Estimate:
        """Right drafts of chain step `step` (from 1) among those whose drafts before were right."""
        return self._over(name, ttt, seed, reading, "kept", "reached", slice(step - 1, step))

    def reached(self, name: str, ttt: int, step: int) -> int:
        """Rows of all seeds behind `acceptance` at a step."""
        arms = [Arm(name, ttt, seed) for seed in self.seeds()]
        return int(sum(self._readings[arm][MATCHED].reached[:, step - 1].sum() for arm in arms))

    def tail(
        self, name: str, ttt: int, seed: int | None, reading: str = MATCHED, *, loops: bool = True
    ) -> Estimate:
        """The same over all steps from `settings.tail` on: each draft tested there counts once."""
        steps = slice(self.settings.tail - 1, None)
        return self._over(name, ttt, seed, reading, "kept", "reached", steps, loops=loops)

    def tail_mean(self, name: str, ttt: int, seed: int | None, reading: str = MATCHED) -> Estimate:
        """The mean of `acceptance` over these steps; NaN where no chain reaches one of them."""
        steps = range(self.settings.tail, self.settings.depth + 1)
        return mean([self.acceptance(name, ttt, seed, k, reading) for k in steps])

    def accuracy(
        self, name: str, ttt: int, seed: int | None, step: int, reading: str = MATCHED
    ) -> Estimate:
        """Right drafts of a step among all rows, the text given: no selection by earlier steps."""
        return self._over(name, ttt, seed, reading, "hits", "rows", slice(step - 1, step))

    def rms(
        self, name: str, ttt: int, seed: int | None, step: int, *, surviving: bool = False
    ) -> Estimate:
        """Mean RMS of the state that a step feeds back, over all rows or those that reach it."""
        over, under = ("reached_rms", "reached") if surviving else ("rms", "rows")
        return self._over(name, ttt, seed, MATCHED, over, under, slice(step - 1, step))

    def growth(self, name: str, ttt: int, seed: int | None) -> Estimate:
        """RMS at step 8 (or the last) by that at step 1."""

        def one(at: int) -> Estimate:
            last = min(8, self.settings.depth)
            return self.rms(name, ttt, at, last) / self.rms(name, ttt, at, 1)

        return self._pooled(one, seed)

    def share(self, name: str, ttt: int, seed: int | None, of: str, step: int) -> Estimate:
        """Share of a step's attention (or its entropy), a name out of `SHARES`, on all rows."""
        return self._over(name, ttt, seed, MATCHED, of, "rows", slice(step - 1, step))

    def own_by_matched(self, name: str, ttt: int, seed: int | None, step: int) -> Estimate:
        """Attention on drafted tokens by that on target-fed ones at the same distances."""
        steps = slice(step - 1, step)
        return self._over(name, ttt, seed, MATCHED, "own_paired", "matched", steps)

    def slope(self, name: str, ttt: int, seed: int | None, of: str) -> Estimate:
        """Change of a share per step: least squares over all steps."""
        steps = range(1, self.settings.depth + 1)
        middle = float(np.mean(steps))
        weights = [(k - middle) / sum((j - middle) ** 2 for j in steps) for k in steps]

        def one(at: int) -> Estimate:
            shares = [self.share(name, ttt, at, of, k) for k in steps]
            return Estimate(
                sum(w * s.value for w, s in zip(weights, shares, strict=True)),
                sum(
                    (w * s.replicates for w, s in zip(weights, shares, strict=True)),
                    start=np.zeros_like(shares[0].replicates),
                ),
            )

        return self._pooled(one, seed)

    def relative(
        self, name: str, ttt: int, seed: int | None, reading: str, base: str = MATCHED
    ) -> Estimate:
        """Drafts accepted per round, by those of another reading of the same drafter.

        Where the first was taken on the first prompts only, so is the other here.
        """

        def one(at: int) -> Estimate:
            arm = Arm(name, ttt, at)
            of, to = self._readings[arm][reading], self._readings[arm][base]
            count = min(len(of.rounds), len(to.rounds))
            parts = [self._bootstrap.ratio(r.accepted[:count], r.rounds[:count]) for r in (of, to)]
            return parts[0] / parts[1]

        return self._pooled(one, seed)

    def _over(
        self,
        name: str,
        ttt: int,
        seed: int | None,
        reading: str,
        over: str,
        under: str,
        steps: slice | None = None,
        *,
        loops: bool = True,
    ) -> Estimate:
        def one(at: int) -> Estimate:
            of = self._reading(Arm(name, ttt, at), reading, loops)
            sums = [of.shares[x] if x in of.shares else getattr(of, x) for x in (over, under)]
            if steps is not None:
                sums = [x[:, steps].sum(1) for x in sums]
            return self._bootstrap.ratio(*sums)

        return self._pooled(one, seed)

    def _pooled(self, one: Any, seed: int | None) -> Estimate:
        made: Estimate = one(seed) if seed is not None else mean([one(s) for s in self.seeds()])
        return made

    def _reading(self, arm: Arm, name: str, loops: bool) -> Reading:
        if loops:
            return self._readings[arm][name]
        if (arm, name) not in self._without:
            self._without[arm, name] = self._readings[arm][name].without_loops()
        return self._without[arm, name]


def _digits(value: Array) -> list[Any]:
    made: list[Any] = np.vectorize(lambda x: float(f"{x:.6g}"), otypes=[float])(value).tolist()
    return [_whole(x) for x in made]


def _whole(x: Any) -> Any:
    if isinstance(x, Sequence):
        return [_whole(each) for each in x]
    return int(x) if float(x).is_integer() else x
