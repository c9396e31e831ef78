"""Imports run one way: a package knows those below it, and none beside or above."""

import ast
from pathlib import Path

import ddetr_lite

ROOT = Path(ddetr_lite.__file__).parent
# From the bottom to the top; packages of one line do not know one another.
ORDER = (
    {"wording", "writing", "progress", "memory", "batching"},
    {"kernels"},
    {"layers", "set_prediction"},
    {"models", "datasets"},
    {"engine"},
    {"convert", "plots"},
    {"benchmarks"},
    {"course"},
    {"cli"},
    {"__main__"},
)
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}


def imported(path: Path) -> set[str]:
    """The parts of the package that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ddetr_lite":
            parts = (node.module or "").split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("ddetr_lite.")}
    return found


def test_every_part_has_its_place() -> None:
    parts = {path.stem for path in ROOT.iterdir() if path.is_dir() or path.suffix == ".py"} - {
        "__init__",
        "__pycache__",
    }
    assert parts == RANK.keys()


def test_imports_run_one_way() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {other}"
        for path in sorted(ROOT.rglob("*.py"))
        if (own := path.relative_to(ROOT).parts[0].removesuffix(".py")) in RANK
        for other in imported(path) - {own}
        if RANK[other] >= RANK[own]
    ]
    assert not wrong
