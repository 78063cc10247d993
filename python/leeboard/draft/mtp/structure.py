"""The modules of MTP heads, under the names that each convention's checkpoints have."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, Final

import torch
from torch import nn

from leeboard.draft.mtp.config import MTPConfig
from leeboard.draft.mtp.memory import use_memory


@dataclasses.dataclass(frozen=True)
class Names:
    """What a convention calls the parts of a head.

    Attributes:
        embed_norm: Norm of the token's embedding.
        hidden_norm: Norm of the state.
        project: [2H] to [H], over both.
        norm: The final norm.
    """

    embed_norm: str
    hidden_norm: str
    project: str
    norm: str


NAMES: Final = {
    "deepseek_v3": Names("enorm", "hnorm", "eh_proj", "shared_head.norm"),
    "qwen3_next": Names("pre_fc_norm_embedding", "pre_fc_norm_hidden", "fc", "norm"),
    "mimo": Names("token_layernorm", "hidden_layernorm", "input_proj", "final_layernorm"),
}


@dataclasses.dataclass(frozen=True)
class Head:
    """The modules of one head, wherever they are registered."""

    embed_norm: nn.Module
    hidden_norm: nn.Module
    project: nn.Module
    block: nn.Module
    norm: nn.Module


@dataclasses.dataclass(frozen=True)
class Structure:
    """All modules of an `MTPHead`.

    Attributes:
        roots: To register, by name.
        heads: One per head; they may share modules.
        embed: The target's embedding [V, H].
        head: Its output matrix [V, H].
        rotary: The target's rotary embedding, on the CPU and in float32.
        float32: Ends of names of tensors that stay in float32 whatever the dtype of the others.
    """

    roots: dict[str, nn.Module]
    heads: list[Head]
    embed: nn.Embedding
    head: nn.Linear
    rotary: nn.Module
    float32: tuple[str, ...]


def roots(config: MTPConfig, head: int) -> str:
    """What the names of a head's own tensors begin with."""
    return {
        "deepseek_v3": f"model.layers.{config.num_hidden_layers + head}.",
        "qwen3_next": f"mtp.layers.{head}.",
        "mimo": f"model.mtp_layers.{head}.",
    }[config.convention]


def shared_names(config: MTPConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names in the state_dict of the target's embedding, and of its output matrix."""
    if config.convention == "deepseek_v3":
        own = [roots(config, m) for m in range(config.heads)]
        embeds = tuple(f"{root}embed_tokens.weight" for root in own)
        return embeds, tuple(f"{root}shared_head.head.weight" for root in own)
    return ("model.embed_tokens.weight",), ("lm_head.weight",)


def build(config: MTPConfig) -> Structure:
    """Modules with fresh weights, drawn as the target's family draws its own.

    Raises:
        ImportError: transformers is not installed.
        ValueError: There is no such model, or its layers are of a kind that heads cannot have.
    """
    layer_config = config.layer_config()
    from transformers import AutoModel

    try:
        base: Any = AutoModel.from_config(layer_config)
    except Exception as error:
        raise ValueError(
            f"block: cannot make the decoder layer of {config.block['model_type']!r}: {error}"
        ) from error
    for name in ("layers", "norm", "rotary_emb"):
        if not hasattr(base, name):
            raise ValueError(
                f"block: {type(base).__name__} has no {name}, expected a decoder-only model with "
                "rotary embeddings"
            )
    with torch.device("cpu"):
        rotary = type(base.rotary_emb)(config=layer_config)
    width, names = config.hidden_size, NAMES[config.convention]
    embed = nn.Embedding(config.vocab_size, width)
    head = nn.Linear(width, config.vocab_size, bias=False)
    spread = float(config.block.get("initializer_range") or 0.02)
    with torch.no_grad():
        embed.weight.normal_(std=spread)
        head.weight.normal_(std=spread)

    def parts(owner: nn.Module, block: nn.Module) -> Head:
        project = nn.Linear(2 * width, width, bias=False)
        with torch.no_grad():
            project.weight.normal_(std=spread)
        found = Head(
            embed_norm=copy.deepcopy(base.norm),
            hidden_norm=copy.deepcopy(base.norm),
            project=project,
            block=block,
            norm=copy.deepcopy(base.norm),
        )
        for part, name in dataclasses.asdict(names).items():
            _register(owner, name, getattr(found, part))
        return found

    blocks = list(base.layers)
    for block in blocks:
        if not hasattr(block, "self_attn"):
            raise ValueError(
                f"block: {type(block).__name__} has no self_attn, expected a layer of attention"
            )
        use_memory(block)
    heads: list[Head] = []
    tree = nn.Module()
    if config.convention == "qwen3_next":
        first = parts(_register(tree, "mtp", nn.Module()), blocks[0])
        heads = [dataclasses.replace(first, block=block) for block in blocks]
        _register(tree, "mtp.layers", nn.ModuleList(blocks))
    else:
        for m, block in enumerate(blocks):
            heads.append(parts(block, block))
            _register(tree, roots(config, m)[:-1], block)
    embeds, outputs = shared_names(config)
    for name in embeds:
        _register(tree, name.removesuffix(".weight"), embed)
    for name in outputs:
        _register(tree, name.removesuffix(".weight"), head)
    return Structure(
        roots=dict(tree.named_children()),
        heads=heads,
        embed=embed,
        head=head,
        rotary=rotary,
        float32=_kept_in_float32(base),
    )


def _register(owner: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """Give `owner` a module under a dotted path; the modules between are made."""
    *between, last = path.split(".")
    for name in between:
        if not hasattr(owner, name):
            owner.add_module(name, nn.Module())
        owner = getattr(owner, name)
    owner.add_module(last, module)
    return module


def _kept_in_float32(base: Any) -> tuple[str, ...]:
    # What balances a router's load; older versions of transformers do not say so.
    found = {"e_score_correction_bias"}
    for name in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"):
        found.update(getattr(base, name, None) or ())
    return tuple(f".{name}" for name in sorted(found))
