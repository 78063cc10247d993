"""What this machine offers to leeboard, and why an op runs where it runs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from dataclasses import asdict, dataclass
from typing import Any

import torch

from leeboard import _C
from leeboard._version import __version__
from leeboard.ops._library import kernel_problem
from leeboard.ops._state import ISA_LEVELS, has_direct_path, state
from leeboard.ops.registry import OPS, OpSpec

_EXTRAS = {
    "triton": ("triton",),
    "hf": ("transformers", "tokenizers", "safetensors", "tqdm"),
    "viz": ("matplotlib",),
}


@dataclass(frozen=True)
class Doctor:
    """The findings of `leeboard.doctor()`; printing it gives the report.

    Attributes:
        leeboard: Version of leeboard.
        torch: Version of torch.
        python: Version of Python.
        isa_levels: Instruction-set levels that this processor runs, lowest first.
        isa: The level in use.
        threads: Threads of torch's pool.
        thread_pool: Whether the kernels run on torch's thread pool (torch >= 2.10).
        exchange_table: Whether tensors are read through torch's DLPack table (torch >= 2.10).
        direct_path: Whether plain eager calls skip torch's dispatcher.
        forced_backend: What LEEBOARD_BACKEND or `ops.backend` forces, if anything.
        gpus: Names of the CUDA or ROCm devices.
        extras: Per extra, the versions installed (None where missing).
        ops: Per op and backend, "runs" or why not, for float32 tensors of this machine.
    """

    leeboard: str
    torch: str
    python: str
    isa_levels: tuple[str, ...]
    isa: str
    threads: int
    thread_pool: bool
    exchange_table: bool
    direct_path: bool
    forced_backend: str | None
    gpus: tuple[str, ...]
    extras: dict[str, dict[str, str | None]]
    ops: dict[str, dict[str, str]]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        def yes(flag: bool, otherwise: str) -> str:
            return "yes" if flag else otherwise

        lines = [
            f"leeboard {self.leeboard} · torch {self.torch} · Python {self.python}",
            f"  CPU kernels      {self.isa} (this machine runs {', '.join(self.isa_levels)})",
            f"  threads          {self.threads}, torch's pool: "
            + yes(self.thread_pool, "no (torch < 2.10): kernels run on the calling thread"),
            "  tensor access    "
            + (
                "DLPack table" if self.exchange_table else "attributes (torch < 2.10): slower calls"
            ),
            "  direct calls     "
            + yes(self.direct_path, "no: every call goes through torch's dispatcher"),
            f"  GPUs             {', '.join(self.gpus) if self.gpus else 'none'}",
            f"  forced backend   {self.forced_backend or 'none (chosen by device)'}",
        ]
        for extra, packages in self.extras.items():
            missing = [name for name, version in packages.items() if version is None]
            found = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
            text = found if not missing else f"missing {', '.join(missing)}"
            hint = f' (pip install "leeboard[{extra}]")' if missing else ""
            lines.append(f"  extra {extra:<11}{text}{hint}")
        return "\n".join(lines)

    def explain(self) -> str:
        """Per op and backend: whether it runs here, and why not."""
        lines = []
        for op, backends in self.ops.items():
            lines.append(f"{op}: {OPS[op].summary}")
            lines.extend(f"  {backend:<10}{verdict}" for backend, verdict in backends.items())
        return "\n".join(lines)


def _version(package: str) -> str | None:
    if importlib.util.find_spec(package) is None:
        return None
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def _verdicts(spec: OpSpec, device: torch.device) -> dict[str, str]:
    dtype = spec.dtypes[0]
    found: dict[str, str] = {}
    for name in spec.backends:
        on_cpu = name == "cpu"
        problem = kernel_problem(
            name,
            [torch.empty(0, dtype=dtype, device="cpu" if on_cpu else device)],
            spec.dtypes,
        )
        found[name] = "runs" if problem is None else problem
    return found


def doctor() -> Doctor:
    """Looks at the machine: instruction sets, threads, Triton, GPUs, extras, and every op.

    Returns:
        The findings. `print(leeboard.doctor())` shows them; `.explain()` goes op by op.
    """
    gpus = tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    forced = state()
    device = torch.device("cuda" if gpus else "cpu")
    return Doctor(
        leeboard=__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        isa_levels=tuple(ISA_LEVELS),
        isa=next(
            (name for name, level in ISA_LEVELS.items() if level == forced.level),
            list(ISA_LEVELS)[-1],
        ),
        threads=torch.get_num_threads(),
        thread_pool=_C.has_thread_pool(),
        exchange_table=_C.has_exchange_table(),
        direct_path=has_direct_path(),
        forced_backend=forced.backend,
        gpus=gpus,
        extras={
            extra: {name: _version(name) for name in packages}
            for extra, packages in _EXTRAS.items()
        },
        ops={name: _verdicts(spec, device) for name, spec in OPS.items()},
    )
