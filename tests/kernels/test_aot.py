"""What the compilers make of every kernel, for GPUs that need not be there (see aot.py)."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton

import aot
from leeboard.kernels import (
    _common,
    _gqa_backward,
    _gqa_forward,
    _gqa_grad_kv,
    _gqa_grad_q,
    _gqa_top_u,
    _heads,
    _weights,
    add_rms_norm,
    aux_norm_linear,
    decode_attention,
    draft_chain,
    drafter_glue,
    linear_argmax,
    linear_topk,
    panel_ffn,
    panel_linear,
    qlinear,
    rms_norm,
    swiglu_linear,
    ttt_attention,
    ttt_loss,
    unit_saliency,
    verify_greedy,
    verify_sample,
)

pytestmark = pytest.mark.slow

MODULES = (
    _gqa_backward,
    _gqa_forward,
    _gqa_grad_kv,
    _gqa_grad_q,
    _gqa_top_u,
    _heads,
    add_rms_norm,
    aux_norm_linear,
    decode_attention,
    draft_chain,
    drafter_glue,
    linear_argmax,
    linear_topk,
    panel_ffn,
    panel_linear,
    qlinear,
    rms_norm,
    swiglu_linear,
    ttt_attention,
    ttt_loss,
    unit_saliency,
    verify_greedy,
    verify_sample,
)
# Two processes, of about equal work.
SHARES = (("sm_80", "sm_90"), ("sm_100", "gfx942"))


@pytest.fixture(scope="session")
def records() -> list[aot.Record]:
    """The whole grid, compiled in processes of their own: this one interprets."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_DEFAULT_FP_FUSION"] = "1"
    running = [
        subprocess.Popen(
            [sys.executable, str(Path(aot.__file__)), *share],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for share in SHARES
    ]
    found = []
    for process in running:
        output, errors = process.communicate(timeout=900)
        assert process.returncode == 0, errors
        found += [aot.Record(**record) for record in json.loads(output)]
    return found


GRID = [
    (case, dtype, target)
    for target in aot.TARGETS
    for case in aot.cases()
    for dtype in aot.DTYPES
    if aot.selected(case, dtype, target)
]


@pytest.mark.parametrize(("case", "dtype", "target"), GRID, ids=lambda value: value)
def test_resources(records, case, dtype, target):
    """No spills, shared memory within bounds, tensor cores and 128-bit loads where they belong."""
    chosen = [r for r in records if (r.case, r.dtype, r.target) == (case, dtype, target)]
    assert chosen
    assert {r.kernel: aot.problems(r) for r in chosen if aot.problems(r)} == {}


@pytest.mark.parametrize("target", aot.FAULTY_TARGETS)
@pytest.mark.parametrize("fault", ["spills", "shared", "128-bit", "tensor-core"])
def test_faults_are_found(records, fault, target):
    """The harness itself: kernels made to fail one check each are reported for it."""
    (record,) = [r for r in records if (r.case, r.target) == (fault, target)]
    assert any(fault in problem for problem in aot.problems(record))


def test_reduced_precision_is_found(records):
    """The same for a product in tf32, passed off as a float32 kernel."""
    (record,) = [r for r in records if (r.case, r.target) == ("shared", "sm_90")]
    found = aot.problems(dataclasses.replace(record, dtype="float32"))
    assert any("tf32" in problem for problem in found)


def test_every_kernel_is_compiled_for_every_target(records):
    kernels = {name for module in MODULES for name in vars(module) if name.endswith("_kernel")}
    assert len(kernels) >= 9
    for target in aot.TARGETS:
        assert kernels - {r.kernel for r in records if r.target == target} == set()


@pytest.mark.parametrize("hip", [False, True], ids=["cuda", "hip"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_product_tile_is_compiled(dtype, hip):
    """The row counts and alignments that are compiled reach every branch of the heuristic."""

    def tiles(rows, columns):
        return {
            tuple(_common.product_config(n, h, dtype, hip=hip).items())
            for n in rows
            for h in columns
        }

    assert tiles(range(1, 2049), (4096, 4097)) == tiles(aot.ROW_COUNTS, aot.PRODUCT_COLUMNS)


@pytest.mark.parametrize("hip", [False, True], ids=["cuda", "hip"])
@pytest.mark.parametrize("form", ["plain", "int8", "int4", "fp8"])
def test_every_tile_of_a_format_is_compiled(form, hip):
    """The same for weights in each format; columns that are no multiple of 16 take narrower loads."""

    def tiles(rows):
        return {
            tuple(_weights.weight_config(n, 4096, torch.bfloat16, form, hip=hip, wide=True).items())
            for n in rows
        }

    assert tiles(range(1, 2049)) == tiles(aot.ROW_COUNTS)


def test_row_tiles_are_within_what_is_compiled():
    """Elements a thread holds never exceed those of the compiled cases, whatever the width."""

    def per_thread(columns, backward):
        tile = rms_norm.config(columns, backward=backward)
        assert tile["ROWS"] * tile["BLOCK"] <= 16384
        assert tile["BLOCK"] >= columns or not tile["ONE_BLOCK"]
        return tile["ROWS"] * tile["BLOCK"] / (32 * tile["num_warps"])

    widths = [*range(1, 300), *(triton.next_power_of_2(n) + d for n in (512, 9000) for d in (0, 1))]
    widths += [4095, 4096, 4097, 8191, 8192, 8193, 16383, 16384, 16385, 100_000]
    for backward, compiled in ((False, 16384), (True, 8192)):
        most = per_thread(compiled, backward)
        assert max(per_thread(n, backward) for n in widths) <= most
