"""Latency tables as JSON, and as tables for people."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from leeboard.prune import _json
from leeboard.prune._device import Device
from leeboard.prune._plan_text import aligned
from leeboard.prune.units import Tokens

if TYPE_CHECKING:
    from leeboard.prune.latency import LatencyTable

SCHEMA = "leeboard.prune.latency"
VERSION = 1

_CURVE = ("queries", "keys", "macs", "kept", "milliseconds")


def dump(table: LatencyTable) -> str:
    """The table as JSON, a shape a line."""
    curves = {
        shape: [
            dict(zip(_CURVE, (*c.tokens, c.macs, c.kept, c.milliseconds), strict=True))
            for c in found
        ]
        for shape, found in table.curves.items()
    }
    return _json.lines(
        {
            "schema": SCHEMA,
            "version": VERSION,
            "device": table.device._asdict(),
            "rests": dict(table.rests),
            "curves": curves,
        }
    )


def read(text: str) -> dict[str, Any]:
    """The fields of a table.

    Raises:
        ValueError: For anything that `dump` does not write.
    """
    content = _json.parsed(text, SCHEMA, VERSION, "a latency table")
    _json.exact_keys(content, ("device", "rests", "curves"), "the table")
    device = content["device"]
    _json.exact_keys(device, Device._fields, "device")
    words = {
        key: _json.string(value, f"device.{key}")
        for key, value in device.items()
        if key != "threads"
    }
    threads = _json.whole(device["threads"], "device.threads")
    return {
        "device": Device(threads=threads, **words),
        "rests": {
            name: _time(value, f"rests.{name}")
            for name, value in _json.named(content["rests"], "rests").items()
        },
        "curves": {
            shape: _curves(given, f"curves.{shape}")
            for shape, given in _json.named(content["curves"], "curves").items()
        },
    }


def text(table: LatencyTable) -> str:
    """The device, and milliseconds by shape, tokens and share of units."""
    d = table.device
    where = f"{d.processor}, {d.isa}, {d.threads} thread{'s' if d.threads > 1 else ''}"
    lines = [f"Milliseconds on {where} (torch {d.torch}, {d.system}, {d.date})", ""]
    shares = ("1 block", "1/4", "1/2", "3/4", "all")
    rows = []
    for shape, curves in table.curves.items():
        for c in curves:
            tokens = str(c.tokens.queries)
            if c.tokens.keys != c.tokens.queries:
                tokens += f"/{c.tokens.keys}"
            most = c.kept[-1]
            at = (c.kept[1], most / 4, most / 2, 3 * most / 4, most)
            rows.append([shape, tokens, *(f"{c.at(n):.4f}" for n in at), ""])
    lines.append(aligned(["shape", "tokens", *shares, ""], rows))
    if table.rests:
        times = list(table.rests.values())
        rest = f"What is not prunable takes {max(times):.4f}"
        if len(times) > 1:
            rest = (
                f"What is not prunable takes {min(times):.4f} to {max(times):.4f}, by the "
                f"{len(times)} sets of modalities"
            )
        lines += ["", rest]
    return "\n".join(lines)


def _curves(given: Any, where: str) -> tuple[Any, ...]:
    from leeboard.prune.latency import Curve

    found = []
    for i, item in enumerate(_json.listed(given, where)):
        place = f"{where}[{i}]"
        _json.exact_keys(item, _CURVE, place)
        kept = _json.listed(item["kept"], f"{place}.kept")
        times = _json.listed(item["milliseconds"], f"{place}.milliseconds")
        try:
            curve = Curve(
                Tokens(*(_json.whole(item[k], f"{place}.{k}") for k in ("queries", "keys"))),
                tuple(_json.whole(n, f"{place}.kept") for n in kept),
                tuple(_time(t, f"{place}.milliseconds") for t in times),
                _json.number(item["macs"], f"{place}.macs"),
            )
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        found.append(curve)
    if not found or any(b.macs <= a.macs for a, b in pairwise(found)):
        raise ValueError(f"{where}: expected curves whose multiply-adds ascend")
    return tuple(found)


def _time(given: Any, where: str) -> float:
    value = _json.number(given, where)
    if value < 0.0:
        raise ValueError(f"{where}: got {value}, expected at least 0 milliseconds")
    return value
