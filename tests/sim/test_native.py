"""csrc/sim by itself, under the sanitizers: builds tests/sim/native and runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "tests" / "sim" / "native"
CORE = ROOT / "csrc"
# Parts of the core that have native tests.
CORE_SOURCES: list[Path] = []

FLAGS = ["-std=c++20", "-O1", "-g1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]
# Which tests run under which sanitizers; the prefix of a test's name is that of its file.
BUILDS = {
    "address,undefined": "",
    "thread": "threads_",
}
# A report fails the run; memory that is still reachable at exit is no report.
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}


def compiler(sanitizers: str, folder: Path) -> str:
    """The C++ compiler; skips where there is none that has these sanitizers."""
    found = shutil.which(os.environ.get("CXX", "c++"))
    if found is None:
        pytest.skip("no C++ compiler")
    probe = folder / "probe.cpp"
    probe.write_text("int main() {}\n")
    command = [found, "-std=c++20", f"-fsanitize={sanitizers}", str(probe), "-o", str(folder / "p")]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip(f"{found} does not link -fsanitize={sanitizers}")
    return found


@pytest.mark.parametrize("sanitizers", BUILDS)
def test_core_is_clean(sanitizers: str, tmp_path: Path) -> None:
    cxx = compiler(sanitizers, tmp_path)
    sources = [*sorted(NATIVE.glob("*.cpp")), *CORE_SOURCES]
    program = tmp_path / "sim_native_test"
    flags = [*FLAGS, f"-fsanitize={sanitizers}", "-pthread", f"-I{CORE}", f"-I{NATIVE}"]
    built = subprocess.run(
        [cxx, *flags, *map(str, sources), "-o", str(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    ran = subprocess.run(
        [str(program), *filter(None, [BUILDS[sanitizers]])],
        capture_output=True,
        text=True,
        env={**os.environ, **OPTIONS},
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "passed" in ran.stdout
