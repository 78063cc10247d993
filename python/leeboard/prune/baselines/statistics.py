"""What the baselines measure of a model on calibration data, in one pass for all of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from leeboard.prune.dropout import ModalityDropout, grouped
from leeboard.prune.taps import Taps
from leeboard.prune.units import Sublayer, Units

Batch = tuple[Any, Any]
LossFn = Callable[[Any, Any], Tensor]
Masks = Literal["full", "mix"]
Need = Literal["gradients", "weight_gradients", "inputs", "gram"]

DROPPED = 0.5
"""Chance that a modality of a sample is dropped in the mixture."""


class Moments:
    """Mean and variance of columns over rows that come in batches.

    Batches are joined by the rule of Chan, Golub and LeVeque (1979), which is Welford's for batches
    of one row: the mean of the joined rows is new before the old one is overwritten.
    """

    def __init__(self, columns: int) -> None:
        self.count = 0
        self._mean = torch.zeros(columns, dtype=torch.float64)
        self._squares = torch.zeros(columns, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Take in [n, columns]."""
        n = rows.shape[0]
        if n == 0:
            return
        rows = rows.float()
        mean = rows.mean(dim=0)
        squares = (rows - mean).square().sum(dim=0).to("cpu", torch.float64)
        delta = mean.to("cpu", torch.float64) - self._mean
        total = self.count + n
        self._mean = self._mean + delta * (n / total)
        self._squares = self._squares + squares + delta.square() * (self.count * n / total)
        self.count = total

    @property
    def mean(self) -> Tensor:
        """float64 [columns]; zeros before the first row."""
        return self._mean

    @property
    def variance(self) -> Tensor:
        """float64 [columns], over n (not n - 1); zeros before the first row."""
        return self._squares / max(self.count, 1)

    @property
    def mean_square(self) -> Tensor:
        """float64 [columns], E[x^2]."""
        return self.variance + self._mean.square()


@dataclass
class Statistics:
    """What was measured; each by name of the sublayer, empty where it was not asked for.

    Attributes:
        samples: How many were seen.
        saliency: float64 [units], |dloss/dgate| of each sample, averaged over samples.
        gradients: float64 [batches, units], dloss/dgate of each batch's mean loss.
        weight_gradients: float64 [out_features, columns] of the readers' weights, for the mean loss
            over all samples.
        inputs: Moments of the readers' inputs over all tokens of all samples.
        gram: float64 [columns, columns], X^T X of the readers' inputs X.
    """

    samples: int = 0
    saliency: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    weight_gradients: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, Moments] = field(default_factory=dict)
    gram: dict[str, Tensor] = field(default_factory=dict)


def reader_weight(model: nn.Module, sublayer: Sublayer) -> Tensor:
    """The weight [out_features, columns] of the linear layer that reads the units."""
    return cast(Tensor, model.get_submodule(sublayer.reader).weight)


def collect(
    model: nn.Module,
    units: Units,
    batches: Iterable[Batch],
    loss_fn: LossFn,
    needs: Collection[Need],
    *,
    masks: Masks = "full",
    seed: int = 0,
) -> Statistics:
    """Run the model over the batches in evaluation mode and measure what is needed.

    Gradients are those of gates of one at the readers' inputs, one per sample and unit; neither the
    parameters' gradients nor the model's mode are changed.

    Args:
        model: Called as `model(inputs)`.
        units: Of the model.
        batches: Of (inputs, target); with several modalities the inputs are a dict by name.
        loss_fn: From outputs and target to the mean loss over samples.
        needs: What to measure.
        masks: "full" feeds batches as they are; "mix" drops each modality of each sample with
            probability 1/2, at least one stays, and feeds samples with the same ones together.
        seed: Of the dropping.

    Raises:
        ValueError: If there is no batch, the loss is not finite, "mix" is asked for a model of one
            input, or weights that are ranked by their gradient are frozen.
    """
    if masks not in ("full", "mix"):
        raise ValueError(f"masks: got {masks!r}, expected 'full' or 'mix'")
    if masks == "mix" and len(units.modalities) < 2:
        raise ValueError(
            "masks: got 'mix', expected 'full': the model has one input, so none can be missing"
        )
    dropout = mixture(units.modalities, seed) if masks == "mix" else None
    collector = _Collector(model, units, loss_fn, frozenset(needs))
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        for inputs, target in batches:
            collector.batch(list(_parts(units.modalities, inputs, target, dropout)))
    finally:
        for module, mode in training.items():
            module.training = mode
    return collector.result()


def _parts(
    modalities: tuple[str, ...], inputs: Any, target: Any, dropout: ModalityDropout | None
) -> Iterator[tuple[Any, Any, int]]:
    """The batch as (inputs, target, samples), split by present modalities where some drop."""
    size = len(target)
    if dropout is None:
        yield inputs, target, size
        return
    # What the batch itself lacks stays missing.
    available = torch.tensor([[name in inputs for name in modalities]]).expand(size, -1)
    present = dropout.sample(size, available=available)
    for part, _, indices in grouped(inputs, present, modalities):
        yield part, target[indices], len(indices)


