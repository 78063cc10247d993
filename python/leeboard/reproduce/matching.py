"""When an arm's training ends: at a depth-1 acceptance that all arms share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leeboard._files import read_json, write_json
from leeboard.draft.training.settings import LoopSettings
from leeboard.reproduce.settings import Settings


class UntilEqual:
    """The course of a training: constant until depth-1 acceptance is there, then down to 0.

    Every `settings.check_every` steps depth-1 acceptance is looked at. Where the mean of the last
    `settings.smooth` values reaches `settings.threshold`, or after `settings.most_steps`, the
    cooldown begins. What happened is kept in a file, from which an interrupted training goes on.

    Args:
        settings: The rule.
        path: The file.
    """

    def __init__(self, settings: Settings, path: Path) -> None:
        self._settings = settings
        self._path = path
        self._checks: list[tuple[int, float]] = []
        self._turn: int | None = None
        self._begun = False

    def share(self, step: int) -> float:
        """Of the learning rate, for a step counted from 0."""
        self._begin(step)
        s = self._settings
        if self._turn is None:
            return min(1.0, (step + 1) / max(1, s.warmup_steps))
        return (self._turn + s.cooldown_steps - step) / (s.cooldown_steps + 1)

    def check(self, done: int, acceptance: float) -> None:
        """Take in what depth-1 acceptance is after so many steps."""
        self._begin(done - 1)
        self._checks.append((done, acceptance))
        if self._turn is None and (self.reached or done >= self._settings.most_steps):
            self._turn = done
        write_json(self._path, self.record())

    def ended(self, done: int) -> bool:
        """Whether training is over after so many steps."""
        self._begin(done)
        return self._turn is not None and done >= self._turn + self._settings.cooldown_steps

    @property
    def level(self) -> float | None:
        """Mean of the checks that ended the constant part, or of the last ones; None if too few."""
        checks = [v for at, v in self._checks if self._turn is None or at <= self._turn]
        last = checks[-self._settings.smooth :]
        return sum(last) / len(last) if len(last) == self._settings.smooth else None

    @property
    def reached(self) -> bool:
        """Whether that is the threshold or more."""
        level = self.level
        return level is not None and level >= (self._settings.threshold or 0.0)

    def record(self) -> dict[str, Any]:
        """JSON-ready: the checks, the steps of the constant part, whether the threshold was met."""
        return {
            "checks": [[step, value] for step, value in self._checks],
            "constant_steps": self._turn,
            "level": self.level,
            "reached": self.reached,
        }

    def _begin(self, done: int) -> None:
        """Take over what a run before has noted of the steps done; the rest will happen again."""
        if self._begun:
            return
        self._begun = True
        if done > 0 and self._path.exists():
            found = read_json(self._path)
            self._checks = [(at, value) for at, value in found["checks"] if at <= done]
            turn = found["constant_steps"]
            self._turn = turn if turn is not None and turn <= done else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatchedLoop(LoopSettings):
    """Settings of a loop whose learning rate follows another rule.

    Attributes:
        share: Of `lr`, for a step counted from 0.
    """

    share: Callable[[int], float]

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        return self.lr * self.share(step)
