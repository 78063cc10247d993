"""The schema that editors get: every valid file fits, a typo does not."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from leeboard.sim import Platform, PlatformError, platform_schema
from leeboard.sim.platform_file import parse
from leeboard.sim.platform_save import content

ROOT = Path(__file__).parents[2]
REFERENCE = (ROOT / "docs" / "sim" / "platforms.md").read_text()
TEXTS = [path.read_text() for path in sorted((ROOT / "examples" / "sim").glob("*.yaml"))]
TEXTS += re.findall(r"```yaml\n(.*?)```", REFERENCE, re.DOTALL)
TYPES = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """The part of JSON schema that ours is written in."""
    if "anyOf" in schema:
        return any(fits(value, option) for option in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return value in schema.get("enum", [schema.get("const")])
    allowed = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not any(number if t == "number" else isinstance(value, TYPES[t]) for t in allowed):
        return False
    if isinstance(value, list):
        return all(fits(item, schema["items"]) for item in value)
    if isinstance(value, dict):
        known, others = schema.get("properties", {}), schema["additionalProperties"]
        return set(schema.get("required", ())) <= set(value) and all(
            fits(item, known.get(key, others)) if key in known or others else False
            for key, item in value.items()
        )
    return not number or value >= schema.get("minimum", value)


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_valid_files_fit(text: str) -> None:
    assert fits(yaml.safe_load(text), platform_schema())
    platform = parse(Platform, text.encode(), "p.yaml")
    assert fits(content(platform), platform_schema())


def places(value: Any) -> list[dict[str, Any]]:
    """All mappings of fixed keys in a file."""
    found = [value] if isinstance(value, dict) else []
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if key != "stragglers" and isinstance(item, (dict, list)):
            found.extend(places(item))
    return found


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_unknown_keys_do_not_fit_either(text: str) -> None:
    value = yaml.safe_load(text)
    for number in range(len(places(value))):
        wrong = copy.deepcopy(value)
        places(wrong)[number]["bandwith"] = 1
        assert not fits(wrong, platform_schema())
        with pytest.raises(PlatformError, match="unknown key 'bandwith'"):
            parse(Platform, yaml.safe_dump(wrong).encode(), "p.yaml")


def test_it_is_json() -> None:
    assert json.loads(json.dumps(platform_schema())) == platform_schema()
