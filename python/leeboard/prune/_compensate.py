"""What missing units gave on average, as an addition to a reader's bias."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from leeboard.prune.plan import Plan
from leeboard.prune.units import Units


class Readers(NamedTuple):
    """The readers of a model's sublayers, and the versions of their weights and biases."""

    modules: tuple[nn.Module, ...]
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    versions: tuple[tuple[int, int], ...]

    def unchanged(self) -> bool:
        """Whether weights and biases are the same, and nobody wrote to them."""
        return all(
            m._parameters.get("weight") is w
            and m._parameters.get("bias") is b
            and _versions(w, b) == v
            for m, w, b, v in zip(*self, strict=True)
        )


def readers(units: Units, model: nn.Module | None) -> Readers:
    """The readers of `units` in their model, in the order of the sublayers.

    Raises:
        ValueError: Without a model, or with one that does not have these readers.
    """
    if model is None:
        raise ValueError("model: compensate=True reads weights; got None, expected the model")
    modules = []
    for s in units:
        try:
            module = model.get_submodule(s.reader)
        except AttributeError:
            raise ValueError(f"model: it has no module {s.reader!r}; got another model") from None
        if not isinstance(module, nn.Linear):
            raise ValueError(  # noqa: TRY004 (the model is the argument)
                f"model: {s.reader} is a {type(module).__name__}; only the biases of a "
                "torch.nn.Linear are compensated"
            )
        if module.weight.shape != (s.out_features, s.columns):
            raise ValueError(
                f"model: {s.reader} has a weight of shape {list(module.weight.shape)}, expected "
                f"[{s.out_features}, {s.columns}]"
            )
        modules.append(module)
    weights = tuple(module.weight for module in modules)
    own = tuple(module._parameters["bias"] for module in modules)
    return Readers(tuple(modules), weights, own, tuple(map(_versions, weights, own)))


def _versions(weight: Tensor, bias: Tensor | None) -> tuple[int, int]:
    return _version(weight), -1 if bias is None else _version(bias)


def _version(t: Tensor) -> int:
    return -1 if t.is_inference() else t._version


def biases(
    plan: Plan, units: Units, used: Readers, means: Mapping[str, Tensor] | None
) -> dict[str, tuple[float, ...]]:
    """W[:, missing columns] @ mean[missing columns] of each sublayer that misses some.

    One that is dropped whole is there as its bias alone, so the reader's own is in it.

    Raises:
        ValueError: If the ranking knows no means, or not of the right sizes.
    """
    if means is None:
        raise ValueError(
            f"compensate: the ranking {plan.ranking!r} knows no means of the readers' inputs"
        )
    found = {}
    for s, module, weight in zip(units, used.modules, used.weights, strict=True):
        kept = plan.keep.get(s.name)
        if kept is None or len(kept) == s.units:
            continue
        mean = means.get(s.name)
        if mean is None or mean.shape != (s.columns,):
            got = "none" if mean is None else f"shape {list(mean.shape)}"
            raise ValueError(f"means: got {got} for {s.name}, expected [{s.columns}]")
        missing = torch.ones(s.units, dtype=torch.bool)
        missing[list(kept)] = False
        columns = missing.repeat_interleave(s.width)
        values = mean.detach().to("cpu", torch.float64)[columns]
        rows = weight.detach().cpu()[:, columns].to(torch.float64)
        added = rows @ values
        own = module._parameters.get("bias")
        if not kept and own is not None:
            added = added + own.detach().cpu().to(torch.float64)
        found[s.name] = tuple(added.to(torch.float32).tolist())
    return found
