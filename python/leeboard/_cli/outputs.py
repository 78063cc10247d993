"""Files that a command is to write, checked before it computes anything."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

_PICTURES = ("png", "svg", "pdf", "eps", "jpg", "jpeg", "webp")


def check_outputs(args: argparse.Namespace, names: Iterable[str]) -> None:
    """Those of the options `names` that were given.

    Raises:
        IsADirectoryError: A folder has that name.
        FileNotFoundError: There is no folder to write it to.
        ValueError: --plot: no kind of picture that can be drawn.
        ModuleNotFoundError: --plot: there is no matplotlib.
    """
    for name in names:
        path: Path | None = getattr(args, name, None)
        if path is None:
            continue
        if path.is_dir():
            raise IsADirectoryError(f"--{name} {path}: is a folder")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"--{name} {path}: there is no folder {path.parent}")
        if name == "plot":
            _check_picture(path)


def _check_picture(path: Path) -> None:
    if path.suffix and path.suffix[1:].lower() not in _PICTURES:
        raise ValueError(f"--plot {path}: expected a name that ends in .png, .svg or .pdf")
    if find_spec("matplotlib") is None:
        raise ModuleNotFoundError(
            f"--plot {path}: plots need matplotlib: pip install 'leeboard[viz]'", name="matplotlib"
        )
