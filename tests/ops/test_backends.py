"""The choice of a backend and of an instruction-set level."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import torch

import leeboard.ops
from cases import CASES
from harness import assert_matches, assert_same, run, run_reference
from leeboard import _C
from leeboard.ops import _library
from leeboard.ops._state import (
    State,
    _from_environment,
    direct_level,
    has_direct_path,
    state,
    use,
)
from leeboard.ops.registry import OPS

NAMES = sorted(OPS)
LEVELS = [name for _, name in _C.isa_levels()]

ops = pytest.mark.parametrize("name", NAMES)


def plain(name: str, dtype: torch.dtype = torch.float32):
    return CASES[name].samples["plain"](dtype)


WITH_FLOATS = [n for n in NAMES if any(t.is_floating_point() for t in plain(n).tensors())]


@pytest.mark.parametrize("name", WITH_FLOATS)
def test_forced_kernels_refuse_float64(name: str) -> None:
    call = plain(name, torch.float64)
    for backend in ("cpu", "triton"):
        with (
            leeboard.ops.backend(backend),
            pytest.raises(
                RuntimeError,
                match=rf"{name}: backend '{backend}' is forced, but .*not torch.float64",
            ),
        ):
            run(name, call)


@ops
def test_forced_cpu_kernels_refuse_other_devices(name: str) -> None:
    call = plain(name).mapped(lambda t: t.to("meta"))
    # The fake implementation describes meta tensors; a forced backend changes nothing about that.
    with leeboard.ops.backend("cpu"):
        assert all(y.device.type == "meta" for y in run(name, call))
    problem = _library.kernel_problem("cpu", [torch.empty(2, device="meta")])
    assert problem == "the tensors are on meta"


@ops
def test_forced_triton_says_why_it_cannot_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with (
        leeboard.ops.backend("triton"),
        pytest.raises(RuntimeError, match=r"'triton' is forced, but on CPU .*TRITON_INTERPRET=1"),
    ):
        run(name, plain(name))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with (
        leeboard.ops.backend("triton"),
        pytest.raises(RuntimeError, match=r'not installed \(pip install "leeboard\[triton\]"\)'),
    ):
        run(name, plain(name))


@ops
def test_forced_backends_take_what_they_take(name: str) -> None:
    call = plain(name)
    with leeboard.ops.backend("reference"):
        assert_same(run(name, call), run_reference(name, call))
    with leeboard.ops.backend("cpu"):
        assert_matches(name, call, run(name, call), CASES[name].check_index)


def test_backend_is_restored() -> None:
    before = state()
    with leeboard.ops.backend("cpu"):
        with leeboard.ops.backend("reference"), leeboard.ops.isa("base"):
            assert (state().backend, state().level) == ("reference", 0)
        assert state().backend == "cpu"
    with pytest.raises(KeyError), leeboard.ops.backend("reference"):
        raise KeyError
    with pytest.raises(KeyError), leeboard.ops.isa("base"):
        raise KeyError
    assert state() == before


def test_unknown_names_are_refused() -> None:
    with (
        pytest.raises(ValueError, match=r"backend: 'cuda' .* expected one of reference, cpu"),
        leeboard.ops.backend("cuda"),  # type: ignore[arg-type]
    ):
        pass
    with (
        pytest.raises(ValueError, match=r"isa: 'sse9' .* expected one of base"),
        leeboard.ops.isa("sse9"),
    ):
        pass


def test_an_unknown_level_is_refused_by_the_extension() -> None:
    x = torch.ones(2, 8)
    with pytest.raises(ValueError, match=r"level: 99"):
        _C.rms_norm_forward(x, None, torch.empty_like(x), 1e-6, 0.0, "after_weight", 99)


def test_a_thread_has_its_own_choice() -> None:
    seen: dict[str, object] = {}
    inside = threading.Event()
    done = threading.Event()

    def other() -> None:
        seen["at start"] = state().backend
        with leeboard.ops.backend("cpu"):
            inside.set()
            done.wait(10)
            seen["inside"] = state().backend

    with leeboard.ops.backend("reference"):
        thread = threading.Thread(target=other)
        thread.start()
        assert inside.wait(10)
        assert state().backend == "reference"
        done.set()
        thread.join()
    assert seen == {"at start": None, "inside": "cpu"}


def test_backward_runs_in_the_state_of_the_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    choose = _library.choose

    def recording(op: str, tensors: list[torch.Tensor]) -> str:
        seen.append((op, choose(op, tensors)))
        return seen[-1][1]

    monkeypatch.setattr(sys.modules["leeboard.ops.rms_norm"], "choose", recording)
    x = torch.randn(3, 8, requires_grad=True)
    with leeboard.ops.backend("reference"):
        y = leeboard.ops.rms_norm(x)
    y.sum().backward()
    assert seen == [("rms_norm", "reference"), ("rms_norm_backward", "reference")]


@pytest.mark.parametrize("level", LEVELS)
def test_levels_agree(level: str) -> None:
    """Levels differ in the order of sums: close to each other, not equal."""
    x, w = torch.randn(5, 300), torch.randn(300)
    with leeboard.ops.isa(level):
        y = leeboard.ops.rms_norm(x, w)
    torch.testing.assert_close(y, leeboard.ops.rms_norm(x, w))


def test_there_is_a_direct_path() -> None:
    assert has_direct_path()
    x = torch.ones(2, 8)
    assert direct_level(x) == -1
    assert direct_level(x, None, x) == -1
    assert direct_level(x.clone().requires_grad_()) is None
    assert direct_level(x, x.clone().requires_grad_()) is None
    assert direct_level(torch._neg_view(x)) is None
    assert direct_level("x") is None
    with torch.no_grad():
        assert direct_level(x.clone().requires_grad_()) == -1
    with leeboard.ops.backend("reference"):
        assert direct_level(x) is None
    with leeboard.ops.isa("base"):
        assert direct_level(x) == 0


@ops
def test_without_the_direct_path_results_are_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = plain(name)
    direct = run(name, call)
    monkeypatch.setattr("leeboard.ops._state._probes", None)
    assert_same(run(name, call), direct)


def test_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEEBOARD_BACKEND", "reference")
    monkeypatch.setenv("LEEBOARD_ISA", "base")
    assert _from_environment() == State(backend="reference", level=0)
    monkeypatch.setenv("LEEBOARD_BACKEND", "")
    monkeypatch.setenv("LEEBOARD_ISA", "")
    assert _from_environment() == State()


def test_environment_at_import() -> None:
    """Bad values are refused by name, good ones hold, in a process of their own."""
    code = """
import importlib, os, sys

def attempt(**values):
    os.environ.update(values)
    try:
        print(importlib.import_module("leeboard.ops._state").state())
    except ValueError as error:
        print(error)

attempt(LEEBOARD_BACKEND="fast", LEEBOARD_ISA="base")
attempt(LEEBOARD_BACKEND="reference", LEEBOARD_ISA="fast")
attempt(LEEBOARD_BACKEND="reference", LEEBOARD_ISA="base")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    first, second, third = done.stdout.splitlines()
    assert first.startswith("LEEBOARD_BACKEND: 'fast' is not a backend; expected one of reference")
    assert second.startswith("LEEBOARD_ISA: 'fast' is not a level that this machine runs; expected")
    assert third == "State(backend='reference', level=0)"


def test_context_wins_over_the_environment_state() -> None:
    with use(State(backend="reference")), leeboard.ops.backend("cpu"):
        assert state().backend == "cpu"
