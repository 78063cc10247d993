"""Tensors without memory of their own: zero tensors, functional ones, storages that were emptied.

A kernel that reads one through its data pointer ends the process, so a child process tries them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from cases import CASES
from harness import Sample, assert_matches, gradients, run, wants_gradient
from leeboard.ops.registry import OPS

NAMES = sorted(OPS)
NORMS = ("rms_norm", "add_rms_norm")
KINDS = ("zero", "functional", "emptied")
SAMPLES = ("plain", "plain-3d", "rows")

kinds = pytest.mark.parametrize("kind", KINDS)


def odd(kind: str, t: Tensor) -> Tensor:
    """A tensor of the same description and, but for emptied ones, of known values."""
    if kind == "zero":
        return torch._efficientzerotensor(t.shape, dtype=t.dtype)
    if kind == "functional":
        return torch._to_functional_tensor(t)
    emptied = t.clone()
    emptied.untyped_storage().resize_(0)
    return emptied


def values_of(kind: str, t: Tensor) -> Tensor:
    return torch.zeros_like(t) if kind == "zero" else t


def variants(kind: str, call: Sample) -> list[tuple[Sample, Sample]]:
    """The sample with each tensor in turn, then all, made odd; with the values that it has."""
    tensors = call.tensors()
    choices = [{i} for i in range(len(tensors))] + [set(range(len(tensors)))]
    return [
        (
            call.replaced([odd(kind, t) if i in chosen else t for i, t in enumerate(tensors)]),
            call.replaced(
                [values_of(kind, t) if i in chosen else t for i, t in enumerate(tensors)]
            ),
        )
        for chosen in choices
    ]


def plain(t: Tensor) -> Tensor:
    return torch._from_functional_tensor(t) if torch._is_functional_tensor(t) else t


def try_all(name: str, kind: str) -> None:
    """Every odd argument: the right result or an error; the norms take what has values."""
    for sample in [s for s in SAMPLES if s in CASES[name].samples]:
        for changed, call in variants(kind, CASES[name].samples[sample](torch.float32)):
            try:
                outputs = [plain(y) for y in run(name, changed)]
            except RuntimeError as error:
                if kind != "emptied" and name in NORMS:
                    raise
                if not re.search("leeboard|storage|functional", str(error)):
                    raise
                continue
            assert kind != "emptied", "there was nothing to read"
            assert_matches(name, call, outputs, CASES[name].check_index)


def in_a_child(name: str, what: str) -> None:
    done = subprocess.run(
        [sys.executable, __file__, name, what],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"


@kinds
@pytest.mark.parametrize("name", NAMES)
def test_tensors_without_memory(name: str, kind: str) -> None:
    in_a_child(name, kind)


@pytest.mark.parametrize("name", NORMS)
def test_zero_tensors_as_cotangents(name: str) -> None:
    """Autograd's own stand-in for a gradient of zero."""
    call = CASES[name].samples["plain"](torch.float32)
    grads = [torch._efficientzerotensor(y.shape) for y in run(name, call)]
    for grad in gradients(OPS[name].function, wants_gradient(call), grads):
        assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("name", NAMES)
def test_zero_tensors_are_not_written(name: str) -> None:
    call = CASES[name].samples["plain"](torch.float32)
    outs = tuple(odd("zero", y) for y in run(name, call))
    with pytest.raises((RuntimeError, ValueError), match=r"immutable|python storage|out\[0\]"):
        run(name, call, out=outs if len(outs) > 1 else outs[0])


def try_out(name: str) -> None:
    """Each output in turn is emptied: an error must name it."""
    call = CASES[name].samples["plain"](torch.float32)
    outs = run(name, call)
    for i in range(len(outs)):
        given = tuple(odd("emptied", y) if i == j else y.clone() for j, y in enumerate(outs))
        where = rf"out\[{i}\]" if len(outs) > 1 else "out"
        with pytest.raises(ValueError, match=rf"^{where}: its storage is empty; expected memory"):
            run(name, call, out=given if len(given) > 1 else given[0])


@pytest.mark.parametrize("name", NAMES)
def test_an_out_without_memory_is_refused(name: str) -> None:
    in_a_child(name, "out")


if __name__ == "__main__":
    torch.manual_seed(0)
    op, what = sys.argv[1:]
    if what == "out":
        try_out(op)
    else:
        try_all(op, what)
    print("done")
