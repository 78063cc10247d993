"""When an arm's training ends: at a depth-1 acceptance that all arms share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leeboard._files import read_json, write_json
from leeboard.reproduce.settings import Settings


class UntilEqual:
    """The end of a training: when depth-1 acceptance is there.

    Every `settings.check_every` steps depth-1 acceptance is looked at, on the running average of the
    weights. Training ends where the mean of the last `settings.smooth` values reaches
    `settings.threshold`, or after `settings.most_steps`. What happened is kept in a file, from which
    an interrupted training goes on.

    Args:
        settings: The rule.
        path: The file.
    """

    def __init__(self, settings: Settings, path: Path) -> None:
        self._settings = settings
        self._path = path
        self._checks: list[tuple[int, float]] = []
        self._end: int | None = None
        self._begun = False

    def check(self, done: int, acceptance: float) -> None:
        """Take in what depth-1 acceptance is after so many steps."""
        self._begin(done - 1)
        self._checks.append((done, acceptance))
        if self._end is None and (self.reached or done >= self._settings.most_steps):
            self._end = done
        write_json(self._path, self.record())

    def ended(self, done: int) -> bool:
        """Whether training is over after so many steps."""
        self._begin(done)
        return self._end is not None and done >= self._end

    @property
    def level(self) -> float | None:
        """Mean of the last checks; None if they are too few."""
        last = [value for _, value in self._checks[-self._settings.smooth :]]
        return sum(last) / len(last) if len(last) == self._settings.smooth else None

    @property
    def reached(self) -> bool:
        """Whether that is the threshold or more."""
        level = self.level
        return level is not None and level >= (self._settings.threshold or 0.0)

    def record(self) -> dict[str, Any]:
        """JSON-ready: the checks, whether the threshold was met."""
        return {
            "checks": [[step, value] for step, value in self._checks],
            "ended": self._end,
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
            end = found["ended"]
            self._end = end if end is not None and end <= done else None
