"""Hooks on the inputs of the readers: saliencies, means and gates in one ordinary pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from leeboard.ops import unit_saliency
from leeboard.prune._expose import exposed
from leeboard.prune.units import Sublayer, Units


@final
class Taps:
    """What flows into the readers of a model, inside a `with` block.

    The task's own backward pass gives the saliency |dL_n / dg_u| at g_u = 1 of every unit for
    every sample (Michel et al., 2019, arXiv:1905.10650): the gradient of the reader's input is
    read where autograd passes it on. There is no second pass, and nothing is kept but what autograd
    keeps for the readers' weights. The task's gradients are those without taps: to the bit where
    readers are plain linear layers, within rounding where a fused block is computed step by step
    to show its reader's input. Where neither weights nor inputs below a reader want a gradient, its
    input is made to.

    A pass is one call of `model`; saliencies and means are those of the last one and of the
    first backward pass through it. Several calls of one reader in a pass count as one unit: their
    gradients are added before the absolute value is taken.

    Args:
        model: Holds the readers. Its own calls bound the passes; call `reset` before each pass if
            you call only parts of it.
        units: Of the model.
        saliency: Whether saliencies are collected.
        means: Whether means of the readers' inputs are collected, with the saliencies' backward
            pass.
        gates: For some sublayers a factor of each unit, [units] or [B, units]; differentiable.
        on_input: Called with the sublayer and its reader's input [B, ..., columns], detached and
            before gates, in every forward pass.

    Raises:
        ValueError: A reader is no module of the model, gates do not fit, or a layer of torch's has
            tokens first (batch_first=False), so that its reader cannot tell samples.
    """

    def __init__(
        self,
        model: nn.Module,
        units: Units,
        *,
        saliency: bool = False,
        means: bool = False,
        gates: Mapping[str, Tensor] | None = None,
        on_input: Callable[[Sublayer, Tensor], None] | None = None,
    ) -> None:
        modules = dict(model.named_modules(remove_duplicate=False))
        for sublayer in units:
            if sublayer.reader not in modules:
                raise ValueError(
                    f"model: got no module {sublayer.reader!r}, the reader of {sublayer.name!r}; "
                    "expected the model of these units"
                )
        if saliency or means or any(gate.dim() == 2 for gate in (gates or {}).values()):
            _check_samples_first(modules, units)
        self.model, self.units = model, units
        self._readers = [(sublayer, modules[sublayer.reader]) for sublayer in units]
        self._collects_saliency, self._collects_means = saliency, means
        self._on_input = on_input
        self._gates = _checked_gates(units, gates)
        self._recording = True
        self._pass = _Pass()
        self._stack: ExitStack | None = None

    def __enter__(self) -> Taps:
        if self._stack is not None:
            raise RuntimeError("taps: entered twice, expected one `with` block at a time")
        with ExitStack() as stack:
            stack.enter_context(exposed(self.model, self.units))
            for sublayer, reader in self._readers:
                handle = reader.register_forward_pre_hook(self._hook(sublayer), with_kwargs=True)
                stack.callback(handle.remove)
            stack.callback(self.model.register_forward_pre_hook(self._start).remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close()

    def reset(self) -> None:
        """Forget the last pass."""
        self._pass = _Pass()

    @contextmanager
    def gated(self, gates: Mapping[str, Tensor] | None) -> Iterator[None]:
        """Passes in this block run under `gates` and are not recorded; earlier ones stay."""
        before = self._gates, self._recording
        self._gates, self._recording = _checked_gates(self.units, gates), False
        try:
            yield
        finally:
            self._gates, self._recording = before

    @property
    def saliency(self) -> dict[str, Tensor]:
        """float32 [B, units] for each sublayer: |dL_n / dg_u| of the last pass, >= 0.

        The loss is a mean over the batch, so gradients are multiplied by B. A sublayer that did
        not run, or that the loss does not depend on, has zeros.

        Raises:
            RuntimeError: There was no backward pass.
        """
        seen = self._pass
        if not seen.parts:
            raise RuntimeError(
                "saliency: no backward pass went through the readers; expected a call of the "
                "model with gradients enabled, then loss.backward(), inside the `with` block"
            )
        rows, device = seen.rows, next(iter(next(iter(seen.parts.values())).values())).device
        result = {}
        for sublayer in self.units:
            parts = list(seen.parts.get(sublayer.name, {}).values())
            if not parts:
                result[sublayer.name] = torch.zeros(rows, sublayer.units, device=device)
            else:
                total = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
                result[sublayer.name] = total.abs().mul(rows).float()
        return result

    @property
    def means(self) -> dict[str, Tensor]:
        """float32 [B, columns]: the mean over tokens of each reader's input in the last pass.

        Only tokens that the loss depends on (some gradient is not zero) count, so those of missing
        modalities, masked for one sample and there for another, do not. A row without any is NaN;
        a sublayer that did not run is missing.
        """
        result = {}
        for name, parts in self._pass.inputs.items():
            totals, counts = zip(*parts.values(), strict=True)
            result[name] = torch.stack(totals).sum(0) / torch.stack(counts).sum(0)
        return result

    def _start(self, *_: object) -> None:
        if self._recording:
            self.reset()

    def _hook(self, sublayer: Sublayer) -> Callable[..., Any]:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            x = args[0] if args else kwargs["input"]
            y = self._tapped(sublayer, x)
            if y is x:
                return None
            return ((y, *args[1:]), kwargs) if args else (args, {**kwargs, "input": y})

        return hook

    def _tapped(self, sublayer: Sublayer, x: Tensor) -> Tensor:
        if x.dim() < 2 or x.shape[-1] != sublayer.columns:
            raise ValueError(
                f"{sublayer.reader}: got an input of shape {list(x.shape)}, expected "
                f"[B, ..., {sublayer.columns}] with the samples first"
            )
        if self._recording:
            self._pass.check_rows(sublayer, x.shape[0])
            if self._on_input is not None:
                self._on_input(sublayer, x.detach())
        if sublayer.name in self._gates:
            x = x * _spread(self._gates[sublayer.name], sublayer, x)
        wanted = self._collects_saliency or self._collects_means
        if not (wanted and self._recording and torch.is_grad_enabled()):
            return x
        if not x.requires_grad:
            x = x.detach().requires_grad_()
        # A view is the reader's own: other users of the tensor do not show in its gradient.
        y = x.view_as(x)
        hook = self._pass.gradient_hook(sublayer, x.detach(), self._collects_means)
        y.register_hook(hook)  # type: ignore[no-untyped-call]
        return y


class _Pass:
    """What one pass of the model showed.

    Attributes:
        rows: Samples of the batch, 0 before the first reader.
        parts: For each sublayer and call of its reader: signed [B, units], or absolute if the
            only call.
        inputs: For each sublayer and call: the sum over tokens [B, columns], and their number
            [B, 1].
    """

    def __init__(self) -> None:
        self.rows = 0
        self.parts: dict[str, dict[int, Tensor]] = {}
        self.inputs: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}
        self._calls: dict[str, int] = {}
        self._first = ""

    def check_rows(self, sublayer: Sublayer, rows: int) -> None:
        if not self._first:
            self.rows, self._first = rows, sublayer.reader
        elif rows != self.rows:
            raise ValueError(
                f"{sublayer.reader}: got an input of {rows} rows after {self.rows} at "
                f"{self._first}, expected every reader to see all samples of the batch, samples "
                "first"
            )

    def gradient_hook(
        self, sublayer: Sublayer, activation: Tensor, means: bool
    ) -> Callable[[Tensor], None]:
        name = sublayer.name
        call = self._calls.get(name, 0)
        self._calls[name] = call + 1
        # Let go of in the hook: the graph, and the hook in it, live as long as the loss.
        held = [activation]

        def hook(grad: Tensor) -> None:
            if not held:
                return
            # With create_graph, hooks run with gradients enabled; the saliency is a target.
            x, grad = held.pop().detach(), grad.detach()
            if self._calls[name] == 1:
                part = unit_saliency(x, grad, width=sublayer.width)
            else:
                part = _signed_saliency(x, grad, sublayer.width)
            self.parts.setdefault(name, {})[call] = part
            if means:
                self.inputs.setdefault(name, {})[call] = _token_sums(x, grad)

        return hook


def _signed_saliency(x: Tensor, grad: Tensor, width: int) -> Tensor:
    """`unit_saliency` before the absolute value."""
    product = x.float() * grad.float()
    rows, columns = product.shape[0], product.shape[-1]
    return product.reshape(rows, -1, columns // width, width).sum((1, 3))


def _token_sums(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    tokens, grad = x.float().flatten(1, -2), grad.flatten(1, -2)
    if x.dim() == 2:
        tokens, grad = x.float()[:, None], grad[:, None]
    counts = (grad != 0).any(-1, keepdim=True).float()
    # A product would make NaN of an infinite input that does not count.
    total = torch.where(counts > 0, tokens, 0.0).sum(1)
    return total, counts.sum(1)


def _spread(gates: Tensor, sublayer: Sublayer, x: Tensor) -> Tensor:
    """Gates for every column, in the shape and dtype of the reader's input."""
    if gates.dim() == 2 and gates.shape[0] != x.shape[0]:
        raise ValueError(
            f"gates: got {gates.shape[0]} rows for {sublayer.name!r}, expected the {x.shape[0]} "
            "of its reader's input"
        )
    wide = gates.to(device=x.device, dtype=x.dtype)
    if sublayer.width > 1:
        wide = wide.repeat_interleave(sublayer.width, -1)
    if gates.dim() == 1:
        return wide
    return wide.reshape(x.shape[0], *(1,) * (x.dim() - 2), x.shape[-1])


def _check_samples_first(modules: Mapping[str, nn.Module], units: Units) -> None:
    """Refuse torch's Transformer layers that hand tokens first to their linear layers."""
    for sublayer in units:
        layer: Any = modules.get(sublayer.reader.rpartition(".")[0])
        attention = getattr(layer, "self_attn", None)
        if isinstance(attention, nn.MultiheadAttention) and not attention.batch_first:
            if sublayer.reader.endswith("out_proj"):
                continue
            raise ValueError(
                f"model: {sublayer.reader!r} sees tokens first and samples second; expected a "
                "Transformer layer built with batch_first=True"
            )


def _checked_gates(units: Units, gates: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    for name, gate in (gates or {}).items():
        try:
            expected = units[name].units
        except KeyError as error:
            raise ValueError(f"gates: {error.args[0]}") from None
        if gate.dim() not in (1, 2) or gate.shape[-1] != expected:
            raise ValueError(
                f"gates: got shape {list(gate.shape)} for {name!r}, expected [{expected}] or "
                f"[B, {expected}]"
            )
    return dict(gates or {})
