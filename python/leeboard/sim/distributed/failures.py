"""Why a run of a script ended badly, in words: whose line, at what time, and what to change."""

from __future__ import annotations

import dataclasses
import os
import sys
import traceback
from types import FrameType
from typing import TYPE_CHECKING, Any

from torch.autograd import profiler

from leeboard.sim.distributed import where
from leeboard.sim.distributed.patches import Patches
from leeboard.sim.distributed.rank import find
from leeboard.sim.distributed.session import Session
from leeboard.sim.errors import DeadlockError, SimulationError
from leeboard.sim.run import raise_for as raise_for_run
from leeboard.sim.table import text_of

if TYPE_CHECKING:
    from leeboard.sim.platform import Platform
    from leeboard.sim.trace import Trace

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_SHOWN = 20
_PICOSECONDS = 1e12
# Part of an error's text, and what to change.
_HINTS = (
    (
        (
            "Torch not compiled with CUDA enabled",
            "No CUDA GPUs are available",
            "Found no NVIDIA driver",
            "no accelerator support is found",
            "current compilation's accelerator support",
            "CUDA driver",
            "'torch._C' has no attribute '_cuda",
            "device type cuda",
        ),
        (
            "this host has no GPU that torch can use, and simulated devices are none: tensors live "
            "on the host. Take the device from the host (`'cuda' if torch.cuda.is_available() else "
            "'cpu'`); the platform says how fast the simulated one is"
        ),
    ),
    (
        ("invalid device ordinal", "device index must be in range"),
        "simulated ranks share this host's GPUs: use LOCAL_RANK modulo torch.cuda.device_count()",
    ),
    (
        ("nbytes is not defined for sparse tensors",),
        "simulated ranks exchange dense tensors only: call .to_dense() first",
    ),
    (
        ("Default process group has not been initialized",),
        "call torch.distributed.init_process_group() first, on the thread that runs the script",
    ),
    (
        ("ProcessGroupNCCL", "ProcessGroupGloo", "ProcessGroupMPI", "'SimGroup'", "_get_backend"),
        (
            "the backend of a simulated run is 'sim', whatever was asked for: calls of one "
            "backend's own have no meaning here; guard them by dist.get_backend()"
        ),
    ),
)


class RankError(SimulationError):
    """A rank's program raised, or exited with an error; the run ended there.

    Attributes:
        rank: Which one.
        at: Its simulated time, in seconds.
        others: Of each other rank, what it was doing.
    """

    def __init__(self, message: str, rank: int, at: float, others: dict[int, str]) -> None:
        super().__init__(message)
        self.rank = rank
        self.at = at
        self.others = others

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.rank, self.at, self.others)


def hint(error: BaseException) -> str:
    """What to change about an error that simulated ranks have and real ones have not; or empty."""
    text = f"{type(error).__name__}: {error}"
    for parts, advice in _HINTS:
        if any(part in text for part in parts):
            return advice
    return ""


def raise_for(
    raw: dict[str, Any],
    trace: Trace,
    platform: Platform,
    core: dict[str, Any],
    run: Session,
    at: dict[int, str],
) -> None:
    """`leeboard.sim.run.raise_for`, with the lines of the script that ranks are at.

    Args:
        raw: What the engine's `outcome` returned.
        trace: What the ranks did.
        platform: On what.
        core: `platform.core()`.
        run: The run.
        at: What `lines` said when it ended.
    """
    parked = {entry["rank"] for entry in raw["blocked"] if entry.get("parked")}
    try:
        raise_for_run(raw, trace, platform, core)
    except DeadlockError as error:
        blocked = []
        for entry in error.blocked:
            text = run.waits.get(entry.rank, entry.waits_for)
            if entry.rank in parked and entry.rank not in run.waits:
                continue
            place = at.get(entry.rank, "")
            if entry.rank not in run.ended and place:
                text += f" ({place.removeprefix('at ').partition(', waiting')[0]})"
            blocked.append(dataclasses.replace(entry, waits_for=text))
        notes = [
            f"{ranks(numbers)} had ended: {how}" for how, numbers in _by_text(run.ended).items()
        ]
        never = sorted(set(run.ended) - run.joined)
        if run.joined and never:
            notes.append(f"{ranks(never)} never called init_process_group")
        raise DeadlockError(blocked, error.failed, error.down, notes) from None


