"""What a process has for itself, a simulated rank has for itself."""

from __future__ import annotations

import os
import random
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from leeboard import sim

RANKS = 3


def ran(program: Callable[..., Any], *args: Any, ranks: int = RANKS, seed: int = 0) -> list[Any]:
    platform = sim.Platform.star(ranks, bandwidth="1 Gbit/s", latency="100 us")
    return sim.launch(program, platform, args=args, compute="none", seed=seed).values


def hand_off() -> None:
    """Every other rank runs before this one goes on."""
    dist.barrier()


def alone(program: Callable[[int, Callable[[], None]], Any], rank: int) -> Any:
    """What a rank's program gives when no other runs between its steps."""
    return ran(lambda: program(rank, lambda: None), ranks=1)[0]


def together(program: Callable[[int, Callable[[], None]], Any]) -> list[Any]:
    """What it gives when ranks take turns after every step."""

    def start() -> Any:
        dist.init_process_group()
        return program(dist.get_rank(), hand_off)

    return ran(start)


def draws(library: str, seeded: bool) -> Callable[[int, Callable[[], None]], list[float]]:
    def program(rank: int, step: Callable[[], None]) -> list[float]:
        if seeded:
            random.seed(100 + rank)
            np.random.seed(100 + rank)  # noqa: NPY002
            torch.manual_seed(100 + rank)
        drawn = []
        for _ in range(3):
            step()
            # An odd number of normal variates: the spare one belongs to the rank, too.
            drawn.append(
                {
                    "random": lambda: random.gauss(0, 1) + random.choice([1, 2, 3]),
                    "numpy": lambda: float(np.random.standard_normal()),  # noqa: NPY002
                    "torch": lambda: torch.randn(()).item() + torch.randint(9, ()).item(),
                    "dropout": lambda: torch.dropout(torch.ones(64), 0.5, True).sum().item(),
                }[library]()
            )
        return drawn

    return program


@pytest.mark.parametrize("library", ["random", "numpy", "torch", "dropout"])
def test_generators_belong_to_ranks(library: str) -> None:
    program = draws(library, seeded=True)
    assert together(program) == [alone(program, rank) for rank in range(RANKS)]


@pytest.mark.parametrize("library", ["random", "numpy", "torch"])
def test_ranks_begin_with_seeds_of_their_own_from_the_run(library: str) -> None:
    def program() -> list[float]:
        return draws(library, seeded=False)(0, lambda: None)

    first, again, other = ran(program), ran(program), ran(program, seed=1)
    assert first == again
    assert len({drawn[0] for drawn in first + other}) == 2 * RANKS


def test_environment_and_arguments_belong_to_ranks() -> None:
    def program(rank: int, step: Callable[[], None]) -> list[Any]:
        os.environ["NOTE"] = str(rank)
        sys.argv.append(str(rank))
        sys.path.insert(0, f"/place/{rank}")
        step()
        seen = [os.environ["NOTE"], os.getenv("NOTE"), sys.argv[-1], sys.path[0]]
        if rank == 1:
            del os.environ["NOTE"]
        step()
        return [*seen, "NOTE" in os.environ]

    assert together(program) == [
        [str(rank), str(rank), str(rank), f"/place/{rank}", rank != 1] for rank in range(RANKS)
    ]
    assert "NOTE" not in os.environ


