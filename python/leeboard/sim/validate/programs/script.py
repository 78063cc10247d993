"""Runs a script as python does, and tells how long it took without joining the others."""

from __future__ import annotations

import json
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist


def main() -> None:
    """The script's path and words are the arguments."""
    path = sys.argv[1]
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(path).resolve().parent)
    spent = 0.0
    join = dist.init_process_group

    def joined(*args: Any, **options: Any) -> None:
        nonlocal spent
        begun = time.perf_counter()
        join(*args, **options)
        spent += time.perf_counter() - begun

    dist.init_process_group = joined
    begun = time.perf_counter()
    runpy.run_path(path, run_name="__main__")
    seconds = time.perf_counter() - begun - spent
    sys.stdout.write("\n" + json.dumps({"scenario": "whole script", "seconds": seconds}) + "\n")


if __name__ == "__main__":
    main()
