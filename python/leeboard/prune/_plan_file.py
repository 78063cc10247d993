"""Plans as JSON: writing, and reading that believes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from leeboard.prune import _json

if TYPE_CHECKING:
    from leeboard.prune.plan import Plan

SCHEMA = "leeboard.prune.plan"
VERSION = 1

_NUMBERS = ("macs", "dense_macs", "bytes", "dense_bytes", "score")
_TIMES = ("milliseconds", "dense_milliseconds")
_PART = ("units", "macs", "dense_macs", "milliseconds", "dense_milliseconds")


def dump(plan: Plan) -> str:
    """The plan as JSON, a line for each entry and each sublayer."""
    parts = {name: dict(zip(_PART, part, strict=True)) for name, part in plan.parts.items()}
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "version": VERSION,
        "fingerprint": plan.fingerprint,
        "present": plan.present,
        "budget": plan.budget,
        "ranking": plan.ranking,
        **{name: getattr(plan, name) for name in (*_NUMBERS, *_TIMES)},
        "keep": dict(plan.keep),
        "scales": dict(plan.scales),
        "bias": dict(plan.bias),
        "parts": parts,
    }
    return _json.lines(content)


def read(text: str) -> dict[str, Any]:
    """The fields of a plan.

    Raises:
        ValueError: For anything that `dump` does not write.
    """
    content = _json.parsed(text, SCHEMA, VERSION, "a plan")
    checks: dict[str, Callable[[Any, str], Any]] = {
        "fingerprint": _json.string,
        "present": _strings,
        "budget": _json.string,
        "ranking": _json.string,
        **dict.fromkeys(_NUMBERS, _json.number),
        **dict.fromkeys(_TIMES, _json.number_or_none),
        "keep": _tuples(_json.whole),
        "scales": _tuples(_json.number),
        "bias": _tuples(_json.number),
        "parts": _parts,
    }
    _json.exact_keys(content, tuple(checks), "the plan")
    return {name: check(content[name], name) for name, check in checks.items()}


def _strings(given: Any, where: str) -> tuple[str, ...]:
    return tuple(_json.string(item, where) for item in _json.listed(given, where))


def _tuples(check: Callable[[Any, str], Any]) -> Callable[[Any, str], dict[str, Any]]:
    def read_all(given: Any, where: str) -> dict[str, Any]:
        return {
            name: tuple(
                check(item, f"{where}.{name}") for item in _json.listed(items, f"{where}.{name}")
            )
            for name, items in _json.named(given, where).items()
        }

    return read_all


def _parts(given: Any, where: str) -> dict[str, Any]:
    found = {}
    for name, part in _json.named(given, where).items():
        place = f"{where}.{name}"
        _json.exact_keys(part, _PART, place)
        found[name] = (
            _json.whole(part["units"], f"{place}.units"),
            _json.number(part["macs"], f"{place}.macs"),
            _json.number(part["dense_macs"], f"{place}.dense_macs"),
            *(_json.number_or_none(part[key], f"{place}.{key}") for key in _TIMES),
        )
    return found