class Counting(TorchDispatchMode):
    """Counts operations."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_modes_of_torch_belong_to_ranks() -> None:
    def program(rank: int, step: Callable[[], None]) -> list[Any]:
        x = torch.ones(2, 2, requires_grad=True)
        counting = Counting()
        with (
            torch.inference_mode(rank == 2),
            torch.set_grad_enabled(rank == 1),
            torch.autocast("cpu", torch.bfloat16, enabled=rank == 1),
            counting,
        ):
            step()
            before = counting.count
            y = x @ x
            step()
            seen = [counting.count - before > 0, torch.is_grad_enabled(), y.dtype, y.is_inference()]
        step()
        return [*seen, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")]

    assert together(program) == [
        [True, False, torch.float32, False, True, False],
        [True, True, torch.bfloat16, False, True, False],
        [True, False, torch.float32, True, True, False],
    ]


def test_defaults_of_torch_belong_to_ranks() -> None:
    def program(rank: int, step: Callable[[], None]) -> list[Any]:
        kinds = (torch.float32, torch.float64, torch.bfloat16)
        torch.set_default_dtype(kinds[rank])
        torch.set_default_device("meta" if rank == 1 else "cpu")
        step()
        made = torch.ones(2)
        torch.set_default_device("cpu")
        step()
        return [made.dtype, made.device.type]

    assert together(program) == [
        [torch.float32, "cpu"],
        [torch.float64, "meta"],
        [torch.bfloat16, "cpu"],
    ]


def test_hooks_on_all_modules_belong_to_ranks() -> None:
    def program(rank: int, step: Callable[[], None]) -> int:
        calls = []
        handle = None
        if rank == 1:
            handle = torch.nn.modules.module.register_module_forward_hook(
                lambda *_: calls.append(rank)
            )
        layer = torch.nn.Linear(2, 2)
        step()
        layer(torch.ones(1, 2))
        step()
        if handle is not None:
            handle.remove()
        layer(torch.ones(1, 2))
        return len(calls)

    assert together(program) == [0, 1, 0]


def test_warning_filters_belong_to_ranks() -> None:
    def program(rank: int, step: Callable[[], None]) -> list[str]:
        # Contexts that are left in another order than they were entered.
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore" if rank == 0 else "always")
            step()
            warnings.warn(f"of rank {rank}", stacklevel=1)
            step()
        step()
        return [str(warning.message) for warning in caught]

    assert together(program) == [[], ["of rank 1"], ["of rank 2"]]


def test_standard_output_belongs_to_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    import contextlib
    import io

    def program(rank: int, step: Callable[[], None]) -> str:
        mine = io.StringIO()
        with contextlib.redirect_stdout(mine):
            step()
            print("rank", rank)
            step()
        return mine.getvalue()

    assert together(program) == [f"rank {rank}\n" for rank in range(RANKS)]
    assert capsys.readouterr().out == ""


def test_signal_handlers_are_kept_and_set_nothing() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def program(rank: int, step: Callable[[], None]) -> bool:
        def handler(*_: Any) -> None:
            raise AssertionError

        first = signal.signal(signal.SIGTERM, handler)
        step()
        return first is signal.SIG_DFL and signal.signal(signal.SIGTERM, first) is handler

    assert together(program) == [True] * RANKS
    assert signal.getsignal(signal.SIGTERM) is before


def test_backward_stays_on_the_thread_of_its_rank() -> None:
    import threading

    def program(rank: int, step: Callable[[], None]) -> bool:
        threads = set()
        x = torch.ones(3, requires_grad=True)
        y = x * 2
        y.register_hook(lambda grad: threads.add(threading.get_ident()))
        y.sum().backward()
        return threads == {threading.get_ident()}

    assert together(program) == [True] * RANKS


def test_what_a_module_imported_before_the_run_draws_is_its_own() -> None:
    # `from random import random` before the run: the process's generator, as docs/sim/torch.md says.
    early = random.random

    def program() -> tuple[float, float]:
        return early(), random.random()

    random.seed(3)
    expected = [random.random() for _ in range(2)]
    random.seed(3)
    values = ran(program, ranks=2)
    assert [value for value, _ in values] == expected
    assert not {value for _, value in values} & set(expected)


def test_the_process_keeps_its_own_generators() -> None:
    def program() -> None:
        random.seed(1)
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002

    random.seed(2)
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    expected = random.random(), torch.rand(()).item(), np.random.rand()  # noqa: NPY002
    random.seed(2)
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    ran(program)
    assert (random.random(), torch.rand(()).item(), np.random.rand()) == expected  # noqa: NPY002
