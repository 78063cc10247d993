"""ONNX files of models under a plan."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leeboard._files import replacing
from leeboard.prune.compact import compact
from leeboard.prune.plan import Plan
from leeboard.prune.units import Units

# A file of protocol buffers holds 2 GB.
_MOST_BYTES = 1_900_000_000

Inputs = Tensor | Mapping[str, Tensor] | Sequence[Tensor]


def export_onnx(
    model: nn.Module,
    plan: Plan,
    path: str | os.PathLike[str],
    inputs: Inputs,
    *,
    dynamic_batch: bool = False,
    units: Units | None = None,
) -> Path:
    """Writes the compact model of a plan as an ONNX file, for inference.

    The graph holds plain operators only. Its inputs bear the names of the modalities, of the
    keyword arguments, or "input" (or "input_0" and so on); its outputs the names of the fields of
    what the model returns, "output", or "output_0" and so on, with a "_" more where an input is
    called so. Tensors only: caches are left out. Needs the extra `leeboard[onnx]`.

    Args:
        model: The model. It stays as it is; the graph is that of its evaluation mode.
        plan: Of the model's units.
        path: The file. Whoever reads it sees the old one or the new one, never half of one.
        inputs: One tensor; several; or by name: of the modalities (those that are not present in
            the plan are not read) or, for a model without modalities, keyword arguments.
        dynamic_batch: Whether the first dimension of every input may be any; else sizes are fixed.
        units: As `leeboard.prune.units` gave them, where blocks were declared by hand.

    Returns:
        The path.

    Raises:
        ImportError: Without onnx and onnxscript.
        TypeError: If `inputs` are no tensors.
        ValueError: If the plan does not fit, a present modality has no input, or the model is too
            large for one file.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"export_onnx needs {error.name}; pip install 'leeboard[onnx]'"
        ) from error
    target = Path(path)
    small = compact(model, plan, units=units).eval()
    size = sum(t.numel() * t.element_size() for t in [*small.parameters(), *small.buffers()])
    if size > _MOST_BYTES:
        raise ValueError(
            f"model: its weights have {size:,} bytes under this plan, one file holds "
            f"{_MOST_BYTES:,}; export compact(model, plan) with external data"
        )
    config: Any = getattr(small, "config", None)
    if getattr(config, "use_cache", False):
        config.use_cache = False
    names, tensors, by_name = _named(inputs, plan, getattr(model, "modalities", None))
    whole = _Whole(
        small, names if by_name else None, getattr(model, "modalities", None) is not None
    )
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = _tensors(whole.run(*tensors))
        if not out:
            raise TypeError("model: it returns no tensors")
        batch = torch.export.Dim("batch") if dynamic_batch else None
        program = torch.onnx.export(
            whole,
            tuple(tensors),
            dynamo=True,
            verbose=False,
            input_names=names,
            output_names=[_beside(name, names) for name in out],
            dynamic_shapes=None if batch is None else {"tensors": ({0: batch},) * len(tensors)},
        )
        assert program is not None
        _name_once(program.model.graph)
        with replacing(target) as beside:
            program.save(str(beside))
    return target


def _name_once(graph: Any) -> None:
    """Other names for inner values that are called as an input or output is: "linear", "add"."""
    ends = [*graph.inputs, *graph.outputs]
    taken = {value.name for value in ends}
    for node in graph:
        for value in node.outputs:
            if value.name in taken and not any(value is end for end in ends):
                value.name = f"{value.name}.inner"


def _beside(name: str, taken: Sequence[str]) -> str:
    """The name, or one like it that is not taken: a graph names every value once."""
    while name in taken:
        name += "_"
    return name


class _Whole(nn.Module):
    """The model as a function of tensors that gives tensors."""

    def __init__(self, model: nn.Module, names: list[str] | None, modalities: bool) -> None:
        super().__init__()
        self.model, self.names, self.modalities = model, names, modalities

    def run(self, *tensors: Tensor) -> Any:
        """What the model returns."""
        if self.names is None:
            return self.model(*tensors)
        given = dict(zip(self.names, tensors, strict=True))
        return self.model(given) if self.modalities else self.model(**given)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The tensors in what the model returns."""
        return tuple(_tensors(self.run(*tensors)).values())


def _named(
    inputs: Inputs, plan: Plan, modalities: Sequence[str] | None
) -> tuple[list[str], list[Tensor], bool]:
    """Names and tensors, and whether the model takes them by name."""
    if isinstance(inputs, Mapping):
        found = dict(inputs)
        if modalities is not None:
            missing = [m for m in plan.present if m not in found]
            if missing:
                raise ValueError(
                    f"inputs: nothing is given for {missing[0]!r}, which is present in the plan"
                )
            found = {m: found[m] for m in plan.present}
    elif modalities is not None:
        raise TypeError(
            f"inputs: got {type(inputs).__name__}, expected a mapping of the modalities "
            f"{', '.join(plan.present)}"
        )
    else:
        given = [inputs] if isinstance(inputs, Tensor) else list(inputs)
        found = {f"input_{n}" if len(given) > 1 else "input": t for n, t in enumerate(given)}
    for name, value in found.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"inputs: {name!r} is a {type(value).__name__}, expected a tensor")
    return list(found), list(found.values()), isinstance(inputs, Mapping)


def _tensors(output: Any) -> dict[str, Tensor]:
    """The tensors that a model returns, by name; those of nested values are left out."""
    if isinstance(output, Tensor):
        return {"output": output}
    if isinstance(output, Mapping):
        return {name: t for name, t in output.items() if isinstance(t, Tensor)}
    tensors = [t for t in output if isinstance(t, Tensor)]
    return {f"output_{n}": t for n, t in enumerate(tensors)}
