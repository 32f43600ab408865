"""The direction of dependence, read from the sources: runtime -> facts <- builder, no other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = {"trt_resa": ROOT / "trt_resa", "builder": ROOT / "builder", "runtime": ROOT / "runtime"}
ALLOWED = {
    "trt_resa": {"trt_resa"},
    "builder": {"trt_resa", "builder"},
    "runtime": {"trt_resa", "runtime"},
}


def part_of(module: str) -> str | None:
    """The part a dotted module name belongs to, None for other packages."""
    if module in ("builder", "runtime") or module.startswith(("builder.", "runtime.")):
        pytest.fail(f"import of top-level '{module}': write trt_resa.{module}")
    match = re.match(r"trt_resa(?:\.(builder|runtime))?(?:\.|$)", module)
    return None if match is None else match.group(1) or "trt_resa"


def imports(source: str) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction; write the full name"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("part", PARTS)
def test_imports_point_one_way(part: str) -> None:
    files = list(PARTS[part].rglob("*.py"))
    assert files
    for file in files:
        for name in imports(file.read_text(encoding="utf-8")):
            target = part_of(name)
            assert target is None or target in ALLOWED[part], f"{file} imports {name}"


def test_the_import_test_sees_a_wrong_edge() -> None:
    assert part_of(imports("from trt_resa.builder import cli")[0]) == "builder"
    assert part_of(imports("import trt_resa.runtime.llm")[0]) == "runtime"
    assert part_of("trt_resa.config") == "trt_resa"
    assert part_of("torch.nn") is None


def test_the_schedule_knows_no_tensors() -> None:
    runtime = PARTS["runtime"]
    files = (runtime / "schedule.py", runtime / "acceptance.py", PARTS["trt_resa"] / "config.py")
    for file in files:
        assert not {name.split(".")[0] for name in imports(file.read_text())} & {"torch", "numpy"}