def mixture(modalities: Sequence[str], seed: int) -> ModalityDropout:
    """The dropout of `masks="mix"`: each modality of each sample with probability `DROPPED`."""
    return ModalityDropout(
        modalities, p_max=DROPPED, warmup=0.0, ramp_end=0.0, total_steps=1, seed=seed
    )


class _Collector:
    def __init__(
        self, model: nn.Module, units: Units, loss_fn: LossFn, needs: frozenset[Need]
    ) -> None:
        self.model, self.units, self.loss_fn, self.needs = model, units, loss_fn, needs
        self.statistics = Statistics()
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.rows: dict[str, list[Tensor]] = {s.name: [] for s in units}
        for s in units:
            if "gradients" in needs:
                self.statistics.saliency[s.name] = torch.zeros(s.units, dtype=torch.float64)
            if "inputs" in needs:
                self.statistics.inputs[s.name] = Moments(s.columns)
            if "gram" in needs:
                shape = (s.columns, s.columns)
                self.statistics.gram[s.name] = torch.zeros(shape, dtype=torch.float64)
            if "weight_gradients" in needs:
                weight = reader_weight(model, s)
                if not weight.requires_grad:
                    raise ValueError(
                        f"model: the weight of {s.reader} is frozen, expected requires_grad, since "
                        "weights are ranked by their gradient"
                    )
                shape = (weight.shape[0], weight.shape[1])
                self.statistics.weight_gradients[s.name] = torch.zeros(shape, dtype=torch.float64)

    def batch(self, parts: list[tuple[Any, Any, int]]) -> None:
        total = sum(size for *_, size in parts)
        if total == 0:
            return
        sums = {s.name: torch.zeros(s.units, dtype=torch.float64) for s in self.units}
        for inputs, target, size in parts:
            for name, signed in self._part(inputs, target, size).items():
                self.statistics.saliency[name] += signed.abs().sum(dim=0)
                sums[name] += signed.sum(dim=0)
        if "gradients" in self.needs:
            for name, row in sums.items():
                self.rows[name].append(row / total)
        self.statistics.samples += total

    def _part(self, inputs: Any, target: Any, size: int) -> dict[str, Tensor]:
        """One forward and backward pass; float64 [size, units], each sample's own gradient."""
        differentiate = bool({"gradients", "weight_gradients"} & self.needs)
        gates = {}
        if "gradients" in self.needs:
            gates = {
                s.name: torch.ones(size, s.units, device=self.device, requires_grad=True)
                for s in self.units
            }
        watch = self._input if {"inputs", "gram"} & self.needs else None
        weights = {}
        if "weight_gradients" in self.needs:
            weights = {s.name: reader_weight(self.model, s) for s in self.units}
        with (
            torch.set_grad_enabled(differentiate),
            Taps(self.model, self.units, gates=gates or None, on_input=watch),
        ):
            outputs = self.model(inputs)
            if not differentiate:
                return {}
            loss = self.loss_fn(outputs, target)
            if not bool(torch.isfinite(loss.detach())):
                raise ValueError(f"loss_fn: got {float(loss.detach())}, expected a finite loss")
            found = torch.autograd.grad(
                loss, [*gates.values(), *weights.values()], allow_unused=True
            )
        # A mean over the part's samples: each sample's own is `size` times its share.
        for name, gradient in zip(weights, found[len(gates) :], strict=True):
            if gradient is not None:
                share = gradient.to("cpu", torch.float64) * size
                self.statistics.weight_gradients[name] += share
        signed = {}
        for name, gradient in zip(gates, found[: len(gates)], strict=True):
            # A sublayer that does not run for these modalities has none.
            if gradient is not None:
                signed[name] = gradient.to("cpu", torch.float64) * size
        return signed

    def _input(self, sublayer: Sublayer, x: Tensor) -> None:
        rows = x.detach().reshape(-1, sublayer.columns)
        if "inputs" in self.needs:
            self.statistics.inputs[sublayer.name].add(rows)
        if "gram" in self.needs:
            rows = rows.float()
            self.statistics.gram[sublayer.name] += (rows.T @ rows).to("cpu", torch.float64)

    def result(self) -> Statistics:
        found = self.statistics
        if found.samples == 0:
            raise ValueError("batches: got none, expected at least one batch to calibrate on")
        for tensor in (*found.saliency.values(), *found.weight_gradients.values()):
            tensor /= found.samples
        if "gradients" in self.needs:
            found.gradients = {name: torch.stack(rows) for name, rows in self.rows.items()}
        return found
