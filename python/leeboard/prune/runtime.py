"""Runs a model under a plan, and switches plans between two calls."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from leeboard.prune import _run
from leeboard.prune._patches import (
    Applied,
    Dense,
    Ours,
    Patches,
    is_foreign,
    quiet_torch,
    under_a_plan,
)
from leeboard.prune._prepare import Entry, Prepared, prepare
from leeboard.prune._run import Run
from leeboard.prune.discover import units as find_units
from leeboard.prune.plan import Plan
from leeboard.prune.units import Sublayer, Units

# Plans that stay prepared; the oldest goes.
_KEPT_PLANS = 1024

# Two threads must not set up a model at once.
_setting_up = threading.Lock()


def apply(model: nn.Module, plan: Plan, *, units: Units | None = None) -> None:
    """Makes the model run under a plan from its next call on.

    The first call sets up the model (instance attributes; no weight is copied, the state_dict
    stays the same); further ones switch to another plan by one assignment. A forward, or a call of
    `generate`, that is running in another thread stays with the plan that it began with. The first
    call and `revert` need a model that is not running.

    Blocks that keep no unit give zeros (and the plan's bias), so that only the residual remains;
    units that fill no whole panel or group are masked. Of a mapping of modalities that is given to
    a model with `modalities`, those that are not present in the plan are dropped.

    Args:
        model: The model; not compiled. Training works: gradients flow through what runs.
        plan: Of the model's units.
        units: As `leeboard.prune.units` gave them, where blocks were declared by hand.

    Raises:
        TypeError: If `model` is no module or `plan` no plan.
        ValueError: If the plan is for another model or does not fit; or the model is compiled,
            sharded, or has forwards of its own where a plan must go. The model, and the plan that
            it runs, stay as they were.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    session = _session(model)
    if session is None:
        with _setting_up:
            session = _session(model)
            if session is None:
                session = _Session(model, find_units(model) if units is None else units)
                session.current = session.prepared(plan)
                session.install()
                return
    if units is not None and units.fingerprint != session.units.fingerprint:
        raise ValueError(
            f"units: got those of fingerprint {units.fingerprint}; the model runs plans of "
            f"{session.units.fingerprint}; revert(model) first"
        )
    session.current = session.prepared(plan)


def revert(model: nn.Module) -> None:
    """Takes back what `apply` set up: the model is exactly as it was before; none does nothing.

    Raises:
        RuntimeError: If what was set up has been changed since. Then nothing is changed.
    """
    session = _session(model)
    if session is not None:
        session.remove()


def active_plan(model: nn.Module) -> Plan | None:
    """The plan that the model's next call runs under, or None."""
    session = _session(model)
    return None if session is None or session.current is None else session.current.plan


class _Session:
    """A model that plans have been applied to."""

    def __init__(self, model: nn.Module, units: Units) -> None:
        self.model, self.units = model, units
        # Read once by every forward; a switch is an assignment.
        self.current: Prepared | None = None
        self.local = threading.local()
        self._patches = Patches()
        self._lock = threading.Lock()
        self._plans: OrderedDict[Plan, Prepared] = OrderedDict()

    def prepared(self, plan: Plan) -> Prepared:
        """The plan made ready, once."""
        given: object = plan
        found = self._plans.get(given) if isinstance(given, Plan) else None
        if found is None:
            found = prepare(self.model, self.units, plan)
            with self._lock:
                self._plans[plan] = found
                if len(self._plans) > _KEPT_PLANS:
                    self._plans.popitem(last=False)
        return found

    def entry(self, name: str) -> Entry | None:
        """What a sublayer runs under in this thread's call."""
        plan = getattr(self.local, "plan", None) or self.current
        return None if plan is None else plan.entries.get(name)

    def install(self) -> None:
        """Sets the forwards; all or nothing."""
        _refuse(self.model)
        try:
            quiet_torch(self.model, self._patches)
            for sublayer in self.units:
                for name, attribute, make in _places(self.model, sublayer):
                    module = self.model.get_submodule(name)
                    own = vars(module).get(attribute)
                    if own is not None and is_foreign(module, own):
                        raise ValueError(f"model: {name!r} has a {attribute} of its own")
                    method = getattr(type(module), attribute)
                    original = method.__get__(module)
                    run = make(module, original, partial(self.entry, sublayer.name))
                    self._patches.set(module, attribute, run, name)
            for attribute in ("forward", "generate"):
                original = getattr(self.model, attribute, None)
                if callable(original):
                    whole = _Whole(self, attribute, original)
                    self._patches.set(self.model, attribute, whole, "")
        except BaseException:
            self._patches.undo()
            raise

    def remove(self) -> None:
        """Every attribute as it was."""
        changed = self._patches.changed()
        if changed:
            raise RuntimeError(f"model: {changed} by something else; undo that before revert()")
        self._patches.undo()
        self.current = None


class _Whole(Applied):
    """A method of the whole model that sees one plan from start to end."""

    def __init__(self, session: _Session, attribute: str, original: Callable[..., Any]) -> None:
        self.session, self.attribute, self.original = session, attribute, original
        named = getattr(session.model, "modalities", None) is not None
        self.inputs = named and attribute == "forward"
        # What looks at the signature finds the original's.
        self.__wrapped__, self.__name__ = original, attribute

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "model: a plan is applied to it, which cannot be compiled or exported; use "
                "compact(model, plan)"
            )
        local = self.session.local
        outer = getattr(local, "plan", None)
        plan = self.session.current if outer is None else outer
        local.plan = plan
        try:
            if self.inputs and plan is not None:
                missing = set(self.session.units.modalities) - plan.present
                if missing:
                    args, kwargs = _without(args, kwargs, missing)
            return self.original(*args, **kwargs)
        finally:
            local.plan = outer

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        original = self.original
        own: object = original
        if isinstance(own, Ours) or getattr(own, "__self__", None) is self.session.model:
            return Dense(copy.deepcopy(self.session.model, memo), self.attribute)
        return copy.deepcopy(original, memo)

    def __reduce__(self) -> Any:
        raise RuntimeError("model: a plan is applied to it; revert(model) before it is pickled")


