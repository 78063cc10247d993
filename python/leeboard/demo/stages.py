"""A cache of stages: each is built once for its settings and for the stages that it reads."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from leeboard._files import read_json, write_json

_RECORD = "stage.json"


@dataclasses.dataclass(frozen=True)
class Stage:
    """A finished stage.

    Attributes:
        name: What it is called.
        key: Hash of its name, version, settings and of the keys of the stages that it reads.
        path: The folder with its files.
        seconds: Wall time of the build; of the last leg only where it was interrupted.
        reused: It was found in the cache.
    """

    name: str
    key: str
    path: Path
    seconds: float
    reused: bool


class StageCache:
    """Stages under one folder, each in `<name>-<key>/`.

    A stage is built in `<name>-<key>.partial/`, which is renamed once the build has returned, so a
    finished folder is always whole. A partial folder is kept when the build is interrupted and
    handed to the next build of the same key, which may find its own checkpoint there.

    Args:
        root: The folder; made if missing.
        redo: Name of a stage to build again, along with all stages that run after it.
        build: Whether a stage that is missing is built.
    """

    def __init__(self, root: Path, redo: str | None = None, *, build: bool = True) -> None:
        self.root = root
        self._redo = redo
        self._build = build
        self._redoing = False
        if build:
            root.mkdir(parents=True, exist_ok=True)

    def run(
        self,
        name: str,
        build: Callable[[Path], None],
        *,
        version: int,
        settings: Mapping[str, Any],
        inputs: Sequence[Stage] = (),
    ) -> Stage:
        """Return the stage, built now unless the cache holds it.

        Args:
            name: What it is called; unique within the cache's run.
            build: Writes the stage's files into the folder that it is given.
            version: Raise it when the code changes what the stage's files hold.
            settings: JSON-ready values that the files depend on.
            inputs: The stages whose files `build` reads.

        Raises:
            FileNotFoundError: The cache does not hold it and builds nothing.
        """
        facts = [name, version, dict(settings), [stage.key for stage in inputs]]
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
        final = self.root / f"{name}-{key}"
        self._redoing |= name == self._redo
        if (final / _RECORD).exists() and not self._redoing:
            return Stage(name, key, final, read_json(final / _RECORD)["seconds"], reused=True)

        if not self._build:
            raise FileNotFoundError(f"{final}: not found; run `leeboard demo` first")
        partial = self.root / f"{name}-{key}.partial"
        if self._redoing:
            shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(exist_ok=True)
        began = time.perf_counter()
        build(partial)
        seconds = time.perf_counter() - began
        record = {"name": name, "version": version, "settings": dict(settings), "seconds": seconds}
        write_json(partial / _RECORD, record)
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        return Stage(name, key, final, seconds, reused=False)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process.

    Raises:
        RuntimeError: Another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RuntimeError(
                f"another run is writing to {folder}: wait, or give --out"
            ) from error
        yield
