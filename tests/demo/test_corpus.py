from __future__ import annotations

import ast
from pathlib import Path

import pytest
from demo_trees import MODULE, write_tree

from leeboard.demo.corpus import (
    Function,
    fingerprint,
    functions_of,
    is_held_out,
    read_corpus,
    source_files,
    standard_library,
)


@pytest.fixture
def found() -> dict[str, Function]:
    return {f.name: f for f in functions_of(MODULE, "module.py")}


def test_signature_and_docstring_are_the_users_turn(found: dict[str, Function]) -> None:
    plain = found["plain"]
    assert plain.documented
    assert plain.user == (
        'def plain(a, b=(1,\n                2)):  # why\n    """Add\n    two things.\n    """\n'
    )
    assert plain.body == "    # A comment of the body.\n    return a + b\n"


def test_without_a_docstring_the_signature_alone(found: dict[str, Function]) -> None:
    method = found["method"]
    assert not method.documented
    assert method.user == 'def method(self) -> "Box":\n'
    # Nested functions stay in their owner's body; lines of a string may have less to take off.
    assert method.body.startswith('    text = """\nless indented\n"""\n    def inner():\n')
    assert method.body.endswith("    return inner\n")


def test_bodies_on_the_signatures_line(found: dict[str, Function]) -> None:
    assert found["wait"].user == "async def wait(self): "
    assert found["wait"].body == 'return "é", 1\n'
    assert found["described"].user == 'def described(self): "Short."; '
    assert found["described"].body == "return 3\n"


def test_nested_and_empty_functions_are_left_out(found: dict[str, Function]) -> None:
    assert list(found) == ["plain", "method", "wait", "described"]


def test_tests_packages_copies_and_unreadable_files_are_skipped(tmp_path: Path) -> None:
    write_tree(tmp_path)
    files = source_files(tmp_path)
    names = [path.relative_to(tmp_path).as_posix() for path in files]
    assert names == ["broken.py", "latin.py", "module.py", "package/copy.py", "package/other.py"]
    functions = read_corpus(tmp_path, files)
    assert {f.file for f in functions} == {"module.py", "package/other.py"}
    assert [f.name for f in functions].count("plain") == 1


def test_fingerprint_follows_the_files(tmp_path: Path) -> None:
    write_tree(tmp_path)
    before = fingerprint(tmp_path, source_files(tmp_path))
    assert fingerprint(tmp_path, source_files(tmp_path)) == before
    (tmp_path / "new.py").write_text("x = 1\n")
    assert fingerprint(tmp_path, source_files(tmp_path)) != before


def test_split_is_by_file_and_by_seed() -> None:
    files = [f"{number}.py" for number in range(2000)]
    held = {file for file in files if is_held_out(file, 0, 0.1)}
    assert 140 < len(held) < 260
    assert held == {file for file in files if is_held_out(file, 0, 0.1)}
    assert held != {file for file in files if is_held_out(file, 1, 0.1)}
    assert all(is_held_out(file, 0, 0.2) for file in held)


def test_turns_of_the_standard_library_join_to_source() -> None:
    root = standard_library()
    functions = read_corpus(root, [root / name for name in ("json/decoder.py", "heapq.py")])
    assert len(functions) > 20
    for function in functions:
        assert isinstance(
            ast.parse(function.user + function.body).body[0],
            (ast.FunctionDef, ast.AsyncFunctionDef),
        )
