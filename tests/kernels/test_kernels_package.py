"""The kernels package itself: importing it must stay cheap and need no extra."""

from __future__ import annotations

import subprocess
import sys


def test_import_brings_in_neither_torch_nor_triton():
    code = "import leeboard.kernels, sys; print(sorted({'torch', 'triton'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