def _without(
    args: tuple[Any, ...], kwargs: dict[str, Any], missing: set[str]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call without the modalities that the plan does without.

    Names that are no modality stay: the model knows what to say to them.
    """

    def kept(value: Mapping[str, Any]) -> dict[str, Any]:
        return {name: x for name, x in value.items() if name not in missing}

    if args and isinstance(args[0], Mapping):
        return (kept(args[0]), *args[1:]), kwargs
    if isinstance(kwargs.get("inputs"), Mapping):
        return args, {**kwargs, "inputs": kept(kwargs["inputs"])}
    return args, kwargs


def _session(model: object) -> _Session | None:
    whole = vars(model).get("forward") if isinstance(model, nn.Module) else None
    return whole.session if isinstance(whole, _Whole) and whole.session.model is model else None


def _refuse(model: nn.Module) -> None:
    """ValueError for models whose forwards are not called, or not by us alone."""
    for name, module in model.named_modules():
        kind = type(module).__name__
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            raise ValueError(
                f"model: {name or 'it'} is compiled; expected a model that is not: apply runs "
                "modules by Python. compact(model, plan) can be compiled"
            )
        if kind in ("FullyShardedDataParallel", "DataParallel"):
            raise ValueError(f"model: {name or 'it'} is a {kind}, which calls copies of modules")
        if under_a_plan(module):
            raise ValueError(
                f"model: a plan is applied to {name or 'it'!r}, as a model of its own or a part of "
                "another; revert that first"
            )
        own = vars(module).get("forward")
        if isinstance(own, Ours) and not isinstance(own, Dense):
            raise ValueError(  # noqa: TRY004 (a value of the argument)
                f"model: the reader of {name!r} is exposed to hooks (by Taps); apply a plan after "
                "that"
            )


# (module, attribute, maker of its new forward).
_Place = tuple[str, str, Callable[[Any, Callable[..., Any], Callable[[], "Entry | None"]], Run]]


def _places(model: nn.Module, s: Sublayer) -> list[_Place]:
    """What has to run otherwise for a sublayer."""
    linears: list[_Place] = [
        (name, "forward", partial(_run.Writer, place=n)) for n, name in enumerate(s.writers)
    ]
    linears.append((s.reader, "forward", _run.Reader))
    if s.family == "feed_forward":
        return [(s.name, "forward", _run.FeedForwardRun)]
    if s.family in ("torch_mha", "sparse_mha"):
        return [(s.name, "forward", _run.MultiheadRun), linears[-1]]
    if s.family == "sparse_gqa":
        return [*linears, (s.name, "forward", _run.SparseGqaRun)]
    if s.family == "cross_attention":
        return [*linears, (s.name, "forward", _run.CrossAttentionRun)]
    if s.family == "hugging_face_attention":
        run = partial(_run.HuggingFaceAttentionRun, inner=False)
        return [*linears, (s.name, "forward", run)]
    if s.family == "bert_attention":
        block = s.writers[0].rpartition(".")[0]
        return [*linears, (block, "forward", partial(_run.HuggingFaceAttentionRun, inner=True))]
    if s.family == "hugging_face_mlp":
        names = tuple(name.rpartition(".")[2] for name in (*s.writers, s.reader))
        up, gate, down = names if s.gated else (names[0], None, names[1])
        act = "act_fn" if s.gated else "activation_fn"
        fused = partial(_run.Fused, layers=(up, gate, down), activation=act)
        return [*linears, (s.name, "forward", fused)]
    if s.family == "torch_layer":
        layer = s.name.rpartition(".")[0]
        last = "dropout3" if hasattr(model.get_submodule(layer), "dropout3") else "dropout2"
        fused = partial(
            _run.Fused,
            layers=("linear1", None, "linear2"),
            activation="activation",
            dropouts=("dropout", last),
        )
        return [*linears, (layer, "_ff_block", fused)]
    return linears