def raised(run: Session, rank: int, at: int, error: BaseException) -> SimulationError:
    """The error for a rank whose program raised."""
    if isinstance(error, SimulationError):
        return error
    others = lines(run, but=rank)
    exited = isinstance(error, SystemExit)
    what = f"raised {_brief(error)}"
    if isinstance(error, SystemExit):
        what = f"exited with status {error.code}"
    parts = [f"rank {rank}, at {text_of(at / _PICOSECONDS, 's')}, {what}"]
    advice = hint(error)
    if advice:
        parts.append(advice)
    if not exited:
        parts.append(_own_traceback(error).rstrip())
    if others:
        parts.append(_table(others))
    told = RankError("\n".join(parts), rank, at / _PICOSECONDS, others)
    told.__cause__ = error
    return told


def lines(run: Session, but: int = -1) -> dict[int, str]:
    """Of every rank that is held up, the line of the program that it is at."""
    frames = sys._current_frames()
    found = {}
    for number, rank in sorted(run.ranks.items()):
        if number == but:
            continue
        if number in run.ended:
            found[number] = f"had ended ({run.ended[number]})"
        else:
            line = where.line(frames.get(rank.thread))
            found[number] = f"at {line}" if line else "had not begun"
        if number in run.waits:
            found[number] += f", waiting for {run.waits[number]}"
    return found


def _table(others: dict[int, str]) -> str:
    """ "rank 1 was at a.py:3", equal ones together."""
    rows = [f"  {ranks(numbers)} {text}" for text, numbers in _by_text(others).items()]
    more = [f"  and {len(rows) - _SHOWN} more places"] if len(rows) > _SHOWN else []
    return "\n".join(["the others:", *rows[:_SHOWN], *more])


def _by_text(texts: dict[int, str]) -> dict[str, list[int]]:
    """The ranks of each text."""
    by_text: dict[str, list[int]] = {}
    for number, text in sorted(texts.items()):
        by_text.setdefault(text, []).append(number)
    return by_text


def ranks(numbers: list[int]) -> str:
    """ "rank 3", "ranks 0-6, 9"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    text = ", ".join("-".join(map(str, run)) for run in runs)
    return f"rank {text}" if len(numbers) == 1 else f"ranks {text}"


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _own_traceback(error: BaseException) -> str:
    """The traceback without the frames of this package."""
    told = traceback.TracebackException.from_exception(error)
    told.stack = traceback.StackSummary.from_list(
        [frame for frame in told.stack if not frame.filename.startswith(_PACKAGE)]
    )
    return "".join(told.format())


def forbid_processes(patches: Patches) -> None:
    """Let no rank start processes of Python: they would hold none of what the run is."""
    from multiprocessing import process

    for holder, name in ((os, "fork"), (os, "forkpty"), (process.BaseProcess, "start")):
        if hasattr(holder, name):
            patches.set(holder, name, _refused(getattr(holder, name), name))


def one_profiler(patches: Patches) -> None:
    """torch's profiler is one of the process: a rank that starts another one is refused."""
    holder: list[int] = []

    def begin(original: Any) -> Any:
        def start(*args: Any, **kwargs: Any) -> Any:
            rank = find()
            if rank is not None:
                if holder and holder[0] != rank.number:
                    raise RuntimeError(
                        f"rank {rank.number} starts torch's profiler while that of rank "
                        f"{holder[0]} is on, and there is one of it in a process: profile on one "
                        "rank only; of simulated time, `--perfetto` shows all ranks"
                    )
                holder[:] = [rank.number]
            return original(*args, **kwargs)

        return start

    def end(original: Any) -> Any:
        def stop(*args: Any, **kwargs: Any) -> Any:
            holder.clear()
            return original(*args, **kwargs)

        return stop

    for name, around in (
        ("_prepare_profiler", begin),
        ("_enable_profiler", begin),
        ("_disable_profiler", end),
    ):
        if hasattr(profiler, name):
            patches.set(profiler, name, around(getattr(profiler, name)))


def _refused(original: Any, name: str) -> Any:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        rank = find()
        if rank is None:
            return original(*args, **kwargs)
        raise RuntimeError(f"rank {rank.number} {_why(sys._getframe(1))}")

    return refuse


def _why(frame: FrameType | None) -> str:
    """What a rank that starts a process is about to do, and what to do instead."""
    while frame is not None:
        path = frame.f_code.co_filename.replace(os.sep, "/")
        if path.endswith("torch/utils/data/dataloader.py"):
            return (
                "starts workers of a DataLoader, which a simulated rank cannot: pass num_workers=0"
            )
        if path.endswith(("torch/multiprocessing/spawn.py", "multiprocessing/spawn.py")):
            return (
                "calls torch.multiprocessing.spawn: the ranks are there already, one for each "
                "simulated device; call the function itself, with int(os.environ['RANK'])"
            )
        frame = frame.f_back
    return (
        "starts a process, which would be no part of the simulation: do it in the rank itself, or "
        "start more ranks (--nproc-per-node)"
    )
