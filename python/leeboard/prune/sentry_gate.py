"""Importances as a small network of which modalities are there, taught by saliencies."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from leeboard.prune._input_means import InputMeans
from leeboard.prune._masks import checked_present, distinct, names_of, row_of
from leeboard.prune.plan import Plan
from leeboard.prune.planner import block_units
from leeboard.prune.score_table import check_means, checked_saliency
from leeboard.prune.units import Sublayer, Units

Per = Literal["panel", "block", "unit"]

# A target's share of its layer's mean that is added: units that never matter stay at a finite z.
_FLOOR = 1e-4


class SentryGate(nn.Module):
    """Mask-conditioned importances: z = MLP(2m - 1), and exp(z) is the expected saliency E[s | m].

    It implements `Scores`. The loss is that of exponential distributions with mean exp(z),
    L = mean(exp(-z) s / S + z), S the running mean saliency of the layer. Its minimiser over all
    functions of m is exp(z) = E[s | m] / S; a regression of log s would give exp(E[log s]), and
    heavy tails bias that. Scores are exp(z) S, so layers compare.

    The gate has an optimiser of its own (Adam) and its targets carry no gradient: the task never
    sees it. Do not hand its parameters to the task's optimiser.

    Args:
        units: Of the model.
        hidden: Width of the two hidden layers; 0 for a gate that is linear in m.
        per: What gets a score of its own: a "panel" of neighbouring channels or a block of heads
            (the query heads of a key-value head), a "block" (channels one by one), or a "unit".
            The units of a group share the mean score of the group.
        panel: Channels in a panel; by default those of a plan, 16, or 32 for weights of two bytes.
        lr: Of Adam.
        momentum: Of the running mean of each layer, per update.
        half_life: Of the means of the readers' inputs, in samples, as in `ScoreTable`.
        seed: Of the first weights; torch's global generator is left alone.
        name: For plans and tables.

    Raises:
        ValueError: For a number out of its range.
    """

    scale: Tensor
    updates: Tensor

    def __init__(
        self,
        units: Units,
        *,
        hidden: int = 64,
        per: Per = "panel",
        panel: int | None = None,
        lr: float = 3e-3,
        momentum: float = 0.99,
        half_life: float | None = 1024.0,
        seed: int = 0,
        name: str = "gate",
    ) -> None:
        super().__init__()
        if hidden < 0:
            raise ValueError(f"hidden: got {hidden}, expected 0 or a width")
        if per not in ("panel", "block", "unit"):
            raise ValueError(f"per: got {per!r}, expected 'panel', 'block' or 'unit'")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum: got {momentum}, expected 0 <= momentum < 1")
        if panel is not None and panel < 1:
            raise ValueError(f"panel: got {panel}, expected a positive number")
        self.settings: dict[str, Any] = {
            "hidden": hidden,
            "per": per,
            "panel": panel,
            "lr": lr,
            "momentum": momentum,
            "half_life": half_life,
            "name": name,
        }
        self._units = units
        self._sizes = [_group_size(s, per, panel) for s in units]
        self._outputs = [math.ceil(s.units / g) for s, g in zip(units, self._sizes, strict=True)]
        layer = torch.arange(len(units), device="cpu")
        # Which layer an output belongs to.
        self._layer = layer.repeat_interleave(torch.tensor(self._outputs, device="cpu"))
        self.network = _network(len(units.modalities), hidden, sum(self._outputs), seed)
        self.register_buffer("scale", torch.zeros(len(units), device="cpu"))
        self.register_buffer("updates", torch.zeros(len(units), device="cpu"))
        self._means = InputMeans(units, half_life)
        self._running: dict[tuple[str, ...], Tensor] = {}
        self._optimizer: torch.optim.Adam | None = None
        self._changes = 0

    @property
    def units(self) -> Units:
        """Of the model."""
        return self._units

    @property
    def name(self) -> str:
        """What ranks the units, as text."""
        return str(self.settings["name"])

    @property
    def version(self) -> int:
        """Another number after each change: plans are cached."""
        return self._changes

    def forward(self, present: Tensor) -> Tensor:
        """z [R, outputs] for masks bool [R, M]: log-scores as shares of their layers' means."""
        weight = next(self.parameters())
        signs = present.to(device=weight.device, dtype=weight.dtype) * 2 - 1
        z: Tensor = self.network(signs)
        return z

    def update(
        self,
        saliency: Mapping[str, Tensor],
        present: Tensor | None = None,
        means: Mapping[str, Tensor] | None = None,
    ) -> float:
        """One step of the gate's optimiser on a batch.

        A sample does not count for a layer that does not run with its modalities, or where a
        saliency is not finite.

        Args:
            saliency: [B, units] >= 0 for every sublayer, as `Taps.saliency`.
            present: bool [B, M]; None if all modalities are there.
            means: [B, columns] of the readers' inputs, as `Taps.means`.

        Returns:
            The alignment loss before the step.

        Raises:
            TypeError, ValueError: For an argument that does not fit; nothing changes then.
        """
        rows = checked_saliency(self.units, saliency)
        mask = checked_present(present, rows, self.units.modalities)
        check_means(self.units, means, rows)
        masks, which = distinct(mask)
        self._changes += 1
        if means:
            self._means.update(means, mask)
        device = self.scale.device
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            sums, counts = self._targets(saliency, masks, which)
            self._track(sums, counts)
        # Nothing may switch the gradients off, or lower the precision, of this small step.
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            z = self.forward(masks)
            # The loss is linear in s, so the samples of a mask enter as their mean.
            counted = counts[:, self._layer]
            scale = self.scale.clamp_min(torch.finfo(torch.float32).tiny)[self._layer]
            target = sums / scale + _FLOOR * counted
            loss = (torch.exp(-z) * target + z * counted).sum() / counted.sum().clamp_min(1)
            gradients = torch.autograd.grad(loss, list(self.parameters()))
        for parameter, gradient in zip(self.parameters(), gradients, strict=True):
            parameter.grad = gradient
        self._adam().step()
        for parameter in self.parameters():
            parameter.grad = None
        return float(loss.detach())

    @torch.no_grad()
    def score_rows(self, masks: Tensor) -> dict[str, Tensor]:
        """`scores` for many masks at once: bool [R, M] to float32 [R, units] of each sublayer."""
        if not bool((self.updates > 0).any()):
            raise RuntimeError("scores: the gate has seen no saliencies, expected an update first")
        masks = masks.cpu()
        with torch.autocast(self.scale.device.type, enabled=False):
            grouped = torch.exp(self.forward(masks)) * self.scale[self._layer]
        grouped = grouped * self._runs(masks).to(grouped.device)[:, self._layer]
        result = {}
        parts = torch.split(grouped, self._outputs, 1)
        for sublayer, size, part in zip(self.units, self._sizes, parts, strict=True):
            result[sublayer.name] = part.repeat_interleave(size, 1)[:, : sublayer.units].float()
        return result

    def scores(self, present: Sequence[str] | None = None) -> dict[str, Tensor]:
        """The expected saliency with these modalities, for each sublayer.

        float32 [units] on the CPU; sublayers that do not run have zeros.

        Raises:
            RuntimeError: Before the first `update`.
        """
        chosen = self.units.check_present(present)
        rows = self.score_rows(row_of(chosen, self.units.modalities)[None])
        return {name: scores[0].cpu() for name, scores in rows.items()}

    def means(self, present: Sequence[str] | None = None) -> dict[str, Tensor] | None:
        """Mean inputs of the readers, see `InputMeans`; None if none were given."""
        return self._means.means(present)

    def refine(self, plan: Plan) -> Plan:
        """The plan as it is."""
        return plan

    def get_extra_state(self) -> dict[str, Any]:
        """What a module's state_dict lacks: the optimiser and the means; tensors only."""
        moments: dict[str, Tensor] = {}
        if self._optimizer is not None:
            for index, parameter in enumerate(self.parameters()):
                for key, value in self._optimizer.state[parameter].items():
                    moments[f"{index}.{key}"] = value.detach().cpu().clone()
        return {"adam": moments, "means": self._means.state()}

    def set_extra_state(self, state: Any) -> None:
        """Go on with the optimiser and the means of `get_extra_state`."""
        means = InputMeans(self.units, self.settings["half_life"])
        means.load(state["means"])
        self._means, self._optimizer = means, None
        self._changes += 1
        if not state["adam"]:
            return
        optimizer = self._adam()
        for key, value in state["adam"].items():
            index, _, field = key.partition(".")
            parameter = list(self.parameters())[int(index)]
            # Adam counts steps on the CPU.
            device = "cpu" if field == "step" else parameter.device
            optimizer.state[parameter][field] = value.to(device).clone()

    def extra_repr(self) -> str:
        """Sizes."""
        return (
            f"modalities={len(self.units.modalities)}, outputs={sum(self._outputs)}, "
            f"per={self.settings['per']!r}"
        )

    def _targets(
        self, saliency: Mapping[str, Tensor], masks: Tensor, which: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sums over the samples of each mask: group means [R, outputs], and counts [R, layers]."""
        parts, counts, runs = [], [], self._runs(masks)[which]
        for index, (sublayer, size) in enumerate(zip(self.units, self._sizes, strict=True)):
            values = saliency[sublayer.name].detach().float()
            counted = runs[:, index].to(values.device) * values.isfinite().all(1)
            values = torch.where(counted[:, None] > 0, values, 0.0)
            # Where the saliencies are: what is left after that is small.
            means, where = _group_means(values, size), which.to(values.device)
            sums = means.new_zeros(len(masks), means.shape[1]).index_add_(0, where, means)
            parts.append(sums.to(self.scale.device))
            count = counted.new_zeros(len(masks)).index_add_(0, where, counted)
            counts.append(count.to(self.scale.device))
        return torch.cat(parts, 1), torch.stack(counts, 1)

    def _track(self, sums: Tensor, counts: Tensor) -> None:
        """Running means of the layers: plain at first, so that the start weighs no more."""
        outputs = torch.tensor(self._outputs, device=sums.device, dtype=sums.dtype)
        layers = torch.stack([p.sum() for p in torch.split(sums, self._outputs, 1)]) / outputs
        seen = counts.sum(0)
        fresh = seen > 0
        self.updates += fresh
        rate = (1 / self.updates.clamp_min(1)).clamp_min(1 - self.settings["momentum"])
        moved = self.scale + rate * (layers / seen.clamp_min(1) - self.scale)
        self.scale.copy_(torch.where(fresh, moved, self.scale))

    def _runs(self, masks: Tensor) -> Tensor:
        """float32 [R, layers] on the CPU: whether each layer runs with each mask."""
        rows = []
        for mask in masks:
            names = names_of(mask, self.units.modalities)
            if names not in self._running:
                running = self.units.tokens(names)
                self._running[names] = torch.tensor(
                    [float(s.name in running) for s in self.units], device="cpu"
                )
            rows.append(self._running[names])
        return torch.stack(rows)

    def _adam(self) -> torch.optim.Adam:
        if self._optimizer is None:
            self._optimizer = torch.optim.Adam(self.parameters(), lr=self.settings["lr"])
        return self._optimizer


def _group_size(sublayer: Sublayer, per: Per, panel: int | None) -> int:
    if per == "unit":
        return 1
    return block_units(sublayer, panel) if per == "panel" else sublayer.group


def _group_means(values: Tensor, size: int) -> Tensor:
    """Means over groups of neighbouring columns; the last group may be smaller."""
    rows, columns = values.shape
    groups = math.ceil(columns / size)
    padded = nn.functional.pad(values, (0, groups * size - columns))
    counts = torch.full((groups,), float(size), device=values.device)
    counts[-1] -= groups * size - columns
    return padded.reshape(rows, groups, size).sum(2) / counts


def _network(modalities: int, hidden: int, outputs: int, seed: int) -> nn.Sequential:
    """z = 0 at first: every unit at the mean of its layer."""
    sizes = [modalities, hidden, hidden] if hidden else [modalities]
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after, device="cpu"), nn.GELU()]
        last = nn.Linear(sizes[-1], outputs, device="cpu")
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)
