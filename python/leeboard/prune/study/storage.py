"""The run folder of a study: one JSON for each finished unit, and what the study was asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leeboard._files import write_json
from leeboard.prune.study.settings import FORMAT, Study, Unit


class ChangedStudyError(ValueError):
    """The folder holds results of other settings."""


class RunFolder:
    """Reads and writes `study.json`, `units/<unit>.json` and `sessions.json` of a study.

    Args:
        path: The folder; made when something is written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def unit_path(self, unit: Unit) -> Path:
        return self.path / "units" / f"{unit.name}.json"

    def open(self, study: Study) -> list[Unit]:
        """Prepare the folder for a study; returns its units that are not finished.

        Raises:
            ChangedStudyError: It holds units of the same names with other settings.
        """
        (self.path / "units").mkdir(parents=True, exist_ok=True)
        missing = []
        for unit in study.units():
            path = self.unit_path(unit)
            if not path.exists():
                missing.append(unit)
                continue
            found, asked = _record(path)["settings"], study.settings_of(unit)
            if found != asked:
                changes = "; ".join(_changes(found, asked))
                raise ChangedStudyError(
                    f"{self.path}: holds {unit.name} of a study with other settings ({changes}); "
                    "give another --run-dir, or remove this one"
                )
        write_json(self.path / "study.json", {"format": FORMAT, **study.to_dict()})
        return missing

    def study(self) -> Study:
        """What was asked of the folder last.

        Raises:
            FileNotFoundError: It holds no study.
            ValueError: `study.json` is broken.
        """
        path = self.path / "study.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: not found; `leeboard prune study` writes it")
        return Study.from_dict(_record(path))

    def write(self, unit: Unit, record: Mapping[str, Any]) -> None:
        """Store a finished unit."""
        path = self.unit_path(unit)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"format": FORMAT, **record})

    def records(self) -> list[dict[str, Any]]:
        """All finished units that belong to the folder's study, in its order."""
        study = self.study()
        found = []
        for unit in study.units():
            path = self.unit_path(unit)
            if path.exists():
                record = _record(path)
                if record["settings"] == study.settings_of(unit):
                    found.append(record)
        return found

    def add_session(self, session: Mapping[str, Any]) -> None:
        """Note how, with what and for how long units were run."""
        write_json(self.path / "sessions.json", [*self.sessions(), dict(session)])

    def sessions(self) -> list[dict[str, Any]]:
        path = self.path / "sessions.json"
        if not path.exists():
            return []
        found = json.loads(path.read_text(encoding="utf-8"))
        return list(found)


def _record(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); remove it and run again") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        given = found.get("format") if isinstance(found, dict) else type(found).__name__
        raise ChangedStudyError(
            f"{path}: format {given!r}, expected {FORMAT}; give another --run-dir"
        )
    return found


def _changes(found: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Settings that differ, as "name: was X, is Y"."""
    names = sorted({*found, *asked})
    return [
        f"{name}: was {found.get(name)!r}, is {asked.get(name)!r}"
        for name in names
        if found.get(name) != asked.get(name)
    ]
