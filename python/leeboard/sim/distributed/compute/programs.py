"""Running a program for the sake of the calls that it makes."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from leeboard.sim.distributed.compute.builtin import BUILTINS
from leeboard.sim.distributed.compute.collect import CollectMeter, Example
from leeboard.sim.distributed.compute.mode import Call
from leeboard.sim.distributed.script import resolve

if TYPE_CHECKING:
    from pathlib import Path

    from leeboard.sim.platform import Platform


class _Alone:
    """The rank of a program that runs by itself: nothing is charged."""

    number = 0
    core = None


def calls_of(
    target: str | Path | Callable[..., Any],
    args: Sequence[str] = (),
    *,
    platform: Platform | None = None,
    ranks: int | None = None,
    fold: str | None = None,
) -> list[Example]:
    """The calls that a program makes, each once.

    Args:
        target: A script, "-m module", a name of `BUILTINS`, or a function.
        args: Its words.
        platform: Run it on simulated ranks on this platform and take the calls of them all; None:
            run it in this process, as torchrun has set its environment, or in a world of one.
        ranks: With a platform: how many; None: as many as it has room for.
        fold: With a platform: which ranks are alike (docs/sim/folding.md); tensors are fake then.

    Raises:
        RuntimeError: The script ended with an error.
    """
    examples: dict[Call, Example] = {}
    function = BUILTINS.get(target) if isinstance(target, str) else None
    if function is not None:
        if args:
            raise ValueError(f"{target}: takes no words, got {' '.join(args)}")
        target = function
    if platform is not None:
        from leeboard.sim.distributed.launch import launch

        def make(platform: Platform, rank: int) -> CollectMeter:
            return CollectMeter(examples)

        options: dict[str, Any] = {"ranks": ranks, "fold": fold, "timeline": False}
        launch(target, platform, args=args, compute=make, **options)
        return list(examples.values())
    script = resolve(target, args)
    meter, place = CollectMeter(examples), _Alone()
    with _as_script(script), meter.modes()[0]:
        meter.resume(place)
        try:
            script.call(script.main())
        except SystemExit as end:
            if end.code not in (None, 0):
                raise RuntimeError(f"{script.name}: exited with {end.code!r}") from end
        finally:
            meter.flush(place)
            if dist.is_available() and dist.is_initialized():
                dist.destroy_process_group()
    return list(examples.values())


@contextmanager
def _as_script(script: Any) -> Iterator[None]:
    """sys.argv, sys.path and the environment as the script expects them."""
    argv, path, before = sys.argv, sys.path, dict(os.environ)
    sys.argv = list(script.argv)
    sys.path = [script.folder, *path] if script.folder else path
    if "RANK" not in os.environ:
        alone = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
        os.environ.update({name: str(value) for name, value in alone.items()})
        os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()})
    try:
        yield
    finally:
        sys.argv, sys.path = argv, path
        os.environ.clear()
        os.environ.update(before)


def _free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])
