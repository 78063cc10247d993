"""How many floating-point operations an op takes, by name.

Products (matrix multiplication, attention, convolution) follow torch.utils.flop_counter: a
multiply-add is two, a bias is nothing, attention computes the whole square even if it is causal.
Everything else is nominal: an element of an elementwise op one, a softmax five, and so on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.utils.flop_counter import flop_registry

# What an op was called with by the names of its schema, and what it returned.
Arguments = Mapping[str, Any]
Count = Callable[[Arguments, Any], int]

# An element of the first tensor.
PER_ELEMENT: dict[str, int] = {
    "_softmax": 5,
    "_log_softmax": 5,
    "_safe_softmax": 5,
    "_softmax_backward_data": 4,
    "_log_softmax_backward_data": 4,
    "native_layer_norm": 7,
    "native_layer_norm_backward": 14,
    "native_group_norm": 7,
    "native_group_norm_backward": 14,
    "native_batch_norm": 7,
    "_native_batch_norm_legit": 7,
    "_batch_norm_with_update": 7,
    "native_batch_norm_backward": 14,
    "batch_norm_backward": 14,
    "_fused_rms_norm": 4,
    "_fused_rms_norm_backward": 8,
    "native_dropout": 2,
    "native_dropout_backward": 2,
    "nll_loss_forward": 0,
    "nll_loss_backward": 0,
    "mse_loss": 3,
    "cumsum": 1,
    "tril": 0,
    "triu": 0,
    "_fused_adam_": 12,
    "_fused_adamw_": 14,
    "_fused_sgd_": 4,
    "rms_norm": 4,
    "rms_norm_backward": 8,
    "add_rms_norm": 5,
    "drafter_glue": 8,
    "ttt_loss_backward": 1,
    "unit_saliency": 2,
    "verify_greedy": 0,
    "verify_sample": 2,
}

# Nothing is computed: elements are made or moved.
MOVES = frozenset(
    (
        *("clone", "copy_", "_to_copy", "_copy_from", "contiguous", "cat", "stack", "repeat"),
        *("constant_pad_nd", "roll", "flip", "slice_backward", "select_backward", "index_select"),
        *("index", "gather", "embedding", "take", "index_copy_", "index_copy", "_pin_memory"),
        *("slice_scatter", "select_scatter", "scatter", "scatter_", "index_put_", "index_put"),
        *("_index_put_impl_", "fill_", "fill", "zero_", "zeros", "zeros_like", "ones", "ones_like"),
        *("full", "full_like", "new_zeros", "new_ones", "new_full", "arange", "eye", "linspace"),
        *("uniform_", "normal_", "random_", "bernoulli_", "exponential_", "rand", "randn"),
        *("rand_like", "randn_like", "randint", "randint_like", "randperm", "masked_fill_"),
        *("_foreach_copy_", "_foreach_zero_", "split_with_sizes_copy", "chunk_cat", "_chunk_cat"),
        *("all_gather_copy_in", "where", "masked_fill", "view_copy", "scalar_tensor", "lift"),
        *(
            "permute_copy",
            "expand_copy",
            "unbind_copy",
            "split_copy",
            "index_fill_",
            "tril_indices",
        ),
        *("triu_indices", "unfold_backward", "as_strided_scatter", "diagonal_backward", "isin"),
        *("_reshape_copy", "reflection_pad1d", "reflection_pad2d", "replication_pad2d", "complex"),
        *("channel_shuffle", "native_channel_shuffle", "pixel_shuffle", "pixel_unshuffle"),
        *("multinomial", "nonzero", "masked_select", "bernoulli", "rot90", "searchsorted"),
        *("bucketize", "sort", "topk", "argsort", "kthvalue", "one_hot", "equal", "to_mkldnn"),
    )
)


def registered(func: Any) -> Count | None:
    """The formula of torch.utils.flop_counter for an op, if it has one."""
    formula = flop_registry.get(func.overloadpacket)
    if formula is None:
        return None
    positional = sum(not argument.kwarg_only for argument in func._schema.arguments)

    def count(arguments: Arguments, out: Any) -> int:
        return int(formula(*list(arguments.values())[:positional], out_val=out))

    return count


def attention(arguments: Arguments, out: Any) -> int:
    """Scores and their product with the values: q [B, H, T, D], k [B, G, S, D], v [B, G, S, E]."""
    query, key, value = arguments["query"], arguments["key"], arguments["value"]
    return int(2 * _pairs(query, key) * (query.shape[-1] + value.shape[-1]))


def attention_backward(arguments: Arguments, out: Any) -> int:
    """Scores again, then the gradients of values, probabilities, queries and keys."""
    query, key, value = arguments["query"], arguments["key"], arguments["value"]
    return int(2 * _pairs(query, key) * (3 * query.shape[-1] + 2 * value.shape[-1]))


def _pairs(query: Tensor, key: Tensor) -> int:
    # Heads of the query: groups of them may share a key.
    return math.prod(query.shape[:-1]) * int(key.shape[-2])


def _matrix_vector(arguments: Arguments, out: Any) -> int:
    return 2 * int(arguments.get("mat", arguments["self"]).numel())


def _dot(arguments: Arguments, out: Any) -> int:
    return 2 * int(arguments["self"].numel())


def _product(arguments: Arguments, out: Any) -> int:
    """Of a first argument [..., K], or x, and a result [..., N]."""
    x: Tensor = arguments["x"] if "x" in arguments else next(iter(arguments.values()))
    return 2 * x.numel() * int(first(out).shape[-1])


def _int_mm(arguments: Arguments, out: Any) -> int:
    return 2 * int(arguments["self"].numel()) * int(arguments["mat2"].shape[-1])


def _aux_norm_linear(arguments: Arguments, out: Any) -> int:
    rows = out.numel() // out.shape[-1]
    norm = 4 * sum(hidden.numel() for hidden in arguments["hiddens"])
    return int(2 * rows * int(arguments["weight"].numel()) + norm)


def _linear_head(arguments: Arguments, out: Any) -> int:
    return int(2 * arguments["x"].numel() * int(arguments["weight"][0].shape[0]))


def _swiglu_linear(arguments: Arguments, out: Any) -> int:
    x, inner = arguments["x"], int(arguments["weights"][0].shape[0])
    return int(2 * inner * (2 * x.numel() + out.numel()))


def channels(arguments: Arguments) -> int:
    """Hidden channels of panel_ffn that are computed."""
    every, panels = int(arguments["up"].shape[0]), arguments["panels"]
    return every if panels is None else min(every, len(panels) * arguments["panel"])


def _panel_ffn(arguments: Arguments, out: Any) -> int:
    first_products = 1 if arguments["gate"] is None else 2
    return int(2 * channels(arguments) * (first_products * arguments["x"].numel() + out.numel()))


def _panel_ffn_backward(arguments: Arguments, out: Any) -> int:
    """The first products again, then two gradients of each product."""
    x, grad = arguments["x"].numel(), arguments["grad"].numel()
    first_products = 1 if arguments["gate"] is None else 2
    return int(2 * channels(arguments) * (3 * first_products * x + 2 * grad))


def _panel_linear_backward(arguments: Arguments, out: Any) -> int:
    wanted = sum(map(bool, arguments["needed"][:2]))
    return int(2 * wanted * arguments["x"].numel() * int(arguments["grad"].shape[-1]))


def _decode_attention(arguments: Arguments, out: Any) -> int:
    """As if the whole cache were filled."""
    query, cache = arguments["q"], arguments["k_cache"]
    return 4 * int(query.numel()) * int(cache.shape[-2])


def _ttt_attention(arguments: Arguments, out: Any) -> int:
    """Two products of every pair in sight, as if each sequence were one document."""
    return 4 * _unrolled(arguments["q"], len(arguments["k"]) - 1)


def _ttt_attention_backward(arguments: Arguments, out: Any) -> int:
    """Five of them."""
    own = arguments["own_k"]
    return 10 * _unrolled(arguments["q"], 0 if own is None else int(own.shape[0]))


def _unrolled(q: Tensor, own: int) -> int:
    """Pairs of a query and a key, times channels."""
    rows = int(q.shape[2])
    return int(q.shape[:2].numel() * q.shape[3]) * (rows * (rows + 1) // 2 + rows * own)


def _ttt_loss(arguments: Arguments, out: Any) -> int:
    """As if no row were skipped."""
    products = 1 + arguments["grad_hidden"] + arguments["grad_weight"]
    states = arguments["teacher"].numel() + products * arguments["hidden"].numel()
    return int(2 * arguments["weight"].shape[0] * states)


_FUSED_ATTENTION = tuple(
    f"aten::_scaled_dot_product_{kind}"
    for kind in (
        "flash_attention",
        "efficient_attention",
        "cudnn_attention",
        "flash_attention_for_cpu",
        "fused_attention_overrideable",
    )
)

FORMULAS: dict[str, Count] = {
    **dict.fromkeys(_FUSED_ATTENTION, attention),
    **{f"{name}_backward": attention_backward for name in _FUSED_ATTENTION},
    "aten::mv": _dot,
    "aten::addmv": _matrix_vector,
    "aten::dot": _dot,
    "aten::vdot": _dot,
    "aten::_int_mm": _int_mm,
    "aten::_addmm_activation": lambda a, out: 2 * a["mat1"].numel() * int(a["mat2"].shape[-1]),
    "aten::linear": _product,
    "mkldnn::_linear_pointwise": _product,
    "leeboard::qlinear": _product,
    "leeboard::panel_linear": _product,
    "leeboard::panel_linear_backward": _panel_linear_backward,
    "leeboard::aux_norm_linear": _aux_norm_linear,
    "leeboard::linear_argmax": _linear_head,
    "leeboard::linear_topk": _linear_head,
    "leeboard::swiglu_linear": _swiglu_linear,
    "leeboard::panel_ffn": _panel_ffn,
    "leeboard::panel_ffn_backward": _panel_ffn_backward,
    "leeboard::ttt_attention": _ttt_attention,
    "leeboard::ttt_attention_backward": _ttt_attention_backward,
    "leeboard::ttt_loss": _ttt_loss,
    "leeboard::decode_attention": _decode_attention,
    "leeboard::decode_attention_": _decode_attention,
}


def first(value: Any) -> Tensor:
    """The first tensor of what an op returned."""
    while not isinstance(value, Tensor):
        value = next(item for item in value if isinstance(item, Tensor | list | tuple))
    return value
