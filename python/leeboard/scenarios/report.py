"""What all plans share: checks of arguments, and the file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from leeboard._files import write_json
from leeboard._progress import progress_bar


@contextmanager
def advancing(total: int, *, wanted: bool) -> Iterator[Callable[[int], object]]:
    """A function to call with every advance: draws if that is wanted and tqdm is installed."""
    if not wanted or find_spec("tqdm") is None:
        yield lambda n: None
        return
    with progress_bar("planning", total) as bar:
        yield bar.update


def check_share(share: object) -> float:
    """The share by which inputs are moved, if it is one."""
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0.0 < share < 1.0:
        raise ValueError(f"share: got {share!r}, expected a number above 0 and below 1")
    return float(share)


def check_integer(name: str, value: object, least: int, most: int) -> int:
    """The argument `name`, if it is an integer in this range."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name}: got {value!r}, expected an integer from {least} to {most}")
    return value


def write_report(path: str | Path, format_: str, content: Mapping[str, Any]) -> None:
    """Write a plan as JSON, whole or not at all; NaN and infinity become null."""
    write_json(Path(path), {"format": format_, "version": 1, **_plain(dict(content))})


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
