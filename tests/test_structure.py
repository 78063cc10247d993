"""The shape of the repository: six rooms for every op, and who may import whom."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from leeboard.ops.registry import OPS

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "python" / "leeboard"

ROOMS = (
    "python/leeboard/reference/{}.py",
    "python/leeboard/ops/{}.py",
    "csrc/cpu/{}.cpp",
    "kernels/{}.py",
    "tests/ops/test_{}.py",
    "bench/ops/bench_{}.py",
)

# What each part may import of the package, anywhere; and what only inside a function. A part is a
# folder or a module of the package.
ALLOWED: dict[str, set[str]] = {
    "reference": {"reference"},
    "ops": {"ops", "reference", "_C"},
    # Of the reference they take the value types: quantised weights, a drafter's weights.
    "kernels": {"kernels", "reference"},
    "nn": {"nn", "ops"},
    "draft": {"draft", "nn", "ops"},
    "prune": {"prune", "nn", "ops"},
    "sim": {"sim", "_C"},
    # Of the demo it takes the corpus, the tokenizer, the target and the stages.
    "reproduce": {"reproduce", "demo", "draft"},
}
# What every part may use; it uses no part itself.
COMMON = {"_version", "_files", "_progress", "_pool"}
# Outside the package: part -> top-level modules that it may import at module level.
LIGHT: dict[str, set[str]] = {
    "reference": {"torch"},
    "ops": {"torch", "numpy"},
    "nn": {"torch", "numpy"},
}
HEAVY_PARTS = tuple(f"leeboard.{part}" for part in ("ops", "nn", "draft", "prune", "sim", "_C"))
EXTRAS = {
    "transformers",
    "tokenizers",
    "safetensors",
    "tqdm",
    "matplotlib",
    "tensorboard",
    "triton",
    "yaml",
    "google",
    "pandas",
    "sklearn",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "lightning",
    "pytorch_lightning",
}


def sources(part: str) -> list[Path]:
    folder = ROOT / "kernels" if part == "kernels" else PACKAGE / part
    return sorted(folder.rglob("*.py"))


def imports(tree: ast.AST, *, top_level_only: bool = False) -> Iterator[str]:
    """Absolute dotted names that a module imports; `from a import b` gives a.b."""
    nodes = ast.iter_child_nodes(tree) if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they point"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parts_used(path: Path) -> set[str]:
    """Parts of leeboard that a file imports; `leeboard` itself counts as ''."""
    used = set()
    for name in imports(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] == "leeboard":
            used.add(parts[1] if len(parts) > 1 else "")
    return used


@pytest.mark.parametrize("name", sorted(OPS))
def test_every_op_has_its_six_rooms(name: str) -> None:
    missing = [room.format(name) for room in ROOMS if not (ROOT / room.format(name)).is_file()]
    assert not missing


def test_no_op_outside_the_registry() -> None:
    """A room without an op in the registry would escape the contract tests."""
    found = {
        path.stem
        for room in ("python/leeboard/reference", "kernels")
        for path in (ROOT / room).glob("*.py")
        if not path.stem.startswith("_")
    }
    assert found == set(OPS)
    public = {p.stem for p in (PACKAGE / "ops").glob("*.py") if not p.stem.startswith("_")}
    # These hold values, no op.
    assert public - {"registry", "patterns"} == set(OPS)


@pytest.mark.parametrize("part", [p for p in ALLOWED if sources(p)])
def test_import_arrows(part: str) -> None:
    assert sources(part)
    for path in sources(part):
        wrong = parts_used(path) - ALLOWED[part] - COMMON
        assert not wrong, f"{path.relative_to(ROOT)} imports leeboard.{sorted(wrong)}"


def test_what_every_part_may_use_uses_no_part() -> None:
    for name in sorted(COMMON):
        assert not parts_used(PACKAGE / f"{name}.py")


def test_every_part_has_its_arrows() -> None:
    parts = {p.name for p in PACKAGE.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    assert parts <= set(ALLOWED) | {"scenarios", "demo", "_cli"}


def test_arrows_are_seen() -> None:
    """The reader of imports finds every form of them."""
    code = (
        "import torch\nfrom leeboard import ops\nimport leeboard.nn.x\ndef f():\n import leeboard"
    )
    assert set(imports(ast.parse(code))) == {
        "torch",
        "leeboard.ops",
        "leeboard.nn.x",
        "leeboard",
    }
    assert set(imports(ast.parse(code), top_level_only=True)) >= {"torch", "leeboard.ops"}
    assert "leeboard" not in set(imports(ast.parse(code), top_level_only=True))


@pytest.mark.parametrize("part", sorted(LIGHT))
def test_core_parts_import_no_extra(part: str) -> None:
    import sys

    for path in sources(part):
        tree = ast.parse(path.read_text())
        # One file talks to transformers, and inside of calls only.
        light = {*LIGHT[part]}
        if path == PACKAGE / "nn" / "hugging_face.py":
            above = {name.split(".")[0] for name in imports(tree, top_level_only=True)}
            assert "transformers" not in above
            light.add("transformers")
        names = {name.split(".")[0] for name in imports(tree)}
        foreign = names - light - set(sys.stdlib_module_names) - {"leeboard"}
        assert not foreign, f"{path.relative_to(ROOT)} imports {sorted(foreign)}"


def test_reference_imports_torch_only() -> None:
    for path in sources("reference"):
        names = {name.split(".")[0] for name in imports(ast.parse(path.read_text()))}
        standard = {"__future__", "collections", "dataclasses", "math", "typing"}
        assert names <= {"torch", "leeboard"} | standard


def test_extras_are_imported_lazily() -> None:
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        names = {name.split(".")[0] for name in imports(tree, top_level_only=True)}
        assert not names & EXTRAS, f"{path.relative_to(ROOT)} imports {sorted(names & EXTRAS)}"


def test_the_command_line_imports_torch_lazily() -> None:
    """`leeboard --help` must not pay for torch."""
    light = ("cli.py", "__init__.py", "_version.py", "_cli/__init__.py", "_cli/draft.py")
    light += (
        "_cli/convert.py",
        "_cli/heads.py",
        "_cli/train.py",
        "_cli/probe.py",
        "_cli/sim.py",
        "_cli/plan.py",
        "_cli/prune.py",
        "_cli/prune_demo.py",
        "_cli/prune_study.py",
    )
    for path in (PACKAGE / name for name in light):
        tree = ast.parse(path.read_text())
        heavy = {
            name
            for name in imports(tree, top_level_only=True)
            if name.split(".")[0] in EXTRAS | {"torch", "numpy"} or name.startswith(HEAVY_PARTS)
        }
        assert not heavy, f"{path.name} imports {sorted(heavy)} at module level"


def test_kernel_sources_know_neither_python_nor_torch() -> None:
    for path in (ROOT / "csrc" / "cpu").iterdir():
        text = path.read_text()
        for header in ("pybind11", "Python.h", "torch/", "ATen/", "omp.h"):
            assert f"#include <{header}" not in text, path.name
            assert f'#include "{header}' not in text, path.name


def test_every_kernel_source_is_compiled_at_every_level() -> None:
    listed = (ROOT / "cmake" / "Isa.cmake").read_text()
    for name in OPS:
        assert f"csrc/cpu/{name}.cpp" in listed


@pytest.mark.parametrize("word", ["-march=native", "-mtune=native", "-ffast-math", "fopenmp"])
def test_no_flag_of_this_machine(word: str) -> None:
    for path in (ROOT / "CMakeLists.txt", ROOT / "pyproject.toml", *(ROOT / "cmake").iterdir()):
        assert word not in path.read_text(), path.name


def test_custom_op_is_not_used() -> None:
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node, "attr", getattr(node, "id", ""))
            assert name not in ("custom_op", "triton_op"), path.relative_to(ROOT)


def test_nothing_is_unpickled() -> None:
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        assert "pickle" not in {n.split(".")[0] for n in imports(tree)}, path.relative_to(ROOT)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert keywords.get("weights_only") == "True", path.relative_to(ROOT)
