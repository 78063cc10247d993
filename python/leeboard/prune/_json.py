"""JSON files: written whole or not at all, and read by code that believes nothing."""

from __future__ import annotations

import json
from typing import Any


def lines(content: dict[str, Any]) -> str:
    """JSON with a line for each entry, and for each entry of an object within."""

    def value(given: Any) -> str:
        if not isinstance(given, dict) or not given:
            return json.dumps(given, allow_nan=False)
        inner = (f"    {json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in given.items())
        return "{\n" + ",\n".join(inner) + "\n  }"

    return (
        "{\n" + ",\n".join(f"  {json.dumps(k)}: {value(v)}" for k, v in content.items()) + "\n}\n"
    )


def parsed(text: str, schema: str, version: int, what: str) -> dict[str, Any]:
    """The object in a JSON text of this schema, without its schema and version.

    Raises:
        ValueError: If it is no JSON object, names a key twice, or is of another schema or version.
    """
    try:
        content = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError(f"not {what}: nested too deep") from None
    except ValueError as error:
        raise ValueError(f"not {what}: {error}") from None
    if not isinstance(content, dict) or content.pop("schema", None) != schema:
        raise ValueError(f'not {what}: expected a JSON object with "schema": "{schema}"')
    found = content.pop("version", None)
    if type(found) is not int or found != version:
        raise ValueError(f"version: got {found!r}, this release reads {version}")
    return content


def exact_keys(given: Any, expected: tuple[str, ...], where: str) -> None:
    """Raises ValueError unless `given` is an object with these keys."""
    if not isinstance(given, dict):
        raise ValueError(f"{where}: got {kind(given)}, expected an object")  # noqa: TRY004
    for key in given:
        if key not in expected:
            raise ValueError(f"{where}: unknown key {key!r}, expected {', '.join(expected)}")
    for key in expected:
        if key not in given:
            raise ValueError(f"{where}: key {key!r} is missing")


def string(given: Any, where: str) -> str:
    """`given`, if it is text; else ValueError."""
    if not isinstance(given, str):
        raise ValueError(f"{where}: got {kind(given)}, expected text")  # noqa: TRY004
    return given


def number(given: Any, where: str) -> float:
    """`given`, if it is a finite number; else ValueError."""
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise ValueError(f"{where}: got {kind(given)}, expected a number")  # noqa: TRY004
    if not abs(given) < 1e300:
        raise ValueError(f"{where}: the number is too large")
    return float(given)


def number_or_none(given: Any, where: str) -> float | None:
    """`given`, if it is a number or null; else ValueError."""
    return None if given is None else number(given, where)


def whole(given: Any, where: str) -> int:
    """`given`, if it is a whole number; else ValueError."""
    if type(given) is not int:
        raise ValueError(f"{where}: got {kind(given)}, expected a whole number")
    return given


def named(given: Any, where: str) -> dict[str, Any]:
    """`given`, if it is an object; else ValueError."""
    if not isinstance(given, dict):
        raise ValueError(f"{where}: got {kind(given)}, expected an object")  # noqa: TRY004
    return given


def listed(given: Any, where: str) -> list[Any]:
    """`given`, if it is a list; else ValueError."""
    if not isinstance(given, list):
        raise ValueError(f"{where}: got {kind(given)}, expected a list")  # noqa: TRY004
    return given


def kind(given: Any) -> str:
    """What a JSON value is, for messages."""
    names: dict[type, str] = {dict: "an object", list: "a list", str: "text", type(None): "null"}
    return names.get(type(given), repr(given)[:40])


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r} is there twice")
        found[key] = value
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")
