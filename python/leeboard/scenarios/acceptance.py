"""How often a target accepts a drafter's tokens, by the depth of the chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

KEY = "acceptance_by_depth"

from leeboard.scenarios.given import given_json


@dataclass(frozen=True)
class Acceptance:
    """Shares of tested drafts that are accepted; depth 1 is index 0.

    Attributes:
        by_depth: Conditional on all before being accepted, 0 to 1 each. Deeper drafts are taken to
            be accepted as the least one of these: drafters drift, and few rounds reach the last
            depths of a measurement.
        source: Where the figures come from, for people.
    """

    by_depth: tuple[float, ...]
    source: str = "given"

    def __post_init__(self) -> None:
        if not self.by_depth:
            raise ValueError("acceptance: got none, expected a share for depth 1 and on")
        for depth, share in enumerate(self.by_depth, start=1):
            if isinstance(share, bool) or not isinstance(share, int | float):
                raise ValueError(  # noqa: TRY004
                    f"acceptance: got {share!r} at depth {depth}, expected a share from 0 to 1"
                )
            if not 0.0 <= share <= 1.0:
                hint = " (80 % is 0.8)" if 1.0 < share <= 100.0 else ""
                raise ValueError(
                    f"acceptance: got {share:g} at depth {depth}, expected a share from 0 to 1{hint}"
                )

    def at(self, depth: int) -> float:
        """Of the draft at this depth, from 1 on."""
        return self.by_depth[depth - 1] if depth <= len(self.by_depth) else min(self.by_depth)

    def tau(self, depth: int) -> float:
        """Expected tokens of a round that drafts `depth`: the accepted ones and the target's own."""
        total, alive = 1.0, 1.0
        for d in range(1, depth + 1):
            alive *= self.at(d)
            total += alive
        return total

    def scaled(self, factor: float) -> Acceptance:
        """Every share times a factor, but at most 1."""
        return replace(self, by_depth=tuple(min(1.0, a * factor) for a in self.by_depth))


def acceptance_of(
    given: Acceptance | str | Path | Sequence[float] | Mapping[str, Any], way: str | None = None
) -> Acceptance:
    """The acceptance that an argument means.

    Args:
        given: Shares by depth; or a JSON file, or what such a file holds. A file may hold a list of
            shares; an object with `acceptance_by_depth` (as `SpeculateResult.to_dict()` has it); one
            with `ways`, each with `acceptance_by_depth` (`leeboard draft eval --json`; a probe's file
            is read alike); or a demo's `results.json`.
        way: Which of a file's drafters, where it holds several.

    Raises:
        ValueError: It is none of these, no share from 0 to 1, or empty; or `way` is missing, unknown
            or out of place.
        FileNotFoundError: There is no such file.
    """
    if isinstance(given, Acceptance):
        return given
    if isinstance(given, str | Path):
        path = Path(given)
        return _read(given_json("acceptance", path), way, path.name)
    return _read(given, way, "given")


def _read(content: Any, way: str | None, source: str) -> Acceptance:
    if isinstance(content, Mapping):
        ways = _ways(content)
        if ways is not None:
            return _of_way(ways, way, source)
        if KEY not in content:
            raise ValueError(
                f"acceptance: {source}: has neither {KEY!r} nor 'ways' (it has "
                f"{', '.join(map(repr, list(content)[:6])) or 'nothing'})"
            )
        name = content.get("source")
        source = f"{source}: {name}" if isinstance(name, str) else source
        content = content[KEY]
    if way is not None:
        raise ValueError(f"way: got {way!r}, but {source} holds one drafter only")
    if not isinstance(content, Sequence) or isinstance(content, str | bytes):
        raise ValueError(f"acceptance: {source}: got {content!r}, expected a list of shares")  # noqa: TRY004
    shares = list(content)
    # Depths that no chain reached are written as null.
    while shares and shares[-1] is None:
        shares.pop()
    return Acceptance(tuple(shares), source)


def _ways(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Drafters by name of a file of `draft eval` or of the demo."""
    ways = content.get("ways")
    if isinstance(ways, Mapping):
        return dict(ways)
    runs = content.get("decode", {})
    runs = runs.get("runs") if isinstance(runs, Mapping) else None
    if not isinstance(runs, Mapping):
        return None
    # The demo decodes with several chain lengths; the longest one says most.
    return {
        name: by_length[max(by_length, key=int)]
        for name, by_length in runs.items()
        if isinstance(by_length, Mapping) and by_length
    }


def _of_way(ways: Mapping[str, Any], way: str | None, source: str) -> Acceptance:
    named = ", ".join(map(repr, ways)) or "none"
    if way is None and len(ways) != 1:
        raise ValueError(f"way: {source} holds {len(ways)} drafters ({named}); say which")
    chosen = next(iter(ways)) if way is None else way
    if chosen not in ways:
        raise ValueError(f"way: got {way!r}, expected one of {named}")
    entry = ways[chosen]
    if not isinstance(entry, Mapping) or KEY not in entry:
        raise ValueError(f"acceptance: {source}: {chosen!r} has no {KEY!r}")
    found = _read(entry[KEY], None, source)
    return replace(found, source=f"{source}, {chosen}")
