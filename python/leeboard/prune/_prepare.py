"""A plan made ready for a model: checked once, with the tensors that its run needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from leeboard.prune._weights import linear
from leeboard.prune.plan import Plan
from leeboard.prune.units import Sublayer, Units


class Tensors(NamedTuple):
    """What a sublayer's run needs, for one device and dtype.

    Attributes:
        writers: int32 panels for every writer; of `nn.MultiheadAttention` one list more, for the
            weight that holds q, k and v.
        reader: int32 panels of the reader, one for each panel that its input holds, -1 for one that
            is not kept.
        factors: For the reader's compact input, or None for ones.
        gates: [columns], for all of the reader's input, or None for ones.
        bias: [out_features], added to the reader's output, or None.
        heads: int64, units that are computed.
    """

    writers: tuple[Tensor, ...]
    reader: Tensor
    factors: Tensor | None
    gates: Tensor | None
    bias: Tensor | None
    heads: Tensor


@dataclass(frozen=True)
class Entry:
    """The run of a sublayer under a plan.

    Attributes:
        sublayer: Which.
        kept: Its units that count, ascending.
        computed: Its units that are computed: those in groups or panels of a kept one.
        active: Places of the kept ones among those computed, or None for all.
        panel: Columns in a panel.
    """

    sublayer: Sublayer
    kept: tuple[int, ...]
    computed: tuple[int, ...]
    active: tuple[int, ...] | None
    panel: int
    _host: Tensors
    _on: dict[tuple[torch.device, torch.dtype], Tensors] = field(default_factory=dict)

    @property
    def dropped(self) -> bool:
        """Whether nothing of it runs."""
        return not self.kept

    def on(self, x: Tensor) -> Tensors:
        """Its tensors on the device of x, numbers in x's dtype; made at the first call."""
        key = x.device, x.dtype
        found = self._on.get(key)
        if found is None:
            found = self._on[key] = self._made(*key)
        return found

    # They outlive the call: a training may use what inference has made.
    @torch.inference_mode(False)
    def _made(self, device: torch.device, dtype: torch.dtype) -> Tensors:
        host = self._host

        def like(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.to(device, dtype)

        return Tensors(
            tuple(t.to(device) for t in host.writers),
            host.reader.to(device),
            like(host.factors),
            like(host.gates),
            like(host.bias),
            host.heads.to(device),
        )

    @property
    def host(self) -> Tensors:
        """Its tensors as they were made: on the CPU, float32."""
        return self._host


@dataclass(frozen=True)
class Prepared:
    """A plan and its entries, by name of the sublayer; one without runs as it is."""

    plan: Plan
    present: frozenset[str]
    entries: dict[str, Entry]


def check(units: Units, plan: Plan) -> None:
    """ValueError where a plan does not fit the units; the message says what of it."""
    if not isinstance(plan, Plan):
        raise TypeError(f"plan: got {type(plan).__name__}, expected a leeboard.prune.Plan")
    if plan.fingerprint != units.fingerprint:
        foreign = [n for n, _, reason in units.left_alone if "forward of its own" in reason]
        raise ValueError(
            f"plan: it is for a model with fingerprint {plan.fingerprint}, this one has "
            f"{units.fingerprint}"
            + (f"; here {foreign[0]} has a forward of its own" if foreign else "")
            + ("; blocks that were declared by hand need units=" if units.left_alone else "")
        )
    units.check_present(plan.present)
    known = {s.name: s for s in units}
    for name, kept in plan.keep.items():
        if name not in known:
            raise ValueError(f"plan: it keeps units of {name!r}, which the model does not have")
        if kept and kept[-1] >= known[name].units:
            raise ValueError(
                f"plan: it keeps unit {kept[-1]} of {name!r}, expected 0 to {known[name].units - 1}"
            )
    for name, bias in plan.bias.items():
        if len(bias) != known[name].out_features:
            raise ValueError(
                f"plan: its bias of {name!r} has {len(bias)} numbers, expected "
                f"{known[name].out_features}"
            )


@torch.inference_mode(False)
def prepare(model: nn.Module, units: Units, plan: Plan) -> Prepared:
    """The plan, checked and ready to run.

    Raises:
        ValueError: If it does not fit the units.
    """
    check(units, plan)
    entries = {}
    for name, kept in plan.keep.items():
        sublayer = units[name]
        scales, bias = plan.scales.get(name), plan.bias.get(name)
        if len(kept) == sublayer.units and not scales and not bias:
            continue
        reader = linear(model, sublayer.reader)
        entry = _entry(sublayer, tuple(kept), scales, bias, reader.weight.element_size())
        entry.on(reader.weight)
        entries[name] = entry
    return Prepared(plan, frozenset(plan.present), entries)


def panel_of(sublayer: Sublayer, element_bytes: int) -> int:
    """Columns in a panel: a head, or 16 channels of float32, 32 of half precision."""
    if sublayer.kind == "attention":
        return sublayer.width
    return 16 if element_bytes >= 4 else 32


def _entry(
    sublayer: Sublayer,
    kept: tuple[int, ...],
    scales: Sequence[float] | None,
    bias: Sequence[float] | None,
    element_bytes: int,
) -> Entry:
    panel, width = panel_of(sublayer, element_bytes), sublayer.width
    units = torch.tensor(kept, dtype=torch.int64)
    factors = torch.zeros(sublayer.units)
    factors[units] = 1.0 if scales is None else torch.tensor(scales, dtype=torch.float32)
    gates = factors.repeat_interleave(width)
    ones = bool((gates == 1).all())
    if sublayer.kind == "attention":
        groups = sorted({unit // sublayer.group for unit in kept})
        computed = tuple(g * sublayer.group + n for g in groups for n in range(sublayer.group))
        heads, pairs = _int32(computed), _int32(groups)
        whole = set(kept)
        reader = _int32([h if h in whole else -1 for h in computed])
        writers: tuple[Tensor, ...] = (heads, pairs, pairs)
        if sublayer.family in ("torch_mha", "sparse_mha"):
            count = sublayer.units
            writers = (*writers, torch.cat((heads, heads + count, heads + 2 * count)))
        compact = None
        if scales is not None:
            compact = factors[torch.tensor(computed, dtype=torch.int64)].repeat_interleave(width)
    else:
        panels = sorted({unit // panel for unit in kept})
        computed = tuple(
            c for p in panels for c in range(p * panel, min((p + 1) * panel, sublayer.units))
        )
        reader = _int32(panels)
        writers = (reader,) * len(sublayer.writers)
        compact = None
        if scales is not None or len(kept) < len(computed):
            # Columns beyond the end of the reader count as zero, whatever stands there.
            padded = torch.zeros(-(-sublayer.units // panel) * panel)
            padded[: sublayer.units] = factors
            compact = padded.view(-1, panel)[reader.long()].flatten()
    whole = set(kept)
    active = None
    if len(kept) < len(computed):
        active = tuple(n for n, unit in enumerate(computed) if unit in whole)
    tensors = Tensors(
        writers,
        reader,
        compact,
        # Panels say enough where they are kept whole.
        None if ones or (compact is None and sublayer.kind == "feed_forward") else gates,
        None if bias is None else torch.tensor(bias, dtype=torch.float32),
        torch.tensor(computed, dtype=torch.int64),
    )
    return Entry(sublayer, kept, computed, active, panel, tensors)


def _int32(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)
