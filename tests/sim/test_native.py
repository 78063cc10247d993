"""csrc/sim by itself, under the sanitizers: builds tests/sim/native and runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "tests" / "sim" / "native"
CORE = ROOT / "csrc" / "sim"

FLAGS = ["-std=c++20", "-O1", "-g1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]
# Which tests run under which sanitizers; the prefix of a test's name is that of its file.
BUILDS = {"address,undefined": "", "thread": "threads_"}
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}


def call(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, **options
    )


def compiler(sanitizers: str, folder: Path) -> str:
    """The C++ compiler; skips where there is none that has these sanitizers."""
    found = shutil.which(os.environ.get("CXX", "c++"))
    if found is None:
        pytest.skip("no C++ compiler")
    probe = folder / "probe.cpp"
    probe.write_text("int main() {}\n")
    if call(found, f"-fsanitize={sanitizers}", probe, "-o", folder / "probe").returncode:
        pytest.skip(f"{found} does not link -fsanitize={sanitizers}")
    return found


@pytest.mark.parametrize("sanitizers", BUILDS)
def test_core_is_clean(sanitizers: str, tmp_path: Path) -> None:
    cxx = compiler(sanitizers, tmp_path)
    flags = [*FLAGS, f"-fsanitize={sanitizers}", "-pthread", f"-I{CORE.parent}", f"-I{NATIVE}"]
    objects = []
    # One translation unit of each folder: the headers cost more than the sources.
    for folder in (NATIVE, CORE):
        unit = tmp_path / f"{folder.name}.cpp"
        unit.write_text("".join(f'#include "{path}"\n' for path in sorted(folder.glob("*.cpp"))))
        objects.append(unit.with_suffix(".o"))
        compiled = call(cxx, *flags, "-c", unit, "-o", objects[-1])
        assert compiled.returncode == 0, compiled.stderr
    program = tmp_path / "sim_native_test"
    linked = call(cxx, *flags, *objects, "-o", program)
    assert linked.returncode == 0, linked.stderr
    ran = call(program, BUILDS[sanitizers], env={**os.environ, **OPTIONS})
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "passed" in ran.stdout
