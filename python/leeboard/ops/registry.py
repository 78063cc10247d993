"""The ops of leeboard. Contract tests, benchmarks and `leeboard doctor` go through this table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from leeboard import reference
from leeboard.ops._check import KERNEL_DTYPES
from leeboard.ops._state import BACKENDS, Backend
from leeboard.ops.add_rms_norm import add_rms_norm
from leeboard.ops.aux_norm_linear import aux_norm_linear
from leeboard.ops.decode_attention import decode_attention
from leeboard.ops.draft_chain import draft_chain
from leeboard.ops.drafter_glue import drafter_glue
from leeboard.ops.linear_argmax import linear_argmax
from leeboard.ops.linear_topk import linear_topk
from leeboard.ops.panel_ffn import panel_ffn
from leeboard.ops.panel_linear import panel_linear
from leeboard.ops.qlinear import qlinear
from leeboard.ops.rms_norm import rms_norm
from leeboard.ops.sparse_gqa import sparse_gqa
from leeboard.ops.swiglu_linear import swiglu_linear
from leeboard.ops.ttt_attention import ttt_attention
from leeboard.ops.ttt_loss import ttt_loss
from leeboard.ops.unit_saliency import unit_saliency
from leeboard.ops.verify_greedy import verify_greedy
from leeboard.ops.verify_sample import verify_sample


@dataclass(frozen=True)
class OpSpec:
    """One op.

    Attributes:
        name: The name of its six rooms.
        function: The public function.
        reference: What it computes.
        differentiable: Whether it has a gradient.
        summary: A line for people.
        dtypes: What its kernels take.
        backends: Where it runs.
        rowwise: Whether its inputs are rows [..., H] with any leading dimensions, which the outputs
            share, and a row's result depends on that row alone.
    """

    name: str
    function: Callable[..., Any]
    reference: Callable[..., Any]
    differentiable: bool
    summary: str
    dtypes: tuple[torch.dtype, ...] = KERNEL_DTYPES
    backends: tuple[Backend, ...] = BACKENDS
    rowwise: bool = True


def _table(*specs: OpSpec) -> dict[str, OpSpec]:
    return {spec.name: spec for spec in specs}


OPS: dict[str, OpSpec] = _table(
    OpSpec(
        "rms_norm",
        rms_norm,
        reference.rms_norm,
        differentiable=True,
        summary="RMSNorm over the last dimension",
    ),
    OpSpec(
        "add_rms_norm",
        add_rms_norm,
        reference.add_rms_norm,
        differentiable=True,
        summary="residual addition and RMSNorm in one pass",
    ),
    OpSpec(
        "aux_norm_linear",
        aux_norm_linear,
        reference.aux_norm_linear,
        differentiable=True,
        summary="RMSNorm of each captured target state and their projection",
    ),
    OpSpec(
        "decode_attention",
        decode_attention,
        reference.decode_attention,
        differentiable=False,
        summary="grouped-query attention of new tokens over a key-value cache",
        rowwise=False,
    ),
    OpSpec(
        "draft_chain",
        draft_chain,
        reference.draft_chain,
        differentiable=False,
        summary="a whole chain or tree of drafter steps",
        rowwise=False,
    ),
    OpSpec(
        "drafter_glue",
        drafter_glue,
        reference.drafter_glue,
        differentiable=False,
        summary="norms, embedding and concatenation between two steps of a drafter",
    ),
    OpSpec(
        "linear_argmax",
        linear_argmax,
        reference.linear_argmax,
        differentiable=False,
        summary="greedy token of a head, without its logits",
    ),
    OpSpec(
        "linear_topk",
        linear_topk,
        reference.linear_topk,
        differentiable=False,
        summary="most likely tokens of a head, without its logits",
    ),
    OpSpec(
        "panel_ffn",
        panel_ffn,
        reference.panel_ffn,
        differentiable=True,
        summary="feed-forward block over a list of panels of its channels",
        rowwise=False,
    ),
    OpSpec(
        "panel_linear",
        panel_linear,
        reference.panel_linear,
        differentiable=True,
        summary="linear layer over a list of panels of its weight",
        rowwise=False,
    ),
    OpSpec(
        "qlinear",
        qlinear,
        reference.qlinear,
        differentiable=False,
        summary="linear layer on weights in any format, with norm and residual",
    ),
    OpSpec(
        "sparse_gqa",
        sparse_gqa,
        reference.sparse_gqa,
        differentiable=True,
        summary="grouped-query attention under a structured pattern, whose time follows it",
        rowwise=False,
    ),
    OpSpec(
        "swiglu_linear",
        swiglu_linear,
        reference.swiglu_linear,
        differentiable=False,
        summary="gated feed-forward block on weights in any format",
    ),
    OpSpec(
        "ttt_attention",
        ttt_attention,
        reference.ttt_attention,
        differentiable=True,
        summary="attention of a drafter's training unroll, over step-0 keys and the row's own",
        rowwise=False,
    ),
    OpSpec(
        "ttt_loss",
        ttt_loss,
        reference.ttt_loss,
        differentiable=True,
        summary="loss of a drafter's steps against its target, without the logits",
        rowwise=False,
    ),
    OpSpec(
        "unit_saliency",
        unit_saliency,
        reference.unit_saliency,
        differentiable=False,
        summary="first-order saliency of heads and channels, for each sample",
        rowwise=False,
    ),
    OpSpec(
        "verify_greedy",
        verify_greedy,
        reference.verify_greedy,
        differentiable=False,
        summary="accepted part of a draft under greedy decoding",
        dtypes=(torch.int64,),
        rowwise=False,
    ),
    OpSpec(
        "verify_sample",
        verify_sample,
        reference.verify_sample,
        differentiable=False,
        summary="accepted part of a draft under sampling, lossless",
        rowwise=False,
    ),
)
