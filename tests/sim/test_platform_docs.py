"""The reference of platform files: complete, and its examples work."""

from __future__ import annotations

import inspect
import re
import runpy
from pathlib import Path

import pytest

from leeboard.sim import Device, Fault, Link, Platform, Protocol, RandomFaults, Rule, presets
from leeboard.sim.platform_file import KEYS, parse
from leeboard.sim.topology import GENERATORS

TEXT = (Path(__file__).parents[2] / "docs" / "sim" / "platforms.md").read_text()
# Words in code type, and in the argument lists of generators.
CODE = set(re.findall(r"[\w-]+", " ".join(re.findall(r"`([^`\n]+)`", TEXT))))

FIELDS = {
    name
    for part in (Device, Link, Protocol, Fault, RandomFaults, Rule, *GENERATORS.values())
    for name in inspect.signature(part).parameters
}


def test_every_key_is_explained() -> None:
    assert set(KEYS) <= CODE
    # A fault's duration is `for` in files.
    missing = FIELDS - CODE
    assert missing == {"duration"}
    assert set(GENERATORS) <= CODE


def test_presets_are_listed_and_sourced() -> None:
    names = [preset.name for preset in presets()]
    assert len(set(names)) == len(names)
    assert set(names) <= CODE
    for preset in presets():
        assert len(preset.source) > 10
        # Links have no names of their own.
        assert getattr(preset.part, "name", preset.name) == preset.name


@pytest.mark.parametrize("example", re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL))
def test_yaml_examples(example: str) -> None:
    assert parse(Platform, example.encode(), "platforms.md").name


@pytest.mark.parametrize("example", re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
def test_python_examples(example: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "example.py"
    script.write_text(example)
    runpy.run_path(str(script))
    assert "8 devices" in capsys.readouterr().out


def test_presets_are_as_documented() -> None:
    by_name = {preset.name: preset.part for preset in presets()}
    pcie = by_name["pcie-4-x16"]
    assert isinstance(pcie, Link)
    assert pcie.bandwidth == pytest.approx(31.5e9, rel=1e-3)
    epyc = by_name["epyc-7763"]
    assert isinstance(epyc, Device)
    assert epyc.flops == 64 * 2.45e9 * 32
    assert [preset.name for preset in presets() if preset.measured] == ["gloo"]
