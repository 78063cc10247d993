"""A small source tree for the corpus."""

from __future__ import annotations

from pathlib import Path

MODULE = '''\
"""A module."""
import os

@decorated
def plain(a, b=(1,
                2)):  # why
    """Add
    two things.
    """
    # A comment of the body.
    return a + b


class Box:
    def method(self) -> "Box":
        text = """
  less indented
"""
        def inner():
            "Inner docstring."
            return text
        return inner

    async def wait(self): return "é", 1

    def only_docs(self):
        """Nothing else."""

    def described(self): "Short."; return 3
'''


def write_tree(root: Path) -> None:
    """A package with the module, copies, tests to skip and files that cannot be read."""
    files = {
        "module.py": MODULE,
        "package/copy.py": MODULE,
        "package/other.py": "def other(x):\n    return x\n",
        "test/test_it.py": "def in_tests():\n    return 1\n",
        "package/tests/more.py": "def in_more_tests():\n    return 1\n",
        "site-packages/installed.py": "def installed():\n    return 1\n",
        "broken.py": "def broken(:\n",
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (root / "latin.py").write_bytes(b"def latin():\n    return '\xe9'\n")
