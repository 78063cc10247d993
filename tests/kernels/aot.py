"""Compiles the kernels for GPUs that need not be there, and reads what the compilers report.

The launch functions themselves are called, on meta tensors, with a driver that only names a
target: so exactly the specialisations, tiles and options of a real launch are compiled. Run as a
script in a process without TRITON_INTERPRET: `python aot.py sm_90 gfx942` prints a JSON list of
records. Compiled kernels are kept by Triton's own cache and their reports beside them, so a second
run takes seconds.

The grid. bfloat16 is compiled most: it is the type that the interpreter cannot check. sm_90 and
gfx942 see every case; sm_80 and sm_100 share the register file and the warp of sm_90, so there the
products and one width of each norm suffice. float32 halves the elements of a 128-bit load and
takes other products: 4096 columns, once per vendor. float16 differs from bfloat16 in the opcodes'
names alone: two products on one target. Verification is compiled as the usual cases are: a chain,
a tree and the p/q rule over a large vocabulary. 4096 columns let Triton see alignment; 4097 is the same
code with scalar loads. Row counts name each branch of the tile heuristics; columns name the
narrowest, the usual and the widest one-block tile, and the walk beyond it. Attention is compiled
for both tiles, for usual and odd numbers of channels, appending and under a tree mask. Sparse
attention is compiled with every option at once, which takes the most registers; of train-time-test
attention an unroll's fourth step. Linear
layers are compiled for every format of their weights, with a norm, which makes their rows wider
than 16 bits; whole drafts at the sizes of an 8B model's drafter, for one sequence and for many.
Lists of panels are compiled for the narrowest panel that loads as a vector, and for one of 24
channels, whose runs of 8 are the shortest that do.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
# What one block can have, in bytes: CUDA programming guide, compute capabilities table (163, 227
# KB of opt-in shared memory); CDNA3 instruction-set reference (64 KB of local data share).
SHARED_LIMIT = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
TENSOR_OPCODE = {
    "sm_80": r"\bHMMA\.",
    "sm_90": r"\bHG?MMA\.",
    "sm_100": r"\b(?:HMMA\.|UTC\w*MMA)",
    "gfx942": r"\bv_mfma_",
}
WARP_GROUP_OPCODE = {"sm_90": r"\bHGMMA\.", "sm_100": r"\bUTC\w*MMA"}
WIDE_LOAD = {
    "sm": r"\bLD(?:G|GSTS)\.E\.(?:\w+\.)*128\b",
    "gfx": r"\b(?:global|buffer)_load_dwordx4\b",
}
# One row count for every branch of the products' tile heuristic, and both alignments.
ROW_COUNTS = (1, 2, 16, 64, 1000)
PRODUCT_COLUMNS = (4096, 4097)
USUAL_NORMS = ("H4096", "backward-H4096", "add-H4096", "glue-H4096")
# Scalar registers that these kernels may keep in lanes of a vector register on AMD: no memory is
# touched. Every other kernel keeps all of its scalars.
SCALAR_LANES = {
    "_decode_attention_chunk_dot_kernel": 7,
    "_panel_hidden_dot_kernel": 3,
    "_qlinear_dot_kernel": 3,
    "_sparse_gqa_grad_kv_dot_kernel": 1,
}
USUAL_ATTENTION = (
    "attention-N16-D128",
    "attention-N64-D128",
    "gqa-spans-D128",
    "gqa-top_u-D128",
    "ttt-S4-D128",
)
# Logits are float32, whatever the states are.
LOSSES = ("kl", "lk_alpha", "lk_lambda")
USUAL_PANELS = (
    "saliency-T512-W64",
    "panel-outputs-N1",
    "panel-outputs-N64",
    "panel-ffn-N1",
    "panel-ffn-N64",
)
# Kernels that are limited by memory: without 128-bit loads they fall short of its bandwidth.
STREAMING = {
    "_rms_norm_forward_kernel",
    "_rms_norm_backward_kernel",
    "_column_sum_kernel",
    "_add_rms_norm_forward_kernel",
    "_row_scale_kernel",
    "_aux_norm_linear_stream_kernel",
    "_aux_norm_linear_dot_kernel",
    "_head_stream_kernel",
    "_head_dot_kernel",
    "_swiglu_stream_kernel",
    "_swiglu_dot_kernel",
    "_drafter_glue_kernel",
    "_qlinear_stream_kernel",
    "_qlinear_dot_kernel",
    "_decode_attention_chunk_dot_kernel",
    "_ttt_attention_merge_kernel",
    "_ttt_attention_grad_q_kernel",
    "_ttt_attention_grad_own_kernel",
    "_ttt_loss_teacher_kernel",
    "_ttt_loss_rows_kernel",
    "_unit_saliency_sum_kernel",
    "_panel_outputs_stream_kernel",
    "_panel_outputs_dot_kernel",
    "_panel_inputs_stream_kernel",
    "_panel_inputs_dot_kernel",
    "_panel_hidden_stream_kernel",
    "_panel_hidden_dot_kernel",
    "_row_moments_kernel",
}


DTYPES = ("bfloat16", "float32", "float16")
FAULTY_TARGETS = ("sm_90", "gfx942")
FUSED = {"enable_fp_fusion": True}


@dataclass(frozen=True)
class Record:
    """What became of one kernel: resources in registers or bytes per thread, counts of opcodes."""

    case: str
    dtype: str
    target: str
    kernel: str
    warps: int
    registers: int
    spilled: int
    shared: int
    tensor_ops: int
    warp_group_ops: int
    wide_loads: int


def problems(record: Record) -> list[str]:
    """Why this kernel must not ship; empty if it may."""
    found = []
    if record.spilled:
        found.append(f"spills {record.spilled}")
    if record.shared > SHARED_LIMIT[record.target]:
        found.append(f"shared memory {record.shared} > {SHARED_LIMIT[record.target]}")
    # NVIDIA tensor cores have no full-precision float32 product.
    full_precision = record.dtype == "float32" and record.target != "gfx942"
    if full_precision and record.tensor_ops:
        found.append("float32 product rounded to tf32")
    if record.kernel.endswith("_dot_kernel") and not full_precision:
        if not record.tensor_ops:
            found.append("no tensor-core opcode")
        # A warp group's tile has at least 64 rows.
        group = record.target in WARP_GROUP_OPCODE and "N16" not in record.case
        if group and not record.warp_group_ops:
            found.append("no warp-group opcode")
    if record.kernel in STREAMING and "H4097" not in record.case and not record.wide_loads:
        found.append("no 128-bit load")
    return found


def cases() -> dict[str, Callable[[Any], None]]:
    """Launches by name; each takes the storage dtype."""
    import torch

    from leeboard.kernels import (
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
        sparse_gqa,
        swiglu_linear,
        ttt_attention,
        ttt_loss,
        unit_saliency,
        verify_greedy,
        verify_sample,
    )
    from leeboard.ops import patterns
    from leeboard.ops._attention_plan import plan_for
    from leeboard.reference import DrafterWeights, QuantizedWeight, Weight

    def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def norm(H: int, rounding: str) -> Callable[[torch.dtype], None]:
        def launch(dtype: torch.dtype) -> None:
            x, w = empty(1 << 20, H, dtype=dtype), empty(H, dtype=dtype)
            rms_norm.forward(x, w, x, 1e-6, 0.0, rounding)

        return launch

    def norm_backward(H: int, rounding: str) -> Callable[[torch.dtype], None]:
        def launch(dtype: torch.dtype) -> None:
            x, w = empty(1 << 20, H, dtype=dtype), empty(H, dtype=dtype)
            rms_norm.backward(x, x, w, x, w, 1e-6, 0.0, rounding, x)

        return launch

    def add_norm(H: int) -> Callable[[torch.dtype], None]:
        def launch(dtype: torch.dtype) -> None:
            x, w = empty(1 << 20, H, dtype=dtype), empty(H, dtype=dtype)
            add_rms_norm.forward(x, x, w, x, x, 1e-6, 0.0, "after_weight")

        return launch

    def aux(N: int, H: int, states: int = 3) -> Callable[[torch.dtype], None]:
        def launch(dtype: torch.dtype) -> None:
            x, w = empty(N, H, dtype=dtype), empty(4096, states * H, dtype=dtype)
            gamma = empty(H, dtype=dtype)
            out = empty(N, 4096, dtype=dtype)
            aux_norm_linear.forward([x] * states, [gamma] * states, w, out, 1e-6)

        return launch

    def argmax(N: int, H: int) -> Callable[[torch.dtype], None]:
        def launch(dtype: torch.dtype) -> None:
            x, w = empty(N, H, dtype=dtype), empty(32000, H, dtype=dtype)
            index, value = empty(N, dtype=torch.int64), empty(N, dtype=torch.float32)
            linear_argmax.forward(x, w, index, value, empty(32000, dtype=torch.int64))

        return launch

    def greedy(N: int) -> Callable[[torch.dtype], None]:
        def launch(dtype: torch.dtype) -> None:
            nodes, one = (empty(64, n, dtype=torch.int64) for n in (N, 1))
            target = empty(64, N + 1, dtype=torch.int64)
            verify_greedy.forward(nodes, target, nodes, one[:, 0], one[:, 0], nodes)

        return launch

    def sample(N: int, rule: str) -> Callable[[torch.dtype], None]:
        def launch(dtype: torch.dtype) -> None:
            nodes, one = (empty(64, n, dtype=torch.int64) for n in (N, 1))
            p, q = (empty(64 * n, 152064, dtype=dtype) for n in (N + 1, N))
            uniforms = empty(64, N + 1, dtype=torch.float64)
            verify_sample.forward(
                nodes,
                p,
                q if rule == "ratio" else None,
                nodes if rule == "tree" else None,
                uniforms,
                one[:, 0],
                one[:, 0],
                nodes,
            )

        return launch

    def attention(T: int, D: int, *, tree: bool = False) -> Callable[[torch.dtype], None]:
        def launch(dtype: torch.dtype) -> None:
            q, k = empty(1, 32, T, D, dtype=dtype), empty(1, 8, T, D, dtype=dtype)
            cache = empty(1, 8, 4096, D, dtype=dtype)
            lengths, cos = empty(1, dtype=torch.int64), empty(4096, D // 2, dtype=torch.float32)
            small = (lengths, cos, cos, None, None)
            if tree:
                mask = empty(T, T, dtype=torch.bool)
                small = (lengths, cos, cos, empty(1, T, dtype=torch.int64), mask)
            window = 1024 if tree else -1
            decode_attention.forward(q, k, k, cache, cache, *small, q, 0.1, window, 4, not tree)

        return launch

    def sparse(D: int, pattern: patterns.Pattern) -> Callable[[torch.dtype], None]:
        def launch(dtype: torch.dtype) -> None:
            L = 1024
            q, k = empty(1, 32, L, D, dtype=dtype), empty(1, 8, L, D, dtype=dtype)
            lse, padding = empty(1, 32, L, dtype=torch.float32), empty(1, L, dtype=torch.bool)
            # Every option at once: each takes registers.
            last = (None, None, tuple(range(1, 32)), padding)
            sinks = empty(32, dtype=torch.float32)
            if isinstance(pattern, patterns.TopU):
                chosen, sample = (empty(1, n, 35, dtype=torch.int64) for n in (32, 1))
                tail = (sinks, 0.1, 30.0)
                sparse_gqa.top_u(q, k, k, q, lse, chosen, sample[0], [35], *last, *tail)
                return
            plans = [plan_for(pattern.code, L, L)]
            sparse_gqa.forward(q, k, k, q, lse, plans, *last, sinks, 0.1, 30.0)
            sparse_gqa.backward(q, lse, q, k, k, q, lse, q, k, k, plans, *last, 0.1, 30.0)

        return launch

    def unrolled(steps: int, D: int) -> Callable[[torch.dtype], None]:
        def launch(dtype: torch.dtype) -> None:
            T = 1024
            # The heads of a row side by side, as projections leave them.
            q, k = (empty(2, T, n, D, dtype=dtype).transpose(1, 2) for n in (32, 8))
            keys, lse = [k] * steps, empty(2, 32, T, dtype=torch.float32)
            plans = [plan_for(patterns.Causal().code, T, T)]
            ttt_attention.forward(q, keys, keys, q, lse, plans, None, 0.1)
            given = (q, q, keys, keys, q, lse, q, keys, keys)
            ttt_attention.backward(*given, plans, None, 0.1)

        return launch

    def matrix(N: int, K: int, form: str, dtype: torch.dtype) -> Weight:
        if form == "plain":
            return empty(N, K, dtype=dtype)
        if form == "int4":
            data = empty(N, 64 * -(-K // 128), dtype=torch.uint8)
            return QuantizedWeight("int4", data, empty(N, -(-K // 128), dtype=torch.bfloat16), K)
        kind = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}[form]
        return QuantizedWeight(form, empty(N, K, dtype=kind), empty(N, dtype=torch.float32), K)

    def linear(N: int, H: int, form: str, *, norm: bool = True) -> Callable[[torch.dtype], None]:
        def launch(dtype: torch.dtype) -> None:
            x, gamma = empty(N, H, dtype=dtype), empty(H, dtype=dtype)
            weight = matrix(H, H, form, dtype)
            qlinear.forward(x, weight, x, gamma if norm else None, 1e-6, x)

        return launch

    def swiglu(N: int, H: int, form: str) -> Callable[[torch.dtype], None]:
        def launch(dtype: torch.dtype) -> None:
            x, gamma = empty(N, H, dtype=dtype), empty(H, dtype=dtype)
            wide = matrix(14336, H, form, dtype)
            narrow = matrix(H, 14336, form, dtype)
            swiglu_linear.forward(x, wide, wide, narrow, x, gamma, 1e-6, x)

        return launch

    def topk(N: int, H: int, form: str) -> Callable[[torch.dtype], None]:
        def launch(dtype: torch.dtype) -> None:
            x, w = empty(N, H, dtype=dtype), matrix(32000, H, form, dtype)
            index, value = empty(N, 10, dtype=torch.int64), empty(N, 10, dtype=torch.float32)
            d2t = empty(32000, dtype=torch.int64)
            linear_topk.forward(x, w, index, value, d2t, value[:, 0])

        return launch

    def glue(H: int) -> Callable[[torch.dtype], None]:
        def launch(dtype: torch.dtype) -> None:
            x, gamma = empty(64, H, dtype=dtype), empty(H, dtype=dtype)
            token, table = empty(64, dtype=torch.int64), empty(128256, H, dtype=dtype)
            joined = empty(64, 2 * H, dtype=dtype)
            drafter_glue.forward(x, token, table, gamma, gamma, gamma, joined, x, 1e-6, True)

        return launch

    def draft(B: int, topk: int, form: str) -> Callable[[torch.dtype], None]:
        def launch(dtype: torch.dtype) -> None:
            H, inner, heads, groups, width, steps = 4096, 14336, 32, 8, 128, 3
            gain, table = empty(H, dtype=dtype), empty(4096, width // 2, dtype=torch.float32)
            shapes = {
                "q": (heads * width, 2 * H),
                "k": (groups * width, 2 * H),
                "v": (groups * width, 2 * H),
                "o": (H, heads * width),
                "gate": (inner, H),
                "up": (inner, H),
                "down": (H, inner),
                "head": (32000, H),
            }
            weights = DrafterWeights(
                embedding=empty(128256, H, dtype=dtype),
                **dict.fromkeys(("input_norm", "hidden_norm", "post_norm", "norm"), gain),
                **{name: matrix(*shape, form, dtype) for name, shape in shapes.items()},
                cos=table,
                sin=table,
                d2t=empty(32000, dtype=torch.int64),
                window=1024,
                sinks=4,
            )
            cache = empty(B, groups, 2048, width, dtype=dtype)
            ids, nodes = empty(B, dtype=torch.int64), steps * topk
            draft_chain.forward(
                weights,
                empty(B, H, dtype=dtype),
                ids,
                cache,
                cache,
                ids,
                steps,
                topk,
                nodes,
                *(empty(B, nodes, dtype=torch.int64) for _ in range(2)),
                empty(B, nodes, dtype=torch.float32),
                empty(B, 1 + (steps - 1) * topk, H, dtype=dtype),
            )

        return launch

    def saliency(T: int, C: int, width: int) -> Callable[[torch.dtype], None]:
        def launch(dtype: torch.dtype) -> None:
            x = empty(32, T, C, dtype=dtype)
            unit_saliency.forward(x, x, empty(32, C // width, dtype=torch.float32), width)

        return launch

    def loss(V: int, name: str, softcap: float) -> Callable[[torch.dtype], None]:
        def launch(dtype: torch.dtype) -> None:
            x, z = (empty(rows, V, dtype=torch.float32) for rows in (192, 64))
            total, best = (empty(64, dtype=kind) for kind in (torch.float32, torch.int64))
            ttt_loss.teacher(z, total, total, total, best, softcap)
            each, place = (empty(192, dtype=kind) for kind in (torch.float32, torch.int64))
            hit = empty(192, dtype=torch.bool)
            ttt_loss.rows(x, z, place, total, total, best, each, each, hit, each, name, 3.0, True)

        return launch

    def panels(N: int, panel: int, over: str) -> Callable[[torch.dtype], None]:
        def launch(dtype: torch.dtype) -> None:
            entries = empty(64, dtype=torch.int32)
            x, w = empty(N, 4096, dtype=dtype), empty(4096, 4096, dtype=dtype)
            short = empty(N, 64 * panel, dtype=dtype)
            given, out = (x, short) if over == "outputs" else (short, x)
            panel_linear.forward(given, w, entries, w[0], out, out, panel=panel, over=over)

        return launch

    def feed_forward(
        N: int, panel: int, activation: str, norm: str | None, *, gated: bool
    ) -> Callable[[torch.dtype], None]:
        def launch(dtype: torch.dtype) -> None:
            x, up = empty(N, 4096, dtype=dtype), empty(14336, 4096, dtype=dtype)
            down, vector = empty(4096, 14336, dtype=dtype), empty(14336, dtype=dtype)
            panel_ffn.forward(
                x,
                up,
                up if gated else None,
                down,
                vector,
                vector if gated else None,
                empty(224, dtype=torch.int32),
                empty(1, 14336, dtype=torch.float32),
                N,
                up[0],
                x,
                x,
                activation=activation,
                norm=norm,
                norm_weight=up[0],
                norm_bias=up[0],
                eps=1e-5,
                panel=panel,
            )

        return launch

    table: dict[str, Callable[[torch.dtype], None]] = {}
    for H in (128, 4096, 4097, 16384, 20480):
        table[f"H{H}"] = norm(H, "after_weight")
    table["before_weight-H4096"] = norm(4096, "before_weight")
    for H in (128, 4096, 4097, 8192, 16384):
        table[f"backward-H{H}"] = norm_backward(H, "after_weight")
    table["backward-before_weight-H4096"] = norm_backward(4096, "before_weight")
    for H in (4096, 4097, 16384, 20480):
        table[f"add-H{H}"] = add_norm(H)
    for N in ROW_COUNTS:
        for H in PRODUCT_COLUMNS:
            table[f"aux-N{N}-H{H}"] = aux(N, H)
            table[f"argmax-N{N}-H{H}"] = argmax(N, H)
    # Rows of the tile, then channels; 64 rows need more than 16 queries to a key-value head.
    for D in (64, 80, 128, 256):
        table[f"attention-N16-D{D}"] = attention(1, D)
        table[f"attention-N16-tree-D{D}"] = attention(4, D, tree=True)
    for D in (64, 128):
        table[f"attention-N64-D{D}"] = attention(16, D)
        table[f"attention-N64-tree-D{D}"] = attention(16, D, tree=True)
    # Masks of two spans, and of a loop over many.
    for D in (128, 256):
        table[f"gqa-D{D}"] = sparse(D, patterns.Band(128, sinks=4))
    table["gqa-spans-D128"] = sparse(128, patterns.Modality.of_lengths((256,) * 4, window=64))
    table["gqa-top_u-D128"] = sparse(128, patterns.TopU())
    for D in (64, 128, 256):
        table[f"ttt-S4-D{D}"] = unrolled(4, D)
    for form in ("plain", "int8", "int4", "fp8"):
        for N in ROW_COUNTS:
            table[f"qlinear-N{N}-{form}-H4096"] = linear(N, 4096, form)
            table[f"qlinear-N{N}-{form}-bare"] = linear(N, 4096, form, norm=False)
        for N in (1, 64):
            table[f"swiglu-N{N}-{form}-H4096"] = swiglu(N, 4096, form)
        # Steps of a draft, whose attention has tiles of 16 rows.
        for B in (1, 64):
            table[f"draft-N16-B{B}-{form}"] = draft(B, 1, form)
    table["draft-N16-tree10"] = draft(1, 10, "plain")
    for N in (1, 64):
        table[f"topk-N{N}-H4096"] = topk(N, 4096, "plain")
    for H in (4096, 20480):
        table[f"glue-H{H}"] = glue(H)
    # Of heads and of channels.
    table["saliency-T512-W64"] = saliency(512, 4096, 64)
    table["saliency-T512-W1"] = saliency(512, 4096, 1)
    for name in LOSSES:
        table[f"loss-{name}-V32000"] = loss(32000, name, 30.0)
    table["loss-kl-V1024"] = loss(1024, "kl", 0.0)
    # The feed-forward blocks take every option, and their second launch is that of listed inputs.
    for N in (1, 64):
        table[f"panel-outputs-N{N}"] = panels(N, 16, "outputs")
        table[f"panel-ffn-N{N}"] = feed_forward(N, 16, "silu", "layer_norm", gated=True)
    table["panel-inputs-N64-P32"] = panels(64, 32, "inputs")
    table["panel-inputs-N1000-P24"] = panels(1000, 24, "inputs")
    table["panel-ffn-N1000-gelu"] = feed_forward(1000, 16, "gelu", None, gated=False)
    table["aux-N1-states8-H4096"] = aux(1, 4096, states=8)
    table["greedy-tree60"] = greedy(60)
    table["sample-chain5"] = sample(5, "chain")
    table["sample-tree60"] = sample(60, "tree")
    table["sample-ratio5"] = sample(5, "ratio")
    return table


def selected(case: str, dtype: str, target: str) -> bool:
    """Whether the grid holds this combination (see the top of the file for why)."""
    usual = case in (*USUAL_NORMS, *USUAL_ATTENTION) or ("-N" in case and case.endswith("H4096"))
    usual |= case.startswith(("greedy-", "sample-"))
    usual |= case in USUAL_PANELS or case in ("loss-kl-V32000", "loss-lk_lambda-V32000")
    thorough = target in ("sm_90", "gfx942")
    if "fp8" in case and target == "sm_80":
        # Without an fp8 type its bits are widened, which spills a few registers; it has to run only.
        return False
    if dtype == "bfloat16":
        return thorough or usual
    if case.startswith("loss-"):
        return False
    if dtype == "float32" and case.startswith(("gqa-", "ttt-")):
        # The widest heads are the hardest.
        return thorough and case == "gqa-D256"
    if dtype == "float32" and case.startswith(("saliency-", "panel-")):
        # The block with every option takes the most registers.
        return thorough and case == "panel-ffn-N64"
    if dtype == "float32":
        # Rows of 32 bits on weights of 8 are those of a draft.
        return thorough and usual and not any(form in case for form in ("int8", "fp8"))
    return target == "sm_80" and case in ("aux-N16-H4096", "argmax-N1000-H4096")


def compiled(target: str, launch: Callable[[], None]) -> Iterator[Any]:
    """Every kernel that `launch` would start on `target`, compiled and not started."""
    import torch
    from triton.backends.compiler import GPUTarget
    from triton.runtime import JITFunction, driver

    class NamesTarget:
        def get_current_target(self) -> GPUTarget:
            if target.startswith("gfx"):
                return GPUTarget("hip", target, 64)
            return GPUTarget("cuda", int(target.removeprefix("sm_")), 32)

        def get_current_device(self) -> int:
            # Compiled kernels are kept per device number: one number, one target.
            return TARGETS.index(target)

        def get_current_stream(self, device: int) -> int:
            return 0

    kernels = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernels.append(run(self, *args, grid=grid, warmup=True, **options))
        return kernels[-1]

    driver.set_active(NamesTarget())
    hip = torch.version.hip
    torch.version.hip = "aot" if target.startswith("gfx") else None
    JITFunction.run = compile_only
    try:
        launch()
    finally:
        JITFunction.run = run
        torch.version.hip = hip
    yield from kernels


def report(kernel: Any, target: str) -> dict[str, int]:
    """Registers, spills, shared memory and opcode counts of a compiled kernel."""
    import triton

    # What is read depends on this file as much as on the kernel.
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    kept = Path(triton.knobs.cache.dir) / f"leeboard-aot-{version}-{kernel.hash}.json"
    if kept.exists():
        return json.loads(kept.read_text())  # type: ignore[no-any-return]
    if target.startswith("gfx"):
        code = kernel.asm["amdgcn"]

        def field(name: str) -> int:
            match = re.search(rf"\.{name}:\s*(\d+)", code)
            if match is None:
                raise ValueError(f"no {name} in the assembly of {kernel.name}")
            return int(match[1])

        scalars = field("sgpr_spill_count") - SCALAR_LANES.get(kernel.name, 0)
        spills = ("vgpr_spill_count", "private_segment_fixed_size")
        spilled = max(0, scalars) + sum(field(name) for name in spills)
        usage = {"registers": field("vgpr_count"), "spilled": spilled}
    else:
        usage, code = inspect_cubin(kernel.asm["cubin"])
    found = {
        **usage,
        "shared": kernel.metadata.shared,
        "warps": kernel.metadata.num_warps,
        "tensor_ops": len(re.findall(TENSOR_OPCODE[target], code)),
        "warp_group_ops": len(re.findall(WARP_GROUP_OPCODE.get(target, "(?!)"), code)),
        "wide_loads": len(re.findall(WIDE_LOAD["gfx" if target.startswith("gfx") else "sm"], code)),
    }
    partial = kept.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(found))
    os.replace(partial, kept)
    return found


def inspect_cubin(cubin: bytes) -> tuple[dict[str, int], str]:
    """Registers and spilled bytes a thread, and the SASS, by the tools that ship with Triton."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [tools / "cuobjdump", "--dump-resource-usage", file.name],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        sass = subprocess.run(
            [tools / "nvdisasm", "-c", file.name], check=True, capture_output=True, text=True
        ).stdout
    numbers = {name: int(n) for name, n in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    spilled = numbers["STACK"] + numbers["LOCAL"]
    return {"registers": numbers["REG"], "spilled": spilled}, sass


def faulty() -> dict[str, Callable[[Any], None]]:
    """Launches that must be found at fault: the harness is tested with them."""
    import torch
    import triton
    import triton.language as tl

    @triton.jit
    def _spilling_kernel(x, out, BLOCK: tl.constexpr):
        at = tl.arange(0, BLOCK)
        values = tl.load(x + at)
        tl.store(out + at, values / tl.sum(values, 0))

    @triton.jit
    def _oversized_dot_kernel(x, out, M: tl.constexpr, K: tl.constexpr):
        rows, inner = tl.arange(0, M), tl.arange(0, K)
        a = tl.load(x + rows[:, None] * K + inner[None, :])
        b = tl.load(x + inner[:, None] * M + rows[None, :])
        product = tl.dot(a, b, input_precision="tf32")
        tl.store(out + rows[:, None] * M + rows[None, :], product)

    @triton.jit
    def _row_scale_kernel(x, out, stride, BLOCK: tl.constexpr):
        at = tl.arange(0, BLOCK) * stride
        tl.store(out + tl.arange(0, BLOCK), tl.load(x + at))

    @triton.jit
    def _plain_dot_kernel(x, out, BLOCK: tl.constexpr):
        at = tl.arange(0, BLOCK)
        tl.store(out + at, tl.load(x + at))

    x = torch.empty(1 << 20, dtype=torch.float32, device="meta")
    return {
        "spills": lambda dtype: _spilling_kernel[(1,)](x, x, BLOCK=32768, num_warps=1, **FUSED),
        "shared": lambda dtype: _oversized_dot_kernel[(1,)](
            x, x, M=128, K=256, num_warps=8, **FUSED
        ),
        "128-bit": lambda dtype: _row_scale_kernel[(1,)](x, x, 3, BLOCK=256, **FUSED),
        "tensor-core": lambda dtype: _plain_dot_kernel[(1,)](x, x, BLOCK=256, **FUSED),
    }


def records(targets: list[str]) -> Iterator[Record]:
    """Compiles and reports the grid for some targets, and what is faulty for one per vendor."""
    import torch

    for target in targets:
        work = [
            (case, dtype, launch)
            for case, launch in cases().items()
            for dtype in DTYPES
            if selected(case, dtype, target)
        ]
        if target in FAULTY_TARGETS:
            work += [(case, "bfloat16", launch) for case, launch in faulty().items()]
        for case, dtype, launch in work:
            storage = getattr(torch, dtype)
            for kernel in compiled(target, lambda launch=launch, s=storage: launch(s)):
                usage = report(kernel, target)
                yield Record(case=case, dtype=dtype, target=target, kernel=kernel.name, **usage)


if __name__ == "__main__":
    json.dump([asdict(record) for record in records(sys.argv[1:])], sys.stdout)
